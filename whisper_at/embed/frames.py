"""From feature maps to frames in time, and from frames to one vector per clip (spec section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

POOLINGS = ("mean", "mean_plus_max")


def flatten_maps(maps: Tensor, pool_size: int) -> Tensor:
    """Flatten feature maps to frames: frequencies join the channels, and time is max-pooled.

    Parameters
    ----------
    maps : Tensor, shape (batch, channels, time, frequencies)
        Feature maps of a convolutional layer.
    pool_size : int
        Columns of the map that make one frame.

    Returns
    -------
    Tensor, shape (batch, channels * frequencies, time // pool_size)
        Frames; row ``c * frequencies + f`` is channel ``c`` at frequency ``f``.

    Examples
    --------
    >>> flatten_maps(torch.rand(2, 256, 24, 16), 4).shape
    torch.Size([2, 4096, 6])
    """
    flat = maps.transpose(2, 3).flatten(1, 2)
    return flat if pool_size == 1 else F.max_pool1d(flat, pool_size)


def concat_examples(frames: Tensor) -> Tensor:
    """Join the frames of consecutive examples, shape (examples, width, n), to one sequence (width, examples * n).

    Frame ``t`` of example ``s`` is at ``s * n + t``, not at ``t * examples + s`` (defect F1).
    """
    return frames.transpose(0, 1).flatten(1)


def pool_frames(frames: Tensor, pooling: str) -> Tensor:
    """Pool frames, shape (width, frames), to one vector (width,): their mean, or the sum of mean and maximum."""
    mean = frames.mean(dim=-1)
    return mean + frames.amax(dim=-1) if pooling == "mean_plus_max" else mean


def pad_frames(sequences: list[Tensor]) -> Tensor:
    """Stack sequences, shape (width, frames) of several lengths, to (batch, width, frames) with zeros at their ends."""
    longest = max(sequence.shape[-1] for sequence in sequences)
    return torch.stack([F.pad(sequence, (0, longest - sequence.shape[-1])) for sequence in sequences])
