"""``peft``'s files, adapter_model.safetensors and adapter_config.json, of what is the same there and here.

That is LoRA, and LN tuning, which is ``layer_norm`` here. ``peft`` names modules as transformers does.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..checkpoints.files import read_tensors, save_safetensors, write_text
from ..checkpoints.shapes import check_shapes
from .backbones import Backbone
from .lora import SITES, placed_lora
from .methods import adapt, strip
from .tuning import NORMS, chosen_blocks

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Names of the two files."""

_PREFIX = "base_model.model."
LORA, LN_TUNING = "LORA", "LN_TUNING"
_ENDINGS = {LORA: ".lora_{}.weight", LN_TUNING: ".ln_tuning_layers.{}"}  # behind a module's name, with a parameter's


_STRANGE = (
    *("use_dora", "use_qalora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication"),
    *("alora_invocation_tokens", "kasa_config"),
)
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # others change the pretrained weights, too
_PARTS = ("encoder", "decoder", "classifier")
"""Of models, whose modules may have the names that other encoders have by themselves."""


class Names(NamedTuple):
    """What transformers' base model calls the list of blocks, the sites within one, and the final norm."""

    blocks: str
    q: str
    k: str
    v: str
    o: str
    up: str
    down: str
    attn: str  # LN1
    ffn: str  # LN2
    final: str


