"""The audio tracks of a file, and the clock that its times count on.

A player's clock begins with the earliest of a container's streams. The sound of a video may begin later, and pause
where nothing was recorded; ffmpeg by itself leaves both out, and every later time is then too early. Here is what
ffmpeg says of a file, read from its messages: a program that reports it in better order is not always beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whisper.tokenizer import LANGUAGES

from .languages import language_code

MAX_PRIMING = 0.2
"""Seconds. What encoders put before the sound; a container that starts so little before 0 has its zero at 0."""
MIN_DELAY = 0.01
"""Seconds, a frame of the spectrogram. Sound that begins so little after the container is left where it is."""
MAX_GAP = 3600
"""Seconds by which the timestamps of a broadcast may leap; at a longer leap another recording begins."""
MAX_TIME = 24 * 3600.0
"""Seconds. Timestamps beyond are wrong, where the container does not say how long it is."""
CLOCKLESS = (b"fLaC", b"ID3", b"FORM", b".snd", b"wvPk", b"#!AMR")
"""First bytes of files of audio alone, whose samples simply follow one another."""
COUNTED_FORMATS = ("wav", "avi", "flac", "mp3", "aac")
"""Names that ffmpeg gives to formats without timestamps: it counts them, in AVI often wrongly."""


@dataclass(frozen=True)
class AudioTrack:
    """An audio track of a file.

    Attributes
    ----------
    number : int
        From 1, in the order of the file.
    language : str
        As the file has it (``eng``, ``de`` …), or empty.
    title : str
        Or empty.
    stream : int
        ffmpeg's index among all streams.
    """

    number: int
    language: str = ""
    title: str = ""
    stream: int = 0

    def __str__(self) -> str:
        try:
            language = LANGUAGES[language_code(self.language) or ""].title()
        except (KeyError, ValueError):
            language = self.language
        description = ": ".join(filter(None, [language, self.title]))
        return f"{self.number} ({description})" if description else str(self.number)


@dataclass(frozen=True)
class Container:
    """What ffmpeg says of a file.

    Attributes
    ----------
    format : str
        ffmpeg's names of it, with commas.
    start : float
        Seconds at which its earliest stream starts.
    duration : float or None
        In seconds, if it is known.
    tracks : tuple of AudioTrack
        All audio tracks.
    heard : AudioTrack or None
        The one that is decoded.
    has_other_streams : bool
        Whether there is more than one audio track: other ones, video, subtitles; cover pictures do not count.
    origin : float
        Seconds at which ffmpeg's own times of what it decodes begin: the start, of a broadcast that of its track.
    is_mono : bool
        Whether what is decoded begins with a single channel; False, too, where ffmpeg does not say.
    """

    format: str = ""
    start: float = 0.0
    duration: float | None = None
    tracks: tuple[AudioTrack, ...] = ()
    heard: AudioTrack | None = None
    has_other_streams: bool = False
    origin: float = 0.0
    is_mono: bool = False

    def delay(self, first_sample: float) -> float:
        """Return the seconds of silence before the sound.

        Parameters
        ----------
        first_sample : float
            Timestamp of the first sample of the track that is heard, in seconds.
        """
        zero = 0.0 if -MAX_PRIMING < self.start < 0 else self.start
        delay = first_sample - zero
        return delay if self.has_other_streams and MIN_DELAY <= delay <= MAX_TIME else 0.0

    @property
    def has_timestamps(self) -> bool:
        """Whether timestamps may tell of gaps."""
        return not set(COUNTED_FORMATS) & set(self.format.split(","))

    @property
    def length(self) -> float:
        """Seconds after which there can be nothing: timestamps beyond are wrong."""
        return MAX_TIME if self.duration is None else self.duration + 1


def is_clockless(head: bytes) -> bool:
    """Return whether the first twelve bytes or more of a file say that it has one track, which begins at 0."""
    is_wave = head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE"
    is_mpeg_audio = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    return is_wave or is_mpeg_audio or head.startswith(CLOCKLESS)


def parse_container(messages: str) -> Container:
    """Return what ffmpeg writes of its input, and of the stream that it decodes, at ``-loglevel verbose``.

    Examples
    --------
    >>> container = parse_container('''Input #0, matroska,webm, from 'film.mkv':
    ...   Duration: 00:01:30.50, start: 0.500000, bitrate: 69 kb/s
    ...   Stream #0:0: Video: h264 (High), yuv420p, 64x48, 25 fps
    ...   Stream #0:1(ger): Audio: aac, 48000 Hz, stereo, fltp (default)
    ...     Metadata:
    ...       title           : Director
    ... Stream mapping:
    ...   Stream #0:1 -> #0:0 (aac (native) -> pcm_s16le (native))
    ... [graph_0_in_0_1 @ 0x1] tb:1/48000 samplefmt:fltp samplerate:48000 chlayout:stereo''')
    >>> container.start, container.duration, str(container.heard), container.is_mono
    (0.5, 90.5, '1 (German: Director)', False)
    """
    given = re.search(r"^Input #0, (\S+), from ", messages, re.M)
    duration = re.search(r"^  Duration: (?:(\d+):(\d\d):(\d\d\.\d+)|N/A)(?:, start: (-?[\d.]+))?", messages, re.M)
    seconds = start = None
    if duration:
        hours, minutes, rest, start = duration.groups()
        seconds = None if hours is None else 3600 * int(hours) + 60 * int(minutes) + float(rest)
    listed, _, mapping = messages.partition("\nStream mapping:")
    streams = _parse_streams(listed)
    tracks = [replace(track, number=i + 1) for i, track in enumerate(t for t in streams.values() if t)]
    mapped = re.search(r"^  Stream #0:(\d+) -> #0:0", mapping, re.M)
    heard = [track for track in tracks if mapped and track.stream == int(mapped[1])]
    correction = re.search(r"^(?:\[.* @ .*\] )?Correcting start time (?:of Input #0 )?by (-?\d+)", messages, re.M)
    layout = re.search(r"^\[.* @ .*\] tb:\S+ samplefmt:\S+ samplerate:\d+ chlayout:(.*)$", mapping, re.M)
    return Container(
        format=given[1] if given else "",
        start=float(start or 0),
        duration=seconds,
        tracks=tuple(tracks),
        heard=heard[0] if heard else None,
        has_other_streams=len(streams) > 1,
        origin=float(start or 0) + (int(correction[1]) / 1e6 if correction else 0.0),
        is_mono=layout is not None and bool(re.match(r"mono$|1 channels", layout[1])),
    )


def _parse_streams(listed: str) -> dict[int, AudioTrack | None]:
    """Return streams by ffmpeg's index, those that are not audio as None, pictures left out."""
    streams: dict[int, AudioTrack | None] = {}
    # a stream's own lines are indented further than its first; a broadcast lists streams once for each programme
    heads = r"^ {2,4}Stream #0:(\d+)(?:\[\w+\])?(?:\(([^)]*)\))?: (\w+):(.*)$((?:\n {4,}(?!Stream #).*)*)"
    for index, language, kind, codec, details in re.findall(heads, listed, re.M):
        if kind == "Audio":
            title = re.search(r"^ +title +: (.*)$", details, re.M)
            known = "" if language == "und" else language
            streams[int(index)] = AudioTrack(0, known, title[1].strip() if title else "", int(index))
        elif "(attached pic)" not in codec:
            streams[int(index)] = None
    return dict(sorted(streams.items()))


