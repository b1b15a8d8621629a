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
from torch import Tensor
from whisper.model import ModelDimensions

from . import ctranslate2, ggml, hub, huggingface, peft
from .download import download
from .files import describe_folder, is_state_dict, read_metadata, read_tensors
from .hashing import encoder_sha256, file_sha256
from .packages import PACKAGED, find_packaged
from .registry import EMBEDDED, asset_path, available_models, download_folder, existing_file
from .shapes import check_dims, model_dims, whisper_shapes


def find_whisper(name: str | os.PathLike[str], download_root: str | None = None) -> Path:
    """Return the file or folder of a Whisper checkpoint, downloading it unless it is there.

    Parameters
    ----------
    name : str or path
        One of `available_models`; the path of a file in openai-whisper's or ggml's layout, or of a folder in Hugging
        Face's or CTranslate2's, or of an adapter's; or the id of a model on the hub, ``owner/model``, which needs the
        package huggingface_hub.
    download_root : str, optional
        Folder of downloads; ``$XDG_CACHE_HOME/whisper`` or ``~/.cache/whisper`` by default, shared with
        openai-whisper. A file already there that has not the published SHA-256 is used, with a warning, if it is a
        complete Whisper of this size (saved again, or converted), and else downloaded again. A Whisper that is not
        there, but in an installed package, is taken from it. Models of the hub go to its own cache unless a folder is
        given.

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
            check_folder(path)
            return path
        if hub.is_hub_id(name) and not path.exists():
            return hub.download_from_hub(name, download_root)
        path = folder_of(existing_file(name, "Model", available_models(), RuntimeError))
        if path.is_dir():
            check_folder(path)
        return path
    if (found := find_local(name, download_root)) is not None:
        return found
    url = whisper._MODELS[name]
    sha256, file = url.split("/")[-2:]
    path = download_folder(download_root) / file
    if path.is_file():
        warnings.warn(
            f"{path} does not have the published SHA-256, and is no complete {name}; downloading it again", stacklevel=2
        )
    try:
        return download(url, path, sha256)
    except RuntimeError as error:
        if name not in PACKAGED:
            raise
        packages = " ".join(PACKAGED[name][0].packages)
        raise RuntimeError(f"{error}\n  {name} also comes with packages: pip install {packages}") from error


def find_local(name: str, download_root: str | None = None) -> Path | None:
    """Return an official Whisper that is on this machine, or None: in the folder of downloads, or in a package.

    Parameters
    ----------
    name : str
        Name of the model.
    download_root : str, optional
        As of `find_whisper`.
    """
    folder = download_folder(download_root)
    sha256, file = whisper._MODELS[name].split("/")[-2:]
    path = folder / file
    if path.is_file():
        if file_sha256(path) == sha256:
            return path
        if _is_complete(path, name):
            warnings.warn(
                f"{path} does not have the published SHA-256, but is a Whisper of the size of {name}: it is used as it "
                "is; delete it to have the published one",
                stacklevel=3,
            )
            return path
    return find_packaged(name, folder)


def _is_complete(path: Path, name: str) -> bool:
    """Return whether a file holds every weight of an official Whisper, as numbers, whatever they are."""
    try:
        dims, state = open_whisper(path)
    except RuntimeError:
        return False
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    same = dims == model_dims(name) and shapes == whisper_shapes(dims)
    return same and all(bool(tensor.isfinite().all()) for tensor in state.values())


def open_whisper(
    path: str | os.PathLike[str], in_memory: bool = False, download_root: str | None = None
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return dimensions and state dict of a Whisper checkpoint.

    Parameters
    ----------
    path : str or path
        openai-whisper's ``.pt`` (a dict of ``dims`` and ``model_state_dict``), ``.safetensors`` with the dimensions
        as JSON in the metadata key ``dims``, a file in ggml's layout, or a folder in Hugging Face's or CTranslate2's.
        An adapter of the package peft is merged into its model.
    in_memory : bool
        Read the whole file at once before it is opened.
    download_root : str, optional
        Where the model of an adapter is looked for, as of `find_whisper`.

    Returns
    -------
    dims : dict of str to int
        Fields of `whisper.model.ModelDimensions`.
    state : dict of str to Tensor
        On the CPU, in the file's precision; float32 where that is integers.

    Raises
    ------
    RuntimeError
        If the file is empty, damaged, not a checkpoint, or holds anything but tensors and plain values; if the
        folder does not hold a Whisper that openai-whisper's model can express.
    """
    path = folder_of(Path(path))
    if path.is_dir():
        return _open_folder(path, in_memory, download_root)
    if ggml.is_ggml(path):
        return ggml.open_file(path, in_memory)
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
        reason = f"it has dims without {', '.join(missing)}" if missing else "it has no model_state_dict of tensors"
        if any(str(key).startswith("base_model.") or ".lora_A." in str(key) for key in content):
            reason = f"this is an adapter, of which the folder is given, with {peft.CONFIG}"
        elif any(".self_attn." in str(key) for key in content):
            reason = f"this is Hugging Face's layout, of which the folder is given, with {huggingface.CONFIG}"
        elif any("mlp_layer." in str(key) for key in content):
            reason = "this looks like a head, which is given as head=FILE"
        raise RuntimeError(
            f"{path} is not a Whisper checkpoint in openai-whisper's layout: {reason}. Give a "
            f"file with 'dims' and 'model_state_dict', or one of {available_models()}"
        )
    dims = {name: dims[name] for name in names}
    check_dims(dims, path)
    return dims, state


