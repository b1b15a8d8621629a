"""Run the experiment of a configuration: every split and seed in its own folder, where it can be resumed."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.files import atomic_write, to_jsonable, write_text
from ..data import datasets
from ..data.clips import Dataset
from ..data.protocols import Split, check_classes, few_shot_split, make_splits
from ..train.plots import draw_confusion, save_figure
from .classifier import AudioClassifier
from .config import Config, build_classifier
from .evaluation import SCORES, Evaluation, check_select
from .intervals import predictions
from .trainer import recipe_settings
from .waveforms import WaveformDataset

RESULT_FILE, CLASSIFIER_FILE = "result.json", "classifier.safetensors"
PERCENT_SCORES = tuple(name for name in SCORES if name != "d_prime")
"""Scores from 0 to 1, which are shown in per cent."""
MAX_FOLDER_NAME = 80
"""Characters of a run's folder before its seed: file systems take 255, and names of splits may list speakers."""


def load_data(config: Config) -> tuple[Dataset, list[Split]]:
    """Return the data of a configuration and the splits to run, after checking both.

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
    check_select(config.recipe.select, dataset.multi_label)
    splits = make_splits(dataset, config.protocol, k=config.parts)
    if config.only is not None:
        if wrong := [i for i in config.only if not 0 <= i < len(splits)]:
            raise ValueError(f"only = {wrong[0]}: there are splits 0 to {len(splits) - 1}")
        splits = [splits[i] for i in config.only]
    for split in splits:
        check_classes(dataset, split)
    return dataset, splits


def run_experiment(config: Config, progress: bool = False) -> list[dict[str, Any]]:
    """Fit and test every split with every seed, and return a row of scores for each.

    A row has the number of epochs that were run, and in ``stopped`` whether validation ended the run; if it did not,
    the scores are lower bounds. Each run writes ``<out>/<division>-seed<k>/`` with the state of the fit,
    ``classifier.safetensors`` and ``result.json``; what is finished there is not run again. ``<out>`` gets
    ``results.csv``, ``summary.json`` (means and population standard deviations, as papers give them) and
    ``confusion.png``, over all tests.

    Raises
    ------
    ValueError
        If a folder there holds a run with other settings; and what `load_data` and `AudioClassifier` raise.
    """
    dataset, splits = load_data(config)
    # Methods or sites that do not exist, and broken files, are refused before any work.
    model = build_classifier(config, dataset.classes, without_weights=True)
    used = sorted({int(i) for split in splits for part in split[1:] for i in part})
    WaveformDataset(dataset.select(used).clips, model.backbone.sample_rate, config.cache, progress=progress)
    out = Path(config.out).expanduser()
    rows = []
    for seed in config.seeds:
        for split in splits:
            folder = out / f"{folder_name(split.name)}-seed{seed}"
            rows.append(run_split(config, dataset, split, seed, folder, progress))
    matrices = [np.array(row.pop("confusion")) for row in rows if "confusion" in row]
    write_csv(out / "results.csv", [{k: v for k, v in row.items() if k != "predictions"} for row in rows])
    write_json(out / "summary.json", {"runs": len(rows)} | summarize(rows))
    if matrices:
        save_figure(draw_confusion(np.sum(matrices, axis=0), dataset.classes), out / "confusion.png")
    return rows


def run_split(
    config: Config, dataset: Dataset, split: Split, seed: int, folder: Path, progress: bool = False
) -> dict[str, Any]:
    """Fit on one split with one seed and test the chosen epoch; or read the result of an earlier run."""
    if config.few_shot is not None:
        split = few_shot_split(dataset, split, config.few_shot, None if config.few_shot_first else seed)
    recipe = replace(config.recipe, seed=seed)
    settings = {"config": _decisive_settings(config), "seed": seed, "division": split.name}
    settings["clips"] = _clips_sha256(dataset, split)
    if (folder / RESULT_FILE).is_file():
        row, known = read_result(folder)
        if known != settings:
            raise ValueError(f"{folder} holds a run with other settings; choose another out, or delete it")
        return row
    started = time.perf_counter()
    model = build_classifier(config, dataset.classes, seed)
    model.kind = "multi_label" if dataset.multi_label else "single_label"
    train, valid = dataset.select(split.train), dataset.select(split.valid)
    with ActivationMemory(model) as memory:
        fitted = model.fit(train, valid, recipe, folder, config.cache, progress)
    seconds = time.perf_counter() - started
    evaluation = model.evaluate(dataset.select(split.test), recipe.batch_size, config.cache, progress)
    epochs = {"epoch": fitted.epoch, "epochs": len(fitted.history), "stopped": fitted.stopped}
    chosen = fitted.history[fitted.epoch - 1]
    row = {"division": split.name, "seed": seed, **evaluation.scores, **epochs}
    row |= {f"valid_{name}": chosen[name] for name in evaluation.scores if name in chosen}
    row |= {"train_clips": len(train), "test_clips": len(split.test), **model.count()}
    row |= {"seconds": round(seconds, 2), "memory_mb": training_megabytes(model, memory.peak_bytes)}
    if not dataset.multi_label:
        row["confusion"] = evaluation.confusion.tolist()
        row["predictions"] = predictions(dataset, split.test, evaluation.logits)
    model.save(folder / CLASSIFIER_FILE)
    write_json(folder / RESULT_FILE, row | {"settings": settings})
    (folder / "state.pt").unlink(missing_ok=True)  # only needed to resume the fit
    return read_result(folder)[0]


def evaluate_file(
    path: str,
    config: Config,
    part: str | None = None,
    backbone: str | None = None,
    out: Path | None = None,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a saved classifier on the data of a configuration.

    Parameters
    ----------
    path : str
        The classifier's file.
    config : Config
        Gives data, device, cache and batch size.
    part : str, optional
        Take only ``train``, ``valid`` or ``test``.
    backbone : str, optional
        Stands for the backbone that the file names.
    out : Path, optional
        Folder for ``scores.json`` and, with one label a clip, ``confusion.png``.
    progress : bool
        Show progress bars.

    Raises
    ------
    ValueError
        If no data are given, or they have no such part; and what `AudioClassifier.load` raises.
    """
    if not config.dataset or not config.root:
        raise ValueError("which recordings? --set dataset=NAME --set root=FOLDER")
    dataset = datasets.read_public_dataset(config.dataset, config.root, **config.reader)
    if part:
        dataset = dataset.split(part)
        if not len(dataset):
            raise ValueError(f"these data have no part {part!r}")
    model = AudioClassifier.load(path, backbone, config.device)
    evaluation = model.evaluate(dataset, config.recipe.batch_size, config.cache, progress)
    if out is not None:
        write_json(out / "scores.json", evaluation.scores | {"clips": len(dataset)})
        if not dataset.multi_label:
            save_figure(draw_confusion(evaluation.confusion, model.classes), out / "confusion.png")
    return evaluation


