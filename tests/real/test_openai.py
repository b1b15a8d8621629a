"""What openai-whisper's own tests ask of a model, asked of ours on tiny.en."""

from __future__ import annotations

import pytest
from real_recordings import load
from same_as_upstream import both
from whisper.tokenizer import get_tokenizer

pytestmark = pytest.mark.real


def test_kennedys_words_are_heard_in_time(tiny_en):
    """openai/whisper, tests/test_transcribe.py, and every token and time as the installed version gives them."""
    options = dict(temperature=0.0, word_timestamps=True)
    result = both(*tiny_en, load("speech/jfk.flac"), None, **options)

    assert result["language"] == "en"
    assert result["text"] == "".join(segment["text"] for segment in result["segments"])
    for phrase in ("my fellow americans", "your country", "do for you"):
        assert phrase in result["text"].lower()

    tokenizer = get_tokenizer(multilingual=False, language="en")
    tokens = [token for segment in result["segments"] for token in segment["tokens"]]
    assert tokenizer.decode(tokens) == result["text"]
    assert tokenizer.decode_with_timestamps(tokens).startswith("<|0.00|>")

    words = [word for segment in result["segments"] for word in segment["words"]]
    assert all(word["start"] < word["end"] for word in words)
    (americans,) = [word for word in words if word["word"].strip(" ,") == "Americans"]
    assert americans["start"] <= 1.8 <= americans["end"]
