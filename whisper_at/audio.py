"""Audio front end: openai-whisper's, with a decoder that needs no set-up.

Everything public in :mod:`whisper.audio` is here under the same name. What is ours: the ffmpeg binary is found or
brought along (:func:`ffmpeg_binary`), only local files are opened, or recordings given as bytes, samples can be
streamed, times are those of the container, its tracks can be chosen, and channels that cancel each other are heard.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import numpy as np
import torch
import whisper.audio as _whisper_audio
from whisper.audio import *
from whisper.audio import SAMPLE_RATE

from .ffmpeg_decoder import decode_file
from .ffmpeg_process import ffmpeg_binary, probe
from .limits import DecodeLimits
from .recordings import BufferedRecording, Bytes, Recording, local_file, readable
from .tracks import AudioTrack


def audio_tracks(file: Recording) -> list[AudioTrack]:
    """Return the audio tracks of a file, with their numbers, languages and titles.

    Parameters
    ----------
    file : str, path, bytes, bytearray, memoryview or binary file
        As of :func:`load_audio`, which also says what is raised.

    Returns
    -------
    list of AudioTrack
        Empty if it holds no audio.
    """
    source = readable(file)  # of bytes it is a temporary file, which lives as long as this name
    path, _ = local_file(source)
    return list(probe(path)[0].tracks)


def load_audio(file: Recording, sr: int = SAMPLE_RATE, *, audio_track: int | str | None = None) -> np.ndarray:
    """Decode a local audio or video file to one channel.

    Sample 0 is at the start of the container, as a player counts time: where the sound begins later than the video, or
    was not recorded for a while, there is silence.

    Where the channels cancel each other, so that their downmix is next to silent (a cable of reversed polarity, a call
    with one speaker out of phase), one of them is taken, and a warning says where.

    Parameters
    ----------
    file : str, path, bytes, bytearray, memoryview or binary file
        Any file that ffmpeg can read, or its bytes. Text is always a path: ``-x.wav``, ``concat:a|b`` and ``http://…``
        open a file of exactly that name or fail; only ``~`` is the home folder, if no file has that name.
    sr : int
        Sample rate of the result in Hz; other rates are resampled.
    audio_track : int or str, optional
        Which track of several: its number, from 1 (:func:`audio_tracks`), or its language, by name or code. By default
        it is the one that ffmpeg takes, and a warning says which.

    Returns
    -------
    float32 array, shape (samples,)
        In [-1, 1), the same as ``whisper.load_audio`` returns with the same ffmpeg, but for such silence, and for
        channels that cancel each other. A truncated file gives what it holds.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RuntimeError
        If ffmpeg cannot decode it: ``Failed to load audio: <file>: <reason>``, the last line that ffmpeg writes.
    ValueError
        If there is no such track; the message lists those that there are.

    Examples
    --------
    >>> load_audio("sample/speech.flac").dtype
    dtype('float32')
    """
    buffer = bytearray()
    for chunk in _decode(readable(file, audio_track), sr):
        buffer += chunk
    # scaled in place: an hour is 115 MB of int16 and 230 MB of float32, and no third copy of it is needed
    audio = np.frombuffer(buffer, np.dtype("<i2")).astype(np.float32)
    audio /= 32768.0
    return audio


def stream_audio(
    file: Recording, sr: int = SAMPLE_RATE, seconds: float = 30.0, *, audio_track: int | str | None = None
) -> Iterator[np.ndarray]:
    """Decode a file block by block, so that memory does not grow with its length.

    Parameters
    ----------
    file, sr, audio_track
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
    for chunk in _decode(readable(file, audio_track), sr):
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


def _decode(source: str | os.PathLike[str], sr: int) -> Generator[bytes, None, None]:
    """Run ffmpeg on a local file, within its limits; yield chunks of little-endian int16 mono at ``sr`` Hz."""
    path, name = local_file(source)
    limits: DecodeLimits | None = getattr(source, "limits", None)
    chunks = decode_file(path, name, sr, getattr(source, "audio_track", None), limits)
    yield from chunks if limits is None else limits.check_length(chunks, sr, name)
