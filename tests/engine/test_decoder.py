"""Fast inference: openai-whisper's logits, rules and choices."""

from __future__ import annotations

import copy
import random

import numba
import numpy as np
import pytest
import torch
import whisper
import whisper.decoding as upstream
from conftest import noise, random_whisper
from numba.core.caching import CacheImpl

import whisper_at
from whisper_at import model as model_module
from whisper_at.decoding import FastDecodingTask
from whisper_at.engine import cpu_kernels, simd
from whisper_at.engine import decoder as decoder_module
from whisper_at.engine.alignment import AlignmentModel
from whisper_at.engine.decoder import Decoder
from whisper_at.engine.kv_cache import DecoderState
from whisper_at.model import WhisperAT


def features(n: int, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1500, width, generator=torch.Generator().manual_seed(seed))


def mel(seconds: float = 30) -> torch.Tensor:
    return whisper_at.log_mel_spectrogram(whisper_at.pad_or_trim(noise(seconds)))[None]


def halved(model: WhisperAT) -> WhisperAT:
    """With weights that half precision holds exactly, as official checkpoints have them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model


@pytest.mark.parametrize("exact_halves", [True, False])
@pytest.mark.parametrize(("recordings", "group", "prompt"), [(1, 1, 3), (1, 5, 8), (2, 3, 4), (3, 1, 40), (3, 4, 5)])
def test_logits_of_rows(model_en, exact_halves, recordings, group, prompt):
    """Prompt and steps, few tokens (compiled) and many (PyTorch), give what the decoder gives for the whole text."""
    model = halved(model_en) if exact_halves else model_en
    audio_features = features(recordings)
    decoder = model.fast_decoder(torch.float32)
    assert decoder.packed.mlp_up.weight.dtype == ("uint16" if exact_halves else "float32")
    state = DecoderState(decoder, decoder.precompute_cross_kv(audio_features), group)
    tokens = torch.randint(0, 50000, (recordings, prompt), generator=torch.Generator().manual_seed(1))
    first = state.prefill(tokens, logits_at=(0, -1))
    with torch.no_grad():
        expected = model.decoder(tokens, audio_features)[:, [0, -1]]
    torch.testing.assert_close(first, expected, atol=2e-4, rtol=1e-4)
    texts = tokens.repeat_interleave(group, 0)
    for step in range(4):
        new = torch.randint(0, 50000, (len(texts),), generator=torch.Generator().manual_seed(step + 2))
        texts = torch.cat([texts, new[:, None]], 1)
        found = state.step(new)
        with torch.no_grad():
            expected = model.decoder(texts, audio_features.repeat_interleave(group, 0))[:, -1]
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
        # rows go on as copies of others of their recording
        r = random.Random(step)
        sources = [i // group * group + r.randrange(group) for i in range(len(texts))]
        state.reorder(sources)
        texts = texts[sources]


def test_long_text_fills_the_context(model_en):
    decoder = model_en.fast_decoder(torch.float32)
    state = DecoderState(decoder, decoder.precompute_cross_kv(features(1)))
    tokens = torch.randint(0, 50000, (1, 448), generator=torch.Generator().manual_seed(0))
    state.prefill(tokens[:, :445])
    for i in range(445, 448):
        found = state.step(tokens[:, i])
    with torch.no_grad():
        torch.testing.assert_close(found, model_en.decoder(tokens, features(1))[:, -1], atol=5e-4, rtol=1e-4)


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


def test_changed_weights_are_seen(model_en):
    """Fine-tuning in place, loading a state dict or replacing a parameter: the next decode uses what is there."""
    options = whisper.DecodingOptions(language="en", fp16=False, sample_len=6)
    other = random_whisper(WhisperAT, 51864, seed=9)
    before = model_en.decode(features(1), options)[0].tokens
    with torch.no_grad():
        model_en.decoder.blocks[1].mlp[2].weight.mul_(-1)
    changed = model_en.decode(features(1), options)[0].tokens
    assert changed != before
    model_en.load_state_dict(other.state_dict())
    loaded = model_en.decode(features(1), options)[0].tokens
    assert loaded == whisper.decode(other, features(1), options)[0].tokens != changed


@pytest.mark.parametrize("change", ["mul_", "copy_"])
def test_changes_of_data_are_seen(model_en, change):
    """``.data`` changes without being counted: averages of weights and merged adapters come that way."""
    model_en.compute_type = "int8"
    batch, tokens = mel(), torch.tensor([[50257, 50362, 11]])

    def encode_and_prefill():
        features = model_en.embed_audio(batch)
        decoder = model_en.fast_decoder(features.dtype)
        return features, DecoderState(decoder, decoder.precompute_cross_kv(features)).prefill(tokens)

    before = encode_and_prefill()
    for part in (model_en.encoder.blocks[0], model_en.decoder.blocks[1]):
        weight = part.attn.out.weight.data
        getattr(weight, change)(2 if change == "mul_" else 2 * weight)
    after = encode_and_prefill()
    assert not torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    model_en = copy.deepcopy(model_en)
    assert all(torch.equal(found, expected) for found, expected in zip(after, encode_and_prefill()))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_decoding_a_mel_keeps_to_the_precision_that_was_chosen(model_en, monkeypatch, has_bfloat16):
    """`decode` of a mel is `decode` of its features, whatever ``fp16`` says, also where int8 encodes in float32.

    There, features made with gradients once differed in their last digits from those made without.
    """
    for module in (model_module, decoder_module):
        monkeypatch.setattr(module, "has_bfloat16", lambda: has_bfloat16)
    model_en.compute_type = "int8"
    batch = mel()
    found = model_en.decode(batch, whisper_at.DecodingOptions(language="en", sample_len=8))[0]
    features = model_en.embed_audio(batch)
    assert torch.equal(found.audio_features, features[0])
    assert (
        found.tokens == model_en.decode(model_en.precompute_cross_kv(features), language="en", sample_len=8)[0].tokens
    )
    assert model_en._decoder.packed.mlp_up.weight.dtype == "int8"


@pytest.mark.parametrize("reduced", [None, "int8"])
def test_processors_that_do_not_widen_half_precision(model_en, monkeypatch, reduced):
    """x86 without F16C: everything is kept in float32, with the same result."""
    tokens, found = torch.tensor([[50257, 50362, 11]]), []
    for has_loads in (True, False):
        monkeypatch.setattr(simd, "HAS_FP16_LOADS", has_loads)
        decoder = Decoder(halved(model_en), torch.float32, reduced)
        audio = decoder.precompute_cross_kv(features(1))
        found.append(DecoderState(decoder, audio).prefill(tokens))
    assert audio.keys.dtype == torch.float32
    assert decoder.packed.mlp_up.weight.dtype != "uint16"
    torch.testing.assert_close(*found, atol=0.02 if reduced else 1e-5, rtol=1e-3)


def test_loops_compile_where_nothing_can_be_written(monkeypatch):
    """A read-only package and home leave Numba's cache no place; it raises while the module is imported."""
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(abs_difference)
    assert simd.compiled(fastmath=True)(abs_difference)(3, 5) == 2


