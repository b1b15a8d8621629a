"""Results that clients asked to keep: files of any format can be had of them, and nothing is heard twice."""

from __future__ import annotations

import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ..audio import readable
from .recordings import Recording


@dataclass
class KeptResult:
    """The result of a recording, and its file.

    Attributes
    ----------
    id : str
        Which nobody guesses.
    client : str
        Whose it is.
    filename : str
        As the client named it.
    seconds : float
        Length of the recording.
    result : dict
        What `transcribe` returned.
    audio : str or path
        The recording, for the waveform of a picture.
    folder : TemporaryDirectory
        Where it lies.
    read_at : float
        When it was last read, by a clock that only goes forward.
    """

    id: str
    client: str
    filename: str
    seconds: float
    result: dict[str, Any]
    audio: Any
    folder: tempfile.TemporaryDirectory[str]
    read_at: float


def new_id() -> str:
    """Return an id for a result."""
    return secrets.token_urlsafe(16)


class KeptResults:
    """The latest results.

    Parameters
    ----------
    count : int
        So many are kept at most.
    hours : float
        And of so many hours of recordings, the latest in any case.
    minutes : float
        One that is not read for so long is forgotten, when the next one is asked for or comes.
    """

    def __init__(self, count: int, hours: float, minutes: float) -> None:
        self.count, self.hours, self.minutes = count, hours, minutes
        self._results: OrderedDict[str, KeptResult] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, recording: Recording, result: dict[str, Any]) -> None:
        """Keep the result of a recording under the id that it has for this."""
        assert recording.keep_as is not None
        kept = KeptResult(
            id=recording.keep_as,
            client=recording.client,
            filename=recording.name,
            seconds=recording.seconds,
            result=result,
            audio=readable(recording.path, recording.options.get("audio_track")),
            folder=recording.folder,
            read_at=time.monotonic(),
        )
        with self._lock:
            self._results[kept.id] = kept
            self._forget_old()

    def find(self, id: str, client: str) -> KeptResult | None:
        """Return a result of a client; None if there is none (any more)."""
        with self._lock:
            self._forget_old()
            kept = self._results.get(id)
            if kept is None or kept.client != client:
                return None
            kept.read_at = time.monotonic()
            self._results.move_to_end(id)
            return kept

    def remove(self, id: str, client: str) -> bool:
        """Forget a result of a client; return whether there was one."""
        if self.find(id, client) is None:
            return False
        with self._lock:
            self._forget(id)
        return True

    def ids(self) -> list[str]:
        """Return the ids of all results, that which was not read for longest first."""
        with self._lock:
            return list(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def _forget_old(self) -> None:
        oldest = time.monotonic() - 60 * self.minutes
        for id in [id for id, kept in self._results.items() if kept.read_at < oldest]:
            self._forget(id)
        while len(self._results) > 1 and self._is_too_much():
            self._forget(next(iter(self._results)))

    def _is_too_much(self) -> bool:
        hours = sum(kept.seconds for kept in self._results.values()) / 3600
        return len(self._results) > self.count or hours > self.hours

    def _forget(self, id: str) -> None:
        if (kept := self._results.pop(id, None)) is not None:
            kept.folder.cleanup()
