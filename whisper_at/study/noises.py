"""Noise clips by class."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ..data import Clip, Dataset, read_csv, read_folders
from ..data.files import StrPath, check_folder
from ..data.sounds import read_esc50


def read_noises(folder: StrPath, only: str | None = None) -> Dataset:
    """Read noise clips: ESC-50 in its own layout, a folder of one subfolder per class, or a table of clips.

    If all file names of the latter two start like ESC-50's (``1-100032-…``), they give the folds and groups.

    Parameters
    ----------
    folder : path
        The folder, or the table (`whisper_at.data.read_csv`).
    only : str, optional
        Regular expression; only clips whose file name starts with a match are kept.

    Returns
    -------
    Dataset

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it holds no audio, or ``only`` matches nothing or is not a regular expression.
    """
    root = Path(folder).expanduser()
    if root.is_file():
        dataset = _fold_by_name(read_csv(root))
    elif (check_folder(root) / "meta" / "esc50.csv").is_file():
        dataset = read_esc50(root)
    else:
        dataset = _fold_by_name(read_folders(root))
    if only is not None:
        try:
            pattern = re.compile(only)
        except re.error as error:
            raise ValueError(f"{only!r} is not a regular expression: {error}") from None
        dataset = dataset.filter(lambda clip: pattern.match(clip.path.name) is not None)
        if not dataset.clips:
            shown = only if len(only) < 60 else f"{only[:57]}…"
            raise ValueError(f"no file in {root} has a name that begins with {shown!r}")
    return dataset


def _fold_by_name(dataset: Dataset) -> Dataset:
    """Take folds and groups from the file names, if all of them are like ESC-50's."""
    names = [re.match(r"(\d)-(\d+)-", clip.path.name) for clip in dataset.clips]
    clips = [replace(clip, fold=m[1], group=m[2]) for clip, m in zip(dataset.clips, names) if m is not None]
    return replace(dataset, clips=tuple(clips)) if len(clips) == len(dataset.clips) else dataset


def clips_by_class(dataset: Dataset) -> dict[str, list[Clip]]:
    """Return the clips of each class, sorted by file name so that their pairing with speech is reproducible.

    Raises
    ------
    ValueError
        If a class has no clips.
    """
    found = {
        name: sorted((clip for clip in dataset.clips if name in clip.labels), key=lambda clip: clip.path.name)
        for name in sorted(dataset.classes)
    }
    if empty := [name for name, clips in found.items() if not clips]:
        raise ValueError(f"class {empty[0]!r} has no clips ({len(empty)} such): nothing to mix with")
    return found
