"""Run what a configuration describes: every division and seed, each to a folder of its own, and resumed there."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.files import atomic_write, to_jsonable
from ..data import datasets
from ..data.clips import Dataset
from ..data.protocols import Split, check_classes, few_shot_split, make_splits
from ..train.plots import draw_confusion, save_figure
from .config import Config, build
from .trainer import DECISIONS, RANKINGS, refuse_select
from .waveforms import Waves

RESULT, MODEL = "result.json", "classifier.safetensors"
SCORES = (*DECISIONS, *RANKINGS)
SHARES = tuple(name for name in SCORES if name != "d_prime")
"""Scores from 0 to 1, which are shown in per cent."""
LONGEST = 80
"""Letters of a run's folder, before its seed: file systems take 255, and speakers' names may be long."""


def prepare(config: Config) -> tuple[Dataset, list[Split]]:
    """The data of a configuration and the divisions to run; everything that can be wrong with them is said here.

    Raises
    ------
    FileNotFoundError, ValueError
        If the data are not there or cannot be divided so, a file is missing, a class is missing from training, or
        epochs are to be chosen by a score that such data do not have.
    """
    if not config.dataset or not config.root:
        raise ValueError(
            f"a dataset and its root are needed: --set dataset=NAME --set root=FOLDER, NAME being one of "
            f"{', '.join(datasets.dataset_names())}"
        )
    dataset = datasets.read_public_dataset(config.dataset, config.root, **config.reader)
    if missing := [clip.path for clip in dataset.clips if not os.path.isfile(clip.path)]:
        raise FileNotFoundError(f"no such recording: {missing[0]} ({len(missing)} such)")
    refuse_select(config.recipe.select, dataset.multi_label)
    divisions = make_splits(dataset, config.protocol, k=config.parts)
    if config.only is not None:
        if wrong := [i for i in config.only if not 0 <= i < len(divisions)]:
            raise ValueError(f"only = {wrong[0]}: there are divisions 0 to {len(divisions) - 1}")
        divisions = [divisions[i] for i in config.only]
    for division in divisions:
        check_classes(dataset, division)
    return dataset, divisions


def run(config: Config, progress: bool = False) -> list[dict[str, Any]]:
    """Fit and test every division with every seed; returns a row for each.

    Each writes ``<out>/<division>-seed<k>/`` with the state of the fit, ``classifier.safetensors`` and
    ``result.json``; what is finished there is not done again. ``<out>`` gets ``results.csv``, ``summary.json`` (means
    and population standard deviations, as papers give them) and ``confusion.png``, over all tests.

    Raises
    ------
    ValueError
        If a folder there holds a run with other settings; and what `prepare` and `AudioClassifier` raise.
    """
    dataset, divisions = prepare(config)
    model = build(config, dataset.classes, count_only=True)  # a method or a site that does not exist is refused now
    used = sorted({int(i) for division in divisions for part in division[1:] for i in part})
    Waves(
        dataset.select(used).clips, model.backbone.sample_rate, config.cache, progress=progress
    )  # and so a broken file
    out = Path(config.out).expanduser()
    rows = []
    for seed in config.seeds:
        for division in divisions:
            folder = out / f"{folder_name(division.name)}-seed{seed}"
            rows.append(run_one(config, dataset, division, seed, folder, progress))
    tables = [np.array(row.pop("confusion")) for row in rows if "confusion" in row]
    write_csv(out / "results.csv", rows)
    write_json(out / "summary.json", {"runs": len(rows)} | summary(rows))
    if tables:
        save_figure(draw_confusion(np.sum(tables, axis=0), dataset.classes), out / "confusion.png")
    return rows


def run_one(
    config: Config, dataset: Dataset, division: Split, seed: int, folder: Path, progress: bool = False
) -> dict[str, Any]:
    """Fit on one division with one seed and test the epoch that validation chose; or read what was found before."""
    if config.few_shot is not None:
        division = few_shot_split(dataset, division, config.few_shot, None if config.few_shot_first else seed)
    recipe = replace(config.recipe, seed=seed)
    parts = ("train", "valid", "test")
    names = "\n".join(f"{part} {dataset.clips[i].key}" for part in parts for i in getattr(division, part))
    facts = {"division": division.name, "clips": hashlib.sha256(names.encode()).hexdigest()}
    settings = {"config": _essential(config), "seed": seed, **facts}
    if (folder / RESULT).is_file():
        row, known = read_result(folder)
        if known != settings:
            raise ValueError(f"{folder} holds a run with other settings; choose another out, or delete it")
        return row
    begun = time.perf_counter()
    model = build(config, dataset.classes, seed)
    model.kind = "multi_label" if dataset.multi_label else "single_label"
    train, valid = dataset.select(division.train), dataset.select(division.valid)
    with StepMemory(model) as memory:
        fitted = model.fit(train, valid, recipe, folder, config.cache, progress)
    trained_in = time.perf_counter() - begun
    evaluation = model.evaluate(dataset.select(division.test), recipe.batch_size, config.cache, progress)
    chosen = fitted.history[fitted.epoch - 1]
    row = {"division": division.name, "seed": seed, **evaluation.scores, "epoch": fitted.epoch}
    row |= {f"valid_{name}": chosen[name] for name in evaluation.scores if name in chosen}
    row |= {"train_clips": len(train), "test_clips": len(division.test), **model.count()}
    row |= {"seconds": round(trained_in, 2), "memory_mb": training_megabytes(model, memory.bytes)}
    if not dataset.multi_label:
        row["confusion"] = evaluation.confusion.tolist()
    model.save(folder / MODEL)
    write_json(folder / RESULT, row | {"settings": settings})
    (folder / "state.pt").unlink(missing_ok=True)  # what it would be needed for is done
    return read_result(folder)[0]


def read_result(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of a finished run, and its settings. What JSON could not hold, as an infinite d', is NaN."""
    row = json.loads((folder / RESULT).read_text("utf-8"))
    settings = row.pop("settings")
    return {name: math.nan if value is None else value for name, value in row.items()}, settings


