"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from whisper_at.engine.heap import trim_heap

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps it and lets go"
)


def resident_megabytes() -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1e3


def test_gaps_between_what_lives_are_given_back():
    blocks = [b"x" * 50_000 for _ in range(4000)]
    living = blocks[::400]
    before = resident_megabytes()
    del blocks
    held = resident_megabytes()
    trim_heap()
    assert held > before - 50  # else there is nothing to show
    assert resident_megabytes() < held - 100
    assert all(block == b"x" * 50_000 for block in living)