def parse_first_timestamp(framecrc: str) -> float | None:
    """Return the seconds of the first frame in what ffmpeg's muxer ``framecrc`` writes, or None without one."""
    base = re.search(r"^#tb 0: (\d+)/(\d+)", framecrc, re.M)
    frame = re.search(r"^0, *-?\d+, *(-?\d+),", framecrc, re.M)
    return int(frame[1]) * int(base[1]) / int(base[2]) if base and frame else None


def choose_track(tracks: Sequence[AudioTrack], wanted: int | str) -> AudioTrack:
    """Return the track of a number, from 1, or the first one of a language.

    Raises
    ------
    ValueError
        If there is none; the message lists all.
    """
    found = [track for track in tracks if _is_wanted(track, wanted)]
    if not found:
        listed = ", ".join(map(str, tracks))
        has = f"its audio tracks are {listed}" if len(tracks) > 1 else f"its only audio track is {listed}"
        raise ValueError(f"there is no audio_track {wanted!r}: {has}")
    return found[0]


def _is_wanted(track: AudioTrack, wanted: int | str) -> bool:
    if str(wanted).strip().isdecimal():
        return track.number == int(wanted)
    return bool(track.language) and _normal_language(track.language) == _normal_language(str(wanted))


def _normal_language(language: str) -> str:
    """Return Whisper's code of a language, or its own name where Whisper does not know it."""
    try:
        return language_code(language) or language.strip().lower()
    except ValueError:
        return language.strip().lower()