def abs_difference(a, b):
    return abs(a - b)


def test_a_changed_decoder_is_decoded_as_it_is(model_en):
    """Hooks and replaced layers, as other tools install them, are honoured: openai-whisper's own task runs them."""
    calls = []
    options = whisper.DecodingOptions(language="en", fp16=False, sample_len=4)
    assert model_en.is_unmodified
    hook = model_en.decoder.blocks[0].cross_attn.register_forward_hook(lambda *_: calls.append(1))
    assert not model_en.is_unmodified
    model_en.decode(features(1), options)
    assert calls
    hook.remove()
    assert model_en.is_unmodified
    attention = model_en.decoder.blocks[0].cross_attn
    real, seen = attention.qkv_attention, []
    attention.qkv_attention = lambda *args: seen.append(1) or real(*args)
    assert not model_en.is_unmodified
    model_en.decode(features(1), options)
    assert seen
    del attention.qkv_attention
    assert model_en.is_unmodified

    class Louder(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return -3 * self.inner(x)

    plain = model_en.decode(features(1), options)[0].tokens
    model_en.decoder.blocks[1].mlp[2] = Louder(model_en.decoder.blocks[1].mlp[2])
    assert not model_en.is_unmodified
    assert model_en.decode(features(1), options)[0].tokens != plain
    result = model_en.transcribe(noise(3), language="en", fp16=False, sample_len=4, temperature=0.0)
    assert result["segments"] is not None


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


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_cross_kv_is_computed_in_a_precision_of_the_processor(model_en, monkeypatch, has_bfloat16):
    """In int8 bfloat16 is for processors that have it: others imitate it, slowly. Who asks for it gets it."""
    monkeypatch.setattr(decoder_module, "has_bfloat16", lambda: has_bfloat16)
    exact = Decoder(model_en, torch.float32).precompute_cross_kv(features(1))
    for reduced, dtype in (("int8", torch.bfloat16 if has_bfloat16 else torch.float32), ("bfloat16", torch.bfloat16)):
        decoder = Decoder(model_en, torch.float32, reduced)
        assert decoder.cross_kv_compute_dtype == dtype
        keys = decoder.precompute_cross_kv(features(1)).keys.float()
        torch.testing.assert_close(keys, exact.keys, atol=2e-2 if dtype == torch.bfloat16 else 1e-3, rtol=2e-2)


def test_word_times_from_encoded_audio(model_en):
    """The stand-in shows find_alignment the logits and scores of the model itself."""
    from whisper.timing import find_alignment
    from whisper.tokenizer import get_tokenizer

    tokenizer = get_tokenizer(False)
    text = tokenizer.encode(" one two three and four")
    audio_features = features(1)
    expected = find_alignment(model_en, tokenizer, text, audio_features[0], 2000)
    stand_in = AlignmentModel(model_en, model_en.precompute_cross_kv(audio_features))
    found = find_alignment(stand_in, tokenizer, text, torch.empty(0), 2000)
    assert [(w.word, w.tokens, w.start, w.end) for w in found] == [(w.word, w.tokens, w.start, w.end) for w in expected]
    assert [w.probability for w in found] == pytest.approx([w.probability for w in expected], abs=1e-5)
    assert not model_en.decoder.blocks[0].cross_attn._forward_hooks


def test_wrong_precision_is_an_error(model_en):
    """Upstream returns the TypeError instead of raising it, and fails later in another place."""
    with pytest.raises(TypeError, match="dtype"):
        model_en.decode(features(1).half(), whisper.DecodingOptions(language="en", fp16=False))


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_kernels_and_pytorch_agree(model_en, precision, monkeypatch):
    """The limit is one of speed, not of correctness: a prompt, then beams that fork, from the same cache."""
    decoder = Decoder(model_en, torch.float32, precision)
    audio = decoder.precompute_cross_kv(features(2))
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 50000, (2, 20), generator=random)
    following = torch.randint(0, 50000, (4, 14), generator=random)
    found = []
    for limit in (0, 64):
        monkeypatch.setattr(cpu_kernels, "MAX_KERNEL_TOKENS", limit)
        state = DecoderState(decoder, audio, 7)
        found.append([state.prefill(prompt)])
        for step, tokens in enumerate(following):
            state.reorder([0, 0, 2, 1, 6, 5, 3, 7, 7, 7, 10, 8, 13, step + 7])
            found[-1].append(state.step(tokens))
    for compiled, by_torch in zip(*found):
        torch.testing.assert_close(compiled, by_torch, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("reduced", "most"), [("bfloat16", 0.01), ("int8", 0.03)])
