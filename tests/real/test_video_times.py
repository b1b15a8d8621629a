"""Words of a video on real weights: where a player says that they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from real_recordings import speech

from whisper_at.ffmpeg_process import ffmpeg_binary

pytestmark = pytest.mark.real

CODECS = {"mp4": ("mpeg4", "aac"), "ts": ("mpeg4", "ac3"), "webm": ("libvpx", "libopus")}
"""One of each clock; `tests/test_tracks.py` has more containers."""


def words_of(model, audio) -> list[dict]:
    result = model.transcribe(audio, word_timestamps=True, temperature=0, language="en")
    return [word for segment in result["segments"] for word in segment["words"]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The speech without a film."""
    path = tmp_path_factory.mktemp("plain") / "speech.wav"
    soundfile.write(path, speech("4441-76250-0000"), 16000)
    return path


@pytest.fixture(scope="module")
def expected(tiny_en, plain) -> list[dict]:
    return words_of(tiny_en.model, str(plain))


@pytest.mark.parametrize("suffix", CODECS)
def test_words_of_sound_that_begins_five_seconds_late(tiny_en, plain, expected, tmp_path, suffix):
    """What the decoder writes of the first word depends on the silence before it; all others are compared."""
    film, samples = tmp_path / f"film.{suffix}", speech("4441-76250-0000")
    picture = ["-f", "lavfi", "-i", f"color=s=64x64:r=25:d={6 + len(samples) / 16000}"]
    late = ["-itsoffset", "5", "-i", plain, "-map", "0:v", "-map", "1:a"]
    video, sound = CODECS[suffix]
    codecs = ["-c:v", video, "-c:a", sound, "-ar", "48000", "-b:a", "128k"]
    subprocess.run([ffmpeg_binary(), "-nostdin", "-v", "error", *picture, *late, *codecs, film], check=True)

    actual = words_of(tiny_en.model, str(film))
    texts = [[word["word"].strip(" .,").lower() for word in words] for words in (actual, expected)]
    assert texts[0][1:] == texts[1][1:]
    assert len(actual) > 5
    for edge in ("start", "end"):
        shifts = np.array([word[edge] for word in actual[1:]]) - [word[edge] for word in expected[1:]]
        assert np.abs(shifts - 5).max() <= 0.1, shifts
