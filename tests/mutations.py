"""Damaged and crafted files: what hypothesis draws is applied to the bytes of a whole one.

Tests draw a few. ``WHISPER_AT_FUZZ=5000 python -m pytest tests/archive/test_fuzzed_audio.py`` draws as many, with other
seeds each time; what it finds is shrunk by hypothesis, and printed with the mutations that make it again.
"""

from __future__ import annotations

import os
import struct

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("WHISPER_AT_FUZZ", "0"))
INTERESTING = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0xFFFFFFF0)


def fuzz(examples: int) -> settings:
    """Settings of a test that draws so many mutations, or as many as the environment says."""
    return settings(
        max_examples=EXAMPLES or examples,
        deadline=None,
        database=None,
        derandomize=not EXAMPLES,
        suppress_health_check=list(HealthCheck),
    )


def mutations() -> st.SearchStrategy:
    """A list of changes: each a kind, a place as a share of the file (most in its beginning), and a value."""
    place = st.one_of(st.floats(0, 0.05), st.floats(0, 1))
    kinds = st.sampled_from(["byte", "number", "cut", "remove", "repeat", "insert", "swap"])
    return st.lists(st.tuples(kinds, place, st.integers(0, 255)), min_size=1, max_size=6)


def mutate(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """Apply changes to the bytes of a file."""
    data = bytearray(content)
    for kind, share, value in changes:
        if not data:
            return b""
        at = min(int(share * len(data)), len(data) - 1)
        if kind == "byte":
            data[at] = value
        elif kind == "number":
            order = "<I" if value & 64 else ">I"
            data[at : at + 4] = struct.pack(order, INTERESTING[value % len(INTERESTING)])
        elif kind == "cut":
            del data[at:]
        elif kind == "remove":
            del data[at : at + value + 1]
        elif kind == "repeat":
            data[at:at] = data[at : at + 16 * value + 1]
        elif kind == "insert":
            data[at:at] = bytes([value]) * (value + 1)
        else:
            data[at : at + 2] = data[at : at + 2][::-1]
    return bytes(data)
