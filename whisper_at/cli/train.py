"""``whisper-at train``: a head for your own classes, or AudioSet's, from labelled recordings in one command."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from .. import checkpoints
from ..checkpoints.files import write_text
from ..data.background import background_kind
from ..data.clips import Clip, Dataset
from ..data.toml import read_toml
from ..features.files import FeatureMetadata, num_views
from ..features.prepare import check_encoder, prepare_features, read_splits
from ..features.store import Features
from ..loading import load_model
from ..tagging.heads import make_head
from ..tagging.labels import audioset_classes
from ..tagging.rows import RESERVED_NAMES
from ..train.background import add_background, background_clips, kinds_among_classes, speech_classes
from ..train.config import PRESETS, Settings, by_gradient_descent, parse_assignments, resolve_settings
from ..train.distributed import broadcast, local_device, process_group
from ..train.results import TrainedHead, finish_run, format_table, save_head
from ..train.ridge import most_rows
from ..train.teacher import CLIP_SECONDS, cut_recordings, taught_dataset, teach_by_model, teach_by_table
from ..train.train_head import (
    SplitIndices,
    resolve_loss,
    split_dataset,
    train_head,
    with_supported_precision,
)
from .arguments import (
    add_data_arguments,
    add_device_arguments,
    add_skip_bad_argument,
    add_workers_argument,
    data_name,
    data_options,
    print_error,
    print_line,
)

EXAMPLES = """\
examples:
  whisper-at train --data my_sounds/ --model base
                        one folder a class; then: whisper-at FILE --model base --head my_sounds.safetensors
  whisper-at train --data esc50.csv --root audio/ --test_fold 5 --model small.en -o esc50.safetensors
  whisper-at train --data train.json --test eval.json --labels audioset_label.csv --model medium.en \\
        --preset audioset -o medium.en.safetensors
  whisper-at train --data recordings/ --teacher base --model large-v3 -o large-v3.safetensors
                        what the head of base says of unlabelled recordings is what a head of large-v3 learns

A run that was stopped is resumed by the same command."""

Log = Callable[[str], object]
TAUGHT_SETTINGS: dict[str, dict[str, Any]] = {
    "own": {"optimizer": "adamw", "loss": "bce", "smoothing": 0.0, "select": "-valid_loss"},
    "audioset": {"loss": "bce", "smoothing": 0.0},  # averages epochs, so it selects none
}
"""What differs from a preset where probabilities are learned instead of labels."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="whisper-at train",
        description="Train a head for your own classes of sound on the features of a frozen Whisper.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument_group("data")
    add_data_arguments(data, "--data")
    data.add_argument("--valid", metavar="DATA", help="data to choose epochs by, instead of a part held out")
    data.add_argument("--test", metavar="DATA", help="data to test the finished head on")
    data.add_argument("--test_fold", metavar="NAME", help="fold to test on instead of training on it")
    help = "quick: look at labels and names, decode no file"
    data.add_argument("--check", choices=("full", "quick"), default="full", help=help)
    add_skip_bad_argument(data, "leave out clips with errors and go on")
    help = "learn from what this says of unlabelled recordings: a Whisper with a head, or a .csv of probabilities"
    data.add_argument("--teacher", metavar="MODEL|CSV", help=help)
    help = "the teacher's head, by name or file, if not the one published for it"
    data.add_argument("--teacher_head", metavar="FILE|NAME", default="auto", help=help)
    help = "folder of recordings that hold none of the classes, from where the head will be used, besides those of the "
    help += "package (speech, music, noise, silence); none: learn without any (default: those of the package)"
    data.add_argument("--background", metavar="DIR|none", default="auto", help=help)
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, help="Whisper to train for: a name, file, folder or hub id")
    add_device_arguments(model)
    help = "the head's file, .safetensors (default: in the current folder, named after the data)"
    model.add_argument("-o", "--output", metavar="FILE", help=help)
    training = parser.add_argument_group("training")
    training.add_argument("--preset", choices=PRESETS, help="recipe to start from (default: own)")
    training.add_argument("--config", metavar="FILE", help="settings in TOML; may name a preset")
    help = "one setting, as rate=1e-4 or rows=[25]"
    training.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help=help)
    help = "events that thresholds let background make, of all classes together (default: 1)"
    training.add_argument("--false_alarms_per_hour", type=float, metavar="N", help=help)
    training.add_argument("--features", metavar="DIR", help="where features are kept (default: beside the head)")
    add_workers_argument(training)
    training.add_argument("--quiet", action="store_true", help="print the result alone, and what is wrong")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if a head was written, 1 if the data were refused. Wrong arguments exit with 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    output = default_output(args.data) if args.output is None else Path(args.output).expanduser()
    if output.suffix != ".safetensors" or output.is_dir():
        parser.error(f"-o needs a file that ends in .safetensors, not {output}")
    if not output.parent.is_dir():
        parser.error(f"there is no folder {output.parent} to write {output.name} to")
    name = output.name.removesuffix(".safetensors").removesuffix(".head")  # as `load_model` attaches it
    if not name or name in RESERVED_NAMES:
        parser.error(f"{output.name} would be attached as {name!r}, which is reserved: choose a file with -o")
    if args.output is None and output.exists() and not _is_head_for(output, args.data):
        parser.error(f"{output} is there, and is no head for {data_name(args.data)}: choose a file with -o")
    if args.workers < 0:
        parser.error(f"--workers must not be negative, not {args.workers}")
    with process_group() as is_first:
        return _train(parser, args, output, is_first)


