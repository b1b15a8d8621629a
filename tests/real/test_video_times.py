"""Words of a video on real weights: where a player says that they are."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import soundfile
from real_recordings import speech

from whisper_at.ffmpeg_process import ffmpeg_binary

pytestmark = pytest.mark.real

CODECS = {"mkv": ("mpeg4", "aac"), "mp4": ("mpeg4", "aac"), "ts": ("mpeg4", "ac3"), "webm": ("libvpx", "libopus")}


def words_of(model, audio) -> list[dict]:
    result = model.transcribe(audio, word_timestamps=True, temperature=0, language="en")
    return [word for segment in result["segments"] for word in segment["words"]]


@pytest.mark.parametrize("suffix", CODECS)
def test_words_of_sound_that_begins_five_seconds_late(tiny_en, tmp_path, suffix):
    """What the decoder writes of the first word depends on the silence before it; all others are compared."""
    plain, film = tmp_path / "speech.wav", tmp_path / f"film.{suffix}"
    samples = speech("4441-76250-0000")
    soundfile.write(plain, samples, 16000)
    picture = ["-f", "lavfi", "-i", f"color=s=64x64:r=25:d={6 + len(samples) / 16000}"]
    late = ["-itsoffset", "5", "-i", plain, "-map", "0:v", "-map", "1:a"]
    video, sound = CODECS[suffix]
    codecs = ["-c:v", video, "-c:a", sound, "-ar", "48000", "-b:a", "128k"]
    subprocess.run([ffmpeg_binary(), "-nostdin", "-v", "error", *picture, *late, *codecs, film], check=True)

    expected = words_of(tiny_en.model, str(plain))
    actual = words_of(tiny_en.model, str(film))
    texts = [[word["word"].strip(" .,").lower() for word in words] for words in (actual, expected)]
    assert texts[0][1:] == texts[1][1:]
    assert len(actual) > 5
    for edge in ("start", "end"):
        shifts = np.array([word[edge] for word in actual[1:]]) - [word[edge] for word in expected[1:]]
        assert np.abs(shifts - 5).max() <= 0.1, shifts
