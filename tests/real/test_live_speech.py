"""Streams of real speech by real Whispers: the words and times of the file, soon after they are said."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
from conftest import SAMPLE_RATE
from real_recordings import silence, speech, text
from whisper.normalizers import EnglishTextNormalizer

import whisper_at
from whisper_at.live import EventStart, Final, Stream

pytestmark = pytest.mark.real
UTTERANCES = ("2764-36616-0000", "6081-41997-0000", "201-122255-0000")


@pytest.fixture(scope="module")
def tiny():
    pytest.importorskip("jiwer")
    return whisper_at.load_model("tiny.en", "cpu", head="open.tiny.en")


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    return np.concatenate([speech(*UTTERANCES, pause=0.7), silence(3)])


@pytest.mark.parametrize("policy", ["align_att", "local_agreement"])
def test_words_are_those_of_the_file_and_come_soon(tiny, audio, policy):
    stream = Stream(tiny, policy=policy, at_time_res=2)
    words, delays = [], []
    events = []
    for start in range(0, len(audio), 3200):
        for message in stream.feed(audio[start : start + 3200]):
            if isinstance(message, Final):
                words += message.words
                delays += [stream.position - word.end for word in message.words]
            elif isinstance(message, EventStart):
                events.append(message.name)
    assert not [message for message in stream.finish() if isinstance(message, Final)]  # silence has let all be final
    normalize = EnglishTextNormalizer()
    said = normalize(" ".join(map(text, UTTERANCES)))
    assert jiwer.wer(said, normalize("".join(word.word for word in words))) < 0.15
    assert np.mean(delays) < 1.6
    assert "Speech" in events
    result = tiny.transcribe(audio, word_timestamps=True, at_time_res=None)
    file = {w["word"].strip(" .,"): w["start"] for segment in result["segments"] for w in segment["words"]}
    live = {word.word.strip(" .,"): word.start for word in words}
    differences = [abs(live[word] - file[word]) for word in live.keys() & file.keys()]
    assert len(differences) > 20
    assert np.median(differences) < 0.1


def test_nothing_is_made_up_of_noise(tiny):
    noise = (1e-3 * np.random.default_rng(0).standard_normal(20 * SAMPLE_RATE)).astype(np.float32)
    stream = Stream(tiny, at_time_res=2)
    assert not [message for message in stream.feed(noise) + stream.finish() if isinstance(message, Final)]
