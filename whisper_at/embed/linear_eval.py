"""Two-pass linear evaluation of frozen networks, layer by layer and fused (spec section 4.4).

Pass 1 embeds every clip once by every layer and caches that on disk. Pass 2 fits linear probes to each layer and to
fusions, which at clip level are the concatenation of layers.
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

from ..adapt.waveforms import WaveformDataset
from ..checkpoints.files import read_tensors, save_safetensors
from ..data.clips import Clip, Dataset
from ..data.protocols import Split, hold_out_validation
from ..data.splits import folds
from .fusion import Fusion, weights_sha256
from .probes import ProbeSettings, SplitArrays, fit_probes, score

SEEDS = (42, 43, 44)
BEST_PAIR = "fusion, chosen"
"""Probe name of the pair of layers with the best validation score of its split."""
MAX_LAYERS_ALL_PAIRS = 8  # of more layers, only pairs with the last one are tried


class ProbeResult(NamedTuple):
    """Scores of one probe: accuracy, or mean average precision with several labels per clip.

    Attributes
    ----------
    probe : str
        ``layer 3``, ``pair 1+3``, ``fusion 0+1+3`` if it was asked for, or `BEST_PAIR`.
    layers : tuple of int
        The layers that it reads.
    seed : int
        Seed of the probe and of crops.
    division : str
        Name of the split into training, validation and test.
    valid, test : float
        Scores.
    epoch : int
        Epoch of the best validation score.
    parameters : int
        Number of the probe's parameters.
    finished : bool
        Whether validation ended the fit; if not, the scores are lower bounds.
    """

    probe: str
    layers: tuple[int, ...]
    seed: int
    division: str
    valid: float
    test: float
    epoch: int
    parameters: int
    finished: bool = True


class ClipEmbeddings(NamedTuple):
    """Embeddings of a dataset by layer, shape (clips, layer_width), and the samples of each clip before cropping."""

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
) -> list[ProbeResult]:
    """Evaluate every layer of a model, the given fusions, and the pair of layers that is best on validation.

    Parameters
    ----------
    model : Fusion
        Of all layers to evaluate: ``load_fusion(name, "all")``.
    dataset : Dataset
        With splits, or with folds of its own; else it is cut into ``n_folds`` (5).
    seconds : float
        Length to which clips are cut or padded: test clips from their start; those of training and validation from a
        position drawn for each seed, so crops do change between seeds (defect F6).
    fusions : sequence of sequence of int
        Sets of layers to evaluate besides pairs.
    seeds : sequence of int
        Seeds of probes, of crops, and of the tenth of training that is held out if there is no validation split.
    n_folds : int, optional
        Number of folds.
    settings : ProbeSettings, optional
        How probes are fitted.
    cache : str or path
        Folder of cached embeddings.
    audio_cache : str or path, optional
        Folder of decoded audio; see `WaveformDataset`.
    progress : bool
        Show progress bars.

    Returns
    -------
    list of ProbeResult
        One for each seed, split and probe.

    Raises
    ------
    ValueError
        If the data cannot be split, or a fusion names a layer that ``model`` does not have.
    RuntimeError
        If a file cannot be read.
    """
    last = model.layers[-1]
    pairs: list[tuple[int, ...]] = list(combinations(model.layers, 2))
    pairs = [pair for pair in pairs if len(model.layers) <= MAX_LAYERS_ALL_PAIRS or pair[1] == last]
    requested = [tuple(sorted(set(fusion))) for fusion in fusions]
    layer_sets: list[tuple[int, ...]] = [(layer,) for layer in model.layers]
    layer_sets = list(dict.fromkeys([*layer_sets, *requested, *pairs]))
    if unknown := [i for layers in layer_sets for i in layers if i not in model.layers]:
        raise ValueError(f"a fusion names layer {unknown[0]}, but only {model.layers} are embedded")
    splits = {seed: split_dataset(dataset, seed, n_folds) for seed in seeds}
    waves = WaveformDataset(dataset.clips, model.sample_rate, audio_cache, progress=progress)
    from_start = embed_clips(model, waves, seconds, cache, progress=progress)
    targets, multi_label = dataset.targets(), dataset.multi_label
    length = round(seconds * model.sample_rate)
    results: list[ProbeResult] = []
    for seed in seeds:
        cropped = from_start.layers
        if (from_start.samples > length).any():
            cropped = embed_clips(model, waves, seconds, cache, seed=seed, progress=progress).layers
        for split in splits[seed]:
            indices = [split.train, split.valid, split.test]
            embeddings = (cropped, cropped, from_start.layers)
            representations = [
                SplitArrays(*(np.concatenate([x[i][of] for i in layers], axis=1) for x, of in zip(embeddings, indices)))
                for layers in layer_sets
            ]
            split_targets = SplitArrays(*(targets[of] for of in indices))
            probes = fit_probes(representations, split_targets, settings or ProbeSettings(), seed, multi_label)
            of_split = [
                ProbeResult(
                    probe=_probe_name(layers, requested),
                    layers=layers,
                    seed=seed,
                    division=split.name,
                    valid=probe.valid,
                    test=score(probe.test_logits, split_targets.test, multi_label),
                    epoch=probe.epoch,
                    parameters=(representation.train.shape[1] + 1) * targets.shape[1],
                    finished=probe.finished,
                )
                for layers, probe, representation in zip(layer_sets, probes, representations)
            ]
            if pairs:
                best = max((result for result in of_split if result.layers in pairs), key=lambda result: result.valid)
                results.append(best._replace(probe=BEST_PAIR))
            results += of_split
    return results


def best_pair(results_by_task: Iterable[Sequence[ProbeResult]]) -> tuple[tuple[int, ...], float] | None:
    """Find the pair of layers with the best validation score over all tasks; test scores choose nothing.

    Parameters
    ----------
    results_by_task : iterable of sequence of ProbeResult
        Results of one network, by task.

    Returns
    -------
    tuple of tuple of int and float, or None
        The layers and their mean validation score, every task weighted equally; None if no pair was evaluated.
    """
    scores: dict[tuple[int, ...], list[float]] = {}
    for results in results_by_task:
        of_task: dict[tuple[int, ...], list[float]] = {}
        for result in results:
            if len(result.layers) == 2 and result.probe != BEST_PAIR:
                of_task.setdefault(result.layers, []).append(result.valid)
        for layers, valid in of_task.items():
            scores.setdefault(layers, []).append(float(np.mean(valid)))
    return max(((layers, float(np.mean(valid))) for layers, valid in scores.items()), key=lambda x: x[1], default=None)


def _probe_name(layers: tuple[int, ...], requested: Sequence[tuple[int, ...]]) -> str:
    kind = "layer" if len(layers) == 1 else "fusion" if layers in requested else "pair"
    return f"{kind} {'+'.join(map(str, layers))}"


def split_dataset(dataset: Dataset, seed: int, n_folds: int | None = None) -> list[Split]:
    """Return the data's own train, validation and test split, or one for each fold as the test part.

    If there is no validation part, a tenth of training is held out before anything is fitted (defect F6).

    Raises
    ------
    ValueError
        If no clips are left for validation.
    """
    names = np.array([clip.split for clip in dataset.clips])
    if {"train", "test"} <= set(names):
        splits = [Split("splits", *(np.flatnonzero(names == name) for name in ("train", "valid", "test")))]
    else:
        parts = enumerate(folds(dataset, n_folds), 1)
        splits = [Split(f"fold {i}", outside, np.array([], int), inside) for i, (outside, inside) in parts]
    splits = [hold_out_validation(dataset, split, seed) for split in splits]
    for split in splits:
        if not len(split.valid):
            raise ValueError(f"{split.name}: {len(split.train)} clips are too few to hold some out for validation")
    return splits


def embed_clips(
    model: Fusion,
    waves: WaveformDataset,
    seconds: float,
    cache: str | os.PathLike[str],
    seed: int | None = None,
    batch: int = 32,
    progress: bool = False,
) -> ClipEmbeddings:
    """Embed clips by every layer of a model, or read that from ``cache`` if it was done before.

    Parameters
    ----------
    model : Fusion
        Network and layers.
    waves : WaveformDataset
        Waveforms of the clips.
    seconds : float
        Length to which clips are cut or padded with silence.
    cache : str or path
        Folder of cached embeddings.
    seed : int, optional
        Cut clips at a position drawn with this seed; from their start by default.
    batch : int
        Clips in a batch.
    progress : bool
        Show a progress bar.
    """
    facts = _cache_facts(model, waves.clips, seconds, seed)
    path = Path(cache) / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.safetensors"
    if path.is_file():
        tensors, _ = read_tensors(path)
        return ClipEmbeddings({i: tensors[str(i)].numpy() for i in model.layers}, tensors["samples"].numpy())
    length = round(seconds * model.sample_rate)
    samples = np.zeros(len(waves), np.int64)
    batches: list[list[torch.Tensor]] = [[] for _ in model.layers]  # by layer
    for first in tqdm(range(0, len(waves), batch), f"embedding by {model.name}", disable=not progress, leave=False):
        clips = []
        for i in range(first, min(first + batch, len(waves))):
            clip = waves[i]
            samples[i] = len(clip)
            clips.append(torch.from_numpy(crop_or_pad(clip, length, None if seed is None else [seed, i])))
        for of_layer, vectors in zip(batches, model.encode_layers(clips)):
            of_layer.append(vectors.float().cpu())
    tensors = {str(i): torch.cat(of_layer) for i, of_layer in zip(model.layers, batches)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(tensors | {"samples": torch.from_numpy(samples)}, path, {"made": json.dumps(facts)[:4000]})
    return ClipEmbeddings({i: tensors[str(i)].numpy() for i in model.layers}, samples)


def crop_or_pad(samples: np.ndarray, length: int, seed: list[int] | None) -> np.ndarray:
    """Pad with zeros to ``length`` samples, or cut: from the start, or from a position drawn with ``seed``."""
    spare = len(samples) - length
    if spare <= 0:
        return np.pad(samples, (0, -spare))
    start = 0 if seed is None else int(np.random.default_rng(seed).integers(0, spare + 1))
    return samples[start : start + length]


def _cache_facts(model: Fusion, clips: Sequence[Clip], seconds: float, seed: int | None) -> dict[str, Any]:
    """Return everything that embeddings depend on, with files by name, size and modification time."""
    stats = {path: path.stat() for path in {clip.path for clip in clips}}
    return {
        "network": model.name,
        "sha256": weights_sha256(model.network),
        "layers": model.layers,
        "pooling": model.pooling,
        "seconds": seconds,
        "crop": seed,
        "clips": [[clip.key, stats[clip.path].st_size, stats[clip.path].st_mtime_ns] for clip in clips],
    }
