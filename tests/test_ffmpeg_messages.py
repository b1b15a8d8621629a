"""What ffmpeg says is read while it runs: nothing blocks, nothing grows, and of each level comes what is wanted."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import pytest
from conftest import ROOT

from whisper_at import ffmpeg_messages
from whisper_at.ffmpeg_messages import FfmpegMessages
from whisper_at.ffmpeg_process import last_error

SAID = b"""\
[mpegts @ 0x55] [warning] Could not find codec parameters
Consider increasing the value for the 'analyzeduration' (0) option
[info] Input #0, mpegts, from 'film.ts':
[info]     title           : H\xc3\xb6rfilm
                      : [error] second line
[aist#0:0/mp3 @ 0x55] [dec:mp3float @ 0x56] [error] Header missing
[graph_0_in_0_0 @ 0x57] [verbose] tb:1/44100 samplefmt:fltp samplerate:44100 chlayout:stereo
    Last message repeated 3 times
[fatal] file:film.ts: Invalid data
found\xff
"""


@pytest.mark.parametrize("size", [1, 5, 10**6])
def test_levels(size):
    """A line without one belongs to the line before, and lines come in parts of any length."""
    messages = FfmpegMessages()
    with messages.collect() as stderr:
        for start in range(0, len(SAID), size):
            os.write(stderr, SAID[start : start + size])
            assert messages.description.count("\n") < 5
    assert messages.description.splitlines() == [
        "Input #0, mpegts, from 'film.ts':",
        "    title           : Hörfilm",
        "                      : [error] second line",
        "[graph_0_in_0_0 @ 0x57] tb:1/44100 samplefmt:fltp samplerate:44100 chlayout:stereo",
        "    Last message repeated 3 times",
    ]
    header_missing = "[aist#0:0/mp3 @ 0x55] [dec:mp3float @ 0x56] Header missing"
    assert messages.errors.splitlines() == [
        header_missing,
        "file:film.ts: Invalid data",
        "found\N{REPLACEMENT CHARACTER}",
    ]
    assert last_error(header_missing) == "Header missing"


def test_what_is_said_before_any_level_is_an_error():
    """A library that is missing, a script in the place of ffmpeg."""
    messages = FfmpegMessages()
    with messages.collect() as stderr:
        os.write(stderr, b"ffmpeg: error while loading shared libraries: libx\r\nand no end of line")
    assert messages.description == ""
    assert messages.errors.splitlines() == ["ffmpeg: error while loading shared libraries: libx", "and no end of line"]


def test_all_is_there_that_was_said_before_it_is_asked_for():
    messages = FfmpegMessages()
    with messages.collect() as stderr:
        for i in range(200):
            os.write(stderr, b"[info] line %d\n" % i)
            assert messages.description.endswith(f"line {i}")
            os.write(stderr, b"[error] error ")
            assert not messages.errors.endswith(f"error {i}")
            os.write(stderr, b"%d\n" % i)
            assert messages.errors.endswith(f"error {i}")


def test_memory_does_not_grow_with_what_is_said(monkeypatch):
    monkeypatch.setattr(ffmpeg_messages, "MAX_DESCRIPTION", 1 << 16)

    def write(stderr: int, line: bytes) -> None:
        for _ in range(100):
            os.write(stderr, 600 * line)

    tracemalloc.start()
    messages = FfmpegMessages()
    with messages.collect() as stderr:
        write(stderr, b"[info] " + 90 * b"a" + b"\n")
        write(stderr, b"[mp3 @ 0x1] [error] " + 80 * b"b" + b"\n")
        write(stderr, 100 * b"c")  # a line without an end
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6
    assert messages.description.startswith(90 * "a" + "\n" + 90 * "a")
    assert len(messages.errors) <= ffmpeg_messages.MAX_ERRORS
    assert messages.errors.endswith("ccc")


def test_a_process_that_outlives_ffmpeg_holds_nothing_up():
    """Another thread may fork at any time, and its child keeps the pipe open."""
    messages = FfmpegMessages()
    with messages.collect() as stderr:
        kept = os.dup(stderr)
        os.write(stderr, b"the last word\n")
    assert messages.errors == "the last word"
    os.close(kept)


def test_a_program_ends_although_ffmpeg_does_not():
    """With a stream in a global name, the block ends when threads have been stopped for good."""
    program = """
from whisper_at.ffmpeg_messages import FfmpegMessages
def stream():
    with FfmpegMessages().collect():
        yield
        yield
samples = stream()
next(samples)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=120, check=False).returncode == 0


def test_nothing_is_left_open():
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("descriptors are not listed here")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        messages = FfmpegMessages()
        with pytest.raises(KeyError), messages.collect():
            raise KeyError
        assert messages.description == messages.errors == ""
    assert len(os.listdir("/proc/self/fd")) == before
