"""PEFT-SER's released models of speech emotion, by name: ``whisper-base-lora-16-conv`` and five more.

Each consists of two files, the head (``<name>.pt``) and the LoRA matrices (``<name>_lora.pt``, with loralib's names),
on a backbone that is loaded as usual. Spec section 2.4.
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

MAX_SECONDS = 10.0
"""Longest clip that the models were trained with; longer ones are cut."""


class ReleasedModel(NamedTuple):
    """Backbone of a released model, whether its clips are normalised, and the addresses of its two files."""

    backbone: str
    normalize: bool | None
    head_url: str
    lora_url: str


def _url(folder: str, file: str, key: str) -> str:
    return f"https://www.dropbox.com/scl/fi/{folder}/{file}?rlkey={key}&dl=1"


RELEASED_MODELS = {
    "whisper-tiny-lora-16-conv": ReleasedModel(
        "tiny",
        None,
        _url("ld0pymoj8iiiaen9qgpom", "whisper_tiny_lora_16_conv_output.pt", "7sum57se4fmdqwhvte7eiexkc"),
        _url("v9t8eyvsq882a0ulht80h", "whisper_tiny_lora_16_conv_output_lora.pt", "1c3uzxifkm7788q61lnmkrevt"),
    ),
    "whisper-base-lora-16-conv": ReleasedModel(
        "base",
        None,
        _url("sq6w9vfrlyd0t3y5xwnnm", "whisper_base_lora_16_conv_output.pt", "xtot2gi9au83xi4f3kxzwjac9"),
        _url("46bb08ek2zbt32fmqrg21", "whisper_base_lora_16_conv_output_lora.pt", "452zdg99to7ntol3rjrtgccog"),
    ),
    "whisper-small-lora-16-conv": ReleasedModel(
        "small",
        None,
        _url("q99rdffwnun4f62ksr6wl", "whisper_small_lora_16_conv_output.pt", "1jb66t26cgh18wi4zd8yhi27s"),
        _url("deq7cyylglk9ztf5gqr7i", "whisper_small_lora_16_conv_output_lora.pt", "98ub4alelsyw5gddw6k1nwqn7"),
    ),
    "wavlm-plus-lora-16-conv": ReleasedModel(
        "wavlm-base-plus",
        False,
        _url("zlhdeoxzweksxt59d7jss", "wavlm_plus_lora_16_conv_output.pt", "5trov7d6ki48bwcl25e63ffko"),
        _url("19sb7huz9cknlybumjnfv", "wavlm_plus_lora_16_conv_output_lora.pt", "8dlc3vei5cdir24wv1h1av187"),
    ),
    "wavlm-large-lora-16-conv": ReleasedModel(
        "wavlm-large",
        True,
        _url("1br3nrrnfmn0pd3kpmp5s", "wavlm_large_lora_16_conv_output.pt", "jnghxe6mcz9cw78kai09k4yex"),
        _url("4ybo1iu62t178albsbpcv", "wavlm_large_lora_16_conv_output_lora.pt", "bjpjv0s66hl8z3bngzgtfzqds"),
    ),
    "mms-lora-16-conv": ReleasedModel(
        "mms-300m",
        True,
        _url("mptq3vpu5b71o9azqvw8d", "mms-300m_lora_16_conv_output.pt", "sj09sgy8sri0faz2eb194orwf"),
        _url("z6uib8ivqlfty7wla8wjq", "mms-300m_lora_16_conv_output_lora.pt", "nc46hvby59o1on8hiomitc916"),
    ),
}
"""The released models by name."""

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
    name : str
        One of `RELEASED_MODELS`.
    cache_folder : path, optional
        Folder of ``<name>.pt`` and ``<name>_lora.pt``, which are downloaded to it if they are missing; by default
        ``~/.cache/whisper-at/peft-ser``.
    device : str or torch.device, optional
        Where to put the model.
    backbone : Backbone, optional
        Replaces the backbone that the model names, such as one loaded from another place.

    Returns
    -------
    AudioClassifier

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
    if name not in RELEASED_MODELS:
        raise ValueError(f"no released model {name!r}: {did_you_mean(name, RELEASED_MODELS)}")
    released = RELEASED_MODELS[name]
    folder = Path(cache_folder).expanduser() if cache_folder is not None else _default_cache_folder()
    parts: list[dict[str, Tensor]] = []
    for file, url, convert in (
        (f"{name}.pt", released.head_url, convert_head),
        (f"{name}_lora.pt", released.lora_url, convert_lora),
    ):
        path = folder / file
        if not path.is_file():
            download(url, path, check=partial(_check_file, convert=convert))
        parts.append(convert(_read_state_dict(path), path))
    if backbone is None:
        backbone = load_backbone(released.backbone, device, normalize=released.normalize)
    return make_classifier(name, backbone, *parts)


def make_classifier(
    name: str, backbone: Backbone, head: Mapping[str, Tensor], lora: Mapping[str, Tensor]
) -> AudioClassifier:
    """Make the classifier of a plain backbone and the converted files; ValueError if they do not fit it."""
    rank = next(len(tensor) for key, tensor in lora.items() if key.endswith(".A"))
    # loralib's default alpha is 1, so that its scale is 1 / rank.
    method = {"name": "lora", "sites": ["up", "down"], "rank": rank, "alpha": 1.0}
    model = AudioClassifier(backbone, method, FOUR_EMOTIONS, head="conv", layers="weighted_conv", seconds=MAX_SECONDS)
    model.load_trained_state_dict({**head, **lora}, name)
    return model.eval()


def convert_head(tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Rename the head's parameters to those of `ConvHead`; tensors of the backbone in the file are ignored.

    ``layer_weights``, ``model_seq.<0|3|6>.*`` and ``out_layer.<0|2>.*`` are theirs.
    """
    names = {"layer_weights": "head.average.weight"}
    for ours, theirs, layers in (("conv", "model_seq", (0, 3, 6)), ("mlp", "out_layer", (0, 2))):
        names |= {f"{theirs}.{i}.{p}": f"head.{ours}.{i}.{p}" for i in layers for p in ("weight", "bias")}
    if missing := sorted(names.keys() - tensors.keys()):
        raise ValueError(f"{source} is no head of PEFT-SER: {missing[0]} is missing ({len(missing)} such)")
    return {ours: tensors[theirs].float() for theirs, ours in names.items()}