def folder_of(path: Path) -> Path:
    """Return the folder of a layout, for a file of it: its weights, where what belongs to them lies beside them."""
    if path.name == ctranslate2.WEIGHTS or path.name in (peft.CONFIG, huggingface.CONFIG):
        return path.parent
    if path.name in peft.WEIGHTS and peft.is_adapter(path.parent):
        return path.parent
    if path.name.removesuffix(".index.json") in huggingface.WEIGHTS and (path.parent / huggingface.CONFIG).is_file():
        return path if path.suffix == ".safetensors" and "dims" in read_metadata(path) else path.parent
    return path


def check_folder(folder: Path) -> None:
    """Raise RuntimeError, which says what a folder looks like, unless it is of a layout that is known."""
    adapter = next((name for name in peft.WEIGHTS if (folder / name).is_file()), None)
    if adapter is not None and not peft.is_adapter(folder):
        raise RuntimeError(
            f"{folder} has an adapter, {adapter}, without its {peft.CONFIG}; copy that, too, or move the adapter away "
            "to load a model without it"
        )
    if peft.is_adapter(folder) or ctranslate2.is_ctranslate2(folder) or (folder / "config.json").is_file():
        return
    raise RuntimeError(
        f"{folder} is a folder without config.json or {ctranslate2.WEIGHTS}, so it is in neither Hugging Face's layout "
        f"nor CTranslate2's{describe_folder(folder)}; give one that has them, or a file"
    )


def _open_folder(folder: Path, in_memory: bool, download_root: str | None) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Open a folder in any layout; see `open_whisper`."""
    check_folder(folder)
    if peft.is_adapter(folder) and not _has_model(folder):
        _, base = _find_base(folder, download_root)
        dims, state = open_whisper(base, in_memory, download_root)
        return dims, peft.merge_adapter(folder, state)
    layout = ctranslate2 if ctranslate2.is_ctranslate2(folder) else huggingface
    dims, state = layout.open_folder(folder, in_memory)
    if peft.is_adapter(folder):
        warnings.warn(
            f"{folder} has a model and an adapter, which is merged into it; if it was before, move {peft.CONFIG} away",
            stacklevel=4,
        )
        state = peft.merge_adapter(folder, state)
    return dims, state


def _has_model(folder: Path) -> bool:
    return ctranslate2.is_ctranslate2(folder) or huggingface.has_weights(folder)


def _find_base(adapter: Path, download_root: str | None) -> tuple[str, Path]:
    """Return name and checkpoint of the model that an adapter is of: official names first, if they are here."""
    name = peft.base_model(adapter)
    if (beside := adapter / name).is_dir() and not Path(name).is_absolute():
        name = str(beside)
    official = name.removeprefix("openai/whisper-")
    official = {"large": "large-v1"}.get(official, official)  # on the hub, "large" is the first
    if official != name and official in whisper._MODELS and (found := find_local(official, download_root)) is not None:
        return official, found
    try:
        path = find_whisper(name, download_root)
    except RuntimeError as error:
        if official in whisper._MODELS:
            return official, find_whisper(official, download_root)
        raise RuntimeError(f"{adapter} is an adapter, whose model cannot be had: {error}") from error
    if path.resolve() == adapter.resolve():
        raise RuntimeError(
            f"{adapter} is an adapter that names itself as its model; put the right one into {peft.CONFIG}"
        )
    return name, path


def published_encoder_sha256(name: str, download_root: str | None = None) -> str | None:
    """Return `encoder_sha256` of an official Whisper that is on this machine; None if it is not.

    Published heads say only by their names on which encoder they were trained.
    """
    folder = download_folder(download_root)
    path: Path | None = folder / whisper._MODELS[name].split("/")[-1]  # compared, so it needs no hash of its own
    if path is None or not path.is_file():
        path = find_packaged(name, folder)
    return None if path is None else encoder_sha256(open_whisper(path)[1])


def alignment_heads(
    name: str | os.PathLike[str],
    path: Path | None = None,
    dims: Mapping[str, int] | None = None,
    download_root: str | None = None,
) -> bytes | None:
    """Return which cross-attention heads of a model follow time, for word timestamps.

    Parameters
    ----------
    name : str or path
        Name of the model; for official ones, the heads are known by it.
    path : Path, optional
        Its file or folder, which says so for others: in the metadata ``alignment_heads`` of a ``.safetensors``, in
        generation_config.json of Hugging Face's layout, or in config.json of CTranslate2's. An adapter has those of
        its model.
    dims : mapping of str to int, optional
        Its dimensions.
    download_root : str, optional
        Where the model of an adapter is looked for.

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
    if path is not None and path.is_dir() and peft.is_adapter(path) and not _has_model(path):
        return alignment_heads(*_find_base(path, download_root), dims, download_root)
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
    path = folder_of(path)
    if path.is_dir():
        layout = ctranslate2 if ctranslate2.is_ctranslate2(path) else huggingface
        return layout.read_alignment_heads(path)
    if path.suffix != ".safetensors":
        return None
    text = read_metadata(path).get("alignment_heads", "null")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(i) is int and i >= 0 for i in value)
