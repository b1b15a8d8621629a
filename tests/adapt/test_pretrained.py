"""PEFT-SER's released models: two files in their layout, of tiny random weights, and the reference's arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from whisper_at import adapt
from whisper_at.adapt import pretrained
from whisper_at.adapt.backbones import Backbone, random_backbone
from whisper_at.adapt.pretrained import RELEASED_MODELS, load_model

RANK = 16


def files(folder: Path, name: str, backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Write what the released package would load for a model of this name; returns both state dicts."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    d, ffn = backbone.width, backbone.blocks[0].ffn.up.out_features
    head = {"layer_weights": random(backbone.layers + 1)}
    for key, shape in (("model_seq.0", (256, d, 1)), ("model_seq.3", (256, 256, 1)), ("model_seq.6", (256, 256, 1))):
        head |= {f"{key}.weight": random(*shape), f"{key}.bias": random(shape[0])}
    for key, shape in (("out_layer.0", (256, 256)), ("out_layer.2", (4, 256))):
        head |= {f"{key}.weight": random(*shape), f"{key}.bias": random(shape[0])}
    sites = (
        ("fc1", "fc2")
        if backbone.family == "whisper"
        else tuple(f"feed_forward.{part}" for part in ("intermediate_dense", "output_dense"))
    )
    lora = {}
    for i in range(backbone.layers):
        for site, (out, into) in zip(sites, ((ffn, d), (d, ffn))):
            prefix = f"backbone_model.encoder.layers.{i}.{site}"
            lora |= {f"{prefix}.lora_A": random(RANK, into), f"{prefix}.lora_B": random(out, RANK)}
    # The heads' files hold the whole model (loading is not strict there).
    torch.save(head | {"backbone_model.encoder.layers.0.fc1.weight": random(ffn, d)}, folder / f"{name}.pt")
    torch.save(lora, folder / f"{name}_lora.pt")
    return head, lora


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("whisper-tiny-lora-16-conv", "whisper-nano"),
        ("wavlm-plus-lora-16-conv", "wavlm-tiny"),
        ("mms-lora-16-conv", "mms-tiny"),
    ],
)
def test_released_files_compute_what_the_reference_does(tmp_path, name, kind):
    """S3: the released wavlm-plus could not be loaded at all."""
    torch.manual_seed(0)
    backbone = random_backbone(kind)
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    head, lora = files(tmp_path, name, backbone)
    model = load_model(name, tmp_path, backbone=backbone)
    sound = torch.randn(1, 16000) * 0.1
    found = model(sound)
    assert found.shape == model(torch.zeros(1, 16000)).shape == (1, 4)
    assert model.classes == ("neutral", "angry", "sad", "happy")

    plain = random_backbone(kind)  # the same by hand: LoRA added to the weights, and the head spelled out
    plain.load_state_dict(state)
    for key, a in lora.items():
        if key.endswith("lora_A"):
            block = plain.blocks[int(key.split(".")[3])].ffn
            linear = block.up if "fc1" in key or "intermediate" in key else block.down
            linear.weight.data += lora[key.replace("lora_A", "lora_B")] @ a / RANK
    with torch.no_grad():
        states = torch.stack(plain(sound).states)
        x = (head["layer_weights"].softmax(0)[:, None, None, None] * states).sum(0).transpose(1, 2)
        for i in (0, 3, 6):
            x = nn.functional.conv1d(x, head[f"model_seq.{i}.weight"], head[f"model_seq.{i}.bias"])
            x = x.relu() if i < 6 else x
        x = nn.functional.linear(x.mean(2), head["out_layer.0.weight"], head["out_layer.0.bias"]).relu()
        wanted = nn.functional.linear(x, head["out_layer.2.weight"], head["out_layer.2.bias"])
    torch.testing.assert_close(found.detach(), wanted, atol=1e-4, rtol=1e-4)


def test_s8_several_clips_at_once(tmp_path):
    """S8: without lengths, the reference quietly heard only the first clip of a batch."""
    backbone = random_backbone("whisper-nano")
    files(tmp_path, "whisper-base-lora-16-conv", backbone)
    model = load_model("whisper-base-lora-16-conv", tmp_path, backbone=backbone)
    clips = torch.randn(3, 8000) * 0.1
    with torch.no_grad():
        torch.testing.assert_close(model(clips), torch.cat([model(clip[None]) for clip in clips]), atol=1e-5, rtol=1e-4)


def test_files_of_something_else_are_refused(tmp_path):
    name = "whisper-tiny-lora-16-conv"
    backbone = random_backbone("whisper-nano")
    files(tmp_path, name, backbone)
    with pytest.raises(ValueError, match="does not fit wav2vec2-tiny|does not fit"):
        load_model(name, tmp_path, backbone=random_backbone("whisper-tiny"))
    torch.save({"a.lora_A": torch.zeros(2)}, tmp_path / f"{name}_lora.pt")
    with pytest.raises(ValueError, match="holds no LoRA"):
        load_model(name, tmp_path, backbone=random_backbone("whisper-nano"))
    torch.save({"layer_weights": torch.zeros(2)}, tmp_path / f"{name}.pt")
    with pytest.raises(ValueError, match="is missing"):
        load_model(name, tmp_path, backbone=random_backbone("whisper-nano"))
    with pytest.raises(ValueError, match="did you mean 'whisper-tiny-lora-16-conv'"):
        load_model("whisper-tiny-lora-16", tmp_path)


def test_files_are_brought_from_where_they_were_released(tmp_path, monkeypatch):
    wanted = "https://www.dropbox.com/scl/fi/46bb08ek2zbt32fmqrg21/whisper_base_lora_16_conv_output_lora.pt?"
    assert RELEASED_MODELS["whisper-base-lora-16-conv"].lora_url.startswith(wanted)
    assert len({url for one in RELEASED_MODELS.values() for url in one[2:]}) == 12
    asked = []

    def offline(url, path, check):
        asked.append(path)
        torch.save({"nothing": torch.zeros(1)}, tmp_path / "other.pt")
        with pytest.raises(RuntimeError, match="no head of PEFT-SER"):
            check(tmp_path / "other.pt")
        raise RuntimeError(f"{path} could not be downloaded")

    monkeypatch.setattr(pretrained, "download", offline)
    with pytest.raises(RuntimeError, match="could not be downloaded"):
        load_model("mms-lora-16-conv", tmp_path)
    assert asked == [tmp_path / "mms-lora-16-conv.pt"]


def test_it_is_part_of_the_package():
    assert adapt.load_model is load_model
