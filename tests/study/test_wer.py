"""Words and word error rates."""

from __future__ import annotations

import numpy as np
import pytest

from whisper_at.study.wer import WordErrors, plain_words, whisper_words, word_errors


def test_plain_words_are_those_of_the_paper():
    from jiwer import RemovePunctuation

    for text in ("It's well-known, “quoted” … don't", "$5 & 10% – fine", "a.b c;d"):
        assert plain_words(text) == RemovePunctuation()(text.upper()).split()
    assert plain_words("It's well-known") == ["ITS", "WELLKNOWN"]


def test_errors_are_summed_over_all_words():
    # 1 substitution in 2 words, 1 insertion in 1, 3 deletions in 3: 5 of 6, not the mean of 1/2, 1 and 1
    found = word_errors(["a b", "c", "d e f"], ["A x.", "c d", ""])
    assert found == WordErrors(5, 6)
    assert found.rate == pytest.approx(5 / 6)
    assert word_errors(["", "a"], ["b", "a"]) == WordErrors(1, 1)  # words where nothing was said
    assert np.isnan(word_errors([], []).rate)


def test_whispers_normalizer_unifies_numbers_and_abbreviations():
    pair = ["mister smith will not pay twenty dollars"], ["Mr. Smith won't pay $20."]
    assert word_errors(*pair).errors > 0
    assert word_errors(*pair, whisper_words).errors == 0
