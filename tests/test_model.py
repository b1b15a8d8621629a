"""The model as a Whisper: same interface, batches, precision, heads beside the modules."""

from __future__ import annotations

import copy

import pytest
import torch
import whisper
from conftest import noise, random_whisper

import whisper_at
from whisper_at.checkpoints import save_safetensors
from whisper_at.engine.kv_cache import DecoderState
from whisper_at.loading import _half_precision_names
from whisper_at.model import WhisperAT
from whisper_at.tagging.heads import make_head
from whisper_at.windows import Window


def mels(n: int) -> torch.Tensor:
    return torch.stack([whisper.log_mel_spectrogram(noise(30, seed)) for seed in range(n)])


def test_encoder_keeps_upstreams_contract(model_en, upstream_en):
    """D13: ``model.encoder`` and ``embed_audio`` returned tuples, and ``state_dict`` gained keys."""
    mel = mels(2)
    with torch.no_grad():
        expected = upstream_en.encoder(mel)
        torch.testing.assert_close(model_en.encoder(mel), expected)
        torch.testing.assert_close(model_en.embed_audio(mel), expected)
    assert model_en.state_dict().keys() == upstream_en.state_dict().keys()
    assert sum(p.numel() for p in model_en.parameters()) == sum(p.numel() for p in upstream_en.parameters())
    assert isinstance(model_en, whisper.Whisper)


def test_pooled_states_are_the_blocks_outputs(model_en):
    """Spec 1.1: every block before ``ln_post``, without the convolution's output, mean over 20 positions."""
    mel = mels(1)
    features, states = model_en.encode(mel)
    assert states.shape == (1, 2, 75, 64)
    assert states.dtype == torch.float32
    with torch.no_grad():
        last = features  # ln_post of the last block's output
        x = torch.nn.functional.gelu(model_en.encoder.conv1(mel))
        x = torch.nn.functional.gelu(model_en.encoder.conv2(x)).permute(0, 2, 1)
        x = x + model_en.encoder.positional_embedding
        for i, block in enumerate(model_en.encoder.blocks):
            x = block(x)
            torch.testing.assert_close(states[:, i], x.view(1, 75, 20, 64).mean(2), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model_en.encoder.ln_post(x), last)
    assert not model_en.encoder.blocks[0]._forward_hooks