def convert_lora(tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Rename the LoRA matrices to ours; other tensors are ignored.

    ``backbone_model.encoder.layers.<i>.fc1.lora_A`` (Whisper) and
    ``….<i>.feed_forward.intermediate_dense.lora_A`` (the others) become ``backbone.blocks.<i>.ffn.lora.up.A``.
    """
    converted = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r".*encoder\.layers\.(\d+)\.(?:feed_forward\.)?(\w+)\.lora_([AB])", name)
        if match is not None and match.group(2) in _SITES:
            block, site, matrix = match.groups()
            converted[f"backbone.blocks.{block}.ffn.lora.{_SITES[site]}.{matrix}"] = tensor.float()
    if not converted:
        raise ValueError(f"{source} holds no LoRA of PEFT-SER: no ….fc1.lora_A or ….intermediate_dense.lora_A")
    return converted


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    content, _ = read_tensors(path)
    if not is_state_dict(content):
        raise ValueError(f"{path} is not a flat dict of tensors")
    return content


def _check_file(path: Path, convert: Callable[[Mapping[str, Tensor], object], object]) -> None:
    """Raise RuntimeError, which `download` expects, for a file that is not of such a model."""
    try:
        convert(_read_state_dict(path), path.name)
    except ValueError as error:
        raise RuntimeError(str(error)) from None


def _default_cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root, "whisper-at", "peft-ser")
