"""The samples of a file on the clock of its container, from one ffmpeg where that is enough.

Before the first sample comes, ffmpeg says what tracks and how many channels a file has. It is started again where
another track is wanted, where the sound begins late, and where a downmix of several channels is so quiet that they may
cancel each other.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from .downmix import frame_length, restore_cancelled
from .ffmpeg_messages import FfmpegMessages
from .ffmpeg_process import NO_VIDEO, load_error, probe, run_ffmpeg
from .limits import DecodeLimits
from .timestamps import Gaps, read_packets, silence
from .tracks import AudioTrack, Container, choose_track, is_clockless, parse_container

CHUNK_BYTES = 1 << 20  # read at once: 33 s at 16 kHz
PACKET_ROUNDING = 0.002
"""Seconds by which the timestamp of a packet may be too early: Matroska counts milliseconds."""


def decode_file(
    path: str,
    name: str,
    sr: int,
    audio_track: int | str | None = None,
    limits: DecodeLimits | None = None,
    stream: str | None = None,
) -> Generator[bytes, None, None]:
    """Decode a local file to one channel.

    Parameters
    ----------
    path : str
    name : str
        What messages call it.
    sr : int
        Sample rate of the result in Hz.
    audio_track : int or str, optional
        As of `whisper_at.load_audio`.
    limits : DecodeLimits, optional
        All but that of its length, which is the caller's.
    stream : str, optional
        What to decode, as ffmpeg's ``-map`` takes it: then there is nothing to choose.

    Yields
    ------
    bytes
        Samples, little-endian int16.

    Raises
    ------
    RuntimeError, ValueError
        As `whisper_at.load_audio`.
    """
    frame = frame_length(sr)
    samples = frame * max(CHUNK_BYTES // (2 * frame), 1)
    is_timed = audio_track is not None or not _is_clockless_file(path)
    # what decides the samples is as in whisper.load_audio
    form: dict[str, Any] = {"f": "matroska", **NO_VIDEO} if is_timed else {"f": "s16le"}
    options = {} if stream is None else {"map": stream}
    messages = FfmpegMessages()
    mixed = run_ffmpeg(path, name, 2 * samples, limits, messages, acodec="pcm_s16le", ac=1, ar=sr, **form, **options)
    with closing(mixed):
        head, failure = b"", None
        try:
            head = next(mixed, b"")
        except RuntimeError as error:
            failure = error
        container = parse_container(messages.description)
        if is_timed and stream is None:
            track = _choose_track(container, name, audio_track)
            if track != container.heard:
                assert track is not None
                mixed.close()
                yield from decode_file(path, name, sr, audio_track, limits, f"0:{track.stream}")
                return
        if failure is not None:
            raise failure

        chunks: Iterator[bytes] = chain([head], mixed)
        gaps = Gaps(sr, container.length)
        if is_timed:
            packets = read_packets(chunks)
            first = next(packets, None)
            if first is not None:
                gaps = Gaps(sr, container.length, _measure_delay(container, first[0], path, stream, limits))
                packets = chain([first], packets)
            for block in silence(round(gaps.delay * sr)):
                yield block.tobytes()
            chunks = _join_packets(packets, gaps if container.has_timestamps else None, 2 * samples)
        blocks: Iterator[np.ndarray] = (np.frombuffer(chunk[: len(chunk) // 2 * 2], "<i2") for chunk in chunks)
        if not container.is_mono:
            channels = partial(_decode_channels, path, name, samples, limits, ar=sr, **options)
            blocks = restore_cancelled(blocks, channels, sr, name, gaps.seconds)
        for block in gaps.fill(blocks):
            yield block.astype("<i2", copy=False).tobytes()


def _is_clockless_file(path: str) -> bool:
    """Return whether a file needs no look at its clock: most recordings, which are decoded as openai-whisper does."""
    try:
        with open(path, "rb") as file:
            return is_clockless(file.read(12))
    except OSError:  # ffmpeg will say why
        return True


def _choose_track(container: Container, name: str, audio_track: int | str | None) -> AudioTrack | None:
    """Return the track to decode, ffmpeg's choice by default, of which a warning tells."""
    if audio_track is None:
        if len(container.tracks) > 1 and container.heard:
            listed = ", ".join(map(str, container.tracks))
            warnings.warn(
                f"{name} has {len(container.tracks)} audio tracks: {listed}; track {container.heard.number} is heard, "
                "audio_track chooses another"
            )
        return container.heard
    if not container.tracks:
        return container.heard
    try:
        return choose_track(container.tracks, audio_track)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _measure_delay(
    container: Container, first_packet: float, path: str, stream: str | None, limits: DecodeLimits | None
) -> float:
    """Return the seconds of silence before the sound, whose first packet has a timestamp that is not exact."""
    if not container.delay(container.origin + first_packet + PACKET_ROUNDING):
        return 0.0
    first_sample = probe(path, stream, limits)[1]
    return 0.0 if first_sample is None else container.delay(first_sample)


def _join_packets(packets: Iterable[tuple[float, bytes]], gaps: Gaps | None, size: int) -> Iterator[bytes]:
    """Yield the samples of packets in chunks of so many bytes, and tell `gaps` of each before."""
    buffer = bytearray()
    for timestamp, packet in packets:
        if gaps is not None:
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
    output = run_ffmpeg(path, name, CHUNK_BYTES, limits, **options)
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
