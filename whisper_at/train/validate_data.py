"""Labelled data looked over before training: what would make it fail, or its figures wrong, and the way out."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..audio import ffmpeg_binary
from ..checkpoints.files import write_text
from ..data.clips import Clip, Dataset
from ..tagging.timeline import STEP_SECONDS
from .features import key_of, stamp

SILENT = 10 ** (-70 / 20)
"""Peak below which a clip is silent: -70 dB of full scale, a few steps of 16 bits."""
SHORTEST = 0.02  # seconds; one position of the encoder
ALIKE = 0.9  # share of common letters from which two class names are alike
HEARD = "heard.jsonl"
"""What was heard in the files, kept in the folder of their features."""


class Finding(NamedTuple):
    """One kind of problem: ``level`` is ``error``, ``warning`` or ``note``; ``text`` says what, where and what to do.

    ``clips`` are the numbers of the clips concerned, where leaving them out would help.
    """

    level: str
    text: str
    clips: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sound:
    """What is in the file of a clip, or in its part of it.

    Attributes
    ----------
    fault : why it cannot be read; empty if it can
    seconds : how long it is
    rate : of its samples, in Hz; 0 where that is not known
    peak : largest magnitude, 1.0 being full scale
    broken : samples that are NaN or infinite
    digest : of its samples at 16 bits: the same for the same sound in any lossless format
    """

    fault: str = ""
    seconds: float = 0.0
    rate: int = 0
    peak: float = 0.0
    broken: int = 0
    digest: str = ""


def look_over(
    dataset: Dataset,
    listen: bool = True,
    workers: int = 2,
    progress: bool = False,
    known: np.ndarray | None = None,
    heard: Mapping[int, Sound] | None = None,
) -> tuple[list[Finding], dict[int, Sound]]:
    """Everything that is found in the data, errors first, and the sound of each clip that could be read, by its number.

    Parameters
    ----------
    listen : decode every file; without, only labels, names and sizes are looked at
    workers : files that are decoded at once
    known : bool ``(clips,)``, those whose states are there, so that it does not matter if their file is not
    heard : what an earlier look found, see `recall`; these clips are not read again
    """
    findings = [*check_labels(dataset), *check_names(dataset)]
    sounds = dict(heard or {}) if listen else {}
    faults = {i: fault for i, clip in enumerate(dataset.clips) if (fault := _file_fault(clip.path))}
    if listen:
        todo = [i for i in range(len(dataset)) if i not in faults and i not in sounds]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            listened = pool.map(lambda i: hear(dataset.clips[i]), todo)
            bar = tqdm(listened, total=len(todo), unit="clip", desc="check", disable=not progress or not todo)
            sounds |= dict(zip(todo, bar))
        faults |= {i: sound.fault for i, sound in sounds.items() if sound.fault}
    findings += _faulty(dataset, {i: fault for i, fault in faults.items() if known is None or not known[i]})
    sounds = {i: sounds[i] for i in sorted(sounds) if not sounds[i].fault}
    findings += check_sounds(dataset, sounds)
    findings += check_copies(dataset, digests_of(sounds))
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.level)), sounds


def digests_of(sounds: Mapping[int, Sound]) -> dict[int, str]:
    """The digest of each sound, by the number of its clip."""
    return {i: sound.digest for i, sound in sounds.items()}


def remember(folder: Path, dataset: Dataset, sounds: Mapping[int, Sound]) -> None:
    """Keep what was heard in ``folder``, so that a later look at the same files finds the same without reading them."""
    lines = {line["key"]: line for line in _kept(folder)}
    for i, sound in sounds.items():
        if size_and_time := _stamp(dataset.clips[i].path):
            key = key_of(dataset.clips[i])
            lines[key] = {"key": key, "stamp": size_and_time, **asdict(sound)}
    write_text(folder / HEARD, "".join(json.dumps(line) + "\n" for line in lines.values()))


def recall(folder: Path, dataset: Dataset) -> dict[int, Sound]:
    """What `remember` kept of these clips, by their number; a file that has changed since is not among it."""
    lines = {line["key"]: line for line in _kept(folder)}
    out = {}
    for i, clip in enumerate(dataset.clips):
        line = lines.get(key_of(clip))
        if line is not None and _stamp(clip.path) in (None, line["stamp"]):  # a file that is gone was this one
            out[i] = Sound(**{name: value for name, value in line.items() if name not in ("key", "stamp")})
    return out


def _kept(folder: Path) -> list[dict[str, Any]]:
    path = folder / HEARD
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the clips are heard again") from None


def _stamp(path: Path) -> list[int] | None:
    try:
        return list(stamp(path))
    except OSError:
        return None


def grouped(dataset: Dataset, digests: Mapping[int, str]) -> Dataset:
    """The same data, where clips that hold the same sound are of one group, and so are groups that share a sound, so
    that no division parts them.
    """
    above: dict[str, str] = {}  # a forest: group -> one that it belongs with

    def top(group: str) -> str:
        while above.get(group, group) != group:
            group = above[group]
        return group

    first: dict[str, str] = {}  # digest -> group
    names = [clip.group or clip.key for clip in dataset.clips]
    copied = {digest for digest, n in Counter(digests.values()).items() if n > 1}
    for i, digest in sorted(digests.items()):
        if digest in copied:
            one = top(first.setdefault(digest, names[i]))
            above[top(names[i])] = above[one] = one
    clips = (replace(clip, group=top(own)) if own in above else clip for clip, own in zip(dataset.clips, names))
    return replace(dataset, clips=tuple(clips))


# --- what there is to find ----------------------------------------------------------------------------------


def check_labels(dataset: Dataset) -> Iterable[Finding]:
    """Classes that cannot be learned or judged, and clips that stand in the data twice."""
    trained = [clip for clip in dataset.clips if clip.split in ("", "train")]
    counts = Counter(label for clip in trained for label in set(clip.labels))
    if not trained:
        yield Finding("error", "no clip is for training; give some the split 'train', or none a split")
        return
    if len(dataset.classes) < 2 and not dataset.multi_label:
        yield Finding(
            "error",
            f"there is one class only, {_named(dataset.classes)}, and nothing to tell it from; add other sounds",
        )
    if none := [name for name in dataset.classes if not counts[name]]:
        yield Finding(
            "warning", f"{_named(none)}: no clips to train on, so never found; add clips, or remove the class", ()
        )
    if single := [name for name in dataset.classes if counts[name] == 1]:
        yield Finding("warning", f"{_named(single)}: one clip only, so how well it is found cannot be told; add clips")
    held = Counter(label for clip in dataset.clips if clip.split in ("valid", "test") for label in set(clip.labels))
    if held and (unjudged := [name for name in dataset.classes if counts[name] and not held[name]]):
        yield Finding("warning", f"{_named(unjudged)}: no clips to validate or test on")
    twice = [key for key, n in Counter(clip.key for clip in dataset.clips).items() if n > 1]
    if twice:
        at = tuple(i for i, clip in enumerate(dataset.clips) if clip.key in set(twice))
        rest = tuple(i for i in at if dataset.clips[i].key in {dataset.clips[j].key for j in at if j < i})
        yield Finding(
            "error", f"{_files(dataset, at)} stand in the data more than once; keep one row, labels joined by ';'", rest
        )


def check_names(dataset: Dataset) -> Iterable[Finding]:
    """Class names that may be one class, and files of one name."""
    plain: dict[str, list[str]] = defaultdict(list)
    for name in dataset.classes:
        plain[re.sub(r"[\W_]+", "", name).casefold().removesuffix("s")].append(name)
    alike = [names for names in plain.values() if len(names) > 1]
    keys = sorted(plain)
    for i, one in enumerate(keys):
        for other in keys[i + 1 :]:
            if min(len(one), len(other)) < 5 or abs(len(one) - len(other)) > 2 or one[0] != other[0]:
                continue
            matcher = difflib.SequenceMatcher(None, one, other)
            if matcher.quick_ratio() >= ALIKE and matcher.ratio() >= ALIKE:
                alike.append([plain[one][0], plain[other][0]])
    if alike:
        pairs = "; ".join(" and ".join(names) for names in alike[:3])
        yield Finding(
            "warning", f"class names look alike: {pairs} ({len(alike)} such); if they are one class, rename one"
        )
    by_name: dict[str, set[str]] = defaultdict(set)
    for clip in dataset.clips:
        by_name[Path(clip.path).stem].add(str(clip.path))
    if same := [name for name, paths in by_name.items() if len(paths) > 1]:
        yield Finding(
            "note", f"several files are called {_named(same)}; features as .npz want different names, all else does not"
        )


def check_sounds(dataset: Dataset, sounds: dict[int, Sound]) -> Iterable[Finding]:
    """Clips without sound to learn from."""
    broken = tuple(i for i, sound in sounds.items() if sound.broken)
    if broken:
        yield Finding(
            "error",
            f"{_files(dataset, broken)}: NaN or infinite samples; export these again, or remove them",
            broken,
        )
    nothing = tuple(i for i, sound in sounds.items() if not sound.broken and sound.seconds < SHORTEST)
    if nothing:
        yield Finding("error", f"{_files(dataset, nothing)}: less than {SHORTEST:g} s of sound; remove", nothing)
    rest = {i: sound for i, sound in sounds.items() if i not in {*broken, *nothing}}
    if silent := tuple(i for i, sound in rest.items() if sound.peak < SILENT):
        yield Finding(
            "warning", f"{_files(dataset, silent)}: silent; remove, unless silence is what its class means", silent
        )
    if short := tuple(i for i, sound in rest.items() if sound.seconds < STEP_SECONDS):
        yield Finding(
            "warning", f"{_files(dataset, short)}: shorter than {STEP_SECONDS:g} s, the smallest step that heads hear"
        )
    rates = Counter(sound.rate for sound in rest.values() if sound.rate)
    if len(rates) > 1:
        of_class: dict[str, set[int]] = defaultdict(set)
        for i, sound in rest.items():
            for label in dataset.clips[i].labels:
                of_class[label].add(sound.rate)
        listed = ", ".join(f"{n} at {rate} Hz" for rate, n in rates.most_common(4))
        apart = any(not a & b for a in of_class.values() for b in of_class.values())
        advice = (
            "classes differ in it, so a head may learn the rate: record all alike" if apart else "all become 16 kHz"
        )
        yield Finding("warning" if apart else "note", f"sample rates are mixed ({listed}); {advice}")


def check_copies(dataset: Dataset, digests: dict[int, str]) -> Iterable[Finding]:
    """The same sound in several clips; worst where it would be trained on and tested on."""
    copies: dict[str, list[int]] = defaultdict(list)
    for i, digest in digests.items():
        copies[digest].append(i)
    same = [members for members in copies.values() if len(members) > 1]
    leaks = [m for m in same if len({dataset.clips[i].split or "train" for i in m}) > 1]
    folds = [m for m in same if m not in leaks and len({dataset.clips[i].fold for i in m}) > 1]
    labels = [m for m in same if len({frozenset(dataset.clips[i].labels) for i in m}) > 1]
    plain = [m for m in same if m not in leaks and m not in folds and m not in labels]

    def worded(level: str, groups: Sequence[Sequence[int]], text: str) -> Iterable[Finding]:
        if groups:
            again = tuple(i for members in groups for i in members[1:])
            first = " = ".join(str(dataset.clips[i].path) for i in groups[0][:3])
            yield Finding(level, f"{len(groups)} recordings are there more than once {text} ({first})", again)

    yield from worded("error", leaks, "and on both sides of a split, so figures would be too good; keep one side")
    yield from worded("warning", folds, "and in different folds, so figures are too good; give copies one fold")
    yield from worded("warning", labels, "with different labels; correct them, or keep one with all labels")
    yield from worded("warning", plain, "; they are held together where data are divided, but count twice")


def _faulty(dataset: Dataset, faults: dict[int, str]) -> Iterable[Finding]:
    """One finding for each kind of fault of files."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, fault in faults.items():
        kinds[fault].append(i)
    if len(kinds) > 5:  # all of their own kind: the first is told
        kinds = {f"cannot be read ({next(iter(kinds))} …)": list(faults)}
    for fault, members in kinds.items():
        yield Finding(
            "error", f"{_files(dataset, members)}: {fault}; repair or remove, or --skip-bad", tuple(sorted(members))
        )