_SPEECH = Names(
    "encoder.layers",
    *("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"),
    *("feed_forward.intermediate_dense", "feed_forward.output_dense"),
    *("layer_norm", "final_layer_norm", "encoder.layer_norm"),
)
_NAMES = {
    "ast": Names(
        "layers",
        *("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
        *("mlp.fc1", "mlp.fc2"),
        *("layernorm_before", "layernorm_after", "layernorm"),
    ),
    "ast 4": Names(  # as transformers 4 had it
        "encoder.layer",
        *("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
        *("layernorm_before", "layernorm_after", "layernorm"),
    ),
    "whisper": Names(
        "encoder.layers",
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        *("fc1", "fc2"),
        *("self_attn_layer_norm", "final_layer_norm", "encoder.layer_norm"),
    ),
    "wav2vec2": _SPEECH,
    "hubert": _SPEECH,
    "wavlm": _SPEECH,
}


class Place(NamedTuple):
    """A module of the encoder: index of its block, or None for the final norm, and its site."""

    block: int | None
    site: str


def peft_name(family: str, place: Place) -> str:
    """The name that transformers' base model has for a module: ``encoder.layers.3.attention.q_proj``."""
    names = _NAMES[family]
    site = cast(str, getattr(names, place.site))
    return site if place.block is None else f"{names.blocks}.{place.block}.{site}"


def _trained(backbone: Backbone) -> dict[Place, nn.Module]:
    """What one method trains: LoRA's A and B by the place of their projection, or LayerNorms by theirs."""
    loras = {Place(i, site): lora for i, site, _, lora in placed_lora(backbone)}
    norms = {"norm.weight": (Place(None, "final"), backbone.norm)}
    for i, block in chosen_blocks(backbone, None):
        norms[f"blocks.{i}.norm1.weight"] = Place(i, "attn"), block.norm1
        norms[f"blocks.{i}.norm2.weight"] = Place(i, "ffn"), block.norm2
    chosen = [place for path, place in norms.items() if path in backbone.declared_norms]
    return {**loras, **{place: norm for place, norm in chosen if norm is not None}}


def save_peft(backbone: Backbone, folder: str | os.PathLike[str]) -> None:
    """Write LoRA or trained LayerNorms as ``peft`` does: adapter_model.safetensors and adapter_config.json.

    ``peft.PeftModel.from_pretrained`` puts them into transformers' base model (ASTModel, Wav2Vec2Model, WhisperModel
    …). Of WavLM, transformers reads the weights of q, k, v and o past peft's modules, so that LoRA there has no effect
    in peft; that at up and down has.

    Raises
    ------
    ValueError
        If there is anything but one ``lora`` or one ``layer_norm``: another method, or a second one.
    """
    names = [method["name"] for method in backbone.methods]
    if names not in (["lora"], ["layer_norm"]):
        raise ValueError(f"peft's files hold one lora or one layer_norm; this backbone has {names or 'no method'}")
    (method,) = backbone.methods
    kind = LORA if method["name"] == "lora" else LN_TUNING
    settings: dict[str, Any] = {}
    if kind == LORA:
        settings = {"r": method["rank"], "lora_alpha": method["alpha"], "lora_dropout": 0.0, "bias": "none"}
    modules = {peft_name(backbone.family, place): module for place, module in _trained(backbone).items()}
    config = {
        "peft_type": kind,
        "task_type": None,
        "base_model_name_or_path": backbone.name,
        **settings,
        "inference_mode": True,
        "target_modules": "|".join(re.escape(name) for name in modules),  # a pattern for whole names
    }
    tensors = {
        _PREFIX + name + _ENDINGS[kind].format(key): parameter
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(tensors, folder / WEIGHTS, {"format": "pt"})
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_peft(backbone: Backbone, folder: str | os.PathLike[str]) -> None:
    """Adapt a backbone with the LoRA or the LayerNorms that ``peft`` (or `save_peft`) wrote to a folder.

    Raises
    ------
    FileNotFoundError
        If one of the two files is missing.
    RuntimeError
        If one is damaged, or the backbone is adapted already.
    ValueError
        If it is neither plain LoRA nor LN tuning, has tensors for other modules than this backbone's, or does not fit
        them. The backbone is left as it was.
    """
    folder = Path(folder)
    config = _read_config(folder)
    kind = config["peft_type"]
    if backbone.methods:
        raise RuntimeError(f"{backbone.name} is adapted already; load it anew")
    parts = _places(backbone, read_tensors(folder / WEIGHTS)[0], kind, folder / WEIGHTS)
    method: dict[str, Any] = {
        "name": "lora" if kind == LORA else "layer_norm",
        "sites": [site for site in Names._fields if any(place.site == site for place in parts)],
        "blocks": sorted({place.block for place in parts if place.block is not None}) or None,
    }
    if kind == LORA:
        rank = config.get("r", 8)
        alpha = config.get("lora_alpha", 8) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
        method |= {"rank": rank, "alpha": alpha}
    adapt(backbone, method)
    expected = {place: dict(module.named_parameters()) for place, module in _trained(backbone).items()}
    message = f"{folder / WEIGHTS} does not fit {backbone.name}"
    try:
        check_shapes(_by_peft_name(parts, backbone.family), _by_peft_name(expected, backbone.family), message)
    except ValueError:
        strip(backbone)
        raise
    with torch.no_grad():
        for place, parameters in expected.items():
            for key, parameter in parameters.items():
                parameter.copy_(parts[place][key])


def _by_peft_name(parts: Mapping[Place, Mapping[str, Tensor]], family: str) -> dict[str, Tensor]:
    """Return the parameters of several places in one dict, under names that an error message can use."""
    return {f"{peft_name(family, place)}.{key}": p for place, part in parts.items() for key, p in part.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, of a method that is the same here."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise RuntimeError(f"{folder / CONFIG} is not JSON ({error}); copy it anew") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in _ENDINGS:
        raise ValueError(f"{folder} holds {kind!r}; of peft's methods only {' and '.join(_ENDINGS)} can be loaded here")
    strange = [key for key in _STRANGE if config.get(key)]
    strange += ["bias"] if config.get("bias", "none") != "none" else []
    strange += ["init_lora_weights"] if config.get("init_lora_weights") not in _PLAIN_STARTS else []
    if strange:
        raise ValueError(f"{folder}: its {kind} has {', '.join(strange)} set, which is not supported here")
    return config


def _places(backbone: Backbone, tensors: Mapping[str, Tensor], kind: str, path: Path) -> dict[Place, dict[str, Tensor]]:
    """Tensors by place, and by the names of parameters here; all are of one model, which others may be around."""
    every = [Place(i, site) for i in range(backbone.layers) for site in (SITES if kind == LORA else NORMS[:2])]
    every += [Place(None, "final")] if kind == LN_TUNING and backbone.norm is not None else []
    families = [family for family in (backbone.family, f"{backbone.family} 4") if family in _NAMES]
    known = {peft_name(family, place): place for family in families for place in every}
    ending = re.compile("(.+)" + re.escape(_ENDINGS[kind]).replace(r"\{\}", "([A-Za-z]+)"))
    parts: dict[Place, dict[str, Tensor]] = {}
    around: set[str] = set()
    for key, tensor in tensors.items():
        match = ending.fullmatch(key)
        name = "" if match is None else match[1]
        start = next((k for k in _starts(name) if name[k:] in known), None)
        if match is None or start is None or len(around | {name[:start]}) > 1:
            raise ValueError(f"{path} has {key}, which belongs to nothing in {backbone.name}")
        around.add(name[:start])
        part = parts.setdefault(known[name[start:]], {})
        if match[2] in part:
            raise ValueError(f"{path} has {key}, and the same by another name")
        part[match[2]] = tensor
    return parts


def _starts(name: str) -> Iterator[int]:
    """Where an encoder's own names may start in a dotted name: a model may be wrapped in others, but not in a part."""
    yield 0
    for dot in re.finditer(r"\.", name):
        if name[: dot.start()].rpartition(".")[2] not in _PARTS:
            yield dot.end()
