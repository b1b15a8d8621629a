"""Parameters and multiply-adds against the published tables, and against what PyTorch counts when it computes."""

from __future__ import annotations

import json
import re

import pytest
import torch
import whisper
from torch.utils.flop_counter import FlopCounterMode
from whisper.model import AudioEncoder, ModelDimensions, disable_sdpa

from whisper_at.checkpoints import available_models, save_safetensors
from whisper_at.tagging.heads import make_head
from whisper_at.train.flops import (
    BASELINES,
    TL_TR,
    count_row,
    dims_of,
    encoder_macs,
    head_macs,
    head_parameters,
    main,
    table,
    whisper_parameters,
)

LAST = {"large": "large-v2"}  # the heads of "large" are on 80 mels

# Spec section 3.7, as printed: TL-TR 10 s, TL-TR-512 10 s, encoder 10 s, ratios, encoder 30 s, ratios of 3 rows.
MACS = {
    "tiny": ("0.186", "0.350", "4.62", "4.0", "7.6", "18.5", "3.0", "5.7"),
    "base": ("0.495", "0.534", "11.5", "4.3", "4.6", "43.7", "3.4", "3.7"),
    "small": ("2.22", "1.11", "48.1", "4.6", "2.3", "172", "3.9", "1.9"),
    "medium": ("7.88", "2.29", "165", "4.8", "1.4", "569", "4.2", "1.2"),
    "large": ("16.4", "3.16", "338", "4.9", "0.94", "1136", "4.3", "0.84"),
}

# Spec section 1.3: TL-TR and, where released, TL-TR-512: parameters and bytes.
PARAMETERS = {
    "tiny": ((3_751_823, 15_007_292), None),
    "base": ((6_575_119, 26_300_476), None),
    "small": ((14_581_007, 58_324_028), (6_970_383, 27_881_532)),
    "medium": ((25_732_623, 102_930_492), (7_101_967, 28_407_868)),
    "large": ((40_029_967, 160_119_868), (7_233_551, 28_934_204)),
}


def at_precision(value: float, printed: str) -> str:
    decimals = len(printed.partition(".")[2])
    return f"{value:.{decimals}f}"


@pytest.mark.parametrize("size", MACS)
def test_multiply_adds_are_the_published_ones(size):
    dims = dims_of(LAST.get(size, size))
    full, low = (count_row(size, mode, dims) for mode in TL_TR)
    ten, thirty = full["encoder_macs_10_s"], full["encoder_macs_30_s"]
    found = (
        full["head_macs_10_s"] / 1e9,
        low["head_macs_10_s"] / 1e9,
        ten / 1e9,
        100 * full["head_macs_10_s"] / ten,
        100 * low["head_macs_10_s"] / ten,
        thirty / 1e9,
        100 * full["head_macs_30_s"] / thirty,
        100 * low["head_macs_30_s"] / thirty,
    )
    assert tuple(map(at_precision, found, MACS[size])) == MACS[size]


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_of_heads_are_the_published_ones(size):
    dims = dims_of(LAST.get(size, size))
    for mode, published in zip(TL_TR, PARAMETERS[size]):
        row = count_row(size, mode, dims)
        width, d = (512 if "down" in mode else dims["n_audio_state"]), dims["n_audio_state"]
        by_formula = 24 * width**2 + 553 * width + 527 + ((2 * d + 512 * d + 512) if "down" in mode else 0)
        assert row["head_parameters"] == by_formula
        if published is not None:
            assert (row["head_parameters"], row["head_bytes"]) == published


@pytest.mark.parametrize("mode", TL_TR + BASELINES + ("mean_tr_2", "last_down_tr_16_4", "tl_down_tr_64_2_4"))
@pytest.mark.parametrize("steps", [25, 3])
def test_a_heads_formula_is_what_pytorch_counts(mode, steps):
    sizes = {"n_layer": 3, "rep_dim": 32, "label_dim": 5}
    head = make_head(mode, **sizes)
    assert head_parameters(mode, **sizes) == sum(p.numel() for p in head.parameters())
    with FlopCounterMode(display=False) as counter, disable_sdpa(), torch.no_grad():
        head(torch.randn(2, 3, steps, 32))
    # the formula is that of the published forward; ours applies a block's last product after the mean over its tokens
    width = int(re.search(r"down_tr_(\d+)", mode)[1]) if "down" in mode else 32
    tokens = [steps] * 3 + [3] if mode.startswith("tl") else [steps] if "_tr" in mode else []
    saved = sum(4 * width**2 * (n - 1) for n in tokens)
    assert counter.get_total_flops() == 2 * (head_macs(mode, **sizes, steps=steps, rows=2) - 2 * saved)
    assert bool(saved) == ("_tr" in mode)


