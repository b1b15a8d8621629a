"""Bounds on what decoding one recording may cost, for files that come from strangers.

`audio` runs ffmpeg in a process of its own and lets it open local files alone. Here is what else keeps a crafted file
from taking the machine: formats that name no other files, and limits on time, memory, length and channels.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

MEDIA_FORMATS = tuple(
    "aac ac3 aiff amr ape asf au avi caf dts eac3 flac flv loas matroska mov mp3 mpeg mpegts mxf ogg rm tak tta voc "
    "w64 wav wv".split()
)
"""Formats of ffmpeg's that hold their sound themselves. Playlists (hls, concat, dash …) would name other files."""
MAX_WRITTEN = 1 << 26
"""Bytes that ffmpeg may write to files: what is decoded and its messages go to pipes, a report (FFREPORT) does not."""


@dataclass(frozen=True)
class DecodeLimits:
    """What decoding one recording may cost.

    Attributes
    ----------
    duration : float
        Seconds of audio, silence that timestamps ask for included. A longer recording is an error.
    time : float
        Seconds that ffmpeg may take for it, by the clock and of the processor.
    memory : int
        Bytes that ffmpeg may have, where the system can limit it (Linux).
    channels : int
        Channels of a recording that are decoded apart, where their downmix is silent.
    formats : tuple of str
        ffmpeg's names of the formats that are opened.
    """

    duration: float = 12 * 3600.0
    time: float = 1800.0
    memory: int = 2 << 30
    channels: int = 32
    formats: tuple[str, ...] = MEDIA_FORMATS

    @contextmanager
    def enforce(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Bound a process that has just been started; raise TimeoutError at the end if it took too long."""
        _limit_resources(process.pid, self)
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(self.time, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        if is_late.is_set() or process.returncode == -24:  # SIGXCPU
            raise TimeoutError(f"decoding took longer than {self.time:g} s")

    def check_length(self, chunks: Generator[bytes, None, None], sr: int, name: str) -> Generator[bytes, None, None]:
        """Yield chunks of int16 samples; raise ValueError once they are more than `duration`."""
        left = round(2 * sr * self.duration)
        with closing(chunks):
            for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    raise ValueError(f"{name} is longer than the {self.duration:g} s that are allowed")
                yield chunk


def _limit_resources(pid: int, limits: DecodeLimits) -> None:
    """Limit memory, processor time and files of another process; nothing where the system has no such call."""
    try:
        import resource

        prlimit = resource.prlimit
    except (ImportError, AttributeError):
        return
    seconds = max(1, round(limits.time))
    with suppress(OSError, ValueError):  # it has ended already, or a lower limit is in force
        prlimit(pid, resource.RLIMIT_AS, (limits.memory, limits.memory))
        prlimit(pid, resource.RLIMIT_CPU, (seconds, seconds + 1))
        prlimit(pid, resource.RLIMIT_FSIZE, (MAX_WRITTEN, MAX_WRITTEN))
        prlimit(pid, resource.RLIMIT_CORE, (0, 0))


class LimitedRecording(os.PathLike[str]):
    """A file that is decoded within limits.

    Parameters
    ----------
    path : str
        The file.
    limits : DecodeLimits
        What decoding it may cost.
    label : str, optional
        What error messages call it.
    audio_track : int or str, optional
        As of `whisper_at.load_audio`.
    """

    def __init__(
        self, path: str, limits: DecodeLimits, label: str | None = None, audio_track: int | str | None = None
    ) -> None:
        self.path, self.limits, self.label, self.audio_track = path, limits, label or path, audio_track

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return self.label
