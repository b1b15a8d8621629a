"""What each layer of an encoder knows of sounds: a linear probe by layer and fold (spec section 4.4)."""

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

from ..checkpoints.files import atomic_write, save_safetensors
from ..data.clips import Clip, Dataset
from ..data.splits import folds
from ..train.extract import load_part
from ..train.features import stamp

Encoder = Callable[[np.ndarray], np.ndarray]
"""From float32 ``(samples,)`` at 16 kHz to ``(layers + 1, dim)``: the input of the first layer, then each layer's
output, each averaged over time."""

INPUT, AVERAGE = "input", "average"
"""Names of the rows that are no layers: what goes into the first, and the average over all rows before it."""
COLUMNS = ("backbone", "fold", "layer", "dim", "clips", "accuracy")


class Probe(NamedTuple):
    """How well a layer tells the classes of a fold apart; a line of ``probe.csv``.

    Attributes
    ----------
    layer : ``input``, ``1`` to L, or ``average``
    clips : in the fold
    f1 : ``(classes,)``, the F1 of each; NaN where no clip of the fold has it
    """

    backbone: str
    fold: str
    layer: str
    dim: int
    clips: int
    accuracy: float
    f1: np.ndarray


def load_encoder(name: str, device: str | None = None) -> Encoder:
    """An encoder seen through its layers; ``name`` is what `whisper_at.adapt.backbones.load_backbone` takes.

    A clip is heard alone, without padding to 30 s. Whisper's last layer is taken before its final norm, as the paper
    and our heads do. Raises what `load_backbone` raises.
    """
    from ..adapt.backbones import load_backbone

    backbone = load_backbone(name, device)
    if backbone.family == "whisper":
        backbone.norm = None
    place = next(backbone.parameters()).device

    @torch.no_grad()
    def encode(audio: np.ndarray) -> np.ndarray:
        hidden = backbone(torch.from_numpy(audio)[None].to(place))
        return torch.stack([states[0, hidden.special :].mean(0) for states in hidden.states]).float().cpu().numpy()

    return encode


def encode_all(
    clips: Sequence[Clip],
    encoder: Callable[[], Encoder],
    path: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> np.ndarray:
    """States of all clips, float32 ``(clips, layers + 1, dim)``; kept at ``path``, if there is one, for these files.

    Raises
    ------
    ValueError
        If a clip cannot be read: a probe on fewer clips would be another result.
    """
    keys = hashlib.sha256("\n".join(f"{clip.key} {_stamp(clip)}" for clip in clips).encode()).hexdigest()
    if path is not None and Path(path).exists():
        kept = load_file(path)
        if kept.get("clips", np.zeros(0, np.uint8)).tobytes() == bytes.fromhex(keys):
            return kept["states"]
    encode, out = encoder(), []
    for clip in tqdm(clips, unit="clip", desc="states", disable=not progress):
        try:
            out.append(encode(load_part(clip)))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{clip.path.name} cannot be probed: {error}") from None
    states = np.stack(out).astype(np.float32)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        digest = torch.frombuffer(bytearray.fromhex(keys), dtype=torch.uint8)
        save_safetensors({"states": torch.from_numpy(states), "clips": digest}, path)
    return states


def _stamp(clip: Clip) -> tuple[int, int] | None:
    return stamp(clip.path) if clip.path.exists() else None


def published_classifier() -> Any:
    """The paper's: scikit-learn's MLPClassifier without hidden layers, which is multinomial logistic regression
    fitted by Adam until its loss stands still. For figures that are to be compared with the paper's.
    """
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(hidden_layer_sizes=(), learning_rate_init=0.001, max_iter=5000, random_state=0)


def logistic_classifier() -> Any:
    """The same model brought to the one minimum of its loss under a penalty, so that it hangs on no learning rate, seed
    or end of training. Of 0.001 to 100, C = 0.1 did best on nano.en's states of ESC-10, and 1 to 100 hardly worse.
    """
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.1, max_iter=2000)


CLASSIFIERS: dict[str, Callable[[], Any]] = {"published": published_classifier, "logistic": logistic_classifier}


