"""Streams: pieces of any size say the same, what is final stays so, silence costs little, nothing grows."""

from __future__ import annotations

import tracemalloc
from functools import cache

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE_RATE
from hypothesis import given, settings
from hypothesis import strategies as st

import whisper_at
from whisper_at.live import Final, Partial, Row, Stream
from whisper_at.live.policies import POLICIES
from whisper_at.model import WhisperAT


@cache
def nano() -> WhisperAT:
    return whisper_at.load_model("nano.en", "cpu")


@cache
def speech() -> np.ndarray:
    """Two sentences of two voices, 8 s."""
    return whisper_at.load_audio(str(ROOT / "sample/speech.flac"))[: 8 * SAMPLE_RATE]


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def listen(audio: np.ndarray, sizes: list[int] | None = None, **options) -> list:
    """All messages of a stream that is fed pieces of these sizes, over and over."""
    stream = Stream(nano(), **options)
    messages, start, turn = [], 0, 0
    while start < len(audio):
        size = (sizes or [SAMPLE_RATE])[turn % len(sizes or [1])]
        messages += stream.feed(audio[start : start + size])
        start, turn = start + size, turn + 1
    return messages + stream.finish()


def finals(messages: list) -> list:
    return [word for message in messages if isinstance(message, Final) for word in message.words]


@cache
def by_seconds(policy: str = POLICIES[0]) -> list:
    return listen(speech(), interval=1.0, at_time_res=2, policy=policy)


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(1, 3 * SAMPLE_RATE), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 2000))
def test_pieces_of_any_size_say_the_same(sizes):
    assert listen(speech(), sizes, interval=1.0, at_time_res=2) == by_seconds()


def test_bytes_say_what_their_samples_do():
    samples = np.round(speech() * 32768).astype("<i2")
    stream = Stream(nano(), interval=1.0, at_time_res=2)
    assert stream.feed(samples.tobytes()) + stream.finish() == by_seconds()


@pytest.mark.parametrize("policy", POLICIES)
def test_final_words_follow_one_another_and_partial_ones_come_after(policy):
    messages = by_seconds(policy)
    words = finals(messages)
    assert len(words) > 8
    end = 0.0
    for message in messages:
        if isinstance(message, (Final, Partial)):
            for word in message.words:
                assert end <= word.start <= word.end <= 8.0
                end = word.end if isinstance(message, Final) else end
    assert "".join(word.word for word in words) == "".join(m.text for m in messages if isinstance(m, Final))


@pytest.mark.parametrize("policy", POLICIES)
def test_text_is_that_of_the_file(policy):
    file = nano().transcribe(speech(), at_time_res=None)["text"].lower().split()
    live = "".join(word.word for word in finals(by_seconds(policy))).lower().split()
    assert len(set(file) & set(live)) >= 0.7 * len(set(file))


def test_most_words_are_told_before_the_end():
    stream = Stream(nano(), interval=1.0)
    before = finals(stream.feed(speech()))
    assert len(before) > len(finals(stream.finish()))


def test_silence_is_seldom_encoded(monkeypatch):
    windows = []
    encode = WhisperAT.encode
    monkeypatch.setattr(WhisperAT, "encode", lambda *args, **kw: windows.append(args[2][0]) or encode(*args, **kw))
    messages = listen(silence(60), at_time_res=2)
    assert not finals(messages)
    assert len(windows) <= 14
    assert sum(window.size for window in windows) < 1.3 * 6000
    rows = [message for message in messages if isinstance(message, Row)]
    assert [row.start for row in rows] == [2.0 * i for i in range(30)]


def test_a_sound_after_silence_is_heard_at_once():
    """The pass that would come five seconds after the last one does not have to be waited for."""
    stream = Stream(nano(), at_time_res=2, interval=0.6)
    stream.feed(silence(21.0))
    said = stream.feed(speech()[: 3 * SAMPLE_RATE])
    assert any(isinstance(message, (Final, Partial)) for message in said)


def test_a_sound_that_begins_is_followed_for_a_while(monkeypatch):
    """One pass over its first moment, and the next one five seconds later, told events that late."""
    ends, encode = [], WhisperAT.encode
    monkeypatch.setattr(WhisperAT, "encode", lambda *args, **kw: ends.append(args[2][0].end) or encode(*args, **kw))
    stream = Stream(nano(), task="tag", at_time_res=0.4)
    stream.feed(silence(20.0))
    stream.feed((0.1 * np.random.default_rng(0).standard_normal(12 * SAMPLE_RATE)).astype(np.float32))
    passes = [end / 100 - 20 for end in ends if end > 2000]
    assert len([end for end in passes if end <= 2.8]) >= 6
    assert len(passes) <= 11  # then again every five seconds


