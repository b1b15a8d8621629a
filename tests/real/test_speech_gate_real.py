"""The gate on real Whisper with its open head: no text over music and sounds, all of it where somebody speaks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import SAMPLE_RATE
from real_recordings import UTTERANCES, load, speech, text

import whisper_at
from whisper_at.study.wer import whisper_words, word_errors
from whisper_at.tagging.load_head import load_head

pytestmark = pytest.mark.real
OPTIONS = {"language": "en", "fp16": False, "temperature": 0, "at_time_res": None}
CLIPS = ["3-163459-A-0", "2-109231-A-9", "3-124958-A-28", "3-136451-A-45", "1-115545-C-48"]
"""A dog, a crow, snoring, a train, fireworks."""
VOICES = ["2-119161-B-8", "1-72229-A-6"]
"""A sheep and a hen, which the head takes for speech as well."""


@pytest.fixture(scope="module")
def model(tiny_en) -> Iterator[whisper_at.WhisperAT]:
    before = tiny_en.model.head
    tiny_en.model.head = load_head("open.tiny.en", tiny_en.model, None, "tiny.en")
    yield tiny_en.model
    tiny_en.model.head = before


@pytest.mark.parametrize("clip", CLIPS)
def test_nothing_is_written_over_sounds(model, clip):
    result = model.transcribe(load(f"esc50/{clip}.ogg"), speech_gate=True, **OPTIONS)
    assert (result["text"], result["segments"]) == ("", [])
    assert [part["reason"] for part in result["withheld"]] == ["window without speech"]


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("clip", VOICES)
def test_nothing_is_written_over_voices_without_words(model, clip, batch_size):
    options = OPTIONS | {"batch_size": batch_size}
    assert model.transcribe(load(f"esc50/{clip}.ogg"), **options)["text"]
    result = model.transcribe(load(f"esc50/{clip}.ogg"), speech_gate=True, **options)
    assert (result["text"], result["segments"]) == ("", [])
    assert {part["reason"] for part in result["withheld"]} == {"voice without words"}


@pytest.mark.parametrize(("batch_size", "words"), [(None, True), (4, False)])
def test_speech_is_as_without_the_gate(model, batch_size, words):
    audio = speech(*UTTERANCES[:6], pause=1.0)
    options = OPTIONS | {"batch_size": batch_size, "word_timestamps": words}
    found = model.transcribe(audio, speech_gate=True, missed_speech=True, **options)
    expected = model.transcribe(audio, **options)
    assert found == expected | {"withheld": []}


def test_speech_between_sounds(model):
    """Words are those of the speech, and half a minute of sounds before and after is not decoded."""
    sounds = np.concatenate([load(f"esc50/{clip}.ogg") for clip in CLIPS * 2])[: 30 * SAMPLE_RATE]
    audio = np.concatenate([sounds, speech(*UTTERANCES[:3], pause=0.5), sounds])
    result = model.transcribe(audio, speech_gate=True, **OPTIONS)
    expected = " ".join(text(utterance) for utterance in UTTERANCES[:3])
    assert word_errors([expected], [result["text"]], whisper_words).rate < 0.15
    assert any(part["text"] is None for part in result["withheld"])


@pytest.mark.parametrize("batch_size", [None, 4])
def test_speech_that_was_taken_for_silence_is_found_again(model, batch_size):
    """These thresholds take everything for silence; the tags do not."""
    audio = speech(*UTTERANCES[:3], pause=0.5)
    thresholds = {"no_speech_threshold": -1, "logprob_threshold": None, "compression_ratio_threshold": None}
    options = OPTIONS | thresholds | {"batch_size": batch_size}
    assert model.transcribe(audio, **options)["text"] == ""
    result = model.transcribe(audio, missed_speech=True, **options)
    expected = " ".join(text(utterance) for utterance in UTTERANCES[:3])
    assert all(segment["recovered"] for segment in result["segments"])
    assert word_errors([expected], [result["text"]], whisper_words).rate < 0.15
