"""Windows padded into batches, made in a process of their own while the model trains."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized

import torch
from torch.utils.data import DataLoader, IterableDataset

from .windows import Mixer, Window
from .data import Pools

LISTENING = 0.20
"""Up to this share of the time only the encoder learns, from the frame labels: words first, then writing."""

# from this share of the training time on: [(seconds, windows in a batch, encoder frozen, weight)], share of windows
# without speech; the decoder has more to learn than the encoder and a frozen encoder costs a third, so some of the
# long batches are for it alone
CURRICULUM = [
    (0.00, [(4, 32, False, 1.0)], 0.16),
    (LISTENING, [(4, 24, False, 0.6), (6, 16, False, 0.4)], 0.16),
    (0.31, [(5, 20, False, 0.25), (12, 10, False, 0.75)], 0.16),
    (0.46, [(12, 10, False, 0.2), (30, 6, False, 0.45), (30, 8, True, 0.35)], 0.16),
    (0.75, [(12, 10, False, 0.2), (30, 6, False, 0.45), (30, 8, True, 0.35)], 0.24),
]
PROMPTS = [0, 0, 0, 40, 100, 223]
"""Longest prompt of a batch of 30 s windows."""


def _sequences(rows: list[list[int]], padding: int) -> torch.Tensor:
    out = torch.full((len(rows), max(map(len, rows))), padding)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out


def _guides(guides: list[list[tuple[int, float, float, float]]]) -> torch.Tensor:
    """float (batch, guides, 4): row (−1 where there is none), start, end, end of the gap after it."""
    out = torch.full((len(guides), max(1, max(map(len, guides))), 4), -1.0)
    for i, guide in enumerate(guides):
        if guide:
            out[i, : len(guide)] = torch.tensor(guide)
    return out


def collate(windows: list[Window], vocabulary) -> dict[str, torch.Tensor]:
    """A batch: `*_in` tokens (batch, length), `*_out` the targets behind them (−1: does not count), guides, labels."""
    eot = vocabulary.eot
    timed_out, plain_out = [], []
    for w in windows:
        out = [-1] * len(w.timed)
        out[w.timed_from : -1] = w.timed[w.timed_from + 1 :]
        out[w.timed_from] = vocabulary.no_speech if w.silent else w.first
        timed_out.append(out[:-1])
        # the token after <|startoftranscript|> is given in this mode; an end that speech runs over does not count
        out = [-1, *w.plain[2:]]
        if not w.plain_ends:
            out[-1] = -1
        plain_out.append(out)
    return {
        "mel": torch.stack([w.mel for w in windows]),
        "offset": torch.tensor([round(w.offset * 50) for w in windows]),
        "timed_in": _sequences([w.timed[:-1] for w in windows], eot),
        "timed_out": _sequences(timed_out, -1),
        "timed_guides": _guides([w.timed_guides for w in windows]),
        "plain_in": _sequences([w.plain[:-1] for w in windows], eot),
        "plain_out": _sequences(plain_out, -1),
        "plain_guides": _guides([w.plain_guides for w in windows]),
        "labels": torch.stack([torch.from_numpy(w.labels) for w in windows]),
        "silent": torch.tensor([w.silent for w in windows]),
    }


class Batches(IterableDataset):
    """Endless batches; `progress` (shared, 0…1) chooses the stage of the curriculum."""

    def __init__(self, pools: Pools, seed: int, progress: Synchronized) -> None:
        self.pools, self.seed, self.progress = pools, seed, progress

    def __iter__(self) -> Iterator[dict[str, torch.Tensor | bool]]:
        torch.set_num_threads(1)
        mixer = Mixer(self.pools, self.seed)
        while True:
            _, stage, silent = [stage for stage in CURRICULUM if stage[0] <= self.progress.value][-1]
            seconds, size, frozen, _ = mixer.r.choices(stage, [weight for *_, weight in stage])[0]
            prompt = mixer.r.choice(PROMPTS) if seconds >= 30 else 0
            batch = collate([mixer.window(seconds, silent, prompt) for _ in range(size)], mixer.vocabulary)
            yield batch | {"frozen": frozen}

    def loader(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches from one worker process, a few ahead."""
        return iter(DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=4))
