"""``whisper-at AUDIO…``: the ``whisper`` command that also tags sounds.

Every flag of openai-whisper's command is here with its default, and writes the same files. New flags are in
the groups "sound tags" and "model" (defect D28); without them nothing is tagged. What needs PyTorch is imported
when it is needed, so that ``--help`` comes at once.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..formats.registry import FORMATS, extension, parse_formats
from ..version import __version__
from .arguments import (
    HelpFormatter,
    Parser,
    add_model_arguments,
    caption_style,
    class_list,
    gate_threshold,
    label_language,
    language,
    model_name,
    number,
    optional_float,
    optional_int,
    output_formats,
    positive_int,
    resolution_list,
    str2bool,
)
from .heads import NO_HEAD, check_heads, is_no_head, no_head
from .outputs import output_names
from .reporting import INTERRUPTED, TRACEBACK_VARIABLE, one_line, report

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

INTRODUCTION = """\
Write down what is said in audio or video files, and what else is heard in them.

Transcription is openai-whisper's, flag for flag. Sounds (527 classes of AudioSet) come from the same pass."""

EXAMPLES = f"""\
examples:
  whisper-at talk.mp3 --model small              what `whisper` would write: txt, vtt, srt, tsv, json
  whisper-at street.wav --model small --at_time_res 10
                                                 and the sounds of every 10 seconds, on screen and in json
  whisper-at film.mkv --model small --captions sdh -f srt
                                                 captions that people can read, with [sounds]
  whisper-at interview.wav --model small --at_time_res 2 -f srt,labels,png
                                                 captions, an Audacity label track, and a picture
  whisper-at yard.wav --model base --events groups -f labels
                                                 Animal, Vehicle, Human voice … as a label track
  whisper-at forest.wav --model base --task tag
                                                 sounds alone, without text, much faster
  whisper-at night/*.wav --model base --include_classes "Dog; Siren; /m/03m9d0z"

other commands (each with --help):
  whisper-at models                              the Whispers that load by name
  whisper-at captions-check                      whether captions can be read: lines, times, speed
  whisper-at convert                             any Whisper as one .safetensors
  whisper-at train | features | evaluate | count heads for your own sounds, from frozen features
  whisper-at adapt                               adapters, LoRA, prompts … on any frozen audio encoder
  whisper-at embed | search | lineareval         embeddings from all layers of an encoder
  whisper-at study                               how noise hurts recognition, and what encoders know of it
  whisper-at live                                words and sounds while they happen, from the microphone
  whisper-at serve                               an HTTP server with OpenAI's routes, and a page
  whisper-at archive | find                      many recordings as a Parquet dataset, and what occurs in it

A file that cannot be read is reported and the rest go on; the exit status is then 1.
Set {TRACEBACK_VARIABLE}=1 to see where in the program an error arose."""


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


