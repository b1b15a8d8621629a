"""Audio front end: openai-whisper's, with a decoder that needs no set-up.

Everything public in :mod:`whisper.audio` is here under the same name. What is ours: the ffmpeg binary is found or
brought along (:func:`ffmpeg_binary`), only local files are opened, or recordings given as bytes, samples can be
streamed, and channels that cancel each other are heard.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from itertools import chain
from typing import IO, Any

import ffmpeg
import numpy as np
import torch
import whisper.audio as _whisper_audio
from whisper.audio import *
from whisper.audio import SAMPLE_RATE

from .downmix import frame_length, restore_cancelled

CHUNK_BYTES = 1 << 20  # read at once: 33 s at 16 kHz

Bytes = bytes | bytearray | memoryview
Recording = str | os.PathLike[str] | Bytes | IO[bytes]
"""What is decoded: a path, or the bytes of a file, also from an open one."""


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
            while chunk := source.read(CHUNK_BYTES):
                if not isinstance(chunk, Bytes):
                    raise TypeError(f"audio is read from files opened as binary, mode 'rb', not from {source!r}")
                target.write(chunk)

    def __fspath__(self) -> str:
        return self._path

    def __repr__(self) -> str:
        return self.label


def readable(audio: Any) -> Any:
    """Return bytes and open files as a `BufferedRecording`, which can be read several times, and all else as it is."""
    if isinstance(audio, Bytes) or (hasattr(audio, "read") and not isinstance(audio, os.PathLike)):
        return BufferedRecording(audio)
    return audio


def _delete(path: str) -> None:
    with suppress(OSError):
        os.remove(path)


def load_audio(file: Recording, sr: int = SAMPLE_RATE) -> np.ndarray:
    """Decode a local audio or video file to one channel.

    Where the channels cancel each other, so that their downmix is next to silent (a cable of reversed polarity, a call
    with one speaker out of phase), one of them is taken, and a warning says where.

    Parameters
    ----------
    file : str, path, bytes, bytearray, memoryview or binary file
        Any file that ffmpeg can read, or its bytes. Text is always a path: ``-x.wav``, ``concat:a|b`` and ``http://…``
        open a file of exactly that name or fail; only ``~`` is the home folder, if no file has that name.
    sr : int
        Sample rate of the result in Hz; other rates are resampled.

    Returns
    -------
    float32 array, shape (samples,)
        In [-1, 1), the same as ``whisper.load_audio`` returns with the same ffmpeg, but for channels that cancel each
        other. A truncated file gives what it holds.

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


def stream_audio(file: Recording, sr: int = SAMPLE_RATE, seconds: float = 30.0) -> Iterator[np.ndarray]:
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
    audio: Recording | np.ndarray | torch.Tensor,
    n_mels: int = 80,
    padding: int = 0,
    device: str | torch.device | None = None,
) -> torch.Tensor:
    """Compute Whisper's log-mel spectrogram by the installed ``whisper.audio.log_mel_spectrogram``.

    Parameters
    ----------
    audio : str, path, bytes, binary file, array or Tensor, shape (samples,)
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
    audio = readable(audio)
    if isinstance(audio, (str, os.PathLike)):
        audio = load_audio(audio)
    else:
        check_finite(torch.as_tensor(audio))
    return _whisper_audio.log_mel_spectrogram(audio, n_mels, padding, device)


def check_finite(samples: torch.Tensor) -> None:
    """Raise ValueError, which says where, if a sample at 16 kHz is NaN or infinite."""
    finite = samples.isfinite()
    if not finite.all():
        wrong = (~finite).nonzero()[:, -1]
        first = int(wrong[0])
        raise ValueError(
            f"audio must be finite, but {len(wrong)} of its {samples.numel()} samples are NaN or infinite: the first, "
            f"at {first / SAMPLE_RATE:.4f} s (sample {first}), is {samples.flatten()[first]:g}"
        )


def _decode(file: Recording, sr: int) -> Iterator[bytes]:
    """Run ffmpeg on a local file; yield chunks of little-endian int16 mono at ``sr`` Hz."""
    source = readable(file)
    path = os.fsdecode(source)
    if not os.path.exists(path):
        path = os.path.expanduser(path)
    name = getattr(source, "label", path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"No such audio file: {path}")
    if os.path.isdir(path):
        raise _load_error(name, "it is a directory")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise _load_error(name, "the file is empty")

    # what decides the samples is as in whisper.load_audio
    frame = frame_length(sr)
    samples = frame * max(CHUNK_BYTES // (2 * frame), 1)
    mixed = _run_ffmpeg(path, name, 2 * samples, f="s16le", acodec="pcm_s16le", ac=1, ar=sr)
    with closing(mixed):
        blocks = (np.frombuffer(chunk[: len(chunk) // 2 * 2], "<i2") for chunk in mixed)
        for block in restore_cancelled(blocks, lambda: _decode_channels(path, name, sr, samples), sr, name):
            yield block.astype("<i2", copy=False).tobytes()


def _decode_channels(path: str, name: str, sr: int, samples: int) -> Generator[np.ndarray, None, None]:
    """Yield all channels of a file in blocks of so many samples, int16, ``(samples, channels)``."""
    output = _run_ffmpeg(path, name, CHUNK_BYTES, f="au", acodec="pcm_s16be", ar=sr)  # whose header counts channels
    with closing(output):
        buffer = bytearray(next(output, b""))
        if len(buffer) < 24:
            return
        _, header, _, _, _, channels = struct.unpack(">6I", buffer[:24])
        del buffer[:header]
        size = 2 * channels * samples
        for chunk in chain([b""], output):
            buffer += chunk
            while len(buffer) >= size:
                yield np.frombuffer(bytes(buffer[:size]), ">i2").reshape(-1, channels)
                del buffer[:size]
        yield np.frombuffer(bytes(buffer[: len(buffer) // (2 * channels) * 2 * channels]), ">i2").reshape(-1, channels)


def _run_ffmpeg(path: str, name: str, size: int, **output: Any) -> Generator[bytes, None, None]:
    """Yield what ffmpeg makes of a file with these options of its output, in chunks of so many bytes."""
    # "file:" makes ffmpeg take the rest literally, whatever it looks like; the whitelist stops a playlist in the file
    # from opening a network connection
    stream = ffmpeg.input(f"file:{path}", threads=0, protocol_whitelist="file,pipe")
    stream = stream.output("pipe:", **output)
    command = ffmpeg.compile(stream, cmd=[ffmpeg_binary(), "-nostdin", "-hide_banner", "-loglevel", "error"])

    # errors go to a file, not a pipe: a damaged input can produce more of them than a pipe holds
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        try:
            while chunk := process.stdout.read(size):
                yield chunk
            status = process.wait()
        finally:
            process.stdout.close()
            if process.poll() is None:
                process.kill()
                process.wait()
        if status != 0:
            raise _load_error(name, _last_error(errors) or f"ffmpeg ended with status {status}")


def _last_error(errors: IO[bytes]) -> str:
    """Return the last line that ffmpeg wrote, without the address of the part that wrote it."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 4096))
    text = errors.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = re.sub(r"^(\[[^\]]*\]\s*)+", "", lines[-1]) if lines else ""
    # of a picture, a silent film or plain text ("ANSI art" to ffmpeg), the last line alone says little
    return f"it holds no audio ({last})" if "does not contain any stream" in text else last


def _load_error(name: str, reason: str) -> RuntimeError:
    return RuntimeError(f"Failed to load audio: {name}: {reason}")
