"""LoRA: y = W x + b + (alpha / r) B A x, at any projection of attention or FFN (Hu et al., 2021).

Spec sections 1.2 and 2.3. The scale is alpha / r whatever the width (defect P3), A starts as Kaiming uniform and B as
zero, after the pretrained weights are loaded, so nothing changes at first (defect P2). What is trained here can be
saved as ``peft`` saves it, and what ``peft`` saved can be loaded.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import read_tensors, save_safetensors, write_text
from .backbones import Backbone
from .tuning import chosen_blocks, require_choice, require_positive

ATTENTION, FFN = ("q", "k", "v", "o"), ("up", "down")
SITES = (*ATTENTION, *FFN)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Names of the two files that peft writes."""

_PREFIX = "base_model.model."
_SPEECH = (
    *("encoder.layers", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"),
    *("feed_forward.intermediate_dense", "feed_forward.output_dense"),
)
_NAMES = {  # the list of blocks in transformers' model, and SITES within one
    "ast": (
        *("layers", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
        *("mlp.fc1", "mlp.fc2"),
    ),
    "ast 4": (  # as transformers 4 had it
        *("encoder.layer", "attention.attention.query", "attention.attention.key", "attention.attention.value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    ),
    "whisper": (
        *("encoder.layers", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        *("fc1", "fc2"),
    ),
    "wav2vec2": _SPEECH,
    "hubert": _SPEECH,
    "wavlm": _SPEECH,
}


class LoRA(nn.Module):
    """The delta (alpha / rank) B A x of one linear map.

    Attributes
    ----------
    A, B : ``(rank, in)`` and ``(out, rank)``
    merged : whether the weight that this belongs to contains it already; see `merge`
    """

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float):
        super().__init__()
        self.scale = alpha / rank
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.plain: list[nn.Linear] = []  # the map without the delta while it is merged; a list hides it from nn.Module

    @property
    def merged(self) -> bool:
        return bool(self.plain)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        return F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale

    @torch.no_grad()
    def added_to(self, linear: nn.Linear) -> nn.Linear:
        """A linear map whose weight is the given one's and this delta; the given one stays as it is."""
        whole = copy.copy(linear)
        whole._parameters = dict(linear._parameters)
        delta = (self.B @ self.A * self.scale).to(linear.weight.dtype)
        whole.weight = nn.Parameter(linear.weight + delta, requires_grad=False)
        return whole


def add_lora(
    backbone: Backbone,
    *,
    sites: Sequence[str] = ("q", "v"),
    rank: int = 8,
    alpha: float = 8.0,
    blocks: Sequence[int] | None = None,
) -> None:
    """Put LoRA at projections: any of q, k, v, o of attention, up and down of the FFN."""
    require_positive("lora", rank=rank, alpha=alpha)
    for site in dict.fromkeys(sites):
        require_choice("lora", "site", site, SITES)
        for _, block in chosen_blocks(backbone, blocks):
            part = block.attn if site in ATTENTION else block.ffn
            if site in part.lora:
                raise ValueError(f"two methods want LoRA at {site!r} of the same block; leave one out")
            linear = getattr(part, site)
            part.lora[site] = LoRA(linear.in_features, linear.out_features, rank, alpha)


def _placed(backbone: Backbone) -> Iterator[tuple[int, str, Any, LoRA]]:
    """Every LoRA: index of its block, site, module that has the linear map by the site's name, and itself."""
    for i, block in chosen_blocks(backbone, None):
        for part in (block.attn, block.ffn):
            for site, lora in part.lora.items():
                assert isinstance(lora, LoRA)
                yield i, site, part, lora


def merge(backbone: Backbone) -> None:
    """Add every LoRA to its weight, so that the adapted encoder costs no more than the plain one.

    The plain weights are kept aside for `unmerge`. For inference: training goes on after `unmerge` only.
    """
    for _, site, part, lora in _placed(backbone):
        if not lora.merged:
            plain = getattr(part, site)
            setattr(part, site, lora.added_to(plain))
            lora.plain.append(plain)


def unmerge(backbone: Backbone) -> None:
    """Undo `merge`: the weights are again, bit for bit, what they were; type and device stay those of now."""
    for _, site, part, lora in _placed(backbone):
        if lora.merged:
            setattr(part, site, lora.plain.pop().to(getattr(part, site).weight))


@contextmanager
def unmerged(backbone: Backbone) -> Iterator[None]:
    """Have LoRA apart from the weights as long as this lasts."""
    merged = any(lora.merged for *_, lora in _placed(backbone))
    unmerge(backbone)
    try:
        yield
    finally:
        if merged:
            merge(backbone)


# --- peft's files -------------------------------------------------------------------------------------------


def peft_name(family: str, block: int, site: str) -> str:
    """The name that transformers' base model has for a projection: ``encoder.layers.3.attention.q_proj``."""
    layers, *names = _NAMES[family]
    return f"{layers}.{block}.{names[SITES.index(site)]}"


def save_peft(backbone: Backbone, folder: str | os.PathLike[str]) -> None:
    """Write the LoRA of a backbone as ``peft`` does: adapter_model.safetensors and adapter_config.json.

    ``peft.PeftModel.from_pretrained`` puts it into transformers' base model (ASTModel, Wav2Vec2Model, WhisperModel …).
    Of WavLM, transformers reads the weights of q, k, v and o past peft's modules, so that LoRA there has no effect in
    peft; that at up and down has.

    Raises
    ------
    ValueError
        If there is anything but one LoRA: another method, or a second one.
    """
    if [method["name"] for method in backbone.methods] != ["lora"]:
        names = [method["name"] for method in backbone.methods]
        raise ValueError(f"peft's files hold one LoRA; this backbone has {names or 'no method'}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    targets = []
    for i, site, _, lora in _placed(backbone):
        name = peft_name(backbone.family, i, site)
        targets.append(name)
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = lora.A
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = lora.B
    (method,) = backbone.methods
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": backbone.name,
        "r": method["rank"],
        "lora_alpha": method["alpha"],
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": "|".join(re.escape(name) for name in targets),  # a pattern for whole names
    }
    save_safetensors(tensors, folder / WEIGHTS, {"format": "pt"})
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_peft(backbone: Backbone, folder: str | os.PathLike[str]) -> None:
    """Adapt a backbone with the LoRA that ``peft`` (or `save_peft`) wrote to a folder.

    Raises
    ------
    FileNotFoundError
        If one of the two files is missing.
    RuntimeError
        If one is damaged.
    ValueError
        If it is no plain LoRA, has tensors for other modules than this backbone's projections, or does not fit them.
    """
    from .methods import adapt  # which imports this module

    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise RuntimeError(f"{folder / CONFIG} is not JSON ({error}); copy it anew") from None
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder} holds {config.get('peft_type')!r}; of peft's methods only LORA can be loaded here")
    strange = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
    strange += ["bias"] if config.get("bias", "none") != "none" else []
    if strange:
        raise ValueError(f"{folder}: its LoRA has {', '.join(strange)} set, which is not supported here")
    tensors, _ = read_tensors(folder / WEIGHTS)

    parts: dict[tuple[int, str], dict[str, Tensor]] = {}
    known = {
        peft_name(names, i, site): (i, site)
        for names in (backbone.family, f"{backbone.family} 4")
        if names in _NAMES
        for i in range(backbone.layers)
        for site in SITES
    }
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", key)
        name = "" if match is None else match[1]
        place = next((known[name[k:]] for k in _starts(name) if name[k:] in known), None)
        if match is None or place is None:
            raise ValueError(f"{folder / WEIGHTS} has {key}, which belongs to nothing in {backbone.name}")
        parts.setdefault(place, {})[match[2]] = tensor
    sites = [site for site in SITES if any(place[1] == site for place in parts)]
    blocks = sorted({i for i, _ in parts})
    rank = config["r"]
    alpha = config["lora_alpha"] * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    for i in blocks:
        for site in sites:
            part = backbone.blocks[i].attn if site in ATTENTION else backbone.blocks[i].ffn  # type: ignore[union-attr]
            linear: Any = getattr(part, site)
            wanted = {"A": (rank, linear.in_features), "B": (linear.out_features, rank)}
            found = {key: tuple(tensor.shape) for key, tensor in parts.get((i, site), {}).items()}
            if wanted != found:
                raise ValueError(f"{folder / WEIGHTS}: {site} of block {i} must be {wanted}, but is {found}")
    adapt(backbone, {"name": "lora", "sites": sites, "rank": rank, "alpha": alpha, "blocks": blocks})
    with torch.no_grad():
        for i, site, _, lora in _placed(backbone):
            lora.A.copy_(parts[i, site]["A"])
            lora.B.copy_(parts[i, site]["B"])


def _starts(name: str) -> Iterator[int]:
    """Where the parts of a dotted name start: a model may be wrapped in others."""
    yield 0
    yield from (match.end() for match in re.finditer(r"\.", name))
