"""Synthetic speech with exact word times, by `libespeak-ng` through ctypes.

The library reports the audio position of every word while it synthesises, so no alignment is needed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import random
from dataclasses import dataclass

import numpy as np
from scipy.signal import resample_poly

from .text import spoken_form

RATE = 16000
WORD_EVENT, END_EVENT, SYNCHRONOUS, UTF8, RATE_PARAMETER, PITCH_PARAMETER = 1, 0, 2, 1, 1, 3  # from speak_lib.h
ACCENTS = "en-us en-us en-us en-gb en-gb en-gb-x-rp en-gb-scotland en-gb-x-gbclan en-gb-x-gbcwmd en-029".split()
PLAIN_VOICES = "en-us en-us en-us en-gb".split()
VARIANTS = "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt4".split()
HELD_OUT_VARIANTS = {"m5", "f4"}


@dataclass
class Utterance:
    """Speech with word times.

    Attributes
    ----------
    audio : ndarray of int16, shape (samples,)
        Speech at 16 kHz.
    words : list of str
        Written words, and the final "." or "?" of a sentence.
    spans : list of (int, int)
        Start and end of each word in samples; that of "." or "?" is empty, at the end of the last word.
    voice : str
        Name of the voice or speaker.
    """

    audio: np.ndarray
    words: list[str]
    spans: list[tuple[int, int]]
    voice: str


class _Position(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Position),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def speech_bounds(audio: np.ndarray, drop_db: float = 38.0) -> tuple[int, int]:
    """Return the first and last sample (16 kHz) that are less than ``drop_db`` below the loudest 10 ms frame."""
    frames = audio[: len(audio) // 160 * 160].astype(np.float32).reshape(-1, 160)
    if len(frames) == 0:
        return 0, len(audio)
    level = np.sqrt((frames**2).mean(1))
    loud = np.flatnonzero(level > level.max() * 10 ** (-drop_db / 20))
    return int(loud[0]) * 160, min(len(audio), (int(loud[-1]) + 1) * 160)


class Espeak:
    """The synthesiser. There can only be one per process."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self._lib = ctypes.CDLL(name)
        except OSError as error:
            raise RuntimeError("libespeak-ng is missing: install the package espeak-ng") from error
        self._rate = self._lib.espeak_Initialize(SYNCHRONOUS, 500, None, 0)
        self._chunks: list[np.ndarray] = []
        self._events: list[tuple[int, int]] = []
        self._callback = _CALLBACK(self._receive)
        self._lib.espeak_SetSynthCallback(self._callback)

    def _receive(self, wav, count, events) -> int:
        if wav and count > 0:
            self._chunks.append(np.ctypeslib.as_array(wav, (count,)).copy())
        i = 0
        while events[i].type != END_EVENT:
            if events[i].type == WORD_EVENT:
                self._events.append((events[i].text_position - 1, events[i].audio_position))
            i += 1
        return 0

    def synthesise(self, words: list[str], voice: str, wpm: int, pitch: int, separator: str = " ") -> Utterance | None:
        """Speak the words.

        Parameters
        ----------
        words : list of str
            Words and numerals; the last may be "." or "?".
        voice, wpm, pitch : str, int, int
            Voice, speed in words per minute, and pitch from 0 to 99.
        separator : str
            Text between words.

        Returns
        -------
        Utterance or None
            None if the time of a word is not known.
        """
        mark = words[-1] if words[-1] in ".?" else ""
        spoken = [spoken_form(word) for word in (words[:-1] if mark else words)]
        text, positions = "", []
        for i, word in enumerate(spoken):
            text += separator if i else ""
            positions.append(len(text))
            text += word
        text += mark or "."
        self._chunks, self._events = [], []
        self._lib.espeak_SetVoiceByName(voice.encode())
        self._lib.espeak_SetParameter(RATE_PARAMETER, wpm, 0)
        self._lib.espeak_SetParameter(PITCH_PARAMETER, pitch, 0)
        raw = text.encode()
        self._lib.espeak_Synth(raw, len(raw) + 1, 0, 1, 0, UTF8, None, None)
        if not self._chunks:
            return None
        audio = np.concatenate(self._chunks).astype(np.float32)
        if self._rate == 22050:
            audio = resample_poly(audio, 320, 441)
        first, last = speech_bounds(audio)
        onset_at: dict[int, int] = {}
        for position, milliseconds in self._events:
            onset_at.setdefault(position, milliseconds * RATE // 1000)
        known = [onset_at.get(position) for position in positions]
        onsets: list[int] = []
        # espeak reports some pairs ("of the") as one word: divide it in proportion to the letters
        for i, onset in enumerate(known):
            if onset is None and i == 0:
                onset = first
            elif onset is None:
                end = known[i + 1] if i + 1 < len(known) else last
                if end is None:
                    return None
                share = len(spoken[i - 1]) / (len(spoken[i - 1]) + len(spoken[i]))
                onset = int(onsets[-1] + share * (end - onsets[-1]))
            onsets.append(onset)
        onsets[0] = max(onsets[0], first)
        if any(b <= a for a, b in zip(onsets, [*onsets[1:], last])):
            return None
        spans = []
        for a, b in zip(onsets, [*onsets[1:], last]):
            low, high = speech_bounds(audio[a:b], 30.0)  # a comma leaves silence after the word
            spans.append((a + low - first, a + max(high, low + 160) - first))
        if mark:
            spans.append((spans[-1][1], spans[-1][1]))
        audio = np.clip(audio[first:last], -32768, 32767).astype(np.int16)
        return Utterance(audio, list(words), spans, voice)

    def random_voice(self, rng: random.Random, held_out: bool = False) -> tuple[str, int, int]:
        """Return a voice, its speed in words per minute and its pitch.

        Every other voice is plain; the others have one of the variants for training or, if ``held_out``, of those for
        the evaluation.
        """
        if rng.random() < 0.5:
            return rng.choice(PLAIN_VOICES), rng.randrange(130, 190), rng.randrange(40, 60)
        variants = sorted(HELD_OUT_VARIANTS) if held_out else [v for v in VARIANTS if v not in HELD_OUT_VARIANTS]
        return f"{rng.choice(ACCENTS)}+{rng.choice(variants)}", rng.randrange(120, 200), rng.randrange(30, 70)
