"""The recipe that measures the speech gate: mixtures at a ratio, and tables of what was heard by every method."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import SAMPLE_RATE, noise

from recipes.speech_gate.recordings import Recording, mix
from recipes.speech_gate.report import has_words, overlap, tables


@pytest.mark.parametrize("ratio", [10, 0])
def test_speech_and_noise_are_mixed_at_the_ratio(ratio):
    speech, other = noise(3, seed=1), noise(1, seed=2)
    added = mix(speech, other, ratio) - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(ratio, abs=0.01)


def row(method: str, recording: Recording, text: str, withheld=()) -> dict:
    spans = [{"start": start, "end": end} for start, end in withheld]
    return {
        "method": method,
        "name": recording.name,
        "kind": recording.kind,
        "text": text,
        "withheld": spans,
        "cpu": 2.4,
    }


def test_tables_count_what_every_method_has_heard():
    silence = np.zeros(SAMPLE_RATE, np.float32)
    sounds = [Recording("sounds", str(i), silence) for i in range(3)]
    talk = Recording("speech", "talk", silence, "one dog barks loudly", [(0.0, 2.0), (3.0, 4.0)])
    rows = [row("default", sounds[0], " Thank you."), row("default", sounds[1], " ."), row("default", sounds[2], " Hm")]
    rows += [row("speech_gate", sounds[0], ""), row("speech_gate", sounds[1], "")]
    rows += [row("default", talk, "one dog barks"), row("speech_gate", talk, "one dog", [(1.5, 3.5)])]
    lines = list(tables(rows, [*sounds, talk]))
    assert "| sounds | 2 | 50.0 % (9.5–90.5) | 0.0 % (0.0–65.8) |" in lines
    assert "| all | 2 | 50.0 % (9.5–90.5) | 0.0 % (0.0–65.8) |" in lines
    assert "| … CPU, s | | 5 | 5 |" in lines
    assert "| speech | 4 | 25.00 % | 50.00 % (+25.00; +25.00 to +25.00) |" in lines
    assert "| … s withheld of 3 spoken | | 0.0 | 1.0 |" in lines


def test_punctuation_is_no_text():
    assert not has_words(" ... ♪")
    assert overlap([(0, 1)], []) == 0
