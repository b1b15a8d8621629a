"""Background: recordings that hold none of a head's classes, so that a head learns to say so.

A head that has met nothing but its own classes gives every sound one of their names. The package has 17 minutes of
speech in eleven languages, music, noise and silence; a folder of recordings from where the head will be used is better.
What the classes are themselves is no background of them: names say so, and where they do not, the clips do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from whisper.audio import SAMPLE_RATE
from whisper.tokenizer import LANGUAGES

from ..checkpoints import EMBEDDED
from ..data.background import background_kind, packaged_background
from ..data.clips import Clip, Dataset
from ..data.emotion import EMOTIONS
from ..features.encode import load_clip
from ..loading import load_model
from ..tagging.classes import OTHER
from ..tagging.labels import audioset_classes
from .teacher import cut_recordings

OTHER_NAMES = frozenset({"other", "others", "none", "background", "unknown", "negative", "nothing"})
"""Names of a class of the data that is taken for `OTHER`."""
SAME_AS_CLASS = {
    "speech": r"speech|voice|speak|speaker\d*|spoken?|talk|conversation|word|command|sentence|digit|language|emotion|"
    r"man|woman|child|person",
    "music": r"music|song|melody|sing|instrument|guitar|piano|violin|drum|flute|trumpet|organ|orchestra",
    "noise": r"noise|hum|hiss|static|fan|air.?condition",
    "silence": r"silence|silent|quiet",
}
"""Names of classes, by the kind of background that may hold them."""
SPEECH_NAMES = frozenset(
    {*EMOTIONS, *"anger sadness happiness joy boredom".split()}
    | {*"zero one two three four five six seven eight nine".split()}
    | {*LANGUAGES.values()}
) - {OTHER}
"""Names that are said of speech where two classes or more have them: emotions, digits, languages."""
CLIPS_PER_CLASS = 5
"""Clips of a class that are listened to."""
ROW_SECONDS = 2.0
"""The part of each, where it is loudest."""
SPEECH_PROBABILITY = 0.9
"""From which nano.en calls such a part speech. Of up to 15 clips of a class, 57 % and more reach it for emotions,
digits and speakers, 12 % at most for the sounds of 223 classes."""


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
    >>> kinds_among_classes(["Angry", "Bored", "dog"])
    {'speech': 'Angry'}
    """
    found: dict[str, str] = {}
    if len(said := [name for name in names if name.lower() in SPEECH_NAMES]) > 1:
        found["speech"] = said[0]
    for kind, pattern in SAME_AS_CLASS.items():
        for name in names:
            if re.search(rf"(?:^|[\W_])(?:{pattern})(?:s|es|ing)?(?:$|[\W_])", name, re.IGNORECASE):
                found.setdefault(kind, name)
    return found


def speech_classes(dataset: Dataset) -> list[str]:
    """Return the classes most of whose clips are speech, whatever their names, by the head of `nano.en`.

    It is small, comes with the package, and mistakes few sounds for speech. Of every class some clips are listened
    to, the loudest two seconds of each; not those to test on, nor any that cannot be read, nor a class `OTHER_NAMES`.

    Parameters
    ----------
    dataset : Dataset
        Labelled clips.
    """
    parts: list[np.ndarray] = []
    owners: list[str] = []
    for name in (name for name in dataset.classes if name.lower() not in OTHER_NAMES):
        clips = [clip for clip in dataset.clips if name in clip.labels and clip.split != "test"]
        for clip in clips[:: max(1, -(-len(clips) // CLIPS_PER_CLASS))]:
            try:
                parts.append(_loudest(load_clip(clip)))
            except (OSError, RuntimeError, ValueError):
                continue  # the check of the data reports it
            owners.append(name)
    if not parts:
        return []
    model = load_model(EMBEDDED, "cpu", head=EMBEDDED).eval()
    classes = audioset_classes()
    logits = model.tag(np.concatenate(parts), at_time_res=ROW_SECONDS)["audio_tag"][: len(parts)]
    is_speech = classes.probabilities(logits)[:, classes.index("Speech")].numpy() >= SPEECH_PROBABILITY
    return [name for name in dict.fromkeys(owners) if is_speech[np.array(owners) == name].mean() > 0.5]


def _loudest(audio: np.ndarray) -> np.ndarray:
    """Return the loudest row of a sound, at a peak of 0.5; one that is shorter is repeated."""
    size = round(ROW_SECONDS * SAMPLE_RATE)
    if len(audio) < size:
        audio = np.resize(audio, size)
    energy = np.cumsum(np.square(audio, dtype=np.float64))
    step = SAMPLE_RATE // 10
    starts = np.arange(0, len(audio) - size + 1, step)
    start = starts[np.argmax(energy[starts + size - 1] - energy[starts])]
    part = audio[start : start + size]
    return part * np.float32(0.5 / max(float(np.abs(part).max()), 1e-4))


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