def test_reduced_precision_stays_close(model_en, reduced, most):
    """Steps in reduced precision differ by a small part of the spread of the logits, and differ indeed."""
    tokens = torch.randint(0, 50000, (1, 4), generator=torch.Generator().manual_seed(1))
    logits = []
    for precision in (None, reduced):
        decoder = Decoder(model_en, torch.float32, precision)
        audio = decoder.precompute_cross_kv(features(1))
        state = DecoderState(decoder, audio, 3)
        logits.append(torch.cat([state.prefill(tokens)[:, 0], state.step(torch.tensor([5, 6, 7]))]))
    assert audio.keys.dtype == torch.float16
    error = (logits[1] - logits[0]).std() / logits[0].std()
    assert 0 < error < most
    assert decoder.packed.mlp_up.weight.dtype == ("int8" if reduced == "int8" else "float32")


@pytest.mark.parametrize("dtype", ["half", "float32", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 21])
@pytest.mark.parametrize("width", [192, 4096])
def test_products(dtype, rows, width):
    """Every block of rows, x within a near cache and beyond, every storage, setting and adding, against float64."""
    r = np.random.default_rng(rows)
    stored = r.normal(size=(70, width)).astype(np.float16)
    scale, bias = np.ones(70, np.float32), r.normal(size=70).astype(np.float32)
    x = r.normal(size=(rows, width)).astype(np.float32)
    if dtype == "int8":
        scale = np.abs(stored.astype(np.float32)).max(1) / 127
        weights = np.round(stored / scale[:, None]).astype(np.int8)
        exact = weights * scale[:, None].astype(np.float64)
    else:
        weights = stored.view(np.uint16) if dtype == "half" else stored.astype(np.float32)
        exact = stored.astype(np.float64)
    expected = x.astype(np.float64) @ exact.T + bias
    y = np.full((rows, 70), 7.0, np.float32)
    cpu_kernels.matmul(weights, scale, bias, x, y, False)
    tolerance = np.full(expected.shape, 1e-4)
    if dtype == "int8":  # half a step of 12-bit activations, times what each meets
        tolerance += np.abs(x).max(1, keepdims=True) / 2047 / 2 * np.abs(exact).sum(1)
    assert (np.abs(y - expected) <= tolerance).all()
    cpu_kernels.matmul(weights, scale, bias, x, y, True)
    assert (np.abs(y - 2 * expected) <= 2 * tolerance).all()


def test_gelu_and_exp():
    x = np.linspace(-90, 15, 40001, dtype=np.float32)[None].copy()
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    cpu_kernels._gelu_in_place(x)
    np.testing.assert_allclose(x, expected, atol=1e-6)
