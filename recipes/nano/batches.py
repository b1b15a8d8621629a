"""Windows padded into batches, made by a worker process while the model trains."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset

from .data import Pools
from .vocabulary import Vocabulary
from .windows import Guide, Window, WindowGenerator

ENCODER_ONLY = 0.20
"""Share of the training during which only the encoder learns, from the frame labels."""


class BatchKind(NamedTuple):
    """A kind of batch: length of its windows, their number, and whether the encoder is frozen."""

    seconds: int
    size: int
    frozen: bool


class Stage(NamedTuple):
    """A stage of the curriculum.

    It begins at a share ``start`` of the training and draws kinds of batches with weights; ``silent`` is the share of
    windows without speech.
    """

    start: float
    kinds: list[BatchKind]
    weights: list[float]
    silent: float


# The decoder has more to learn than the encoder, and a step with a frozen encoder costs a third: some of the long
# batches are for the decoder alone.
LONG = [BatchKind(12, 10, False), BatchKind(30, 6, False), BatchKind(30, 8, True)]
CURRICULUM = [
    Stage(0.00, [BatchKind(4, 32, False)], [1.0], silent=0.16),
    Stage(ENCODER_ONLY, [BatchKind(4, 24, False), BatchKind(6, 16, False)], [0.6, 0.4], silent=0.16),
    Stage(0.31, [BatchKind(5, 20, False), BatchKind(12, 10, False)], [0.25, 0.75], silent=0.16),
    Stage(0.46, LONG, [0.2, 0.45, 0.35], silent=0.16),
    Stage(0.75, LONG, [0.2, 0.45, 0.35], silent=0.24),
]
PROMPT_LENGTHS = [0, 0, 0, 40, 100, 223]
"""Maximum lengths of the prompts of a batch of 30 s windows, of which one is drawn."""


def _pad_tokens(rows: list[list[int]], padding: int) -> torch.Tensor:
    """Stack sequences to ``(batch, length)``."""
    out = torch.full((len(rows), max(map(len, rows))), padding)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out


def _pad_guides(guides: list[list[Guide]]) -> torch.Tensor:
    """Stack guides to float32 ``(batch, guides, 4)``; the position of padding is −1."""
    out = torch.full((len(guides), max(1, max(map(len, guides))), 4), -1.0)
    for i, guide in enumerate(guides):
        if guide:
            out[i, : len(guide)] = torch.tensor(guide)
    return out


def collate(windows: list[Window], vocabulary: Vocabulary) -> dict[str, torch.Tensor]:
    """Stack windows to a batch.

    ``timed_in`` and ``plain_in`` are tokens ``(batch, length)``, ``timed_out`` and ``plain_out`` their targets, −1
    where a position has no loss.
    """
    timed_targets, plain_targets = [], []
    for w in windows:
        targets = [-1] * len(w.timed)
        targets[w.prompt_length : -1] = w.timed[w.prompt_length + 1 :]
        targets[w.prompt_length] = vocabulary.no_speech if w.silent else w.first
        timed_targets.append(targets[:-1])
        targets = [-1, *w.plain[2:]]  # <|notimestamps|> is given, not predicted
        if not w.plain_is_complete:
            targets[-1] = -1
        plain_targets.append(targets)
    return {
        "mel": torch.stack([w.mel for w in windows]),
        "offset": torch.tensor([round(w.offset * 50) for w in windows]),
        "timed_in": _pad_tokens([w.timed[:-1] for w in windows], vocabulary.eot),
        "timed_out": _pad_tokens(timed_targets, -1),
        "timed_guides": _pad_guides([w.timed_guides for w in windows]),
        "plain_in": _pad_tokens([w.plain[:-1] for w in windows], vocabulary.eot),
        "plain_out": _pad_tokens(plain_targets, -1),
        "plain_guides": _pad_guides([w.plain_guides for w in windows]),
        "labels": torch.stack([torch.from_numpy(w.labels) for w in windows]),
        "silent": torch.tensor([w.silent for w in windows]),
    }


class BatchStream(IterableDataset):
    """Endless stream of batches; ``progress``, shared between processes, is the share of the training so far."""

    def __init__(self, pools: Pools, seed: int, progress: Synchronized) -> None:
        self.pools, self.seed, self.progress = pools, seed, progress

    def __iter__(self) -> Iterator[dict[str, torch.Tensor | bool]]:
        torch.set_num_threads(1)
        generator = WindowGenerator(self.pools, self.seed)
        rng = generator.rng
        while True:
            stage = [stage for stage in CURRICULUM if stage.start <= self.progress.value][-1]
            kind = rng.choices(stage.kinds, stage.weights)[0]
            max_prompt = rng.choice(PROMPT_LENGTHS) if kind.seconds >= 30 else 0
            windows = [generator.window(kind.seconds, stage.silent, max_prompt) for _ in range(kind.size)]
            yield collate(windows, generator.vocabulary) | {"frozen": kind.frozen}

    def loader(self) -> Iterator[dict[str, torch.Tensor]]:
        """Return batches from a worker process that is a few batches ahead."""
        return iter(DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=4))
