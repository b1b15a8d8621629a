"""What a stream tells: words, rows of tags, and the beginnings and ends of events. All times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..checkpoints.files import to_jsonable


@dataclass(frozen=True)
class Word:
    """A word with the space before it and its punctuation, as ``words`` of `transcribe` have them."""

    word: str
    start: float
    end: float
    probability: float
    tokens: tuple[int, ...] = field(default=(), repr=False)

    def values(self) -> dict[str, Any]:
        """Return what results say of a word."""
        return {"word": self.word, "start": self.start, "end": self.end, "probability": self.probability}


class Message:
    """One of the things that `Stream.feed` returns."""

    type: ClassVar[str]

    def values(self) -> dict[str, Any]:
        """Return what the message says, by name."""
        return dict(vars(self))

    def to_jsonable(self) -> dict[str, Any]:
        """Return the message as JSON can hold it, with its ``type`` first."""
        values: dict[str, Any] = to_jsonable({"type": self.type, **self.values()})
        return values


@dataclass(frozen=True)
class _Words(Message):
    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """All words, as they follow what was said before."""
        return "".join(word.word for word in self.words)

    def values(self) -> dict[str, Any]:
        """Return text, start and end of all, and the words."""
        times = {"start": self.words[0].start, "end": self.words[-1].end} if self.words else {}
        return {"text": self.text, **times, "words": [word.values() for word in self.words]}


class Final(_Words):
    """Words that follow all final words before them, and do not change any more."""

    type = "final"


class Partial(_Words):
    """What the words after the final ones seem to be; it replaces the partial words before, and may be nothing."""

    type = "partial"


@dataclass(frozen=True)
class Row(Message):
    """Tags of some seconds, by one head.

    Attributes
    ----------
    start, end : float
        Seconds on the grid of rows, from the start of the stream at position 0.
    head : str
        ``audio_tag`` is AudioSet's.
    steps : int
        Length of a full row, in steps of 0.4 s.
    coverage : float
        The share of the row that was heard, 0…1.
    tags : list of dict
        As `whisper_at.tagging.named_rows.tag_rows` names them.
    logits : ndarray, shape (classes,)
        All of the row, which JSON leaves out.
    """

    type = "row"
    start: float
    end: float
    head: str
    steps: int
    coverage: float
    tags: list[dict[str, Any]]
    logits: np.ndarray = field(repr=False, compare=False)

    def values(self) -> dict[str, Any]:
        """Return all but the logits."""
        return {name: value for name, value in vars(self).items() if name not in ("steps", "logits")}


@dataclass(frozen=True)
class EventStart(Message):
    """A class begins to sound; ``mid`` is there for AudioSet's classes."""

    type = "event_start"
    start: float
    name: str
    index: int
    mid: str | None
    probability: float
    head: str


@dataclass(frozen=True)
class EventEnd(Message):
    """A class that has begun, at ``start``, has ended; the probability is the highest of its rows."""

    type = "event_end"
    start: float
    end: float
    name: str
    index: int
    mid: str | None
    probability: float
    head: str
