"""How commands report errors: one line each."""

from __future__ import annotations

import os
import sys
import traceback

TRACEBACK_VARIABLE = "WHISPER_AT_TRACEBACK"
"""Environment variable that makes commands print where in the program an error arose."""


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def report(message: str) -> None:
    """Print a line on stderr, after the traceback of the current error if `TRACEBACK_VARIABLE` asks for it."""
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    sys.stdout.flush()
    encoding = sys.stderr.encoding or "ascii"
    print(message.encode(encoding, errors="replace").decode(encoding), file=sys.stderr, flush=True)
