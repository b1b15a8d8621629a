"""From feature maps to frames in time, and from frames to one vector a clip (spec section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

POOLINGS = ("mean", "mean_plus_max")


def flat_frames(x: Tensor, factor: int) -> Tensor:
    """A map ``(batch, channels, time, frequencies)`` as frames ``(batch, channels * frequencies, time // factor)``.

    Row ``c * frequencies + f`` is channel ``c`` at frequency ``f``; a frame is the maximum over ``factor`` columns.
    """
    flat = x.transpose(2, 3).flatten(1, 2)
    return flat if factor == 1 else F.max_pool1d(flat, factor)


def in_time(frames: Tensor) -> Tensor:
    """Frames of consecutive examples ``(examples, width, n)`` as one sequence ``(width, examples * n)``.

    Frame ``t`` of example ``s`` comes at ``s * n + t``, and not at ``t * examples + s`` (defect F1).
    """
    return frames.transpose(0, 1).flatten(1)


def pool_frames(frames: Tensor, pooling: str) -> Tensor:
    """One vector ``(width,)`` of frames ``(width, frames)``: their mean, or mean and maximum summed elementwise."""
    mean = frames.mean(dim=-1)
    return mean + frames.amax(dim=-1) if pooling == "mean_plus_max" else mean


def padded(sequences: list[Tensor]) -> Tensor:
    """Sequences ``(width, frames)`` of several lengths as one tensor ``(batch, width, frames)``, with zeros behind."""
    longest = max(one.shape[-1] for one in sequences)
    return torch.stack([F.pad(one, (0, longest - one.shape[-1])) for one in sequences])
