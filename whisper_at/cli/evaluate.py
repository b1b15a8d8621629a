"""``whisper-at evaluate``: what a head does on labelled recordings, heard three ways: a report, scores as CSV."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoints
from ..data.clips import Dataset
from ..model import WhisperAT, load_model, open_fitting_head
from ..tagging.classes import ClassSet
from ..tagging.labels import audioset_labels, find_class
from ..train.extract import JOINED, describe, extract
from ..train.features import Features
from ..train.recipe import score
from ..train.report import Scored, summary, write_report, write_scores
from .train import add_data_arguments, read_data, report_unreadable

EXAMPLES = """\
examples:
  whisper-at evaluate my_sounds.safetensors --data new_sounds/ -o my_sounds.report
                        recordings that it was not trained on, in folders of the same names
  whisper-at evaluate small.en --data eval.json --labels audioset_label.csv -o small.en.report
  whisper-at evaluate esc50.safetensors --data esc50.csv --root audio/ --test_fold 5 --protocol 30 -o report"""

WAYS = {"30": "30 s windows", JOINED: "one behind the other"}
SCORED = ("10", *WAYS)
"""The protocols that heads are scored under: clips alone, with silence behind them, and in each other's company."""


def classes_of(metadata: Mapping[str, str], label_dim: int) -> ClassSet:
    """What a head's outputs mean; AudioSet's classes where its file does not say and there are 527.

    Raises
    ------
    ValueError
        If nothing says what they mean.
    """
    found = ClassSet.from_metadata(metadata)
    if found is not None:
        return found
    names = tuple(label.name for label in audioset_labels())
    if label_dim != len(names):
        raise ValueError(f"the head's {label_dim} outputs have no names, and are not AudioSet's {len(names)}")
    try:  # a head for AudioSet's classes may be calibrated all the same
        return ClassSet.from_metadata(dict(metadata, classes=json.dumps(names))) or ClassSet(names)
    except ValueError:
        return ClassSet(names)


def targets_for(dataset: Dataset, classes: ClassSet) -> np.ndarray:
    """float32 ``(clips, classes)`` of the head's classes, in the order of its outputs.

    Labels are the head's names; of AudioSet's classes, MIDs and names in any case will do.

    Raises
    ------
    ValueError
        If the head has no such class, or decides for one class where a clip has not exactly one.
    """
    index = {name: i for i, name in enumerate(classes.names)}
    is_audioset = classes.names == tuple(label.name for label in audioset_labels())
    out = np.zeros((len(dataset), len(classes.names)), np.float32)
    columns = {}
    for name in dict.fromkeys(label for clip in dataset.clips for label in clip.labels):
        try:
            columns[name] = index[name] if name in index or not is_audioset else find_class(name)
        except (KeyError, ValueError) as error:
            hint = str(error) if isinstance(error, ValueError) else f"it knows {', '.join(classes.names[:8])} …"
            raise ValueError(f"the data have the label {name!r}, which the head does not know: {hint}") from None
    for row, clip in enumerate(dataset.clips):
        out[row, [columns[name] for name in clip.labels]] = 1.0
    if classes.kind == "single_label" and not (out.sum(axis=1) == 1).all():
        bad = dataset.clips[int(np.flatnonzero(out.sum(axis=1) != 1)[0])]
        raise ValueError(f"the head decides for one class, but {bad.key} has the labels {list(bad.labels)}")
    return out


def chosen_clips(dataset: Dataset, split: str | None = None, test_fold: str | None = None) -> tuple[Dataset, str]:
    """The clips to score and what they are, in words: those of a split or fold, else the test split, else all.

    Raises
    ------
    ValueError
        If there are no such clips.
    """
    if test_fold is not None:
        part, what = dataset.filter(lambda clip: clip.fold == test_fold), f"fold {test_fold}"
    elif split is not None or any(clip.split == "test" for clip in dataset.clips):
        part, what = dataset.split(split or "test"), f"split {split or 'test'}"
    else:
        part, what = dataset, "all clips"
    if not len(part):
        raise ValueError(f"no clip is of {what}")
    return part, what


