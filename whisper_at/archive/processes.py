"""Several workers on one machine, each a process with a model of its own. One that dies is replaced."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from .settings import ArchiveSettings
from .store import Shard
from .worker import Report, ShardReport, Worker

MAX_ATTEMPTS = 3
"""Workers that may die over a shard before it is left undone."""


def run_in_processes(
    shards: Sequence[Shard], settings: ArchiveSettings, description: Mapping[str, Any], workers: int
) -> Iterator[Report]:
    """Do shards by several workers; yield their reports as they come.

    A shard whose worker has died, for lack of memory say, is given to another one.

    Raises
    ------
    RuntimeError
        If a worker cannot go on, as with a full disk; or, when everything else is done, if a shard has cost
        `MAX_ATTEMPTS` workers.
    """
    waiting = deque(shards)
    attempts = dict.fromkeys((shard.number for shard in shards), 0)
    given_up: list[Shard] = []
    running = [_Process(settings, description) for _ in range(min(workers, len(shards)))]
    try:
        while running:
            for connection in wait([process.connection for process in running]):
                process = next(p for p in running if p.connection is connection)
                try:
                    message = process.connection.recv()
                except (EOFError, OSError):
                    running.remove(process)
                    process.join()
                    for shard in process.shards:
                        attempts[shard.number] += 1
                        if attempts[shard.number] < MAX_ATTEMPTS:
                            waiting.append(shard)
                        else:
                            given_up.append(shard)
                    if process.shards:
                        warnings.warn(f"a worker died (exit status {process.process.exitcode}); another one goes on")
                    if waiting:
                        running.append(_Process(settings, description))
                    continue
                if message is None:  # it asks for work
                    process.give(waiting.popleft() if waiting else None)
                elif isinstance(message, str):
                    raise RuntimeError(message)
                else:
                    if isinstance(message, ShardReport):
                        process.shards = [s for s in process.shards if s.number != message.number]
                    yield message
    finally:
        for process in running:
            process.end()
    if given_up:
        numbers = ", ".join(str(shard.number) for shard in given_up)
        raise RuntimeError(
            f"{MAX_ATTEMPTS} workers died over each of the shards {numbers}; run it again with a smaller batch_size"
        )


class _Process:
    """A worker in a process of its own, and the shards that it has been given."""

    def __init__(self, settings: ArchiveSettings, description: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")  # threads of PyTorch's and Numba's do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, settings, description), daemon=True)
        self.process.start()
        theirs.close()
        self.shards: list[Shard] = []

    def give(self, shard: Shard | None) -> None:
        """Give it work, or None where there is no more."""
        with contextlib.suppress(OSError):  # it may have died, which is seen where its messages are read
            self.connection.send(shard)
        if shard is not None:
            self.shards.append(shard)

    def join(self) -> None:
        """Wait for its end."""
        self.process.join()
        self.connection.close()

    def end(self) -> None:
        """End it at once; what it has not written is done again by the next run."""
        self.process.kill()
        self.join()


def _work(connection: Connection, settings: ArchiveSettings, description: Mapping[str, Any]) -> None:
    """Run a worker on the shards that come through a pipe."""

    def shards() -> Iterator[Shard]:
        while True:
            connection.send(None)
            shard = connection.recv()
            if shard is None:
                return
            yield shard

    try:
        for report in Worker(settings, description).run(shards()):
            connection.send(report)
    except (EOFError, BrokenPipeError):  # whoever started this has gone
        return
    except Exception as error:
        traceback.print_exc()
        connection.send(" ".join(f"{type(error).__name__}: {error}".split()))
