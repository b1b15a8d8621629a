"""LoRA: its formula, merging, and peft's files, outputs and steps of training."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_backbones import FAMILIES, clips, made, one_block, randomised, trained
from torch import Tensor, nn

from whisper_at.adapt import (
    adapt,
    count_parameters,
    load_backbone,
    load_peft,
    merge,
    save_peft,
    transformers_backbone,
    unmerge,
)
from whisper_at.adapt import backbones as backbones_module
from whisper_at.adapt.frontends import batched_log_mel
from whisper_at.adapt.lora import LoRA
from whisper_at.files import read_tensors, save_safetensors

transformers = pytest.importorskip("transformers")


def test_p3_lora_is_scaled_by_alpha_over_rank():
    torch.manual_seed(0)
    x, linear = torch.randn(4, 6), nn.Linear(6, 5)
    for rank in (2, 4):
        lora = randomised(LoRA(6, 5, rank, alpha=8))
        torch.testing.assert_close(lora(x), x @ (8 / rank * lora.B @ lora.A).T, rtol=1e-4, atol=1e-5)
        merged = lora.added_to(linear)
        torch.testing.assert_close(merged(x), linear(x) + lora(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["whisper-nano", "wav2vec2-tiny"])
def test_lora_is_at_the_projections_that_are_named(name):
    block, plain, h = one_block(name, {"name": "lora", "sites": ["q", "o", "up"], "rank": 2, "alpha": 4})
    wanted = copy.deepcopy(plain)
    with torch.no_grad():
        for part, site in ((wanted.attn, "q"), (wanted.attn, "o"), (wanted.ffn, "up")):
            lora = (block.attn if site != "up" else block.ffn).lora[site]
            getattr(part, site).weight += 2.0 * lora.B @ lora.A
    torch.testing.assert_close(block(h), wanted(h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_merging_lora_changes_nothing_and_unmerging_is_exact(name):
    backbone = trained(made(name, {"name": "lora", "sites": ["q", "k", "v", "o", "up", "down"], "rank": 3}), std=0.05)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    waveforms, lengths = clips(0.5, 0.4)
    wanted = backbone(waveforms, lengths).states[-1]
    merge(backbone)
    merge(backbone)  # a second time does nothing
    weight = backbone.blocks[0].attn.q.weight
    lora = backbone.blocks[0].attn.lora["q"]
    torch.testing.assert_close(weight, before["blocks.0.attn.q.weight"] + 8 / 3 * lora.B @ lora.A)
    torch.testing.assert_close(backbone(waveforms, lengths).states[-1], wanted, rtol=1e-4, atol=1e-4)
    unmerge(backbone)
    assert all(torch.equal(before[key], tensor) for key, tensor in backbone.state_dict().items())
    assert torch.equal(backbone(waveforms, lengths).states[-1], wanted)


@pytest.mark.parametrize("name", ["whisper-nano", "wav2vec2-tiny"])
def test_merged_weights_may_change_their_type(name):
    backbone = trained(made(name, {"name": "lora", "rank": 3}), std=0.05)
    waveforms = clips(0.5)[0]
    wanted = backbone(waveforms).states[-1]
    merge(backbone)
    backbone.double()
    unmerge(backbone)
    assert {p.dtype for p in backbone.parameters()} == {torch.float64}
    torch.testing.assert_close(backbone.float()(waveforms).states[-1], wanted, rtol=1e-5, atol=1e-5)


PEFT_MODELS = ("ast-tiny", "wav2vec2-tiny", "mms-tiny", "hubert-tiny")
LORA = {"name": "lora", "sites": ["q", "v", "o", "up", "down"], "rank": 4, "alpha": 6}


def library_model(name: str):
    torch.manual_seed(0)
    kind, sizes = backbones_module._CONFIGS[name]
    sizes = {**sizes, "max_length": 96} if kind == "AST" else sizes
    sizes = {**sizes, "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)).eval()


def peft_pair(name: str, folder):
    """The same LoRA here and in peft, with weights that are not zero, by way of our files."""
    peft = pytest.importorskip("peft")
    model = library_model(name)
    ours = transformers_backbone(copy.deepcopy(model), name, normalize=False)
    adapt(ours, LORA)
    trained(ours, std=0.1)
    save_peft(ours, folder)
    return ours, peft.PeftModel.from_pretrained(model, folder, is_trainable=True)


def features(name: str, ours, waveforms: Tensor) -> Tensor:
    return ours.front.spectrogram(waveforms, torch.tensor([len(w) for w in waveforms])) if "ast" in name else waveforms


@pytest.mark.parametrize("name", PEFT_MODELS)
def test_lora_here_and_in_peft_is_the_same_and_files_go_both_ways(name, tmp_path):
    ours, theirs = peft_pair(name, tmp_path / "ours")
    waveforms = clips(0.5)[0]
    wanted = theirs.eval()(features(name, ours, waveforms)).last_hidden_state
    torch.testing.assert_close(ours(waveforms).states[-1], wanted, rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = transformers_backbone(library_model(name), name, normalize=False)
    load_peft(again, tmp_path / "theirs")
    assert again.methods[0]["rank"] == 4 and again.methods[0]["sites"] == LORA["sites"]
    assert torch.equal(again(waveforms).states[-1], ours(waveforms).states[-1])


@pytest.mark.parametrize("name", ["ast-tiny", "wav2vec2-tiny"])
def test_lora_here_and_in_peft_train_alike(name, tmp_path):
    ours, theirs = peft_pair(name, tmp_path)
    waveforms = clips(0.5, 0.5)[0]
    inputs, losses = features(name, ours, waveforms), []
    for model, forward in (
        (ours, lambda: ours(waveforms).states[-1]),
        (theirs, lambda: theirs(inputs).last_hidden_state),
    ):
        parameters = [p for p in model.parameters() if p.requires_grad]
        assert sum(p.numel() for p in parameters) == count_parameters(ours)["patch"]
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        torch.manual_seed(5)
        losses.append([])
        for _ in range(10):
            state = forward()
            loss = (state - torch.linspace(-1, 1, 32)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(float(loss.detach()))
    assert losses[0][-1] < 0.95 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_lora_of_whisper_and_of_wavlms_ffn_is_the_same_in_peft(tmp_path):
    peft = pytest.importorskip("peft")
    model = library_model("wavlm-tiny")
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=3, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=51864, max_source_positions=25, max_target_positions=9,
    )  # fmt: skip
    whisper = transformers.WhisperModel(config).eval()
    whisper.save_pretrained(tmp_path / "whisper")
    waveforms = clips(0.5)[0]
    same = load_backbone(tmp_path / "whisper", "cpu")
    mel = batched_log_mel(waveforms, torch.tensor([8000]), same.front.filters)
    for ours, sites, theirs, features in (
        (same, ["q", "k", "v", "o", "up", "down"], whisper, mel),
        (transformers_backbone(copy.deepcopy(model), "wavlm-tiny", normalize=False), ["up", "down"], model, waveforms),
    ):
        adapt(ours, {"name": "lora", "sites": sites, "rank": 4, "alpha": 6})
        plain = ours(waveforms).states[-1]
        trained(ours, std=0.1)
        folder = tmp_path / ours.family
        save_peft(ours, folder / "lora")
        loaded = peft.PeftModel.from_pretrained(theirs, folder / "lora").eval()
        encoder = loaded.base_model.model.encoder if theirs is whisper else loaded
        wanted = encoder(features).last_hidden_state
        torch.testing.assert_close(ours(waveforms).states[-1], wanted, rtol=0, atol=2e-5)
        assert (wanted - plain).abs().max() > 0.01


def test_whispers_lora_has_the_names_of_transformers(tmp_path):
    backbone = made("whisper-nano", {"name": "lora", "blocks": [0, 2], "rank": 2})
    save_peft(backbone, tmp_path)
    peft = pytest.importorskip("peft")
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=99, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    theirs = peft.PeftModel.from_pretrained(transformers.WhisperModel(config), tmp_path)
    placed = sorted(name.split(".lora_A")[0] for name, _ in theirs.named_parameters() if "lora_A" in name)
    assert placed == [
        f"base_model.model.encoder.layers.{i}.self_attn.{site}_proj" for i in (0, 2) for site in ("q", "v")
    ]
    again = made("whisper-nano")
    load_peft(again, tmp_path)
    assert again.methods == [{"name": "lora", "sites": ["q", "v"], "rank": 2, "alpha": 8.0, "blocks": [0, 2]}]


@pytest.mark.parametrize("name", ["ast-tiny", "wav2vec2-tiny"])
def test_lora_of_a_model_around_the_encoder_loads(name, tmp_path):
    """As peft writes it for a classifier; and AST's by the names of transformers 4."""
    ours = trained(made(name, LORA))
    save_peft(ours, tmp_path)
    tensors, _ = read_tensors(tmp_path / "adapter_model.safetensors")
    around = {key.replace("base_model.model.", "base_model.model.some_encoder."): t for key, t in tensors.items()}
    if name == "ast-tiny":
        new = ("some_encoder.layers", "attention.q_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
        old = ("some_encoder.encoder.layer", "attention.attention.query", "attention.attention.value")
        old += ("attention.output.dense", "intermediate.dense", "output.dense")
        for a, b in zip(new, old):
            around = {key.replace(a, b): tensor for key, tensor in around.items()}
    save_safetensors(around, tmp_path / "adapter_model.safetensors")
    again = made(name)
    load_peft(again, tmp_path)
    assert torch.equal(again(clips(0.5)[0]).states[-1], ours(clips(0.5)[0]).states[-1])


def test_peft_files_that_do_not_fit_are_refused(tmp_path):
    backbone = made("whisper-nano", {"name": "lora", "rank": 2})
    save_peft(backbone, tmp_path)
    with pytest.raises(ValueError, match="belongs to nothing in"):
        load_peft(made("ast-tiny"), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "only LORA"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"r": 3}, "must be"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        plain = made("whisper-nano")
        with pytest.raises(ValueError, match=message):
            load_peft(plain, tmp_path)
        assert not plain.methods
    with pytest.raises(FileNotFoundError):
        load_peft(made("whisper-nano"), tmp_path / "nothing")
    with pytest.raises(ValueError, match="one LoRA"):
        save_peft(made("whisper-nano", {"name": "adapter", "dim": 4}), tmp_path)


def test_rank_stabilised_lora_of_peft_has_its_scale(tmp_path):
    backbone = trained(made("whisper-nano", {"name": "lora", "rank": 4, "alpha": 3}))
    save_peft(backbone, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    again = made("whisper-nano")
    load_peft(again, tmp_path)
    assert again.blocks[0].attn.lora["q"].scale == pytest.approx(3 / 2)
