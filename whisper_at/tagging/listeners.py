"""Classifiers of one's own beside the heads: what they must offer, and how they are run over a recording.

A *head* reads the pooled states of the one encoder pass. A `WaveformClassifier` is any other classifier of sound, such
as a backbone adapted by `whisper_at.adapt`: it runs on the waveform in a pass of its own, and the text does not depend
on it. One that needs nothing but the model's own pass offers a `StateClassifier` instead.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..audio import SAMPLE_RATE, stream_audio
from ..windows import Window
from .classes import ClassSet
from .timeline import STEP_FRAMES, STEP_POSITIONS, Classifier, first_step, position_mask

CLASSIFIER_MODULES = {"whisper_at.adapt": "whisper_at.adapt.classifier"}
"""How the metadata of a classifier's file begin (``kind``), and the module whose `AudioClassifier` loads it."""


@runtime_checkable
class WaveformClassifier(Protocol):
    """A classifier of sound that runs on the waveform of a recording.

    It may have a method ``on_states(model)``, which returns a `StateClassifier` if the model's own encoder pass holds
    all that it needs, or else None.
    """

    @property
    def classes(self) -> Sequence[str]:
        """Names of the outputs."""

    @property
    def kind(self) -> str:
        """``multi_label`` or ``single_label``, as of `ClassSet`."""

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""

    def logits(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of float32 ``(batch, samples)``.

        The first ``lengths[i]`` samples of waveform ``i`` are sound, the rest is padding.
        """


class StateClassifier:
    """A classifier on the states of the model's own encoder pass, those after its last norm included.

    Parameters
    ----------
    classes : ClassSet
        What the outputs mean.
    classify : callable
        From ``(batch, layers + 1, steps, dim)`` to logits ``(batch, classes)``: pooled states of every block before
        the encoder's last norm and, as the last layer, those after it.
    """

    needs_final_norm = True

    def __init__(self, classes: ClassSet, classify: Callable[[Tensor], Tensor]) -> None:
        self.classes, self.classify = classes, classify

    @torch.no_grad()
    def __call__(self, states: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of pooled states ``(batch, layers + 1, steps, dim)``."""
        return self.classify(states)


def class_set(classifier: Any) -> ClassSet:
    """Return what the outputs of a head or of a classifier mean."""
    classes = getattr(classifier, "classes", None)
    if isinstance(classes, ClassSet):
        return classes
    if classes is None:  # a head whose file names no classes
        return ClassSet(tuple(map(str, range(classifier.label_dim))))
    return ClassSet(tuple(classes), classifier.kind)


def open_classifier(path: Path, metadata: Mapping[str, str], **options: Any) -> WaveformClassifier | None:
    """Return the adapted classifier that a file holds, or None if its metadata say that it holds something else.

    The module that loads it is imported here and not above, since it stands on this one.
    """
    for prefix, module in CLASSIFIER_MODULES.items():
        if metadata.get("kind", "").startswith(prefix):
            return importlib.import_module(module).AudioClassifier.load(path, **options)
    return None


def span_logits(
    classify: Classifier, n_classes: int, window: Window, states: Tensor, start: float, end: float
) -> Tensor:
    """Return logits ``(classes,)`` for the seconds `start` to `end`, from one window's pooled states.

    `states` is ``(layers, steps, dim)`` as `pool_steps` lays it out. Every step that the span touches counts, of
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


def classify_spans(
    classifier: WaveformClassifier,
    audio: str | os.PathLike[str] | np.ndarray | Tensor,
    spans: Sequence[tuple[float, float]],
    batch_size: int = 8,
    longest: float = 30.0,
) -> Tensor:
    """Return float32 logits ``(spans, classes)`` of spans of a recording, each ``(start, end)`` in seconds.

    A span of more than `longest` seconds is classified in equal parts, whose logits are averaged by length. A span
    without audio is NaN.
    """
    rate = classifier.sample_rate
    parts = []  # (span, first sample, end)
    for i, (start, end) in enumerate(spans):
        pieces = max(1, math.ceil((end - start) / longest - 1e-9))
        edges = np.linspace(start, end, pieces + 1)
        parts += [(i, round(a * rate), round(b * rate)) for a, b in itertools.pairwise(edges)]
    out = torch.zeros(len(spans), len(classifier.classes))
    weight = torch.zeros(len(spans))
    with _samples(audio, rate) as samples:
        parts = [(i, a, min(b, len(samples))) for i, a, b in parts if a < min(b, len(samples))]
        parts.sort(key=lambda part: part[2] - part[1])  # similar lengths together: less padding
        for at in range(0, len(parts), batch_size):
            batch = parts[at : at + batch_size]
            lengths = torch.tensor([b - a for _, a, b in batch])
            waveforms = torch.zeros(len(batch), int(lengths.max()))
            for row, (_, a, b) in zip(waveforms, batch):
                row[: b - a] = torch.from_numpy(np.array(samples[a:b], np.float32))
            with torch.no_grad():
                logits = classifier.logits(waveforms, lengths).float().cpu()
            span_ids = torch.tensor([i for i, _, _ in batch])
            out.index_add_(0, span_ids, logits * lengths[:, None])
            weight.index_add_(0, span_ids, lengths.float())
    return out / weight[:, None]  # 0 / 0 is NaN


@contextmanager
def _samples(audio: str | os.PathLike[str] | np.ndarray | Tensor, rate: int) -> Iterator[np.ndarray]:
    """Yield the samples of a recording at `rate` Hz, on disk rather than in memory where they come from a file."""
    if not isinstance(audio, (str, os.PathLike)):
        check_sample_rate(audio, rate)
        samples = audio.detach().cpu().numpy() if isinstance(audio, Tensor) else np.asarray(audio)
        yield samples.astype(np.float32, copy=False)
        return
    with tempfile.TemporaryFile() as file:
        for block in stream_audio(audio, rate):
            file.write(block.tobytes())
        n = file.tell() // 4
        file.flush()
        yield np.memmap(file, np.float32, "r", shape=(n,)) if n else np.zeros(0, np.float32)


def check_sample_rate(audio: str | os.PathLike[str] | np.ndarray | Tensor, rate: int) -> None:
    """Raise ValueError if this is an array, which is at 16 kHz, for a classifier of another rate."""
    if not isinstance(audio, (str, os.PathLike)) and rate != SAMPLE_RATE:
        raise ValueError(
            f"arrays are taken to be at {SAMPLE_RATE} Hz, but this classifier needs {rate} Hz: give a file"
        )
