"""Audio front end: openai-whisper's, with a decoder that needs no set-up.

Everything public in :mod:`whisper.audio` is here under the same name. Three things are ours: the ffmpeg binary is found
or brought along (:func:`ffmpeg_binary`), only local files are opened, and samples can be streamed.
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

CHUNK_BYTES = 1 << 20  # read from the pipe at once: 33 s at 16 kHz


def ffmpeg_binary() -> str:
    """Return the path of ffmpeg: the one on ``PATH``, else the one inside the ``imageio-ffmpeg`` wheel.

    Raises
    ------
    RuntimeError
        If neither exists.
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
    file : str or path
        Any file that ffmpeg can read. It is always taken as a path: ``-x.wav``, ``concat:a|b`` and ``http://…`` open a
        file of exactly that name or fail.
    sr : int
        Sample rate of the result in Hz; other rates are resampled.

    Returns
    -------
    float32 array, shape (samples,)
        In [-1, 1), the same as ``whisper.load_audio`` returns with the same ffmpeg. A truncated file gives what it
        holds.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RuntimeError
        If ffmpeg cannot decode it: ``Failed to load audio: <file>: <reason>``, the last line that ffmpeg writes.

    Examples
    --------
    >>> load_audio("sample/speech.flac").dtype
    dtype('float32')
    """
    buffer = bytearray()
    for chunk in _decode(file, sr):
        buffer += chunk
    # scaled in place: an hour is 115 MB of int16 and 230 MB of float32, and no third copy of it is needed
    audio = np.frombuffer(buffer, np.dtype("<i2")).astype(np.float32)
    audio /= 32768.0
    return audio


def stream_audio(file: str | os.PathLike[str], sr: int = SAMPLE_RATE, seconds: float = 30.0) -> Iterator[np.ndarray]:
    """Decode a file block by block, so that memory does not grow with its length.

    Parameters
    ----------
    file, sr
        As of :func:`load_audio`, which also says what is raised; here while iterating.
    seconds : float
        Length of a block.

    Yields
    ------
    float32 array, shape (round(seconds * sr),)
        The last one may be shorter. Concatenated, they equal ``load_audio(file, sr)``.
    """
    size = 2 * round(seconds * sr)
    if size <= 0:
        raise ValueError(f"seconds must be positive, not {seconds}")
    buffer = bytearray()
    for chunk in _decode(file, sr):
        buffer += chunk
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
    """Compute Whisper's log-mel spectrogram by the installed ``whisper.audio.log_mel_spectrogram``.

    Parameters
    ----------
    audio : str, path, array or Tensor, shape (samples,)
        A file for our :func:`load_audio`, or samples at 16 kHz.
    n_mels : {80, 128}
    padding : int
        Number of zero samples to append.
    device : torch.device, optional
        Where to compute it.

    Returns
    -------
    Tensor, shape (n_mels, frames)
        One frame every 10 ms.
    """
    if isinstance(audio, (str, os.PathLike)):
        audio = load_audio(audio)
    return _whisper_audio.log_mel_spectrogram(audio, n_mels, padding, device)


def _decode(file: str | os.PathLike[str], sr: int) -> Iterator[bytes]:
    """Run ffmpeg on a local file; yield chunks of little-endian int16 mono at ``sr`` Hz."""
    file = os.fsdecode(file)
    if not os.path.exists(file):
        raise FileNotFoundError(f"No such audio file: {file}")
    if os.path.isdir(file):
        raise _load_error(file, "it is a directory")
    if os.path.isfile(file) and os.path.getsize(file) == 0:
        raise _load_error(file, "the file is empty")

    # "file:" makes ffmpeg take the rest literally, whatever it looks like; the whitelist stops a playlist in the file
    # from opening a network connection; what decides the samples is as in whisper.load_audio
    stream = ffmpeg.input(f"file:{file}", threads=0, protocol_whitelist="file,pipe")
    stream = stream.output("pipe:", format="s16le", acodec="pcm_s16le", ac=1, ar=sr)
    command = ffmpeg.compile(stream, cmd=[ffmpeg_binary(), "-nostdin", "-hide_banner", "-loglevel", "error"])

    # errors go to a file, not a pipe: a damaged input can produce more of them than a pipe holds
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        try:
            while chunk := process.stdout.read(CHUNK_BYTES):
                yield chunk
            status = process.wait()
        finally:
            process.stdout.close()
            if process.poll() is None:
                process.kill()
                process.wait()
        if status != 0:
            raise _load_error(file, _last_error(errors) or f"ffmpeg ended with status {status}")


def _last_error(errors: IO[bytes]) -> str:
    """Return the last line that ffmpeg wrote, without the address of the part that wrote it."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 4096))
    text = errors.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = re.sub(r"^(\[[^\]]*\]\s*)+", "", lines[-1]) if lines else ""
    # of a picture, a silent film or plain text ("ANSI art" to ffmpeg), the last line alone says little
    return f"it holds no audio ({last})" if "does not contain any stream" in text else last


def _load_error(file: str, reason: str) -> RuntimeError:
    return RuntimeError(f"Failed to load audio: {file}: {reason}")