def probe_layers(
    name: str,
    states: np.ndarray,
    dataset: Dataset,
    classifier: str = "published",
    known: Sequence[Probe] = (),
    report: Callable[[Probe], None] = lambda probe: None,
    progress: bool = False,
) -> list[Probe]:
    """Fit a linear classifier to every row of the states, fold by fold, and test it on the fold left out.

    Rows are standardised by what the classifier is fitted to. To those of ``states`` their average is added.

    Parameters
    ----------
    name : of the backbone
    states : ``(clips, layers + 1, dim)`` of the dataset's clips, the first row the input
    dataset : clips of one class each; its own folds where it has them
    known : what was probed before; those of this backbone are not done again
    report : is told each result as it comes

    Raises
    ------
    ValueError
        If shapes do not agree, or a clip has not exactly one class.
    """
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(states) != len(dataset) or states.ndim != 3:
        raise ValueError(f"states are {states.shape}, but there are {len(dataset)} clips")
    if dataset.multi_label:
        raise ValueError("a probe decides for one class: every clip must have exactly one label")
    rows = np.concatenate([states, states.mean(axis=1, keepdims=True)], axis=1)
    names = [INPUT, *(str(i) for i in range(1, states.shape[1])), AVERAGE]
    truth = dataset.targets().argmax(1)
    done = {(probe.fold, probe.layer): probe for probe in known if probe.backbone == name}
    divisions = folds(dataset)
    out = []
    with tqdm(total=len(names) * len(divisions), unit="probe", desc=name, disable=not progress) as bar:
        for fold, (outside, inside) in zip(_names_of(divisions, dataset), divisions):
            present = np.unique(truth[inside])
            for layer, label in enumerate(names):
                probe = done.get((fold, label))
                if probe is None:
                    model = make_pipeline(StandardScaler(), CLASSIFIERS[classifier]())
                    model.fit(rows[outside, layer], truth[outside])
                    decided = model.predict(rows[inside, layer])
                    f1 = np.full(len(dataset.classes), np.nan)
                    f1[present] = f1_score(truth[inside], decided, labels=present, average=None, zero_division=0)
                    accuracy = float(np.mean(decided == truth[inside]))
                    probe = Probe(name, fold, label, rows.shape[2], len(inside), accuracy, f1)
                    report(probe)
                out.append(probe)
                bar.update()
    return out


def _names_of(divisions: Sequence[tuple[np.ndarray, np.ndarray]], dataset: Dataset) -> list[str]:
    """The data's folds where those are the divisions, else numbers from 1: no two divisions have the same name."""
    own = [{dataset.clips[i].fold for i in inside} for _, inside in divisions]
    names = [name for found in own for name in found]
    if "" not in names and len(names) == len(set(names)) == len(divisions):
        return names
    return [str(number) for number in range(1, len(divisions) + 1)]


# --- results ------------------------------------------------------------------------------------------------


def write_probes(path: str | os.PathLike[str], probes: Sequence[Probe], classes: Sequence[str]) -> None:
    """Write ``probe.csv``, whole or not at all: a column for each class's F1 after those of ``COLUMNS``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *classes])
        for probe in probes:
            f1 = ["" if np.isnan(value) else f"{value:.6g}" for value in probe.f1]
            writer.writerow([*probe[:5], f"{probe.accuracy:.6g}", *f1])


def read_probes(path: str | os.PathLike[str]) -> tuple[list[Probe], tuple[str, ...]]:
    """Rows and classes of a ``probe.csv``; none of either if there is no such file.

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
        probes = [
            Probe(
                row[0],
                row[1],
                row[2],
                int(row[3]),
                int(row[4]),
                float(row[5]),
                np.array([float(value or "nan") for value in row[n:]]),
            )
            for row in reader
        ]
    return probes, tuple(header[n:])


def fold_means(probes: Sequence[Probe], backbone: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Of each row of a backbone's states the accuracy and the F1 ``(classes,)``, averaged over folds; in order.

    Raises ValueError if a row lacks a fold.
    """
    own = [probe for probe in probes if probe.backbone == backbone]
    layers = list(dict.fromkeys(probe.layer for probe in own))
    wanted = {probe.fold for probe in own}
    accuracy, f1 = {}, {}
    for layer in layers:
        of = [probe for probe in own if probe.layer == layer]
        if {probe.fold for probe in of} != wanted:
            raise ValueError(f"probes of {backbone} are not finished: run `whisper-at study probe` again")
        accuracy[layer] = float(np.mean([probe.accuracy for probe in of]))
        values = np.stack([probe.f1 for probe in of])
        count = np.isfinite(values).sum(0)
        f1[layer] = np.where(count > 0, np.nansum(values, 0) / np.maximum(count, 1), np.nan)
    return accuracy, f1


def layers_only(rows: Mapping[str, Any]) -> list[Any]:
    """The entries of layers 1 to L, in order, without the input and the average."""
    return [value for layer, value in rows.items() if layer not in (INPUT, AVERAGE)]
