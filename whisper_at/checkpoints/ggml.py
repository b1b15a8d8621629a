"""Whispers in ggml's layout, as whisper.cpp has them: one file, ``ggml-base.bin``.

Names and shapes are openai-whisper's. float32 and float16 are kept as they are; quantised weights (q4_0, q4_1, q5_0,
q5_1, q8_0) are widened to float32. Alignment heads are not in these files.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .shapes import check_dims, check_shapes, cut_padding, whisper_shapes

MAGIC = struct.pack("<I", 0x67676D6C)
BLOCK = 32
"""Weights that share a scale, in all quantised types read here."""
_HEADER = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels", "ftype"),
)
_EMBEDDING = "decoder.token_embedding.weight"


class _Quantisation(NamedTuple):
    """A quantised type: the fields of a block of 32 weights, and how they become float32 ``(blocks, 32)``."""

    name: str
    block: np.dtype
    widen: Callable[[np.ndarray], np.ndarray]


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Return the low halves of 16 bytes, then their high halves, ``(blocks, 32)``."""
    return np.concatenate([packed & 15, packed >> 4], 1).astype(np.float32)


def _fifth_bits(high: np.ndarray) -> np.ndarray:
    """Return bit i of a block's 32 as weight i, ``(blocks, 32)``, worth 16."""
    return 16.0 * (high[:, None] >> np.arange(BLOCK, dtype=np.uint32) & 1).astype(np.float32)


def _scale(blocks: np.ndarray, field: str = "d") -> np.ndarray:
    return blocks[field].astype(np.float32)[:, None]


def _block(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype:
    return np.dtype(list(fields))


_QUANTISED = {
    2: _Quantisation("q4_0", _block(("d", "<f2"), ("q", "u1", 16)), lambda b: _scale(b) * (_nibbles(b["q"]) - 8)),
    3: _Quantisation(
        "q4_1",
        _block(("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)),
        lambda b: _scale(b) * _nibbles(b["q"]) + _scale(b, "m"),
    ),
    6: _Quantisation(
        "q5_0",
        _block(("d", "<f2"), ("h", "<u4"), ("q", "u1", 16)),
        lambda b: _scale(b) * (_nibbles(b["q"]) + _fifth_bits(b["h"]) - 16),
    ),
    7: _Quantisation(
        "q5_1",
        _block(("d", "<f2"), ("m", "<f2"), ("h", "<u4"), ("q", "u1", 16)),
        lambda b: _scale(b) * (_nibbles(b["q"]) + _fifth_bits(b["h"])) + _scale(b, "m"),
    ),
    8: _Quantisation("q8_0", _block(("d", "<f2"), ("q", "i1", 32)), lambda b: _scale(b) * b["q"].astype(np.float32)),
}
"""Quantised types by their number in the file."""
_DTYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}


def is_ggml(path: Path) -> bool:
    """Return whether a file begins as ggml's do."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_file(path: Path, in_memory: bool = False) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return dimensions and state dict of a Whisper in ggml's layout.

    Parameters
    ----------
    path : Path
        The file: little-endian; magic number, dimensions, mel filters, tokens, then tensors (shape, name, type,
        values) to the end.
    in_memory : bool
        Read the file at once before it is opened.

    Returns
    -------
    dims : dict of str to int
        Fields of `whisper.model.ModelDimensions`.
    state : dict of str to Tensor
        On the CPU; float16 and float32 as in the file, quantised weights as float32.

    Raises
    ------
    RuntimeError
        If the file is damaged, has weights of another type, or holds no Whisper that openai-whisper's model can
        express.
    """
    with open(path, "rb") as file:
        data = file.read() if in_memory else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        header = dict(zip(_HEADER, struct.unpack_from("<11i", data, len(MAGIC))))
        offset = _skip_filters_and_tokens(data, len(MAGIC) + 4 * len(_HEADER))
        state = dict(_read_tensors(data, offset))
    except _UnknownTypeError as error:
        raise RuntimeError(f"{path}: {error}") from None
    except (ValueError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise RuntimeError(
            f"{path}, of {len(data)} bytes, cannot be read as a Whisper in ggml's layout: it is cut short or damaged "
            f"({error}); copy it again"
        ) from None
    dims = {name: header[name] for name in _HEADER if name != "ftype"}
    for name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        if name in state:
            state[name] = state[name].flatten()  # (n, 1) in the file
    if (embedding := state.get(_EMBEDDING)) is not None and len(embedding) == dims["n_vocab"]:
        state[_EMBEDDING] = cut_padding(embedding, path)
        dims["n_vocab"] = len(state[_EMBEDDING])
    check_dims(dims, path)
    message = f"{path} does not hold the parameters of a Whisper of its dimensions"
    check_shapes(state, whisper_shapes(dims), message, "is it of a Whisper, and whole?", RuntimeError)
    return dims, state


class _UnknownTypeError(Exception):
    """A tensor has a type that is not read here."""


def _skip_filters_and_tokens(data: bytes | mmap.mmap, offset: int) -> int:
    """Return where the tensors begin: mel filters and texts of tokens are openai-whisper's own."""
    n_mels, n_frequencies = struct.unpack_from("<2i", data, offset)
    if n_mels < 0 or n_frequencies < 0:
        raise ValueError(f"mel filters of shape {(n_mels, n_frequencies)}")
    offset += 8 + 4 * n_mels * n_frequencies
    (n_tokens,) = struct.unpack_from("<i", data, offset)
    offset += 4
    for _ in range(n_tokens):
        (length,) = struct.unpack_from("<I", data, offset)
        offset += 4 + length
    return offset


def _read_tensors(data: bytes | mmap.mmap, offset: int) -> Iterator[tuple[str, Tensor]]:
    while offset < len(data):
        rank, length, number = struct.unpack_from("<3i", data, offset)
        if not 0 <= rank <= 4 or length < 1:
            raise ValueError(f"at byte {offset} there is no tensor")
        shape = struct.unpack_from(f"<{rank}i", data, offset + 12)[::-1]  # innermost first in the file
        offset += 12 + 4 * rank
        name = bytes(data[offset : offset + length]).decode()
        values = _read_values(data, offset + length, number, name, shape)
        offset += length + values.nbytes
        if (quantised := _QUANTISED.get(number)) is not None:
            values = quantised.widen(values)
        native = values.astype(values.dtype.newbyteorder("="))  # a copy, of a machine's own byte order
        yield name, torch.from_numpy(native).reshape(shape)


def _read_values(data: bytes | mmap.mmap, offset: int, number: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of a tensor, or its blocks if it is quantised."""
    size = math.prod(shape)
    if number in _DTYPES:
        return np.frombuffer(data, _DTYPES[number], size, offset)
    if number not in _QUANTISED:
        known = ", ".join(["f32", "f16", *(kind.name for kind in _QUANTISED.values())])
        raise _UnknownTypeError(f"{name} has ggml's type {number}; {known} can be read: give the f16 file")
    return np.frombuffer(data, _QUANTISED[number].block, size // BLOCK, offset)
