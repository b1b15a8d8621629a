"""``whisper-at evaluate``: how well a head does on labelled recordings: a report, and scores as CSV."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .. import checkpoints
from ..data.clips import Dataset
from ..data.events import is_event_table
from ..features.encode import JOINED, describe_features
from ..features.extract import extract_features
from ..features.files import FeatureMetadata
from ..features.prepare import describe_unreadable, read_data
from ..features.store import Features
from ..loading import load_model
from ..model import WhisperAT
from ..tagging.load_head import load_head
from ..train.evaluate import (
    classes_of_head,
    published_model,
    select_clips,
    targets_for,
    trained_on_note,
    trained_seconds,
)
from ..train.event_scores import COLLAR
from ..train.recipe import compute_logits
from ..train.report import ScoredClips, summarize, write_report, write_scores
from .arguments import (
    add_data_arguments,
    add_device_arguments,
    add_skip_bad_argument,
    add_workers_argument,
    data_name,
    data_options,
    positive_number,
    print_error,
    print_line,
    resolution_list,
)
from .evaluate_events import evaluate_events

EXAMPLES = """\
examples:
  whisper-at evaluate my_sounds.safetensors --data new_sounds/ -o my_sounds.report
                        recordings that it was not trained on, in folders of the same names
  whisper-at evaluate small.en --data eval.json --labels audioset_label.csv -o small.en.report
  whisper-at evaluate esc50.safetensors --data esc50.csv --root audio/ --test_fold 5 --protocol 30 -o report
  whisper-at evaluate open.base --data events.tsv --root audio/ -o events.report
                        events with times: a table with the columns filename, onset, offset, event_label"""

PROTOCOL_TITLES = {"30": "30 s windows", JOINED: "one behind the other"}
EVALUATION_PROTOCOLS = ("10", *PROTOCOL_TITLES)
"""Protocols that heads are scored under: clips in isolation, followed by silence, and in context."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="whisper-at evaluate",
        description="Score a head on labelled recordings three ways: clips alone, as published heads are trained; in "
        "windows of 30 s with silence behind them, as in transcription of a short file; and joined, one behind the "
        "other, as in transcription of a recording. Writes report.md with pictures, and scores.csv. If the data are "
        "events with times (a .csv or .tsv with the columns filename, onset, offset and event_label, as DCASE and "
        "sed_eval have them), scores when they are found instead: F1 with a collar and PSDS. Writes report.md, and "
        "events.tsv with those that were found.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("head", metavar="HEAD", help="head's file, or the name of a published one")
    add_data_arguments(parser, "--data")
    which = parser.add_mutually_exclusive_group()
    help = "part of the data to score (default: test where there is one, else all)"
    which.add_argument("--split", choices=("train", "valid", "test"), help=help)
    which.add_argument("--test_fold", metavar="NAME", help="fold of the data to score")
    parser.add_argument(
        "--model", help="Whisper it was trained on, if the head does not say: name, file, folder, hub id"
    )
    help = "only 10 (clips alone), 30 (windows of one clip) or joined (of several); all by default"
    parser.add_argument("--protocol", choices=EVALUATION_PROTOCOLS, help=help)
    parser.add_argument("--seconds", type=float, metavar="S", help="length of clips under protocol 10")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the report")
    parser.add_argument("--features", metavar="DIR", help="keep states there for another time; else they are not kept")
    help = "seconds of the rows that decide on events with times, and of those that place them (default: 1.2,0.4)"
    parser.add_argument("--at_time_res", type=resolution_list, default=[1.2, 0.4], metavar="S[,S]", help=help)
    help = "seconds that events with times may begin and end early or late (default: %(default)s)"
    parser.add_argument("--collar", type=positive_number, default=COLLAR, metavar="S", help=help)
    add_skip_bad_argument(parser, "leave out clips that cannot be read")
    add_device_arguments(parser)
    add_workers_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="print results only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if a report was written, 1 if clips could not be read. Wrong arguments exit with 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    out = Path(args.output).expanduser()
    if out.exists() and not out.is_dir():
        parser.error(f"-o needs a folder, but {args.output} is a file")
    if is_event_table(args.data):
        return evaluate_events(parser, args)
    try:
        dataset, description = select_clips(read_data(args.data, **data_options(args)), args.split, args.test_fold)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    tensors, metadata = checkpoints.open_head(checkpoints.find_head(args.head, args.model_dir))
    if "mlp_layer.1.weight" not in tensors:
        raise ValueError(f"{args.head} is no head: mlp_layer is missing")
    classes = classes_of_head(metadata, len(tensors["mlp_layer.1.weight"]))
    targets = targets_for(dataset, classes)
    name = args.model or metadata.get("model") or published_model(args.head)
    if name is None:
        parser.error(f"{args.head} does not say which Whisper it was trained on: give --model")
    model = load_model(name, args.device, args.model_dir, head=None, compute_type=args.compute_type).eval()
    head = load_head(args.head, model, args.model_dir, name)

    scored: list[tuple[str, np.ndarray, np.ndarray]] = []  # title, which clips could be read, logits of all clips
    for protocol in EVALUATION_PROTOCOLS if args.protocol is None else (args.protocol,):
        seconds = (args.seconds or trained_seconds(metadata)) if protocol == "10" else None
        feature_metadata = describe_features(name, model, protocol, seconds)
        title = PROTOCOL_TITLES.get(protocol, f"{feature_metadata.seconds:g} s alone")
        with _feature_folder(args.features, protocol) as folder:
            unreadable = _extract(dataset, folder, model, feature_metadata, args)
            if unreadable is None:
                return 1
            features = Features.open(folder)
            indices = features.find(dataset.clips)
            readable = np.array([clip.key not in unreadable for clip in dataset.clips]) & (indices >= 0)
            if not readable.any():
                raise ValueError("no clip could be read")
            logits = np.zeros(targets.shape, np.float32)
            logits[readable] = compute_logits(head.to(model.device), features, indices[readable])
        scored.append((title, readable, logits))
    kept = np.flatnonzero(np.logical_and.reduce([readable for _, readable, _ in scored]))  # the same clips everywhere
    results = [ScoredClips(title, targets[kept], logits[kept]) for title, _, logits in scored]
    clips = [dataset.clips[i] for i in kept]
    details = {
        "head": Path(args.head).name,
        "model": name,
        "data": f"{Path(args.data).name}, {description}: {len(clips)} clips",
        "mode": head.mode,
    }
    if note := trained_on_note(metadata, data_name(args.data), description):
        details["note"] = note
    report = write_report(out, f"{Path(args.head).name} on {Path(args.data).name}", classes, results, details)
    path = out / "scores.csv"
    write_scores(path, [clip.key for clip in clips], [";".join(clip.labels) for clip in clips], results, classes)
    for item in results:
        found = summarize(item, classes)
        print(f"{item.name}: {', '.join(f'{key} {value:.4g}' for key, value in found.items())}")
    if note:
        print(f"note: {note}")
    print(f"{report}\n{path}")
    return 0


def _extract(
    dataset: Dataset, folder: Path, model: WhisperAT, metadata: FeatureMetadata, args: argparse.Namespace
) -> set[str] | None:
    """Extract features; return the keys of unreadable clips, or None if there are some that may not be skipped (T4)."""
    unreadable = extract_features(
        dataset.clips,
        folder,
        model,
        metadata,
        workers=args.workers,
        progress=not args.quiet,
        log=(lambda line: None) if args.quiet else print_line,
    )
    for line in describe_unreadable(unreadable):
        print_error(line)
    if unreadable and not args.skip_bad:
        print_error("nothing was scored; repair or remove these, or give --skip-bad")
        return None
    return {item.clip.key for item in unreadable}


@contextlib.contextmanager
def _feature_folder(folder: str | None, protocol: str) -> Iterator[Path]:
    """Yield the folder of the features of a protocol; a temporary one if none is given."""
    if folder is not None:
        yield Path(folder).expanduser() / f"protocol-{protocol}"
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary) / "features"


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
