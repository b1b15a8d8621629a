"""``whisper-at live``: words and sounds while they happen, from a microphone, a pipe or a file."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from whisper.audio import SAMPLE_RATE

from ..formats.registry import parse_formats
from ..live import Message, Stream, Transcript
from ..live.policies import POLICIES
from ..live.sources import sound_of
from ..live.terminal import LinePrinter, Screen
from ..loading import load_model
from ..tagging.rows import TagOptions
from ..writers import get_writer
from .arguments import (
    Parser,
    add_model_arguments,
    class_list,
    label_language,
    language,
    number,
    output_formats,
    positive_int,
    resolution_list,
)
from .heads import check_heads, is_no_head, no_head
from .reporting import INTERRUPTED, report

if TYPE_CHECKING:
    from ..model import WhisperAT

EXAMPLES = """\
examples:
  whisper-at live --model base                          from the microphone, until Ctrl-C
  ffmpeg -i rtsp://camera/1 -f wav - | whisper-at live - --json
  whisper-at live talk.mp3 --model tiny.en -f srt,json  a file as if it were said now, and result files at the end

Final words are plain, words that may still change are dim, sounds are in brackets."""
WITHOUT_TAGS = "for text alone, give --head none"


def build_parser() -> Parser:
    """Return the parser of ``whisper-at live``."""
    parser = Parser(
        prog="whisper-at live",
        description="Write down what is said, and what else is heard, while it happens.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    help = "an audio or video file, or - for standard input (anything that ffmpeg can read); by default the microphone"
    parser.add_argument("audio", metavar="AUDIO", nargs="?", help=help)
    help = "which one: its number or a part of its name, as `python -m sounddevice` lists them"
    parser.add_argument("--microphone", metavar="N|NAME", help=help)
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="base", help="a name, file, folder or hub id (%(default)s)")
    add_model_arguments(model)
    model.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads; by default PyTorch decides")
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--json", action="store_true", help="print everything as it becomes known, one JSON object a line")
    help = "write result files at the end: formats as of `whisper-at -f`, which takes memory for all that is said"
    add("--output_format", "-f", type=output_formats, metavar="FORMAT[,…]", help=help)
    add("--output_dir", "-o", default=".", metavar="DIR", help="folder for them (%(default)s)")
    speech = parser.add_argument_group("speech")
    add = speech.add_argument
    help = "translate writes English; tag tells sounds alone (%(default)s)"
    add("--task", default="transcribe", choices=["transcribe", "translate", "tag"], help=help)
    add("--language", type=language, metavar="LANGUAGE", help="language spoken, by name or code; by default detected")
    add("--prompt", default="", metavar="TEXT", help="text before the first words: names, and how they are written")
    help = (
        "which words are final: those that do not attend to the last moments, or that two passes agree on (%(default)s)"
    )
    add("--policy", default=POLICIES[0], choices=POLICIES, help=help)
    help = "seconds from one pass to the next, multiples of 0.02: shorter ones cost more and tell earlier"
    add("--interval", type=number, metavar="S", help=help)
    tags = parser.add_argument_group("sound tags")
    add = tags.add_argument
    help = "seconds per row of tags, multiples of 0.4 up to 30 (2, where the model has a head)"
    add("--at_time_res", type=resolution_list, metavar="S[,S]", help=help)
    add("--top_k", type=positive_int, default=5, metavar="N", help="at most so many tags a row (%(default)s)")
    add("--p_threshold", type=number, metavar="LOGIT", help="only tags and events above this logit")
    help = "language of the tags, by name or code, or a .csv of names (that of the text, if it is given)"
    add("--label_language", type=label_language, default="follow_asr", metavar="LANGUAGE", help=help)
    help = "only these classes: indices, MIDs or names, separated by ';'; may be repeated"
    add("--include_classes", type=class_list, action="extend", metavar="CLASSES", help=help)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run until the sound ends or Ctrl-C; return 0, or raise what went wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    text_alone = is_no_head(parser, args.head, args.at_low_compute)
    if text_alone and (args.at_time_res or args.task == "tag"):
        parser.error("tags need a head: leave out --head none")
    wants_tags = bool(args.head or args.at_low_compute or args.at_time_res or args.task == "tag") and not text_alone
    if wants_tags:
        check_heads(parser, args.model, args.head or ["auto"], args.at_low_compute, WITHOUT_TAGS)
    if args.microphone and args.audio:
        parser.error("--microphone is for no AUDIO")
    if args.threads:
        torch.set_num_threads(args.threads)
    formats = args.output_format
    tag_options = TagOptions(args.top_k, args.p_threshold, args.label_language, args.include_classes)
    writer = None
    if formats:
        parse_formats(formats)
        os.makedirs(args.output_dir, exist_ok=True)
        options = {name: getattr(args, name) for name in ("top_k", "p_threshold", "label_language", "include_classes")}
        writer = get_writer(formats, args.output_dir, **options)

    stream = _stream(_load(args, text_alone, wants_tags), args, tag_options)
    transcript = Transcript(stream) if writer else None
    printer = None if args.json else (Screen if sys.stdout.isatty() else LinePrinter)(sys.stdout, _label_language(args))

    def show(messages: list[Message]) -> None:
        if transcript is not None:
            transcript.add(messages)
        if printer is not None:
            printer.show(messages)
        else:
            for message in messages:
                print(json.dumps(message.to_jsonable(), ensure_ascii=False), flush=True)

    device = int(args.microphone) if (args.microphone or "").isdecimal() else args.microphone
    status = 0
    sound = sound_of(args.audio, device)
    try:
        for samples in sound:
            late = args.audio is None and len(samples) > 2 * stream.interval * SAMPLE_RATE
            with _uninterrupted():
                show(stream.feed(samples, catch_up=late))
    except KeyboardInterrupt:
        status = 0 if args.audio in (None, "-") else INTERRUPTED  # a microphone has no other end
    show(stream.finish())
    if printer is not None:
        printer.close()
    if writer is not None and transcript is not None:
        writer(transcript.result(), args.audio if args.audio not in (None, "-") else "live")
    return status


def _load(args: argparse.Namespace, text_alone: bool, wants_tags: bool) -> WhisperAT:
    model = load_model(
        args.model,
        device=args.device,
        download_root=args.model_dir,
        at_low_compute=args.at_low_compute,
        head=None if text_alone else args.head or "auto",
        compute_type=args.compute_type or "auto",
    )
    if not model.heads and not text_alone:
        if wants_tags:
            raise ValueError(no_head(args.model, WITHOUT_TAGS))
        report(f"whisper-at live: {no_head(args.model, 'there will be text alone')}")
    return model


def _stream(model: WhisperAT, args: argparse.Namespace, tag_options: TagOptions) -> Stream:
    return Stream(
        model,
        args.language,
        task=args.task,
        at_time_res=args.at_time_res or (2.0 if model.heads else None),
        policy=args.policy,
        interval=args.interval,
        prompt=args.prompt,
        tag_options=tag_options,
    )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end of this: what is broken off in the middle could not be finished."""
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def _label_language(args: argparse.Namespace) -> str:
    follows = args.label_language == "follow_asr"
    return (args.language or "en") if follows else args.label_language


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
