"""Linear probes: sound classification from each layer of an encoder, by cross-validation (spec section 4.4)."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file
from tqdm import tqdm

from ..checkpoints.files import atomic_write, save_safetensors, size_and_mtime
from ..data import Clip, Dataset, folds
from ..features.encode import load_clip

Encoder = Callable[[np.ndarray], np.ndarray]
"""Function from audio, float32 ``(samples,)`` at 16 kHz, to ``(layers + 1, dim)``: the input of the first layer and
the output of each layer, averaged over time."""

INPUT, AVERAGE = "input", "average"
"""Names of the two rows that are not layers: the input of the first layer, and the average of all rows."""
COLUMNS = ("backbone", "fold", "layer", "dim", "clips", "accuracy")


class Probe(NamedTuple):
    """Result of a probe on one fold; a line of ``probe.csv``.

    Attributes
    ----------
    backbone, fold : str
        Their names.
    layer : str
        ``input``, ``1`` to L, or ``average``.
    dim : int
        Width of the layer.
    clips : int
        Number of clips in the fold.
    accuracy : float
        Share of them that are classified correctly.
    f1 : ndarray, shape (classes,)
        F1 of each class; NaN if no clip of the fold has it.
    """

    backbone: str
    fold: str
    layer: str
    dim: int
    clips: int
    accuracy: float
    f1: np.ndarray


def load_encoder(name: str, device: str | None = None) -> Encoder:
    """Load a backbone by name (see `whisper_at.adapt.backbones.load_backbone`) as a function that returns its layers.

    Clips are not padded to 30 s. Whisper's last layer is taken before the final layer norm, as in the paper.
    """
    from ..adapt.backbones import load_backbone

    backbone = load_backbone(name, device)
    if backbone.family == "whisper":
        backbone.norm = None
    device_of_weights = next(backbone.parameters()).device

    @torch.no_grad()
    def encode(audio: np.ndarray) -> np.ndarray:
        hidden = backbone(torch.from_numpy(audio)[None].to(device_of_weights))
        return torch.stack([states[0, hidden.special :].mean(0) for states in hidden.states]).float().cpu().numpy()

    return encode


def encode_clips(
    clips: Sequence[Clip],
    load: Callable[[], Encoder],
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Return the time-averaged layers of all clips.

    Parameters
    ----------
    clips : sequence of Clip
        Clips to encode.
    load : callable
        Function that loads the encoder; not called if the result is cached.
    cache : path, optional
        Safetensors file for the result; used again as long as clips and their files are the same.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ndarray of float32, shape (clips, layers + 1, dim)

    Raises
    ------
    ValueError
        If a clip cannot be read.
    """
    digest = hashlib.sha256("\n".join(f"{clip.key} {_file_version(clip)}" for clip in clips).encode()).digest()
    if cache is not None and Path(cache).exists():
        cached = load_file(cache)
        if cached.get("clips", np.zeros(0, np.uint8)).tobytes() == digest:
            return cached["states"]
    encode, out = load(), []
    for clip in tqdm(clips, unit="clip", desc="states", disable=not progress):
        try:
            out.append(encode(load_clip(clip)))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{clip.path.name} cannot be probed: {error}") from None
    states = np.stack(out).astype(np.float32)
    if cache is not None:
        Path(cache).parent.mkdir(parents=True, exist_ok=True)
        clips_digest = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        save_safetensors({"states": torch.from_numpy(states), "clips": clips_digest}, cache)
    return states


def _file_version(clip: Clip) -> tuple[int, int] | None:
    return size_and_mtime(clip.path) if clip.path.exists() else None


def published_classifier() -> Any:
    """Return the paper's classifier: scikit-learn's `MLPClassifier` without hidden layers.

    This is multinomial logistic regression fitted by Adam until the loss converges. Use it to compare with the paper.
    """
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(hidden_layer_sizes=(), learning_rate_init=0.001, max_iter=5000, random_state=0)


def logistic_classifier() -> Any:
    """Return a logistic regression with an L2 penalty, which does not depend on learning rate, seed or stopping.

    Of C = 0.001 to 100, 0.1 is best for layers of nano.en on ESC-10; 1 to 100 are hardly worse.
    """
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.1, max_iter=2000)


CLASSIFIERS: dict[str, Callable[[], Any]] = {"published": published_classifier, "logistic": logistic_classifier}


