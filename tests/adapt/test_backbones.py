"""Backbones: the libraries' own forward, front ends against independent ones, and padding that changes nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import whisper
from conftest import ROOT, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_backbones import FAMILIES, make_backbone, transformers_model
from torch import Tensor, nn

from whisper_at.adapt import adapt, load_backbone, merge, random_backbone, transformers_backbone, whisper_backbone
from whisper_at.adapt.backbones.frontends import AST_MEAN, AST_STD, batched_log_mel, normalize_clips, resize_positions
from whisper_at.audio import load_audio
from whisper_at.loading import load_model
from whisper_at.train.fit import trainable_state

transformers = pytest.importorskip("transformers")

SPEECH = ("wav2vec2-tiny", "hubert-tiny", "wavlm-tiny", "wavlm-stable-tiny", "mms-tiny")


def noise_clips(*seconds: float) -> list[Tensor]:
    return [torch.from_numpy(noise(s, seed)) for seed, s in enumerate(seconds)]


def pad_clips(parts: list[Tensor], fill: float = 3.0) -> tuple[Tensor, Tensor]:
    """Padded clips, filled with a constant behind the short ones, and their lengths."""
    lengths = torch.tensor([len(part) for part in parts])
    rows = [torch.cat([part, torch.full((int(lengths.max()) - len(part),), fill)]) for part in parts]
    return torch.stack(rows), lengths


# --- the libraries' own forward -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPEECH)
def test_speech_backbones_give_what_transformers_gives(name):
    model = transformers_model(name)
    waveforms = torch.stack(noise_clips(1.0, 1.0))
    with torch.no_grad():
        normal = normalize_clips(waveforms, torch.tensor([16000, 16000]))
        theirs = model(normal, output_hidden_states=True)
        ours = transformers_backbone(model, name, normalize=True)(waveforms)
    # transformers keeps the last block's output before the final norm, this package after it (spec section 2.1)
    for mine, other in zip(ours.states[:-1], theirs.hidden_states[:-1]):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.states[-1], theirs.last_hidden_state, rtol=0, atol=1e-5)
    assert len(ours.states) == len(theirs.hidden_states) == 4
    assert ours.special == 0


def test_padded_speech_is_masked_as_transformers_masks_it():
    model = transformers_model("mms-tiny")  # this family was trained with masks
    waveforms, lengths = pad_clips(noise_clips(1.0, 0.6), fill=0.0)
    mask = (torch.arange(16000) < lengths[:, None]).long()
    with torch.no_grad():
        theirs = model(normalize_clips(waveforms, lengths), attention_mask=mask).last_hidden_state
        ours = transformers_backbone(model, "mms", normalize=True)(waveforms, lengths)
    # their convolutions read padding, ours do not (defect S8); the clip without padding is the same
    torch.testing.assert_close(ours.states[-1][0], theirs[0], rtol=0, atol=1e-5)
    assert ours.mask.sum(1).tolist() == [49, 29]


def test_mms_language_adapters_are_a_part_of_their_blocks():
    model = transformers_model("mms-tiny", adapter_attn_dim=8)
    waveforms = torch.stack(noise_clips(0.5))
    with torch.no_grad():
        theirs = model(waveforms).last_hidden_state
        ours = transformers_backbone(model, "mms", normalize=False)(waveforms).states[-1]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_hubert_without_projection_norm_and_with_batch_norm():
    model = transformers_model("hubert-tiny", feat_proj_layer_norm=False, conv_pos_batch_norm=True)
    waveforms = torch.stack(noise_clips(0.5))
    with torch.no_grad():
        theirs = model(waveforms).last_hidden_state
        backbone = transformers_backbone(model, "hubert", normalize=False).train()
        ours = backbone(waveforms).states[-1]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert trainable_state(backbone) == {}  # defect S2: no frozen statistics


@pytest.mark.parametrize("frames", [None, 96])
def test_ast_gives_what_transformers_gives(frames):
    model = transformers_model("ast-tiny", **({} if frames is None else {"max_length": frames}))
    waveforms = torch.stack(noise_clips(1.2, 0.5 + 0.7))
    extractor = transformers.ASTFeatureExtractor(max_length=frames or 1024)
    features = extractor([w.numpy() for w in waveforms], sampling_rate=16000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        theirs = model(features, output_hidden_states=True)
        ours = transformers_backbone(model, "ast")(waveforms)
    torch.testing.assert_close(ours.states[-1], theirs.last_hidden_state, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.states[1], theirs.hidden_states[1], rtol=0, atol=1e-4)
    assert ours.special == 2
    assert ours.mask.all()


def test_whisper_gives_what_openai_whisper_gives(upstream_en):
    waveforms = torch.nn.functional.pad(torch.stack(noise_clips(2.0)), (0, 28 * 16000))
    with torch.no_grad():
        theirs = upstream_en.encoder(whisper.log_mel_spectrogram(waveforms))
        ours = whisper_backbone(upstream_en.encoder)(waveforms)
    assert len(ours.states) == 3
    assert ours.special == 0
    torch.testing.assert_close(ours.states[-1], theirs, rtol=0, atol=1e-5)


def test_whisper_encodes_a_short_clip_without_padding(upstream_en):
    """Spec section 2.1: no padding to 30 s; the table's first rows. Computed here from openai-whisper's modules."""
    encoder, clip = upstream_en.encoder, noise_clips(1.234)[0]
    with torch.no_grad():
        x = nn.functional.gelu(encoder.conv1(whisper.log_mel_spectrogram(clip)[None]))
        x = nn.functional.gelu(encoder.conv2(x)).permute(0, 2, 1)
        x = x + encoder.positional_embedding[: x.shape[1]]
        theirs = [x]
        for block in encoder.blocks:
            theirs.append(block(theirs[-1]))
        ours = whisper_backbone(encoder)(clip[None])
    assert ours.states[0].shape[1] == (len(clip) // 160 - 1) // 2 + 1
    for mine, other in zip(ours.states[:-1], theirs[:-1]):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.states[-1], encoder.ln_post(theirs[-1]), rtol=0, atol=1e-5)


# --- a clip alone, in a batch, padded (defects S8, S9) ----------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_s8_a_clip_alone_in_a_batch_and_padded_is_the_same(name):
    backbone = make_backbone(name)
    parts = noise_clips(0.9, 0.55, 0.3)
    waveforms, lengths = pad_clips(parts)
    batch = backbone(waveforms, lengths)
    silence = backbone(torch.nn.functional.pad(waveforms, (0, 3000)), lengths)
    for i, part in enumerate(parts):
        single = backbone(part[None])
        assert single.mask.all()
        for layer in range(backbone.layers + 1):
            for other in (batch, silence):
                real = other.states[layer][i][other.mask[i]]
                torch.testing.assert_close(real, single.states[layer][0], rtol=0, atol=2e-5)


@given(st.integers(400, 40000))
@settings(max_examples=15, deadline=None)
def test_numbers_of_tokens_follow_the_formulas(samples):
    """Spec sections 2.1 and 2.2: N = ((samples // 160) - 1) // 2 + 1, and the stack of convolutions."""
    n = samples
    for k, s in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)):
        n = (n - k) // s + 1
    for name, wanted in (("whisper-nano", (samples // 160 - 1) // 2 + 1), ("wav2vec2-tiny", n)):
        hidden = make_backbone(name)(torch.zeros(2, 40000), torch.tensor([40000, samples]))
        assert hidden.mask[1].sum() == wanted


def test_one_second_is_49_tokens_of_wav2vec_and_rates_are_known():
    assert make_backbone("wav2vec2-tiny")(torch.zeros(1, 16000)).mask.shape == (1, 49)
    assert make_backbone("wav2vec2-tiny").frame_rate == make_backbone("whisper-nano").frame_rate == 50.0
    assert make_backbone("ast-tiny").frame_rate is None
    assert {make_backbone(name).sample_rate for name in FAMILIES} == {16000}


def test_s9_each_clip_is_normalised_over_its_own_samples():
    waveforms, lengths = pad_clips(noise_clips(0.5, 0.2))
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    parts = [row[:n].numpy() for row, n in zip(waveforms, lengths)]
    theirs = extractor(parts, sampling_rate=16000, padding=True, return_tensors="pt")["input_values"]
    torch.testing.assert_close(normalize_clips(waveforms, lengths), theirs, rtol=0, atol=1e-5)


def test_s10_normalisation_follows_the_preprocessor_of_the_model(tmp_path):
    model = transformers_model("wav2vec2-tiny")
    model.save_pretrained(tmp_path)
    clip = noise_clips(0.5)[0][None] * 3
    assert load_backbone(tmp_path, "cpu").front.normalize  # transformers' default
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    raw = load_backbone(tmp_path, "cpu")
    assert not raw.front.normalize
    assert load_backbone(tmp_path, "cpu", normalize=True).front.normalize
    torch.testing.assert_close(raw(clip).states[-1], model(clip).last_hidden_state, rtol=0, atol=1e-5)


# --- front ends -----------------------------------------------------------------------------------------------


def test_batched_log_mel_equals_whispers_clip_by_clip():
    waveforms, lengths = pad_clips(noise_clips(1.0, 0.61, 0.3))
    waveforms[1] *= 0.01  # a quiet clip has a floor of its own
    filters = whisper.audio.mel_filters("cpu", 80)
    ours = batched_log_mel(waveforms, lengths, filters)
    for row, wave, n in zip(ours, waveforms, lengths.tolist()):
        theirs = whisper.log_mel_spectrogram(wave[:n])
        torch.testing.assert_close(row[:, : n // 160], theirs, rtol=0, atol=1e-5)
        assert not row[:, n // 160 :].any()


def test_filter_bank_of_a_real_recording_is_transformers_and_padding_comes_before_normalising():
    audio = load_audio(ROOT / "sample" / "speech.flac")[: 5 * 16000]
    theirs = transformers.ASTFeatureExtractor(max_length=600)(audio, sampling_rate=16000)["input_values"][0]
    front = random_backbone("ast-tiny", frames=600).front
    ours = front.spectrogram(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))[0]
    # transformers computes in float64, so that near-silent frames differ in the fourth decimal
    torch.testing.assert_close(ours, torch.as_tensor(np.asarray(theirs), dtype=torch.float32), rtol=0, atol=2e-3)
    assert (ours - torch.as_tensor(np.asarray(theirs), dtype=torch.float32)).abs().mean() < 1e-5
    n_frames = (len(audio) - 400) // 160 + 1
    torch.testing.assert_close(ours[n_frames:], torch.full((600 - n_frames, 128), -AST_MEAN / (2 * AST_STD)))
    assert round(-AST_MEAN / (2 * AST_STD), 3) == 0.467


def test_filter_bank_of_a_tone_is_kaldis_formula():
    """One frame, computed here from Kaldi's definition: mean, pre-emphasis, Hanning, power, triangles, logarithm."""
    x = np.sin(2 * np.pi * 1000 * np.arange(400) / 16000) * 0.3 + 0.1
    y = x - x.mean()
    y = y - 0.97 * np.concatenate([y[:1], y[:-1]])
    power = np.abs(np.fft.rfft(y * np.hanning(400), 512)) ** 2

    def mel(f: float) -> float:
        return 1127 * math.log(1 + f / 700)

    low, step = mel(20), (mel(8000) - mel(20)) / 129
    wanted = []
    for m in range(128):
        left, centre, right = (low + (m + j) * step for j in range(3))
        total = 0.0
        for k in range(257):
            at = mel(k * 16000 / 512)
            if left < at < right:
                total += power[k] * ((at - left) / step if at <= centre else (right - at) / step)
        wanted.append(math.log(max(total, 1.1920928955078125e-07)))
    front = random_backbone("ast-tiny", frames=16).front
    ours = front.spectrogram(torch.tensor(x, dtype=torch.float32)[None], torch.tensor([400]))[0, 0]
    wanted_normal = (torch.tensor(wanted) - AST_MEAN) / (2 * AST_STD)
    torch.testing.assert_close(ours, wanted_normal.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("columns", [9, 38, 39, 101, 130])
def test_p1_positions_of_ast_are_cropped_or_interpolated(columns):
    table = torch.randn(1, 2 + 12 * 101, 8)
    ours = resize_positions(table, (12, 101), columns)
    assert ours.shape == (1, 2 + 12 * columns, 8)
    torch.testing.assert_close(ours[:, :2], table[:, :2])
    grid, new = table[0, 2:].reshape(12, 101, 8), ours[0, 2:].reshape(12, columns, 8)
    for t in range(columns):
        if columns <= 101:
            wanted = grid[:, 50 - columns // 2 + t]
        else:  # bilinear along time, rows as they are
            position = min(max((t + 0.5) * 101 / columns - 0.5, 0), 100)
            left = int(position)
            weight = position - left
            wanted = grid[:, left] * (1 - weight) + grid[:, min(left + 1, 100)] * weight
        torch.testing.assert_close(new[:, t], wanted, rtol=0, atol=1e-4)


def test_p1_a_loaded_ast_of_another_length_knows_its_positions(tmp_path):
    model = transformers_model("ast-tiny")
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, "cpu", frames=400)
    assert backbone.front.position_embeddings.shape == (1, 2 + 12 * 39, 32)
    assert (backbone.front.position_embeddings.abs().amax(-1) > 0).all()
    torch.testing.assert_close(
        backbone.front.position_embeddings, resize_positions(model.embeddings.position_embeddings, (12, 101), 39)
    )


def test_w5_whispers_positions_follow_the_device_and_are_not_saved():
    backbone = random_backbone("whisper-nano")
    assert not any("positional" in name for name in backbone.state_dict())
    assert backbone.to("meta").front.positional_embedding.is_meta


# --- loading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ast-tiny", "hubert-tiny", "wavlm-tiny", "mms-tiny"])
def test_folders_in_hugging_faces_layout_load(name, tmp_path):
    model = transformers_model(name)
    model.save_pretrained(tmp_path)
    backbone, clip = load_backbone(tmp_path, "cpu"), noise_clips(1.0)[0][None]
    same = transformers_backbone(model, name)
    assert (backbone.family, backbone.width, backbone.layers) == (same.family, 32, 3)
    torch.testing.assert_close(backbone(clip).states[-1], same(clip).states[-1], rtol=0, atol=0)


@pytest.mark.parametrize("binary", [False, True])
def test_the_layout_of_published_wav2vec2_loads(binary, tmp_path):
    """The layout of facebook/wav2vec2-base-960h: encoder under a prefix, weight_g and weight_v, an output layer."""
    model = transformers_model("wav2vec2-tiny")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = {"lm_head.weight": torch.zeros(5, 32), "lm_head.bias": torch.zeros(5)}
    for key, tensor in model.state_dict().items():
        for new, old in older.items():
            key = key.replace(new, old)
        tensors[f"wav2vec2.{key}"] = tensor
    if binary:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    clip = noise_clips(0.5)[0][None]
    ours = load_backbone(tmp_path, "cpu")(clip).states[-1]
    assert torch.equal(ours, transformers_backbone(model, "wav2vec2")(clip).states[-1])


def test_a_whisper_in_hugging_faces_layout_loads(tmp_path):
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=51864,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    waveforms = torch.nn.functional.pad(torch.stack(noise_clips(1.0)), (0, 29 * 16000))
    with torch.no_grad():
        theirs = model.model.encoder(whisper.log_mel_spectrogram(waveforms)).last_hidden_state
    ours = load_backbone(tmp_path, "cpu")
    assert (ours.family, ours.width, ours.layers) == ("whisper", 32, 2)
    torch.testing.assert_close(ours(waveforms).states[-1], theirs, rtol=0, atol=1e-5)


def test_the_embedded_whisper_loads_by_name_and_is_the_models_encoder():
    model, backbone = load_model("nano.en", "cpu", head=None), load_backbone("nano.en", "cpu")
    waveforms = torch.nn.functional.pad(torch.stack(noise_clips(2.0)), (0, 28 * 16000))
    with torch.no_grad():
        theirs = model.encoder(whisper.log_mel_spectrogram(waveforms))
    torch.testing.assert_close(backbone(waveforms).states[-1], theirs, rtol=0, atol=1e-4)
    assert backbone.family == "whisper"
    assert backbone.name == "nano.en"


def test_a_checkpoint_file_loads(checkpoint, upstream_en):
    clip = noise_clips(1.0)[0][None]
    ours = load_backbone(checkpoint, "cpu")(clip).states[-1]
    torch.testing.assert_close(ours, whisper_backbone(upstream_en.encoder)(clip).states[-1], rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_backbones_are_frozen_and_no_checkpoint_holds_their_weights(name):
    backbone = make_backbone(name)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    assert trainable_state(backbone) == {}  # defect S2
    assert not any(module.training for module in backbone.train().front.modules())


def test_training_mode_changes_nothing_in_a_plain_backbone():
    """Dropout, layer drop and SpecAugment of the checkpoint's configuration stay out (spec section 1.1)."""
    clip = noise_clips(1.0)[0][None]
    for name in SPEECH:
        backbone = transformers_backbone(transformers_model(name, layerdrop=0.9, hidden_dropout=0.9), name)
        torch.testing.assert_close(backbone.train()(clip).states[-1], backbone.eval()(clip).states[-1], rtol=0, atol=0)


def test_adapting_does_not_change_the_whisper_whose_weights_are_shared():
    """Design, decision 10: the text of the plain model does not change."""
    model = load_model("nano.en", "cpu", head=None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grad = [p.requires_grad for p in model.parameters()]
    backbone = whisper_backbone(model.encoder)
    weight = model.encoder.blocks[0].attn.query.weight
    assert backbone.blocks[0].attn.q.weight.data_ptr() == weight.data_ptr()  # not a copy
    adapt(backbone, [{"name": "lora"}, {"name": "layer_norm"}, {"name": "bitfit"}])
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    merge(backbone)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == grad
    assert backbone.blocks[1].attn.k.weight.data_ptr() == model.encoder.blocks[1].attn.key.weight.data_ptr()


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("whisper-nano", 200, "at least 201"),
        ("whisper-nano", 30 * 16000 + 160, "30"),
        ("ast-tiny", 399, "at least 400"),
        ("hubert-tiny", 399, "at least 400"),
    ],
)
def test_clips_that_are_too_short_or_too_long_are_refused(name, samples, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(name)(torch.zeros(1, samples))
    with pytest.raises(ValueError, match=message):
        make_backbone(name)(torch.zeros(2, 40 * 16000), torch.tensor([16000, samples]))


def test_lengths_beyond_the_waveforms_are_refused():
    with pytest.raises(ValueError, match="9000 samples where waveforms have 8000"):
        make_backbone("whisper-nano")(torch.zeros(1, 8000), torch.tensor([9000]))
    with pytest.raises(ValueError, match="shape"):
        make_backbone("whisper-nano")(torch.zeros(8000))


def test_unknown_backbones_and_wrong_options_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="none of .*nano.en.*ast"):
        load_backbone("no-such-backbone")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RuntimeError, match="'bert'.*Whisper, AST"):
        load_backbone(tmp_path)
    with pytest.raises(ValueError, match="frames is for AST"):
        load_backbone("nano.en", frames=400)
    with pytest.raises(ValueError, match="normalize is for"):
        load_backbone("nano.en", normalize=True)
    with pytest.raises(ValueError, match="at least 16 frames"):
        random_backbone("ast-tiny", frames=15)
    with pytest.raises(ValueError, match="whisper-base"):
        random_backbone("nothing")


def test_missing_weights_are_refused(tmp_path):
    transformers_model("wavlm-tiny").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layers.1.attention.v_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="lacks weights.*v_proj"):
        load_backbone(tmp_path, "cpu")
