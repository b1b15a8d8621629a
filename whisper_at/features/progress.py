"""How much time and disk space an extraction of features will take."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .files import FeatureMetadata

WARMUP_BATCHES = 2  # batches of one clip each, at the start: the first one's time includes that of starting
TIMED_BATCHES = 3  # full batches after these, which give a better estimate
MIN_CLIPS_LEFT = 100  # fewer do not need a second estimate
INDEX_OVERHEAD = 1.02  # bytes on disk, relative to those of the states


class CostEstimator:
    """Log time and space that an extraction will take: after two clips and, if many remain, after some batches.

    Parameters
    ----------
    n_clips : int
        Number of clips to extract.
    metadata : FeatureMetadata
        What is extracted.
    folder : Path
        Where it is written.
    log : callable
        Takes a line of text.
    on_clips : callable
        Takes the number of clips that were encoded since it was called last.
    """

    def __init__(
        self,
        n_clips: int,
        metadata: FeatureMetadata,
        folder: Path,
        log: Callable[[str], object],
        on_clips: Callable[[int], object] = lambda n: None,
    ) -> None:
        self.n_clips, self.metadata, self.folder, self.log, self.on_clips = n_clips, metadata, folder, log, on_clips
        self.clips = self.steps = self.batches = 0
        self._timed_from = 0, time.perf_counter()

    @property
    def warming_up(self) -> bool:
        """Whether clips are to be encoded one by one."""
        return self.batches < WARMUP_BATCHES

    def add_clip(self, steps: int) -> None:
        """Count a clip that has been encoded, with the steps of all its views."""
        self.clips, self.steps = self.clips + 1, self.steps + steps
        self.on_clips(1)

    def end_batch(self) -> None:
        """Count a batch; log an estimate when it is time."""
        self.batches += 1
        now, left = time.perf_counter(), self.n_clips - self.clips
        refined = self.batches == WARMUP_BATCHES + TIMED_BATCHES and left >= MIN_CLIPS_LEFT
        if self.batches == WARMUP_BATCHES or refined:
            clips, start = self._timed_from
            per_clip = (now - start) / (self.clips - clips)
            needed = self.check_disk_space(self.steps / self.clips)
            if left:
                time_left, space = format_duration(per_clip * left), format_bytes(needed)
                self.log(f"{self.n_clips} clips: about {time_left} more, and {space} on disk")
        if self.batches in (WARMUP_BATCHES - 1, WARMUP_BATCHES):
            self._timed_from = self.clips, now

    def check_disk_space(self, steps: float) -> float:
        """Return the bytes that all clips take, at so many steps per clip; RuntimeError if they do not fit."""
        itemsize = np.dtype(self.metadata.dtype).itemsize
        needed = INDEX_OVERHEAD * self.n_clips * steps * self.metadata.layers * self.metadata.dim * itemsize
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise RuntimeError(
                f"the features of {self.n_clips} clips take {format_bytes(needed)}, but {self.folder} has "
                f"{format_bytes(free)} free; choose a folder on a larger disk, or a smaller model"
            )
        return needed


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes in a readable unit.

    Examples
    --------
    >>> format_bytes(1.5e9)
    '1.5 GB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.4g} TB"


def format_duration(seconds: float) -> str:
    """Return a duration in a readable unit.

    Examples
    --------
    >>> format_duration(200)
    '3 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
