"""Background: recordings that hold none of a head's classes, so that a head learns to say so.

A head that has met nothing but its own classes gives every sound one of their names. The package has ten minutes of
speech in eleven languages, music, noise and silence; a folder of recordings from where the head will be used is better.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.background import background_kind, packaged_background
from ..data.clips import Clip, Dataset
from ..tagging.classes import OTHER
from .teacher import cut_recordings

OTHER_NAMES = frozenset({"other", "others", "none", "background", "unknown", "negative", "nothing"})
"""Names of a class of the data that is taken for `OTHER`."""
SAME_AS_CLASS = {
    "speech": r"speech|voice|speak|spoke|talk|conversation|word|sentence|digit|language|emotion|man|woman|child|person",
    "music": r"music|song|melody|sing|instrument|guitar|piano|violin|drum|flute|trumpet|organ|orchestra",
    "noise": r"noise|hum|hiss|static|fan|air.?condition",
    "silence": r"silence|silent|quiet",
}
"""Names of classes, by the kind of background that may hold them."""


def background_clips(
    source: str, folder: Path, progress: bool = False, warn: Callable[[str], object] = lambda line: None
) -> tuple[Clip, ...]:
    """Return the clips of the package and, if `source` is a folder, of the recordings in it.

    Parameters
    ----------
    source : str
        ``auto`` for those of the package, ``none`` for none, else a folder.
    folder : Path
        Where the clips that are cut from recordings are kept.
    progress, warn
        As of `whisper_at.train.teacher.cut_recordings`.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such folder, or it holds no recording that can be read.
    """
    if source == "none":
        return ()
    own = () if source == "auto" else cut_recordings(Path(source).expanduser(), folder, progress, warn)
    return (*packaged_background(), *own)


def kinds_among_classes(names: Sequence[str]) -> dict[str, str]:
    """Return the kinds of background that a class may be, each with the name of the class.

    Examples
    --------
    >>> kinds_among_classes(["dog", "street music", "human"])
    {'music': 'street music'}
    """
    found: dict[str, str] = {}
    for kind, pattern in SAME_AS_CLASS.items():
        for name in names:
            if re.search(rf"(?:^|[\W_])(?:{pattern})(?:s|es|ing)?(?:$|[\W_])", name, re.IGNORECASE):
                found.setdefault(kind, name)
    return found


def is_background(dataset: Dataset, clips: Sequence[Clip]) -> np.ndarray:
    """Return which clips of a data set are among `clips`, bool of shape (clips of the data set,)."""
    keys = {clip.key for clip in clips}
    return np.array([clip.key in keys for clip in dataset.clips], bool)


def add_background(dataset: Dataset, clips: Sequence[Clip], exclusive: bool) -> Dataset:
    """Return a data set with background: as class `OTHER` if exactly one class is right, else without any.

    Splits and folds of the data go round among the background's clips, so that each has some; none is tested on.

    Parameters
    ----------
    dataset : Dataset
        Labelled clips.
    clips : sequence of Clip
        Background.
    exclusive : bool
        Whether exactly one class is right of every clip.
    """
    if not clips:
        return dataset
    classes: tuple[str, ...] = dataset.classes
    label: tuple[str, ...] = ()
    if exclusive:
        own = next((name for name in classes if name.lower() in OTHER_NAMES), OTHER)
        classes, label = (*classes, *(() if own in classes else (own,))), (own,)
    folds = sorted({clip.fold for clip in dataset.clips})
    splits = ["train"] * 4 + ["valid"] if any(clip.split == "valid" for clip in dataset.clips) else ["train"]
    if not any(clip.split for clip in dataset.clips):
        splits = [""]
    added = tuple(
        replace(clip, labels=label, split=splits[i % len(splits)], fold=folds[i % len(folds)])
        for i, clip in enumerate(sorted(clips, key=lambda clip: (background_kind(clip) != "own", clip.path.name)))
    )
    return Dataset((*dataset.clips, *added), classes)
