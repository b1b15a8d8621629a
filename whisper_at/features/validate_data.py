"""Checks of labelled data before training: what would make it fail or its scores wrong, and what to do about it."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..data.clips import Dataset
from ..tagging.timeline import STEP_SECONDS
from .audio_info import AudioInfo, probe_audio

SILENCE_PEAK = 10 ** (-70 / 20)
"""A clip with a lower peak is silent: -70 dB of full scale, a few steps of 16 bits."""
MIN_SECONDS = 0.02  # one position of the encoder
NAME_SIMILARITY = 0.9
"""Class names with this share of common letters look alike."""
LEVELS = ("error", "warning", "note")


class Finding(NamedTuple):
    """One kind of problem.

    Attributes
    ----------
    level : str
        ``error``, ``warning`` or ``note``.
    text : str
        What, where, and what to do about it.
    clips : tuple of int
        Indices of the clips to leave out, where that would solve the problem.
    """

    level: str
    text: str
    clips: tuple[int, ...] = ()


def validate(
    dataset: Dataset,
    decode: bool = True,
    workers: int = 2,
    progress: bool = False,
    has_features: np.ndarray | None = None,
    cached: Mapping[int, AudioInfo] | None = None,
    elsewhere: Collection[str] = (),
) -> tuple[list[Finding], dict[int, AudioInfo]]:
    """Check labels, names and audio of a data set.

    Parameters
    ----------
    dataset : Dataset
        The clips.
    decode : bool
        Decode every file; if False, only labels, names and file sizes are checked.
    workers : int
        Number of files that are decoded at once.
    progress : bool
        Whether to show a progress bar.
    has_features : ndarray, shape (clips,), optional
        bool; clips that have features may lack their file.
    cached : mapping of int to AudioInfo, optional
        Results of an earlier call by index, see `load_cache`; these clips are not decoded again.
    elsewhere : collection of str
        Classes that have more clips, which need no check.

    Returns
    -------
    findings : list of Finding
        Errors first.
    audio : dict of int to AudioInfo
        The audio of each clip that could be read, by index.
    """
    findings = [*check_labels(dataset, elsewhere), *check_names(dataset)]
    audio = dict(cached or {}) if decode else {}
    faults = {i: fault for i, clip in enumerate(dataset.clips) if (fault := _file_fault(clip.path))}
    if decode:
        pending = [i for i in range(len(dataset)) if i not in faults and i not in audio]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            results = pool.map(lambda i: probe_audio(dataset.clips[i]), pending)
            bar = tqdm(results, total=len(pending), unit="clip", desc="check", disable=not progress or not pending)
            audio |= dict(zip(pending, bar))
        faults |= {i: info.fault for i, info in audio.items() if info.fault}
    needed = {i: fault for i, fault in faults.items() if has_features is None or not has_features[i]}
    findings += _check_faults(dataset, needed)
    audio = {i: audio[i] for i in sorted(audio) if not audio[i].fault}
    findings += check_audio(dataset, audio)
    findings += check_copies(dataset, audio_digests(audio))
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level)), audio


def audio_digests(audio: Mapping[int, AudioInfo]) -> dict[int, str]:
    """Return the digest of each clip, by its index."""
    return {i: info.digest for i, info in audio.items()}


def group_copies(dataset: Dataset, digests: Mapping[int, str]) -> Dataset:
    """Put clips of the same sound into one group, and merge groups that share a sound, so that no split parts them."""
    parents: dict[str, str] = {}  # a forest: group -> one that it was merged into

    def root(group: str) -> str:
        while parents.get(group, group) != group:
            group = parents[group]
        return group

    first: dict[str, str] = {}  # digest -> group
    groups = [clip.group or clip.key for clip in dataset.clips]
    copied = {digest for digest, n in Counter(digests.values()).items() if n > 1}
    for i, digest in sorted(digests.items()):
        if digest in copied:
            merged = root(first.setdefault(digest, groups[i]))
            parents[root(groups[i])] = parents[merged] = merged
    clips = (
        replace(clip, group=root(group)) if group in parents else clip for clip, group in zip(dataset.clips, groups)
    )
    return replace(dataset, clips=tuple(clips))


# --- checks -----------------------------------------------------------------------------------------------------


def check_labels(dataset: Dataset, elsewhere: Collection[str] = ()) -> Iterable[Finding]:
    """Find classes that cannot be learned or scored, and clips that are listed twice; `elsewhere` as of `validate`."""
    trained = [clip for clip in dataset.clips if clip.split in ("", "train")]
    counts = Counter(label for clip in trained for label in set(clip.labels))
    if not trained:
        yield Finding("error", "no clip is for training; give some the split 'train', or none a split")
        return
    if len(dataset.classes) < 2 and not dataset.multi_label:
        yield Finding(
            "error",
            f"there is one class only, {_list_names(dataset.classes)}, and nothing to tell it from; add other sounds",
        )
    few = [name for name in dataset.classes if counts[name] < 2 and name not in elsewhere]
    if untrained := [name for name in few if not counts[name]]:
        text = f"{_list_names(untrained)}: no clips to train on, so never found; add clips, or remove the class"
        yield Finding("warning", text)
    if single := [name for name in few if counts[name] == 1]:
        text = f"{_list_names(single)}: one clip only, so how well it is found cannot be measured; add clips"
        yield Finding("warning", text)
    held_out = Counter(label for clip in dataset.clips if clip.split in ("valid", "test") for label in set(clip.labels))
    if held_out and (unscored := [name for name in dataset.classes if counts[name] and not held_out[name]]):
        yield Finding("warning", f"{_list_names(unscored)}: no clips to validate or test on")
    positions: dict[str, list[int]] = defaultdict(list)
    for i, clip in enumerate(dataset.clips):
        positions[clip.key].append(i)
    if repeated := [members for members in positions.values() if len(members) > 1]:
        files = _list_files(dataset, sorted(i for members in repeated for i in members))
        text = f"{files} stand in the data more than once; keep one row, labels joined by ';'"
        yield Finding("error", text, tuple(sorted(i for members in repeated for i in members[1:])))


def check_names(dataset: Dataset) -> Iterable[Finding]:
    """Find class names that may be one class, and files of one name."""
    simplified: dict[str, list[str]] = defaultdict(list)
    for name in dataset.classes:
        simplified[re.sub(r"[\W_]+", "", name).casefold().removesuffix("s")].append(name)
    alike = [names for names in simplified.values() if len(names) > 1]
    keys = sorted(simplified)
    for i, one in enumerate(keys):
        for other in keys[i + 1 :]:
            if min(len(one), len(other)) < 5 or abs(len(one) - len(other)) > 2 or one[0] != other[0]:
                continue
            matcher = difflib.SequenceMatcher(None, one, other)
            if matcher.quick_ratio() >= NAME_SIMILARITY and matcher.ratio() >= NAME_SIMILARITY:
                alike.append([simplified[one][0], simplified[other][0]])
    if alike:
        pairs = "; ".join(" and ".join(names) for names in alike[:3])
        yield Finding(
            "warning", f"class names look alike: {pairs} ({len(alike)} such); if they are one class, rename one"
        )
    by_name: dict[str, set[str]] = defaultdict(set)
    for clip in dataset.clips:
        by_name[Path(clip.path).stem].add(str(clip.path))
    if same := [name for name, paths in by_name.items() if len(paths) > 1]:
        text = f"several files are called {_list_names(same)}; only features as .npz want different names"
        yield Finding("note", text)


def check_audio(dataset: Dataset, audio: Mapping[int, AudioInfo]) -> Iterable[Finding]:
    """Find clips without sound to learn from, and mixed sample rates."""
    broken = tuple(i for i, info in audio.items() if info.broken)
    if broken:
        text = f"{_list_files(dataset, broken)}: NaN or infinite samples; export these again, or remove them"
        yield Finding("error", text, broken)
    too_short = tuple(i for i, info in audio.items() if not info.broken and info.seconds < MIN_SECONDS)
    if too_short:
        text = f"{_list_files(dataset, too_short)}: less than {MIN_SECONDS:g} s of sound; remove"
        yield Finding("error", text, too_short)
    usable = {i: info for i, info in audio.items() if i not in {*broken, *too_short}}
    if silent := tuple(i for i, info in usable.items() if info.peak < SILENCE_PEAK):
        text = f"{_list_files(dataset, silent)}: silent; remove, unless silence is what its class means"
        yield Finding("warning", text, silent)
    if short := tuple(i for i, info in usable.items() if info.seconds < STEP_SECONDS):
        text = f"{_list_files(dataset, short)}: shorter than {STEP_SECONDS:g} s, the time resolution of heads"
        yield Finding("warning", text)
    rates = Counter(info.rate for info in usable.values() if info.rate)
    if len(rates) > 1:
        rates_of: dict[str, set[int]] = defaultdict(set)
        for i, info in usable.items():
            for label in dataset.clips[i].labels:
                rates_of[label].add(info.rate)
        listed = ", ".join(f"{n} at {rate} Hz" for rate, n in rates.most_common(4))
        differ = any(not a & b for a in rates_of.values() for b in rates_of.values())
        advice = (
            "classes differ in it, so a head may learn the rate: record all alike" if differ else "all become 16 kHz"
        )
        yield Finding("warning" if differ else "note", f"sample rates are mixed ({listed}); {advice}")


def check_copies(dataset: Dataset, digests: Mapping[int, str]) -> Iterable[Finding]:
    """Find sounds that several clips hold; worst if they are both trained and tested on."""
    copies: dict[str, list[int]] = defaultdict(list)
    for i, digest in digests.items():
        copies[digest].append(i)
    same = [members for members in copies.values() if len(members) > 1]
    leaks = [m for m in same if len({dataset.clips[i].split or "train" for i in m}) > 1]
    folds = [m for m in same if m not in leaks and len({dataset.clips[i].fold for i in m}) > 1]
    labels = [m for m in same if len({frozenset(dataset.clips[i].labels) for i in m}) > 1]
    others = [m for m in same if m not in leaks and m not in folds and m not in labels]
    for level, groups, text in (
        ("error", leaks, "and on both sides of a split, so scores would be too good; keep one side"),
        ("warning", folds, "and in different folds, so scores are too good; give copies one fold"),
        ("warning", labels, "with different labels; correct them, or keep one with all labels"),
        ("warning", others, "; they are held together where data are divided, but count twice"),
    ):
        if groups:
            copies_only = tuple(i for members in groups for i in members[1:])
            example = " = ".join(str(dataset.clips[i].path) for i in groups[0][:3])
            text = f"{len(groups)} recordings are there more than once {text} ({example})"
            yield Finding(level, text, copies_only)


def _check_faults(dataset: Dataset, faults: Mapping[int, str]) -> Iterable[Finding]:
    """Return one finding for each kind of fault of files."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, fault in faults.items():
        kinds[fault].append(i)
    if len(kinds) > 5:  # each is of its own kind: only the first is quoted
        kinds = {f"cannot be read ({next(iter(kinds))} …)": list(faults)}
    for fault, members in kinds.items():
        text = f"{_list_files(dataset, members)}: {fault}; repair or remove, or --skip-bad"
        yield Finding("error", text, tuple(sorted(members)))


def _file_fault(path: Path) -> str:
    if path.is_dir():
        return "is a folder"
    if not path.exists():
        return "is not there"
    return "" if path.stat().st_size else "is empty"


def _list_files(dataset: Dataset, clips: Sequence[int]) -> str:
    paths = list(dict.fromkeys(str(dataset.clips[i].path) for i in clips))
    shown = ", ".join(paths[:2])
    return shown if len(paths) <= 2 else f"{len(paths)} clips ({shown} …)"


def _list_names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
