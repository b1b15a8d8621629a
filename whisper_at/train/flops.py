"""``whisper-at count``: parameters and multiply-adds of Whisper's encoders and of heads on them, by formula.

A multiply-add counts as one, as in the paper's figures; matrix products and convolutions count, and nothing else
(no LayerNorm, softmax, GELU or mean). Spec section 3.7. Heads are counted as published; ours leave out up to a third,
since they take the mean over an attention block's tokens before its last product. Nothing is downloaded or computed for
models known by name.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import checkpoints
from ..checkpoints.huggingface import whisper_shapes
from ..suggest import did_you_mean
from ..tagging.heads import N_CLASSES, build_head, infer_mode, make_head

# name: encoder layers, width, decoder layers, mels, vocabulary (spec section 1.1)
_SIZES = {
    "tiny": (4, 384, 4, 80, 51865),
    "base": (6, 512, 6, 80, 51865),
    "small": (12, 768, 12, 80, 51865),
    "medium": (24, 1024, 24, 80, 51865),
    "large-v2": (32, 1280, 32, 80, 51865),
    "large-v3": (32, 1280, 32, 128, 51866),
    "turbo": (32, 1280, 4, 128, 51866),
}
_ALIASES = {"large": "large-v3", "large-v1": "large-v2", "large-v3-turbo": "turbo"}
TL_TR = ("tl_tr_1_8", "tl_down_tr_512_1_8")
BASELINES = ("mean_mlp", "last_mlp", "wa_mlp", "mean_tr_1", "last_tr_1", "wa_tr_1", "wa_down_tr_512_1")
POSITIONS_PER_SECOND = 50
STEPS_10_S = 25


def dims_of(name: str) -> dict[str, int]:
    """Dimensions (fields of `whisper.model.ModelDimensions`) of an official Whisper, without its file.

    Raises
    ------
    ValueError
        If openai-whisper has no such model.
    """
    base = name.removesuffix(".en")
    english = base != name
    if name not in checkpoints.available_models() or name == checkpoints.EMBEDDED:
        raise ValueError(f"openai-whisper has no model {name!r}; it has {', '.join(checkpoints.available_models())}")
    layers, width, decoder_layers, mels, vocabulary = _SIZES[_ALIASES.get(base, base)]
    return {
        "n_mels": mels,
        "n_audio_ctx": 1500,
        "n_audio_state": width,
        "n_audio_head": width // 64,
        "n_audio_layer": layers,
        "n_vocab": vocabulary - english,
        "n_text_ctx": 448,
        "n_text_state": width,
        "n_text_head": width // 64,
        "n_text_layer": decoder_layers,
    }


def whisper_parameters(dims: Mapping[str, int]) -> int:
    """Parameters of a Whisper, positions included; the token embedding, which is also the output, counts once."""
    return sum(math.prod(shape) for shape in whisper_shapes(dict(dims)).values())


def head_parameters(mode: str, *, n_layer: int, rep_dim: int, label_dim: int = N_CLASSES) -> int:
    """Parameters of a head; raises what `make_head` raises."""
    with torch.device("meta"):
        head = make_head(mode, n_layer=n_layer, rep_dim=rep_dim, label_dim=label_dim)
    return sum(parameter.numel() for parameter in head.parameters())


def attention_block_macs(tokens: int, width: int) -> int:
    """Multiply-adds of one attention block over ``tokens`` vectors, whatever its number of heads.

    Four projections and a 4-fold wide MLP are ``12 · tokens · width²``; scores and their weighted sum of values are
    ``2 · tokens² · width``.
    """
    return 12 * tokens * width**2 + 2 * tokens**2 * width


def encoder_macs(dims: Mapping[str, int], seconds: float) -> int:
    """Multiply-adds of Whisper's encoder on ``seconds`` of audio and no padding."""
    width, positions = dims["n_audio_state"], round(seconds * POSITIONS_PER_SECOND)
    convolutions = 3 * 2 * positions * dims["n_mels"] * width + 3 * positions * width**2
    return convolutions + dims["n_audio_layer"] * attention_block_macs(positions, width)


def head_macs(
    mode: str, *, n_layer: int, rep_dim: int, label_dim: int = N_CLASSES, steps: int = STEPS_10_S, rows: int = 1
) -> int:
    """Multiply-adds of a head over ``rows`` rows of ``steps`` steps.

    Raises
    ------
    ValueError
        If no head has that mode.
    """
    match = re.fullmatch(r"(tl|lw|mean|last|wa)_(mlp|(?:down_tr_(\d+)|tr)(?:_\d+){1,2})", mode)
    if match is None:
        raise ValueError(f"no head has the mode {mode!r}; some are {', '.join(TL_TR + BASELINES)}")
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


def count_row(name: str, mode: str, dims: Mapping[str, int], label_dim: int = N_CLASSES) -> dict[str, Any]:
    """Figures of one head on one Whisper, as they are printed; multiply-adds are whole numbers."""
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


