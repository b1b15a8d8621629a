"""A realtime transcription session: events of a client in, events of the server out, by OpenAI's names.

Nothing here knows of WebSockets: `realtime_socket` carries the events.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from .realtime_audio import AudioFormat

TRANSCRIPTION = "conversation.item.input_audio_transcription"
PARTIAL = "item.input_audio_transcription.partial"
"""What a session has in ``include`` to be told the words that may still change."""
APPEND = "input_audio_buffer.append"
DEFAULT_SILENCE = 0.5
"""Seconds without words after which an item is complete, where turns are detected."""
MAX_LISTEN_SECONDS = 2.4
"""So much of the sound that has come is given to a stream at a time, for one pass, so that others have their turn."""

Event = dict[str, Any]


class StreamMessage(Protocol):
    """What a stream tells, as `whisper_at.live.messages` has them."""

    def to_jsonable(self) -> dict[str, Any]:
        """Return what it says, and its ``type``."""


class LiveStream(Protocol):
    """What a session needs of `whisper_at.live.Stream`."""

    @property
    def position(self) -> float:
        """Seconds that were fed."""

    def feed(self, samples: np.ndarray, *, catch_up: bool) -> Iterable[StreamMessage]:
        """Take sound; with `catch_up`, make one pass over all of it."""

    def finish(self) -> Iterable[StreamMessage]:
        """Tell what is left."""


class SessionError(Exception):
    """What a client did wrong; the session goes on."""


class RealtimeSession:
    """A session of one client.

    Sound that was appended waits until `listen` gives it to the stream: whoever lags behind lets some of it come
    together, and one pass is made over that.

    Parameters
    ----------
    open_stream : callable
        Returns a `LiveStream`; called with the keyword arguments ``model`` (a name), ``language``, ``prompt``,
        ``position``, ``at_time_res`` and ``include_classes``.
    """

    def __init__(self, open_stream: Callable[..., LiveStream]) -> None:
        self.open_stream = open_stream
        self.settings: dict[str, Any] = {"model": "", "language": None, "prompt": "", "at_time_res": None}
        self.settings["include_classes"] = ""
        self.include: list[str] = []
        self.silence: float | None = DEFAULT_SILENCE
        self.format = AudioFormat()
        self.stream: LiveStream | None = None
        self.heard = 0.0  # seconds of all streams so far
        self._unheard = bytearray()
        self._numbers = itertools.count()
        self._id = f"sess_{uuid.uuid4().hex[:20]}"
        self._new_item(None)

    def created(self) -> Event:
        """Return the first event."""
        return self._event("session.created", session=self.describe())

    @property
    def unheard(self) -> float:
        """Seconds of sound that were appended and wait for `listen`."""
        return len(self._unheard) / self.format.bytes_per_second

    def handle(self, event: Any) -> Iterator[Event]:
        """Yield the answers to an event of the client, and first what is told of the sound that came before it.

        To append sound takes no model, and is answered by `listen`.
        """
        event_id = event.get("event_id") if isinstance(event, dict) else None
        return self._with_errors(self._handle(event), event_id)

    def listen(self) -> Iterator[Event]:
        """Give the stream what waits, 2.4 s at most, and yield what it tells."""
        return self._with_errors(self._listen(), None)

    def end(self) -> Iterator[Event]:
        """Yield what is left when the client has no more sound."""
        if self.stream is not None:
            yield from self._complete(self.stream.finish())
            self.stream = None

    def describe(self) -> dict[str, Any]:
        """Return the session as clients know it."""
        transcription = {name: self.settings[name] for name in ("model", "language", "prompt")}
        detection = None if self.silence is None else {"type": "server_vad", "silence_duration_ms": self.silence * 1000}
        sound = {"type": self.format.name, "rate": self.format.rate}
        listening = {"format": sound, "transcription": transcription, "turn_detection": detection}
        tags = {name: self.settings[name] for name in ("at_time_res", "include_classes")}
        described = {"object": "realtime.transcription_session", "id": self._id, "type": "transcription"}
        return {**described, "audio": {"input": listening}, "include": self.include, **tags}

    def _with_errors(self, events: Iterator[Event], event_id: Any) -> Iterator[Event]:
        """Yield events, and what the client did wrong as one."""
        try:
            yield from events
        except (SessionError, ValueError) as error:
            told = {"type": "invalid_request_error", "message": str(error), "code": None, "param": None}
            yield self._event("error", error=told | {"event_id": event_id})

    # --- events of the client ---

    def _handle(self, event: Any) -> Iterator[Event]:
        kind = event["type"] if isinstance(event, dict) and isinstance(event.get("type"), str) else ""
        handler = self._handlers().get(kind)
        if handler is None:
            raise SessionError(f"there is no event {kind!r} here; there are {', '.join(self._handlers())}")
        while kind != APPEND and self._unheard:
            yield from self._listen()
        yield from handler(event)

    def _handlers(self) -> dict[str, Callable[[Event], Iterator[Event]]]:
        return {
            "session.update": self._update,
            "transcription_session.update": self._update,
            APPEND: self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
        }

    def _update(self, event: Event) -> Iterator[Event]:
        session = _mapping(event.get("session"), "session")
        listening = _mapping(_mapping(session.get("audio"), "audio").get("input"), "audio.input")
        # the older form has these keys beside one another
        transcription = listening.get("transcription", session.get("input_audio_transcription"))
        settings = dict(self.settings)
        for name in ("model", "language", "prompt"):
            if (value := _mapping(transcription, "transcription").get(name)) is not None:
                if not isinstance(value, str):
                    raise SessionError(f"{name}: text, not {value!r:.60}")
                settings[name] = value
        settings["at_time_res"] = _seconds(session.get("at_time_res", settings["at_time_res"]))
        settings["include_classes"] = str(session.get("include_classes", settings["include_classes"]))
        sound = listening.get("format", session.get("input_audio_format"))
        older = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
        if isinstance(sound, str):
            sound = {"type": older.get(sound, sound)}
        new_format = self.format
        if sound is not None:
            asked = _mapping(sound, "format")
            new_format = AudioFormat(asked.get("type", "audio/pcm"), asked.get("rate") or 24000)
        if "turn_detection" in listening or "turn_detection" in session:
            detection = listening.get("turn_detection", session.get("turn_detection"))
            self.silence = None if detection is None else _silence(_mapping(detection, "turn_detection"))
        if isinstance(session.get("include"), list):
            self.include = [str(name) for name in session["include"]]
        opened = self._open(settings)  # which finds out what is wrong with them
        yield from self.end()
        self.settings, self.format, self.stream = settings, new_format, opened
        yield self._event("session.updated", session=self.describe())

    def _append(self, event: Event) -> Iterator[Event]:
        self._unheard += self.format.decode(event.get("audio"))
        return iter(())

    def _commit(self, event: Event) -> Iterator[Event]:
        if self.stream is None or self.stream.position <= self.begun:
            raise SessionError("input_audio_buffer.commit: no sound has come")
        yield from self._complete(self.stream.finish())
        self.stream = None

    def _clear(self, event: Event) -> Iterator[Event]:
        self.stream = None
        self._new_item(self.previous)
        yield self._event("input_audio_buffer.cleared")

    # --- what a stream tells ---

    def _listen(self) -> Iterator[Event]:
        size = round(MAX_LISTEN_SECONDS * self.format.bytes_per_second)
        samples = self.format.read(bytes(self._unheard[:size]))
        del self._unheard[:size]
        if self.stream is None:
            self.stream = self._open(self.settings)
        yield from self._tell(self.stream.feed(samples, catch_up=True))
        self.heard = self.stream.position
        is_over = self.silence is not None and self.heard - self.last_word >= self.silence
        if is_over and self.text and not self.partial:
            yield from self._complete(())

    def _open(self, settings: dict[str, Any]) -> LiveStream:
        return self.open_stream(**settings, position=self.heard)

    def _new_item(self, previous: str | None) -> None:
        self.previous, self.item = previous, f"item_{uuid.uuid4().hex[:20]}"
        self.text, self.partial, self.begun, self.last_word = "", "", self.heard, self.heard

    def _tell(self, messages: Iterable[StreamMessage]) -> Iterator[Event]:
        for message in messages:
            values = message.to_jsonable()
            kind = values.pop("type")
            if kind in ("final", "partial"):
                if values["text"].strip() and not self.text and not self.partial:
                    start = round(values["start"] * 1000)
                    yield self._event("input_audio_buffer.speech_started", audio_start_ms=start, item_id=self.item)
                yield from self._tell_words(kind, values)
            elif kind in ("event_start", "event_end"):
                yield self._event("audio_event" if kind == "event_end" else "audio_event.started", **values)

    def _tell_words(self, kind: str, values: dict[str, Any]) -> Iterator[Event]:
        text = values["text"] if self.text else values["text"].lstrip()
        of_item = {"item_id": self.item, "content_index": 0}
        timed = {name: values[name] for name in ("start", "end", "words") if name in values}
        if kind == "final":
            self.partial = ""
            if text:
                self.text += text
                self.last_word = values["end"]
                yield self._event(f"{TRANSCRIPTION}.delta", **of_item, delta=text, **timed)
        else:
            self.partial = text
            if PARTIAL in self.include:
                yield self._event(f"{TRANSCRIPTION}.partial", **of_item, text=text, **timed)

    def _complete(self, messages: Iterable[StreamMessage]) -> Iterator[Event]:
        """Yield what is left of an item, and that it is complete."""
        yield from self._tell(messages)
        if self.stream is not None:
            self.heard = self.stream.position
        yield self._event("input_audio_buffer.committed", item_id=self.item, previous_item_id=self.previous)
        usage = {"type": "duration", "seconds": round(self.heard - self.begun, 3)}
        of_item = {"item_id": self.item, "content_index": 0}
        yield self._event(f"{TRANSCRIPTION}.completed", **of_item, transcript=self.text.strip(), usage=usage)
        self._new_item(self.item)

    def _event(self, type: str, **values: Any) -> Event:
        return {"type": type, "event_id": f"event_{next(self._numbers)}", **values}


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SessionError(f"{name}: an object, not {value!r:.60}")
    return value


def _seconds(value: Any) -> float | None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise SessionError(f"at_time_res: seconds, a multiple of 0.4, not {value!r:.60}")


def _silence(detection: dict[str, Any]) -> float:
    milliseconds = detection.get("silence_duration_ms")
    if milliseconds is None:
        return DEFAULT_SILENCE
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)) or not 0 <= milliseconds <= 60000:
        raise SessionError(f"silence_duration_ms: a number from 0 to 60000, not {milliseconds!r:.60}")
    return milliseconds / 1000