@pytest.mark.parametrize("mels", [80, 128])
def test_an_encoders_formula_is_what_pytorch_counts(mels):
    positions = 100
    encoder = AudioEncoder(mels, positions, 32, 4, 3)
    dims = {"n_mels": mels, "n_audio_state": 32, "n_audio_layer": 3}
    with FlopCounterMode(display=False) as counter, disable_sdpa(), torch.no_grad():
        encoder(torch.randn(1, mels, 2 * positions))
    assert counter.get_total_flops() == 2 * encoder_macs(dims, positions / 50)


def test_dimensions_known_by_name_are_those_of_the_published_sizes():
    # openai-whisper's README, in millions; turbo keeps the encoder of large and four layers of its decoder.
    sizes = {"tiny": 39, "base": 74, "small": 244, "medium": 769, "large": 1550, "turbo": 809}
    for name, millions in sizes.items():
        assert whisper_parameters(dims_of(name)) / 1e6 == pytest.approx(millions, rel=0.04)
    for name in available_models():
        if name != "nano.en":
            assert dims_of(name)["n_vocab"] in (51864, 51865, 51866)
            assert (dims_of(name)["n_vocab"] == 51864) == name.endswith(".en")
            assert dims_of(name)["n_mels"] == (128 if re.search("v3|turbo|large$", name) else 80)
    with pytest.raises(ValueError, match="no model 'huge'"):
        dims_of("huge")


def test_parameters_of_a_whisper_are_those_of_its_module():
    dims = ModelDimensions(80, 1500, 64, 4, 2, 51865, 448, 64, 4, 3)
    model = whisper.Whisper(dims)
    positions = model.encoder.positional_embedding.numel()  # a buffer to openai-whisper
    assert whisper_parameters(vars(dims)) == sum(p.numel() for p in model.parameters()) + positions


def test_counts_of_the_command(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    large = next(line for line in lines if line.startswith("large-v2") and "512" in line)
    assert "7.234 M" in large
    assert "3.16 G" in large
    assert "0.94 %" in large
    assert main(["tiny", "small_low", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["mode"] for row in rows if row["model"] == "tiny"} == set(TL_TR + BASELINES)
    assert rows[-1]["head_parameters"] == 6_970_383


def test_counts_of_files(tmp_path, capsys, checkpoint):
    head = make_head("wa_tr_4", n_layer=3, rep_dim=32, label_dim=7)
    path = tmp_path / "own.safetensors"
    save_safetensors(head.state_dict(), path, {"mode": "wa_tr_4", "n_layer": "3"})
    assert main([str(path), "nano.en", str(checkpoint), "--json"]) == 0
    own, *others = json.loads(capsys.readouterr().out)
    assert own["head_parameters"] == sum(p.numel() for p in head.parameters())
    assert own["classes"] == 7
    assert own["whisper_parameters"] is None
    assert "–" in table([own])
    assert {row["model"] for row in others} == {"nano.en", str(checkpoint)}


def test_what_cannot_be_counted_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file, a model nor a head; did you mean 'large-v3'"):
        main(["large-v4"])
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(RuntimeError, match="neither a Whisper nor a head: .*is a text file"):
        main([str(text)])
    lost = tmp_path / "lost.safetensors"
    save_safetensors(make_head("tl_tr_1_8", n_layer=2, rep_dim=40, label_dim=3).state_dict(), lost)
    with pytest.raises(RuntimeError, match="names no n_layer"):
        main([str(lost)])
    with pytest.raises(ValueError, match="no head has the mode 'tltr'"):
        head_macs("tltr", n_layer=2, rep_dim=40)
