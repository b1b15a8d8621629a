"""Words and sounds while they happen: a stream over any Whisper."""

from .messages import EventEnd, EventStart, Final, Message, Partial, Row, Word
from .stream import Stream, StreamState
from .transcript import Transcript

__all__ = [
    "EventEnd",
    "EventStart",
    "Final",
    "Message",
    "Partial",
    "Row",
    "Stream",
    "StreamState",
    "Transcript",
    "Word",
]
