"""peft's files, outputs and steps of training, of LoRA and LN tuning."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_backbones import make_backbone, make_clips, perturb, transformers_model
from torch import Tensor

from whisper_at.adapt import adapt, count_parameters, load_backbone, load_peft, save_peft, transformers_backbone
from whisper_at.adapt.backbones.frontends import batched_log_mel
from whisper_at.checkpoints.files import read_tensors, save_safetensors

transformers = pytest.importorskip("transformers")


PEFT_MODELS = ("ast-tiny", "wav2vec2-tiny", "mms-tiny", "hubert-tiny")
LORA = {"name": "lora", "sites": ["q", "v", "o", "up", "down"], "rank": 4, "alpha": 6}
LAYER_NORM = {"name": "layer_norm"}
each_method = pytest.mark.parametrize("method", [LORA, LAYER_NORM], ids=["lora", "layer_norm"])


def library_model(name: str):
    """A tiny model of transformers without dropout."""
    options = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), 0.0)
    return transformers_model(name, **options, **({"max_length": 96} if name == "ast-tiny" else {}))


def peft_pair(name: str, method, folder):
    """The same method with the same random weights here and in peft, which reads our files."""
    peft = pytest.importorskip("peft")
    model = library_model(name)
    ours = transformers_backbone(copy.deepcopy(model), name, normalize=False)
    adapt(ours, method)
    perturb(ours, std=0.1)
    save_peft(ours, folder)
    return ours, peft.PeftModel.from_pretrained(model, folder, is_trainable=True)


def features(name: str, ours, waveforms: Tensor) -> Tensor:
    return ours.front.spectrogram(waveforms, torch.tensor([len(w) for w in waveforms])) if "ast" in name else waveforms


@each_method
@pytest.mark.parametrize("name", PEFT_MODELS)
def test_a_method_gives_the_same_in_peft_and_files_go_both_ways(name, method, tmp_path):
    ours, theirs = peft_pair(name, method, tmp_path / "ours")
    waveforms = make_clips(0.5)[0]
    plain = transformers_backbone(library_model(name), name, normalize=False)(waveforms).states[-1]
    assert (ours(waveforms).states[-1] - plain).abs().max() > 0.01
    wanted = theirs.eval()(features(name, ours, waveforms)).last_hidden_state
    torch.testing.assert_close(ours(waveforms).states[-1], wanted, rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = transformers_backbone(library_model(name), name, normalize=False)
    load_peft(again, tmp_path / "theirs")
    sites = ["attn", "ffn", *["final"] * (ours.norm is not None)] if method is LAYER_NORM else LORA["sites"]
    assert again.methods == [{**method, "sites": sites, "blocks": list(range(ours.layers))}]
    assert count_parameters(again) == count_parameters(ours)
    assert torch.equal(again(waveforms).states[-1], ours(waveforms).states[-1])


@each_method
@pytest.mark.parametrize("name", ["ast-tiny", "wav2vec2-tiny"])
def test_a_method_trains_as_in_peft(name, method, tmp_path):
    ours, theirs = peft_pair(name, method, tmp_path)
    waveforms = make_clips(0.5, 0.5)[0]
    inputs, losses = features(name, ours, waveforms), []
    for model, forward in (
        (ours, lambda: ours(waveforms).states[-1]),
        (theirs, lambda: theirs(inputs).last_hidden_state),
    ):
        parameters = [p for p in model.parameters() if p.requires_grad]
        assert sum(p.numel() for p in parameters) == count_parameters(ours)["patch_and_norms"]
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


@pytest.mark.parametrize(
    ("of_whisper", "of_wavlm"),
    [
        ({**LORA, "sites": ["q", "k", "v", "o", "up", "down"]}, {**LORA, "sites": ["up", "down"]}),
        (LAYER_NORM, LAYER_NORM),
        ({"name": "layer_norm", "sites": ["final"]}, {"name": "layer_norm", "sites": ["attn"], "blocks": [1]}),
    ],
    ids=["lora", "layer_norm", "some norms"],
)
def test_methods_of_whisper_and_wavlm_give_the_same_in_peft(of_whisper, of_wavlm, tmp_path):
    peft = pytest.importorskip("peft")
    model = library_model("wavlm-tiny")
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=3, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=51864, max_source_positions=25, max_target_positions=9,
    )  # fmt: skip
    whisper = transformers.WhisperModel(config).eval()
    whisper.save_pretrained(tmp_path / "whisper")
    waveforms = make_clips(0.5)[0]
    same = load_backbone(tmp_path / "whisper", "cpu")
    mel = batched_log_mel(waveforms, torch.tensor([8000]), same.front.filters)
    wavlm = transformers_backbone(copy.deepcopy(model), "wavlm-tiny", normalize=False)
    for ours, method, theirs, features in (
        (same, of_whisper, whisper, mel),
        (wavlm, of_wavlm, model, waveforms),
    ):
        adapt(ours, method)
        plain = ours(waveforms).states[-1]
        perturb(ours, std=0.1)
        folder = tmp_path / ours.family
        save_peft(ours, folder / "peft")
        loaded = peft.PeftModel.from_pretrained(theirs, folder / "peft").eval()
        encoder = loaded.base_model.model.encoder if theirs is whisper else loaded
        wanted = encoder(features).last_hidden_state
        torch.testing.assert_close(ours(waveforms).states[-1], wanted, rtol=0, atol=2e-5)
        assert (wanted - plain).abs().max() > 0.01


def test_whispers_lora_has_the_names_of_transformers(tmp_path):
    backbone = make_backbone("whisper-nano", {"name": "lora", "blocks": [0, 2], "rank": 2})
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
    again = make_backbone("whisper-nano")
    load_peft(again, tmp_path)
    assert again.methods == [{"name": "lora", "sites": ["q", "v"], "rank": 2, "alpha": 8.0, "blocks": [0, 2]}]


@each_method
@pytest.mark.parametrize("name", ["ast-tiny", "wav2vec2-tiny"])
def test_files_of_a_model_around_the_encoder_load(name, method, tmp_path):
    """As peft writes them for a classifier; and AST's by the names of transformers 4."""
    ours = perturb(make_backbone(name, method))
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
    again = make_backbone(name)
    load_peft(again, tmp_path)
    assert torch.equal(again(make_clips(0.5)[0]).states[-1], ours(make_clips(0.5)[0]).states[-1])