def _rows_of(target: str, model_dir: str | None) -> list[dict[str, Any]]:
    """Rows of what the user names: a Whisper (all heads' modes on it), or a head's name or file."""
    modes = TL_TR + BASELINES
    official = [name for name in checkpoints.available_models() if name != checkpoints.EMBEDDED]
    if target in official:
        return [count_row(target, mode, dims_of(target)) for mode in modes]
    if target in checkpoints.HEADS:  # those that are not also a model's name: *_low
        return [count_row(target, TL_TR[1], dims_of(target.removesuffix("_low")))]
    if not os.path.exists(os.path.expanduser(target)) and target != checkpoints.EMBEDDED:
        known = [*checkpoints.available_models(), *(name for name in checkpoints.HEADS if name.endswith("_low"))]
        raise FileNotFoundError(f"{target!r} is neither a file, a model nor a head; {did_you_mean(target, known)}")
    path = checkpoints.find_whisper(target, model_dir)
    try:
        dims, _ = checkpoints.open_whisper(path)
    except RuntimeError as not_whisper:
        try:
            tensors, metadata = checkpoints.open_head(path)
            return [_row_of_head(target, tensors, metadata)]
        except (RuntimeError, ValueError) as not_head:
            reasons = dict.fromkeys((str(not_whisper), str(not_head)))
            raise RuntimeError(f"{target} is neither a Whisper nor a head: {'; '.join(reasons)}") from None
    return [count_row(target, mode, dims) for mode in modes if _fits(mode, dims)]


def _fits(mode: str, dims: Mapping[str, int]) -> bool:
    """Whether a mode makes a head on this encoder: its width must divide among the attention heads."""
    try:
        make_head(mode, n_layer=1, rep_dim=dims["n_audio_state"], label_dim=1)
    except (AssertionError, ValueError):
        return False
    return True


def _row_of_head(name: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, Any]:
    mode = infer_mode(tensors, metadata)
    classifier, first = tensors["mlp_layer.1.weight"], tensors.get("down_layer.0.weight", tensors["mlp_layer.0.weight"])
    width = len(first)
    by_width = {dims["n_audio_state"]: dims for dims in map(dims_of, ("tiny", "base", "small", "medium", "large-v2"))}
    layers = int(metadata.get("n_layer", by_width.get(width, {}).get("n_audio_layer", 0)))
    if not layers:
        raise ValueError(f"it is made for a width of {width}, which no official Whisper has, and names no n_layer")
    build_head(tensors, metadata, n_layer=layers, rep_dim=width)
    dims = dict(by_width.get(width, dims_of("tiny")), n_audio_layer=layers, n_audio_state=width)
    row = count_row(name, mode, dims, len(classifier))
    # The head's file tells width and layers of its encoder, but nothing of its decoder.
    return row | {"whisper_parameters": None}


COLUMNS = ("model", "params", "head", "head params", "10 s", "encoder 10 s", "ratio", "encoder 30 s", "ratio, 3 rows")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text: parameters in M, multiply-adds in G, ratios in %."""
    lines = [COLUMNS]
    for row in rows:
        head10, head30 = row["head_macs_10_s"], row["head_macs_30_s"]
        encoder10, encoder30 = row["encoder_macs_10_s"], row["encoder_macs_30_s"]
        lines.append(
            (
                row["model"],
                f"{row['whisper_parameters'] / 1e6:.1f} M" if row["whisper_parameters"] else "–",
                row["mode"],
                f"{row['head_parameters'] / 1e6:.3f} M",
                f"{_three(head10 / 1e9)} G",
                f"{_three(encoder10 / 1e9)} G",
                f"{_two(100 * head10 / encoder10)} %",
                f"{_three(encoder30 / 1e9)} G",
                f"{_two(100 * head30 / encoder30)} %",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i in (0, 2) else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    )


def _three(value: float) -> str:
    """Three significant digits, without exponents; what is below a millionth is 0."""
    return f"{value:.{max(0, min(6, 2 - math.floor(math.log10(value))))}f}" if value >= 1e-6 else "0"


def _two(value: float) -> str:
    return "<0.01" if value < 0.005 else f"{value:.2f}" if value < 0.995 else f"{value:.1f}"


def main(argv: Sequence[str]) -> int:
    """Run the subcommand and return 0; wrong arguments exit with status 2, other errors are raised."""
    args = build_parser().parse_args(argv)
    if args.target:
        rows = [row for target in args.target for row in _rows_of(target, args.model_dir)]
    else:
        names = ("tiny", "base", "small", "medium", "large-v2", "large-v3")
        rows = [count_row(name, mode, dims_of(name)) for name in names for mode in TL_TR]
    print(json.dumps(rows, indent=1) if args.json else table(rows))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``whisper-at count``."""
    parser = argparse.ArgumentParser(
        prog="whisper-at count",
        description="Count parameters and multiply-adds (one each, matrix products and convolutions) of Whisper's "
        "encoder and of heads: of one 10 s row of tags beside 10 s in the encoder, and of 3 rows beside 30 s.",
    )
    add = parser.add_argument
    help = "a Whisper (name, file, folder), for all heads on it; or a head (file, or name as small_low); "
    add("target", nargs="*", metavar="MODEL|HEAD", help=help + "without any, TL-TR on every size")
    add("--json", action="store_true", help="print whole numbers as JSON")
    add("--model_dir", metavar="DIR", help="where downloaded models are kept (~/.cache/whisper)")
    return parser
