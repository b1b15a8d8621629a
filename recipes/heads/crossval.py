"""Cross-validation of every head mode on labelled recordings: a table, and a picture of what is worth its parameters.

    python -m recipes.heads.crossval --data data/esc10 --fold '^(\\d)-' --group '^\\d-(\\d+)-' --out runs/crossval

States are computed once for each encoder: the Whisper's own, and one of the same size with random frozen weights,
which tells how much of a score the encoder's training is worth. Every fold is tested once for every seed, its clips
each by itself and one behind the other in recordings; epochs are chosen on a part held out of the other folds. The
table is added to as runs finish, and runs in it are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from whisper_at.checkpoints import EMBEDDED
from whisper_at.cli.train import add_data_arguments, read_data
from whisper_at.data.clips import Dataset
from whisper_at.data.splits import folds, hold_out
from whisper_at.data.toml import read_toml
from whisper_at.model import WhisperAT, load_model
from whisper_at.train.config import Settings, as_dict, changed, parse_assignments, preset
from whisper_at.train.extract import JOINED, describe, extract
from whisper_at.train.features import Features
from whisper_at.train.metrics import mean_interval
from whisper_at.train.recipe import score, scores_of
from whisper_at.train.run_manifest import clips_digest, cut_unfinished, refuse_other_run
from whisper_at.train.train_head import Division, for_device, resolve_loss, train_head

MODES = (
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
"""Linear heads learn at so many times the rate of those with attention: at the same one, they do not get there."""
ENCODERS = ("trained", "random")
WAYS = ("30", JOINED)
"""How clips of a fold are heard for its test: each by itself, and one behind the other."""
SCORES = ("accuracy", "mAP", "AUC", *(f"{name}_joined" for name in ("accuracy", "mAP", "AUC")))
COLUMNS = ("encoder", "mode", "seed", "fold", "parameters", "epoch", *SCORES, "seconds")


class Heard(NamedTuple):
    """The states of all clips to train on, and those to test on, by fold and way of hearing."""

    training: Features
    tests: Mapping[tuple[int, str], Features]


def random_encoder(model: WhisperAT, seed: int = 0) -> WhisperAT:
    """A Whisper of the same size whose weights are those that PyTorch starts from."""
    torch.manual_seed(seed)
    return WhisperAT(model.dims).eval()


def hear(dataset: Dataset, out: Path, name: str, encoder: str, settings: Settings, workers: int) -> Heard:
    """The states of all clips by an encoder, computed unless they are there."""
    model = load_model(name, device="cpu", head=None).eval()
    model = random_encoder(model) if encoder == "random" else model
    label = name if encoder == "trained" else f"{name} with random weights"

    def store(part: Dataset, protocol: str, folder: Path) -> Features:
        about = describe(label, model, protocol, settings.seconds if protocol == "10" else None)
        if unreadable := extract(part.clips, folder, model, about, workers=workers, progress=True, say=print):
            raise RuntimeError(f"{unreadable[0].clip.path}: {unreadable[0].reason} ({len(unreadable)} such)")
        return Features.open(folder)

    training = store(dataset, settings.protocol, out / f"{encoder}.features")
    tests = {}
    for fold, (_, inside) in enumerate(folds(dataset)):
        for way in WAYS:
            tests[fold, way] = store(dataset.select(inside), way, out / f"{encoder}.fold-{fold}-{way}.features")
    return Heard(training, tests)


def cross_validate(
    dataset: Dataset,
    heard: Mapping[str, Heard],
    modes: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    table: Path,
    only_fold: int | None = None,
) -> list[dict[str, str]]:
    """Train and test every mode on every fold with every seed and encoder; rows of the table, old and new.

    Raises
    ------
    ValueError
        If the table is of other settings or recordings.
    """
    facts = {name: value for name, value in as_dict(settings).items() if name not in ("mode", "seed")}
    refuse_other_run(table, {**facts, "clips": clips_digest(dataset.clips)})
    cut_unfinished(table)
    rows = read_rows(table)
    done = {(row["encoder"], row["mode"], row["seed"], row["fold"]) for row in rows}
    divisions = folds(dataset)
    for seed in seeds:
        for fold, (outside, inside) in enumerate(divisions):
            if only_fold not in (None, fold):
                continue
            kept, held = hold_out(dataset.select(outside), settings.valid_share, seed)
            division = Division(outside[kept], outside[held], inside[:0])
            test = dataset.select(inside)
            for encoder, states in heard.items():
                for mode in modes:
                    if (encoder, mode, str(seed), str(fold)) in done:
                        continue
                    begun = time.perf_counter()
                    rate = settings.rate * (LINEAR_RATE if mode.endswith("_mlp") else 1)
                    changes = {"mode": mode, "seed": seed, "rate": rate}
                    trained = train_head(dataset, states.training, division, changed(settings, changes, "crossval"))
                    scores = {}
                    for way in WAYS:
                        features = states.tests[fold, way]
                        logits = score(trained.head, features, features.find(test.clips), max(settings.rows))
                        found = scores_of(test.targets(), logits, settings.loss)
                        scores |= {name if way == "30" else f"{name}_joined": value for name, value in found.items()}
                    row = {
                        "encoder": encoder,
                        "mode": mode,
                        "seed": seed,
                        "fold": fold,
                        "parameters": sum(parameter.numel() for parameter in trained.head.parameters()),
                        "epoch": trained.epoch,
                        **{name: round(scores.get(name, float("nan")), 5) for name in SCORES},
                        "seconds": round(time.perf_counter() - begun, 1),
                    }
                    add_row(table, row)
                    rows.append({name: str(value) for name, value in row.items()})
                    print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    return rows


def read_rows(table: Path) -> list[dict[str, str]]:
    """What is in the table so far."""
    if not table.exists():
        return []
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_row(table: Path, row: dict) -> None:
    """Append a finished run."""
    fresh = not table.exists() or not table.stat().st_size
    with open(table, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def means(rows: Sequence[dict[str, str]], score: str) -> dict[tuple[str, str], tuple[float, float, int]]:
    """Mean of a score by encoder and mode, half its 95 % interval, and of how many runs.

    The folds of one seed share clips, so a fold's runs are averaged over seeds first: the interval is that over folds.
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
    """Means and intervals by mode, one panel a score, a row a way of hearing; the two encoders side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scores = [name for name in SCORES if "AUC" not in name and not np.isnan([float(row[name]) for row in rows]).all()]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    columns = len(scores) // len(WAYS)  # scores of each way
    size = 5.2 * columns, len(WAYS) * (0.4 * len(modes) + 1.2)
    figure, axes = plt.subplots(len(WAYS), columns, figsize=size, squeeze=False)
    look = {"trained": ("o", "#0072b2", "trained encoder"), "random": ("s", "#d55e00", "random encoder")}
    for axis, name in zip(axes.flat, scores):
        found = means(rows, name)
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
        way = ", one behind the other" if name.endswith("_joined") else ", each by itself"
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
    add_data_arguments(parser, "--data")  # type: ignore[arg-type]
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--only_fold", type=int, default=None, help="number of one fold (from 0), to try things out")
    parser.add_argument("--config", default=None, help="settings in TOML")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    dataset = read_data(args.data, args)
    given = read_toml(args.config) if args.config else {}
    name = given.pop("preset", "own")
    settings = changed(preset(name, 0), given, args.config or "")
    settings = resolve_loss(dataset, changed(settings, parse_assignments(args.set), "--set"))
    settings = for_device(settings, "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    heard = {name: hear(dataset, args.out, args.model, name, settings, args.workers) for name in args.encoders}
    rows = cross_validate(
        dataset, heard, args.modes, range(args.seeds), settings, args.out / "crossval.csv", args.only_fold
    )
    for (encoder, mode), (_, _, n) in means(rows, "mAP").items():
        found = {name: means(rows, name)[encoder, mode] for name in SCORES if "AUC" not in name}
        figures = "  ".join(f"{name} {mean:.3f} ± {half:.3f}" for name, (mean, half, _) in found.items())
        print(f"{encoder:8} {mode:18} {figures}  ({n} runs)")
    draw(rows, args.out / "crossval.png", f"Heads on {args.model}, {len(dataset)} clips of {Path(args.data).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
