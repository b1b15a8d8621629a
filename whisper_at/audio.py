"""Audio front end: openai-whisper's, with a decoder that needs no set-up.

Everything public in :mod:`whisper.audio` is here under the same name. What is ours: the ffmpeg binary is found or
brought along (:func:`ffmpeg_binary`), only local files are opened, or recordings given as bytes, samples can be
streamed, times are those of the container, its tracks can be chosen, and channels that cancel each other are heard.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
import warnings
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext, suppress
from functools import partial
from itertools import chain
from typing import IO, Any, NamedTuple

import ffmpeg
import numpy as np
import torch
import whisper.audio as _whisper_audio
from whisper.audio import *
from whisper.audio import SAMPLE_RATE

from .downmix import frame_length, restore_cancelled
from .limits import DecodeLimits
from .timestamps import Gaps, read_packets, silence
from .tracks import MAX_GAP, AudioTrack, Container, choose_track, is_clockless, parse_container, parse_first_timestamp

CHUNK_BYTES = 1 << 20  # read at once: 33 s at 16 kHz
NO_VIDEO = {"vn": None, "sn": None, "dn": None}  # nor subtitles and data, for formats of all of them
MAX_MESSAGES = 1 << 22  # bytes of ffmpeg's messages that are searched for what it says of a file

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
    path, _ = _local_file(source)
    return list(_probe(path)[0].tracks)


def _delete(path: str) -> None:
    with suppress(OSError):
        os.remove(path)


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


def _local_file(source: str | os.PathLike[str]) -> tuple[str, str]:
    """Return the path of a recording, and what messages call it.

    Raises
    ------
    FileNotFoundError, RuntimeError
        As `load_audio`, if it is no file that holds anything.
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


def _decode(source: str | os.PathLike[str], sr: int) -> Generator[bytes, None, None]:
    """Run ffmpeg on a local file, within its limits; yield chunks of little-endian int16 mono at ``sr`` Hz."""
    path, name = _local_file(source)
    limits: DecodeLimits | None = getattr(source, "limits", None)
    chunks = _decode_file(path, name, sr, getattr(source, "audio_track", None), limits)
    yield from chunks if limits is None else limits.check_length(chunks, sr, name)