def probe_layers(
    name: str,
    states: np.ndarray,
    dataset: Dataset,
    classifier: str = "published",
    finished: Sequence[Probe] = (),
    on_result: Callable[[Probe], None] = lambda probe: None,
    progress: bool = False,
) -> list[Probe]:
    """Cross-validate a linear classifier on each layer, on the input and on their average.

    Features are standardised by the mean and deviation of the training folds.

    Parameters
    ----------
    name : str
        Name of the backbone in results.
    states : ndarray, shape (clips, layers + 1, dim)
        Layers of the clips (`encode_clips`), the input first.
    dataset : Dataset
        Clips of one class each; its own folds are used if it has any.
    classifier : str
        A key of `CLASSIFIERS`.
    finished : sequence of Probe
        Earlier results; those of this backbone are not computed again.
    on_result : callable
        Called with each new result.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of Probe
        Results by fold and layer, ``finished`` included.

    Raises
    ------
    ValueError
        If the shape is wrong, or a clip does not have exactly one class.
    """
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(states) != len(dataset) or states.ndim != 3:
        raise ValueError(f"states are {states.shape}, but there are {len(dataset)} clips")
    if dataset.multi_label:
        raise ValueError("a probe predicts one class: every clip must have exactly one label")
    features = np.concatenate([states, states.mean(axis=1, keepdims=True)], axis=1)
    layers = [INPUT, *(str(i) for i in range(1, states.shape[1])), AVERAGE]
    labels = dataset.targets().argmax(1)
    known = {(probe.fold, probe.layer): probe for probe in finished if probe.backbone == name}
    splits = folds(dataset)
    probes = []
    with tqdm(total=len(layers) * len(splits), unit="probe", desc=name, disable=not progress) as bar:
        for fold, (train, test) in zip(_fold_names(splits, dataset), splits):
            present = np.unique(labels[test])
            for i, layer in enumerate(layers):
                probe = known.get((fold, layer))
                if probe is None:
                    model = make_pipeline(StandardScaler(), CLASSIFIERS[classifier]())
                    model.fit(features[train, i], labels[train])
                    predicted = model.predict(features[test, i])
                    f1 = np.full(len(dataset.classes), np.nan)
                    f1[present] = f1_score(labels[test], predicted, labels=present, average=None, zero_division=0)
                    accuracy = float(np.mean(predicted == labels[test]))
                    probe = Probe(name, fold, layer, features.shape[2], len(test), accuracy, f1)
                    on_result(probe)
                probes.append(probe)
                bar.update()
    return probes


def _fold_names(splits: Sequence[tuple[np.ndarray, np.ndarray]], dataset: Dataset) -> list[str]:
    """Return the data set's names of the folds if each test part is one of them, else numbers from 1."""
    names = [name for _, test in splits for name in {dataset.clips[i].fold for i in test}]
    if "" not in names and len(names) == len(set(names)) == len(splits):
        return names
    return [str(number) for number in range(1, len(splits) + 1)]


# --- results ------------------------------------------------------------------------------------------------


def write_probes(path: str | os.PathLike[str], probes: Sequence[Probe], classes: Sequence[str]) -> None:
    """Write ``probe.csv`` atomically: `COLUMNS`, then the F1 of each class."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *classes])
        for probe in probes:
            f1 = ["" if np.isnan(value) else f"{value:.6g}" for value in probe.f1]
            writer.writerow([*probe[:5], f"{probe.accuracy:.6g}", *f1])


def read_probes(path: str | os.PathLike[str]) -> tuple[list[Probe], tuple[str, ...]]:
    """Read the results and classes of a ``probe.csv``; both are empty if there is no such file.

    Raises
    ------
    ValueError
        If it is another kind of file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        return [], ()
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        n = len(COLUMNS)
        if tuple(header[:n]) != COLUMNS:
            raise ValueError(f"{path} holds no probes (its columns are {', '.join(header[:n])}); choose another folder")
        probes = []
        for backbone, fold, layer, dim, clips, accuracy, *f1 in reader:
            values = np.array([float(value or "nan") for value in f1])
            probes.append(Probe(backbone, fold, layer, int(dim), int(clips), float(accuracy), values))
    return probes, tuple(header[n:])


def average_folds(probes: Sequence[Probe], backbone: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Average the results of a backbone over folds.

    Returns
    -------
    accuracy : dict of str to float
        By name of the layer, in order.
    f1 : dict of str to ndarray, shape (classes,)
        Likewise.

    Raises
    ------
    ValueError
        If a layer lacks a fold.
    """
    by_layer: dict[str, list[Probe]] = {}
    for probe in probes:
        if probe.backbone == backbone:
            by_layer.setdefault(probe.layer, []).append(probe)
    all_folds = {probe.fold for group in by_layer.values() for probe in group}
    accuracy, f1 = {}, {}
    for layer, group in by_layer.items():
        if {probe.fold for probe in group} != all_folds:
            raise ValueError(f"probes of {backbone} are not finished: run `whisper-at study probe` again")
        accuracy[layer] = float(np.mean([probe.accuracy for probe in group]))
        values = np.stack([probe.f1 for probe in group])
        count = np.isfinite(values).sum(0)
        f1[layer] = np.where(count > 0, np.nansum(values, 0) / np.maximum(count, 1), np.nan)
    return accuracy, f1


def layer_values(by_layer: Mapping[str, Any]) -> list[Any]:
    """Return the values of layers 1 to L, without the input and the average."""
    return [value for layer, value in by_layer.items() if layer not in (INPUT, AVERAGE)]