def folder_name(name: str) -> str:
    """A name of letters, digits and hyphens; of a long one, the start and a hash of the whole."""
    short = re.sub(r"[^A-Za-z0-9]+", "-", name)
    return short if len(short) <= LONGEST else f"{short[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and population standard deviation of every score over rows."""
    found = {name: [row[name] for row in rows] for name in SCORES if rows and name in rows[0]}
    return {name: {"mean": float(np.mean(values)), "std": float(np.std(values))} for name, values in found.items()}


class StepMemory:
    """Bytes kept for the backward pass by the largest training step that was taken while it lasted.

    Every storage is counted once, weights are not. Counted rather than read off the process, so that it is the same on
    every device and in every run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
        self._kept: dict[int, int] = {}
        self._forward = False
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> StepMemory:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        if not self._forward:
            self._forward, self._kept = True, {}
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def _unpack(self, tensor: Tensor) -> Tensor:
        if self._forward:
            self._forward, self.bytes = False, max(self.bytes, sum(self._kept.values()))
        return tensor


def training_megabytes(model: nn.Module, kept: int) -> float:
    """Memory of training in 10⁶ bytes: weights, gradients and Adam's two averages of what trains, and ``kept``."""
    weights = sum(p.nbytes for p in model.parameters())
    return round((weights + 3 * sum(p.nbytes for p in model.parameters() if p.requires_grad) + kept) / 1e6, 1)


def _essential(config: Config) -> dict[str, Any]:
    """What decides a run's result, as JSON gives it back; places and devices do not."""
    table = asdict(config)
    for name in ("out", "cache", "device", "root", "seeds", "only", "reported", "classes"):
        table.pop(name)
    return json.loads(json.dumps(table))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, whole or not at all; columns in the order of their first appearance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; null where a number is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(to_jsonable(content), indent=1) + "\n", "utf-8")


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Write lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
