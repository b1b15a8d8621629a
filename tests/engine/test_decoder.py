"""The decoder for inference and its state: the logits of openai-whisper, in every precision."""

from __future__ import annotations

import random

import pytest
import torch

from whisper_at.engine import cpu_kernels, simd
from whisper_at.engine import decoder as decoder_module
from whisper_at.engine.alignment import AlignmentModel
from whisper_at.engine.decoder import Decoder
from whisper_at.engine.kv_cache import DecoderState
from whisper_at.model import WhisperAT


def features(n: int, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1500, width, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize(("reduced", "group"), [(None, 1), ("int8", 1), (None, 3)])
def test_rows_that_go_on_are_as_with_those_that_have_ended(model_en, reduced, group):
    """Logits are computed for some of the recordings only, fewer from step to step."""
    decoder = Decoder(model_en, torch.float32, reduced)
    audio = decoder.precompute_cross_kv(features(5))
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 50000, (5, 4), generator=random)
    every, some = (DecoderState(decoder, audio, group) for _ in range(2))
    assert some.can_drop_rows
    assert torch.equal(every.prefill(prompt), some.prefill(prompt))
    for recordings in ([0, 1, 3, 4], [1, 3, 4], [1, 4], [4]):
        rows = torch.cat([torch.arange(group) + recording * group for recording in recordings])
        tokens = torch.randint(0, 50000, (5 * group,), generator=random)
        expected = every.step(tokens)[rows]
        torch.testing.assert_close(some.step(tokens[rows], rows), expected, atol=1e-4, rtol=1e-4)


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
