"""Recordings in whatever form they are given, as files that can be read several times."""

from __future__ import annotations

import os
import stat
import tempfile
import weakref
from contextlib import suppress
from typing import IO, Any

from .ffmpeg_process import load_error

COPY_BYTES = 1 << 20  # at once

Bytes = bytes | bytearray | memoryview
Recording = str | os.PathLike[str] | Bytes | IO[bytes]
"""What is decoded: a path, or the bytes of a file, also from an open one."""


class BufferedRecording(os.PathLike[str]):
    """The bytes of a recording as a temporary file, which is deleted when nothing refers to this object.

    Parameters
    ----------
    source : bytes, bytearray, memoryview or binary file
        The bytes of an audio or video file. An open one is read from its beginning if it can go there.
    label : str
        What error messages call it.

    Raises
    ------
    TypeError
        If a file was opened as text.
    """

    def __init__(self, source: Bytes | IO[bytes], label: str = "the audio given as bytes") -> None:
        self.label = label
        number, self._path = tempfile.mkstemp(prefix="whisper-at-")
        self._delete = weakref.finalize(self, _delete, self._path)
        with open(number, "wb") as target:
            if isinstance(source, Bytes):
                target.write(source)
                return
            if getattr(source, "seekable", bool)():
                source.seek(0)
            while chunk := source.read(COPY_BYTES):
                if not isinstance(chunk, Bytes):
                    raise TypeError(f"audio is read from files opened as binary, mode 'rb', not from {source!r}")
                target.write(chunk)

    def __fspath__(self) -> str:
        return self._path

    def __repr__(self) -> str:
        return self.label


def _delete(path: str) -> None:
    with suppress(OSError):
        os.remove(path)


class _RecordingTrack(os.PathLike[str]):
    """One of the audio tracks of a file."""

    def __init__(self, source: str | os.PathLike[str], audio_track: int | str) -> None:
        self.source, self.audio_track = source, audio_track
        self.label = getattr(source, "label", os.fsdecode(source))

    def __fspath__(self) -> str:
        return os.fsdecode(self.source)

    def __repr__(self) -> str:
        return self.label


def readable(audio: Any, audio_track: int | str | None = None) -> Any:
    """Return what can be read several times.

    Bytes, open files and pipes become a `BufferedRecording`; another path stays what it is, unless one of its tracks is
    chosen, and samples stay samples.

    Raises
    ------
    ValueError
        If a track of samples is chosen.
    """
    if isinstance(audio, Bytes) or (hasattr(audio, "read") and not isinstance(audio, os.PathLike)):
        audio = BufferedRecording(audio)
    elif isinstance(audio, (str, os.PathLike)) and _is_pipe(audio):
        with open(audio, "rb") as pipe:
            audio = BufferedRecording(pipe, os.fsdecode(audio))
    if audio_track is None:
        return audio
    if not isinstance(audio, (str, os.PathLike)):
        raise ValueError("audio_track is for files: samples have no tracks")
    return _RecordingTrack(audio, audio_track)


def _is_pipe(path: str | os.PathLike[str]) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def local_file(source: str | os.PathLike[str]) -> tuple[str, str]:
    """Return the path of a recording, and what messages call it.

    Raises
    ------
    FileNotFoundError, RuntimeError
        As `whisper_at.load_audio`, if it is no file that holds anything.
    """
    path = os.fsdecode(source)
    if not os.path.exists(path):
        path = os.path.expanduser(path)
    name = getattr(source, "label", path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"No such audio file: {path}")
    if os.path.isdir(path):
        raise load_error(name, "it is a directory")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise load_error(name, "the file is empty")
    return path, name
