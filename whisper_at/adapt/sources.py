"""Sources of batches beside waveforms: what a head keeps of a frozen encoder's states, computed once for all epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .pooling import HeadInput, concat_inputs

MAX_CACHED_BYTES = 4 << 30
"""States of a frozen encoder are cached in memory if they take no more than this."""


class BatchSource(Protocol):
    """Clips of one part of the data, in batches that `AudioClassifier.forward` takes."""

    lengths: list[int]

    def batch(self, indices: Sequence[int], rng: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the clips at ``indices``; a generator is given in training, for sources that draw at random."""


class StatesDataset:
    """HeadInput states of clips, one `HeadInput` of batch size 1 for each."""

    def __init__(self, states: Sequence[HeadInput]) -> None:
        self.states = states
        self.lengths = [one.values.shape[2] for one in states]

    def batch(self, indices: Sequence[int], rng: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the states and masks of clips, padded to the longest."""
        return concat_inputs([self.states[int(i)] for i in indices])


class MultiViewDataset:
    """HeadInput states of clips that were encoded several times: in isolation, and in the context of other clips.

    Attributes
    ----------
    views : list of list of HeadInput
        States by view and clip; view 0 is the clip in isolation.
    """

    def __init__(self, views: list[list[HeadInput]]) -> None:
        self.views = views
        self.lengths = [one.values.shape[2] for one in views[0]]

    def batch(self, indices: Sequence[int], rng: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return each clip in isolation; with a generator, followed by each in a context drawn at random."""
        wanted = [(0, int(i)) for i in indices]
        if rng is not None:
            drawn = rng.integers(1, len(self.views), len(indices)).tolist()
            wanted += [(view, int(i)) for view, i in zip(drawn, indices)]
        return concat_inputs([self.views[view][i] for view, i in wanted])


def precompute_states(
    encode: Callable[[Tensor, Tensor], HeadInput],
    source: BatchSource,
    batch_size: int,
    device: torch.device,
    progress: bool = False,
) -> BatchSource:
    """Encode all clips once.

    Parameters
    ----------
    encode : callable
        From waveforms and lengths to reduced states, such as `AudioClassifier.reduce` in evaluation mode.
    source : BatchSource
        Waveforms of the clips.
    batch_size : int
        Clips that are encoded together.
    device : torch.device
        Device for ``encode``; the states are kept on the CPU.
    progress : bool
        Show a progress bar.

    Returns
    -------
    BatchSource
        The states, or ``source`` if they do not fit into memory.
    """
    states: dict[int, HeadInput] = {}
    encoded = n_bytes = 0
    batches = batches_by_length(source.lengths, batch_size)
    for indices in tqdm(batches, "encoding", disable=not progress, leave=False):
        with torch.no_grad():
            values, mask = encode(*(part.to(device) for part in source.batch(indices)))
        for i, value, real in zip(indices, values.cpu(), mask.cpu()):
            n = int(real.nonzero().max()) + 1 if real.any() else 1
            states[i] = HeadInput(value[None, :, :n].clone(), real[None, :n].clone())
            n_bytes += states[i].values.nbytes
            encoded += source.lengths[i]
        if not fits_in_memory(n_bytes, encoded, sum(source.lengths)):
            return source
    return StatesDataset([states[i] for i in range(len(source.lengths))])


def fits_in_memory(n_bytes: int, done: int, total: int) -> bool:
    """Return whether all states may be cached, if those of ``done`` of ``total`` clips or samples take ``n_bytes``."""
    return n_bytes / done * total <= MAX_CACHED_BYTES


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return indices in batches of clips of similar length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[first : first + size] for first in range(0, len(order), size)]
