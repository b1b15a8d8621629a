"""From what a user names to clips with features: read the data, check them, compute what is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.background import background_kind
from ..data.clips import Dataset
from ..data.readers import read_dataset
from ..model import WhisperAT
from .audio_info import load_cache, save_cache
from .extract import UnreadableClip, extract_features
from .files import FeatureMetadata, check_metadata
from .store import Features
from .validate_data import audio_digests, group_copies, validate
from .writer import FeatureWriter

Log = Callable[[str], object]


def read_data(
    path: str,
    *,
    labels: str | None = None,
    root: str | None = None,
    fold: str | None = None,
    group: str | None = None,
) -> Dataset:
    """Read labelled clips; options that do not apply to this kind of data are refused.

    Parameters
    ----------
    path : str
        Folder of classes, ``.csv``, ``.tsv`` or ``.json``.
    labels : str, optional
        List of classes of a ``.json``; by default ``audioset_label.csv`` beside it, if that exists.
    root : str, optional
        Folder of the files in a table.
    fold, group : str, optional
        Regular expressions that find fold and group in the names of files in folders.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_dataset`; or an option does not apply to such data.
    """
    kind = "folder" if Path(path).expanduser().is_dir() else Path(path).suffix.lower()
    names = {"folder": ("fold", "group"), ".csv": ("root",), ".tsv": ("root",)}.get(kind, ())
    options = {"fold": fold, "group": group, "root": root}
    for name, value in options.items():
        if value is not None and name not in names:
            raise ValueError(f"--{name} is for {'folders' if name != 'root' else 'tables'}, but {path} is not")
    if kind != ".json" and labels is not None:
        raise ValueError(f"--labels is for a .json, but {path} is not; leave it out")
    if kind == ".json" and labels is None:
        default = Path(path).with_name("audioset_label.csv")
        labels = str(default) if default.is_file() else None
    return read_dataset(path, labels, **{name: options[name] for name in names})


def read_splits(
    path: str,
    valid: str | None = None,
    test: str | None = None,
    *,
    labels: str | None = None,
    **options: str | None,
) -> Dataset:
    """Read data, joined with further data for validation and test.

    Parameters
    ----------
    path, valid, test : str
        As `read_data`. All clips of `valid` and `test` get that split.
    labels : str, optional
        List of classes for those of the three that are ``.json``.
    **options : str, optional
        `root`, `fold` and `group` of `read_data`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_data`; or `valid` or `test` have classes that training does not.
    """
    paths = [part for part in (path, valid, test) if part is not None]
    is_json = {part: Path(part).suffix.lower() == ".json" for part in paths}
    if labels is not None and not any(is_json.values()):
        raise ValueError(f"--labels is for a .json, but {path} is not; leave it out")

    def read(part: str) -> Dataset:
        return read_data(part, labels=labels if is_json[part] else None, **options)

    dataset = read(path)
    clips = list(dataset.clips)
    for split, part in (("valid", valid), ("test", test)):
        if part is None:
            continue
        other = read(part)
        if unknown := sorted(set(other.classes) - set(dataset.classes)):
            raise ValueError(f"{part} has the class {unknown[0]!r}, which {path} does not have")
        clips += [replace(clip, split=split) for clip in other.clips]
    return replace(dataset, clips=tuple(clips))


def prepare_features(
    dataset: Dataset,
    folder: Path,
    metadata: FeatureMetadata,
    load_model: Callable[[], WhisperAT],
    *,
    decode: bool = True,
    skip_bad: bool = False,
    workers: int = 0,
    progress: bool = False,
    log: Log = lambda line: None,
    warn: Log = lambda line: None,
) -> Dataset | None:
    """Check the data and compute the features that are missing.

    Parameters
    ----------
    dataset : Dataset
        The clips.
    folder : Path
        Features, which need not exist.
    metadata : FeatureMetadata
        What the features are to be.
    load_model : callable
        Returns the model; called if features are missing.
    decode : bool
        Decode every file for the check, see `validate`.
    skip_bad : bool
        Leave out clips with errors.
    workers : int
        Processes that decode audio.
    progress : bool
        Whether to show progress bars.
    log, warn : callable
        Take a line of text, on what is done and on what is wrong.

    Returns
    -------
    Dataset or None
        The clips that have features, copies of one sound grouped; None if there are errors that are not to be skipped.

    Raises
    ------
    ValueError
        If the folder holds other features.
    """
    existing = Features.open(folder) if folder.is_dir() and any(folder.iterdir()) else None
    if existing is not None:
        check_encoder(existing.metadata, metadata, folder)
        metadata = replace(metadata, dtype=existing.metadata.dtype)  # what is added has the same precision
    has_features = existing.find(dataset.clips) >= 0 if existing is not None else np.zeros(len(dataset), bool)
    checked = dataset.filter(lambda clip: background_kind(clip) == "own")  # the package's, which are last, are right
    of_background = {label for clip in dataset.clips[len(checked) :] for label in clip.labels}
    cached = load_cache(folder, checked)
    has_checked = has_features[: len(checked)]
    findings, audio = validate(checked, decode, workers or 1, progress, has_checked, cached, of_background)
    for finding in findings:
        warn(f"{finding.level}: {finding.text}")
    errors = [finding for finding in findings if finding.level == "error"]
    if errors and not (skip_bad and all(finding.clips for finding in errors)):
        warn(f"nothing was trained: {len(errors)} errors in the data")
        return None
    bad = {i for finding in errors for i in finding.clips}
    dataset = group_copies(dataset, audio_digests(audio))
    kept = [i for i in range(len(dataset)) if i not in bad]
    missing = [dataset.clips[i] for i in kept if not has_features[i]]
    if missing:
        if existing is not None and not existing.metadata.model:
            raise ValueError(
                f"{folder} lacks {len(missing)} of the clips, and clips cannot be added to .npz: give all of them"
            )
        with FeatureWriter(folder, metadata):  # creates the folder, or raises
            pass
    if decode and audio != cached and folder.is_dir():
        with contextlib.suppress(PermissionError):  # then files are decoded again another time
            save_cache(folder, checked, audio)
    unreadable: list[UnreadableClip] = []
    if missing:
        model = load_model()
        unreadable = extract_features(missing, folder, model, metadata, workers=workers, progress=progress, log=log)
    for line in describe_unreadable(unreadable):
        warn(line)
    if unreadable and not skip_bad:
        warn("nothing was trained; repair or remove these, or give --skip-bad")
        return None
    unreadable_keys = {item.clip.key for item in unreadable}
    return dataset.select(i for i in kept if dataset.clips[i].key not in unreadable_keys)


def describe_unreadable(unreadable: list[UnreadableClip]) -> list[str]:
    """Return lines that name all clips without features, and why (T4)."""
    if not unreadable:
        return []
    lines = [f"{len(unreadable)} clips could not be used and have no features:"]
    return lines + [f"  {clip.key}: {reason}" for clip, reason in unreadable]


def check_encoder(found: FeatureMetadata, expected: FeatureMetadata, folder: Path) -> None:
    """Raise ValueError if features are of another encoder; of ``.npz`` only the shape is known."""
    if found.encoder_sha256:
        check_metadata(folder, replace(found, dtype=expected.dtype), expected)
    elif (found.layers, found.dim) != (expected.layers, expected.dim):
        raise ValueError(
            f"{folder} holds states of {found.layers} layers of width {found.dim}; {expected.model} has "
            f"{expected.layers} of {expected.dim}"
        )
