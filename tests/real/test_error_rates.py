"""Batches and reduced precision on real speech: word error rates stay those of windows in order and in float32."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from real_recordings import UTTERANCES, speech, text

import whisper_at
from whisper_at.engine.simd import has_bfloat16
from whisper_at.study.wer import whisper_words, word_errors

pytestmark = pytest.mark.real
pytest.importorskip("jiwer")


def error_rate(references: list[str], hypotheses: list[str]) -> float:
    """Share of words by jiwer, after Whisper's own normaliser."""
    return word_errors(references, hypotheses, whisper_words).rate


def transcripts(model: whisper_at.WhisperAT, names: Sequence[str] = UTTERANCES) -> list[str]:
    """Text of every utterance, in batches of five."""
    recordings = [speech(name) for name in names]
    results = model.transcribe_many(recordings, batch_size=5, temperature=0)
    texts = {id(audio): result["text"] for audio, result in results}
    return [texts[id(audio)] for audio in recordings]


@pytest.fixture(scope="module")
def references() -> list[str]:
    return [text(name) for name in UTTERANCES]


@pytest.fixture(scope="module")
def in_float32(tiny_en) -> list[str]:
    return transcripts(tiny_en.model)


def test_text_of_a_batch_is_that_of_windows_without_previous_text(tiny_en, in_float32, references):
    """Windows of a batch are not given the text before them, and end with their last word.

    In order, the last second of one of them, "OF THE NAAS ROAD", is a window of its own, and begins with the word that
    the one before has ended with; in a batch it is written with the rest, and no word is there twice.
    """
    assert error_rate(references, in_float32) < 0.15
    options = dict(temperature=0, condition_on_previous_text=False)
    *in_order, last = [tiny_en.model.transcribe(speech(name), **options)["text"] for name in UTTERANCES[5:8]]
    assert in_float32[5:7] == in_order
    assert in_float32[7].partition(" of the ")[0] == last.partition(" of the ")[0]
    assert "the the" in last
    assert "the the" not in in_float32[7]


def test_long_recording_in_a_batch_loses_nothing_at_its_cuts(tiny_en, references):
    """36 s cut where it is quiet: the error rate is at most 5 points above that of windows in order."""
    audio = speech(*UTTERANCES[4:], pause=0.3)
    reference = [" ".join(references[4:])]
    in_order, in_batches = (
        error_rate(reference, [tiny_en.model.transcribe(audio, temperature=0, **options)["text"]])
        for options in ({}, {"batch_size": 4})
    )
    assert in_order < 0.15
    assert in_batches <= in_order + 0.05


@pytest.mark.parametrize("compute_type", ["int8", "bfloat16"])
def test_error_rate_in_reduced_precision_is_close_to_float32s(compute_type, in_float32, references):
    """Ten utterances, 173 words: at most 3 % of float32's words change; the error rate rises by at most 2 points.

    A processor without bfloat16 is slow at it, and is given the first three.
    """
    n = 3 if compute_type == "bfloat16" and not has_bfloat16() else len(UTTERANCES)
    found = transcripts(whisper_at.load_model("tiny.en", "cpu", head=None, compute_type=compute_type), UTTERANCES[:n])
    assert error_rate(in_float32[:n], found) <= 0.03
    assert error_rate(references[:n], found) <= error_rate(references[:n], in_float32[:n]) + 0.02
