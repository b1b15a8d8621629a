"""Text that is withheld where the tags hear neither speech nor singing, and speech that the text lacks.

A window is encoded before it is decoded, so its tags are known by then (`whisper_at.speech_tagger`). How loud it is
plays no part; the decoder's doubts count where a voice without words would explain what is heard.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from whisper.audio import FRAMES_PER_SECOND
from whisper.tokenizer import Tokenizer
from whisper.utils import format_timestamp, make_safe

from .segments import Split, has_text
from .speech_tagger import SpeechProbabilities, SpeechTagger
from .tagging.timeline import STEP_SECONDS, first_step
from .windows import Window

if TYPE_CHECKING:
    from .model import WhisperAT

GATE_THRESHOLD = 0.4
"""Probability below which nobody speaks, if `speech_gate` is True."""
SEGMENT_MARGIN = 0.4
"""Seconds by which the times of a segment may be wrong."""
WORD_MARGIN = 1.2
"""Seconds by which the times of a word may be wrong: beside invented words, those of real ones often are."""
MIN_WITHHELD_WORDS = 1.0
"""Seconds of words that are worth to be cut out of a segment."""
DOUBTFUL_LOGPROB = -0.8
"""Mean log-probability of a text's tokens below which it may be that of a voice without words."""
REPETITIVE_RATIO = 2.4
"""Compression ratio above which it may be, too: openai-whisper's ``compression_ratio_threshold``."""
MISSED_THRESHOLD = 0.6
"""Probability from which speech without text counts as missed: most of a voice is far above it."""
MISSED_MARGIN = 0.8
"""Seconds around a text's times in which speech is taken to be its own."""
MISSED_PAUSE = 0.8
"""Seconds without speech that missed speech may have in it."""
MIN_MISSED = 2.0
"""Seconds of missed speech from which it is decoded again."""
MIN_ADVANCE = 1000
"""Frames by which a window that begins with missed speech lies behind the one that missed it."""
MAX_MISSED = 2
"""Stretches of missed speech that are decoded again in a window, the longest first."""


class SpeechGate:
    """What the tags of one recording say of its text.

    Parameters
    ----------
    model : WhisperAT
        With a head that knows speech.
    threshold : bool or float
        Text is withheld where the probability of speech stays below it; False withholds none.
    missed : bool
        Whether to look for speech that the text lacks.
    verbose : bool, optional
        Whether to print what is withheld.

    Attributes
    ----------
    withheld : list of dict
        ``{"start", "end", "text", "reason", "score"}``: seconds; the text, None where none was decoded; why; the
        highest probability of speech there, less what voices without words explain if they are the reason.
    """

    def __init__(
        self, model: WhisperAT, threshold: bool | float, missed: bool = False, verbose: bool | None = None
    ) -> None:
        self.threshold = None if threshold is False else GATE_THRESHOLD if threshold is True else threshold
        self.finds_missed, self.verbose = missed, verbose
        self.tagger = SpeechTagger(model) if missed or self.threshold is not None else None
        self.withheld: list[dict[str, Any]] = []

    @property
    def is_on(self) -> bool:
        """Whether the states of windows are needed."""
        return self.tagger is not None

    def listen(self, window: Window, states: Tensor) -> SpeechProbabilities:
        """Return the probabilities of speech in a window; none where nothing depends on them."""
        if self.tagger is None:
            return SpeechProbabilities(first_step(window), np.zeros(0))
        return self.tagger(window, states)

    def has_speech(self, speech: SpeechProbabilities) -> bool:
        """Return whether a window is to be decoded."""
        return self.threshold is None or speech.highest() >= self.threshold

    def withhold_window(self, window: Window, speech: SpeechProbabilities) -> None:
        """Note that a window is not decoded."""
        start, end = window.seek / FRAMES_PER_SECOND, window.end / FRAMES_PER_SECOND
        self._withhold(start, end, None, "window without speech", speech.highest())

    def keep(
        self, segments: Sequence[dict[str, Any]], speech: SpeechProbabilities, tokenizer: Tokenizer
    ) -> list[dict[str, Any]]:
        """Return the segments with speech in them, without words that lie apart from it; note the others."""
        if self.threshold is None:
            return list(segments)
        kept = []
        for segment in segments:
            if segment["start"] == segment["end"]:  # which is cleared in any case
                kept.append(segment)
                continue
            if has_text(segment):
                around = segment["start"] - SEGMENT_MARGIN, segment["end"] + SEGMENT_MARGIN
                score, reason = speech.highest(*around), "segment without speech"
                if score >= self.threshold and _is_doubtful(segment):
                    score, reason = speech.less_voices().highest(*around), "voice without words"
                if score < self.threshold:
                    self._withhold(segment["start"], segment["end"], segment["text"], reason, score)
                    continue
            parts = split_by_speech(segment, speech, self.threshold, tokenizer)
            for is_kept, part in parts:
                if is_kept:
                    kept.append(part)
                else:
                    score = speech.highest(part["start"] - WORD_MARGIN, part["end"] + WORD_MARGIN)
                    self._withhold(part["start"], part["end"], part["text"], "words without speech", score)
        return kept

    def missed_speech(self, window: Window, split: Split, speech: SpeechProbabilities) -> list[Window]:
        """Return what of a window is to be decoded again, up to where the next one starts, in order of time."""
        if not self.finds_missed:
            return []
        covered = [
            (start - MISSED_MARGIN, end + MISSED_MARGIN)
            for segment in split.segments
            for start, end in _text_spans(segment)
        ]
        until = min(split.seek, window.end)
        covered.append((until / FRAMES_PER_SECOND, math.inf))
        spans = speech.spans(MISSED_THRESHOLD, covered, MISSED_PAUSE)
        longest = sorted((a - b, a, b) for a, b in spans if b - a >= MIN_MISSED - 1e-6)[:MAX_MISSED]
        windows = []
        for _, start, end in sorted(longest, key=lambda span: span[1]):
            first = max(window.seek, round((start - STEP_SECONDS) * FRAMES_PER_SECOND))
            windows.append(Window(first, min(until, round((end + STEP_SECONDS) * FRAMES_PER_SECOND)) - first))
        return windows

    def result(self) -> dict[str, Any]:
        """Return what `transcribe` returns of it."""
        if self.threshold is None:
            return {}
        return {"withheld": sorted(self.withheld, key=lambda part: (part["start"], part["end"]))}

    def _withhold(self, start: float, end: float, text: str | None, reason: str, score: float) -> None:
        part = {"start": start, "end": end, "text": text, "reason": reason, "score": round(score, 4)}
        self.withheld.append(part)
        if self.verbose:
            print_withheld(part)


