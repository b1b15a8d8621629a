"""Languages on base: found, given, and translated as upstream does."""

from __future__ import annotations

import pytest
from real_recordings import voice
from same_as_upstream import both

pytestmark = pytest.mark.real


def test_language_is_found(base):
    audio = voice("de__multi_leopard__test_de")
    assert both(*base, audio, None, temperature=(0, 0.4), sample_len=24)["language"] == "de"


def test_language_is_given(base):
    audio = voice("hi__hi_corpus__00A004")
    assert both(*base, audio, None, language="hi", temperature=(0, 0.4), sample_len=24)["text"]


def test_translation_with_beams(base):
    options = dict(task="translate", language="es", beam_size=2, temperature=0)
    assert "pigment" in both(*base, voice("es__multi_riva__es-US_sample"), None, **options)["text"]


def test_translation_of_a_language_that_is_found(base):
    options = dict(task="translate", temperature=0)
    result = both(*base, voice("fr__multi_leopard__test_fr"), None, **options)
    assert result["language"] == "fr"
