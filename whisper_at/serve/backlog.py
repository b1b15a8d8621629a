"""What a realtime client has sent ahead of its session: a little is in memory, all that is more on disk."""

from __future__ import annotations

import asyncio
import io
import struct
import tempfile
from collections import deque
from typing import IO

MEMORY_BYTES = 1_000_000
"""A file that is longer is on disk."""
FILE_BYTES = 16_000_000
"""A file that is longer gets no further message, so that it can be deleted when it has been read."""
LENGTH = struct.Struct("<Q")


class Backlog:
    """Messages in the order they came, for one task that puts and one that gets.

    A connection has to be read while its session is busy: a ping that waits behind sound for twenty seconds has most
    clients give up.

    Parameters
    ----------
    max_bytes : float
        Who puts waits while there are so many.

    Examples
    --------
    >>> async def oldest_of_two():
    ...     with Backlog(max_bytes=1000) as backlog:
    ...         await backlog.put(b"one")
    ...         await backlog.put(b"two")
    ...         return await backlog.get(), len(backlog)
    >>> asyncio.run(oldest_of_two())
    (b'one', 1)
    """

    def __init__(self, max_bytes: float) -> None:
        self.max_bytes = max_bytes
        self._files: deque[IO[bytes]] = deque()
        self._position = 0  # of the oldest message in the first file
        self._messages = self._bytes = 0
        self._changed = asyncio.Condition()

    def __enter__(self) -> Backlog:
        return self

    def __exit__(self, *_: object) -> None:
        """Delete all of it."""
        while self._files:
            self._files.popleft().close()

    def __len__(self) -> int:
        return self._messages

    async def put(self, message: bytes) -> None:
        """Add a message, when there is room for it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._bytes < self.max_bytes)
            if not self._files or _size(self._files[-1]) > FILE_BYTES:
                self._files.append(tempfile.SpooledTemporaryFile(MEMORY_BYTES))  # noqa: SIM115 - closed when it is read
            self._files[-1].write(LENGTH.pack(len(message)) + message)
            self._messages, self._bytes = self._messages + 1, self._bytes + len(message)
            self._changed.notify_all()

    async def get(self) -> bytes:
        """Take the oldest message, when there is one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._messages > 0)
            file = self._files[0]
            file.seek(self._position)
            (size,) = LENGTH.unpack(file.read(LENGTH.size))
            message = file.read(size)
            self._position = file.tell()
            if self._position == _size(file):
                self._files.popleft().close()
                self._position = 0
            self._messages, self._bytes = self._messages - 1, self._bytes - len(message)
            self._changed.notify_all()
            return message


def _size(file: IO[bytes]) -> int:
    """Return the bytes of a file, and go to its end."""
    file.seek(0, io.SEEK_END)
    return file.tell()
