"""``whisper-at AUDIO…``: the ``whisper`` command that also tags sounds.

Every flag of openai-whisper's command is here with its default, and writes the same files. New flags are in
the groups "sound tags" and "model" (defect D28); without them nothing is tagged. What needs PyTorch is imported
when it is needed, so that ``--help`` comes at once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..formats.registry import FORMATS, extension, parse_formats
from .arguments import Parser
from .heads import NO_HEAD, check_heads, is_no_head, no_head
from .outputs import output_names
from .reporting import INTERRUPTED, one_line, report
from .transcribe_parser import build_parser

if TYPE_CHECKING:
    from ..model import WhisperAT
    from ..tagging.rows import TagOptions

TAG_DEFAULTS: dict[str, Any] = {
    "top_k": 5,
    "p_threshold": None,
    "label_language": "follow_asr",
    "include_classes": None,
    "events": "specific",
}
NEED_CARE_IN_BATCHES = ("condition_on_previous_text", "carry_initial_prompt")
"""Flags of which it matters to batches whether they were given: no default of theirs is filled in by the parser."""
OF_TAGS = ("speech_gate", "missed_speech")
"""Flags that need a head, whether or not tags are written."""
STDIN = "-"
WORD_OPTIONS = ("highlight_words", "max_line_count", "max_line_width", "max_words_per_line")


def main(argv: Sequence[str]) -> int:
    """Transcribe files; return 0, or 1 if any file failed. Wrong arguments exit with status 2."""
    parser = build_parser()
    argv = [argument for argument in argv if argument != "--audio"]  # which other programs have before the files
    args = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(NEED_CARE_IN_BATCHES))))
    import numpy as np
    import torch

    from .. import loading
    from ..audio import BufferedRecording, readable
    from ..decoding import resolve_language
    from ..options import warn_of_unused
    from ..speech_gate import SpeechGate
    from ..tagging.rows import TagOptions
    from ..writers import get_writer

    warn_of_unused(args)
    args |= {name: parser.get_default(name) for name in NEED_CARE_IN_BATCHES if args[name] is None}
    audio: list[str] = args.pop("audio")
    if audio.count(STDIN) > 1:
        parser.error("standard input (-) can be read once")
    without_tags = _check_arguments(parser, args)
    model_name: str = args.pop("model")
    if model_name.endswith(".en") and args["language"] != "en":
        if args["language"] is not None:
            message = f"{model_name} knows English only; --language {args['language']} is taken as English"
            warnings.warn(message, stacklevel=3)
        args["language"] = "en"
    temperature, increment = args["temperature"], args.pop("temperature_increment_on_fallback")
    if increment is None:
        args["temperature"] = [temperature]
    else:
        args["temperature"] = tuple(np.arange(temperature, 1.0 + 1e-6, increment))
    tag_options = {name: args.pop(name) for name in TAG_DEFAULTS}
    word_options = {name: args.pop(name) for name in WORD_OPTIONS}
    load_options = {
        "device": args.pop("device"),
        "download_root": args.pop("model_dir"),
        "at_low_compute": args.pop("at_low_compute"),
        "compute_type": args.pop("compute_type"),
        "draft": args.pop("draft"),
    }
    heads: list[str] = args.pop("head")
    if not (args["at_time_res"] or args["speech_gate"] or args["missed_speech"]):  # no head is fetched
        load_options["head"] = None
    else:
        load_options["head"] = heads[0] if len(heads) == 1 else heads
    output_dir, output_format, captions = (args.pop(n) for n in ("output_dir", "output_format", "captions"))
    # With sounds, the timeline is printed here, window by window; of batches, at the end of each recording.
    timeline_options = TagOptions(**tag_options) if args["at_time_res"] and args["verbose"] else None
    if args["at_time_res"]:
        args["event_rows"] = True
    threads = args.pop("threads")
    if threads is not None and threads > 0:
        torch.set_num_threads(threads)
    if args["task"] != "tag":
        _check_options(parser, args)

    try:
        output_dir = os.path.expanduser(output_dir)
        os.makedirs(output_dir, exist_ok=True)
        writer = get_writer(output_format, output_dir, **tag_options, captions=captions)
        model = loading.load_model(model_name, **load_options)
        _check_english_only(model, model_name, args)
        args["language"], args["task"] = resolve_language(model, args["language"], args["task"])
        if args["at_time_res"] and not model.heads:
            raise ValueError(no_head(model_name, without_tags))
        SpeechGate(model, args["speech_gate"], args["missed_speech"])  # whether its head knows speech
        recordings: list[Any] = [
            BufferedRecording(sys.stdin.buffer, "standard input") if path == STDIN else path for path in audio
        ]
    except Exception as error:  # of many types: a missing GPU alone has three
        report(f"{parser.prog}: error: {one_line(error)}")
        return 1

    endings = [extension(name) for name in parse_formats(output_format)]
    names = output_names([path if path != STDIN else "stdin" for path in audio], endings)
    for path, name in names.items():
        report(f"{parser.prog}: results of {path} are named {name}, as another recording has its name")
    written = failed = 0
    try:
        for recording, result in _transcribe_files(model, recordings, args, timeline_options):
            path = "stdin" if isinstance(recording, BufferedRecording) else recording
            try:
                if isinstance(result, Exception):
                    raise result
                heard = readable(recording, args["audio_track"])
                # the writer cuts off what follows the last dot
                writer(result, f"{names[path]}." if path in names else path, audio=heard, **word_options)
                written += 1
            except Exception as error:
                failed += 1
                report(f"Skipping {recording} due to {type(error).__name__}: {one_line(error)}")
    except KeyboardInterrupt:
        report(f"{parser.prog}: interrupted; {written} of {len(audio)} recordings are transcribed and written")
        return INTERRUPTED
    return 1 if failed else 0


def _check_english_only(model: WhisperAT, name: str, args: Mapping[str, Any]) -> None:
    """Raise ValueError if a model that turns out to know English only is asked for more.

    Of a model whose name says so, openai-whisper's command warns, and so does this one.
    """
    if model.is_multilingual or name.endswith(".en"):
        return
    asked = f"--language {args['language']}" if args["language"] not in (None, "en") else ""
    asked = asked or ("--task translate" if args["task"] == "translate" else "")
    if asked:
        raise ValueError(f"{name} knows English only: leave out {asked}, or take a multilingual model")


def _transcribe_files(
    model: WhisperAT, audio: Sequence[Any], options: dict[str, Any], timeline_options: TagOptions | None
) -> Iterator[tuple[Any, dict[str, Any] | Exception]]:
    """Every file with its result or with what went wrong; words and sounds are shown as `timeline_options` say."""
    from ..options import SEQUENTIAL_OPTIONS
    from .timeline import Screen, Timeline

    is_shown = options["verbose"]
    if options["batch_size"] is not None and options["task"] != "tag":
        batched = {name: value for name, value in options.items() if name not in SEQUENTIAL_OPTIONS}
        if timeline_options is not None:
            batched["verbose"] = False  # a bar for all recordings, which take turns
        try:
            for path, outcome in model.transcribe_many(audio, **batched):
                yield path, _shown(outcome, timeline_options)
        except Exception as error:  # what no file could be done with
            yield from ((path, error) for path in audio)
        return
    hear: Callable[..., dict[str, Any]] = model.transcribe
    says_language = options["language"] is None and model.is_multilingual
    if options["task"] == "tag":
        names = ("at_time_res", "clip_timestamps", "batch_size", "verbose", "audio_track", "event_rows")
        hear, options, says_language = model.tag, {name: options[name] for name in names}, False
    if timeline_options is not None:
        options = {**options, "verbose": None}
    for i, path in enumerate(audio, 1):
        timeline = None if timeline_options is None else Timeline(timeline_options)
        number = f"{i} of {len(audio)}: " if len(audio) > 1 else ""
        with Screen(timeline, number, says_language) as screen:
            try:
                result = hear(path, **options, on_progress=screen.update if is_shown else None)
                screen.finish(result)
                outcome = result
            except Exception as error:
                outcome = error
        yield path, outcome


def _shown(result: dict[str, Any] | Exception, options: TagOptions | None) -> dict[str, Any] | Exception:
    """Print the timeline of a result, if there are options for it; return the result, or why that failed."""
    from .timeline import Screen, Timeline

    if options is not None and not isinstance(result, Exception):
        try:
            Screen(Timeline(options)).finish(result)
        except Exception as error:
            return error
    return result


# --- arguments ----------------------------------------------------------------------------------------------


def _check_arguments(parser: Parser, args: dict[str, Any]) -> str:
    """Settle what arguments mean together, and return how to do without tags.

    Exits with status 2 before anything is loaded.
    """
    from ..captioning.sounds import CAPTION_RESOLUTION
    from ..captioning.styles import SDH, parse_style
    from ..tagging.tagger import AUTO_RESOLUTION
    from ..writers import CAPTION_FORMATS

    defaults = {**TAG_DEFAULTS, "head": ["auto"]}
    formats = parse_formats(args["output_format"])
    made_of_tags = {name for name in formats if name in FORMATS and FORMATS[name].at_time_res is not None}
    captioned = [*CAPTION_FORMATS, *(name for name in FORMATS if FORMATS[name].is_captions)]
    if args["task"] == "tag":
        for option in ("word_timestamps", "initial_prompt", "draft", *OF_TAGS):
            if args[option]:
                parser.error(f"--{option} is for text, which --task tag does not write")
        if args["captions"] is None and not made_of_tags >= {*formats} - {"json"}:
            args["captions"] = SDH
    if is_no_head(parser, args["head"], args["at_low_compute"]):
        if made_of_tags:
            parser.error(f"-f {','.join(sorted(made_of_tags))} is made of tags: leave out --head {NO_HEAD}")
        for option in OF_TAGS:
            if args[option]:
                parser.error(f"--{option} reads the tags: leave out --head {NO_HEAD}")
        _leave_out_tags(parser, args)
    with_sounds = args["captions"] is not None and parse_style(args["captions"])[1]
    switches = ["at_low_compute"] if args["at_low_compute"] else []
    switches += ["captions"] if with_sounds else []
    switches += [f"output_format {','.join(sorted(made_of_tags))}"] if made_of_tags else []
    wanted = [name for name in ("at_time_res", *defaults) if args[name] is not None] + switches
    gates = [name for name in OF_TAGS if args[name]]
    without_tags = f"to transcribe without tags, leave out {', '.join(f'--{name}' for name in wanted + gates)}"
    if args["head"] is None and not gates and not args["at_low_compute"]:
        without_tags += f" or add --head {NO_HEAD}"
    if args["task"] == "tag":
        without_tags = "to transcribe without tags, leave out --task tag"
    if args["at_time_res"] is None and (wanted or args["task"] == "tag"):
        suited = [FORMATS[name].at_time_res or AUTO_RESOLUTION for name in made_of_tags]
        args["at_time_res"] = CAPTION_RESOLUTION if with_sounds else min(suited, default=AUTO_RESOLUTION)
    args.update({name: value for name, value in defaults.items() if args[name] is None})

    if args["at_time_res"] is not None or gates:
        check_heads(parser, args["model"], args["head"], args["at_low_compute"], without_tags)
    for option in WORD_OPTIONS if args["captions"] else ():
        if args[option]:
            parser.error(f"--{option} is for files without --captions, whose style decides on lines")
    if not args["word_timestamps"]:
        for option in WORD_OPTIONS:
            if args[option]:
                parser.error(f"--{option} requires --word_timestamps True")
        all_captions = all(name in FORMATS and FORMATS[name].is_captions for name in formats)
        args["word_timestamps"] = bool(args["captions"] or all_captions) and args["task"] != "tag"
    if args["max_line_count"] and not args["max_line_width"]:
        warnings.warn("--max_line_count has no effect without --max_line_width", stacklevel=4)
    if args["max_words_per_line"] and args["max_line_width"]:
        warnings.warn("--max_words_per_line has no effect with --max_line_width", stacklevel=4)
    if args["captions"] and not {*captioned} & {*formats} and args["task"] != "tag":
        parser.error(
            f"--captions is for {', '.join(captioned[:-1])} and {captioned[-1]}, not -f {args['output_format']}"
        )
    if args["draft"] is not None and (args["beam_size"] is not None or (args["batch_size"] or 1) > 1):
        parser.error("--draft is for one greedy text at a time: add --beam_size None, leave out --batch_size")
    increment = args["temperature_increment_on_fallback"]
    if increment is not None and not increment > 0:
        parser.error("--temperature_increment_on_fallback must be above 0, or None for one try only")
    if increment is not None and not args["temperature"] <= 1:
        parser.error("--temperature above 1 needs --temperature_increment_on_fallback None: tries end at 1")
    return without_tags


def _leave_out_tags(parser: Parser, args: dict[str, Any]) -> None:
    """Take back what asks for tags, as ``--head none`` does; warn of what thereby has no effect."""
    from ..captioning.styles import PLAIN, SDH, parse_style

    if args["task"] == "tag":
        parser.error(f"--task tag writes the sounds that a head finds: leave out --head {NO_HEAD}")
    given = [name for name in ("at_time_res", *TAG_DEFAULTS) if args[name] is not None]
    if args["captions"] is not None and parse_style(args["captions"])[1]:
        styles = [style for style in args["captions"].split(",") if style.strip() != SDH]
        args["captions"] = ",".join(styles) or PLAIN
    if given:
        names = ", ".join(f"--{name}" for name in given)
        warnings.warn(f"{names} {'has' if len(given) == 1 else 'have'} no effect with --head {NO_HEAD}", stacklevel=5)
    args |= {**dict.fromkeys(given), "head": None}


def _check_options(parser: Parser, args: Mapping[str, Any]) -> None:
    """Refuse options of `transcribe` that exclude each other, in the words of the command line."""
    from ..options import TranscribeOptions

    try:
        TranscribeOptions.from_keywords(**args)
    except ValueError as error:
        names = "|".join(option.name for option in fields(TranscribeOptions))
        parser.error(re.sub(rf"\b({names})\b", r"--\1", one_line(error)))


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