def read_result(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the row of a finished run, and its settings; null, which stands for an infinite d', becomes NaN."""
    row = json.loads((folder / RESULT_FILE).read_text("utf-8"))
    settings = row.pop("settings")
    return {name: math.nan if value is None else value for name, value in row.items()}, settings


def folder_name(name: str) -> str:
    """Return a name in letters, digits and hyphens; of a long one, the start and a hash of all of it.

    Examples
    --------
    >>> folder_name("without 03 08")
    'without-03-08'
    """
    short = re.sub(r"[^A-Za-z0-9]+", "-", name)
    if len(short) <= MAX_FOLDER_NAME:
        return short
    return f"{short[:MAX_FOLDER_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and population standard deviation of every score over rows."""
    scores = {name: [row[name] for row in rows] for name in SCORES if rows and name in rows[0]}
    return {name: {"mean": float(np.mean(values)), "std": float(np.std(values))} for name, values in scores.items()}


class ActivationMemory:
    """Context manager that counts the bytes which the largest training step keeps for its backward pass.

    Every storage is counted once, weights are not. Counting tensors, and not the memory of the process, gives the same
    result on every device and in every run.

    Attributes
    ----------
    peak_bytes : int
        Bytes of the largest step so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self.peak_bytes = 0
        self._weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
        self._saved: dict[int, int] = {}
        self._in_forward = False
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> ActivationMemory:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        if not self._in_forward:
            self._in_forward, self._saved = True, {}
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def _unpack(self, tensor: Tensor) -> Tensor:
        if self._in_forward:
            self._in_forward, self.peak_bytes = False, max(self.peak_bytes, sum(self._saved.values()))
        return tensor


def training_megabytes(model: nn.Module, activation_bytes: int) -> float:
    """Return the memory of training in 10⁶ bytes: weights, gradients, Adam's two averages, and activations."""
    weights = sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return round((weights + 3 * trained + activation_bytes) / 1e6, 1)


def _decisive_settings(config: Config) -> dict[str, Any]:
    """Return all that decides a run's result, and so no folders and devices, as JSON values."""
    table = asdict(config) | {"recipe": recipe_settings(config.recipe)}
    for name in ("out", "cache", "device", "root", "seeds", "only", "reported", "classes"):
        table.pop(name)
    return json.loads(json.dumps(table))


def _clips_sha256(dataset: Dataset, split: Split) -> str:
    """Return a hash of which clips are in which part."""
    parts = ("train", "valid", "test")
    lines = "\n".join(f"{part} {dataset.clips[i].key}" for part in parts for i in getattr(split, part))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV atomically; columns are in the order of their first appearance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinity become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(to_jsonable(content), indent=1) + "\n")
