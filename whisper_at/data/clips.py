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
    """One labelled recording, or a part of one.

    Attributes
    ----------
    path : its file
    labels : names of what sounds in it; none is allowed
    split : ``train``, ``valid`` or ``test``; empty where the data do not say
    fold : name of its fold, or empty
    group : what must not stand on both sides of a division (a speaker, a source recording), or empty
    start, end : the part that is meant, in seconds; None for the end of the file
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
        """Text that names this clip and no other."""
        part = "" if self.start == 0 and self.end is None else f"#{self.start:g}-{'' if self.end is None else self.end}"
        return f"{self.path}{part}"


@dataclass(frozen=True)
class Dataset:
    """Clips, and the classes in the order of a head's outputs."""

    clips: tuple[Clip, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def multi_label(self) -> bool:
        """Whether any clip has several labels or none, so that classes are decided one by one."""
        return any(len(set(clip.labels)) != 1 for clip in self.clips)

    def targets(self) -> np.ndarray:
        """float32 ``(clips, classes)``: 1 where a class sounds."""
        index = {name: i for i, name in enumerate(self.classes)}
        out = np.zeros((len(self.clips), len(self.classes)), np.float32)
        for row, clip in enumerate(self.clips):
            out[row, [index[name] for name in clip.labels]] = 1.0
        return out

    def filter(self, wanted: Callable[[Clip], bool]) -> Dataset:
        """The clips for which ``wanted`` holds, in order, with the same classes."""
        return replace(self, clips=tuple(clip for clip in self.clips if wanted(clip)))

    def split(self, name: str) -> Dataset:
        """The clips of a split: ``train``, ``valid`` or ``test``."""
        return self.filter(lambda clip: clip.split == name)

    def select(self, indices: Iterable[int]) -> Dataset:
        """The clips at ``indices``."""
        return replace(self, clips=tuple(self.clips[int(i)] for i in indices))


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in order: numbers by value, the rest by letters."""
    return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))
