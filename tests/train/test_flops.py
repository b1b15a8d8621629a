"""Parameters and multiply-adds against the published tables, and against what PyTorch counts when it computes."""

from __future__ import annotations

import re

import pytest
import torch
import whisper
from torch.utils.flop_counter import FlopCounterMode
from whisper.model import AudioEncoder, ModelDimensions, disable_sdpa

from whisper_at.checkpoints import available_models, model_dims, whisper_parameters
from whisper_at.tagging.heads import make_head
from whisper_at.train.flops import (
    BASELINES,
    STATISTICS,
    TL_TR,
    count_head,
    encoder_macs,
    head_macs,
    head_parameters,
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
    dims = model_dims(LAST.get(size, size))
    full, low = (count_head(size, mode, dims) for mode in TL_TR)
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
    dims = model_dims(LAST.get(size, size))
    for mode, published in zip(TL_TR, PARAMETERS[size]):
        row = count_head(size, mode, dims)
        width, d = (512 if "down" in mode else dims["n_audio_state"]), dims["n_audio_state"]
        by_formula = 24 * width**2 + 553 * width + 527 + ((2 * d + 512 * d + 512) if "down" in mode else 0)
        assert row["head_parameters"] == by_formula
        if published is not None:
            assert (row["head_parameters"], row["head_bytes"]) == published


@pytest.mark.parametrize(
    "mode", TL_TR + BASELINES + STATISTICS + ("mean_tr_2", "last_down_tr_16_4", "tl_down_tr_64_2_4")
)
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
        assert whisper_parameters(model_dims(name)) / 1e6 == pytest.approx(millions, rel=0.04)
    for name in available_models():
        if name != "nano.en":
            assert model_dims(name)["n_vocab"] in (51864, 51865, 51866)
            assert (model_dims(name)["n_vocab"] == 51864) == name.endswith(".en")
            assert model_dims(name)["n_mels"] == (128 if re.search("v3|turbo|large$", name) else 80)
    with pytest.raises(ValueError, match="no model 'huge'"):
        model_dims("huge")


def test_parameters_of_a_whisper_are_those_of_its_module():
    dims = ModelDimensions(80, 1500, 64, 4, 2, 51865, 448, 64, 4, 3)
    model = whisper.Whisper(dims)
    positions = model.encoder.positional_embedding.numel()  # a buffer to openai-whisper
    assert whisper_parameters(vars(dims)) == sum(p.numel() for p in model.parameters()) + positions


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no head has the mode 'tltr'"):
        head_macs("tltr", n_layer=2, rep_dim=40)