@pytest.mark.parametrize("position", [86_000.0, 1e6])
def test_times_are_exact_after_hours(position):
    later = listen(speech(), interval=1.0, at_time_res=2, position=position)
    assert len(later) == len(by_seconds())
    for before, after in zip(by_seconds(), later):
        assert type(before) is type(after)
        if isinstance(before, (Final, Partial)):
            assert before.text == after.text
            for was, now in zip(before.words, after.words):
                assert (now.start, now.end) == pytest.approx((was.start + position, was.end + position), abs=1e-6)
        else:
            assert after.start == pytest.approx(before.start + position, abs=1e-6)


def test_memory_is_level():
    """Speech and silence in turn: nothing that is held grows, of arrays and of Python's objects."""
    stream = Stream(nano(), interval=2.0, at_time_res=[0.4, 10])
    part = np.concatenate([speech()[: 4 * SAMPLE_RATE], silence(16)])
    held = []
    tracemalloc.start()
    for _ in range(6):
        stream.feed(part)
        text = stream._text
        held.append((stream._mel.end - stream._mel.start, len(stream.sounds._states), len(text.prompt)))
        if len(held) == 2:
            before = tracemalloc.get_traced_memory()[0]
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert max(frames for frames, _, _ in held) < 1000
    assert max(steps for _, steps, _ in held) < 60
    assert max(tokens for _, _, tokens in held) <= 48
    assert grown < 200_000


def test_a_stream_goes_on_after_a_break():
    audio = speech()
    first = Stream(nano(), interval=1.0, at_time_res=2)
    words = finals(first.feed(audio[: 5 * SAMPLE_RATE]))
    state = first.state()
    assert state.prompt.endswith("".join(word.word for word in words).strip()[-10:])
    second = Stream(nano(), interval=1.0, at_time_res=2, **state._asdict())
    rest = finals(second.feed(audio[round(state.position * SAMPLE_RATE) :]) + second.finish())
    assert rest
    assert rest[0].start >= state.position - 0.02
    together = "".join(word.word for word in words + rest).lower().split()
    assert len(set(together) & set("".join(w.word for w in finals(by_seconds())).lower().split())) >= 8


def test_who_lags_behind_makes_fewer_passes(monkeypatch):
    passes = []
    encode = WhisperAT.encode
    monkeypatch.setattr(WhisperAT, "encode", lambda *args, **kw: passes.append(1) or encode(*args, **kw))
    stream = Stream(nano(), interval=0.6)
    stream.feed(speech()[: 6 * SAMPLE_RATE], catch_up=True)
    assert len(passes) == 3  # over 2.4 s, as much again, and the rest
    assert stream.position == 6.0


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(10), "float64"),
        (np.zeros((2, 10), np.float32), "one channel"),
        (b"abc", "two bytes each"),
        (np.array([0.0, np.nan], np.float32), "NaN"),
    ],
)
def test_what_is_no_sound_is_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        Stream(nano()).feed(samples)


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "luck"},
        {"interval": 0.01},
        {"interval": 0.33},
        {"position": -1.0},
        {"at_time_res": 40},
        {"task": "sing"},
        {"task": "tag", "at_time_res": None},
    ],
)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}|rows of a stream"):
        Stream(nano(), **options)


def test_nothing_comes_after_the_end():
    stream = Stream(nano())
    stream.feed(speech()[:100])
    assert stream.finish() == stream.finish() == []
    with pytest.raises(ValueError, match="finished"):
        stream.feed(speech())


def test_sounds_alone():
    messages = listen(speech(), task="tag", at_time_res=2)
    assert not finals(messages)
    rows = [message for message in messages if isinstance(message, Row)]
    assert [(row.start, row.end, row.coverage) for row in rows] == [(2.0 * i, 2.0 * i + 2, 1.0) for i in range(4)]


def test_a_language_is_detected_until_a_word_is_final(model_multilingual):
    stream = Stream(model_multilingual, at_time_res=None)
    assert stream.language is None
    stream.feed(speech())
    assert stream.language in whisper_at.tokenizer.LANGUAGES


def test_short_spectrograms_have_short_features(model_en):
    mel = torch.randn(1, 80, 1200)
    features, states = model_en.encode(mel, partial=True)
    assert features.shape == (1, 600, 64)
    assert states.shape == (1, 2, 30, 64)
    full = torch.randn(1, 80, 3000)
    assert torch.equal(model_en.encode(full, partial=True)[0], model_en.encode(full)[0])
    with pytest.raises(AssertionError, match="incorrect audio shape"):
        model_en.encode(mel)
    with pytest.raises(AssertionError, match="incorrect audio shape"):
        model_en.encode(torch.randn(1, 80, 3200), partial=True)
