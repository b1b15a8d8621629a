"""Heads: found by name or path, verified, opened.

No SHA-256 is published for the official Whisper-AT heads. That of the first download, whose parameters were checked,
is recorded in a file beside it; what is loaded later must match.
"""

from __future__ import annotations

import os
import re
import warnings
from functools import partial
from pathlib import Path

import whisper
from torch import Tensor

from .download import download, verify
from .files import is_state_dict, read_tensors, write_text
from .hashing import file_sha256
from .registry import (
    ASSETS,
    EMBEDDED,
    HEADS,
    OPEN_HEADS,
    PublishedHead,
    asset_path,
    available_heads,
    download_folder,
    existing_file,
    head_name,
)
from .shapes import check_shapes, head_shapes


def find_head(name_or_path: str | os.PathLike[str], download_root: str | None = None) -> Path:
    """Return the file of a head, downloading an official one unless it is there.

    An official head's parameters are checked before it is accepted, and its SHA-256 is then recorded in
    ``<file>.sha256``, which the file must match from then on.

    Parameters
    ----------
    name_or_path : str or path
        One of `available_heads`, or the path of a file.
    download_root : str, optional
        As of `find_whisper`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is no such head or file.
    ValueError
        If it is the name of a low-compute head that was never published.
    RuntimeError
        If the file is not the one recorded, or cannot be downloaded completely.
    """
    name = os.fspath(name_or_path)
    if name == EMBEDDED:
        return asset_path("nano.en.head.safetensors")
    if name in OPEN_HEADS:
        return asset_path(f"{name}.head.safetensors")
    if name not in HEADS:
        if name.endswith("_low"):
            head_name(name.removesuffix("_low"), low_compute=True)  # raises with the way out
        if name in whisper._MODELS:
            raise FileNotFoundError(
                f"no head is published for {name!r}; give a file, or one of {available_heads()} (what "
                "earlier releases called the head of 'large' is that of 'large-v2')"
            )
        return existing_file(name, "Head", available_heads(), FileNotFoundError)
    head = HEADS[name]
    path = download_folder(download_root) / head.file
    record = path.with_name(f"{path.name}.sha256")
    recorded = _read_record(record)
    check = partial(_check_head, head=head, recorded=recorded)
    missing = not path.is_file()
    problem = None if missing else verify(path, None, check)
    if problem is not None:
        if recorded is not None:
            raise RuntimeError(problem)
        warnings.warn(f"{path} is not the head of {name}, so it is downloaded again: {problem}", stacklevel=2)
    if missing or problem is not None:
        download(head.urls, path, check=check)
    if recorded is None:
        _write_record(path, record)
    return path


def packaged_heads() -> dict[str, Path]:
    """Return the files of the heads that come with this package, by the name of their Whisper."""
    files = {EMBEDDED: EMBEDDED, **{whisper_name: name for name, whisper_name in OPEN_HEADS.items()}}
    paths = {whisper_name: ASSETS / f"{name}.head.safetensors" for whisper_name, name in files.items()}
    return {whisper_name: path for whisper_name, path in paths.items() if path.is_file()}


def stand_in_head(published: str) -> str | None:
    """Return the name of the head in this package that can stand in for a published one, or None."""
    wanted = published.removesuffix("_low")
    return next((name for name, whisper_name in OPEN_HEADS.items() if whisper_name == wanted), None)


def open_head(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the parameters and metadata of a head.

    Parameters
    ----------
    path : str or path
        ``.pth``, ``.pt`` or ``.safetensors``. Of a checkpoint that holds a complete Whisper-AT, only the head is read.

    Returns
    -------
    tensors : dict of str to Tensor
        float32, on the CPU; names are without the ``at_model.`` of official files and DataParallel's ``module.``.
    metadata : dict of str to str
        Empty for ``.pth`` and ``.pt``.

    Raises
    ------
    RuntimeError
        If the file is empty, damaged, no flat dict of tensors, or a Whisper without a head.
    """
    content, metadata = read_tensors(Path(path))
    if isinstance(content, dict) and isinstance(content.get("model_state_dict"), dict):
        content = content["model_state_dict"]
    if not is_state_dict(content):
        raise RuntimeError(f"{path} is not a head: it is not a flat dict of tensors. Give a head's file")
    tensors = {key.removeprefix("module."): tensor for key, tensor in content.items()}
    if any(key.startswith("at_model.") for key in tensors):
        tensors = {
            key.removeprefix("at_model.").removeprefix("module."): tensor
            for key, tensor in tensors.items()
            if key.startswith("at_model.")
        }
    elif "decoder.token_embedding.weight" in tensors:
        raise RuntimeError(f"{path} is a Whisper checkpoint that holds no head; load it as the model")
    return {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}, metadata


def _check_head(path: Path, head: PublishedHead, recorded: str | None) -> None:
    """Raise RuntimeError unless the file is the one recorded or, at first, has this head's parameters."""
    if recorded is None:
        expected = head_shapes(head.width, head.low_compute)
        check_shapes(open_head(path)[0], expected, f"its parameters are not those of {head.file}", error=RuntimeError)
    elif (sha256 := file_sha256(path)) != recorded:
        raise RuntimeError(
            f"{path} is not the file that was first loaded: its SHA-256 was {recorded} and is {sha256}. "
            f"Put that file back, or delete this one and {head.file}.sha256 to download it again"
        )


def _read_record(record: Path) -> str | None:
    match = re.match(r"[0-9a-f]{64}\b", record.read_text("ascii", "replace")) if record.is_file() else None
    return match.group() if match else None


def _write_record(path: Path, record: Path) -> None:
    """Write a line as ``sha256sum`` does; only warn where the folder cannot be written to (an image's, say)."""
    try:
        write_text(record, f"{file_sha256(path)}  {path.name}\n")
    except OSError as error:
        warnings.warn(f"the SHA-256 of {path} could not be recorded in {record.name}: {error}", stacklevel=3)
