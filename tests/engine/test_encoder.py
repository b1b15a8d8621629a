"""The encoder in one pass: openai-whisper's numbers without fused kernels, and its modules where they were changed."""

from __future__ import annotations

import pytest
import torch
from conftest import noise
from whisper.model import disable_sdpa

from whisper_at.engine import encoder, onednn
from whisper_at.engine.encoder import can_attend_unfused, encode


def mel(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 80, 3000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch", [1, 2])
def test_attention_is_upstreams_without_fused_kernels(model_en, upstream_en, batch, monkeypatch):
    """The same numbers as in find_alignment's own pass of the encoder, by the same products (see test_onednn)."""
    monkeypatch.setattr(onednn, "_supported", lambda: False)
    with disable_sdpa(), torch.no_grad():
        expected = upstream_en.encoder(mel(batch))
    found, states = model_en.encode(mel(batch), unfused_attention=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        assert torch.equal(model_en.embed_audio(mel(batch), unfused_attention=True), found)
    assert states.shape == (batch, 2, 75, 64)


def test_attention_is_upstreams_fused_one_where_no_words_are_timed(model_en, upstream_en, monkeypatch):
    monkeypatch.setattr(onednn, "_supported", lambda: False)
    monkeypatch.setattr(encoder, "attention_by_head", None)
    with torch.no_grad():
        torch.testing.assert_close(model_en.embed_audio(mel()), upstream_en.encoder(mel()), atol=1e-6, rtol=1e-6)
    model_en.transcribe(noise(3), language="en", temperature=0.0, sample_len=6, fp16=False)
    with pytest.raises(TypeError):  # which words are timed by
        model_en.transcribe(noise(3), language="en", temperature=0.0, sample_len=6, fp16=False, word_timestamps=True)


def test_blocks_are_shown_either_way(model_en):
    """Each block's output in order, from our pass and from the modules', which are left without hooks."""
    seen = [[], []]
    with torch.no_grad():
        found = encode(model_en.encoder, mel(), seen[0].append)
        expected = encoder._encode_by_module(model_en.encoder, mel(), seen[1].append)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert len(seen[0]) == 2
    for one, other in zip(*seen):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert not any(block._forward_hooks for block in model_en.encoder.blocks)


def test_gradients_pass(model_en):
    encode(model_en.encoder, mel()).sum().backward()
    assert all(p.grad is not None for p in model_en.encoder.parameters() if p.requires_grad)


@pytest.mark.parametrize("part", ["encoder", "blocks.1", "blocks.0.attn", "blocks.0.mlp.0"])
def test_hooks_of_users_are_called(model_en, part):
    calls = []
    hooked = model_en.encoder if part == "encoder" else model_en.encoder.get_submodule(part)
    with hooked.register_forward_hook(lambda *_: calls.append(1)):
        assert not can_attend_unfused(model_en.encoder, torch.float32)
        model_en.embed_audio(mel())
        assert len(calls) == 1
        model_en.encode(mel())
        assert len(calls) == 2
    assert can_attend_unfused(model_en.encoder, torch.float32)


def test_backward_hooks_of_users_are_called(model_en):
    calls = []
    model_en.encoder.blocks[0].register_full_backward_hook(lambda *_: calls.append(1))
    model_en.embed_audio(mel()).sum().backward()
    assert calls == [1]


def test_another_encoder_is_called_as_it_is(model_en):
    """It needs none of the parts that openai-whisper's has, unless heads read its blocks."""
    model_en.encoder = torch.nn.Flatten()
    assert torch.equal(model_en.embed_audio(mel()), mel().flatten(1))


def test_replaced_attention_is_kept(model_en):
    calls = []
    attention = model_en.encoder.blocks[0].attn
    real = attention.qkv_attention
    assert can_attend_unfused(model_en.encoder, torch.float32)
    attention.qkv_attention = lambda *args: calls.append(1) or real(*args)
    assert not can_attend_unfused(model_en.encoder, torch.float32)
    model_en.transcribe(noise(3), language="en", temperature=0.0, sample_len=6, word_timestamps=True, fp16=False)
    assert calls
    assert "qkv_attention" in vars(attention)


def test_mels_of_another_length_are_refused_as_upstream_does(model_en):
    with pytest.raises(AssertionError, match="incorrect audio shape"):
        encode(model_en.encoder, torch.zeros(1, 80, 100))
