"""How commands report errors: one line each. A reader of their output who goes away does not stop them."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

TRACEBACK_VARIABLE = "WHISPER_AT_TRACEBACK"
"""Environment variable that makes commands print where in the program an error arose."""


INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of the signal."""


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def report(message: str) -> None:
    """Print a line on stderr, after the traceback of the current error if `TRACEBACK_VARIABLE` asks for it."""
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    if sys.stdout is not None:  # as where a program has no console
        _flush(sys.stdout)
    if sys.stderr is not None:
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"  # a program's own stream takes any text
        print(message.encode(encoding, errors="replace").decode(encoding), file=sys.stderr)
        _flush(sys.stderr)


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print warnings without the line of the program that they come from, unless `TRACEBACK_VARIABLE` asks for it."""
    previous = warnings.formatwarning

    def format_warning(message: Warning | str, *_args: Any, **_kwargs: Any) -> str:
        return f"whisper-at: warning: {' '.join(str(message).split())}\n"

    if not os.environ.get(TRACEBACK_VARIABLE):
        warnings.formatwarning = format_warning
    try:
        yield
    finally:
        warnings.formatwarning = previous


def _flush(stream: Any) -> None:
    """Flush a stream, if it is of a kind that does; a program's own need not."""
    if hasattr(stream, "flush"):
        stream.flush()


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
    """Go on when whoever reads stdout or stderr has gone (``whisper-at … | head -1``): what else is printed is lost."""
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream: TextIO | None = getattr(sys, name)
            if stream is not None:  # as where a program has no console
                guarded = _UntilClosed(stream)
                redirect = contextlib.redirect_stdout if name == "stdout" else contextlib.redirect_stderr
                stack.enter_context(redirect(guarded))
                stack.callback(guarded.flush)  # while the stream can still be replaced
        yield


class _UntilClosed:
    """A stream of text that goes nowhere once the other end of its pipe is closed."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            _flush(self.stream)
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        """Point the stream at nothing, so that what it has buffered, and the flush at exit, go there."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, self.stream.fileno())
        except (AttributeError, OSError):  # a program's own stream, which is no file
            self.stream = open(os.devnull, "w")  # noqa: SIM115 - it is written to from now on
        finally:
            os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