def _decode_file(
    path: str, name: str, sr: int, audio_track: int | str | None, limits: DecodeLimits | None
) -> Generator[bytes, None, None]:
    timeline = _timeline(path, name, audio_track, limits)
    gaps = Gaps(sr, timeline.length, timeline.delay)
    for block in silence(round(timeline.delay * sr)):
        yield block.tobytes()

    # what decides the samples is as in whisper.load_audio
    frame = frame_length(sr)
    samples = frame * max(CHUNK_BYTES // (2 * frame), 1)
    form: dict[str, Any] = {"f": "matroska", **NO_VIDEO} if timeline.has_timestamps else {"f": "s16le"}
    options = {"map": timeline.stream} if timeline.stream else {}
    mixed = _run_ffmpeg(path, name, 2 * samples, limits, acodec="pcm_s16le", ac=1, ar=sr, **form, **options)
    with closing(mixed):
        chunks = _join_packets(mixed, gaps, 2 * samples) if timeline.has_timestamps else mixed
        blocks = (np.frombuffer(chunk[: len(chunk) // 2 * 2], "<i2") for chunk in chunks)
        channels = partial(_decode_channels, path, name, samples, limits, ar=sr, **options)
        for block in gaps.fill(restore_cancelled(blocks, channels, sr, name, gaps.seconds)):
            yield block.astype("<i2", copy=False).tobytes()


def _join_packets(stream: Iterator[bytes], gaps: Gaps, size: int) -> Iterator[bytes]:
    """Yield the samples of packets in chunks of so many bytes, and tell `gaps` of each before."""
    buffer = bytearray()
    for timestamp, packet in read_packets(stream):
        gaps.add_packet(timestamp, len(packet) // 2)
        buffer += packet
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


def _decode_channels(
    path: str, name: str, samples: int, limits: DecodeLimits | None, **options: Any
) -> Generator[np.ndarray, None, None]:
    """Yield all channels of a file in blocks of so many samples, int16, ``(samples, channels)``."""
    options |= {"f": "au", "acodec": "pcm_s16be"}  # whose header counts channels
    output = _run_ffmpeg(path, name, CHUNK_BYTES, limits, **options)
    with closing(output):
        buffer = bytearray(next(output, b""))
        if len(buffer) < 24:
            return
        _, header, _, _, _, channels = struct.unpack(">6I", buffer[:24])
        if limits is not None and channels > limits.channels:
            raise load_error(name, f"its {channels} channels are more than the {limits.channels} that are allowed")
        del buffer[:header]
        size = 2 * channels * samples
        for chunk in chain([b""], output):
            buffer += chunk
            while len(buffer) >= size:
                yield np.frombuffer(bytes(buffer[:size]), ">i2").reshape(-1, channels)
                del buffer[:size]
        yield np.frombuffer(bytes(buffer[: len(buffer) // (2 * channels) * 2 * channels]), ">i2").reshape(-1, channels)


class _Timeline(NamedTuple):
    """What to decode of a file, and when it sounds.

    ``stream`` : as ffmpeg's ``-map`` takes it; None for ffmpeg's choice. ``delay`` : seconds of silence before it.
    ``length`` : seconds after which there can be nothing.
    """

    stream: str | None = None
    delay: float = 0.0
    has_timestamps: bool = False
    length: float = 0.0


def _timeline(path: str, name: str, audio_track: int | str | None, limits: DecodeLimits | None = None) -> _Timeline:
    """Choose a track of a file, and find out when it begins.

    Files without a clock, which most recordings are, need no look at them, and are decoded as openai-whisper does.
    """
    if audio_track is None and _is_clockless_file(path):
        return _Timeline()
    container, first_sample = _probe(path, limits=limits)
    stream = None
    if audio_track is None:
        if len(container.tracks) > 1 and container.heard:
            listed = ", ".join(map(str, container.tracks))
            warnings.warn(
                f"{name} has {len(container.tracks)} audio tracks: {listed}; track {container.heard.number} is heard, "
                "audio_track chooses another"
            )
    elif container.tracks:
        try:
            track = choose_track(container.tracks, audio_track)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        stream = f"0:{track.stream}"
        if track != container.heard:
            _, first_sample = _probe(path, stream, limits)
    delay = 0.0 if first_sample is None else container.delay(first_sample)
    return _Timeline(stream, delay, container.has_timestamps, container.length)


def _is_clockless_file(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return is_clockless(file.read(12))
    except OSError:  # ffmpeg will say why
        return True


def _probe(path: str, stream: str | None = None, limits: DecodeLimits | None = None) -> tuple[Container, float | None]:
    """Return what ffmpeg says of a file, and the timestamp of the first sample of a stream, if it has any.

    Without `stream`, it is the one that ffmpeg chooses. What ffmpeg cannot decode is a container without tracks: to
    say why is left to decoding.
    """
    chosen = {} if stream is None else {"map": stream}
    with tempfile.TemporaryFile() as messages:
        output = {"f": "framecrc", "acodec": "pcm_s16le", "frames:a": 1, **NO_VIDEO, **chosen}
        command = _ffmpeg_command(path, "info", limits, copyts=True, **output)
        try:
            with (
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as process,
                nullcontext() if limits is None else limits.enforce(process),
            ):
                printed = process.communicate()[0]
        except TimeoutError as error:
            raise load_error(path, str(error)) from None
        messages.seek(0)
        container = parse_container(messages.read(MAX_MESSAGES).decode(errors="replace"))
    return container, parse_first_timestamp(printed.decode(errors="replace"))


def _ffmpeg_command(
    path: str, loglevel: str, limits: DecodeLimits | None = None, *, copyts: bool = False, **output: Any
) -> list[str]:
    """Return the command that makes something of a file with these options of its output."""
    # "file:" makes ffmpeg take the rest literally, whatever it looks like; the whitelist stops a playlist in the file
    # from opening a network connection
    formats = {} if limits is None else {"format_whitelist": ",".join(limits.formats)}
    stream = ffmpeg.input("file:", threads=0, protocol_whitelist="file,pipe", **formats)
    stream = stream.output("pipe:", **output)
    options = ["-nostdin", "-hide_banner", "-nostats", "-loglevel", loglevel, "-dts_delta_threshold", str(MAX_GAP)]
    if copyts:
        options.append("-copyts")
    command: list[str] = ffmpeg.compile(stream, cmd=[ffmpeg_binary(), *options])
    return [f"file:{path}" if part == "file:" else part for part in command]  # names that are no UTF-8 do not compile


def _run_ffmpeg(
    path: str, name: str, size: int, limits: DecodeLimits | None = None, **output: Any
) -> Generator[bytes, None, None]:
    """Yield what ffmpeg makes of a file with these options of its output, in chunks of so many bytes."""
    command = _ffmpeg_command(path, "error", limits, **output)
    # errors go to a file, not a pipe: a damaged input can produce more of them than a pipe holds
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        try:
            with nullcontext() if limits is None else limits.enforce(process):
                while chunk := process.stdout.read(size):
                    yield chunk
                status = process.wait()
        except TimeoutError as error:
            raise load_error(name, str(error)) from None
        finally:
            process.stdout.close()
            if process.poll() is None:
                process.kill()
                process.wait()
        if status != 0:
            reason = last_error(errors).removeprefix(f"file:{path}: ")  # which may be a temporary one
            raise load_error(name, reason or f"ffmpeg ended with status {status}")


def last_error(errors: IO[bytes]) -> str:
    """Return the last line that ffmpeg wrote to a file, without the address of the part that wrote it."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 4096))
    text = errors.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = re.sub(r"^(\[[^\]]*\]\s*)+", "", lines[-1]) if lines else ""
    # of a picture, a silent film or plain text ("ANSI art" to ffmpeg), the last line alone says little
    return f"it holds no audio ({last})" if "does not contain any stream" in text else last


def load_error(name: str, reason: str) -> RuntimeError:
    """Return what is raised where a recording cannot be decoded."""
    return RuntimeError(f"Failed to load audio: {name}: {reason}")
