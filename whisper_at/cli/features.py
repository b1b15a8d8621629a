"""``whisper-at features``: pooled states of many recordings, written once for any number of trainings."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..checkpoints.files import atomic_write
from ..data.clips import AUDIO_SUFFIXES, Clip
from ..data.readers import class_folders, find_audio
from ..model import load_model
from ..train.config import PROTOCOLS
from ..train.extract import describe, extract, size
from ..train.features import ABOUT, DTYPES, Features, FeatureWriter, key_of, parted, short_key
from .train import add_data_arguments, read_data, report_unreadable

EXAMPLES = """\
examples:
  whisper-at features my_sounds/ --model nano.en -o my.features
  whisper-at features audioset.json --labels audioset_label.csv --model medium.en --protocol 10 -o /data/medium.en
  whisper-at features list.txt --model tiny -o tiny.features       one file a line
  whisper-at features my.features --to npz -o npz/                 as earlier recipes keep them
  whisper-at features npz/ --to shards --model medium.en --protocol 10 -o medium.en.features

A run that was stopped goes on when the same command is given again."""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="whisper-at features",
        description="Write the pooled states of a frozen Whisper's encoder for many recordings.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_arguments(parser, "data")  # type: ignore[arg-type]
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the features")
    parser.add_argument("--model", default=None, help="Whisper whose encoder hears: a name, file, folder or hub id")
    parser.add_argument("--model_dir", default=None, help="folder of downloaded models")
    parser.add_argument("--device", default=None, help="cpu or cuda; by default a GPU if there is one")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="30: windows with silence behind the end, as in transcription; 30+: these, and besides every clip among "
        "others, joined one behind the other (default, as of train); 10: clips alone, cut or padded to --seconds, as "
        "AudioSet's heads were trained. What --to converts was heard once: 10 or 30 (its default)",
    )
    parser.add_argument("--seconds", type=float, default=None, help="length of clips under --protocol 10 (default 10)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode audio")
    parser.add_argument("--batch", type=int, default=16, help="windows that the encoder sees at once")
    parser.add_argument("--to", choices=("npz", "shards"), default=None, help="convert features that are there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 if a clip could not be used. Wrong arguments exit with 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    source, output = Path(args.data).expanduser(), Path(args.output).expanduser()
    if args.to == "shards" and args.protocol == "30+":
        parser.error("--to shards converts states of clips that were heard once: --protocol 30 or 10")
    args.protocol = args.protocol or ("30" if args.to else "30+")
    if args.workers < 0 or args.batch < 1:
        parser.error("--workers must be 0 or more, and --batch 1 or more")
    if args.to != "npz" and args.model is None:
        parser.error("--model is needed: the Whisper whose encoder hears")
    if output.exists() and not output.is_dir():
        parser.error(f"{output} is a file; -o wants a folder")
    if args.to is not None:
        return _convert(parser, args, source, output)
    try:
        clips = _clips(source, args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(args.model, device, args.model_dir, head=None).eval()
    try:
        about = describe(args.model, model, args.protocol, args.seconds, args.dtype)
    except ValueError as error:
        parser.error(str(error))
    unreadable = extract(clips, output, model, about, workers=args.workers, batch=args.batch, progress=True, say=_print)
    report_unreadable(unreadable)
    features = Features.open(output, verify=False)
    n_bytes = sum(path.stat().st_size for path in output.iterdir())
    _print(f"{len(features)} clips, {int(features.n_steps.sum())} steps, {size(n_bytes)} in {output}")
    return 1 if unreadable else 0


def _clips(source: Path, args: argparse.Namespace) -> list[Clip]:
    """What is to be heard: labelled data, a folder of files, or a list of files."""
    if source.is_file() and source.suffix.lower() == ".txt":
        lines = [line.strip() for line in source.read_text("utf-8").splitlines()]
        root = Path(args.root).expanduser() if args.root else source.parent
        if clips := [Clip(root / line, ()) for line in lines if line]:
            return clips
        raise ValueError(f"{source} names no files")
    if source.is_dir() and not any(any(find_audio(folder)) for folder in class_folders(source)):
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
        if clips := [Clip(path, ()) for path in paths]:
            return clips
        raise ValueError(f"no recordings in {source}")
    return list(read_data(str(source), args).clips)


def _convert(parser: argparse.ArgumentParser, args: argparse.Namespace, source: Path, output: Path) -> int:
    """From shards to ``.npz`` or back."""
    try:
        features = Features.open(source)
    except (ValueError, FileNotFoundError) as error:
        parser.error(f"--to converts features: {error}")
    if args.to == "npz":
        if (output / ABOUT).exists():
            parser.error(f"{output} holds features in shards; choose another folder")
        _print(f"{write_npz(features, output)} clips in {output}")
        return 0
    model = load_model(args.model, "cpu", args.model_dir, head=None)
    try:
        about = describe(args.model, model, args.protocol, args.seconds, args.dtype)
    except ValueError as error:
        parser.error(str(error))
    if (about.layers, about.dim) != (features.about.layers, features.about.dim):
        parser.error(
            f"{source} holds states of {features.about.layers} layers of width {features.about.dim}, but {args.model} "
            f"has {about.layers} of {about.dim}"
        )
    with FeatureWriter(output, about) as writer:
        for i in tqdm(range(len(features)), unit="clip"):
            name, part = parted(features.rows[i].key)
            clip = Clip(
                source.absolute() / f"{name}.from-npz{part}", ()
            )  # a name to find it by: the audio is not known
            if key_of(clip) not in writer.done:
                writer.add(clip, np.asarray(features.states(i)))
    _print(f"{len(features)} clips in {output}")
    return 0


def write_npz(features: Features, folder: str | os.PathLike[str], items: Sequence[int] | None = None) -> int:
    """Write one ``<base name>.npz`` a clip, ``arr_0`` ``(layers, steps, dim)``, as earlier recipes read; how many.

    Of clips that were heard several times, it is the first, by themselves.

    Raises
    ------
    ValueError
        If two clips have the same base name.
    """
    folder = Path(folder).expanduser()
    items = range(len(features)) if items is None else items
    names: dict[str, str] = {}
    for i in items:
        key = features.rows[i].key
        if (other := names.setdefault(short_key(key), key)) != key:
            raise ValueError(f"{other} and {key} would have the same name as .npz; rename one of them")
    folder.mkdir(parents=True, exist_ok=True)
    for i in items:
        path = folder / f"{short_key(features.rows[i].key)}.npz"
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, np.ascontiguousarray(features.states(i)))
    return len(names)


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
