"""Read and write ``peft``'s files for the two methods that are the same there and here: LoRA and LN tuning.

The files are adapter_model.safetensors and adapter_config.json. LN tuning is ``layer_norm`` here. ``peft`` names
modules as transformers does.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoints.files import read_json, read_tensors, save_safetensors, write_text
from ..checkpoints.shapes import check_shapes
from .backbones import Backbone
from .methods import adapt, remove_methods
from .methods.lora import SITES, lora_layers
from .methods.options import select_blocks
from .methods.tuning import NORMS

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Names of the two files."""

LORA, LN_TUNING = "LORA", "LN_TUNING"
_PREFIX = "base_model.model."
_SUFFIXES = {LORA: ".lora_{}.weight", LN_TUNING: ".ln_tuning_layers.{}"}  # of a module's name, with the parameter's

_UNSUPPORTED_OPTIONS = (
    "use_dora",
    "use_qalora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "kasa_config",
)
_SUPPORTED_INITS = (None, True, False, "gaussian", "orthogonal", "eva")  # others change the pretrained weights, too
_OTHER_PARTS = ("encoder", "decoder", "classifier")
"""Parts of a model whose modules may have the same names as those of an encoder that stands alone."""

_SPEECH_NAMES = {
    "blocks": "encoder.layers",
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "o": "attention.out_proj",
    "up": "feed_forward.intermediate_dense",
    "down": "feed_forward.output_dense",
    "attn": "layer_norm",
    "ffn": "final_layer_norm",
    "final": "encoder.layer_norm",
}
_AST_NORM_NAMES = {"attn": "layernorm_before", "ffn": "layernorm_after", "final": "layernorm"}
_NAMES = {
    "ast": {
        "blocks": "layers",
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "o": "attention.o_proj",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        **_AST_NORM_NAMES,
    },
    "ast 4": {  # as transformers 4 had it
        "blocks": "encoder.layer",
        "q": "attention.attention.query",
        "k": "attention.attention.key",
        "v": "attention.attention.value",
        "o": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
        **_AST_NORM_NAMES,
    },
    "whisper": {
        "blocks": "encoder.layers",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "up": "fc1",
        "down": "fc2",
        "attn": "self_attn_layer_norm",
        "ffn": "final_layer_norm",
        "final": "encoder.layer_norm",
    },
    "wav2vec2": _SPEECH_NAMES,
    "hubert": _SPEECH_NAMES,
    "wavlm": _SPEECH_NAMES,
}
"""Names in transformers' base models by family: of the list of blocks, the sites within a block, and the final norm."""


class ModuleKey(NamedTuple):
    """A module of the encoder: index of its block (None for the final norm) and its site."""

    block: int | None
    site: str


def peft_name(family: str, key: ModuleKey) -> str:
    """Return a module's name in transformers' base model, such as ``encoder.layers.3.attention.q_proj``."""
    names = _NAMES[family]
    return names[key.site] if key.block is None else f"{names['blocks']}.{key.block}.{names[key.site]}"


def _trained_modules(backbone: Backbone) -> dict[ModuleKey, nn.Module]:
    """Return the modules that the backbone's one method trains: its LoRAs, or its LayerNorms."""
    modules: dict[ModuleKey, nn.Module] = {ModuleKey(i, site): lora for i, site, _, lora in lora_layers(backbone)}
    if backbone.norm is not None and "norm.weight" in backbone.tuned_norms:
        modules[ModuleKey(None, "final")] = backbone.norm
    for i, block in select_blocks(backbone):
        for number, site, norm in ((1, "attn", block.norm1), (2, "ffn", block.norm2)):
            if f"blocks.{i}.norm{number}.weight" in backbone.tuned_norms:
                modules[ModuleKey(i, site)] = norm
    return modules


