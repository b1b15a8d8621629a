"""``whisper-at convert``: any Whisper that loads, written as one ``.safetensors``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import checkpoints
from .huggingface import refuse_wrong_shapes, whisper_shapes

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dtype: str | None = None,
    download_root: str | None = None,
) -> Path:
    """Write a Whisper as one ``.safetensors`` that `load_model` opens, and return its path.

    Parameters
    ----------
    source : what `load_model` takes: an official name, a file, a folder in Hugging Face's layout, a hub id
    target : file to write, whole or not at all; one that is there is replaced
    dtype : ``float16`` or ``float32``; None keeps the precision of the source
    download_root : as of `load_model`

    Dimensions and alignment heads (for word timing) go into the metadata as JSON. Heads that tag sounds are
    files of their own and are not part of it.

    Raises
    ------
    ValueError
        if `target` is no ``.safetensors`` in a folder that exists, or there is no such `dtype`
    RuntimeError
        if the source does not load, or has weights too large for float16
    """
    target = Path(target).expanduser()
    if target.suffix != ".safetensors" or target.is_dir():
        raise ValueError(f"{target} is no name for the result; give a file that ends in .safetensors")
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent} to write {target.name} to; make it first")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype must be {' or '.join(DTYPES)}, or None to keep the source's, not {dtype!r}")

    path = checkpoints.find_whisper(source, download_root)
    dims, state = checkpoints.open_whisper(path)
    refuse_wrong_shapes(path, {name: tuple(tensor.shape) for name, tensor in state.items()}, whisper_shapes(dims))
    metadata = {"format": "pt", "dims": json.dumps(dims)}  # "format" is what other readers of .safetensors look for
    if (dump := checkpoints.alignment_heads(source, path, dims)) is not None:
        metadata["alignment_heads"] = json.dumps(checkpoints.list_alignment_heads(dump, dims))
    if dtype is not None:
        state = {name: _cast(name, tensor, DTYPES[dtype]) for name, tensor in state.items()}
    checkpoints.save_safetensors(state, target, metadata)
    return target


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    result = tensor.to(dtype)
    if not torch.equal(result.isfinite(), tensor.isfinite()):
        raise RuntimeError(f"{name} has values beyond the range of {str(dtype).removeprefix('torch.')}; keep float32")
    return result


def main(argv: Sequence[str]) -> int:
    """Run the subcommand and return 0; wrong arguments exit with status 2, other errors are raised."""
    args = build_parser().parse_args(argv)
    target = convert(args.source, args.target, args.dtype, args.model_dir)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``whisper-at convert``."""
    parser = argparse.ArgumentParser(
        prog="whisper-at convert",
        description="Write a Whisper as one .safetensors, which --model and load_model open.",
    )
    add = parser.add_argument
    help = "model name, checkpoint file, folder in Hugging Face's layout, or id on its hub (owner/model)"
    add("source", metavar="SOURCE", help=help)
    add("target", metavar="TARGET.safetensors", help="file to write")
    add("--dtype", choices=list(DTYPES), help="precision of the weights; the source's if not given")
    add("--model_dir", metavar="DIR", help="where downloaded models are kept (~/.cache/whisper)")
    return parser
