"""Changes of a model that inference has to notice: of weights, and of modules."""

from __future__ import annotations

import copy

import pytest
import torch
import whisper
from conftest import noise, random_whisper

from whisper_at.engine.kv_cache import DecoderState
from whisper_at.model import WhisperAT


def features(n: int, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1500, width, generator=torch.Generator().manual_seed(seed))


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
    batch, tokens = whisper.log_mel_spectrogram(noise(30))[None], torch.tensor([[50257, 50362, 11]])

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
