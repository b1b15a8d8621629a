"""Words on real weights: upstream's words, times and probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from real_recordings import in_noise, load, silence, speech, voice
from same_as_upstream import both

pytestmark = pytest.mark.real


def words_of(result: dict) -> list[dict]:
    return [word for segment in result["segments"] for word in segment["words"]]


def test_clean_speech(tiny_en):
    result = both(*tiny_en, speech("1963-142393-0000"), None, word_timestamps=True)
    assert len(words_of(result)) > 10


def test_windows_that_follow_one_another(tiny_en):
    """Where a clip ends is not where its last word does; the next starts behind it."""
    audio = speech("4441-76250-0000", "839-130898-0000", pause=1.3)
    result = both(*tiny_en, audio, None, word_timestamps=True, clip_timestamps="0,5.2,5.2")
    assert len({segment["seek"] for segment in result["segments"]}) > 1


def test_beams_in_noise_and_other_signs_that_join_words(tiny_en):
    both(
        *tiny_en,
        in_noise(speech("2764-36616-0000"), load("esc50/1-137296-A-16.ogg"), 5),
        None,
        beam_size=3,
        word_timestamps=True,
        prepend_punctuations="(",
        append_punctuations=".",
    )


def test_hallucinations_in_silence_are_dropped_as_upstream_does(tiny_en):
    """Silence, speech, silence, a dog, silence: with the threshold windows start elsewhere."""
    audio = np.concatenate(
        [silence(4), speech("839-130898-0000"), silence(9), load("esc50/1-100032-A-0.ogg")[:16000], silence(6)]
    )
    options = dict(temperature=0, sample_len=60, word_timestamps=True)
    both(*tiny_en, audio, None, hallucination_silence_threshold=1.0, **options)


def test_language_without_spaces(base):
    result = both(*base, voice("ja__multi_leopard__test_ja"), None, language="ja", word_timestamps=True)
    assert len(words_of(result)) > 8


def test_features_that_are_reused_give_the_same_words(tiny_en):
    """`strict_word_timing=False` and batches time words from the features of the text, in float32 to the same frame."""
    audio = speech("2764-36616-0000")
    options = dict(word_timestamps=True, temperature=0)
    results = [
        tiny_en.model.transcribe(audio, **extra, **options)
        for extra in ({}, {"strict_word_timing": False}, {"batch_size": 2})
    ]
    strict, quick, batched = (
        [(word["word"], word["start"], word["end"]) for word in words_of(result)] for result in results
    )
    assert strict == quick == batched != []
