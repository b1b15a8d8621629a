"""What a running ffmpeg says: of a file, of how it decodes it, and of what goes wrong.

It says all this on one stream, and a damaged file makes it say more than a pipe holds. A thread reads along and keeps
what matters, in memory that does not grow.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LOGLEVEL = "+level+verbose"
"""For ``-loglevel``: every line names its level, and there are lines on the layout of channels and on clocks."""
MAX_DESCRIPTION = 1 << 22
"""Characters of what is said of a file that are kept: the first ones."""
MAX_ERRORS = 1 << 12
"""Characters of errors that are kept: the last ones."""
MAX_LINE = 1 << 16
"""Bytes of a line beyond which it counts as several."""

MARKER = b"\0"  # which ffmpeg never writes: its messages are C strings
LEVELS = re.compile(r"((?:\[[^\]]* @ [^\]]*\] )*)\[(panic|fatal|error|warning|info|verbose)\] ")


class FfmpegMessages:
    r"""What one ffmpeg says, while it runs and afterwards.

    A line without a level (`LOGLEVEL`) belongs to the one before it; lines before all others are errors.

    Examples
    --------
    >>> messages = FfmpegMessages()
    >>> with messages.collect() as stderr:
    ...     _ = os.write(stderr, b"[info] Stream mapping:\n[mp3 @ 0x1] [error] Header missing\n")
    ...     messages.description
    'Stream mapping:'
    >>> messages.errors
    '[mp3 @ 0x1] Header missing'
    """

    def __init__(self) -> None:
        self._description: list[str] = []
        self._room = MAX_DESCRIPTION
        self._errors = ""
        self._level = "error"
        self._rest = b""  # of a line whose end has not come
        self._writer: int | None = None
        self._is_ending = False
        self._markers = threading.Semaphore(0)

    @contextmanager
    def collect(self) -> Iterator[int]:
        """Collect what is written to a pipe, whose descriptor this yields, until the block ends.

        Whatever writes there should have ended by then.
        """
        reader, self._writer = os.pipe()
        thread = threading.Thread(target=self._read, args=(reader,), daemon=True)
        thread.start()
        try:
            yield self._writer
        finally:
            # not the end of the pipe: a process that was forked meanwhile may hold it open for long
            self._is_ending = True
            os.write(self._writer, MARKER)
            if not sys.is_finalizing():  # or the thread can never run again
                thread.join()
            os.close(self._writer)
            os.close(reader)
            self._writer = None
            self._add(self._rest)

    @property
    def description(self) -> str:
        """What ffmpeg has said until now of its input, of its output and of the way between, without levels."""
        self._catch_up()
        return "\n".join(self._description)

    @property
    def errors(self) -> str:
        """The last errors of which ffmpeg has told until now, without levels."""
        self._catch_up()
        return self._errors.rstrip("\n")

    def _catch_up(self) -> None:
        """Wait until all is read that was written before."""
        if self._writer is not None:
            os.write(self._writer, MARKER)
            self._markers.acquire()

    def _read(self, reader: int) -> None:
        while True:
            chunk = os.read(reader, MAX_LINE)
            *lines, self._rest = (self._rest + chunk.replace(MARKER, b"")).split(b"\n")
            if len(self._rest) > MAX_LINE:
                lines, self._rest = [*lines, self._rest], b""
            for line in lines:
                self._add(line)
            if MARKER in chunk:
                self._markers.release()
                if self._is_ending:
                    return

    def _add(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        if levels := LEVELS.match(text):
            self._level = levels[2]
            text = levels[1] + text[levels.end() :]
        if self._level in ("panic", "fatal", "error"):
            self._errors = f"{self._errors}{text}\n"[-MAX_ERRORS:]
        elif self._level in ("info", "verbose") and len(text) <= self._room:
            self._description.append(text)
            self._room -= len(text)
