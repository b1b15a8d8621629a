"""Recordings are read and decoded in threads while the model is busy with those before."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..batched import PreparedRecording
from ..limits import LimitedRecording
from ..mel import LogMel
from .fetch import Fetcher, check_float_wave, sha256_and_size
from .items import Item
from .settings import ArchiveSettings

MEL_IN_MEMORY = 16 << 20
"""Bytes of a spectrogram that wait in memory, 8 minutes of 80 mels; the whole of a longer one is on disk."""

T = TypeVar("T")


@dataclass
class Prepared:
    """A recording that is ready for the model, or why it is not.

    Attributes
    ----------
    item : Item
        With the size and time that it had when it was read.
    sha256 : str, optional
        Of its bytes, unless it could not be read.
    copy : Path, optional
        Its copy in the working folder, until it is deleted.
    copied_to : str, optional
        Where that is, or was.
    recording : PreparedRecording, optional
        None if there is an error, or it did not have to be decoded.
    error : Exception, optional
        What went wrong.
    seconds : float
        That reading and decoding took, by the clock.
    """

    item: Item
    sha256: str | None = None
    copy: Path | None = None
    copied_to: str | None = None
    recording: PreparedRecording | None = None
    error: Exception | None = None
    seconds: float = 0.0

    def close(self) -> None:
        """Delete the spectrogram and the copy."""
        if self.recording is not None:
            self.recording.mel.close()
        if self.copy is not None:
            self.copy.unlink(missing_ok=True)
        self.recording = self.copy = None


class Preparer:
    """Reads, hashes and decodes recordings.

    Parameters
    ----------
    settings : ArchiveSettings
        With the limits.
    work : Path
        Where copies go.
    n_mels : int
        Of the model.
    is_kept : callable
        ``is_kept(item, sha256)``: whether there is a row for these bytes already, so that they are not decoded.
    """

    def __init__(
        self, settings: ArchiveSettings, work: Path, n_mels: int, is_kept: Callable[[Item, str], bool]
    ) -> None:
        self.settings, self.n_mels, self.is_kept = settings, n_mels, is_kept
        self.fetcher = Fetcher(work, settings.max_bytes, settings.column)

    def prepare(self, item: Item, copy: Path | None) -> Prepared:
        """Return a recording ready for the model. `copy` is what the fetcher made of it."""
        began = time.perf_counter()
        prepared = Prepared(item, copy=copy, copied_to=None if copy is None else str(copy))
        try:
            path = os.fspath(copy or item.path)
            before = os.stat(path)
            prepared.sha256, size = sha256_and_size(path)
            prepared.item = item._replace(size=size, modified=item.modified if copy else before.st_mtime_ns)
            if not size:  # of which a tar file may hold very many: no program is started for them
                raise ValueError(f"{item.label} is empty")
            if not self.is_kept(item, prepared.sha256):
                check_float_wave(path, item.label)
                track = self.settings.transcribe.get("audio_track")
                source = LimitedRecording(path, self.settings.limits, item.label, track)
                prepared.recording = PreparedRecording(source, LogMel(source, self.n_mels, in_memory=MEL_IN_MEMORY))
            after = os.stat(path)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise RuntimeError(f"{item.label} was changed while it was read")
        except Exception as error:
            prepared.close()
            prepared.error = error
        prepared.seconds = time.perf_counter() - began
        return prepared

    def prepare_all(self, items: Iterable[Item]) -> Iterator[Prepared]:
        """Yield recordings in their order; `ahead` of them may be ready before they are asked for."""
        # tar files and tables are read from front to back: by one thread, which takes recordings in their order
        with (
            ThreadPoolExecutor(1, "fetch") as fetching,
            ThreadPoolExecutor(self.settings.decode_threads, "decode") as decoding,
        ):

            def submit(item: Item) -> Future[Prepared]:
                copy = fetching.submit(self.fetcher.fetch, item)
                return decoding.submit(self._prepare_fetched, item, copy)

            pending: deque[Future[Prepared]] = deque()
            try:
                for item in items:
                    pending.append(submit(item))
                    if len(pending) > self.settings.ahead:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()
                for future in pending:
                    if not future.cancelled():
                        future.result().close()
                self.fetcher.close()

    def _prepare_fetched(self, item: Item, copy: Future[Path | None]) -> Prepared:
        try:
            return self.prepare(item, copy.result())
        except Exception as error:
            return Prepared(item, error=error)
