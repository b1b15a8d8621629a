"""Words of a video on real weights: where a player says that they are."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import soundfile
from real_recordings import speech

from whisper_at.audio import ffmpeg_binary

pytestmark = pytest.mark.real

UTTERANCES = ("1963-142393-0000", "839-130898-0000")


def word_starts(model, audio) -> list[tuple[str, float]]:
    result = model.transcribe(audio, word_timestamps=True, temperature=0, language="en")
    return [(word["word"], word["start"]) for segment in result["segments"] for word in segment["words"]]


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_words_of_sound_that_begins_five_seconds_late(tiny_en, tmp_path, suffix):
    plain, film = tmp_path / "speech.wav", tmp_path / f"film.{suffix}"
    samples = speech(*UTTERANCES, pause=0.5)
    soundfile.write(plain, samples, 16000)
    picture = ["-f", "lavfi", "-i", f"color=s=64x64:r=25:d={6 + len(samples) / 16000}"]
    late = ["-itsoffset", "5", "-i", plain, "-map", "0:v", "-map", "1:a"]
    sound = ["-c:v", "mpeg4", "-c:a", "ac3", "-ar", "48000", "-b:a", "192k"]
    subprocess.run([ffmpeg_binary(), "-v", "error", *picture, *late, *sound, film], check=True)

    expected = word_starts(tiny_en.model, str(plain))
    actual = word_starts(tiny_en.model, str(film))
    assert [word for word, _ in actual] == [word for word, _ in expected]
    shifts = np.array([late - early for (_, late), (_, early) in zip(actual, expected)])
    assert len(shifts) > 20
    # the first word is stretched to where the decoder's text begins, in the wav by nothing and in the film by silence
    assert np.abs(shifts[1:] - 5).max() <= 0.1, shifts
