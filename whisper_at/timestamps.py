"""Samples with their timestamps, and the gaps that these tell of.

ffmpeg writes samples as Matroska (RFC 9559), whose packets have timestamps in milliseconds. Its own filter that fills
gaps, ``aresample`` with ``async``, needs memory for all of a gap at once, fails at long ones, drops samples where
timestamps go back, and loses the gap at which a broadcast changes its channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

MIN_GAP = 0.1
"""Seconds. Timestamps of whole recordings vary by less: they are rounded, and clocks of devices differ."""
SILENCE_SAMPLES = 1 << 19
"""Samples of silence at once: 33 s at 16 kHz."""

SEGMENT, CLUSTER, BLOCK_GROUP = 0x18538067, 0x1F43B675, 0xA0  # elements of elements
CLUSTER_TIMESTAMP, BLOCK, SIMPLE_BLOCK = 0xE7, 0xA1, 0xA3


def read_packets(chunks: Iterable[bytes]) -> Iterator[tuple[float, bytes]]:
    """Yield timestamps in seconds and contents of the packets of a Matroska stream with one track.

    Parameters
    ----------
    chunks : iterable of bytes
        The stream, as ffmpeg writes it to a pipe, in parts of any length. Where it breaks off, packets end.
    """
    remaining = iter(chunks)
    buffer, position = bytearray(), 0
    cluster = 0

    def read(size: int) -> None:
        nonlocal position
        while len(buffer) - position < size and (more := next(remaining, b"")):
            del buffer[:position]
            position = 0
            buffer.extend(more)

    while True:
        read(12)  # an element is its number and its size, of at most 12 bytes, and its content
        number, number_length = _read_number(buffer, position, keep_marker=True)
        size, size_length = _read_number(buffer, position + number_length, keep_marker=False)
        if not number_length or not size_length:
            return
        position += number_length + size_length
        if number in (SEGMENT, CLUSTER, BLOCK_GROUP):  # whose elements come next
            continue
        read(size)
        content = bytes(buffer[position : position + size])
        if len(content) < size:
            return
        position += size
        if number == CLUSTER_TIMESTAMP:
            cluster = int.from_bytes(content, "big")
        elif number in (BLOCK, SIMPLE_BLOCK):  # track, one byte; timestamp, two; flags, one
            yield (cluster + int.from_bytes(content[1:3], "big", signed=True)) / 1000, content[4:]


def _read_number(buffer: bytearray, position: int, *, keep_marker: bool) -> tuple[int, int]:
    """Return a number of variable length, and the bytes that it takes; 0, 0 past the end.

    The first 1 bit says how many bytes they are; it belongs to numbers of elements, not to sizes.
    """
    if position >= len(buffer) or not buffer[position]:
        return 0, 0
    length = 9 - buffer[position].bit_length()
    if position + length > len(buffer):
        return 0, 0
    value = int.from_bytes(buffer[position : position + length], "big")
    return value if keep_marker else value & ((1 << 7 * length) - 1), length


class Gaps:
    """Where samples are missing in a recording whose packets come one after the other.

    A packet whose timestamp lies ahead of the samples so far by `MIN_GAP` or more comes after a gap. One whose
    timestamp goes back, or lies past the end of the recording, follows the packet before it: no sample is ever dropped.

    Parameters
    ----------
    sr : int
        Sample rate in Hz.
    end : float
        Seconds from the first packet on beyond which timestamps are wrong.
    delay : float
        Seconds before the first packet.

    Examples
    --------
    >>> gaps = Gaps(sr=10, end=60)
    >>> for timestamp in (5.0, 6.0, 8.5, 1.0, 99.0):
    ...     gaps.add_packet(timestamp, 10)
    >>> [gaps.seconds(sample) for sample in (0, 19, 20, 49)]
    [0.0, 1.9, 3.5, 6.4]
    >>> [block.tolist() for block in gaps.fill([np.ones(25, np.int16)])][1]
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    """

    def __init__(self, sr: int, end: float, delay: float = 0.0) -> None:
        self.sr, self.end, self.delay = sr, end, delay
        self._found: list[tuple[int, int]] = []  # the sample before which so many are missing
        self._samples = self._missing = 0
        self._start: float | None = None

    def add_packet(self, timestamp: float, samples: int) -> None:
        """Take the next packet, of so many samples."""
        if self._start is None:
            self._start = timestamp
        seconds = timestamp - self._start
        missing = round(seconds * self.sr) - self._samples - self._missing
        if missing >= MIN_GAP * self.sr and seconds <= self.end:
            self._found.append((self._samples, missing))
            self._missing += missing
        self._samples += samples

    def seconds(self, sample: int) -> float:
        """Return when a sample sounds."""
        return self.delay + (sample + sum(missing for index, missing in self._found if index <= sample)) / self.sr

    def fill(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield blocks of samples, int16 ``(samples,)``, of packets that have been added, with silence in the gaps."""
        begin = filled = 0
        for block in blocks:
            end, start = begin + len(block), begin
            while filled < len(self._found) and self._found[filled][0] < end:
                index, missing = self._found[filled]
                yield block[start - begin : index - begin]
                yield from silence(missing)
                start, filled = index, filled + 1
            yield block[start - begin :]
            begin = end


def silence(samples: int) -> Iterator[np.ndarray]:
    """Yield so many zeros, int16, in blocks of limited size."""
    for start in range(0, samples, SILENCE_SAMPLES):
        yield np.zeros(min(SILENCE_SAMPLES, samples - start), np.int16)
