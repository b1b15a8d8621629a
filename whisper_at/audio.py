"""Audio front end: openai-whisper's, with a decoder that needs no set-up.

Everything public in :mod:`whisper.audio` is here under the same name. Three things are ours: the ffmpeg
binary is found or brought along (:func:`ffmpeg_binary`), only local files are opened, and samples arrive in
pieces.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO

import ffmpeg
import numpy as np
import torch
import whisper.audio as _whisper_audio
from whisper.audio import *
from whisper.audio import SAMPLE_RATE

PIECE_BYTES = 1 << 20  # read from the pipe at once: 33 s at 16 kHz


def ffmpeg_binary() -> str:
    """Path of the ffmpeg to run: the one on ``PATH``, else the one inside the ``imageio-ffmpeg`` wheel.

    Raises ``RuntimeError`` where neither exists.
    """
    found = shutil.which("ffmpeg")
    if found:
        return found
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def load_audio(file: str | os.PathLike[str], sr: int = SAMPLE_RATE) -> np.ndarray:
    """Decode a local audio or video file to one channel.

    Parameters
    ----------
    file
        Path of any file that ffmpeg can read. It is always taken as a path: ``-x.wav``, ``concat:a|b`` and
        ``http://…`` open a file of exactly that name or fail.
    sr
        Sample rate of the result in Hz; other rates are resampled.

    Returns
    -------
    np.ndarray, shape ``(samples,)``, float32 in [-1, 1)
        The same samples as ``whisper.load_audio`` with the same ffmpeg. A truncated file gives what it holds.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    RuntimeError
        ``Failed to load audio: <file>: <reason>``; the reason is ffmpeg's last line.

    Examples
    --------
    >>> load_audio("sample/speech.flac").dtype
    dtype('float32')
    """
    buffer = bytearray()
    for piece in _decode(file, sr):
        buffer += piece
    # Scaled in place: an hour is 115 MB of int16 and 230 MB of float32, and no third copy of it is needed.
    audio = np.frombuffer(buffer, np.dtype("<i2")).astype(np.float32)
    audio /= 32768.0
    return audio


def stream_audio(file: str | os.PathLike[str], sr: int = SAMPLE_RATE, seconds: float = 30.0) -> Iterator[np.ndarray]:
    """Decode a file block by block, so that memory does not grow with its length.

    Yields float32 arrays of shape ``(round(seconds * sr),)``, the last one shorter; joined, they equal
    ``load_audio(file, sr)``. Raises what :func:`load_audio` raises, while iterating.
    """
    size = 2 * round(seconds * sr)
    if size <= 0:
        raise ValueError(f"seconds must be positive, not {seconds}")
    buffer = bytearray()
    for piece in _decode(file, sr):
        buffer += piece
        while len(buffer) >= size:
            yield np.frombuffer(bytes(buffer[:size]), np.dtype("<i2")).astype(np.float32) / 32768.0
            del buffer[:size]
    if buffer:
        yield np.frombuffer(bytes(buffer), np.dtype("<i2")).astype(np.float32) / 32768.0


def log_mel_spectrogram(
    audio: str | os.PathLike[str] | np.ndarray | torch.Tensor,
    n_mels: int = 80,
    padding: int = 0,
    device: str | torch.device | None = None,
) -> torch.Tensor:
    """Whisper's log-mel spectrogram, shape ``(n_mels, frames)``, one frame every 10 ms.

    ``audio`` is a path, read by our :func:`load_audio`, or samples at 16 kHz; ``padding`` zero samples are
    appended. The arithmetic is ``whisper.audio.log_mel_spectrogram`` as installed.
    """
    if isinstance(audio, (str, os.PathLike)):
        audio = load_audio(audio)
    return _whisper_audio.log_mel_spectrogram(audio, n_mels, padding, device)


def _decode(file: str | os.PathLike[str], sr: int) -> Iterator[bytes]:
    """Run ffmpeg on a local file; yields little-endian int16 mono at ``sr`` Hz in pieces."""
    file = os.fsdecode(file)
    if not os.path.exists(file):
        raise FileNotFoundError(f"No such audio file: {file}")
    if os.path.isdir(file):
        raise _failure(file, "it is a directory")
    if os.path.isfile(file) and os.path.getsize(file) == 0:
        raise _failure(file, "the file is empty")

    # "file:" makes ffmpeg take the rest literally, whatever it looks like; the whitelist stops a playlist in
    # the file from reaching out. What decides the samples is as in whisper.load_audio.
    stream = ffmpeg.input(f"file:{file}", threads=0, protocol_whitelist="file,pipe")
    stream = stream.output("pipe:", format="s16le", acodec="pcm_s16le", ac=1, ar=sr)
    command = ffmpeg.compile(stream, cmd=[ffmpeg_binary(), "-nostdin", "-hide_banner", "-loglevel", "error"])

    # Complaints go to a file, not a pipe: a damaged file can produce more of them than a pipe holds.
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints)
        assert process.stdout is not None
        try:
            while piece := process.stdout.read(PIECE_BYTES):
                yield piece
            status = process.wait()
        finally:
            process.stdout.close()
            if process.poll() is None:
                process.kill()
                process.wait()
        if status != 0:
            raise _failure(file, _last_line(complaints) or f"ffmpeg ended with status {status}")


def _last_line(complaints: IO[bytes]) -> str:
    """ffmpeg's last line of complaint, without the address of the part that complained."""
    complaints.seek(0, os.SEEK_END)
    complaints.seek(max(0, complaints.tell() - 4096))
    text = complaints.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = re.sub(r"^(\[[^\]]*\]\s*)+", "", lines[-1]) if lines else ""
    # A picture, a silent film or plain text (an "ANSI art" film to ffmpeg): the last line alone would puzzle.
    return f"it holds no audio ({last})" if "does not contain any stream" in text else last


def _failure(file: str, reason: str) -> RuntimeError:
    return RuntimeError(f"Failed to load audio: {file}: {reason}")
