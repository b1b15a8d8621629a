"""Whispers in CTranslate2's layout, as faster-whisper has them: a folder of ``model.bin`` and config.json.

The architecture is openai-whisper's under other names, with queries, keys and values stacked. Half-precision weights
are kept as they are; int8 and int16 are widened to float32.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .files import read_json
from .shapes import check_dims, check_shapes, cut_padding, whisper_shapes

WEIGHTS = "model.bin"
SPEC = "WhisperSpec"
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
"""Types of variables by their number in the file."""
_AGAIN = "copy it again"
_FUSED = {
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
"""Linear layers of a block, and openai-whisper's that are stacked in each."""
_NORMS = {"self_attention": "attn_ln", "attention": "cross_attn_ln", "ffn": "mlp_ln"}
_EMBEDDING = "decoder.token_embedding.weight"


def is_ctranslate2(folder: Path) -> bool:
    """Return whether a folder has CTranslate2's layout."""
    return (folder / WEIGHTS).is_file()


def read_alignment_heads(folder: Path) -> object:
    """Return ``alignment_heads`` of config.json, which should be a list of [layer, head], or None."""
    path = folder / "config.json"
    return read_json(path).get("alignment_heads") if path.is_file() else None


def open_folder(folder: Path, in_memory: bool = False) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return dimensions and state dict in openai-whisper's names of a folder in CTranslate2's layout.

    Parameters
    ----------
    folder : Path
        With ``model.bin``.
    in_memory : bool
        Read the file at once before it is opened.

    Returns
    -------
    dims : dict of str to int
        Fields of `whisper.model.ModelDimensions`.
    state : dict of str to Tensor
        On the CPU; float16, bfloat16 and float32 as in the file, quantised weights as float32.

    Raises
    ------
    RuntimeError
        If the file is damaged, is of another kind of model, or holds a Whisper that openai-whisper's model cannot
        express.
    """
    path = folder / WEIGHTS
    variables = read_variables(path, in_memory)
    names = {name for name in variables if not name.endswith("_scale")}
    state: dict[str, Tensor] = {}
    for name in sorted(names):
        if (weight := variables[name]).dim():
            state |= _rename(path, name, _dequantize(path, name, weight, variables.get(f"{name}_scale")))
    dims = _read_dims(path, variables, state)
    if _EMBEDDING in state:
        state[_EMBEDDING] = cut_padding(state[_EMBEDDING], folder)
        dims["n_vocab"] = len(state[_EMBEDDING])
    check_dims(dims, path)
    message = f"{path} does not hold the parameters of a Whisper of its dimensions"
    check_shapes(state, whisper_shapes(dims), message, "was it converted as a Whisper?", RuntimeError)
    return dims, state


def read_variables(path: Path, in_memory: bool = False) -> dict[str, Tensor]:
    """Return the variables of a ``model.bin`` by their names, without what is only another name.

    Parameters
    ----------
    path : Path
        The file: little-endian; format version, name and revision of the model's specification, then variables
        (name, shape, type, bytes), then aliases.
    in_memory : bool
        Read the file at once before it is opened.

    Raises
    ------
    RuntimeError
        If it is empty, cut short, no such file, or of another model than Whisper.
    """
    with open(path, "rb") as file:
        if not (size := path.stat().st_size):
            raise RuntimeError(f"{path} is empty; {_AGAIN}")
        data = bytearray(file.read()) if in_memory else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    reader = _Reader(data, path)
    try:
        version, spec, _ = reader.number("I"), reader.text(), reader.number("I")
        if spec != SPEC:
            raise RuntimeError(f"{path} holds {spec[:40]!r}, not a Whisper; give the folder of a converted Whisper")
        variables: dict[str, Tensor] = {}
        for _ in range(reader.number("I")):
            name, rank = reader.text(), reader.number("B")
            shape = [reader.number("I") for _ in range(rank)]
            dtype, n_bytes = _DTYPES[reader.number("B")], reader.number("I")
            if n_bytes != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} of shape {shape} has {n_bytes} bytes")
            variables[name] = reader.tensor(dtype, shape)
        for _ in range(reader.number("I")):  # read to see that the file is whole
            reader.text(), reader.text()
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise RuntimeError(
            f"{path}, of {size} bytes, cannot be read as a model of CTranslate2: it is cut short, or something else "
            f"({error}); {_AGAIN}"
        ) from None
    if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED)  # what has been read to come by the names
    if version > 6:
        raise RuntimeError(f"{path} has version {version} of CTranslate2's format; versions up to 6 are known")
    return variables


class _Reader:
    """Read numbers, names and tensors one after the other."""

    def __init__(self, data: bytearray | mmap.mmap, path: Path) -> None:
        self.data, self.path, self.offset = data, path, 0

    def number(self, format: str) -> int:
        (value,) = struct.unpack_from(f"<{format}", self.data, self.offset)
        self.offset += struct.calcsize(format)
        return value

    def text(self) -> str:
        n_bytes = self.number("H")  # with a zero at the end
        start, self.offset = self.offset, self.offset + n_bytes
        if not n_bytes or self.offset > len(self.data):
            raise ValueError("a name is cut short")
        return bytes(self.data[start : self.offset - 1]).decode()

    def tensor(self, dtype: torch.dtype, shape: list[int]) -> Tensor:
        bits = np.dtype(f"<i{dtype.itemsize}")  # NumPy has no bfloat16
        values = np.frombuffer(self.data, bits, math.prod(shape), self.offset)
        self.offset += values.nbytes
        if not values.flags.aligned:  # a variable begins where the last one ends: this one is copied
            start = self.offset - values.nbytes
            in_memory = isinstance(self.data, bytearray)
            values = values.copy() if in_memory else np.fromfile(self.path, bits, values.size, offset=start)
        return torch.from_numpy(values.astype(bits.newbyteorder("="), copy=False)).view(dtype).reshape(shape)


def _dequantize(path: Path, name: str, weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return floating-point weights: integers divided by the scale of their row, or of all."""
    if weight.is_floating_point():
        return weight
    if scale is None or scale.numel() not in (1, len(weight)):
        raise RuntimeError(f"{path}: {name} is quantised, and its scale is missing or of another size; {_AGAIN}")
    return weight.float() / scale.float().reshape(-1, *[1] * (weight.dim() - 1))


