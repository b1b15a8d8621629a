"""Parameters and multiply-adds of Whisper's encoders and of heads on them, by formula (spec section 3.7).

A multiply-add counts as one, as in the paper; matrix products and convolutions are counted, and nothing else (no
LayerNorm, softmax, GELU or mean). Heads are counted as published; ours skip up to a third of that, as they take the
mean over an attention block's tokens before its last product. Nothing is downloaded or computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..checkpoints import whisper_parameters
from ..tagging.heads import N_CLASSES, StatisticsHead, make_head

STATISTICS = ("stats_mlp",)
TL_TR = ("tl_tr_1_8", "tl_down_tr_512_1_8")
BASELINES = ("mean_mlp", "last_mlp", "wa_mlp", "mean_tr_1", "last_tr_1", "wa_tr_1", "wa_down_tr_512_1")
POSITIONS_PER_SECOND = 50
STEPS_10_S = 25


def head_parameters(mode: str, *, n_layer: int, rep_dim: int, label_dim: int = N_CLASSES) -> int:
    """Count the parameters of a head; errors are those of `make_head`."""
    with torch.device("meta"):
        head = make_head(mode, n_layer=n_layer, rep_dim=rep_dim, label_dim=label_dim)
    return sum(parameter.numel() for parameter in head.parameters())


def attention_block_macs(tokens: int, width: int) -> int:
    """Count the multiply-adds of one attention block, whatever its number of heads.

    Four projections and a 4-fold wide MLP are ``12 · tokens · width²``, attention scores and the weighted sum of values
    ``2 · tokens² · width``.
    """
    return 12 * tokens * width**2 + 2 * tokens**2 * width


def encoder_macs(dims: Mapping[str, int], seconds: float) -> int:
    """Count the multiply-adds of Whisper's encoder on audio of a length in seconds, without padding."""
    width, positions = dims["n_audio_state"], round(seconds * POSITIONS_PER_SECOND)
    convolutions = 3 * 2 * positions * dims["n_mels"] * width + 3 * positions * width**2
    return convolutions + dims["n_audio_layer"] * attention_block_macs(positions, width)


def head_macs(
    mode: str, *, n_layer: int, rep_dim: int, label_dim: int = N_CLASSES, steps: int = STEPS_10_S, rows: int = 1
) -> int:
    """Count the multiply-adds of a head.

    Parameters
    ----------
    mode : str
        Mode of the head, see `whisper_at.tagging.heads.make_head`.
    n_layer, rep_dim : int
        Layers and width of the encoder.
    label_dim : int
        Number of classes.
    steps, rows : int
        Number of rows, and steps of 0.4 s in each.

    Raises
    ------
    ValueError
        If no head has that mode.
    """
    if mode == "stats_mlp":
        return rows * StatisticsHead.STATISTICS * n_layer * rep_dim * label_dim
    match = re.fullmatch(r"(tl|lw|mean|last|wa)_(mlp|(?:down_tr_(\d+)|tr)(?:_\d+){1,2})", mode)
    if match is None:
        raise ValueError(f"no head has the mode {mode!r}; some are {', '.join(TL_TR + BASELINES + STATISTICS)}")
    pooling, body, down = match.groups()
    width = int(down) if down else rep_dim
    layerwise = pooling in ("tl", "lw")
    tokens = steps * (n_layer if layerwise else 1)  # vectors that are projected
    macs = tokens * rep_dim * width if down else 0
    if pooling == "wa":
        macs += n_layer * steps * rep_dim
    if layerwise:
        macs += n_layer * attention_block_macs(steps, width) + attention_block_macs(n_layer, width)
    elif body != "mlp":
        macs += attention_block_macs(steps, width)
    return rows * (macs + width * label_dim)


def count_head(name: str, mode: str, dims: Mapping[str, int], label_dim: int = N_CLASSES) -> dict[str, Any]:
    """Return the counts of one head on one Whisper."""
    sizes = {"n_layer": dims["n_audio_layer"], "rep_dim": dims["n_audio_state"], "label_dim": label_dim}
    parameters = head_parameters(mode, **sizes)
    return {
        "model": name,
        "mode": mode,
        "classes": label_dim,
        "whisper_parameters": whisper_parameters(dims),
        "head_parameters": parameters,
        "head_bytes": 4 * parameters,
        "encoder_macs_10_s": encoder_macs(dims, 10),
        "encoder_macs_30_s": encoder_macs(dims, 30),
        "head_macs_10_s": head_macs(mode, **sizes),
        "head_macs_30_s": head_macs(mode, **sizes, rows=3),
    }