def build_parser() -> Parser:
    """Return the parser of ``whisper-at``; defaults and choices of upstream's flags are upstream's."""
    parser = Parser(
        prog="whisper-at",
        usage="whisper-at AUDIO... [options]",
        description=INTRODUCTION,
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("audio", metavar="AUDIO", nargs="+", help="audio or video files; - is standard input")
    version = f"whisper-at {__version__} (openai-whisper {importlib.metadata.version('openai-whisper')})"
    parser.add_argument("--version", action="version", version=version, help="print the versions and stop")
    boolean: dict[str, Any] = {"type": str2bool, "metavar": "True|False"}
    text: dict[str, Any] = {"type": str, "metavar": "TEXT"}

    group = parser.add_argument_group("model")
    add = group.add_argument
    help = "model name, file, folder (Hugging Face's, CTranslate2's) or hub id"
    add("--model", default="turbo", type=model_name, metavar="NAME", help=help)
    add_model_arguments(group)
    add("--fp16", default=True, **boolean, help="compute in half precision where the device can")
    add("--draft", metavar="NAME", help="distilled model whose tokens --model checks; with --beam_size None")
    help = "windows decoded at once, cut where it is quiet; none sees the text before it"
    add("--batch_size", type=positive_int, metavar="N", help=help)
    add("--threads", type=optional_int, default=0, metavar="N", help="CPU threads; 0 leaves it to PyTorch")

    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--output_dir", "-o", type=str, default=".", metavar="DIR", help="folder for the files")
    help = f"txt, vtt, srt, tsv, json, or all of these; {', '.join(FORMATS)}; several as srt,labels"
    add("--output_format", "-f", type=output_formats, default="all", metavar="FORMAT[,…]", help=help)
    add(
        "--verbose",
        default=True,
        **boolean,
        help="print text and sounds as they are heard; on a terminal, also the time left",
    )

    group = parser.add_argument_group(
        "sound tags",
        "Off unless one of these, --head or --at_low_compute is given;\n"
        "any of them alone means --at_time_res 10 (2 for captions), and so do formats that are made of tags:\n"
        "rows.csv and parquet 10, sed and metadata.vtt 2. --head none turns them off.",
    )
    add = group.add_argument
    add("--at_time_res", type=resolution_list, metavar="S[,S]", help="seconds per row of tags: multiples of 0.4")
    add("--top_k", type=positive_int, metavar="N", help="at most so many tags a row (default: 5)")
    add("--p_threshold", type=number, metavar="LOGIT", help="only tags above this logit (default: -1)")
    help = "language of the tags, by name or code, or a .csv of names (default: follow_asr, that of the text)"
    add("--label_language", type=label_language, metavar="LANGUAGE", help=help)
    help = "only these classes: indices, MIDs or names, separated by ';'; may be repeated"
    add("--include_classes", type=class_list, action="extend", metavar="CLASSES", help=help)
    help = "events of the most specific class (default), of all, or of groups such as Animal"
    add("--events", choices=("specific", "all", "groups"), help=help)

    group = parser.add_argument_group("speech")
    add = group.add_argument
    help = "translate writes English; tag writes sounds alone, at the encoder's speed"
    add("--task", type=str, default="transcribe", choices=["transcribe", "translate", "tag"], help=help)
    help = "language spoken, by name or code; detected if not given"
    add("--language", type=language, default=None, metavar="LANGUAGE", help=help)
    add("--initial_prompt", default=None, **text, help="text to set the scene for the first window")
    add("--carry_initial_prompt", default=False, **boolean, help="give the prompt to every window")
    add("--condition_on_previous_text", default=True, **boolean, help="prompt windows with the text before")
    help = "START,END,START,... in seconds of what to listen to; the last end may be left out"
    add("--clip_timestamps", type=str, default="0", metavar="S,S", help=help)
    help = "which audio track of a video: its number, from 1, or its language (default: ffmpeg's choice)"
    add("--audio_track", metavar="N|LANG", help=help)

    group = parser.add_argument_group("decoding")
    add = group.add_argument
    help = "0 takes the likeliest text, more samples it"
    add("--temperature", type=float, default=0, metavar="X", help=help)
    help = "samples to choose from, above temperature 0"
    add("--best_of", type=optional_int, default=5, metavar="N", help=help)
    help = "beams at temperature 0; None for none"
    add("--beam_size", type=optional_int, default=5, metavar="N", help=help)
    help = "beams wait for this many times their number of texts (1.0)"
    add("--patience", type=float, default=None, metavar="X", help=help)
    help = "exponent by which longer text is favoured; if not given, the mean over its tokens counts"
    add("--length_penalty", type=float, default=None, metavar="X", help=help)
    help = "token ids never written, separated by commas; -1 is all symbols but common punctuation"
    add("--suppress_tokens", type=str, default="-1", metavar="IDS", help=help)
    help = "added to the temperature for each new try at a window that failed; None for one try only"
    add("--temperature_increment_on_fallback", type=optional_float, default=0.2, metavar="X", help=help)
    help = "text that gzip shrinks more than this has failed (it repeats itself)"
    add("--compression_ratio_threshold", type=optional_float, default=2.4, metavar="X", help=help)
    help = "text with a lower mean log probability has failed"
    add("--logprob_threshold", type=optional_float, default=-1.0, metavar="X", help=help)
    help = "a failed window whose no-speech probability is above this is silence"
    add("--no_speech_threshold", type=optional_float, default=0.6, metavar="X", help=help)
    help = "no text where speech and singing are less likely than P (0.4)"
    add("--speech_gate", nargs="?", const=True, default=False, type=gate_threshold, metavar="P", help=help)
    help = "decode speech again that the text lacks"
    add("--missed_speech", action="store_true", help=help)

    group = parser.add_argument_group(
        "words and captions", "--captions times words by itself; all after --word_timestamps need it to be True."
    )
    add = group.add_argument
    help = "captions that people can read in srt and vtt: plain, netflix or bbc; with sounds, sdh or sdh,bbc"
    add("--captions", nargs="?", const="plain", type=caption_style, metavar="STYLE", help=help)
    add("--sound_captions", dest="captions", action="store_const", const="sdh", help="the same as --captions sdh")
    add("--word_timestamps", default=False, **boolean, help="time every word")
    add("--prepend_punctuations", default="\"'“¿([{-", **text, help="signs that join the word after them")
    help = "signs that join the word before them"
    add("--append_punctuations", default="\"'.。,，!！?？:：”)]}、", **text, help=help)
    help = "underline each word in vtt and srt while it is spoken"
    add("--highlight_words", default=False, **boolean, help=help)
    help = "characters in a line of captions"
    add("--max_line_width", type=optional_int, default=None, metavar="N", help=help)
    add("--max_line_count", type=optional_int, default=None, metavar="N", help="lines in a caption")
    help = "words in a caption, if there is no --max_line_width"
    add("--max_words_per_line", type=optional_int, default=None, metavar="N", help=help)
    help = "skip silence of more seconds than this around text that seems made up"
    add("--hallucination_silence_threshold", type=optional_float, metavar="S", help=help)
    return parser


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