def learned_note(metadata: Mapping[str, str], data: str, what: str) -> str | None:
    """What to say of clips that a head seems to have been trained on; None where nothing speaks for that.

    Parameters
    ----------
    metadata : of the head
    data : name of the data's file or folder, all that a head keeps of it
    what : the part to score, in the words of `chosen_clips`
    """
    try:
        facts = json.loads(metadata["training"])
        same, kept = facts["data"] == data != "", facts["clips"]["test"]
    except (KeyError, TypeError, ValueError):
        return None
    if not same or what in ("split valid", "split test") or (what.startswith("fold ") and kept):
        return None
    return (
        f"the head was trained on data of the same name ({data}): if they are the same, the figures say how well it "
        "remembers these clips; choose what was kept apart (--split test, --test_fold) or other recordings"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when a report was written, 1 when clips could not be read. Wrong arguments exit with 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    out = Path(args.output).expanduser()
    if out.exists() and not out.is_dir():
        parser.error(f"-o wants a folder, but {args.output} is a file")
    try:
        dataset, what = chosen_clips(read_data(args.data, args), args.split, args.test_fold)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    tensors, metadata = checkpoints.open_head(checkpoints.find_head(args.head, args.model_dir))
    if "mlp_layer.1.weight" not in tensors:
        raise ValueError(f"{args.head} is no head: mlp_layer is missing")
    classes = classes_of(metadata, len(tensors["mlp_layer.1.weight"]))
    targets = targets_for(dataset, classes)
    name = args.model or metadata.get("model") or _published_for(args.head)
    if name is None:
        parser.error(f"{args.head} does not say which Whisper it was trained on: give --model")
    model = load_model(name, args.device, args.model_dir, head=None).eval()
    head = open_fitting_head(args.head, model, args.model_dir, name)

    scored = []
    for protocol in SCORED if args.protocol is None else (args.protocol,):
        seconds = (args.seconds or _trained_seconds(metadata)) if protocol == "10" else None
        about = describe(name, model, protocol, seconds)
        way = WAYS.get(protocol, f"{about.seconds:g} s alone")
        with _folder_of_features(args.features, protocol) as folder:
            unreadable = _heard(dataset, folder, model, about, args)
            if unreadable is None:
                return 1
            features = Features.open(folder)
            items = features.find(dataset.clips)
            fine = np.array([clip.key not in unreadable for clip in dataset.clips])
            kept = np.flatnonzero(fine & (items >= 0))  # all, unless --skip-bad left some out
            if not len(kept):
                raise ValueError("no clip could be read")
            logits = score(head.to(model.device), features, items[kept])
        scored.append((kept, Scored(way, targets[kept], logits)))
    everywhere = sorted(set.intersection(*(set(kept.tolist()) for kept, _ in scored)))
    results = [
        Scored(item.name, targets[everywhere], item.logits[np.searchsorted(kept, everywhere)]) for kept, item in scored
    ]
    clips = [dataset.clips[i] for i in everywhere]
    facts = {
        "head": Path(args.head).name,
        "model": name,
        "data": f"{Path(args.data).name}, {what}: {len(clips)} clips",
        "mode": head.mode,
    }
    called = os.path.basename(os.path.abspath(os.path.expanduser(args.data)))  # as training notes it, also of "."
    if note := learned_note(metadata, called, what):
        facts["note"] = note
    report = write_report(out, f"{Path(args.head).name} on {Path(args.data).name}", classes, results, facts)
    scores = out / "scores.csv"
    write_scores(scores, [clip.key for clip in clips], [";".join(clip.labels) for clip in clips], results, classes)
    for item in results:
        found = summary(item, classes)
        print(f"{item.name}: {', '.join(f'{key} {value:.4g}' for key, value in found.items())}")
    if note:
        print(f"note: {note}")
    print(f"{report}\n{scores}")
    return 0


def _heard(dataset: Dataset, folder: Path, model: WhisperAT, about: Any, args: argparse.Namespace) -> set[str] | None:
    """Write the states of all clips; keys of those that could not be read, or None where that was not allowed (T4)."""
    unreadable = extract(
        dataset.clips,
        folder,
        model,
        about,
        workers=args.workers,
        progress=not args.quiet,
        say=lambda line: None if args.quiet else print(line, flush=True),
    )
    report_unreadable(unreadable)
    if unreadable and not args.skip_bad:
        print("nothing was scored; repair or remove these, or give --skip-bad", file=sys.stderr)
        return None
    return {entry.clip.key for entry in unreadable}


def _folder_of_features(folder: str | None, protocol: str) -> Any:
    """Where states are kept: a folder for good, or one that is gone afterwards; to be used in ``with``."""
    if folder is None:
        return _Temporary()
    return contextlib.nullcontext(Path(folder).expanduser() / f"protocol-{protocol}")


class _Temporary(tempfile.TemporaryDirectory):
    def __enter__(self) -> Path:  # type: ignore[override]
        return Path(super().__enter__()) / "features"


def _published_for(head: str) -> str | None:
    """The Whisper that a published head was trained on."""
    return head.removesuffix("_low") if head in checkpoints.available_heads() else None


def _trained_seconds(metadata: Mapping[str, str]) -> float | None:
    """Length of the clips that a head was trained on under protocol 10, where it says."""
    try:
        seconds = json.loads(metadata.get("training", "{}"))["settings"]["seconds"]
        return float(seconds) or None
    except (KeyError, TypeError, ValueError):
        return None


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="whisper-at evaluate",
        description="Score a head on labelled recordings three ways: clips alone, as published heads are trained; in "
        "windows of 30 s with silence behind them, as transcription hears a short file; and joined, one behind the "
        "other, as it hears sounds in a recording. Writes report.md with pictures, and scores.csv.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("head", metavar="HEAD", help="head's file, or the name of a published one")
    add_data_arguments(parser, "--data")  # type: ignore[arg-type]
    which = parser.add_mutually_exclusive_group()
    help = "part of the data to score (default: test where there is one, else all)"
    which.add_argument("--split", choices=("train", "valid", "test"), help=help)
    which.add_argument("--test_fold", metavar="NAME", help="fold of the data to score")
    parser.add_argument(
        "--model", help="Whisper it was trained on, if the head does not say: name, file, folder, hub id"
    )
    help = "only 10 (clips alone), 30 (windows of one clip) or joined (of several); all by default"
    parser.add_argument("--protocol", choices=SCORED, help=help)
    parser.add_argument("--seconds", type=float, metavar="S", help="length of clips under protocol 10")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the report")
    parser.add_argument("--features", metavar="DIR", help="keep states there for another time; else they are not kept")
    parser.add_argument("--skip-bad", "--skip_bad", action="store_true", help="leave out clips that cannot be read")
    parser.add_argument("--model_dir", metavar="DIR", help="folder of downloaded models")
    parser.add_argument("--device", help="cpu or cuda; by default a GPU if there is one")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode audio")
    parser.add_argument("--quiet", action="store_true", help="print results only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