def save_peft(backbone: Backbone, folder: str | os.PathLike[str]) -> None:
    """Write LoRA or trained LayerNorms as ``peft`` does: adapter_model.safetensors and adapter_config.json.

    ``peft.PeftModel.from_pretrained`` loads them into transformers' base model (ASTModel, Wav2Vec2Model, WhisperModel
    …). For WavLM, transformers reads the weights of q, k, v and o directly and not through peft's modules, so LoRA has
    no effect there in peft; at up and down it has.

    Raises
    ------
    ValueError
        If the backbone has anything but one ``lora`` or one ``layer_norm``.
    """
    names = [method["name"] for method in backbone.methods]
    if names not in (["lora"], ["layer_norm"]):
        raise ValueError(f"peft's files hold one lora or one layer_norm; this backbone has {names or 'no method'}")
    (method,) = backbone.methods
    peft_type = LORA if method["name"] == "lora" else LN_TUNING
    options: dict[str, Any] = {}
    if peft_type == LORA:
        options = {"r": method["rank"], "lora_alpha": method["alpha"], "lora_dropout": 0.0, "bias": "none"}
    modules = {peft_name(backbone.family, key): module for key, module in _trained_modules(backbone).items()}
    config = {
        "peft_type": peft_type,
        "task_type": None,
        "base_model_name_or_path": backbone.name,
        **options,
        "inference_mode": True,
        "target_modules": "|".join(re.escape(name) for name in modules),  # a pattern for full names
    }
    tensors = {
        _PREFIX + module_name + _SUFFIXES[peft_type].format(name): parameter
        for module_name, module in modules.items()
        for name, parameter in module.named_parameters()
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
        If it is neither plain LoRA nor LN tuning, has tensors for modules that this backbone lacks, or does not fit
        them. The backbone is left as it was.
    """
    folder = Path(folder)
    config = _read_config(folder)
    peft_type = config["peft_type"]
    if backbone.methods:
        raise RuntimeError(f"{backbone.name} is adapted already; load it again")
    tensors = _group_by_module(backbone, read_tensors(folder / WEIGHTS)[0], peft_type, folder / WEIGHTS)
    found_sites = {key.site for key in tensors}
    method: dict[str, Any] = {
        "name": "lora" if peft_type == LORA else "layer_norm",
        "sites": [site for site in (*SITES, *NORMS) if site in found_sites],
        "blocks": sorted({key.block for key in tensors if key.block is not None}) or None,
    }
    if peft_type == LORA:
        rank = config.get("r", 8)
        alpha = config.get("lora_alpha", 8) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
        method |= {"rank": rank, "alpha": alpha}
    adapt(backbone, method)
    expected = {key: dict(module.named_parameters()) for key, module in _trained_modules(backbone).items()}
    message = f"{folder / WEIGHTS} does not fit {backbone.name}"
    try:
        check_shapes(_by_peft_name(tensors, backbone.family), _by_peft_name(expected, backbone.family), message)
    except ValueError:
        remove_methods(backbone)
        raise
    with torch.no_grad():
        for key, parameters in expected.items():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[key][name])


def _by_peft_name(modules: Mapping[ModuleKey, Mapping[str, Tensor]], family: str) -> dict[str, Tensor]:
    """Return the parameters of several modules in one dict, with names that an error message can use."""
    return {
        f"{peft_name(family, key)}.{name}": tensor
        for key, parameters in modules.items()
        for name, tensor in parameters.items()
    }


def _read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json; ValueError if the method is not the same here."""
    config = read_json(folder / CONFIG)
    peft_type = config.get("peft_type")
    if peft_type not in _SUFFIXES:
        raise ValueError(
            f"{folder} holds {peft_type!r}; of peft's methods only {' and '.join(_SUFFIXES)} can be loaded here"
        )
    unsupported = [key for key in _UNSUPPORTED_OPTIONS if config.get(key)]
    unsupported += ["bias"] if config.get("bias", "none") != "none" else []
    unsupported += ["init_lora_weights"] if config.get("init_lora_weights") not in _SUPPORTED_INITS else []
    if unsupported:
        raise ValueError(f"{folder}: its {peft_type} has {', '.join(unsupported)} set, which is not supported here")
    return config


def _group_by_module(
    backbone: Backbone, tensors: Mapping[str, Tensor], peft_type: str, path: Path
) -> dict[ModuleKey, dict[str, Tensor]]:
    """Group tensors by module and by the parameters' names here.

    Their names may start with those of a model around the encoder, which must be the same for all.
    """
    block_sites = SITES if peft_type == LORA else NORMS[:2]
    keys = [ModuleKey(i, site) for i in range(backbone.layers) for site in block_sites]
    keys += [ModuleKey(None, "final")] if peft_type == LN_TUNING and backbone.norm is not None else []
    families = [family for family in (backbone.family, f"{backbone.family} 4") if family in _NAMES]
    known = {peft_name(family, key): key for family in families for key in keys}
    pattern = re.compile("(.+)" + re.escape(_SUFFIXES[peft_type]).replace(r"\{\}", "([A-Za-z]+)"))
    modules: dict[ModuleKey, dict[str, Tensor]] = {}
    prefixes: set[str] = set()
    for full_name, tensor in tensors.items():
        match = pattern.fullmatch(full_name)
        name = "" if match is None else match[1]
        start = next((i for i in _possible_starts(name) if name[i:] in known), None)
        if match is None or start is None or len(prefixes | {name[:start]}) > 1:
            raise ValueError(f"{path} has {full_name}, which belongs to nothing in {backbone.name}")
        prefixes.add(name[:start])
        parameters = modules.setdefault(known[name[start:]], {})
        if match[2] in parameters:
            raise ValueError(f"{path} has {full_name}, and the same by another name")
        parameters[match[2]] = tensor
    return modules


def _possible_starts(name: str) -> Iterator[int]:
    """Yield where an encoder's own names may start in a dotted name: behind models around it, but not other parts."""
    yield 0
    for dot in re.finditer(r"\.", name):
        if name[: dot.start()].rpartition(".")[2] not in _OTHER_PARTS:
            yield dot.end()
