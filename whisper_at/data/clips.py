"""Labelled clips of audio, and data sets of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

AUDIO_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .m4a .aac .wma .aif .aiff .au .webm .mp4 .mkv .mov .3gp".split()
)


@dataclass(frozen=True)
class Clip:
    """A labelled recording, or a part of one.

    Attributes
    ----------
    path : Path
        Audio file.
    labels : tuple of str
        Names of the classes that are audible; may be empty.
    split : str
        ``train``, ``valid`` or ``test``; empty if the data set defines no splits.
    fold : str
        Cross-validation fold; empty if the data set defines none.
    group : str
        Speaker or source recording; empty if unknown. Clips of one group never go to both training and test.
    start, end : float
        Start and end in seconds; ``end`` is None for the end of the file.
    """

    path: Path
    labels: tuple[str, ...]
    split: str = ""
    fold: str = ""
    group: str = ""
    start: float = 0.0
    end: float | None = None

    @property
    def key(self) -> str:
        """Unique identifier: the path, and ``#start-end`` for a part of a file."""
        part = "" if self.start == 0 and self.end is None else f"#{self.start:g}-{'' if self.end is None else self.end}"
        return f"{self.path}{part}"


@dataclass(frozen=True)
class Dataset:
    """Labelled clips, and the classes in the order of a classifier's outputs."""

    clips: tuple[Clip, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def multi_label(self) -> bool:
        """Whether any clip has several labels or none, so that each class is a binary decision."""
        return any(len(set(clip.labels)) != 1 for clip in self.clips)

    def targets(self) -> np.ndarray:
        """Return the labels as an array, float32 ``(clips, classes)``: 1 where a clip has the class, else 0."""
        index = {name: i for i, name in enumerate(self.classes)}
        out = np.zeros((len(self.clips), len(self.classes)), np.float32)
        for row, clip in enumerate(self.clips):
            out[row, [index[name] for name in clip.labels]] = 1.0
        return out

    def filter(self, keep: Callable[[Clip], bool]) -> Dataset:
        """Return the clips for which ``keep`` is true, with the same classes."""
        return replace(self, clips=tuple(clip for clip in self.clips if keep(clip)))

    def select(self, indices: Iterable[int]) -> Dataset:
        """Return the clips at ``indices``, with the same classes."""
        return replace(self, clips=tuple(self.clips[int(i)] for i in indices))

    def split(self, name: str) -> Dataset:
        """Return the clips of a split: ``train``, ``valid`` or ``test``."""
        return self.filter(lambda clip: clip.split == name)


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: numbers first and by value, then the rest alphabetically.

    Examples
    --------
    >>> sort_classes(["60", "rain", "9", "dog"])
    ('9', '60', 'dog', 'rain')
    """
    return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))
