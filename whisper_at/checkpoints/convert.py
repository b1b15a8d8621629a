"""Any Whisper that loads, written as one ``.safetensors``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from .files import save_safetensors
from .shapes import check_shapes, whisper_shapes
from .whisper import alignment_heads, decode_alignment_heads, find_whisper, open_whisper

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dtype: str | None = None,
    download_root: str | None = None,
) -> Path:
    """Write a Whisper as one ``.safetensors`` that `load_model` opens.

    Dimensions and alignment heads (for word timing) go into the metadata as JSON. Heads that tag sounds are files of
    their own and are not part of it.

    Parameters
    ----------
    source : str or path
        What `load_model` takes: an official name, a file, a folder, a hub id.
    target : str or path
        File to write, atomically; one that is there is replaced.
    dtype : {"float16", "float32"}, optional
        Precision of the weights; the source's by default.
    download_root : str, optional
        As of `load_model`.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    ValueError
        If `target` is not a ``.safetensors`` in a folder that exists, or there is no such `dtype`.
    RuntimeError
        If the source does not load, or has weights too large for float16.
    """
    target = Path(target).expanduser()
    if target.suffix != ".safetensors" or target.is_dir():
        raise ValueError(f"{target} is no name for the result; give a file that ends in .safetensors")
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent} to write {target.name} to; make it first")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype must be {' or '.join(DTYPES)}, or None to keep the source's, not {dtype!r}")

    path = find_whisper(source, download_root)
    dims, state = open_whisper(path, download_root=download_root)
    message = f"{path} does not hold the parameters of a Whisper of its dimensions"
    check_shapes(state, whisper_shapes(dims), message, error=RuntimeError)
    metadata = {"format": "pt", "dims": json.dumps(dims)}  # "format" is what other readers of .safetensors look for
    if (dump := alignment_heads(source, path, dims, download_root)) is not None:
        metadata["alignment_heads"] = json.dumps(decode_alignment_heads(dump, dims))
    if dtype is not None:
        state = {name: _cast(name, tensor, DTYPES[dtype]) for name, tensor in state.items()}
    save_safetensors(state, target, metadata)
    return target


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another precision; RuntimeError where that cannot hold its values."""
    result = tensor.to(dtype)
    if not torch.equal(result.isfinite(), tensor.isfinite()):
        raise RuntimeError(f"{name} has values beyond the range of {str(dtype).removeprefix('torch.')}; keep float32")
    return result
