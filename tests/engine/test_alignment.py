"""Word timing: openai-whisper's own, with less to do."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import whisper
from conftest import noise
from whisper import timing
from whisper.tokenizer import get_tokenizer

from whisper_at.engine import alignment
from whisper_at.engine.alignment import HeardModel, add_word_timestamps, median_filter
from whisper_at.engine.onednn import attention_by_head, can_attend_by_head


def test_the_network_finds_the_median():
    """A network of comparisons that is right for zeros and ones is right for all numbers (Knuth 5.3.4)."""
    for numbers in product((0.0, 1.0), repeat=7):
        assert alignment.median_of_seven.py_func(*numbers) == sorted(numbers)[3]


@pytest.mark.parametrize("shape", [(3, 5, 1500), (1, 1, 4), (2, 4), (9,), (2, 3, 3), (4, 2, 3, 50)])
def test_medians_are_upstreams(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    assert torch.equal(median_filter(x, 7), timing.median_filter(x, 7))
    strided = x.transpose(0, -1)
    assert torch.equal(median_filter(strided, 7), timing.median_filter(strided, 7))


@pytest.mark.parametrize("width", [1, 3, 5, 9])
def test_other_filters_are_upstreams(width):
    x = torch.randn(2, 3, 40)
    assert torch.equal(median_filter(x, width), timing.median_filter(x, width))
    assert torch.equal(median_filter(x.double(), 7), timing.median_filter(x.double(), 7))


@pytest.mark.parametrize("frames", [3000, 900, 6])
def test_words_are_timed_as_by_upstream(model_en, frames):
    tokenizer = get_tokenizer(False)
    tokens = [
        tokenizer.timestamp_begin,
        *tokenizer.encode(" One, two (three) and four."),
        tokenizer.timestamp_begin + 50,
    ]
    mel = whisper.log_mel_spectrogram(noise(30))

    def timed(function, model, heard):
        segment = {"seek": 0, "start": 0.0, "end": 1.0, "tokens": tokens}
        options = {"prepend_punctuations": "(", "append_punctuations": ",.)", "last_speech_timestamp": 0.0}
        function(segments=[segment], model=model, tokenizer=tokenizer, mel=heard, num_frames=frames, **options)
        return segment["words"]

    expected = timed(timing.add_word_timestamps, model_en, mel)
    assert len(expected) == 5
    assert timed(add_word_timestamps, model_en, mel) == expected
    with torch.no_grad():
        heard = HeardModel(model_en, model_en.hear(model_en.embed_audio(mel[None])))
    assert [w["word"] for w in timed(add_word_timestamps, heard, mel)] == [w["word"] for w in expected]


def test_upstream_stays_as_it_is(model_en, monkeypatch):
    """The faster filter is ours alone; who replaces upstream's functions is heard."""
    before = dict(vars(timing))
    asked = []
    monkeypatch.setattr(timing, "merge_punctuations", lambda *_: asked.append(1))
    model_en.transcribe(noise(3), language="en", temperature=0.0, sample_len=6, word_timestamps=True, fp16=False)
    assert asked
    monkeypatch.undo()
    assert {name: vars(timing)[name] for name in before} == before


def test_replaced_attention_of_the_encoder_is_kept(model_en):
    calls = []
    attention = model_en.encoder.blocks[0].attn
    real = attention.qkv_attention
    assert can_attend_by_head(model_en.encoder, torch.float32)
    attention.qkv_attention = lambda *args: calls.append(1) or real(*args)
    assert not can_attend_by_head(model_en.encoder, torch.float32)
    model_en.transcribe(noise(3), language="en", temperature=0.0, sample_len=6, word_timestamps=True, fp16=False)
    assert calls
    assert "qkv_attention" in vars(attention)
    del attention.qkv_attention
    with attention_by_head(model_en.encoder):
        assert "qkv_attention" in vars(attention)
    assert "qkv_attention" not in vars(attention)
