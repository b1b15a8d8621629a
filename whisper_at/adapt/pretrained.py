"""PEFT-SER's released models of speech emotion, by their names: ``whisper-base-lora-16-conv`` and five more.

Each is two files, the head (``<name>.pt``) and the matrices of LoRA (``<name>_lora.pt``, in loralib's names), on a
backbone that is loaded as usual. Spec section 2.4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoints.download import download
from ..checkpoints.files import is_state_dict, read_tensors
from ..data.emotion import FOUR_EMOTIONS
from ..suggest import did_you_mean
from .backbones import Backbone, load_backbone
from .classifier import AudioClassifier

SECONDS = 10.0  # what they were trained with, and the most that they take


class Released(NamedTuple):
    """A released model: its backbone, whether clips are normalised, and where its two files are."""

    backbone: str
    normalize: bool | None
    head_url: str
    lora_url: str


def _released(backbone: str, normalize: bool | None, file: str, head: str, lora: str) -> Released:
    (head_id, head_key), (lora_id, lora_key) = head.split(), lora.split()
    base = "https://www.dropbox.com/scl/fi"
    return Released(
        backbone,
        normalize,
        f"{base}/{head_id}/{file}_lora_16_conv_output.pt?rlkey={head_key}&dl=1",
        f"{base}/{lora_id}/{file}_lora_16_conv_output_lora.pt?rlkey={lora_key}&dl=1",
    )


RELEASED = {
    "whisper-tiny-lora-16-conv": _released(
        *("tiny", None, "whisper_tiny"),
        "ld0pymoj8iiiaen9qgpom 7sum57se4fmdqwhvte7eiexkc",
        "v9t8eyvsq882a0ulht80h 1c3uzxifkm7788q61lnmkrevt",
    ),
    "whisper-base-lora-16-conv": _released(
        *("base", None, "whisper_base"),
        "sq6w9vfrlyd0t3y5xwnnm xtot2gi9au83xi4f3kxzwjac9",
        "46bb08ek2zbt32fmqrg21 452zdg99to7ntol3rjrtgccog",
    ),
    "whisper-small-lora-16-conv": _released(
        *("small", None, "whisper_small"),
        "q99rdffwnun4f62ksr6wl 1jb66t26cgh18wi4zd8yhi27s",
        "deq7cyylglk9ztf5gqr7i 98ub4alelsyw5gddw6k1nwqn7",
    ),
    "wavlm-plus-lora-16-conv": _released(
        *("wavlm-base-plus", False, "wavlm_plus"),
        "zlhdeoxzweksxt59d7jss 5trov7d6ki48bwcl25e63ffko",
        "19sb7huz9cknlybumjnfv 8dlc3vei5cdir24wv1h1av187",
    ),
    "wavlm-large-lora-16-conv": _released(
        *("wavlm-large", True, "wavlm_large"),
        "1br3nrrnfmn0pd3kpmp5s jnghxe6mcz9cw78kai09k4yex",
        "4ybo1iu62t178albsbpcv bjpjv0s66hl8z3bngzgtfzqds",
    ),
    "mms-lora-16-conv": _released(
        *("mms-300m", True, "mms-300m"),
        "mptq3vpu5b71o9azqvw8d sj09sgy8sri0faz2eb194orwf",
        "z6uib8ivqlfty7wla8wjq nc46hvby59o1on8hiomitc916",
    ),
}
"""Names of released models."""

_SITES = {"fc1": "up", "intermediate_dense": "up", "fc2": "down", "output_dense": "down"}


def load_model(
    name: str,
    cache_folder: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    backbone: Backbone | None = None,
) -> AudioClassifier:
    """Load a released model of PEFT-SER, for neutral, angry, sad and happy speech of up to 10 s at 16 kHz.

    Parameters
    ----------
    name : one of `RELEASED`
    cache_folder : where ``<name>.pt`` and ``<name>_lora.pt`` are, or are downloaded to; by default
        ``~/.cache/whisper-at/peft-ser``
    device : where to put it
    backbone : stands for the one that the model names (one loaded from another place, say)

    Raises
    ------
    ValueError
        If there is no model of that name, or the files are not those of such a model.
    RuntimeError
        If a file cannot be downloaded, or is damaged.

    Examples
    --------
    >>> model = load_model("whisper-base-lora-16-conv")  # doctest: +SKIP
    >>> model(torch.zeros(1, 16000)).shape  # doctest: +SKIP
    torch.Size([1, 4])
    """
    if name not in RELEASED:
        raise ValueError(f"no released model {name!r}: {did_you_mean(name, RELEASED)}")
    released, folder = RELEASED[name], Path(cache_folder).expanduser() if cache_folder is not None else _cache()
    parts: list[dict[str, Tensor]] = []
    for file, url, convert in (
        (f"{name}.pt", released.head_url, converted_head),
        (f"{name}_lora.pt", released.lora_url, converted_lora),
    ):
        path = folder / file
        if not path.is_file():
            download(url, path, check=partial(_refuse_others, convert=convert))
        parts.append(convert(_state_dict(path), path))
    if backbone is None:
        backbone = load_backbone(released.backbone, device, normalize=released.normalize)
    return assembled(name, backbone, *parts)


def assembled(name: str, backbone: Backbone, head: Mapping[str, Tensor], lora: Mapping[str, Tensor]) -> AudioClassifier:
    """The classifier of a plain backbone and the converted files; ValueError if they do not fit it."""
    rank = next(len(tensor) for key, tensor in lora.items() if key.endswith(".A"))
    # loralib's default alpha is 1, so that its scale is 1 / rank.
    method = {"name": "lora", "sites": ["up", "down"], "rank": rank, "alpha": 1.0}
    model = AudioClassifier(backbone, method, FOUR_EMOTIONS, head="conv", layers="weighted_conv", seconds=SECONDS)
    model.load_trained({**head, **lora}, name)
    return model.eval()


def converted_head(tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """The head's parameters in our names; what the file holds of the backbone is passed over.

    ``layer_weights``, ``model_seq.<0|3|6>.*`` and ``out_layer.<0|2>.*`` become those of `ConvHead`.
    """
    names = {"layer_weights": "head.average.weight"}
    for ours, theirs, layers in (("conv", "model_seq", (0, 3, 6)), ("mlp", "out_layer", (0, 2))):
        names |= {f"{theirs}.{i}.{p}": f"head.{ours}.{i}.{p}" for i in layers for p in ("weight", "bias")}
    if missing := sorted(names.keys() - tensors.keys()):
        raise ValueError(f"{source} is no head of PEFT-SER: {missing[0]} is missing ({len(missing)} such)")
    return {ours: tensors[theirs].float() for theirs, ours in names.items()}


def converted_lora(tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """The matrices of LoRA in our names; others are passed over.

    ``backbone_model.encoder.layers.<i>.fc1.lora_A`` (Whisper) and
    ``….<i>.feed_forward.intermediate_dense.lora_A`` (the others) become ``backbone.blocks.<i>.ffn.lora.up.A``.
    """
    out = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r".*encoder\.layers\.(\d+)\.(?:feed_forward\.)?(\w+)\.lora_([AB])", name)
        if match is not None and match.group(2) in _SITES:
            block, site, matrix = match.groups()
            out[f"backbone.blocks.{block}.ffn.lora.{_SITES[site]}.{matrix}"] = tensor.float()
    if not out:
        raise ValueError(f"{source} holds no LoRA of PEFT-SER: no ….fc1.lora_A or ….intermediate_dense.lora_A")
    return out


def _state_dict(path: Path) -> dict[str, Tensor]:
    content, _ = read_tensors(path)
    if not is_state_dict(content):
        raise ValueError(f"{path} is not a flat dict of tensors")
    return content


def _refuse_others(path: Path, convert: Callable[[Mapping[str, Tensor], object], object]) -> None:
    """Raise RuntimeError, as `download` wants it, for a file that is not of such a model."""
    try:
        convert(_state_dict(path), path.name)
    except ValueError as error:
        raise RuntimeError(str(error)) from None


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root, "whisper-at", "peft-ser")
