r"""Cross-validation of every mode of head on labelled recordings: a table, and a plot.

    python -m recipes.heads.crossval --data data/esc10 --fold '^(\d)-' --group '^\d-(\d+)-' --out runs/crossval

Features are computed once for each encoder: that of the Whisper, and one of the same size with random frozen weights,
which shows how much of a score is due to the training of the encoder. Every fold is tested once for every seed, its
clips in isolation and in context (under protocol 10, as they were trained on); epochs are selected on a part held out
of the other folds. Every mode has the settings of its preset. Rows are added to the table as runs finish, and runs that
are in it are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from whisper_at.checkpoints import EMBEDDED
from whisper_at.data.clips import Clip, Dataset
from whisper_at.data.splits import folds, hold_out
from whisper_at.data.toml import read_toml
from whisper_at.features.encode import JOINED, describe_features
from whisper_at.features.extract import extract_features
from whisper_at.features.prepare import read_data
from whisper_at.features.store import Features
from whisper_at.loading import load_model
from whisper_at.model import WhisperAT
from whisper_at.train.background import add_background, background_clips, is_background
from whisper_at.train.config import (
    Settings,
    parse_assignments,
    preset_settings,
    settings_dict,
    update_settings,
)
from whisper_at.train.metrics import mean_interval
from whisper_at.train.recipe import compute_logits, compute_scores
from whisper_at.train.run_manifest import check_same_run, clips_digest, truncate_partial_line
from whisper_at.train.train_head import SplitIndices, resolve_loss, train_head, with_supported_precision

MODES = (
    "stats_mlp",
    "last_mlp",
    "mean_mlp",
    "wa_mlp",
    "last_tr_8",
    "mean_tr_8",
    "wa_tr_8",
    "wa_down_tr_64_8",
    "tl_tr_1_8",
    "tl_down_tr_64_1_8",
)
LINEAR_RATE = 5.0
"""Learning rate of linear heads, relative to those with attention: at the same rate, they do not converge."""
ENCODERS = ("trained", "random")
IN_CONTEXT = "_joined"
"""Suffix of the scores of clips in context; those of clips in isolation have none."""
SCORES = ("accuracy", "mAP", "AUC", *(f"{name}{IN_CONTEXT}" for name in ("accuracy", "mAP", "AUC")))
COLUMNS = ("encoder", "mode", "seed", "fold", "parameters", "epoch", *SCORES, "seconds")


SettingsOfMode = Callable[[str], Settings]
"""From a mode to how it is trained."""


class FeatureStores(NamedTuple):
    """Features of all clips to train on, and by suffix of the scores, store and view to test on.

    Clips are encoded in the context of clips of the same fold alone, so one store does for all folds.
    """

    training: Features
    tests: Mapping[str, tuple[Features, int]]


def random_encoder(model: WhisperAT, seed: int = 0) -> WhisperAT:
    """Return a Whisper of the same size with random weights."""
    torch.manual_seed(seed)
    return WhisperAT(model.dims).eval()


def with_folds(dataset: Dataset) -> Dataset:
    """Return the clips, each with a fold: the data set's own, or five that are drawn."""
    fold = {i: str(number) for number, (_, inside) in enumerate(folds(dataset)) for i in inside.tolist()}
    if all(clip.fold for clip in dataset.clips):
        return dataset
    return replace(dataset, clips=tuple(replace(clip, fold=fold[i]) for i, clip in enumerate(dataset.clips)))


def extract_stores(
    dataset: Dataset, out: Path, name: str, encoder: str, settings: Settings, workers: int, compute_type: str | None
) -> FeatureStores:
    """Return the features of all clips by an encoder; compute those that are missing."""
    model = load_model(name, device="cpu", head=None, compute_type=compute_type).eval()
    model = random_encoder(model) if encoder == "random" else model
    label = name if encoder == "trained" else f"{name} with random weights"

    def extract(protocol: str, folder: Path) -> Features:
        metadata = describe_features(label, model, protocol, settings.seconds if protocol == "10" else None)
        options = {"workers": workers, "progress": True, "log": print}
        if unreadable := extract_features(dataset.clips, folder, model, metadata, **options):
            raise RuntimeError(f"{unreadable[0].clip.path}: {unreadable[0].reason} ({len(unreadable)} such)")
        return Features.open(folder)

    training = extract(settings.protocol, out / f"{encoder}.features")
    if settings.protocol == "30+":  # its first view is that of protocol 30, its second that of joined
        return FeatureStores(training, {"": (training, 0), IN_CONTEXT: (training, 1)})
    if settings.protocol == "10":
        return FeatureStores(training, {"": (training, 0)})
    joined = extract(JOINED, out / f"{encoder}.{JOINED}.features")
    return FeatureStores(training, {"": (training, 0), IN_CONTEXT: (joined, 0)})


