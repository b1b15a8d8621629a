"""Scoring of a head on labelled clips: which clips, which targets, and what the head's file says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from ..checkpoints import available_heads
from ..data.clips import Dataset
from ..tagging.classes import ClassSet
from ..tagging.heads import classes_from_metadata
from ..tagging.labels import N_CLASSES, find_class, is_audioset


def classes_of_head(metadata: Mapping[str, str], label_dim: int) -> ClassSet:
    """Return the classes of a head's outputs: AudioSet's, if its file does not say and there are 527.

    Parameters
    ----------
    metadata : mapping of str to str
        Metadata of the head's file.
    label_dim : int
        Number of outputs.

    Raises
    ------
    ValueError
        If nothing says what the outputs mean.
    """
    if (classes := classes_from_metadata(metadata, label_dim)) is None:
        raise ValueError(f"the head's {label_dim} outputs have no names, and are not AudioSet's {N_CLASSES}")
    return classes


def targets_for(dataset: Dataset, classes: ClassSet) -> np.ndarray:
    """Return targets for the outputs of a head.

    Labels must be the head's class names; for AudioSet, MIDs and names in any case are accepted.

    Parameters
    ----------
    dataset : Dataset
        The clips.
    classes : Classes
        Classes of the head.

    Returns
    -------
    ndarray, shape (clips, classes)
        float32, 0 and 1.

    Raises
    ------
    ValueError
        If the head has no such class, or decides for one class and a clip has not exactly one.
    """
    index = {name: i for i, name in enumerate(classes.names)}
    targets = np.zeros((len(dataset), len(classes.names)), np.float32)
    columns = {}
    for name in dict.fromkeys(label for clip in dataset.clips for label in clip.labels):
        try:
            columns[name] = index[name] if name in index or not is_audioset(classes) else find_class(name)
        except (KeyError, ValueError) as error:
            hint = str(error) if isinstance(error, ValueError) else f"it knows {', '.join(classes.names[:8])} …"
            raise ValueError(f"the data have the label {name!r}, which the head does not know: {hint}") from None
    for row, clip in enumerate(dataset.clips):
        targets[row, [columns[name] for name in clip.labels]] = 1.0
    if classes.kind == "single_label" and not (targets.sum(axis=1) == 1).all():
        bad = dataset.clips[int(np.flatnonzero(targets.sum(axis=1) != 1)[0])]
        raise ValueError(f"the head decides for one class, but {bad.key} has the labels {list(bad.labels)}")
    return targets


def select_clips(dataset: Dataset, split: str | None = None, test_fold: str | None = None) -> tuple[Dataset, str]:
    """Select the clips to score: those of a fold or split, else the test split, else all.

    Returns
    -------
    selected : Dataset
        The clips.
    description : str
        What they are: ``"fold 1"``, ``"split test"``, ``"all clips"``.

    Raises
    ------
    ValueError
        If there are no such clips.
    """
    if test_fold is not None:
        selected, description = dataset.filter(lambda clip: clip.fold == test_fold), f"fold {test_fold}"
    elif split is not None or any(clip.split == "test" for clip in dataset.clips):
        selected, description = dataset.split(split or "test"), f"split {split or 'test'}"
    else:
        selected, description = dataset, "all clips"
    if not len(selected):
        raise ValueError(f"no clip is of {description}")
    return selected, description


def trained_on_note(metadata: Mapping[str, str], data: str, description: str) -> str | None:
    """Return a warning if a head seems to have been trained on the clips that are to be scored.

    Parameters
    ----------
    metadata : mapping of str to str
        Metadata of the head's file.
    data : str
        Name of the data's file or folder, the only thing that a head records of it.
    description : str
        Which clips are scored, see `select_clips`.
    """
    try:
        training = json.loads(metadata["training"])
        same_name, test_clips = training["data"] == data != "", training["clips"]["test"]
    except (KeyError, TypeError, ValueError):
        return None
    held_out = description in ("split valid", "split test") or (description.startswith("fold ") and test_clips)
    if not same_name or held_out:
        return None
    return (
        f"the head was trained on data of the same name ({data}): if they are the same, the figures say how well it "
        "remembers these clips; choose what was held out (--split test, --test_fold) or other recordings"
    )


def published_model(head: str) -> str | None:
    """Return the name of the Whisper that a published head was trained on; None for other heads."""
    return head.removesuffix("_low") if head in available_heads() else None


def trained_seconds(metadata: Mapping[str, str]) -> float | None:
    """Return the length of the clips that a head was trained on under protocol 10, if its file says."""
    try:
        return float(json.loads(metadata.get("training", "{}"))["settings"]["seconds"]) or None
    except (KeyError, TypeError, ValueError):
        return None
