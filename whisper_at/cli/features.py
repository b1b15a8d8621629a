"""``whisper-at features``: pooled states of many recordings, computed once for any number of trainings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.clips import AUDIO_SUFFIXES, Clip
from ..data.readers import class_folders, find_audio
from ..features.encode import PROTOCOLS, describe_features
from ..features.extract import extract_features
from ..features.files import DTYPES, METADATA_FILE, clip_key, split_key
from ..features.prepare import describe_unreadable, read_data
from ..features.progress import format_bytes
from ..features.store import Features
from ..features.writer import FeatureWriter, write_npz
from ..loading import load_model
from ..train.distributed import local_device
from .arguments import (
    add_data_arguments,
    add_device_arguments,
    add_workers_argument,
    data_options,
    print_error,
    print_line,
)

EXAMPLES = """\
examples:
  whisper-at features my_sounds/ --model nano.en -o my.features
  whisper-at features audioset.json --labels audioset_label.csv --model medium.en --protocol 10 -o /data/medium.en
  whisper-at features list.txt --model tiny -o tiny.features       one file a line
  whisper-at features my.features --to npz -o npz/                 as earlier recipes keep them
  whisper-at features npz/ --to shards --model medium.en --protocol 10 -o medium.en.features

A run that was stopped is resumed by the same command."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="whisper-at features",
        description="Write the pooled states of a frozen Whisper's encoder for many recordings.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_arguments(parser, "data")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the features")
    parser.add_argument("--model", help="Whisper whose encoder is used: a name, file, folder or hub id")
    add_device_arguments(parser)
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="30: windows with silence behind the end, as in transcription; 30+: these, and besides every clip among "
        "others, joined one behind the other (default, as of train); 10: clips alone, cut or padded to --seconds, as "
        "AudioSet's heads were trained. What --to converts was encoded once: 10 or 30 (its default)",
    )
    parser.add_argument("--seconds", type=float, help="length of clips under --protocol 10 (default 10)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    add_workers_argument(parser)
    parser.add_argument("--batch", type=int, default=16, help="windows that are encoded at once")
    parser.add_argument("--to", choices=("npz", "shards"), help="convert features that are there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 if a clip could not be used. Wrong arguments exit with 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    source, output = Path(args.data).expanduser(), Path(args.output).expanduser()
    if args.to == "shards" and args.protocol == "30+":
        parser.error("--to shards converts states of clips that were encoded once: --protocol 30 or 10")
    args.protocol = args.protocol or ("30" if args.to else "30+")
    if args.workers < 0 or args.batch < 1:
        parser.error("--workers must be 0 or more, and --batch 1 or more")
    if args.to != "npz" and args.model is None:
        parser.error("--model is needed: the Whisper whose encoder is used")
    if output.exists() and not output.is_dir():
        parser.error(f"{output} is a file; -o needs a folder")
    if args.to is not None:
        return _convert(parser, args, source, output)
    try:
        clips = _find_clips(source, args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    model = load_model(
        args.model, local_device(args.device), args.model_dir, head=None, compute_type=args.compute_type
    ).eval()
    try:
        metadata = describe_features(args.model, model, args.protocol, args.seconds, args.dtype)
    except ValueError as error:
        parser.error(str(error))
    unreadable = extract_features(
        clips, output, model, metadata, workers=args.workers, batch=args.batch, progress=True, log=print_line
    )
    for line in describe_unreadable(unreadable):
        print_error(line)
    features = Features.open(output, verify=False)
    n_bytes = sum(path.stat().st_size for path in output.iterdir())
    print_line(f"{len(features)} clips, {int(features.n_steps.sum())} steps, {format_bytes(n_bytes)} in {output}")
    return 1 if unreadable else 0


def _find_clips(source: Path, args: argparse.Namespace) -> list[Clip]:
    """Return the clips of labelled data, a folder of files, or a list of files."""
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
    return list(read_data(str(source), **data_options(args)).clips)


def _convert(parser: argparse.ArgumentParser, args: argparse.Namespace, source: Path, output: Path) -> int:
    """Convert shards to ``.npz`` or back."""
    try:
        features = Features.open(source)
    except (ValueError, FileNotFoundError) as error:
        parser.error(f"--to converts features: {error}")
    if args.to == "npz":
        if (output / METADATA_FILE).exists():
            parser.error(f"{output} holds features in shards; choose another folder")
        print_line(f"{write_npz(features, output)} clips in {output}")
        return 0
    model = load_model(args.model, "cpu", args.model_dir, head=None)
    try:
        metadata = describe_features(args.model, model, args.protocol, args.seconds, args.dtype)
    except ValueError as error:
        parser.error(str(error))
    if (metadata.layers, metadata.dim) != (features.metadata.layers, features.metadata.dim):
        parser.error(
            f"{source} holds states of {features.metadata.layers} layers of width {features.metadata.dim}, but "
            f"{args.model} has {metadata.layers} of {metadata.dim}"
        )
    with FeatureWriter(output, metadata) as writer:
        for i in tqdm(range(len(features)), unit="clip"):
            name, part = split_key(features.rows[i].key)
            # a name to find it by, as the audio file is not known
            clip = Clip(source.absolute() / f"{name}.from-npz{part}", ())
            if clip_key(clip) not in writer.written:
                writer.add(clip, np.asarray(features.states(i)))
    print_line(f"{len(features)} clips in {output}")
    return 0


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
