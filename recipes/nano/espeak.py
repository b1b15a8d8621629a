"""Synthetic speech with exact word times, from `libespeak-ng` through ctypes.

The library reports an event with the audio position of every word while it synthesises, so no alignment is needed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import random
from dataclasses import dataclass

import numpy as np
from scipy.signal import resample_poly

from .text import spoken

RATE = 16000
WORD_EVENT, END_EVENT, SYNCHRONOUS, UTF8, RATE_PARAMETER, PITCH_PARAMETER = 1, 0, 2, 1, 1, 3
ACCENTS = "en-us en-us en-us en-gb en-gb en-gb-x-rp en-gb-scotland en-gb-x-gbclan en-gb-x-gbcwmd en-029".split()
PLAIN = "en-us en-us en-us en-gb".split()
VARIANTS = "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt4".split()
HELD_OUT_VARIANTS = {"m5", "f4"}


@dataclass
class Utterance:
    """Speech whose words have known places.

    audio: int16, 16 kHz. words: written words. spans: (start, end) of each word in samples; the sign "." or "?"
    that ends a sentence is in `words` too and has an empty span at the end of the last word.
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
    """First and last sample (16 kHz) of what is louder than `drop_db` below the loudest 10 ms frame."""
    frames = audio[: len(audio) // 160 * 160].astype(np.float32).reshape(-1, 160)
    if len(frames) == 0:
        return 0, len(audio)
    level = np.sqrt((frames**2).mean(1))
    loud = np.flatnonzero(level > level.max() * 10 ** (-drop_db / 20))
    return int(loud[0]) * 160, min(len(audio), (int(loud[-1]) + 1) * 160)


class Espeak:
    """One running synthesiser; `say` returns an `Utterance`. Only one may exist in a process."""

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

    def say(self, words: list[str], voice: str, wpm: int, pitch: int, joint: str = " ") -> Utterance | None:
        """Speaks `words` (numerals and words, maybe ending in "." or "?") with `joint` between them.

        Returns None where a word got no place of its own.
        """
        sign = words[-1] if words[-1] in ".?" else ""
        spoken_words = [spoken(w) for w in (words[:-1] if sign else words)]
        text, starts = "", []
        for i, word in enumerate(spoken_words):
            text += joint if i else ""
            starts.append(len(text))
            text += word
        text += sign or "."
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
        at = {}
        for position, milliseconds in self._events:
            at.setdefault(position, milliseconds * RATE // 1000)
        onsets = [at.get(s) for s in starts]
        if onsets[0] is None:
            onsets[0] = first
        # espeak joins some pairs ("of the") into one event: the second word then starts in proportion to the letters
        for i, onset in enumerate(onsets):
            if onset is None:
                if i + 1 < len(onsets) and onsets[i + 1] is None:
                    return None
                end = onsets[i + 1] if i + 1 < len(onsets) else last
                share = len(spoken_words[i - 1]) / (len(spoken_words[i - 1]) + len(spoken_words[i]))
                onsets[i] = int(onsets[i - 1] + share * (end - onsets[i - 1]))
        onsets[0] = max(onsets[0], first)
        if any(b <= a for a, b in zip(onsets, [*onsets[1:], last])):
            return None
        spans = []
        for a, b in zip(onsets, [*onsets[1:], last]):
            low, high = speech_bounds(audio[a:b], 30.0)  # a comma leaves silence inside the word's event
            spans.append((a + low - first, a + max(high, low + 160) - first))
        if sign:
            spans.append((spans[-1][1], spans[-1][1]))
        audio = np.clip(audio[first:last], -32768, 32767).astype(np.int16)
        return Utterance(audio, list(words), spans, voice)

    def random_voice(self, r: random.Random, held_out: bool = False) -> tuple[str, int, int]:
        """(voice, words per minute, pitch 0–99): a plain voice every other time, else one of the training variants or
        of the held-out ones.
        """
        if r.random() < 0.5:
            return r.choice(PLAIN), r.randrange(130, 190), r.randrange(40, 60)
        variants = sorted(HELD_OUT_VARIANTS) if held_out else [v for v in VARIANTS if v not in HELD_OUT_VARIANTS]
        return f"{r.choice(ACCENTS)}+{r.choice(variants)}", r.randrange(120, 200), r.randrange(30, 70)
