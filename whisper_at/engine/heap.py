"""Memory that was freed, and that the C library keeps for later: a process that runs for days need not hold it."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


def trim_heap() -> None:
    """Give freed memory back to the system, where glibc holds it; nothing happens elsewhere.

    Tensors of ever other sizes leave gaps between those that live, which glibc by itself gives back only from the end.
    """
    if (malloc_trim := _malloc_trim()) is not None:
        malloc_trim(ctypes.c_size_t(0))


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