def cross_validate(
    dataset: Dataset,
    stores: Mapping[str, FeatureStores],
    modes: Sequence[str],
    seeds: Sequence[int],
    settings: SettingsOfMode,
    table: Path,
    only_fold: int | None = None,
    background: Sequence[Clip] = (),
) -> list[dict[str, str]]:
    """Train and test every mode on every fold with every seed and encoder; return the rows of the table, old and new.

    Raises
    ------
    ValueError
        If the table is of other settings or recordings.
    """
    presets = settings("tl_tr_1_8")  # stands for all of them, which the same file and flags change
    facts = {name: value for name, value in settings_dict(presets).items() if name not in ("mode", "seed")}
    facts["background"] = len(background)
    check_same_run(table, {**facts, "clips": clips_digest(dataset.clips)})
    truncate_partial_line(table)
    rows = read_rows(table)
    done = {(row["encoder"], row["mode"], row["seed"], row["fold"]) for row in rows}
    divisions = folds(dataset)
    for seed in seeds:
        for fold, (outside, inside) in enumerate(divisions):
            if only_fold not in (None, fold):
                continue
            kept, held = hold_out(dataset.select(outside), presets.valid_share, seed)
            quiet = is_background(dataset, background)
            test = dataset.select(inside[~quiet[inside]])
            for encoder, store in stores.items():
                for mode in modes:
                    if (encoder, mode, str(seed), str(fold)) in done:
                        continue
                    start = time.perf_counter()
                    chosen = replace(settings(mode), seed=seed)
                    split = SplitIndices(outside[kept], outside[held], inside[:0])
                    if chosen.optimizer == "ridge":  # every clip is left out once
                        split = SplitIndices(outside, inside[:0], inside[:0])
                    trained = train_head(dataset, store.training, split, chosen, background=background)
                    scores = {}
                    for suffix, (features, view) in store.tests.items():
                        views = features.view_indices(features.find(test.clips))[view]
                        logits = compute_logits(trained.head, features, views, max(chosen.rows))
                        found = compute_scores(test.targets(), logits, chosen.loss)
                        scores |= {name + suffix: value for name, value in found.items()}
                    row = {
                        "encoder": encoder,
                        "mode": mode,
                        "seed": seed,
                        "fold": fold,
                        "parameters": sum(parameter.numel() for parameter in trained.head.parameters()),
                        "epoch": trained.epoch,
                        **{name: round(scores.get(name, float("nan")), 5) for name in SCORES},
                        "seconds": round(time.perf_counter() - start, 1),
                    }
                    add_row(table, row)
                    rows.append({name: str(value) for name, value in row.items()})
                    print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    return rows