def _train(parser: argparse.ArgumentParser, args: argparse.Namespace, output: Path, is_first: bool) -> int:
    """Train with parsed arguments; only the first of several processes prints and writes."""
    log: Log = print_line if is_first and not args.quiet else lambda line: None
    try:
        config = read_toml(args.config) if args.config else {}
        configured = config.pop("preset", "own")
        preset = args.preset or configured
        overrides = parse_assignments(args.set)
        if args.false_alarms_per_hour is not None:
            overrides["false_alarms_per_hour"] = args.false_alarms_per_hour
        if args.teacher is not None:
            _check_teacher_arguments(parser, args)
            overrides = {**TAUGHT_SETTINGS.get(preset, {}), **config, **overrides}
            dataset = Dataset((), audioset_classes().names)
        else:
            dataset = read_splits(args.data, args.valid, args.test, **data_options(args))
        if args.test_fold is not None and not any(clip.fold for clip in dataset.clips):
            parser.error("--test_fold needs data with folds: a column fold, or --fold for folders")
    except (ValueError, OSError) as error:
        parser.error(str(error))

    path = checkpoints.find_whisper(args.model, args.model_dir)
    dims, state = checkpoints.open_whisper(path, download_root=args.model_dir)
    layers, dim = dims["n_audio_layer"], dims["n_audio_state"]
    try:
        settings = resolve_settings(preset, dim, config, overrides, args.config)
        settings = resolve_loss(dataset, settings)
        make_head(settings.mode, n_layer=layers, rep_dim=dim)  # raises if it is not possible
    except ValueError as error:
        parser.error(str(error))
    device = local_device(args.device)
    if (supported := with_supported_precision(settings, device)) != settings:
        settings = supported
        log("precision float16 needs a GPU (CUDA): training in float32")
    seconds = (settings.seconds or 10.0) if settings.protocol == "10" else 0.0
    sha256 = checkpoints.encoder_sha256(state)
    views = num_views(settings.protocol)
    metadata = FeatureMetadata(args.model, sha256, settings.protocol, seconds, layers, dim, views=views)
    del state

    folder = Path(args.features).expanduser() if args.features else output.with_suffix(".features")
    taught: np.ndarray | None = None
    if args.teacher is not None:
        lesson = _learn_from_teacher(args, device, folder, log) if is_first else None
        dataset, taught = cast(tuple[Dataset, np.ndarray], broadcast(lesson))
    background: tuple[Clip, ...] = ()
    if is_first and preset == "own" and args.teacher is None:
        background = _find_background(args, dataset, folder, log)
    background = broadcast(background)
    dataset = add_background(dataset, background, exclusive=settings.loss == "ce")
    prepared = None
    if is_first:
        prepared = prepare_features(
            dataset,
            folder,
            metadata,
            lambda: load_model(args.model, device, args.model_dir, head=None, compute_type=args.compute_type).eval(),
            decode=args.check == "full" and args.teacher is None,
            skip_bad=args.skip_bad,
            workers=args.workers,
            progress=not args.quiet,
            log=log,
            warn=print_error,
        )
    prepared = broadcast(prepared)
    if prepared is None:
        return 1
    features = Features.open(folder)
    check_encoder(features.metadata, metadata, folder)
    if not features.metadata.encoder_sha256:
        source = f"{args.model}'s, protocol {metadata.protocol}"
        log(f"{folder} does not say whose states it holds: they are taken for {source}")
    row_of = {clip.key: row for row, clip in enumerate(dataset.clips)}
    dataset = prepared.select(np.flatnonzero(features.find(prepared.clips) >= 0))  # all, unless some were left out
    if taught is not None:
        taught = taught[[row_of[clip.key] for clip in dataset.clips]]

    if settings.optimizer == "ridge" and len(dataset) * views > (most := most_rows(3 * layers * dim)):
        log(f"{len(dataset)} clips are more than can be fitted in closed form ({most // views}): by gradient descent")
        settings = by_gradient_descent(settings)
    split = split_dataset(dataset, settings, args.test_fold)
    log(f"{len(split.train)} clips to train on, {len(split.valid)} held out, {len(split.test)} to test on")
    if not len(split.valid) and settings.optimizer != "ridge":
        log("warning: no clips are held out, so the last epoch is kept and nothing is calibrated")
    run_dir = output.with_suffix(".run")
    with _epoch_logger(run_dir, settings, log, tensorboard=is_first) as on_epoch_end:
        trained = train_head(
            dataset,
            features,
            split,
            settings,
            device=device,
            run_dir=run_dir,
            progress=is_first and not args.quiet,
            on_epoch_end=on_epoch_end,
            targets=taught,
            background=background,
        )
    if is_first:
        report: list[str] = []
        log_results(trained, settings, report.append)
        for line in report:
            log(line)
        save_head(trained, output, metadata, settings, _training_details(args, split))
        write_text(report_file(output), "\n".join([f"# {output.name}", "", *report, ""]))
        finish_run(run_dir, trained.fitted)
        log(f"{output} is written; use it: whisper-at FILE --model {args.model} --head {output}")
        log(f"how well it does: {report_file(output)}")
        if args.quiet:
            print_line(f"{output}: {summary(trained)}")
    return 0


