"""A result as `transcribe` returns it, of what a stream has told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from whisper.audio import FRAMES_PER_SECOND
from whisper.utils import compression_ratio

from ..tagging.rows import AUDIOSET, audioset_values
from ..tagging.timeline import steps_to_seconds
from .messages import Final, Message, Row, Word
from .stream import Stream

PAUSE = 1.0
"""Seconds without a word after which a new segment begins, as it does after a sentence."""
MAX_WORDS = 40
"""So many words are a segment."""
SENTENCE_ENDS = ".?!。？！…"


class Transcript:
    """Collects what a stream tells, which the stream itself does not keep.

    Examples
    --------
    >>> import whisper_at
    >>> from whisper_at.live import Stream, Transcript
    >>> stream = Stream(whisper_at.load_model("nano.en"), at_time_res=2)
    >>> transcript = Transcript(stream)
    >>> transcript.add(stream.feed(whisper_at.load_audio("sample/speech.flac")))
    >>> transcript.add(stream.finish())
    >>> transcript.result()["audio_tag"].shape
    torch.Size([8, 527])
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.words: list[Word] = []
        self.rows: dict[str, dict[int, list[Row]]] = {}  # head → steps of a row → rows

    def add(self, messages: Iterable[Message]) -> None:
        """Take messages of the stream, in their order."""
        for message in messages:
            if isinstance(message, Final):
                self.words += message.words
            elif isinstance(message, Row):
                self.rows.setdefault(message.head, {}).setdefault(message.steps, []).append(message)

    def result(self) -> dict[str, Any]:
        """Return the words so far as segments, and the rows so far, as `transcribe` returns them."""
        segments = [_segment(i, words) for i, words in enumerate(_sentences(self.words))]
        text = "".join(word.word for word in self.words)
        result: dict[str, Any] = {"text": text, "segments": segments, "language": self.stream.language or "en"}
        return result | self._tags(segments)

    def _tags(self, segments: list[dict[str, Any]]) -> dict[str, Any]:
        sounds = self.stream.sounds
        if not sounds.row_steps:
            return {}
        several = len(sounds.row_steps) > 1
        seconds = [steps_to_seconds(steps) for steps in sounds.row_steps]

        def by_resolution(found: list[Tensor]) -> Any:
            return dict(zip(seconds, found)) if several else found[0]

        out: dict[str, Any] = {"at_time_res": seconds if several else seconds[0]}
        for name, classes in sounds.classes.items():
            rows = self.rows.get(name, {})
            parts = [_join_rows(rows.get(steps, []), steps, len(classes)) for steps in sounds.row_steps]
            logits, coverage = (by_resolution(list(part)) for part in zip(*parts))
            if name == AUDIOSET:
                out |= {"audio_tag": logits, **audioset_values(classes)}
            else:  # the passes that segments come from are gone
                of_segments = torch.full((len(segments), len(classes)), math.nan)
                out[name] = {**classes.values(), "logits": logits, "segments": of_segments}
            out["audio_tag_coverage"] = coverage
        return {**out, "duration": self.stream.position, "task": self.stream.task}


def starts_sentence(word: Word, words: Sequence[Word]) -> bool:
    """Return whether a segment that has some words is over when another comes."""
    if not words:
        return False
    ended = words[-1].word.rstrip("\"'”’)]")[-1:] in tuple(SENTENCE_ENDS)
    return ended or word.start - words[-1].end > PAUSE or len(words) >= MAX_WORDS


def _sentences(words: Iterable[Word]) -> Iterator[list[Word]]:
    sentence: list[Word] = []
    for word in words:
        if starts_sentence(word, sentence):
            yield sentence
            sentence = []
        sentence.append(word)
    if sentence:
        yield sentence


def _segment(number: int, words: list[Word]) -> dict[str, Any]:
    text = "".join(word.word for word in words)
    return {
        "id": number,
        "seek": round(words[0].start * FRAMES_PER_SECOND),
        "start": words[0].start,
        "end": words[-1].end,
        "text": text,
        "tokens": [token for word in words for token in word.tokens],
        "temperature": 0.0,
        "avg_logprob": float(np.mean([math.log(max(word.probability, 1e-10)) for word in words])),
        "compression_ratio": compression_ratio(text),
        "no_speech_prob": 0.0,
        "words": [word.values() for word in words],
    }


def _join_rows(rows: Iterable[Row], steps: int, n_classes: int) -> tuple[Tensor, Tensor]:
    """Return logits ``(rows, classes)`` and coverage ``(rows,)`` from time 0 on, NaN and 0 where there was no row."""
    found = {round(row.start / steps_to_seconds(steps)): row for row in rows}
    n_rows = max(found, default=-1) + 1
    logits, coverage = torch.full((n_rows, n_classes), math.nan), torch.zeros(n_rows)
    for i, row in found.items():
        logits[i], coverage[i] = torch.from_numpy(row.logits), row.coverage
    return logits, coverage
