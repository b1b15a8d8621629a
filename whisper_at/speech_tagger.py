"""Where the tags hear speech or singing: the probability of words in every step of a window.

Every step of 0.4 s gets the probability that somebody speaks or sings, from the row of 1.2 s around it, and what an
animal or another voice without words leaves of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .tagging.classes import ClassSet
from .tagging.heads import Head
from .tagging.labels import audioset_labels, classes_under
from .tagging.timeline import STEP_SECONDS, first_step, steps_to_seconds
from .windows import Window

if TYPE_CHECKING:
    from .model import WhisperAT

SPEECH, SINGING = "Speech", "Singing"
VOCAL_MIDS = ("/m/09x0r", "/m/015lz1", "/m/07p6fty", "/m/02rtxlg", "/m/0y4f8", "/m/07qfr4h")
"""Nodes of AudioSet's ontology with words in them: speech, singing, shouting, whispering, vocal music, hubbub."""
VOICE_MIDS = ("/m/09l8g", "/m/09hlz4", "/m/0jbk")
"""Nodes of voices, with words and without: human voice, respiratory sounds, animals."""
VOICE_LOG_ODDS = -3.0
"""Log-odds from which a voice without words explains what sounds like speech."""
VOICE_WEIGHT = 0.5
"""By how much the log-odds of speech are lowered for each of such a voice above `VOICE_LOG_ODDS`."""
ROW_STEPS = 3
"""Steps of 0.4 s that a probability is read from: heads tell more from 1.2 s than from one step."""


@cache
def _names_under(mids: tuple[str, ...]) -> frozenset[str]:
    labels = audioset_labels()
    return frozenset(labels[index].name.lower() for index in classes_under(mids))


def _known_classes(classes: ClassSet, names: frozenset[str]) -> list[int]:
    known = range(len(classes)) if classes.known is None else classes.known
    return sorted(index for index in known if classes.names[index].lower() in names)


def vocal_classes(classes: ClassSet) -> list[int]:
    """Return the indices of a head's known classes of speech and singing; none if it knows neither of these two.

    Examples
    --------
    >>> vocal_classes(ClassSet(("Dog", "Singing", "Choir"))), vocal_classes(ClassSet(("Dog", "Choir")))
    ([1, 2], [])
    """
    vocal = _known_classes(classes, _names_under(VOCAL_MIDS))
    return vocal if {SPEECH, SINGING} & {classes.names[index].capitalize() for index in vocal} else []


def wordless_classes(classes: ClassSet) -> list[int]:
    """Return the indices of a head's known classes of voices without words, such as animals and coughs.

    Examples
    --------
    >>> wordless_classes(ClassSet(("Speech", "Dog", "Screaming", "Music", "Cough")))
    [1, 2, 4]
    """
    return _known_classes(classes, _names_under(VOICE_MIDS) - _names_under(VOCAL_MIDS))


class SpeechProbabilities(NamedTuple):
    """The probability of speech or singing in the steps of 0.4 s of a window that hold audio.

    ``first`` is the absolute index of the first step, ``values`` are float64 ``(steps,)``; so is ``unexplained``, what
    voices without words leave of them, or None where no class of such voices is known.
    """

    first: int
    values: np.ndarray
    unexplained: np.ndarray | None = None

    def highest(self, start: float = 0.0, end: float = math.inf) -> float:
        """Return the highest probability of the steps that these seconds touch, at least of the nearest one."""
        if not len(self.values):
            return 0.0
        last_step = len(self.values) - 1
        lo = min(max(math.floor(start / STEP_SECONDS + 1e-6) - self.first, 0), last_step)
        hi = last_step if math.isinf(end) else min(math.ceil(end / STEP_SECONDS - 1e-6) - self.first - 1, last_step)
        return float(self.values[lo : max(hi, lo) + 1].max())

    def less_voices(self) -> SpeechProbabilities:
        """Return the probabilities that voices without words leave."""
        return self if self.unexplained is None else SpeechProbabilities(self.first, self.unexplained)

    def spans(
        self, threshold: float, covered: Iterable[tuple[float, float]], pause: float
    ) -> list[tuple[float, float]]:
        """Return start and end, in seconds, of speech of at least this probability that is not covered.

        Steps that touch a covered span are left out; speech with no more than `pause` seconds in between is one.
        """
        edges = np.array([steps_to_seconds(self.first + i) for i in range(len(self.values) + 1)])
        missed = self.values >= threshold
        for start, end in covered:
            missed &= (edges[1:] <= start) | (edges[:-1] >= end)
        spans: list[tuple[float, float]] = []
        for start, end in zip(edges[:-1][missed].tolist(), edges[1:][missed].tolist()):
            if spans and start - spans[-1][1] <= pause + 1e-6 and not _touches(covered, spans[-1][1], start):
                spans[-1] = spans[-1][0], end
            else:
                spans.append((start, end))
        return spans


def _touches(covered: Iterable[tuple[float, float]], start: float, end: float) -> bool:
    return any(a < end and b > start for a, b in covered)


class SpeechTagger:
    """Reads the probability of speech from the states of a window, by the first head of a model that knows speech.

    Raises
    ------
    ValueError
        If no head does.
    """

    def __init__(self, model: WhisperAT) -> None:
        if not model.heads:
            raise ValueError(f"speech_gate and missed_speech read the tags: {model.head_missing}")
        for head in model.heads.values():
            classes = head.classes if isinstance(head, Head) else None
            if classes is not None and (vocal := vocal_classes(classes)):
                self.head, self.classes, self.vocal = head, classes, vocal
                self.wordless = wordless_classes(classes)
                return
        raise ValueError(
            f"speech_gate and missed_speech read the tags {SPEECH} and {SINGING}, and no head of this model knows one "
            "of them: load one of AudioSet's classes with load_model(..., head=...)"
        )

    @torch.no_grad()
    def __call__(self, window: Window, states: Tensor) -> SpeechProbabilities:
        """Return the probabilities in a window, from its pooled states ``(layers, steps, dim)``."""
        states = states[: self.head.n_layer]  # what other heads read may follow
        states = states[:, ~states[0, :, 0].isnan()]
        n_steps = states.shape[1]
        if not n_steps:
            return SpeechProbabilities(first_step(window), np.zeros(0))
        rows = states.unfold(1, min(ROW_STEPS, n_steps), 1).permute(1, 0, 3, 2)
        logits = self.head(rows).double().cpu().numpy()
        log_odds = self.classes.log_odds(logits)
        log_odds = log_odds[np.clip(np.arange(n_steps) - ROW_STEPS // 2, 0, len(log_odds) - 1)]  # of the nearest row
        speech = log_odds[:, self.vocal].max(axis=1)
        if not self.wordless:
            return SpeechProbabilities(first_step(window), _sigmoid(speech))
        voice = np.maximum(log_odds[:, self.wordless].max(axis=1) - VOICE_LOG_ODDS, 0)
        return SpeechProbabilities(first_step(window), _sigmoid(speech), _sigmoid(speech - VOICE_WEIGHT * voice))


def _sigmoid(log_odds: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-log_odds))
