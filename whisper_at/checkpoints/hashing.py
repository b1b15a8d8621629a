"""SHA-256 of files and of a Whisper's encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def file_sha256(*paths: Path) -> str:
    """Return the SHA-256 of a file, or of several joined, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def encoder_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of an encoder's weights, by which a head recognises the encoder it was trained on.

    It covers names, shapes and values rounded to float16, in the order of the names, so that float16 and float32
    copies of the same weights agree (copies that went through bfloat16 do not). The positional embedding is left
    out, because it is a constant. Takes about a second a gigabyte.

    Parameters
    ----------
    state : mapping of str to Tensor
        State dict of a Whisper, in openai-whisper's names; the decoder's part is ignored.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    ValueError
        If there is no encoder in it.
    """
    weights = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    weights.pop("encoder.positional_embedding", None)
    if not weights:
        raise ValueError("no encoder.* among these tensors: give the state_dict of a Whisper")
    return tensors_sha256(weights)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes and values rounded to float16, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().to("cpu", torch.float16).contiguous().numpy()
        digest.update(values.astype("<f2", copy=False).data)
    return digest.hexdigest()
