"""``whisper-at archive``: many recordings become a Parquet dataset of text, words, tags and events."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..archive.inputs import InputOptions
from ..archive.progress import Progress
from ..archive.run import ENGINES, SHARD_SIZE, transcribe_archive
from ..archive.settings import ArchiveSettings
from ..limits import DecodeLimits
from .arguments import (
    Parser,
    add_model_arguments,
    caption_style,
    language,
    model_name,
    number,
    optional_int,
    output_formats,
    positive_int,
    resolution_list,
    str2bool,
)
from .heads import check_heads, is_no_head
from .reporting import INTERRUPTED, report

EXAMPLES = """\
examples:
  whisper-at archive recordings/ -o dataset --model base           a folder, with all folders in it
  whisper-at archive list.txt calls.parquet shard-*.tar -o dataset --model base
  whisper-at archive recordings/ -o dataset --model base           again: goes on, and takes what is new
  whisper-at archive recordings/ -o dataset --model base --retry_failed
  whisper-at archive s3://bucket/calls -o dataset --model small --engine ray --address auto --workers 4
  whisper-at find dataset --word budget --sound laughter

It may be stopped at any moment, and goes on when it is called again. A recording that cannot be read has a row
with its error; the exit status is then 1."""
WITHOUT_TAGS = "for text alone, give --head none"


def build_parser() -> Parser:
    """Return the parser of ``whisper-at archive``."""
    limits = DecodeLimits()
    parser = Parser(
        prog="whisper-at archive",
        description="Transcribe and tag many recordings into a Parquet dataset, on one machine or on Ray.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    help = "folders, patterns, files, lists (.txt), tables (.csv, .tsv, .parquet), tar files, or URLs of these"
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help=help)
    parser.add_argument(
        "--output", "-o", required=True, metavar="DIR", help="folder of the dataset, or a URL of s3, gs, az …"
    )

    add = parser.add_argument_group("inputs").add_argument
    add("--column", metavar="NAME", help="column of tables that has paths or bytes (default: path, file, audio …)")
    add("--root", metavar="DIR", help="folder that paths in lists and tables are relative to (default: the list's)")
    help = "URLs in lists and tables may begin so; may be repeated"
    add("--allow_url", action="append", default=[], metavar="PREFIX", help=help)

    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, type=model_name, metavar="NAME", help="name, file, folder or hub id")
    add_model_arguments(model)
    model.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads of the model")

    add = parser.add_argument_group("text and sounds").add_argument
    add("--language", type=language, metavar="LANGUAGE", help="language spoken; detected if not given")
    add("--task", default="transcribe", choices=["transcribe", "translate"], help="(%(default)s)")
    add("--beam_size", type=optional_int, metavar="N", help="beams at temperature 0 (default: none)")
    add("--initial_prompt", metavar="TEXT", help="text to set the scene for every window")
    add("--word_timestamps", type=str2bool, default=True, metavar="True|False", help="time every word (%(default)s)")
    add("--audio_track", metavar="N|LANG", help="which audio track of videos")
    help = "seconds per row of tags: multiples of 0.4 (default: 2)"
    add("--at_time_res", type=resolution_list, metavar="S[,S]", help=help)
    help = "logit from which a class begins an event (default: the head's own, or 0)"
    add("--p_threshold", type=number, metavar="LOGIT", help=help)

    add = parser.add_argument_group("output").add_argument
    help = "files beside the tables, in DIR/captions: srt, json, … as of whisper-at; of what is done from its rows"
    add("--output_format", "-f", type=output_formats, metavar="FORMAT[,…]", help=help)
    help = "style of captions: plain, netflix, bbc, sdh"
    add("--captions", nargs="?", const="plain", type=caption_style, metavar="STYLE", help=help)
    help = "recordings in a part of the dataset (%(default)s): no more are lost where a run is killed"
    add("--shard_size", type=positive_int, default=SHARD_SIZE, metavar="N", help=help)
    add("--retry_failed", action="store_true", help="try recordings again that have a row with an error")
    add("--redo", action="store_true", help="replace rows that were made by another model or with other options")

    add = parser.add_argument_group("engine").add_argument
    add("--engine", default="local", choices=ENGINES, help="(%(default)s)")
    help = "processes, each with a model (%(default)s); on Ray, MIN,MAX lets it choose"
    add("--workers", type=worker_count, default=1, metavar="N", help=help)
    add("--batch_size", type=positive_int, default=8, metavar="N", help="windows decoded at once (%(default)s)")
    help = "threads of a worker that read and decode recordings (%(default)s)"
    add("--decode_threads", type=positive_int, default=2, metavar="N", help=help)
    add("--address", metavar="ADDRESS", help="of the Ray cluster: auto, or ray://HOST:PORT")
    add("--num_gpus", type=float, default=0.0, metavar="N", help="GPUs of a worker on Ray (%(default)g)")

    add = parser.add_argument_group(
        "limits", "Of each recording; one that goes beyond has a row with an error."
    ).add_argument
    help = "seconds of audio (%(default)g)"
    add("--max_duration", type=positive_number, default=limits.duration, metavar="S", help=help)
    help = "seconds that decoding may take (%(default)g)"
    add("--max_decode_time", type=positive_number, default=limits.time, metavar="S", help=help)
    help = "MB of memory for decoding (%(default)g)"
    add("--max_decode_memory", type=positive_number, default=limits.memory / (1 << 20), metavar="MB", help=help)
    help = "MB of a recording in a tar file, a table or at a URL (%(default)g)"
    add("--max_megabytes", type=positive_number, default=4096.0, metavar="MB", help=help)

    add = parser.add_argument_group("progress").add_argument
    add("--log", choices=["json"], help="a line of JSON on stderr for every recording, instead of a bar")
    add("--metrics", type=Path, metavar="FILE", help="keep counts there in Prometheus's text format")
    add("--quiet", action="store_true", help="no bar")
    return parser


def worker_count(text: str) -> int | tuple[int, int]:
    """Read ``4``, or ``2,8``."""
    parts = tuple(positive_int(part) for part in text.split(","))
    if len(parts) > 2 or parts[0] > parts[-1]:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor MIN,MAX")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def positive_number(text: str) -> float:
    """Read a number above 0."""
    value = number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def main(argv: Sequence[str]) -> int:
    """Make or continue a dataset; return 1 if a recording failed."""
    parser = build_parser()
    args = parser.parse_args(argv)
    text_alone = is_no_head(parser, args.head, args.at_low_compute)
    if text_alone and args.at_time_res is not None:
        parser.error("--at_time_res is for tags: leave out --head none")
    if not text_alone:
        check_heads(parser, args.model, args.head or ["auto"], args.at_low_compute, WITHOUT_TAGS)
    if args.engine != "ray" and (args.address or args.num_gpus or isinstance(args.workers, tuple)):
        parser.error("--address, --num_gpus and --workers MIN,MAX are for --engine ray")
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", "FP16 is not supported on CPU")
    progress = Progress(
        bar=not args.quiet and args.log is None, log=sys.stderr if args.log else None, metrics=args.metrics
    )
    try:
        summary = transcribe_archive(
            args.inputs,
            args.output,
            model=args.model,
            settings=_settings(args, text_alone),
            input_options=InputOptions(args.column, args.root, tuple(args.allow_url)),
            shard_size=args.shard_size,
            engine=args.engine,
            workers=args.workers,
            engine_options={"address": args.address, "num_gpus": args.num_gpus} if args.engine == "ray" else None,
            redo=args.redo,
            progress=progress,
            **_transcribe_options(args, text_alone),
        )
    except KeyboardInterrupt:
        report(f"whisper-at archive: interrupted; {progress.summary.shards} parts are written, call it again to go on")
        return INTERRUPTED
    if args.log is None:
        for line in summary.lines():
            print(line)
    return 1 if summary.failed else 0


def _settings(args: argparse.Namespace, text_alone: bool) -> ArchiveSettings:
    head = None if text_alone else args.head or ["auto"]
    return ArchiveSettings(
        args.output,
        load={
            "device": args.device,
            "download_root": args.model_dir,
            "at_low_compute": args.at_low_compute,
            "head": head[0] if head and len(head) == 1 else head,
            "compute_type": args.compute_type,
        },
        batch_size=args.batch_size,
        decode_threads=args.decode_threads,
        ahead=2 * args.batch_size,
        p_threshold=args.p_threshold,
        limits=DecodeLimits(args.max_duration, args.max_decode_time, round(args.max_decode_memory * (1 << 20))),
        max_bytes=round(args.max_megabytes * (1 << 20)),
        output_format=args.output_format,
        writer_options={"captions": args.captions} if args.captions else {},
        retry_failed=args.retry_failed,
        column=args.column,
    )


def _transcribe_options(args: argparse.Namespace, text_alone: bool) -> dict[str, Any]:
    """Return the options of `transcribe_many`, those alone that were given or have a default of this command's."""
    names = ("language", "beam_size", "initial_prompt", "audio_track", "at_time_res")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    options |= {"task": args.task, "word_timestamps": args.word_timestamps}
    if args.model.endswith(".en"):
        options["language"] = "en"
    return {**options, "at_time_res": None} if text_alone else options


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