def _rename(path: Path, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a variable as openai-whisper's parameters; under its own name if it is none of a Whisper's."""
    part, _, rest = name.partition("/")
    block = re.fullmatch(r"layer_(\d+)/(.+)/(\w+)", rest)
    leaf = rest.rpartition("/")[2]
    leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
    if block is None:
        module = rest.rpartition("/")[0]
        norm = {"encoder": "ln_post", "decoder": "ln"}.get(part)
        renamed = {
            "conv1": f"{part}.conv1.{leaf}",
            "conv2": f"{part}.conv2.{leaf}",
            "layer_norm": f"{part}.{norm}.{leaf}",
            "position_encodings": f"{part}.positional_embedding",
            "embeddings": f"{part}.token_embedding.{leaf}",
        }
        return {renamed.get(module, name): tensor}
    prefix = f"{part}.blocks.{block[1]}"
    if block[2].endswith("/layer_norm") and (norm := _NORMS.get(block[2].rpartition("/")[0])):
        return {f"{prefix}.{norm}.{leaf}": tensor}
    modules = _FUSED.get(block[2])
    if modules is None or len(tensor) % len(modules):
        return {name: tensor}
    state = dict(zip([f"{prefix}.{module}.{leaf}" for module in modules], _separate(tensor, len(modules))))
    for key in [key for key in state if key.endswith(".key.bias")]:
        if state.pop(key).any():
            raise RuntimeError(f"{path}: {name} gives keys a bias, which openai-whisper's model has not")
    return state


def _separate(tensor: Tensor, count: int) -> list[Tensor]:
    """Return equal parts of a tensor, each with a storage of its own, as they were saved one by one; none is copied."""
    parts = tensor.view(torch.int16 if tensor.dtype == torch.bfloat16 else tensor.dtype).chunk(count)
    return [torch.from_numpy(part.numpy()).view(tensor.dtype) for part in parts]


def _read_dims(path: Path, variables: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return dimensions from shapes; the numbers of heads are variables of their own."""

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise RuntimeError(f"{path} has no {name}; {_AGAIN}")
        return state[name].shape

    def n_layers(part: str) -> int:
        layers = [int(match[1]) for name in state if (match := re.match(rf"{part}\.blocks\.(\d+)\.", name))]
        return max(layers, default=-1) + 1

    audio, text = shape("encoder.positional_embedding"), shape("decoder.positional_embedding")
    heads = {}
    for part, width in (("encoder", audio[1]), ("decoder", text[1])):
        number = variables.get(f"{part}/num_heads")
        heads[part] = int(number) if number is not None else width // 64  # Whisper's heads are 64 wide
    return {
        "n_mels": shape("encoder.conv1.weight")[1],
        "n_audio_ctx": audio[0],
        "n_audio_state": audio[1],
        "n_audio_head": heads["encoder"],
        "n_audio_layer": n_layers("encoder"),
        "n_vocab": shape(_EMBEDDING)[0],
        "n_text_ctx": text[0],
        "n_text_state": text[1],
        "n_text_head": heads["decoder"],
        "n_text_layer": n_layers("decoder"),
    }
