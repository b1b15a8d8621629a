"""Whisper checkpoints: found by name or path, opened as dimensions and tensors, with their alignment heads."""

from __future__ import annotations

import base64
import gzip
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import whisper
from safetensors import safe_open
from torch import Tensor
from whisper.model import ModelDimensions

from . import huggingface
from .download import download
from .files import is_state_dict, read_tensors
from .hashing import encoder_sha256, file_sha256
from .registry import EMBEDDED, asset_path, available_models, download_folder, existing_file


def find_whisper(name: str | os.PathLike[str], download_root: str | None = None) -> Path:
    """Return the file or Hugging Face folder of a Whisper checkpoint, downloading it unless it is there.

    Parameters
    ----------
    name : str or path
        One of `available_models`, the path of a file or of a folder in Hugging Face's layout, or the id of a model
        on its hub, ``owner/model``, which needs the package huggingface_hub.
    download_root : str, optional
        Folder of downloads; ``$XDG_CACHE_HOME/whisper`` or ``~/.cache/whisper`` by default, shared with
        openai-whisper. A file already there must have the published SHA-256; else it is downloaded again, once,
        with a warning. Models of the hub go to its own cache unless a folder is given.

    Returns
    -------
    Path
        The file or folder.

    Raises
    ------
    RuntimeError
        If there is no such model, file or folder, or it cannot be downloaded completely.
    """
    name = os.fspath(name)
    if name == EMBEDDED:
        return asset_path("nano.en.pt")
    if name not in whisper._MODELS:
        path = Path(name).expanduser()
        if path.is_dir():
            huggingface.check_config(path)
            return path
        if huggingface.is_hub_id(name) and not path.exists():
            return huggingface.download_from_hub(name, download_root)
        return existing_file(name, "Model", available_models(), RuntimeError)
    url = whisper._MODELS[name]
    sha256, file = url.split("/")[-2:]
    path = download_folder(download_root) / file
    if path.is_file():
        if file_sha256(path) == sha256:
            return path
        warnings.warn(f"{path} does not have the published SHA-256; downloading it again", stacklevel=2)
    return download(url, path, sha256)


def open_whisper(path: str | os.PathLike[str], in_memory: bool = False) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return dimensions and state dict of a Whisper checkpoint.

    Parameters
    ----------
    path : str or path
        openai-whisper's ``.pt`` (a dict of ``dims`` and ``model_state_dict``), ``.safetensors`` with the dimensions
        as JSON in the metadata key ``dims``, or a folder in Hugging Face's layout.
    in_memory : bool
        Read the whole file at once before it is opened.

    Returns
    -------
    dims : dict of str to int
        Fields of `whisper.model.ModelDimensions`.
    state : dict of str to Tensor
        On the CPU, in the file's precision.

    Raises
    ------
    RuntimeError
        If the file is empty, damaged, not a checkpoint, or holds anything but tensors and plain values; if the
        folder does not hold a Whisper that openai-whisper's model can express.
    """
    path = Path(path)
    if path.is_dir():
        return huggingface.open_folder(path, in_memory)
    content, metadata = read_tensors(path, in_memory)
    content = content if isinstance(content, dict) else {}
    checkpoint: dict[str, Any] = content
    if path.suffix == ".safetensors":
        checkpoint = {"model_state_dict": content}
        with suppress(ValueError):
            checkpoint["dims"] = json.loads(metadata.get("dims", ""))
    dims, state = checkpoint.get("dims"), checkpoint.get("model_state_dict")
    dims = dims if isinstance(dims, dict) else {}
    names = [field.name for field in fields(ModelDimensions)]
    missing = [name for name in names if not isinstance(dims.get(name), int)]
    if missing or not is_state_dict(state):
        what = f"dims without {', '.join(missing)}" if missing else "no model_state_dict of tensors"
        hint = ""
        if any(".self_attn." in str(key) for key in content):
            hint = "; this is Hugging Face's layout, of which the folder is given"
        elif any("mlp_layer." in str(key) for key in content):
            hint = "; this looks like a head, which is given as head=FILE"
        raise RuntimeError(
            f"{path} is not a Whisper checkpoint in openai-whisper's layout: it has {what}{hint}. Give a "
            f"file with 'dims' and 'model_state_dict', or one of {available_models()}"
        )
    return {name: dims[name] for name in names}, state


def published_encoder_sha256(name: str, download_root: str | None = None) -> str | None:
    """Return `encoder_sha256` of an official Whisper whose checkpoint has been downloaded; None if it has not.

    Published heads say only by their names on which encoder they were trained.
    """
    path = download_folder(download_root) / whisper._MODELS[name].split("/")[-1]
    return encoder_sha256(open_whisper(path)[1]) if path.is_file() else None


def alignment_heads(
    name: str | os.PathLike[str], path: Path | None = None, dims: Mapping[str, int] | None = None
) -> bytes | None:
    """Return which cross-attention heads of a model follow time, for word timestamps.

    Parameters
    ----------
    name : str or path
        Name of the model; for official ones, the heads are known by it.
    path : Path, optional
        Its file or folder, which says so for others: in the metadata ``alignment_heads`` of a ``.safetensors``, or
        in generation_config.json of a folder.
    dims : mapping of str to int, optional
        Its dimensions.

    Returns
    -------
    bytes or None
        The mask as `whisper.model.Whisper.set_alignment_heads` takes it; None where nothing is known, for which
        openai-whisper takes the upper half of the decoder.

    Raises
    ------
    RuntimeError
        If what the file or folder says is not a list of [layer, head].
    """
    name = os.fspath(name)
    if name in whisper._ALIGNMENT_HEADS or path is None or dims is None:
        return whisper._ALIGNMENT_HEADS.get(name)
    pairs = _read_alignment_heads(path)
    if pairs is None or pairs == []:
        return None
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise RuntimeError(f"{path}: alignment_heads is not a list of [layer, head] but {str(pairs)[:60]}; remove it")
    mask = np.zeros((dims["n_text_layer"], dims["n_text_head"]), dtype=bool)
    # A distilled decoder has fewer layers than its teacher, whose list often comes with it and means nothing there.
    if any(layer >= mask.shape[0] or head >= mask.shape[1] for layer, head in pairs):
        return None
    mask[tuple(zip(*pairs))] = True
    return base64.b85encode(gzip.compress(mask.tobytes(), mtime=0))


def decode_alignment_heads(dump: bytes, dims: Mapping[str, int]) -> list[list[int]]:
    """Return the [layer, head] pairs in what `alignment_heads` returns."""
    mask = np.frombuffer(gzip.decompress(base64.b85decode(dump)), dtype=bool)
    return np.argwhere(mask.reshape(dims["n_text_layer"], dims["n_text_head"])).tolist()


def _read_alignment_heads(path: Path) -> object:
    """Return whatever a checkpoint says its alignment heads are, or None."""
    if path.is_dir():
        return huggingface.read_alignment_heads(path)
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as opened:
        text = (opened.metadata() or {}).get("alignment_heads", "null")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(i) is int and i >= 0 for i in value)