def _file_fault(path: Path) -> str:
    if path.is_dir():
        return "is a folder"
    if not path.exists():
        return "is not there"
    return "" if path.stat().st_size else "is empty"


def _files(dataset: Dataset, items: Sequence[int]) -> str:
    paths = list(dict.fromkeys(str(dataset.clips[i].path) for i in items))
    shown = ", ".join(paths[:2])
    return shown if len(paths) <= 2 else f"{len(paths)} clips ({shown} …)"


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


# --- listening ----------------------------------------------------------------------------------------------


def hear(clip: Clip) -> Sound:
    """Decode a clip as it is, in its own sample rate and in floating point, where NaN and infinity survive."""
    command = [ffmpeg_binary(), "-nostdin", "-hide_banner", "-loglevel", "info", "-protocol_whitelist", "file,pipe"]
    if clip.start:
        command += ["-ss", f"{clip.start:.6f}"]
    if clip.end is not None:
        command += ["-t", f"{max(0.0, clip.end - clip.start):.6f}"]
    command += ["-i", f"file:{os.fspath(clip.path)}", "-map", "0:a:0", "-ac", "1", "-f", "f32le", "pipe:"]
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told)
        assert process.stdout is not None
        samples, broken, peak, digest, held = 0, 0, 0.0, hashlib.sha256(), b""
        try:
            while piece := process.stdout.read(1 << 20):
                piece = held + piece
                whole = len(piece) // 4 * 4
                x, held = np.frombuffer(piece[:whole], "<f4"), piece[whole:]
                fine = np.isfinite(x)
                broken += int((~fine).sum())
                x = np.where(fine, x, 0)
                samples, peak = samples + len(x), max(peak, float(np.abs(x).max(initial=0)))
                digest.update(np.clip(np.round(x * 32768), -32768, 32767).astype("<i2").tobytes())
        finally:
            process.stdout.close()
            status = process.wait()
        told.seek(0)
        lines = told.read().decode(errors="replace")
    if status or not samples:
        return Sound(fault=_complaint(lines) if status else "holds no sound")
    match = re.search(r"Stream #0.*Audio:.*?(\d+) Hz", lines)
    rate = int(match.group(1)) if match else 0
    return Sound("", samples / rate if rate else float("inf"), rate, peak, broken, digest.hexdigest())


def _complaint(lines: str) -> str:
    """Why ffmpeg gave up, in a few words."""
    if "does not contain any stream" in lines or "matches no streams" in lines:
        return "holds no sound"
    last = [line.strip() for line in lines.splitlines() if line.strip()][-1:] or ["ffmpeg failed"]
    reason = re.sub(r"^(\[[^\]]*\]\s*)+", "", last[0])
    return f"cannot be read ({reason.rpartition(': ')[2] or reason})"
