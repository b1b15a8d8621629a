"""Reading of ``.xz`` streams that may be crafted.

Their headers say how much memory unpacking takes, up to 4 GB, and `lzma.LZMAFile` gives whatever they ask for.
"""

from __future__ import annotations

import io
import lzma
import os
from typing import IO, Any

MAX_MEMORY = 128 << 20
"""Bytes that unpacking may take: ``xz -9``, which asks for the most of all its levels, needs 65 MB."""
CHUNK_BYTES = 1 << 16


def open_xz(packed: IO[bytes]) -> IO[bytes]:
    """Return the unpacked content of a stream, as a file that can seek: backwards by unpacking from the start again.

    Reading raises `lzma.LZMAError` where more than `MAX_MEMORY` is asked for or the stream is damaged, and EOFError
    where it is cut short. Closing it closes what it reads from.
    """
    return io.BufferedReader(_XzStream(packed), CHUNK_BYTES)


class _XzStream(io.RawIOBase):
    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._position = 0
        self._decompressor = _new_decompressor()
        self._is_between = False  # one stream has ended, and another may follow

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        """Return at most so many bytes, none at the end."""
        data = b""
        while size and not data:
            unused = b""
            if self._decompressor.eof:
                unused = self._decompressor.unused_data
                self._decompressor, self._is_between = _new_decompressor(), True
            if self._is_between:  # zeros in fours may stand between streams, and after the last
                unused = (unused or self._packed.read(CHUNK_BYTES)).lstrip(b"\0")
                while not unused and (more := self._packed.read(CHUNK_BYTES)):
                    unused = more.lstrip(b"\0")
                if not unused:
                    return b""
                self._is_between = False
            elif self._decompressor.needs_input:
                unused = self._packed.read(CHUNK_BYTES)
                if not unused:
                    raise EOFError("it ends before its end-of-stream marker")
            data = self._decompressor.decompress(unused, size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("where an unpacked stream ends is not known before it is read")
        if offset < self._position:
            self._packed.seek(0)
            self._position, self._decompressor, self._is_between = 0, _new_decompressor(), False
        while self._position < offset and self._read(min(offset - self._position, CHUNK_BYTES)):
            pass
        return self._position

    def close(self) -> None:
        self._packed.close()
        super().close()


def _new_decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=MAX_MEMORY)