def print_withheld(part: dict[str, Any]) -> None:
    """Print what was withheld, as a segment would be: ``[00:00.000 --> 00:30.000] (window without speech)``."""
    times = f"[{format_timestamp(part['start'])} --> {format_timestamp(part['end'])}]"
    print(make_safe(f"{times} {withheld_text(part)}"))


def withheld_text(part: Mapping[str, Any]) -> str:
    """Return what stands in the place of a text that was withheld."""
    return f"({part['reason']})" if part["text"] is None else f"({part['reason']}: {part['text'].strip()})"


def _is_doubtful(segment: Mapping[str, Any]) -> bool:
    """Return whether the decoder doubts a text: no temperature made it probable, or it repeats itself."""
    return segment["avg_logprob"] < DOUBTFUL_LOGPROB or segment["compression_ratio"] > REPETITIVE_RATIO


def begins_next_window(missed: Window, window: Window) -> bool:
    """Return whether speech that a window missed up to its end is left to the next one, which then begins there.

    That may miss it, too: to get on, it must lie well behind.
    """
    return missed.end == window.end and missed.seek >= window.seek + MIN_ADVANCE


def _text_spans(segment: dict[str, Any]) -> list[tuple[float, float]]:
    """Start and end of the words of a segment or, where they are not timed, of itself; none if it says nothing."""
    if not has_text(segment):
        return []
    return [(part["start"], part["end"]) for part in segment.get("words") or [segment]]


def split_by_speech(
    segment: dict[str, Any], speech: SpeechProbabilities, threshold: float, tokenizer: Tokenizer
) -> list[tuple[bool, dict[str, Any]]]:
    """Cut runs of words that lie apart from all speech out of a segment whose words are timed.

    Returns
    -------
    list of (bool, dict)
        Parts in order, with whether they have speech. A segment of which nothing is cut out is returned as it is.
    """
    words = segment.get("words") or []
    heard = [speech.highest(word["start"] - WORD_MARGIN, word["end"] + WORD_MARGIN) >= threshold for word in words]
    for first, end in _runs(heard):
        if not heard[first] and words[end - 1]["end"] - words[first]["start"] < MIN_WITHHELD_WORDS:
            heard[first:end] = [True] * (end - first)
    tokens = [] if all(heard) else _tokens_by_word(segment, tokenizer)
    if not tokens:
        return [(True, segment)]
    parts = []
    for first, end in _runs(heard):
        start = segment["start"] if first == 0 else words[first]["start"]
        part = {
            **segment,
            "start": start,
            "end": segment["end"] if end == len(words) else max(words[end - 1]["end"], start + 0.01),  # not cleared
            "text": "".join(word["word"] for word in words[first:end]),
            "tokens": [token for of_word in tokens[first:end] for token in of_word],
            "words": words[first:end],
        }
        parts.append((heard[first], part))
    return parts


def _runs(values: Sequence[bool]) -> list[tuple[int, int]]:
    """Return start and end of each run of equal values."""
    edges = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    return list(itertools.pairwise(edges)) if values else []


def _tokens_by_word(segment: dict[str, Any], tokenizer: Tokenizer) -> list[list[int]]:
    """Return the text tokens of each word of a segment; none where these do not make up its text."""
    tokens = [token for token in segment["tokens"] if token < tokenizer.eot]
    ends = {tokenizer.decode(tokens[:end]): end for end in reversed(range(len(tokens) + 1))}
    text, start, found = "", 0, []
    for word in segment["words"]:
        text += word["word"]
        if text not in ends:
            return []
        found.append(tokens[start : ends[text]])
        start = ends[text]
    return found if start == len(tokens) else []


def mark_recovered(segments: Iterable[dict[str, Any]], written: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the segments that say what those written do not, with ``recovered``: True."""
    new = [segment for segment in segments if has_text(segment) and not is_repeated(segment["text"], written)]
    return [{**segment, "recovered": True} for segment in new]


def is_repeated(text: str, segments: Iterable[dict[str, Any]]) -> bool:
    """Return whether most words of a text stand in segments already, in the same order: their times were wrong.

    Examples
    --------
    >>> is_repeated(" the old cat", [{"text": " Look, the old cat sleeps."}])
    True
    >>> is_repeated(" the old dog", [{"text": " The cat sleeps."}])
    False
    """
    words = _plain_words(text)
    for segment in segments:
        blocks = SequenceMatcher(None, words, _plain_words(segment["text"]), autojunk=False).get_matching_blocks()
        if 2 * sum(block.size for block in blocks) > len(words):
            return True
    return False


def _plain_words(text: str) -> list[str]:
    words = ["".join(letter for letter in word if letter.isalnum()) for word in text.lower().split()]
    return [word for word in words if word]
