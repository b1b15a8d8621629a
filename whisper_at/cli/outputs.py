"""What the results of a recording are named after."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def output_names(paths: Sequence[str], endings: Sequence[str] = ()) -> dict[str, str]:
    """Return names for the results of recordings whose names differ in folder or suffix only.

    Results are named after a recording without its suffix, so such recordings would overwrite one another's. They are
    told apart by the suffix (``x.wav``, ``x.mp3``) or, where that is the same, by the folder (``a-x``, ``b-x``).

    Parameters
    ----------
    paths : sequence of str
        All recordings.
    endings : sequence of str
        What the results end in, without the first dot: beside ``labels.txt``, the ``x.labels.txt`` that would be the
        labels of ``x.wav`` and the text of ``x.labels.wav`` is told apart, too.

    Returns
    -------
    dict of str to str
        Only those that need another name, by their paths.

    Examples
    --------
    >>> output_names(["a/x.wav", "b/x.mp3", "a/y.wav"])
    {'a/x.wav': 'x.wav', 'b/x.mp3': 'x.mp3'}
    """
    files = {os.path.realpath(os.path.expanduser(path)): path for path in paths}
    groups: dict[str, list[str]] = {}
    for path in files.values():
        groups.setdefault(_without_endings(os.path.normcase(Path(path).stem), endings), []).append(path)
    taken = {os.path.normcase(Path(group[0]).stem) for group in groups.values() if len(group) == 1}
    names: dict[str, str] = {}
    for group in groups.values():
        if len(group) == 1:
            continue
        for chosen in zip(*map(_candidates, group)):
            keys = [os.path.normcase(name) for name in chosen]
            if len(set(keys)) == len(keys) and not taken & set(keys):
                break
        else:
            continue
        taken |= set(keys)
        names |= zip(group, chosen)
    return names


def _without_endings(stem: str, endings: Sequence[str]) -> str:
    """Cut off what a stem has in common with the first part of the endings of results, such as ``.labels``."""
    firsts = {ending.split(".")[0] for ending in endings if "." in ending}
    while "." in stem and stem.rpartition(".")[2] in firsts:
        stem = stem.rpartition(".")[0]
    return stem


def _candidates(path: str) -> Iterator[str]:
    """Yield ever longer names of a recording: with its suffix, then with its folders."""
    *folders, file = Path(path).expanduser().absolute().parts[1:]
    yield file
    for n in range(1, 100):
        prefix = "-".join(folders[-n:])
        yield f"{prefix}-{Path(file).stem}"
        yield f"{prefix}-{file}"
