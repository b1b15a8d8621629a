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
from whisper_at.engine.alignment import AlignmentModel, FastMedianSort, add_word_timestamps


def test_the_network_sorts():
    """A network of comparisons that is right for zeros and ones is right for all numbers (Knuth 5.3.4)."""
    for numbers in product((0.0, 1.0), repeat=7):
        assert list(alignment.sort_seven.py_func(*numbers)) == sorted(numbers)


class Recorded:
    """A kernel, and the shapes of what it has written."""

    def __init__(self, kernel):
        self.kernel, self.shapes = kernel, []

    def __call__(self, x, out):
        self.shapes.append(out.shape)
        self.kernel(x, out)

    def __getattr__(self, name):
        return getattr(self.kernel, name)


@pytest.fixture
def sorted_shapes(monkeypatch):
    """Shapes of what the compiled loop sorted."""
    monkeypatch.setattr(alignment, "_sort_sevens", Recorded(alignment._sort_sevens))
    return alignment._sort_sevens.shapes


@pytest.mark.parametrize("shape", [(3, 5, 1500), (1, 1, 4), (2, 4), (9,), (4, 2, 3, 50)])
@pytest.mark.parametrize("transposed", [False, True])
def test_medians_are_upstreams(shape, transposed, sorted_shapes):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    x = x.transpose(0, -1) if transposed else x
    expected = timing.median_filter(x, 7)
    with FastMedianSort():
        assert torch.equal(timing.median_filter(x, 7), expected)
    assert [shape[2] for shape in sorted_shapes] == ([x.shape[-1]] if x.shape[-1] > 3 else [])


@pytest.mark.parametrize("width", [1, 3, 5, 9])
def test_other_sorts_are_pytorchs(width, sorted_shapes):
    x = torch.randn(2, 3, 40)
    windows = x.unfold(-1, 7, 1)

    def results():
        medians = timing.median_filter(x, width), timing.median_filter(x.double(), 7)
        return [*medians, *x.sort(), *windows.sort(0), *windows.sort(descending=True), *windows.contiguous().sort()]

    expected = results()
    with FastMedianSort():
        found = results()
    assert all(torch.equal(one, other) for one, other in zip(found, expected))
    assert not sorted_shapes


def test_medians_beside_nan_are_upstreams():
    """A moment that all tokens attend to alike has no standard deviation; NaN is sorted behind all numbers."""
    x = torch.randn(2, 3, 40)
    x[:, :, 17] = torch.nan
    expected = timing.median_filter(x, 7)
    with FastMedianSort():
        torch.testing.assert_close(timing.median_filter(x, 7), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("frames", [3000, 900, 6])
def test_words_are_timed_as_by_upstream(model_en, frames, sorted_shapes):
    tokenizer = get_tokenizer(False)
    tokens = [
        tokenizer.timestamp_begin,
        *tokenizer.encode(" One, two (three) and four."),
        tokenizer.timestamp_begin + 50,
    ]
    mel = whisper.log_mel_spectrogram(noise(30))

    def timed(function, model):
        segment = {"seek": 0, "start": 0.0, "end": 1.0, "tokens": tokens}
        options = {"prepend_punctuations": "(", "append_punctuations": ",.)", "last_speech_timestamp": 0.0}
        function(segments=[segment], model=model, tokenizer=tokenizer, mel=mel, num_frames=frames, **options)
        return segment["words"]

    expected = timed(timing.add_word_timestamps, model_en)
    assert len(expected) == 5
    assert not sorted_shapes
    assert timed(add_word_timestamps, model_en) == expected
    assert len(sorted_shapes) == (frames > 6)  # three frames need no filter
    with torch.no_grad():
        stand_in = AlignmentModel(model_en, model_en.precompute_cross_kv(model_en.embed_audio(mel[None])))
    assert [w["word"] for w in timed(add_word_timestamps, stand_in)] == [w["word"] for w in expected]


def test_logits_may_be_those_of_the_last_tokens_alone(model_en):
    audio = model_en.precompute_cross_kv(torch.randn(1, 1500, model_en.dims.n_audio_state))
    tokens = torch.arange(40)[None]
    whole, some = AlignmentModel(model_en, audio), AlignmentModel(model_en, audio, logits_from=30)
    logits, last = whole(None, tokens), some(None, tokens)
    torch.testing.assert_close(last[:, 30:], logits[:, 30:], atol=1e-4, rtol=1e-4)
    assert not last[:, :30].any()
    assert all(torch.equal(one, other) for one, other in zip(whole.scores, some.scores))


def test_upstream_stays_as_it_is(model_en, monkeypatch):
    """The faster sort is ours alone; replaced functions of upstream's are used."""
    before = dict(vars(timing))
    calls = []
    monkeypatch.setattr(timing, "merge_punctuations", lambda *_: calls.append(1))
    model_en.transcribe(noise(3), language="en", temperature=0.0, sample_len=6, word_timestamps=True, fp16=False)
    assert calls
    monkeypatch.undo()
    assert {name: vars(timing)[name] for name in before} == before
