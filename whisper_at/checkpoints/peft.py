"""Adapters as the package ``peft`` saves them, merged into a Whisper: LoRA, rsLoRA and DoRA.

An adapter is a folder of adapter_config.json and adapter_model.safetensors. Its modules have transformers' names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import is_state_dict, read_json, read_tensors
from .huggingface import hf_name

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?")
_INITS = (None, True, False, "gaussian", "orthogonal", "eva", "lora_ga")
"""Initial values that leave the pretrained weights as they were; others (PiSSA, OLoRA …) change them, too."""
_HINT = "merge it where it was trained (merge_and_unload), save that, and give its folder"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, alone or beside a model."""
    return (folder / CONFIG).is_file()


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds an adapter and its weights."""
    return is_adapter(folder) and any((folder / name).is_file() for name in WEIGHTS)


def base_model(folder: Path) -> str:
    """Return what an adapter's configuration says of the model it was trained on: a path, or an id on the hub.

    Raises
    ------
    RuntimeError
        If it says nothing.
    """
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise RuntimeError(f"{folder / CONFIG} does not say of which model the adapter is; {_HINT}")
    return name


def merge_adapter(folder: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a Whisper's state dict with an adapter merged into it.

    A weight W becomes W + s·B·A, where s is alpha / rank (rsLoRA: alpha / √rank; Hu et al., ICLR 2022; Kalajdzievski,
    2023); DoRA (Liu et al., ICML 2024) then scales each of its rows to a learned length. Biases and modules that were
    trained whole take their place.

    Parameters
    ----------
    folder : Path
        The adapter's.
    state : mapping of str to Tensor
        The model it was trained on, in openai-whisper's names.

    Returns
    -------
    dict of str to Tensor
        What the adapter changes is float32; the rest is as it was.

    Raises
    ------
    RuntimeError
        If it is of another kind than these, does not fit the model, or its file is missing or damaged.
    """
    config = read_json(folder / CONFIG)
    _check_config(folder, config)
    ours = {hf_name(name): name for name in state}
    factors: dict[str, dict[str, Tensor]] = {}
    merged = dict(state)
    for key, tensor in _read_weights(folder).items():
        name = key.removeprefix(_PREFIX).removeprefix("model.")
        name = re.sub(r"\.(base_layer|modules_to_save(\.default)?)\b", "", name)
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match[1], {})[match[2]] = tensor.float()
        elif name in ours and tensor.shape == state[ours[name]].shape:
            merged[ours[name]] = tensor.float()
        else:
            raise RuntimeError(
                f"{folder}: {key} of shape {tuple(tensor.shape)} has no counterpart in the model; {_HINT}"
            )
    for module, parts in factors.items():
        name = ours.get(f"{module}.weight", "")
        if name not in merged:
            raise RuntimeError(f"{folder} adapts {module}, which the model does not have; {_HINT}")
        merged[name] = _merge(folder, module, merged[name].float(), parts, config)
    return merged


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise RuntimeError unless an adapter is of a kind that can be merged."""
    if (kind := config.get("peft_type")) != "LORA":
        raise RuntimeError(f"{folder} is an adapter of type {kind}; LORA can be merged here: {_HINT}")
    if (init := config.get("init_lora_weights")) not in _INITS:
        raise RuntimeError(f"{folder}: init_lora_weights = {init!r} changes the pretrained weights, too; {_HINT}")
    for option in ("layer_replication", "use_qalora", "alora_invocation_tokens", "trainable_token_indices"):
        if config.get(option):
            raise RuntimeError(f"{folder}: {option} cannot be merged here; {_HINT}")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            content, _ = read_tensors(folder / name)
            if not is_state_dict(content):
                raise RuntimeError(f"{folder / name} is not a flat dict of tensors; copy it again")
            return content
    raise RuntimeError(f"{folder} has {CONFIG}, but neither {' nor '.join(WEIGHTS)}; copy the adapter again")


def _merge(folder: Path, module: str, weight: Tensor, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return the weight of a linear layer, convolution or embedding with its low-rank update."""
    a, b = parts.get("lora_A"), parts.get("lora_B")
    if a is None and b is None:
        a, b = parts.get("lora_embedding_A"), parts.get("lora_embedding_B")
    if a is None or b is None or b.flatten(1).shape[1] != len(a):
        raise RuntimeError(f"{folder}: of {module}, A or B is missing or has another rank; copy the adapter again")
    rank = len(a)
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    update = b.flatten(1) @ a.flatten(1)
    if "lora_embedding_A" in parts:
        update = update.T
    if update.numel() != weight.numel():
        shapes = f"{tuple(update.shape)}, its weight {tuple(weight.shape)}"
        raise RuntimeError(f"{folder}: the update of {module} has the shape {shapes}; is it of another model?")
    weight = weight + scale * update.reshape(weight.shape)
    if (length := parts.get("lora_magnitude_vector")) is not None:
        norm = torch.linalg.vector_norm(weight.flatten(1), dim=1)
        weight = weight * (length.flatten() / norm).reshape(-1, *[1] * (weight.dim() - 1))
    return weight


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return the value whose key, a regular expression, matches the end of a module's name."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default
