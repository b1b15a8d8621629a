"""Files of tensors, opened as data only, with a diagnosis of what cannot be read; files that are written atomically."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import struct
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor

from .registry import MANUAL

KNOWN_LAYOUTS = (
    "openai-whisper's .pt or .safetensors, ggml's .bin (whisper.cpp), or a folder in Hugging Face's or CTranslate2's "
    "layout (faster-whisper)"
)
_FORMATS = (
    (0, b"GGUF", "a GGUF file of llama.cpp"),
    (0, struct.pack("<I", 0x67676D6C), "a ggml file of whisper.cpp"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x89HDF", "an HDF5 file of Keras or TensorFlow"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive"),
    (257, b"ustar", "a tar archive (NeMo's layout?)"),
    *((0, magic, "a recording") for magic in (b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb")),
    (4, b"ftyp", "a recording"),
)
"""Offset and first bytes of formats that are not checkpoints of Whispers here."""
_FOLDERS = (
    ("*.onnx", "ONNX"),
    ("openvino_*.xml", "OpenVINO's"),
    ("*.mlmodelc", "Core ML's"),
    ("*.mlpackage", "Core ML's"),
    ("weights.*", "MLX's"),
    ("tf_model.h5", "TensorFlow's"),
    ("flax_model.msgpack", "Flax's"),
    ("*.nemo", "NeMo's"),
    ("*.pt", "a folder of checkpoints: give the file"),
    ("*.safetensors", "a folder of checkpoints: give the file"),
    ("ggml-*.bin", "whisper.cpp's: give the file"),
)
"""Files by which layouts of folders that do not load are told."""


def save_safetensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a ``.safetensors``, atomically.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        On any device; tensors that share memory are written once each.
    path : str or path
        A file that is there is replaced.
    metadata : mapping of str to str, optional
        Goes into the header.
    """
    path = Path(path)
    unshared: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.clone() if storage in seen else tensor  # the format has no shared tensors
        seen.add(storage)
    with atomic_write(path) as temporary:
        save_file(unshared, temporary, dict(metadata or {}))
        temporary.chmod(0o666 & ~_umask())  # save_file makes it readable by its owner only, unlike other new files


def _umask() -> int:
    """Return the permissions that new files do not get; they can only be read by setting them."""
    current = os.umask(0o077)
    os.umask(current)
    return current


def temporary_beside(path: Path) -> Path:
    """Return a new name in the same folder, from which renaming to `path` is atomic."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to, which becomes `path` on success and is removed on an error."""
    temporary = temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")


def to_jsonable(value: Any) -> Any:
    """Return a value as JSON can hold it: tensors and arrays as lists, keys as strings, NaN and infinities as None.

    Of a result of `transcribe`, tags are tensors. What comes back from JSON is read by `parse_at_label`, `find_events`
    and the writers as the result itself is.

    Examples
    --------
    >>> json.dumps(to_jsonable({"audio_tag": {0.4: torch.tensor([[0.5, math.nan]])}}))
    '{"audio_tag": {"0.4": [[0.5, null]]}}'
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().tolist()
    elif isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; RuntimeError if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise RuntimeError(f"{path} is not JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise RuntimeError(f"{path} is not a JSON object; copy it again")
    return content


def size_and_mtime(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return bytes and time of change (ns) of a file, by which changed files are recognised."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def is_state_dict(content: object) -> TypeGuard[dict[str, Tensor]]:
    """Return whether something is a dict of tensors by name, and not empty."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def read_tensors(path: Path, in_memory: bool = False) -> tuple[Any, dict[str, str]]:
    """Read a file of tensors, on the CPU.

    Parameters
    ----------
    path : Path
        ``.safetensors``, or anything that `torch.load` opens with ``weights_only=True``.
    in_memory : bool
        Read the whole file at once before it is opened.

    Returns
    -------
    content : object
        What the file holds; of ``.safetensors``, a dict of tensors by name.
    metadata : dict of str to str
        Of ``.safetensors``; else empty.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RuntimeError
        If it cannot be read; the message says why and what to do.
    """
    with open(path, "rb") as file:
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as opened:
                    metadata = opened.metadata() or {}
                    if in_memory:
                        return load_safetensors(file.read()), metadata
                    names = opened.keys()  # `opened` is not iterable itself
                    return {name: opened.get_tensor(name) for name in names}, metadata
            # a ZIP archive's tensors are read when somebody looks at them, as those of .safetensors are; on Windows,
            # where what is mapped cannot be replaced, at once
            mapped = os.name == "posix" and not in_memory and zipfile.is_zipfile(path)
            source = io.BytesIO(file.read()) if in_memory else path if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped), {}
        except Exception as error:  # of many types, depending on what the bytes happen to be
            raise RuntimeError(f"{path} {_diagnose(path, error)}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a ``.safetensors``; none of a file that is damaged."""
    try:
        with safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}
    except SafetensorError:
        return {}


def describe_format(start: bytes, path: Path) -> str | None:
    """Return what a file that begins with some bytes looks like, if that is no format of PyTorch's."""
    for offset, magic, format in _FORMATS:
        if start[offset:].startswith(magic):
            return format
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith(".npy") for name in names):
            return "an archive of NumPy arrays (MLX's layout?)"
        if any("/code/" in name for name in names):
            return "a TorchScript program"
        if not any(name.endswith("data.pkl") for name in names):
            return "a ZIP archive"
    return "an ONNX model" if path.suffix == ".onnx" else None


def describe_folder(folder: Path) -> str:
    """Return ``" (it looks like …)"`` for a folder of a layout that does not load, or an empty text."""
    for pattern, layout in _FOLDERS:
        if found := next(folder.glob(pattern), None):
            return f" (it looks like {layout}, with {found.name})"
    return ""


def _diagnose(path: Path, error: Exception) -> str:
    """Return why a file could not be read, and what to do."""
    again = f"Delete it and load again, or put the right file in its place (see {MANUAL})"
    with open(path, "rb") as file:
        start = file.read(1024)
    if not start:
        return f"is empty. {again}"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return f"is a web page (HTML), not a checkpoint; its link has perhaps expired. {again}"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the checkpoint itself; run `git lfs pull` in the repository it came from"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return f"is a text file, not a checkpoint. {again}"
    if (format := describe_format(start, path)) is not None:
        return f"is {format}, not a checkpoint of a layout that is known. Give {KNOWN_LAYOUTS}"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"is cut short: its end is missing. {again}"
    if isinstance(error, pickle.UnpicklingError) and start.startswith((b"PK", b"\x80")):
        return (
            "holds Python objects other than tensors and plain values; loading those could run a program, so "
            "it is refused. If you trust it, open it where it was made and save only its tensors"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"cannot be read as a checkpoint ({reason}). {again}"
