"""Transcribes the recordings of all clients with one thread, windows of several recordings in each batch."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import numpy as np
import torch
from starlette.exceptions import HTTPException

from ..audio import SAMPLE_RATE, stream_audio
from ..engine.heap import trim_heap
from .fair_queue import FairQueue
from .kept_results import KeptResults
from .limits import Limits
from .metrics import Metrics
from .recordings import BatchedSteps, Finished, InOrderSteps, Message, Opened, Outcome, Recording, transcribe_batch

logger = logging.getLogger("uvicorn.error")
T = TypeVar("T")

RETRY_SECONDS = 15
TRIM_SECONDS = 10.0
"""After so long, memory that work has freed is given back, which would grow to several hundred megabytes."""
MIN_OPEN = 4
"""Recordings that may be open even where each goes by itself: a short one need not wait for the end of a long one."""


class Engine:
    """Transcribes recordings, clients in turn.

    A few recordings are open at a time: their spectrograms are computed by threads of their own while others are
    transcribed. One thread runs the models, as PyTorch keeps a pool of threads for each that computes.

    Parameters
    ----------
    limits : Limits
        How many recordings may wait.
    batch_size : int
        Windows that are transcribed at once; so many recordings are open at most, or `MIN_OPEN`.
    metrics : Metrics
        Where it counts what it does.
    """

    def __init__(self, limits: Limits, batch_size: int, metrics: Metrics) -> None:
        self.limits, self.batch_size, self.metrics = limits, batch_size, metrics
        self.max_open = max(batch_size, MIN_OPEN)
        self.kept = KeptResults(limits.kept, limits.kept_hours, limits.keep_minutes)
        self.waiting: FairQueue[Recording] = FairQueue()
        self.opening: FairQueue[Recording] = FairQueue()
        self.open: FairQueue[Recording] = FairQueue()
        self._lock = threading.RLock()
        self._running = False
        self._trimmed_at = time.perf_counter()
        self._urgent: deque[Callable[[], None]] = deque()
        self._worker = ThreadPoolExecutor(1, "whisper_at")
        self._readers = ThreadPoolExecutor(2, "whisper_at-reader")
        metrics.watch_recordings("waiting", lambda: len(self.waiting))
        metrics.watch_recordings("open", lambda: len(self.opening) + len(self.open))

    @property
    def n_recordings(self) -> int:
        """Recordings that wait or are being transcribed."""
        with self._lock:
            return len(self.waiting) + len(self.opening) + len(self.open)

    def check_room(self, client: str) -> None:
        """Raise an HTTPException if no further recording of a client can wait: 429 if it has many, else 503."""
        headers = {"Retry-After": str(RETRY_SECONDS)}
        with self._lock:
            if self._has_free_place():
                return
            if (yours := self.waiting.count(client)) >= self.limits.waiting_per_client:
                raise HTTPException(429, f"{yours} recordings of yours are waiting; try again later", headers)
            if len(self.waiting) >= self.limits.waiting:
                raise HTTPException(503, "too many recordings are waiting; try again later", headers)

    def submit(self, recording: Recording) -> None:
        """Put a recording into the queue, or raise as `check_room`."""
        with self._lock:
            self.check_room(recording.client)
            self.waiting.add(recording.client, recording)
        self._open_more()

    def cancel(self, recording: Recording) -> None:
        """Stop with a recording: at once if it waits, else after the window that is being transcribed."""
        with self._lock:
            if recording.cancelled or recording.closed:
                return
            recording.cancelled = True
            waits = recording in list(self.waiting)
            self.waiting.remove(recording.client, recording)
        self.metrics.cancelled.inc()
        if waits:
            recording.close()
        self._wake()

    async def run_soon(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, which the models' thread does before the next batch."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)

        with self._lock:
            self._urgent.append(run)
        self._wake()
        return await asyncio.wrap_future(future)

    # --- opening ---------------------------------------------------------------------------------------------

    def _has_free_place(self) -> bool:
        """Whether one more recording would be opened at once."""
        return len(self.waiting) == 0 and len(self.opening) + len(self.open) < self.max_open

    def _next_to_open(self) -> Recording | None:
        """Return the recording whose turn it is to be opened.

        One of every client is open, where there is room; more of a client only until two batches of windows are ready.
        """
        if len(self.opening) + len(self.open) >= self.max_open:
            return None
        n_windows = sum(one.steps.n_windows for one in self.open if one.steps) + len(self.opening)
        for recording in self.waiting:
            is_first = self.opening.count(recording.client) + self.open.count(recording.client) == 0
            if is_first or n_windows < 2 * self.max_open:
                return recording
        return None

    def _open_more(self) -> None:
        with self._lock:
            while (recording := self._next_to_open()) is not None:
                self.waiting.remove(recording.client, recording)
                self.waiting.served(recording.client)
                self.opening.add(recording.client, recording)
                self._readers.submit(self._open, recording)

    def _open(self, recording: Recording) -> None:
        try:
            with closing(self._samples(recording)) as samples:
                try:
                    recording.open(samples)
                except ValueError as error:  # as of samples that are no numbers
                    raise HTTPException(400, f"{recording.name}: {error}") from None
            self._tell(recording, Opened(recording.seconds))
            if isinstance(recording.steps, BatchedSteps) and not recording.steps.n_windows:  # it is empty
                self._close(recording, recording.steps.finish())
            else:
                with self._lock:
                    self.opening.remove(recording.client, recording)
                    self.open.add(recording.client, recording)
        except Exception as error:
            self._close(recording, error)
        self._open_more()
        self._wake()

    def _samples(self, recording: Recording) -> Generator[np.ndarray, None, None]:
        """Yield the samples of a recording, and count its seconds.

        HTTPException if it cannot be read or is too long.
        """
        try:
            for block in stream_audio(recording.path, audio_track=recording.options.get("audio_track")):
                recording.seconds += len(block) / SAMPLE_RATE
                if recording.cancelled:
                    raise HTTPException(499, "the client has gone")
                if recording.seconds > self.limits.minutes * 60:
                    raise HTTPException(413, f"{recording.name} is longer than {self.limits.minutes:g} minutes")
                yield block
        except (RuntimeError, ValueError) as error:
            raise HTTPException(400, str(error).replace(str(recording.path), recording.name)) from None

    # --- transcribing ----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Have the worker look for work, if it does not already."""
        with self._lock:
            if not self._running and (len(self.open) or self._urgent):
                self._running = True
                self._worker.submit(self._work)

    def _work(self) -> None:
        while True:
            for _ in range(len(self._urgent)):  # those that come meanwhile have their turn after the next batch
                self._urgent.popleft()()
            self._drop_cancelled()
            if time.perf_counter() - self._trimmed_at > TRIM_SECONDS:
                trim_heap()
                self._trimmed_at = time.perf_counter()
            with self._lock:
                batch = self._next_batch()
                if not batch and self._urgent:
                    continue
                if not batch:
                    self._running = False
                    return
            begun = time.perf_counter()
            out_of_memory = False
            try:
                self._advance(batch)
            except torch.OutOfMemoryError:
                out_of_memory = True  # the error holds on to what the batch has computed until this clause ends
            except Exception as error:  # others go on
                for recording in dict.fromkeys(batch):
                    self._close(recording, error)
            if out_of_memory:
                self._use_less_memory(batch)
            self.metrics.work_seconds.inc(time.perf_counter() - begun)
            self.metrics.batch_windows.observe(len(batch))
            self._open_more()

    def _drop_cancelled(self) -> None:
        with self._lock:
            gone = [recording for recording in self.open if recording.cancelled]
        for recording in gone:
            self._close(recording)

    def _next_batch(self) -> list[Recording]:
        """Return whose next windows are to be transcribed together; a recording may be there several times."""
        in_turn = list(self.open)
        if not in_turn:
            return []
        first = in_turn[0]
        self.open.served(first.client)
        if not isinstance(first.steps, BatchedSteps):
            return [first]
        # one window of each client, and then another, until the batch is full
        windows: FairQueue[Recording] = FairQueue()
        for recording in in_turn:
            steps = recording.steps
            if isinstance(steps, BatchedSteps) and steps.batch_key == first.steps.batch_key:
                for _ in range(min(steps.n_windows, self.batch_size)):
                    windows.add(recording.client, recording)
        return list(windows)[: self.batch_size]

    def _advance(self, batch: list[Recording]) -> None:
        """Transcribe windows, and tell what came of them."""
        first = batch[0]
        outcomes: list[Outcome]
        if isinstance(first.steps, InOrderSteps):
            outcomes = [(first, first.steps.advance())]
        else:
            outcomes = transcribe_batch(batch)
        for recording, message in outcomes:
            if isinstance(message, (Finished, Exception)):
                self._close(recording, message)
            elif message:
                self._tell(recording, message)

    def _use_less_memory(self, batch: list[Recording]) -> None:
        """Go on with smaller batches; the windows of this one are still to be transcribed."""
        steps = batch[0].steps
        if len(batch) == 1 or not isinstance(steps, BatchedSteps):
            return self._close(batch[0], torch.OutOfMemoryError("out of memory"))
        self.batch_size = (len(batch) + 1) // 2
        warnings.warn(f"out of memory: going on with batches of {self.batch_size} windows")
        steps.decoder.free_memory()

    def _close(self, recording: Recording, message: Message | None = None) -> None:
        """Be done with a recording: delete all of it, and only then tell its result or what went wrong."""
        with self._lock:
            self.opening.remove(recording.client, recording)
            self.open.remove(recording.client, recording)
            recording.closed = True
        is_kept = recording.keep_as is not None and not recording.cancelled
        result = message.result if isinstance(message, Finished) and is_kept else None
        recording.close(keep_file=result is not None)
        if result is not None:
            self.kept.add(recording, result)
        if isinstance(message, Exception) and not isinstance(message, HTTPException):
            self.metrics.errors.labels(type(message).__name__).inc()
            logger.error("a recording failed", exc_info=message)
        if isinstance(message, Finished):
            self.metrics.audio_seconds.inc(recording.seconds)
        if message is not None:
            self._tell(recording, message)

    def _tell(self, recording: Recording, message: Message) -> None:
        if not recording.cancelled:
            recording.notify(message)