def test_batches_keep_every_item(model_en):
    """D10: index 0 of the batch was kept and attached to every result."""
    mel = mels(3)
    windows = [Window(0), Window(2500), Window(77, 1200)]
    features, states = model_en.encode(mel, windows)
    assert states.shape == (3, 2, 76, 64)
    for i, window in enumerate(windows):
        f, s = model_en.encode(mel[i : i + 1], [window])
        torch.testing.assert_close(features[i], f[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(states[i, :, : s.shape[2]], s[0], atol=1e-4, rtol=1e-3, equal_nan=True)


def test_batched_decode(model_en, upstream_en):
    """D10, D11: batched mel, and features in place of mel."""
    mel = mels(3)
    options = whisper.DecodingOptions(language="en", fp16=False, sample_len=20)
    expected = upstream_en.decode(mel, options)
    assert [r.tokens for r in model_en.decode(mel, options)] == [r.tokens for r in expected]
    features, _ = model_en.encode(mel)
    assert [r.tokens for r in model_en.decode(features, options)] == [r.tokens for r in expected]


def test_language_identification_task(model_multilingual, upstream_multilingual):
    """D12: ``task="lang_id"`` crashed on an extra field of the result."""
    mel = mels(2)
    options = whisper.DecodingOptions(task="lang_id", fp16=False)
    languages = [r.language for r in model_multilingual.decode(mel, options)]
    assert languages == [r.language for r in upstream_multilingual.decode(mel, options)]
    beams = whisper.DecodingOptions(task="lang_id", fp16=False, beam_size=2)
    for found, expected in zip(model_multilingual.decode(mel, beams), upstream_multilingual.decode(mel, beams)):
        torch.testing.assert_close(found.audio_features, expected.audio_features, atol=1e-4, rtol=1e-3)


def test_features_in_place_of_a_mel(model_en):
    tokens = torch.tensor([[50257, 50362, 11]])
    mel = mels(1)
    with torch.no_grad():
        expected = model_en(mel, tokens)
        torch.testing.assert_close(model_en(model_en.encoder(mel), tokens), expected)


def test_half_keeps_the_head(model_en):
    """D15: ``model.half()`` broke tagging."""
    before = copy.deepcopy(model_en.head.state_dict())
    model_en.half()
    assert all(torch.equal(before[k], v) for k, v in model_en.head.state_dict().items())
    assert model_en.encoder.conv1.weight.dtype == torch.float16


def test_copies_and_device_moves_take_the_head_along(model_en):
    twin = copy.deepcopy(model_en)
    assert twin.head is not model_en.head
    assert twin.head.mode == "tl_tr_1_8"
    assert next(copy.deepcopy(model_en).to("meta").head.parameters()).device.type == "meta"


def test_a_head_of_another_width_is_refused(model_en):
    with pytest.raises(ValueError, match="width 128"):
        model_en.head = make_head("tl_tr_1_8", n_layer=2, rep_dim=128)
    assert model_en.head.rep_dim == 64
    model_en.head = None
    assert model_en.head is None


@pytest.fixture
def head_file(tmp_path):
    head = make_head("tl_tr_1_8", n_layer=2, rep_dim=64)
    path = tmp_path / "head.pth"
    torch.save({f"at_model.{k}": v for k, v in head.state_dict().items()}, path)
    return path, head


def test_a_checkpoint_by_path_with_a_head(checkpoint, head_file):
    """D19: a path raised UnboundLocalError after the weights were read."""
    path, head = head_file
    model = whisper_at.load_model(str(checkpoint), head=path, in_memory=True)
    states = torch.randn(1, 2, 25, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.head(states), head(states))
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_safetensors_head(checkpoint, head_file, tmp_path):
    _, head = head_file
    path = tmp_path / "head.safetensors"
    tensors = {f"at_model.{k}": v for k, v in head.state_dict().items()}
    save_safetensors(tensors, path, {"mode": "tl_tr_1_8", "n_layer": "2"})
    assert whisper_at.load_model(str(checkpoint), head=str(path)).head.mode == "tl_tr_1_8"


def test_a_whisper_without_a_head_transcribes_and_says_why_it_cannot_tag(checkpoint):
    """D22: large-v3, turbo and files of one's own could not be used at all."""
    model = whisper_at.load_model(str(checkpoint))
    result = model.transcribe(noise(2), temperature=0.0, sample_len=5)
    assert result.keys() == {"text", "segments", "language"}
    with pytest.raises(ValueError, match="no head is published for .*head=FILE"):
        model.transcribe(noise(2), at_time_res=10)


def test_a_head_for_another_whisper(checkpoint, tmp_path):
    head = make_head("tl_tr_1_8", n_layer=2, rep_dim=128)
    torch.save({f"at_model.{k}": v for k, v in head.state_dict().items()}, tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="wide.pth does not fit .*width 128"):
        whisper_at.load_model(str(checkpoint), head=tmp_path / "wide.pth")


@pytest.mark.parametrize("option", [{"compute_type": "int3"}, {"compute_type": "float16", "device": "cpu"}])
def test_impossible_precision(checkpoint, option):
    with pytest.raises(ValueError, match="compute_type"):
        whisper_at.load_model(str(checkpoint), **option)


def test_the_fastest_precision(checkpoint):
    model = whisper_at.load_model(str(checkpoint), device="cpu", compute_type="auto")
    assert model.compute_type == "int8"
    assert model.precompute_cross_kv(torch.randn(1, 1500, 64)).keys.dtype == torch.float16
    assert model.fast_decoder(torch.float32).packed.embedding.weight.dtype == "int8"
    with pytest.raises(ValueError, match="int8.*on cuda choose float16"):
        whisper_at.load_model(str(checkpoint), device="cuda", compute_type="int8")


@pytest.fixture(scope="module")
def half_checkpoint(checkpoint, tmp_path_factory):
    """A checkpoint in half precision, as official ones are."""
    content = torch.load(checkpoint, weights_only=True)
    content["model_state_dict"] = {name: tensor.half() for name, tensor in content["model_state_dict"].items()}
    path = tmp_path_factory.mktemp("half") / "half.pt"
    torch.save(content, path)
    return path


def halves(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16}


def test_reduced_models_keep_matrices_in_half_precision_where_that_loses_nothing(half_checkpoint, checkpoint):
    plain, int8 = (whisper_at.load_model(str(half_checkpoint), "cpu", compute_type=t) for t in (None, "int8"))
    assert not halves(plain)
    assert halves(int8) == {name for name, p in plain.named_parameters() if p.ndim == 2} - {
        "decoder.positional_embedding"
    }
    exact = dict(plain.named_parameters())
    assert all(torch.equal(parameter.float(), exact[name]) for name, parameter in int8.named_parameters())
    assert not halves(whisper_at.load_model(str(checkpoint), "cpu", compute_type="int8"))  # which is not exact in half


def test_a_gpu_in_half_precision_keeps_every_matrix_so(half_checkpoint):
    """Without a GPU: which they would be, and that upstream's modules compute with them."""
    model = whisper_at.load_model(str(half_checkpoint), "cpu")
    model.compute_type = "float16"
    names = _half_precision_names(model, on_cpu=False)
    both = {name for name, p in model.named_parameters() if p.ndim == 2 and "positional_embedding" not in name}
    assert names == both
    assert any(name.startswith("encoder") for name in names)
    tokens = torch.randint(0, 50000, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(mels(1), tokens)
        for name in names:
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.half()
        assert torch.equal(model(mels(1), tokens), expected)


@pytest.mark.parametrize("compute_type", ["bfloat16", "int8"])
def test_matrices_in_half_precision_compute_the_same(half_checkpoint, compute_type):
    """Through upstream's own modules, and through the fast decoder whose long prompts go by PyTorch."""
    plain = whisper_at.load_model(str(half_checkpoint), "cpu")
    reduced = whisper_at.load_model(str(half_checkpoint), "cpu", compute_type=compute_type)
    assert halves(reduced)
    mel, tokens = mels(1), torch.randint(0, 50000, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(reduced(mel, tokens), plain(mel, tokens))
    plain.compute_type = compute_type  # the same from matrices in float32
    found = []
    for model in (plain, reduced):
        state = DecoderState(model.fast_decoder(torch.float32), model.precompute_cross_kv(model.embed_audio(mel)))
        found.append(torch.cat([state.prefill(tokens)[:, 0], state.step(tokens[:, 0])]))
    assert torch.equal(*found)


def test_loading_draws_no_random_weights(checkpoint):
    """Every weight comes from the file: drawing them first takes time, and moves the user's generator."""
    theirs = whisper.load_model(str(checkpoint))
    before = torch.get_rng_state()
    ours = whisper_at.load_model(str(checkpoint))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        assert torch.equal(buffer.to_dense(), buffers[name].to_dense()), name


def test_low_compute_only_where_it_exists():
    """D21: ``at_low_compute`` with tiny failed with KeyError after a download."""
    with pytest.raises(ValueError, match="tiny"):
        whisper_at.load_model("tiny", at_low_compute=True)
    for head in (None, "medium", ["medium", "own.safetensors"]):  # which would be taken as it is
        with pytest.raises(ValueError, match="at_low_compute chooses among published heads"):
            whisper_at.load_model("medium", head=head, at_low_compute=True)


def test_bfloat16_encoder(checkpoint):
    exact = whisper_at.load_model(str(checkpoint))
    quick = whisper_at.load_model(str(checkpoint), compute_type="bfloat16")
    features, _ = exact.encode(mels(1))
    approximate, states = quick.encode(mels(1))
    assert approximate.dtype == states.dtype == torch.float32
    assert 0 < (features - approximate).norm() / features.norm() < 0.05
    assert quick.transcribe(noise(3), temperature=0.0, sample_len=5, word_timestamps=True)["segments"]


def test_128_mels():
    """D22: 80 mel bins were hard-wired."""
    model = random_whisper(WhisperAT, 51866, n_mels=128)
    model.head = make_head("last_mlp", n_layer=2, rep_dim=64)
    result = model.transcribe(noise(3), temperature=0.0, sample_len=5, language="en", at_time_res=0.4)
    assert result["audio_tag"].shape == (8, 527)
    assert model.num_languages == 100
