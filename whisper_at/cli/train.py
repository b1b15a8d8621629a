"""``whisper-at train``: a head of one's own, or of AudioSet, from labelled recordings in one command."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed

from .. import checkpoints
from ..data.clips import Dataset
from ..data.readers import read_dataset
from ..data.toml import read_toml
from ..model import load_model
from ..tagging.heads import make_head
from ..tagging.listeners import RESERVED
from ..train.config import PRESETS, Settings, changed, parse_assignments, preset
from ..train.extract import Unreadable, extract
from ..train.features import About, Features, FeatureWriter, hearings_of, refuse_other
from ..train.train_head import (
    Division,
    Trained,
    divide,
    finish_run,
    for_device,
    resolve_loss,
    table_lines,
    train_head,
    write_head,
)
from ..train.validate_data import digests_of, grouped, look_over, recall, remember

EXAMPLES = """\
examples:
  whisper-at train --data my_sounds/ --model base
                        one folder a class; then: whisper-at FILE --model base --head my_sounds.safetensors
  whisper-at train --data esc50.csv --root audio/ --test_fold 5 --model small.en -o esc50.safetensors
  whisper-at train --data train.json --test eval.json --labels audioset_label.csv --model medium.en \\
        --preset audioset -o medium.en.safetensors

A run that was stopped goes on when the same command is given again."""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="whisper-at train",
        description="Train a head that hears your own classes of sound in the features of a frozen Whisper.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument_group("data")
    add_data_arguments(data, "--data")
    data.add_argument("--valid", metavar="DATA", help="data to choose epochs by, instead of a part held out")
    data.add_argument("--test", metavar="DATA", help="data to test the finished head on")
    data.add_argument("--test_fold", metavar="NAME", help="fold to test on instead of training on it")
    data.add_argument(
        "--check", choices=("full", "quick"), default="full", help="quick: look at labels and names, hear no file"
    )
    data.add_argument("--skip-bad", "--skip_bad", action="store_true", help="leave out clips with errors and go on")
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, help="Whisper to train for: a name, file, folder or hub id")
    model.add_argument("--model_dir", default=None, help="folder of downloaded models")
    model.add_argument("--device", default=None, help="cpu or cuda; by default a GPU if there is one")
    help = "the head's file, .safetensors (default: in the current folder, called as the data)"
    model.add_argument("-o", "--output", default=None, metavar="FILE", help=help)
    training = parser.add_argument_group("training")
    training.add_argument("--preset", choices=PRESETS, default=None, help="recipe to start from (default: own)")
    training.add_argument("--config", metavar="FILE", help="settings in TOML; may name a preset")
    training.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="one setting, as rate=1e-4 or rows=[25]"
    )
    training.add_argument("--features", metavar="DIR", help="where states are kept (default: beside the head)")
    training.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode audio")
    training.add_argument("--quiet", action="store_true", help="say only what is wrong")
    return parser


def add_data_arguments(group: argparse._ArgumentGroup, name: str) -> None:
    """What says which data to read, and how."""
    required = {"required": True} if name.startswith("-") else {}
    group.add_argument(name, metavar="DATA", help="folder of classes, .csv, .tsv or .json", **required)  # type: ignore[arg-type]
    group.add_argument("--labels", metavar="CSV", help="list of classes that a .json needs: index, mid, display_name")
    group.add_argument("--root", metavar="DIR", help="folder that the files in a table are in")
    group.add_argument("--fold", metavar="REGEX", help="finds the fold in names of files in folders, as ^(\\d)-")
    group.add_argument("--group", metavar="REGEX", help="finds what must stay together (speaker, source), likewise")


def read_data(path: str, args: argparse.Namespace) -> Dataset:
    """The data at ``path`` by the arguments of `add_data_arguments`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_dataset`; or an argument means nothing for such data.
    """
    kind = "folder" if Path(path).expanduser().is_dir() else Path(path).suffix.lower()
    options = {"folder": ("fold", "group"), ".csv": ("root",), ".tsv": ("root",), ".json": ()}.get(kind, ())
    labels = args.labels
    if kind == ".json" and labels is None:
        near = Path(path).with_name("audioset_label.csv")
        labels = near if near.is_file() else None
    for name in ("fold", "group", "root"):
        if getattr(args, name) is not None and name not in options:
            raise ValueError(f"--{name} is for {'folders' if name != 'root' else 'tables'}, but {path} is none")
    parts = (getattr(args, name, None) or path for name in ("data", "valid", "test"))
    if args.labels is not None and not any(Path(part).suffix.lower() == ".json" for part in parts):
        raise ValueError(f"--labels is for a .json, but {path} is none; leave it out")
    return read_dataset(path, labels, **{name: getattr(args, name) for name in options})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when a head was written, 1 when the data were refused. Wrong arguments exit with 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    output = _called_as(args.data) if args.output is None else Path(args.output).expanduser()
    if output.suffix != ".safetensors" or output.is_dir():
        parser.error(f"-o wants a file that ends in .safetensors, not {output}")
    if not output.parent.is_dir():
        parser.error(f"there is no folder {output.parent} to write {output.name} to")
    name = output.name.removesuffix(".safetensors").removesuffix(".head")  # as `load_model` attaches it
    if not name or name in RESERVED:
        parser.error(f"{output.name} would be attached as {name!r}, which no head can be called: choose a file with -o")
    if args.output is None and output.exists() and not _is_of(output, args.data):
        parser.error(f"{output} is there, and is no head for {_name_of(args.data)}: choose a file with -o")
    if args.workers < 0:
        parser.error(f"--workers must not be negative, not {args.workers}")
    with _processes() as first:
        return _train(parser, args, output, first)


def _train(parser: argparse.ArgumentParser, args: argparse.Namespace, output: Path, first: bool) -> int:
    """Everything after the arguments; ``first`` is whether this process speaks and writes."""
    say: Callable[[str], None] = _silent if args.quiet or not first else _print
    try:
        given = read_toml(args.config) if args.config else {}
        named = given.pop("preset", None)
        assigned = parse_assignments(args.set)
        dataset, test_fold = read_parts(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    path = checkpoints.find_whisper(args.model, args.model_dir)
    dims, state = checkpoints.open_whisper(path)
    try:
        settings = settings_of(args.preset or named or "own", dims["n_audio_state"], given, assigned, args.config)
        settings = resolve_loss(dataset, settings)
        make_head(settings.mode, n_layer=dims["n_audio_layer"], rep_dim=dims["n_audio_state"])  # which it refuses
    except ValueError as error:
        parser.error(str(error))
    device = _device(args.device)
    if (possible := for_device(settings, device)) != settings:
        settings = possible
        say("precision float16 needs a GPU (CUDA): training in float32")
    seconds = (settings.seconds or 10.0) if settings.protocol == "10" else 0.0
    sha256 = checkpoints.encoder_sha256(state)
    layers, dim, hearings = dims["n_audio_layer"], dims["n_audio_state"], hearings_of(settings.protocol)
    about = About(args.model, sha256, settings.protocol, seconds, layers, dim, hearings=hearings)
    del state

    folder = Path(args.features).expanduser() if args.features else output.with_suffix(".features")
    prepared = _same_everywhere(_prepare(dataset, folder, about, args, say) if first else None)
    if prepared is None:
        return 1
    dataset = prepared
    features = Features.open(folder)
    _warn_of_another(features.about, about, folder)
    if not features.about.encoder_sha256:
        say(
            f"{folder} does not say whose states it holds: they are taken for {args.model}'s, protocol {about.protocol}"
        )
    dataset = dataset.select(np.flatnonzero(features.find(dataset.clips) >= 0))  # all, where nothing was left out

    division = divide(dataset, settings, test_fold)
    say(f"{len(division.train)} clips to train on, {len(division.valid)} held out, {len(division.test)} to test on")
    if not len(division.valid):
        say("warning: no clips are held out, so the last epoch is kept and nothing is calibrated")
    run = output.with_suffix(".run")
    with _scribe(run, settings, say, first) as told:
        trained = train_head(
            dataset, features, division, settings, device=device, run=run, progress=first and not args.quiet, told=told
        )
    if first:
        _report(trained, settings, say)
        write_head(trained, output, about, settings, _facts(args, division))
        finish_run(run, trained.fitted)
        say(f"{output} is written; use it: whisper-at FILE --model {args.model} --head {output}")
    return 0


def settings_of(
    name: str, width: int, given: Mapping[str, Any], assigned: Mapping[str, Any], source: str | None
) -> Settings:
    """A preset, changed by a file, changed by the command line.

    Raises ValueError as `preset` and `changed`, or if one that is given would do nothing.
    """
    mode = assigned.get("mode", given.get("mode"))
    settings = preset(name, width, mode if isinstance(mode, str) else None)
    settings = changed(changed(settings, given, source or ""), assigned, "--set")
    told = {**given, **assigned}
    if told.get("seconds") and settings.protocol != "10":
        raise ValueError(f"seconds is for protocol 10, not {settings.protocol}: give protocol=10 too, or seconds=0")
    for one in ("select", "patience"):
        if told.get(one) and settings.average:
            raise ValueError(f"{one} does nothing where epochs are averaged: leave it out, or give average=[] too")
    if told.get("patience") and not settings.select:
        raise ValueError("patience does nothing without select: leave it out, or give select too, as select=mAP")
    return settings


def read_parts(args: argparse.Namespace) -> tuple[Dataset, str | None]:
    """The data, joined with those for validation and test, and the fold to test on.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_data`; or the parts have classes that training does not.
    """
    dataset = read_data(args.data, args)
    if args.test_fold is not None and not any(clip.fold for clip in dataset.clips):
        raise ValueError("--test_fold wants data with folds: a column fold, or --fold for folders")
    clips = list(dataset.clips)
    for split, path in (("valid", args.valid), ("test", args.test)):
        if path is None:
            continue
        part = read_data(path, args)
        if unknown := sorted(set(part.classes) - set(dataset.classes)):
            raise ValueError(f"{path} has the class {unknown[0]!r}, which {args.data} does not have")
        clips += [replace(clip, split=split) for clip in part.clips]
    return replace(dataset, clips=tuple(clips)), args.test_fold


def _prepare(
    dataset: Dataset, folder: Path, about: About, args: argparse.Namespace, say: Callable[[str], None]
) -> Dataset | None:
    """Look the data over and compute the states that are missing; None if they cannot be trained on."""
    there = Features.open(folder) if folder.is_dir() and any(folder.iterdir()) else None
    if there is not None:
        _warn_of_another(there.about, about, folder)
        about = replace(about, dtype=there.about.dtype)  # what is added is as what is there
    known = there.find(dataset.clips) >= 0 if there is not None else np.zeros(len(dataset), bool)
    listen, heard = args.check == "full", recall(folder, dataset)
    findings, sounds = look_over(dataset, listen, args.workers or 1, not args.quiet, known, heard)
    for finding in findings:
        print(f"{finding.level}: {finding.text}", file=sys.stderr, flush=True)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors and not (args.skip_bad and all(finding.clips for finding in errors)):
        print(f"nothing was trained: {len(errors)} errors in the data", file=sys.stderr)
        return None
    left_out = {i for finding in errors for i in finding.clips}
    dataset = grouped(dataset, digests_of(sounds))
    kept = [i for i in range(len(dataset)) if i not in left_out]
    missing = [dataset.clips[i] for i in kept if not known[i]]
    unreadable: list[Unreadable] = []
    if missing:
        if there is not None and not there.about.model:
            raise ValueError(f"{folder} lacks {len(missing)} of the clips, and .npz are not added to: give all of them")
        with FeatureWriter(folder, about):  # there is a folder now, or it is refused
            pass
    if listen and sounds != heard and folder.is_dir():
        with contextlib.suppress(PermissionError):  # then they are heard again another time
            remember(folder, dataset, sounds)
    if missing:
        model = load_model(args.model, _device(args.device), args.model_dir, head=None).eval()
        unreadable = extract(missing, folder, model, about, workers=args.workers, progress=not args.quiet, say=say)
    report_unreadable(unreadable)
    if unreadable and not args.skip_bad:
        print("nothing was trained; repair or remove these, or give --skip-bad", file=sys.stderr)
        return None
    lost = {entry.clip.key for entry in unreadable}
    return dataset.select(i for i in kept if dataset.clips[i].key not in lost)


def report_unreadable(unreadable: Sequence[Unreadable]) -> None:
    """Name the clips without states together (T4)."""
    if unreadable:
        print(f"{len(unreadable)} clips could not be used and have no features:", file=sys.stderr)
    for clip, reason in unreadable:
        print(f"  {clip.key}: {reason}", file=sys.stderr)


def _warn_of_another(there: About, wanted: About, folder: Path) -> None:
    """Refuse states of another encoder; a store of ``.npz`` does not say whose it is."""
    if not there.encoder_sha256:
        if (there.layers, there.dim) != (wanted.layers, wanted.dim):
            raise ValueError(
                f"{folder} holds states of {there.layers} layers of width {there.dim}; {wanted.model} has "
                f"{wanted.layers} of {wanted.dim}"
            )
        return
    refuse_other(folder, replace(there, dtype=wanted.dtype), wanted)


def _report(trained: Trained, settings: Settings, say: Callable[[str], None]) -> None:
    """What the chosen weights do on held-out and test clips."""
    for line in table_lines(trained.table):
        say(line)
    kept = f"epoch {trained.epoch}" if trained.epoch else f"the average of epochs {list(settings.average)}"
    if trained.scores:
        say(f"held out, {kept}: {_scores_text(trained.scores)}; temperature {trained.classes.temperature:.2f}")
        never = [] if trained.of_audioset else [row["class"] for row in trained.table if np.isinf(row["threshold"])]
        if never:
            say(
                f"note: no threshold reaches a precision of {settings.threshold_precision:g} for {', '.join(never[:5])}"
                f"{' …' if len(never) > 5 else ''}; as events these never count (--set threshold_precision=0.5)"
            )
    if trained.test_scores:
        say(f"test: {_scores_text(trained.test_scores)}")


def _scores_text(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def _facts(args: argparse.Namespace, division: Division) -> dict[str, Any]:
    parts = {"train": len(division.train), "valid": len(division.valid), "test": len(division.test)}
    return {"data": _name_of(args.data), "clips": parts}


def _name_of(data: str) -> str:
    """What the data are called, also where they are the current folder."""
    return os.path.basename(os.path.abspath(os.path.expanduser(data)))


def _called_as(data: str) -> Path:
    """The head's file, where none is named."""
    name = _name_of(data)
    return Path(f"{name if Path(data).expanduser().is_dir() else Path(name).stem}.safetensors")