def read_rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of the table so far."""
    if not table.exists():
        return []
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_row(table: Path, row: dict[str, Any]) -> None:
    """Append a finished run."""
    fresh = not table.exists() or not table.stat().st_size
    with open(table, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def mean_scores(rows: Sequence[dict[str, str]], score: str) -> dict[tuple[str, str], tuple[float, float, int]]:
    """Return, by encoder and mode, the mean of a score, half its 95 % interval, and the number of runs.

    The folds of one seed share clips, so the runs of a fold are averaged over seeds first; the interval is over folds.
    """
    out = {}
    for encoder, mode in dict.fromkeys((row["encoder"], row["mode"]) for row in rows):
        by_fold: dict[str, list[float]] = {}
        for row in rows:
            if (row["encoder"], row["mode"]) == (encoder, mode):
                by_fold.setdefault(row["fold"], []).append(float(row[score]))
        mean, half = mean_interval(np.array([np.mean(values) for values in by_fold.values()]))
        out[encoder, mode] = mean, half, sum(map(len, by_fold.values()))
    return out


def draw(rows: Sequence[dict[str, str]], path: Path, title: str) -> None:
    """Draw means and intervals by mode: a panel per score, a row per way to test, the two encoders side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scores = [name for name in SCORES if "AUC" not in name and not np.isnan([float(row[name]) for row in rows]).all()]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    ways = 1 + any(name.endswith(IN_CONTEXT) for name in scores)
    columns = len(scores) // ways  # scores of each way
    figure, axes = plt.subplots(ways, columns, figsize=(5.2 * columns, ways * (0.4 * len(modes) + 1.2)), squeeze=False)
    look = {"trained": ("o", "#0072b2", "trained encoder"), "random": ("s", "#d55e00", "random encoder")}
    for axis, name in zip(axes.flat, scores):
        found = mean_scores(rows, name)
        for offset, encoder in ((-0.12, "trained"), (0.12, "random")):
            at = [i for i, mode in enumerate(modes) if (encoder, mode) in found]
            if not at:
                continue
            values = [found[encoder, modes[i]] for i in at]
            marker, colour, label = look[encoder]
            axis.errorbar(
                [100 * mean for mean, _, _ in values],
                [i + offset for i in at],
                xerr=[0 if np.isnan(half) else 100 * half for _, half, _ in values],
                fmt=marker,
                color=colour,
                capsize=3,
                label=label,
            )
        axis.set_yticks(range(len(modes)), modes)
        axis.invert_yaxis()
        way = ", one behind the other" if name.endswith(IN_CONTEXT) else ", each by itself"
        axis.set_xlabel(f"{name.removesuffix('_joined')} (%){way}")
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{title}: means over folds, 95 % intervals", x=0.02, ha="left")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=len(labels), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of classes, .csv, .tsv or .json")
    for name in ("labels", "root", "fold", "group"):
        parser.add_argument(f"--{name}", help="as of whisper-at train")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--only_fold", type=int, default=None, help="number of one fold (from 0), to try things out")
    help = "as of whisper-at train (default: none)"
    parser.add_argument("--background", default="none", help=help)
    parser.add_argument("--config", default=None, help="settings in TOML")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--compute_type", help="precision of features, as of whisper-at train")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    dataset = with_folds(read_data(args.data, labels=args.labels, root=args.root, fold=args.fold, group=args.group))
    config = read_toml(args.config) if args.config else {}
    preset = config.pop("preset", "own")
    overrides = parse_assignments(args.set)

    def settings(mode: str) -> Settings:
        """Return the settings that `whisper-at train` would have with this mode; linear heads have a higher rate."""
        chosen = update_settings(preset_settings(preset, 0, mode), config, args.config or "")
        chosen = resolve_loss(dataset, replace(update_settings(chosen, overrides, "--set"), mode=mode))
        rate = chosen.rate * (LINEAR_RATE if mode.endswith("_mlp") and mode != "stats_mlp" else 1)
        return with_supported_precision(replace(chosen, rate=rate), "cpu")

    args.out.mkdir(parents=True, exist_ok=True)
    background = background_clips(args.background, args.out / "background")
    dataset = add_background(dataset, background, exclusive=settings(args.modes[0]).loss == "ce")
    stores = {
        name: extract_stores(
            dataset, args.out, args.model, name, settings(args.modes[0]), args.workers, args.compute_type
        )
        for name in args.encoders
    }
    rows = cross_validate(
        dataset, stores, args.modes, range(args.seeds), settings, args.out / "crossval.csv", args.only_fold, background
    )
    for (encoder, mode), (_, _, n) in mean_scores(rows, "mAP").items():
        found = {name: mean_scores(rows, name)[encoder, mode] for name in SCORES if "AUC" not in name}
        figures = "  ".join(f"{name} {mean:.3f} ± {half:.3f}" for name, (mean, half, _) in found.items())
        print(f"{encoder:8} {mode:18} {figures}  ({n} runs)")
    draw(rows, args.out / "crossval.png", f"Heads on {args.model}, {len(dataset)} clips of {Path(args.data).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
