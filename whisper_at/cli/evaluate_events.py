"""``whisper-at evaluate`` on a table of events with times: whether sounds are found, and at the right time."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from .. import checkpoints
from ..checkpoints.files import write_text
from ..data.events import EVENT_COLUMNS, LabelledEvent, read_event_table
from ..loading import load_model
from ..tagging.classes import ClassSet
from ..tagging.labels import find_class, is_audioset
from ..tagging.listeners import class_set
from ..train.evaluate import published_model
from ..train.event_scores import Detection, EventScores, check_event_scoring, detect_events, score_events
from .arguments import print_error

ONLY_FOR_CLIPS = ("labels", "fold", "group", "split", "test_fold", "protocol", "seconds", "features")
"""Options that are for labelled clips, not for events with times."""


def evaluate_events(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Tag the recordings of a table of events, write a report and the found events; return the exit status."""
    for name in ONLY_FOR_CLIPS:
        if getattr(args, name) is not None:
            parser.error(f"--{name} is for labelled clips, but {args.data} has events with times")
    try:
        check_event_scoring()
        table = read_event_table(args.data)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    metadata = checkpoints.open_head(checkpoints.find_head(args.head, args.model_dir))[1]
    model_name = args.model or metadata.get("model") or published_model(args.head)
    if model_name is None:
        parser.error(f"{args.head} does not say which Whisper it was trained on: give --model")
    model = load_model(model_name, args.device, args.model_dir, head=args.head, compute_type=args.compute_type).eval()
    ((head_name, head),) = model.heads.items()
    classes = class_set(head)
    try:
        reference, left_out = with_class_names(table, classes)
    except ValueError as error:
        parser.error(str(error))

    root = Path(args.root).expanduser() if args.root else Path(args.data).expanduser().parent
    indices = [classes.names.index(label) for label in _labels(reference)]
    detections: dict[str, Detection] = {}
    for file in tqdm(reference, unit="file", disable=args.quiet or None):
        try:
            result = model.tag(str(root / file), at_time_res=args.at_time_res)
            detections[file] = detect_events(result, indices, head_name)
        except (OSError, RuntimeError, ValueError) as error:
            print_error(f"{file}: {error}")
    if len(detections) < len(reference) and not (args.skip_bad and detections):
        print_error("nothing was scored; repair or remove these, or give --skip-bad")
        return 1
    scores = score_events({file: reference[file] for file in detections}, detections, _labels(reference), args.collar)

    minutes = sum(found.duration for found in detections.values()) / 60
    details = {
        **{"head": Path(args.head).name, "model": model_name, "rows of": _seconds(args.at_time_res)},
        "data": f"{Path(args.data).name}: {len(detections)} recordings, {minutes:.1f} minutes",
    }
    if left_out:
        details["left out"] = f"{', '.join(left_out)}, which the head does not know"
    out = Path(args.output).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    report = "\n".join(report_lines(scores, details, args.collar))
    write_text(out / "report.md", report + "\n")
    write_text(out / "events.tsv", "".join(f"{line}\n" for line in table_lines(detections)))
    print(summary(scores, args.collar))
    print(f"{out / 'report.md'}\n{out / 'events.tsv'}")
    return 0


def with_class_names(
    table: Mapping[str, Sequence[LabelledEvent]], classes: ClassSet
) -> tuple[dict[str, list[LabelledEvent]], list[str]]:
    """Return events labelled by a head's own names of its classes, without those that it has not learned, and these.

    Labels are names or, of AudioSet's classes, also MIDs, and names in any case.

    Raises
    ------
    ValueError
        If the head has no such class.
    """
    known = set(range(len(classes)) if classes.known is None else classes.known)
    index_of: dict[str, int] = {}
    for label in dict.fromkeys(event.label for events in table.values() for event in events):
        try:
            index_of[label] = classes.names.index(label) if label in classes.names else _class_of(label, classes)
        except ValueError as error:
            raise ValueError(f"there are events of {label!r}, which the head does not know: {error}") from None
    renamed = {
        file: [e._replace(label=classes.names[index_of[e.label]]) for e in events if index_of[e.label] in known]
        for file, events in table.items()
    }
    if not any(renamed.values()):
        raise ValueError("the head has learned none of the classes of these events")
    return renamed, [label for label, index in index_of.items() if index not in known]


def _labels(table: Mapping[str, Sequence[LabelledEvent]]) -> list[str]:
    return sorted({event.label for events in table.values() for event in events})


def _class_of(label: str, classes: ClassSet) -> int:
    return find_class(label) if is_audioset(classes) else classes.index(label)


def _seconds(at_time_res: float | Sequence[float]) -> str:
    lengths = at_time_res if isinstance(at_time_res, Sequence) else [at_time_res]
    return f"{', '.join(f'{seconds:g}' for seconds in lengths)} s"


def summary(scores: EventScores, collar: float) -> str:
    """Return the scores in a line."""
    psds = ", ".join(f"{name} {value:.3f}" for name, value in scores.psds.items())
    return (
        f"{len(scores.per_class)} classes: event F1 (±{collar:g} s) {scores.f1:.3f}, precision {scores.precision:.3f}, "
        f"recall {scores.recall:.3f}, of all events {scores.overall_f1:.3f}; {psds}"
    )


def report_lines(scores: EventScores, details: Mapping[str, str], collar: float) -> Iterator[str]:
    """Yield the lines of a report in Markdown."""
    yield f"# Events of {details['head']}\n"
    yield "| | |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in details.items())
    yield f"\n{summary(scores, collar)}\n"
    yield (
        f"A found event is right if it begins within {collar:g} s of a true one and ends within {collar:g} s, or half "
        "of the event's length, of its end; each true event is found once. Means are over classes; one of which "
        "nothing is found has a precision of 1. PSDS is the area under the curve of right events over false alarms an "
        "hour, at all thresholds: PSDS1 asks for times, PSDS2 for classes.\n"
    )
    yield "| class | events | found | F1 | precision | recall |\n|---|--:|--:|--:|--:|--:|"
    for name, row in sorted(scores.per_class.items(), key=lambda item: -item[1]["F1"]):
        yield (
            f"| {name} | {row['events']:.0f} | {row['found']:.0f} | {row['F1']:.3f} | {row['precision']:.3f} "
            f"| {row['recall']:.3f} |"
        )


def table_lines(detections: Mapping[str, Detection]) -> Iterator[str]:
    """Yield the lines of a table of found events."""
    yield "\t".join(EVENT_COLUMNS)
    for file, found in detections.items():
        for event in sorted(found.events):
            yield f"{file}\t{event.onset:.3f}\t{event.offset:.3f}\t{event.label}"
