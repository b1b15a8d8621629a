"""Two-pass linear evaluation of frozen networks, layer by layer and fused (spec section 4.4).

Pass 1 embeds every clip once by every layer, and keeps that on disk. Pass 2 fits linear classifiers to each layer alone
and to fusions, which at clip level are nothing but layers side by side.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..adapt.waveforms import Waves
from ..checkpoints.files import read_tensors, save_safetensors
from ..data.clips import Clip, Dataset
from ..data.protocols import Split
from ..data.splits import folds, hold_out
from .fusion import Fusion, fingerprint
from .probes import Parts, ProbeSettings, fit_probes, score

SEEDS = (42, 43, 44)
CHOSEN = "fusion, chosen"
PAIRS_OF = 8  # layers of which every pair is tried; of more, the pairs with the last


class Row(NamedTuple):
    """One classifier's scores: accuracy, or mean average precision with several labels a clip.

    probe : ``layer 3``, ``pair 1+3``, ``fusion 0+1+3`` where it was asked for, or the pair that did best on validation
    layers : what it read
    """

    probe: str
    layers: tuple[int, ...]
    seed: int
    division: str
    valid: float
    test: float
    epoch: int
    parameters: int


class Embedded(NamedTuple):
    """Embeddings of a dataset: for each layer ``(clips, layer width)``, and samples of each clip before cropping."""

    layers: dict[int, np.ndarray]
    samples: np.ndarray


def evaluate_layers(
    model: Fusion,
    dataset: Dataset,
    seconds: float,
    *,
    fusions: Sequence[Sequence[int]] = (),
    seeds: Sequence[int] = SEEDS,
    n_folds: int | None = None,
    settings: ProbeSettings | None = None,
    cache: str | os.PathLike[str],
    audio_cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[Row]:
    """Scores of every layer of ``model.layers``, of the given fusions, and of the pair chosen on validation.

    Parameters
    ----------
    model : of all layers that are of interest: ``load_fusion(name, "all")``
    dataset : with splits, or folds of its own, or else cut into ``n_folds`` (5)
    seconds : every clip is cut or filled with silence to this; test clips from their start, those of training and
        validation at a place drawn anew for each seed, so crops do change between seeds (defect F6)
    fusions : sets of layers to try beside pairs
    seeds : of classifiers, crops, and of the tenth of training that validates where there is no validation split
    cache : folder of embeddings
    audio_cache : folder of decoded audio, see `Waves`

    Raises
    ------
    ValueError
        If the data cannot be divided, or a fusion names a layer that ``model`` has not.
    RuntimeError
        If a file cannot be read.
    """
    last = model.layers[-1]
    pairs: list[tuple[int, ...]] = list(combinations(model.layers, 2))
    pairs = [pair for pair in pairs if len(model.layers) <= PAIRS_OF or pair[1] == last]
    asked = [tuple(sorted(set(fusion))) for fusion in fusions]
    sets: list[tuple[int, ...]] = [(layer,) for layer in model.layers]
    sets = list(dict.fromkeys([*sets, *asked, *pairs]))
    if unknown := [i for chosen in sets for i in chosen if i not in model.layers]:
        raise ValueError(f"a fusion names layer {unknown[0]}, but only {model.layers} are embedded")
    divided = {seed: divisions(dataset, seed, n_folds) for seed in seeds}
    waves = Waves(dataset.clips, model.sample_rate, audio_cache, progress=progress)
    start = embed_clips(model, waves, seconds, cache, progress=progress)
    targets, multi_label = dataset.targets(), dataset.multi_label
    unit = round(seconds * model.sample_rate)
    rows: list[Row] = []
    for seed in seeds:
        cropped = start.layers
        if (start.samples > unit).any():
            cropped = embed_clips(model, waves, seconds, cache, seed=seed, progress=progress).layers
        for division in divided[seed]:
            of = [division.train, division.valid, division.test]
            crops = (cropped, cropped, start.layers)
            representations = [
                Parts(*(np.concatenate([x[layer][i] for layer in chosen], axis=1) for x, i in zip(crops, of)))
                for chosen in sets
            ]
            parts = Parts(*(targets[i] for i in of))
            fitted = fit_probes(representations, parts, settings or ProbeSettings(), seed, multi_label)
            made = [
                Row(
                    _name(chosen, asked),
                    chosen,
                    seed,
                    division.name,
                    one.valid,
                    score(one.test_logits, parts.test, multi_label),
                    one.epoch,
                    (representation.train.shape[1] + 1) * targets.shape[1],
                )
                for chosen, one, representation in zip(sets, fitted, representations)
            ]
            if pairs:
                best = max((row for row in made if row.layers in pairs), key=lambda row: row.valid)
                rows.append(best._replace(probe=CHOSEN))
            rows += made
    return rows


def best_pair(rows_of_tasks: Iterable[Sequence[Row]]) -> tuple[tuple[int, ...], float] | None:
    """The pair of layers that a network does best with on the validation parts of all tasks together.

    ``rows_of_tasks`` are the rows of one network for each task. Returns the layers and their mean validation score,
    every task counting the same; None where no pair was tried. Test scores choose nothing.
    """
    scores: dict[tuple[int, ...], list[float]] = {}
    for rows in rows_of_tasks:
        tried: dict[tuple[int, ...], list[float]] = {}
        for row in rows:
            if len(row.layers) == 2 and row.probe != CHOSEN:
                tried.setdefault(row.layers, []).append(row.valid)
        for layers, valid in tried.items():
            scores.setdefault(layers, []).append(float(np.mean(valid)))
    return max(((layers, float(np.mean(valid))) for layers, valid in scores.items()), key=lambda x: x[1], default=None)


def _name(layers: tuple[int, ...], asked: Sequence[tuple[int, ...]]) -> str:
    kind = "layer" if len(layers) == 1 else "fusion" if layers in asked else "pair"
    return f"{kind} {'+'.join(map(str, layers))}"


def divisions(dataset: Dataset, seed: int, n_folds: int | None = None) -> list[Split]:
    """What to train, validate and test on: the data's splits, or each fold in turn left out.

    Where no split is for validation, a tenth of training is held out before anything is fitted (defect F6).

    Raises
    ------
    ValueError
        If nothing is left to validate on.
    """
    split = np.array([clip.split for clip in dataset.clips])
    if {"train", "test"} <= set(split):
        train, valid, test = (np.flatnonzero(split == name) for name in ("train", "valid", "test"))
        return [_with_validation(dataset, "splits", train, valid, test, seed)]
    empty = np.array([], int)
    return [
        _with_validation(dataset, f"fold {i + 1}", outside, empty, inside, seed)
        for i, (outside, inside) in enumerate(folds(dataset, n_folds))
    ]


def _with_validation(
    dataset: Dataset, name: str, train: np.ndarray, valid: np.ndarray, test: np.ndarray, seed: int
) -> Split:
    if not len(valid):
        kept, held = hold_out(dataset.select(train), 0.1, seed)
        train, valid = train[kept], train[held]
    if not len(valid):
        raise ValueError(f"{name}: {len(train)} clips are too few to hold some out for validation")
    return Split(name, train, valid, test)


def embed_clips(
    model: Fusion,
    waves: Waves,
    seconds: float,
    cache: str | os.PathLike[str],
    seed: int | None = None,
    batch: int = 32,
    progress: bool = False,
) -> Embedded:
    """Clip embeddings by layer, from ``cache`` where the same were made before.

    Each clip is filled with silence, or cut, to ``seconds``: from its start, or from a place drawn with ``seed``.
    """
    facts = _facts(model, waves.clips, seconds, seed)
    path = Path(cache) / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.safetensors"
    if path.is_file():
        tensors, _ = read_tensors(path)
        return Embedded({i: tensors[str(i)].numpy() for i in model.layers}, tensors["samples"].numpy())
    unit = round(seconds * model.sample_rate)
    samples = np.zeros(len(waves), np.int64)
    found: list[list[torch.Tensor]] = [[] for _ in model.layers]
    for first in tqdm(range(0, len(waves), batch), f"embedding by {model.name}", disable=not progress, leave=False):
        clips = []
        for i in range(first, min(first + batch, len(waves))):
            clip = waves[i]
            samples[i] = len(clip)
            clips.append(torch.from_numpy(cropped(clip, unit, None if seed is None else [seed, i])))
        for layer, vectors in zip(found, model.encode_layers(clips)):
            layer.append(vectors.float().cpu())
    tensors = {str(i): torch.cat(layer) for i, layer in zip(model.layers, found)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(tensors | {"samples": torch.from_numpy(samples)}, path, {"made": json.dumps(facts)[:4000]})
    return Embedded({i: tensors[str(i)].numpy() for i in model.layers}, samples)


def cropped(samples: np.ndarray, unit: int, seed: list[int] | None) -> np.ndarray:
    """``unit`` samples: filled with zeros behind, or cut, from the start or from a place drawn with ``seed``."""
    spare = len(samples) - unit
    if spare <= 0:
        return np.pad(samples, (0, -spare))
    first = 0 if seed is None else int(np.random.default_rng(seed).integers(0, spare + 1))
    return samples[first : first + unit]


def _facts(model: Fusion, clips: Sequence[Clip], seconds: float, seed: int | None) -> dict[str, Any]:
    """What embeddings depend on; files by name, size and time of change."""
    stats = {path: path.stat() for path in {clip.path for clip in clips}}
    return {
        "network": model.name,
        "sha256": fingerprint(model.network),
        "layers": model.layers,
        "pooling": model.pooling,
        "seconds": seconds,
        "crop": seed,
        "clips": [[clip.key, stats[clip.path].st_size, stats[clip.path].st_mtime_ns] for clip in clips],
    }