def _is_of(path: Path, data: str) -> bool:
    """Whether a file is a head that was trained on data of that name."""
    try:
        return json.loads(checkpoints.open_head(path)[1]["training"])["data"] == _name_of(data)
    except (RuntimeError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def _scribe(
    run: Path, settings: Settings, say: Callable[[str], None], first: bool
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """What tells of every epoch: a line when it is the best so far or the last, and TensorBoard where it is there."""
    board = None
    if first:
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            board = SummaryWriter(str(run))
    best = -np.inf
    sign, judged = (-1, settings.select[1:]) if settings.select.startswith("-") else (1, settings.select)

    def told(epoch: int, scores: Mapping[str, float]) -> None:
        nonlocal best
        if board is not None:
            for name, value in scores.items():
                board.add_scalar(name, value, epoch)
        better = judged in scores and sign * scores[judged] > best
        if better:
            best = sign * scores[judged]
        if better or judged not in scores or epoch == settings.epochs:
            say(f"epoch {epoch}/{settings.epochs}: {_scores_text(scores)}")

    try:
        yield told
    finally:
        if board is not None:
            board.close()


@contextlib.contextmanager
def _processes() -> Iterator[bool]:
    """Join the other processes of ``torchrun``, if there are any; whether this is the first."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=datetime.timedelta(days=7))  # the first computes all states
    try:
        yield distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


def _same_everywhere(dataset: Dataset | None) -> Dataset | None:
    """The first process's data, in all of them."""
    if not distributed.is_initialized():
        return dataset
    held: list[Dataset | None] = [dataset]
    distributed.broadcast_object_list(held, src=0, device=_device(None) if torch.cuda.is_available() else None)
    return held[0]


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def _print(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    return


if __name__ == "__main__":
    sys.exit(main())