def _check_teacher_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options of labelled data, which a teacher replaces."""
    for name in ("valid", "test", "test_fold", "labels", "root", "fold", "group"):
        if getattr(args, name) is not None:
            parser.error(f"--{name} is for labelled data; with --teacher, --data is a folder of recordings")
    if args.teacher.endswith(".csv") and not Path(args.teacher).expanduser().is_file():
        parser.error(f"there is no table {args.teacher}")


def _learn_from_teacher(
    args: argparse.Namespace, device: str | torch.device, folder: Path, log: Log
) -> tuple[Dataset, np.ndarray]:
    """Return clips of the recordings, and the probabilities that the teacher gives them."""
    source = Path(args.data).expanduser()
    clips = cut_recordings(source, folder.with_suffix(".clips"), not args.quiet, print_error)
    log(f"{len(clips)} clips of {CLIP_SECONDS:g} s, {len({clip.group for clip in clips})} recordings")
    if args.teacher.endswith(".csv"):
        classes, targets = teach_by_table(Path(args.teacher).expanduser(), clips, source)
    else:
        options = {"head": args.teacher_head, "compute_type": args.compute_type}
        teacher = load_model(args.teacher, device, args.model_dir, **options).eval()
        store = folder.with_suffix(".teacher")
        progress = not args.quiet
        classes, targets = teach_by_model(teacher, args.teacher, clips, store, args.workers, progress, log)
    dataset, targets = taught_dataset(clips, classes, targets)
    known = int(np.isfinite(targets).any(0).sum())
    sure = {name for clip in dataset.clips for name in clip.labels}
    log(f"the teacher knows {known} of {len(classes)} classes, and is sure of {len(sure)} of them here")
    return dataset, targets


def _find_background(args: argparse.Namespace, dataset: Dataset, folder: Path, log: Log) -> tuple[Clip, ...]:
    """Return what the head is to be told apart from: recordings that hold none of its classes."""
    if folder.is_dir() and any(folder.glob("*.npz")):
        log(f"{folder} holds .npz, to which no states of background can be added: the head learns without any")
        return ()
    clips = background_clips(args.background, folder.with_suffix(".background"), not args.quiet, print_error)
    kinds = {background_kind(clip) for clip in clips}
    reasons = {kind: f"{name} is a class" for kind, name in kinds_among_classes(dataset.classes).items()}
    if "speech" in kinds and "speech" not in reasons and (names := speech_classes(dataset)):
        reasons["speech"] = f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}: most of these clips are speech"
    for kind in sorted(kinds & reasons.keys()):
        log(f"{reasons[kind]}, so the package's {kind} is no background")
    return tuple(clip for clip in clips if background_kind(clip) not in reasons)


def log_results(trained: TrainedHead, settings: Settings, log: Log) -> None:
    """Log how well a head does on held-out and test clips."""
    occurring = [row for row in trained.table if row.get("trained") or row.get("held out") or not trained.is_audioset]
    for line in format_table(occurring):
        log(line)
    kept = f"epoch {trained.epoch}" if trained.epoch else f"the average of epochs {list(settings.average)}"
    if settings.optimizer == "ridge":
        kept = f"penalty {trained.fitted.history[trained.epoch - 1]['penalty']:g}"
    if trained.scores:
        log(f"left out, {kept}: {_format_scores(trained.scores)}; temperature {trained.classes.temperature:.2f}")
        log(f"calibrated on {trained.calibration}")
        never = [] if trained.is_audioset else [row["class"] for row in trained.table if np.isinf(row["threshold"])]
        if never:
            log(
                f"note: no threshold reaches a precision of {settings.threshold_precision:g} for {', '.join(never[:5])}"
                f"{' …' if len(never) > 5 else ''}; as events these never count (--set threshold_precision=0.5)"
            )
    if trained.false_alarms:
        rates = [f"{kind} {rate:.1f} (in {minutes:.0f} min)" for kind, (rate, minutes) in trained.false_alarms.items()]
        log(f"false alarms per hour of background, rows of 2 s: {', '.join(rates)}")
    if trained.test_scores:
        log(f"test: {_format_scores(trained.test_scores)}")


def report_file(output: Path) -> Path:
    """Return where what `log_results` says of a head is kept: beside it."""
    return output.with_suffix(".report.txt")


def summary(trained: TrainedHead) -> str:
    """Return in one line how well a head does."""
    parts = {"held out": trained.scores, "test": trained.test_scores}
    said = [f"{name} {_format_scores(scores)}" for name, scores in parts.items() if scores]
    return "; ".join(said) or "no clips were held out to score it on"


def _format_scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def _training_details(args: argparse.Namespace, split: SplitIndices) -> dict[str, Any]:
    clips = {"train": len(split.train), "valid": len(split.valid), "test": len(split.test)}
    return {"data": data_name(args.data), "clips": clips}


def default_output(data: str) -> Path:
    """Return the head's file if none is given: named after the data, in the current folder."""
    name = data_name(data)
    return Path(f"{name if Path(data).expanduser().is_dir() else Path(name).stem}.safetensors")


def _is_head_for(path: Path, data: str) -> bool:
    """Return whether a file is a head that was trained on data of that name."""
    try:
        return json.loads(checkpoints.open_head(path)[1]["training"])["data"] == data_name(data)
    except (RuntimeError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def _epoch_logger(
    run_dir: Path, settings: Settings, log: Log, tensorboard: bool
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Yield a function that logs an epoch if it is the best so far or the last, and to TensorBoard if installed."""
    writer = None
    if tensorboard:
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter  # optional

            writer = SummaryWriter(str(run_dir))
    best = -np.inf
    sign, select = (-1, settings.select[1:]) if settings.select.startswith("-") else (1, settings.select)

    def on_epoch_end(epoch: int, scores: Mapping[str, float]) -> None:
        nonlocal best
        if writer is not None:
            for name, value in scores.items():
                writer.add_scalar(name, value, epoch)
        improved = select in scores and sign * scores[select] > best
        if improved:
            best = sign * scores[select]
        if improved or select not in scores or epoch == settings.epochs:
            log(f"epoch {epoch}/{settings.epochs}: {_format_scores(scores)}")

    try:
        yield on_epoch_end
    finally:
        if writer is not None:
            writer.close()


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
