"""Heads of one's own beside the AudioSet head: their classes, and what they find in rows and segments.

A *head* reads the pooled states of the one encoder pass. A *listener* is any other classifier of sound, such as a
backbone adapted by `whisper_at.adapt`: it hears the recording in a pass of its own, and the text is none of its
business. One that can do with the model's own pass offers a *reader* of its states instead.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..audio import SAMPLE_RATE, stream_audio
from ..suggest import did_you_mean
from ..windows import Window
from .classes import ClassSet
from .timeline import STEP_FRAMES, STEP_POSITIONS, Classifier, first_step, position_mask, steps_to_seconds

RESERVED = frozenset(
    "text segments words language duration task at_time_res audio_tag audio_tag_coverage audio events auto".split()
)
"""Names that a result's own keys have, or may come to have."""


@runtime_checkable
class WaveformClassifier(Protocol):
    """A classifier of sound that hears recordings itself.

    It may have a method ``on_states(model)``, which gives a `StateClassifier` if the model's own encoder pass holds all that it
    needs, or else None.
    """

    @property
    def classes(self) -> Sequence[str]:
        """Names of the outputs."""

    @property
    def kind(self) -> str:
        """As of `ClassSet`."""

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""

    def logits(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of float32 ``(batch, samples)``, of which ``lengths`` ``(batch,)`` are sound."""


class StateClassifier:
    """A classifier on what the model's own encoder pass leaves.

    Parameters
    ----------
    classes : what its outputs mean
    classify : from ``(batch, layers + 1, steps, dim)`` to logits ``(batch, classes)``: pooled states of every block
        before the encoder's last norm and, behind them, those of the last one after it
    """

    def __init__(self, classes: ClassSet, classify: Callable[[Tensor], Tensor]) -> None:
        self.classes, self.label_dim, self.classify = classes, len(classes.names), classify

    @torch.no_grad()
    def __call__(self, states: Tensor) -> Tensor:
        return self.classify(states)


def span_logits(
    classify: Classifier, n_classes: int, window: Window, states: Tensor, start: float, end: float
) -> Tensor:
    """Logits ``(classes,)`` for the seconds ``start`` to ``end``, from one window's pooled states.

    ``states`` is ``(layers, steps, dim)`` as `pool_steps` lays it out. Every step that the span touches counts, of
    those that hold audio; NaN where there is none.
    """
    count = position_mask(window).view(-1, STEP_POSITIONS).sum(1)
    first = math.floor(round(start * 100) / STEP_FRAMES) - first_step(window)
    last = math.ceil(round(end * 100) / STEP_FRAMES) - first_step(window)
    first = min(max(first, 0), len(count) - 1)
    steps = [i for i in range(first, min(max(last, first + 1), len(count))) if count[i]]
    if not steps:
        return torch.full((n_classes,), math.nan)
    return classify(states[None, :, steps])[0].float().cpu()


def listen(
    listener: WaveformClassifier,
    audio: str | os.PathLike[str] | np.ndarray | Tensor,
    spans: Sequence[tuple[float, float]],
    batch_size: int = 8,
    longest: float = 30.0,
) -> Tensor:
    """Logits float32 ``(spans, classes)`` of spans of a recording, each ``(start, end)`` in seconds.

    A span of more than ``longest`` seconds is heard in equal parts, whose logits are averaged by length. A span
    without audio is NaN.
    """
    rate = listener.sample_rate
    parts = []  # (span, first sample, end)
    for i, (start, end) in enumerate(spans):
        pieces = max(1, math.ceil((end - start) / longest - 1e-9))
        edges = np.linspace(start, end, pieces + 1)
        parts += [(i, round(a * rate), round(b * rate)) for a, b in itertools.pairwise(edges)]
    out = torch.zeros(len(spans), len(listener.classes))
    weight = torch.zeros(len(spans))
    with _samples(audio, rate) as samples:
        parts = [(i, a, min(b, len(samples))) for i, a, b in parts if a < min(b, len(samples))]
        parts.sort(key=lambda part: part[2] - part[1])  # alike lengths together: less padding
        for at in range(0, len(parts), batch_size):
            batch = parts[at : at + batch_size]
            lengths = torch.tensor([b - a for _, a, b in batch])
            waveforms = torch.zeros(len(batch), int(lengths.max()))
            for row, (_, a, b) in zip(waveforms, batch):
                row[: b - a] = torch.from_numpy(np.array(samples[a:b], np.float32))
            with torch.no_grad():
                logits = listener.logits(waveforms, lengths).float().cpu()
            owners = torch.tensor([i for i, _, _ in batch])
            out.index_add_(0, owners, logits * lengths[:, None])
            weight.index_add_(0, owners, lengths.float())
    return out / weight[:, None]  # 0 / 0 is NaN


@contextmanager
def _samples(audio: str | os.PathLike[str] | np.ndarray | Tensor, rate: int) -> Iterator[np.ndarray]:
    """The samples of a recording at ``rate`` Hz, on disk rather than in memory where they come from a file."""
    if not isinstance(audio, (str, os.PathLike)):
        require_rate(audio, rate)
        samples = audio.detach().cpu().numpy() if isinstance(audio, Tensor) else np.asarray(audio)
        yield samples.astype(np.float32, copy=False)
        return
    with tempfile.TemporaryFile() as file:
        for block in stream_audio(audio, rate):
            file.write(block.tobytes())
        n = file.tell() // 4
        file.flush()
        yield np.memmap(file, np.float32, "r", shape=(n,)) if n else np.zeros(0, np.float32)


def require_rate(audio: str | os.PathLike[str] | np.ndarray | Tensor, rate: int) -> None:
    """ValueError if this is an array, which is at 16 kHz, for a listener that hears another rate."""
    if not isinstance(audio, (str, os.PathLike)) and rate != SAMPLE_RATE:
        raise ValueError(f"arrays are taken to be at {SAMPLE_RATE} Hz, but this listener hears {rate} Hz: give a file")


def row_spans(n_rows: int, steps: int, seconds: float) -> list[tuple[float, float]]:
    """Start and end, in seconds, of each row of ``steps`` steps in a recording of ``seconds``."""
    return [(steps_to_seconds(i * steps), min(steps_to_seconds((i + 1) * steps), seconds)) for i in range(n_rows)]


def named_tags(
    found: Mapping[str, Any],
    logits: Any,
    top_k: int = 5,
    p_threshold: float | None = None,
    include: Iterable[int | str] | int | str | None = None,
) -> list[list[dict[str, Any]]]:
    """Tags of an attached head row by row, from the likeliest down: ``{"index", "name", "logit", "probability"}``.

    Parameters
    ----------
    found : what a result has under the head's name
    logits : its rows ``(rows, classes)``, as tensor, array or lists (None for NaN)
    top_k : at most so many a row
    p_threshold : a logit; classes of a calibrated probability above its sigmoid count. None takes the head's own
        thresholds, from which on a class counts, if its classes sound together, and else -1
    include : the wanted classes, by index or name; None is all
    """
    names = found["classes"]
    rows, probabilities = calibrated(found, logits)
    own = found.get("thresholds") if p_threshold is None and found["kind"] == "multi_label" else None
    if own is not None:
        counts = probabilities >= np.array([math.inf if t is None else t for t in own])
    else:
        bound = 1 / (1 + math.exp(-min(max(-1.0 if p_threshold is None else p_threshold, -700.0), 700.0)))
        counts = probabilities > bound  # false for NaN
    wanted = np.array(own_classes(names, include), dtype=np.intp)
    out = []
    for row, likely, counted in zip(rows, probabilities, counts):
        above = wanted[counted[wanted]]
        best = above[np.argsort(-likely[above], kind="stable")[:top_k]]
        out.append(
            [{"index": int(i), "name": names[i], "logit": float(row[i]), "probability": float(likely[i])} for i in best]
        )
    return out


def calibrated(found: Mapping[str, Any], logits: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities of an attached head, float64 ``(rows, classes)``, NaN where nothing was heard.

    Arguments are those of `named_tags`.
    """
    classes = ClassSet(tuple(found["classes"]), found["kind"], found["temperature"])
    n = len(classes.names)
    full = [[None] * n if row is None else row for row in (logits.tolist() if hasattr(logits, "tolist") else logits)]
    rows = np.array(full, dtype=np.float64).reshape(len(full), n)
    return rows, classes.probabilities(torch.from_numpy(rows)).double().numpy()


def own_classes(names: Sequence[str], queries: Any) -> list[int]:
    """Indices, rising, of classes of a head's own given by index or name; all for None.

    Raises ValueError, with the nearest name, where there is no such class.
    """
    if queries is None:
        return list(range(len(names)))
    queries = queries.tolist() if hasattr(queries, "tolist") else queries
    indices = set()
    for query in [queries] if isinstance(queries, (str, int)) else queries:
        if query in names:
            indices.add(list(names).index(str(query)))
        elif str(query).isdecimal() and int(query) < len(names):
            indices.add(int(query))
        else:
            raise ValueError(f"the head has no class {query!r}; {did_you_mean(query, names)}")
    return sorted(indices)


def attached_names(result: Mapping[str, Any]) -> list[str]:
    """Names of the attached heads of which a result tells."""
    return [name for name, value in result.items() if isinstance(value, Mapping) and "logits" in value]
