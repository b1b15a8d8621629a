"""Decoding of windows: openai-whisper's rules, choices and results."""

from __future__ import annotations

import random

import pytest
import torch
import whisper
import whisper.decoding as upstream
from conftest import noise

import whisper_at
from whisper_at.decoding import FastDecodingTask
from whisper_at.engine.decoder import Decoder


def features(n: int, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1500, width, generator=torch.Generator().manual_seed(seed))


def test_rules_are_upstreams(model_en, model_multilingual):
    """Random histories and logits: the same places are ruled out, and the rest is left as it is."""
    r, generator = random.Random(0), torch.Generator().manual_seed(0)
    for case in range(120):
        model = r.choice([model_en, model_multilingual])
        options = whisper.DecodingOptions(
            language="en",
            fp16=False,
            suppress_blank=r.random() < 0.7,
            suppress_tokens=r.choice(["-1", "", "1,2,3", [5, 7], None]),
            without_timestamps=r.random() < 0.2,
            max_initial_timestamp=r.choice([1.0, 0.4, None, 30.0]),
            prompt=r.choice([None, "a prompt"]),
        )
        theirs, ours = upstream.DecodingTask(model, options), FastDecodingTask(model, options)
        time0, eot = theirs.tokenizer.timestamp_begin, theirs.tokenizer.eot
        length, rows = r.randrange(0, 7), r.choice([1, 3])
        histories = []
        for _ in range(rows):
            at, history = r.randrange(0, 1400), []
            for _ in range(length):
                at += r.choice([0, 0, 1, 30])
                history.append(r.choice([time0 + at, r.randrange(0, 50000), r.randrange(0, 50000), eot]))
            histories.append([*theirs.initial_tokens, *history])
        tokens = torch.tensor(histories)
        logits = 3 * torch.randn(rows, model.dims.n_vocab, generator=generator)
        logits[:, time0:] += r.choice([-8.0, 0.0, 3.0])  # so that times win, lose, and nearly tie
        expected, found = logits.clone(), logits.clone()
        for rule in theirs.logit_filters:
            rule.apply(expected, tokens)
        ours.rules.apply(found, tokens)
        assert torch.equal(found, expected), (case, options, histories)


def test_beams_are_upstreams():
    """Random logits with ties of stems and ends: the same sequences, scores and order."""
    for seed in range(20):
        r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        beams, recordings, eot = r.choice([1, 2, 5]), r.choice([1, 3]), 30
        orders: list[list] = [[], []]

        class Recorder(upstream.Inference):
            def __init__(self, order):
                self.order = order

            def rearrange_kv_cache(self, source_indices):
                self.order.append(list(source_indices))

        patience = r.choice([None, 2.0])
        theirs = upstream.BeamSearchDecoder(beams, eot, Recorder(orders[0]), patience)
        ours = whisper_at.decoding._BeamSearch(beams, eot, Recorder(orders[1]), patience)
        start = torch.full((beams * recordings, 1), 31)
        states = [(start, torch.zeros(len(start))), (start.clone(), torch.zeros(len(start)))]
        for _ in range(12):
            logits = torch.randn(recordings, 32, generator=generator).repeat_interleave(beams, 0)
            results = []
            for decoder, (tokens, scores) in zip((theirs, ours), states):
                mixed = logits + 0.1 * (tokens.sum(1, keepdim=True) % 7)
                results.append((*decoder.update(tokens, mixed.clone(), scores), scores))
            (a, done_a, score_a), (b, done_b, score_b) = results
            assert torch.equal(a, b)
            assert done_a == done_b
            torch.testing.assert_close(score_a, score_b)
            states = [(a, score_a), (b, score_b)]
            if done_a:
                break
        assert orders[0] == orders[1]
        shape = (recordings, beams, -1)
        ends = [d.finalize(t.reshape(shape), s.reshape(shape[:2])) for d, (t, s) in zip((theirs, ours), states)]
        assert [[t.tolist() for t in group] for group in ends[0][0]] == [
            [t.tolist() for t in group] for group in ends[1][0]
        ]


