"""Kinds of recordings on tiny.en: long ones, noise, sounds, music, silence, nothing. Text and times are upstream's."""

from __future__ import annotations

import pytest
from conftest import SAMPLE_RATE
from real_recordings import in_noise, load, sample, silence, speech
from same_as_upstream import both

LONG = [
    *("5867-48852-0000", "1081-125237-0000", "233-134440-0000", "5463-39173-0000", "5049-25947-0000"),
    "2989-138028-0000",
]
"""Utterances of LibriSpeech, 61 s in all."""

pytestmark = pytest.mark.real


def test_speech_beside_an_engine(tiny_en):
    both(*tiny_en, in_noise(speech("6880-216547-0000"), load("esc50/1-18527-A-44.ogg"), -5), None, sample_len=40)


@pytest.mark.parametrize(
    "path",
    [
        "esc50/1-100032-A-0.ogg",
        "sounds/philharmonia__violin_A3_phrase_forte_arco-spiccato.ogg",
    ],
)
def test_sounds_and_music_without_speech(path, tiny_en):
    """What a Whisper makes up is upstream's, too."""
    both(*tiny_en, load(path)[:160000], None, temperature=(0.0, 0.6), sample_len=20)


@pytest.mark.parametrize("seconds", [0, 6])
def test_silence_and_nothing(seconds, tiny_en):
    both(*tiny_en, silence(seconds), None, temperature=0)


def test_made_up_voices_and_sounds(tiny_en):
    """The project's own recordings, whose voices are synthetic."""
    assert "kitchen" in both(*tiny_en, sample("speech.flac", end=8.5), None)["text"]
    both(*tiny_en, sample("sounds.ogg", 28, 40), None, temperature=0, sample_len=24)


def test_long_recording(tiny_en):
    """62 s: windows start where the segments before them ended, and see their text."""
    audio = speech(*LONG, pause=0.3)
    assert len(audio) > 60 * SAMPLE_RATE
    result = both(*tiny_en, audio, None)
    assert len({segment["seek"] for segment in result["segments"]}) > 2
