"""Word error rate (spec section 4.3)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple


class WordErrors(NamedTuple):
    """Number of substituted, deleted and inserted words, and number of reference words."""

    errors: int
    words: int

    @property
    def rate(self) -> float:
        """Word error rate; NaN without reference words."""
        return self.errors / self.words if self.words else float("nan")


def plain_words(text: str) -> list[str]:
    """Split text into words as the paper does: upper case, without punctuation.

    Hyphens and apostrophes are removed and join their neighbours. Numbers and abbreviations are not normalized, so
    that ``20`` is an error for ``TWENTY``.

    Examples
    --------
    >>> plain_words("It's well-known.")
    ['ITS', 'WELLKNOWN']
    """
    return "".join(c for c in text.upper() if not unicodedata.category(c).startswith("P")).split()


def whisper_words(text: str) -> list[str]:
    """Split text into words by openai-whisper's English normalizer, which unifies numbers and contractions.

    This is the better measure for sentences, but it joins single digits: ``three one`` becomes ``31``.
    """
    return _normalizer()(text).split()


@cache
def _normalizer() -> Callable[[str], str]:
    from whisper.normalizers import EnglishTextNormalizer

    return EnglishTextNormalizer()


NORMALIZERS: dict[str, Callable[[str], list[str]]] = {"plain": plain_words, "whisper": whisper_words}


def word_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalize: Callable[[str], list[str]] = plain_words
) -> WordErrors:
    """Return the edit distance in words, summed over all pairs of texts.

    Parameters
    ----------
    references, hypotheses : sequence of str
        Texts in the same order.
    normalize : callable
        Splits a text into words.

    Examples
    --------
    >>> word_errors(["a b", "c"], ["a x", "c"]).rate
    0.3333333333333333
    """
    from jiwer import process_words

    if not references:
        return WordErrors(0, 0)
    joined = [[" ".join(normalize(text)) for text in texts] for texts in (references, hypotheses)]
    out = process_words(joined[0], joined[1])
    errors = out.substitutions + out.deletions + out.insertions
    return WordErrors(errors, out.hits + out.substitutions + out.deletions)