OPTIONS = [
    {},
    {"beam_size": 5},
    {"beam_size": 2, "patience": 2.0, "length_penalty": 0.6},
    {"temperature": 0.7, "best_of": 3},
    {"temperature": 1.0},
    {"without_timestamps": True},
    {"prompt": "some words before " * 30, "prefix": "and these"},
    {"language": None},
    {"language": None, "task": "translate", "beam_size": 3},
    {"sample_len": 1},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_decode_equals_upstream(model_multilingual, upstream_multilingual, options, batch):
    options = whisper.DecodingOptions(**{"language": "fr", "fp16": False, "sample_len": 24} | options)
    audio_features = features(batch, seed=3)
    torch.manual_seed(5)
    if options.beam_size or options.best_of:  # upstream cannot do groups in batches
        expected = [whisper.decode(upstream_multilingual, one, options) for one in audio_features]
    else:
        expected = whisper.decode(upstream_multilingual, audio_features, options)
    if options.best_of and batch > 1:
        pytest.skip("upstream draws its samples in another order")
    torch.manual_seed(5)
    found = whisper_at.decode(model_multilingual, audio_features, options)
    assert [f.tokens for f in found] == [e.tokens for e in expected]
    for f, e in zip(found, expected):
        assert (f.text, f.language, f.temperature) == (e.text, e.language, e.temperature)
        assert f.avg_logprob == pytest.approx(e.avg_logprob, abs=1e-4)
        assert f.no_speech_prob == pytest.approx(e.no_speech_prob, abs=1e-5)
        torch.testing.assert_close(f.audio_features, e.audio_features)


def test_encoded_audio_serves_all_tries(model_en, monkeypatch):
    """Keys and values of the recording are computed once, whatever is then decoded from them."""
    audio = model_en.precompute_cross_kv(features(2))
    expected = model_en.decode(features(2), language="en", fp16=False, sample_len=9)
    monkeypatch.setattr(Decoder, "precompute_cross_kv", lambda *_: pytest.fail("computed again"))
    assert [r.tokens for r in model_en.decode(audio, language="en", fp16=False, sample_len=9)] == [
        r.tokens for r in expected
    ]
    model_en.decode(audio, language="en", fp16=False, sample_len=9, beam_size=3)
    model_en.decode(audio, language="en", fp16=False, sample_len=9, temperature=0.5)


def test_detect_language(model_multilingual, upstream_multilingual, model_en):
    audio_features = features(3)
    tokens, probabilities = upstream_multilingual.detect_language(audio_features)
    for source in (audio_features, model_multilingual.precompute_cross_kv(audio_features)):
        found = model_multilingual.detect_language(source)
        assert torch.equal(found[0], tokens)
        for row, wanted in zip(found[1], probabilities):
            assert row == pytest.approx(wanted, abs=1e-5)
    token, row = model_multilingual.detect_language(audio_features[0])
    assert int(token) == int(tokens[0])
    assert row == pytest.approx(probabilities[0], abs=1e-5)
    with pytest.raises(ValueError, match="language tokens"):
        model_en.detect_language(audio_features)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_decoding_a_mel_keeps_to_the_precision_that_was_chosen(model_en, monkeypatch, has_bfloat16):
    """`decode` of a mel is `decode` of its features, whatever ``fp16`` says, also where int8 encodes in float32.

    There, features made with gradients once differed in their last digits from those made without.
    """
    for module in (whisper_at.model, whisper_at.engine.decoder):
        monkeypatch.setattr(module, "has_bfloat16", lambda: has_bfloat16)
    model_en.compute_type = "int8"
    batch = whisper.log_mel_spectrogram(noise(30))[None]
    found = model_en.decode(batch, whisper_at.DecodingOptions(language="en", sample_len=8))[0]
    features = model_en.embed_audio(batch)
    assert torch.equal(found.audio_features, features[0])
    assert (
        found.tokens == model_en.decode(model_en.precompute_cross_kv(features), language="en", sample_len=8)[0].tokens
    )
    assert model_en._decoder.packed.mlp_up.weight.dtype == "int8"


def test_rules_of_ones_own_are_kept(model_en, upstream_en):
    """`DecodingTask` is upstream's, also by our name: filters that a subclass adds are asked, on any model."""

    class Silenced(whisper_at.decoding.DecodingTask):
        def __init__(self, *args):
            super().__init__(*args)
            self.logit_filters.append(self)

        def apply(self, logits, tokens):
            logits[:, :50000] = -float("inf")

    assert whisper_at.decoding.DecodingTask is upstream.DecodingTask
    options = whisper.DecodingOptions(language="en", fp16=False, sample_len=6, without_timestamps=True)
    found = [Silenced(model, options).run(features(1))[0].tokens for model in (model_en, upstream_en)]
    assert found[0] == found[1]
    assert all(token >= 50000 for token in found[0])


def test_wrong_precision_is_an_error(model_en):
    """Upstream returns the TypeError instead of raising it, and fails later in another place."""
    with pytest.raises(TypeError, match="dtype"):
        model_en.decode(features(1).half(), whisper.DecodingOptions(language="en", fp16=False))
