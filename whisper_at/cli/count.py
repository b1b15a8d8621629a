"""``whisper-at count``: parameters and multiply-adds of Whisper's encoders and of heads on them."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import checkpoints
from ..checkpoints import model_dims
from ..suggest import did_you_mean
from ..tagging.heads import build_head, encoder_width, infer_mode, make_head
from ..train.flops import BASELINES, STATISTICS, TL_TR, count_head

COLUMNS = ("model", "params", "head", "head params", "10 s", "encoder 10 s", "ratio", "encoder 30 s", "ratio, 3 rows")


def main(argv: Sequence[str]) -> int:
    """Run the subcommand and return 0; wrong arguments exit with status 2, other errors are raised."""
    args = build_parser().parse_args(argv)
    if args.target:
        rows = [row for target in args.target for row in count_target(target, args.model_dir)]
    else:
        names = ("tiny", "base", "small", "medium", "large-v2", "large-v3")
        rows = [count_head(name, mode, model_dims(name)) for name in names for mode in TL_TR]
    print(json.dumps(rows, indent=1) if args.json else format_table(rows))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
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


def count_target(target: str, model_dir: str | None) -> list[dict[str, Any]]:
    """Return the counts of a Whisper with all modes of heads, or of a head, by name or file."""
    modes = TL_TR + BASELINES + STATISTICS
    official = [name for name in checkpoints.available_models() if name != checkpoints.EMBEDDED]
    if target in official:
        return [count_head(target, mode, model_dims(target)) for mode in modes]
    if target in checkpoints.HEADS:  # those that are not also a model's name: *_low
        return [count_head(target, TL_TR[1], model_dims(target.removesuffix("_low")))]
    if not os.path.exists(os.path.expanduser(target)) and target != checkpoints.EMBEDDED:
        known = [*checkpoints.available_models(), *(name for name in checkpoints.HEADS if name.endswith("_low"))]
        raise FileNotFoundError(f"{target!r} is neither a file, a model nor a head; {did_you_mean(target, known)}")
    path = checkpoints.find_whisper(target, model_dir)
    try:
        dims, _ = checkpoints.open_whisper(path, download_root=model_dir)
    except RuntimeError as not_whisper:
        try:
            tensors, metadata = checkpoints.open_head(path)
            return [_count_head_file(target, tensors, metadata)]
        except (RuntimeError, ValueError) as not_head:
            reasons = dict.fromkeys((str(not_whisper), str(not_head)))
            raise RuntimeError(f"{target} is neither a Whisper nor a head: {'; '.join(reasons)}") from None
    return [count_head(target, mode, dims) for mode in modes if _is_possible(mode, dims)]


def _is_possible(mode: str, dims: Mapping[str, int]) -> bool:
    """Return whether a mode is possible on this encoder: the width must divide among the attention heads."""
    try:
        make_head(mode, n_layer=1, rep_dim=dims["n_audio_state"], label_dim=1)
    except (AssertionError, ValueError):
        return False
    return True


def _count_head_file(name: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, Any]:
    """Return the counts of a head's file."""
    mode = infer_mode(tensors, metadata)
    classifier, trained_layers = tensors["mlp_layer.1.weight"], int(metadata.get("n_layer", 0))
    width = encoder_width(tensors, mode, trained_layers or 1)
    by_width = {
        dims["n_audio_state"]: dims for dims in map(model_dims, ("tiny", "base", "small", "medium", "large-v2"))
    }
    layers = trained_layers or by_width.get(width, {}).get("n_audio_layer", 0)
    if not layers:
        raise ValueError(f"it is made for a width of {width}, which no official Whisper has, and names no n_layer")
    build_head(tensors, metadata, n_layer=layers, rep_dim=width)
    dims = dict(by_width.get(width, model_dims("tiny")), n_audio_layer=layers, n_audio_state=width)
    row = count_head(name, mode, dims, len(classifier))
    # A head's file says width and layers of the encoder, but nothing about the decoder.
    return row | {"whisper_parameters": None}


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return counts as a table: parameters in M, multiply-adds in G, ratios in %."""
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
                f"{_format_digits(head10 / 1e9)} G",
                f"{_format_digits(encoder10 / 1e9)} G",
                f"{_format_percent(100 * head10 / encoder10)} %",
                f"{_format_digits(encoder30 / 1e9)} G",
                f"{_format_percent(100 * head30 / encoder30)} %",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i in (0, 2) else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    )


def _format_digits(value: float) -> str:
    """Return three significant digits, without exponents; what is below a millionth is 0."""
    return f"{value:.{max(0, min(6, 2 - math.floor(math.log10(value))))}f}" if value >= 1e-6 else "0"


def _format_percent(value: float) -> str:
    return "<0.01" if value < 0.005 else f"{value:.2f}" if value < 0.995 else f"{value:.1f}"


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