def test_peft_files_that_do_not_fit_are_refused(tmp_path):
    backbone = make_backbone("whisper-nano", {"name": "lora", "rank": 2})
    save_peft(backbone, tmp_path)
    with pytest.raises(ValueError, match="belongs to nothing in"):
        load_peft(make_backbone("ast-tiny"), tmp_path)
    with pytest.raises(RuntimeError, match="adapted already"):
        load_peft(backbone, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "only LORA and LN_TUNING"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 3}, r"is \(\d+, \d+\), expected"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        plain = make_backbone("whisper-nano")
        with pytest.raises(ValueError, match=message):
            load_peft(plain, tmp_path)
        assert not plain.methods
    with pytest.raises(FileNotFoundError):
        load_peft(make_backbone("whisper-nano"), tmp_path / "nothing")
    with pytest.raises(ValueError, match="one lora or one layer_norm"):
        save_peft(make_backbone("whisper-nano", {"name": "adapter", "dim": 4}), tmp_path)


def test_rank_stabilised_lora_of_peft_has_its_scale(tmp_path):
    backbone = perturb(make_backbone("whisper-nano", {"name": "lora", "rank": 4, "alpha": 3}))
    save_peft(backbone, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    again = make_backbone("whisper-nano")
    load_peft(again, tmp_path)
    assert again.blocks[0].attn.lora["q"].scale == pytest.approx(3 / 2)


def test_files_of_another_encoder_are_refused(tmp_path):
    """Though AST's names are the ends of wav2vec 2.0's, and shapes may agree."""
    save_peft(make_backbone("wav2vec2-tiny", {"name": "lora"}), tmp_path)
    with pytest.raises(ValueError, match="nothing in"):
        load_peft(make_backbone("ast-tiny"), tmp_path)


def test_one_module_by_two_names_is_refused(tmp_path):
    save_peft(make_backbone("ast-tiny", {"name": "lora", "sites": ["up"], "rank": 2}), tmp_path)
    tensors, _ = read_tensors(tmp_path / "adapter_model.safetensors")
    old = {
        key.replace("layers.", "encoder.layer.").replace("mlp.fc1", "intermediate.dense"): t
        for key, t in tensors.items()
    }
    save_safetensors({**tensors, **old}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="by another name"):
        load_peft(make_backbone("ast-tiny"), tmp_path)


def test_norms_that_do_not_fit_are_refused(tmp_path):
    save_peft(make_backbone("ast-tiny", LAYER_NORM), tmp_path)
    tensors, _ = read_tensors(tmp_path / "adapter_model.safetensors")
    final = "base_model.model.layernorm.ln_tuning_layers.weight"
    first = "base_model.model.layers.0.layernorm_before.ln_tuning_layers.bias"
    around = {
        key.replace("model.model.", "model.model.audio_spectrogram_transformer."): tensor
        for key, tensor in tensors.items()
    }
    one_less = {key: tensor for key, tensor in tensors.items() if key != first}
    for changed, message in (
        ({**tensors, final: torch.zeros(3)}, r"layernorm\.\w+ is \(3,\), expected"),
        (one_less, r"layers\.0\.layernorm_before\.\w+ is missing"),
        # of another part of the model, with the name that the encoder's own final norm has within the encoder
        ({**around, "base_model.model.classifier.layernorm.ln_tuning_layers.weight": torch.ones(32)}, "nothing in"),
        ({"base_model.model.classifier.layernorm.ln_tuning_layers.weight": torch.ones(32)}, "nothing in"),
    ):
        save_safetensors(changed, tmp_path / "adapter_model.safetensors")
        plain = make_backbone("ast-tiny")
        wanted = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_peft(plain, tmp_path)
        assert not plain.methods
        assert not any(p.requires_grad for p in plain.parameters())
        assert plain.state_dict().keys() == wanted.keys()
        assert all(torch.equal(wanted[key], tensor) for key, tensor in plain.state_dict().items())
    post_norm = make_backbone("wav2vec2-tiny")
    save_safetensors(
        {"encoder.layer_norm.ln_tuning_layers.weight": torch.ones(32)}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(ValueError, match="nothing in"):  # it stands before the blocks there
        load_peft(post_norm, tmp_path)
