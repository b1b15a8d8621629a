"""``whisper-at``: the ``whisper`` command that also tags sounds.

Every flag of openai-whisper's command is here with its default, and writes the same files. New flags are in
the groups "sound tags" and "model" (defect D28); without them nothing is tagged.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE
from whisper.utils import format_timestamp, make_safe, optional_float, optional_int, str2bool
from whisper.version import __version__ as upstream_version

from .. import checkpoints
from ..checkpoints import huggingface
from ..model import COMPUTE_TYPES, WhisperAT, load_model
from ..suggest import did_you_mean
from ..tagging.captions import CAPTION_RESOLUTION
from ..tagging.labels import find_classes
from ..tagging.listeners import attached_names
from ..tagging.tagger import AUTO_RESOLUTION
from ..tagging.timeline import resolutions, steps_to_seconds
from ..version import __version__
from ..writers import CAPTIONS, get_writer, own_rows, tag_rows

TRACEBACK_VARIABLE = "WHISPER_AT_TRACEBACK"
LANGUAGE_CHOICES = sorted(LANGUAGES.keys()) + sorted(name.title() for name in TO_LANGUAGE_CODE)
SUBCOMMANDS = {
    "convert": ("cli.convert", ""),
    "features": ("cli.features", "whisper-at[train]"),
    "train": ("cli.train", "whisper-at[train]"),
    "evaluate": ("cli.evaluate", "whisper-at[train]"),
    "count": ("cli.count", "whisper-at[train]"),
    "study": ("cli.study", "whisper-at[train]"),
    "adapt": ("cli.adapt", "whisper-at[adapt]"),
    "embed": ("cli.embed", "whisper-at[adapt]"),
    "search": ("cli.search", "whisper-at[adapt]"),
    "lineareval": ("cli.lineareval", "whisper-at[adapt]"),
    "serve": ("cli.serve", "whisper-at[serve]"),
}
"""Their modules, imported when called, and the extra that brings what they need."""
TAG_OPTIONS = ("top_k", "p_threshold", "label_language", "include_classes")
SEQUENTIAL_OPTIONS = ("condition_on_previous_text", "carry_initial_prompt", "hallucination_silence_threshold")
WORD_OPTIONS = ("highlight_words", "max_line_count", "max_line_width", "max_words_per_line")

INTRODUCTION = """\
Write down what is said in audio or video files, and what else is heard in them.

Transcription is openai-whisper's, flag for flag. Sounds (527 classes of AudioSet) come from the same pass."""

EXAMPLES = f"""\
examples:
  whisper-at talk.mp3 --model small              what `whisper` would write: txt, vtt, srt, tsv, json
  whisper-at street.wav --model small --at_time_res 10
                                                 and the sounds of every 10 seconds, on screen and in json
  whisper-at street.wav --model medium.en --at_time_res 0.4,10 --top_k 3
  whisper-at film.mkv --model small --sound_captions -f srt
                                                 captions with [sounds]
  whisper-at night/*.wav --model base --include_classes "Dog; Siren; /m/03m9d0z"

other commands (each with --help):
  whisper-at convert                             any Whisper as one .safetensors
  whisper-at train | features | evaluate | count heads for your own sounds, from frozen features
  whisper-at adapt                               adapters, LoRA, prompts … on any frozen audio encoder
  whisper-at embed | search | lineareval         embeddings from all layers of an encoder
  whisper-at study                               how noise hurts recognition, and what encoders know of it
  whisper-at serve                               an HTTP server with OpenAI's routes, and a page

A file that cannot be read is reported and the rest go on; the exit status is then 1.
Set {TRACEBACK_VARIABLE}=1 to see where in the program an error arose."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 if any file failed. Wrong arguments exit with status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if _is_subcommand(argv):
        try:
            return importlib.import_module(f"whisper_at.{SUBCOMMANDS[argv[0]][0]}").main(argv[1:])
        except ImportError as error:
            _report(
                f"whisper-at {argv[0]}: error: {_one_line(error)}; install what it needs: {SUBCOMMANDS[argv[0]][1]}"
            )
            return 1
        except Exception as error:
            _report(f"whisper-at {argv[0]}: error: {_one_line(error)}")
            return 1
    parser = build_parser()
    args = vars(parser.parse_args(argv))
    _refuse_what_cannot_work(parser, args)

    model_name: str = args.pop("model")
    audio: list[str] = args.pop("audio")
    if model_name.endswith(".en") and args["language"] not in {"en", "English"}:
        if args["language"] is not None:
            message = f"{model_name} knows English only; --language {args['language']} is taken as English"
            warnings.warn(message, stacklevel=2)
        args["language"] = "en"
    args["temperature"] = _temperatures(args.pop("temperature"), args.pop("temperature_increment_on_fallback"))
    tag_options = {name: args.pop(name) for name in TAG_OPTIONS}
    writer_options = {name: args.pop(name) for name in WORD_OPTIONS}
    output_dir: str = args.pop("output_dir")
    threads = args.pop("threads")
    if threads is not None and threads > 0:
        torch.set_num_threads(threads)

    try:
        os.makedirs(output_dir, exist_ok=True)
        captions = args.pop("sound_captions")
        writer = get_writer(args.pop("output_format"), output_dir, **tag_options, sound_captions=captions)
        model = load_model(
            model_name,
            device=args.pop("device"),
            download_root=args.pop("model_dir"),
            at_low_compute=args.pop("at_low_compute"),
            head=_one_or_several(args.pop("head")) if args["at_time_res"] else None,  # nothing to tag, none to fetch
            compute_type=args.pop("compute_type"),
            draft=args.pop("draft"),
        )
    except Exception as error:  # of many types: a missing GPU alone has three
        _report(f"{parser.prog}: error: {_one_line(error)}")
        return 1
    args.pop("head", None)

    failed = 0
    for path, result in _results(model, audio, args):
        try:
            if isinstance(result, Exception):
                raise result
            if args["verbose"]:
                for line in tag_lines(result, **tag_options):
                    print(make_safe(line))
            writer(result, path, **writer_options)
        except Exception as error:
            failed += 1
            _report(f"Skipping {path} due to {type(error).__name__}: {_one_line(error)}")
    return 1 if failed else 0


def _one_or_several(heads: list[str]) -> str | list[str]:
    return heads[0] if len(heads) == 1 else heads


def _results(model: WhisperAT, audio: Sequence[str], options: dict[str, Any]) -> Iterator[tuple[str, dict | Exception]]:
    """Every file with its result or with what went wrong."""
    if options["batch_size"] is not None:
        batched = {name: value for name, value in options.items() if name not in SEQUENTIAL_OPTIONS}
        try:
            results = model.transcribe_many(audio, **batched)  # type: ignore[misc]
        except Exception as error:  # what no file could be done with
            results = ((path, error) for path in audio)
        yield from results  # type: ignore[misc]
        return
    for path in audio:
        try:
            yield path, model.transcribe(path, **options)
        except Exception as error:
            yield path, error


def _is_subcommand(argv: Sequence[str]) -> bool:
    """Whether this is a subcommand; a recording that happens to be named so is still a recording."""
    return argv[:1] != [] and argv[0] in SUBCOMMANDS and (os.path.isdir(argv[0]) or not os.path.lexists(argv[0]))


def tag_lines(result: Mapping[str, Any], **tag_options) -> Iterator[str]:
    """Sounds as they are shown: ``[00:10.000 --> 00:20.000] Dog (2.31), Animal (2.10)``, one line a row.

    Rows without tags are left out, several resolutions come one after the other under a heading each, and a
    result without tags has no lines. Attached heads follow under their names, with probabilities. Keyword
    arguments are those of :func:`whisper_at.writers.tag_rows`.
    """
    shared = {name: value for name, value in tag_options.items() if name in ("top_k", "p_threshold")}
    found = {} if result.get("audio_tag") is None else {"Sounds": tag_rows(result, **tag_options)}
    found |= {name: own_rows(result, name, **shared)["rows"] for name in attached_names(result)}
    for heading, rows in found.items():
        several = rows if isinstance(rows, dict) else {result["at_time_res"]: rows}
        for seconds, members in several.items():
            if len(several) > 1:
                yield f"{heading} every {seconds:g} s:"
            elif heading != "Sounds":
                yield f"{heading}:"
            for row in members:
                if row["tags"]:
                    start, end = format_timestamp(row["start"]), format_timestamp(row["end"])
                    score = "logit" if heading == "Sounds" else "probability"
                    tags = ", ".join(f"{tag['name']} ({tag[score]:.2f})" for tag in row["tags"])
                    yield f"[{start} --> {end}] {tags}"


# --- the parser ---------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # With forty flags, the usage that argparse prints first would bury the message.
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34)

    def _get_help_string(self, action: argparse.Action) -> str:
        is_switch = action.default is None or action.nargs == 0
        return (action.help or "") if is_switch else super()._get_help_string(action) or ""


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``whisper-at``; defaults and choices of upstream's flags are upstream's."""
    parser = _Parser(
        prog="whisper-at",
        usage="whisper-at AUDIO... [options]",
        description=INTRODUCTION,
        epilog=EXAMPLES,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("audio", metavar="AUDIO", nargs="+", help="audio or video files")
    version = f"whisper-at {__version__} (openai-whisper {upstream_version})"
    parser.add_argument("--version", action="version", version=version, help="print the versions and stop")
    boolean: dict[str, Any] = {"type": str2bool, "metavar": "True|False"}
    text: dict[str, Any] = {"type": str, "metavar": "TEXT"}

    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--model", default="turbo", type=_model, metavar="NAME", help="model name, file, Hugging Face folder or id")
    add("--model_dir", type=str, default=None, metavar="DIR", help="where models are kept (~/.cache/whisper)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="PyTorch device to compute on")
    add("--fp16", default=True, **boolean, help="compute in half precision where the device can")
    add("--compute_type", choices=COMPUTE_TYPES, help="precision by name, instead of --fp16")
    add("--draft", metavar="NAME", help="distilled model whose guesses --model checks; with --beam_size None")
    help = "windows decoded at once, cut where it is quiet; none sees the text before it"
    add("--batch_size", type=_positive, metavar="N", help=help)
    add("--threads", type=optional_int, default=0, metavar="N", help="CPU threads; 0 leaves it to PyTorch")

    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--output_dir", "-o", type=str, default=".", metavar="DIR", help="folder for the files")
    formats = ["txt", "vtt", "srt", "tsv", "json", "all"]
    help = "txt, vtt, srt, tsv, json or all"
    add("--output_format", "-f", type=str, default="all", choices=formats, metavar="FORMAT", help=help)
    add("--verbose", default=True, **boolean, help="print text and sounds as they are found")

    group = parser.add_argument_group(
        "sound tags", "Off unless one of these is given; any of them alone means --at_time_res 10 (2 for captions)."
    )
    add = group.add_argument
    add("--at_time_res", type=_resolutions, metavar="S[,S]", help="seconds per row of tags: multiples of 0.4")
    add("--top_k", type=_positive, metavar="N", help="at most so many tags a row (default: 5)")
    add("--p_threshold", type=_number, metavar="LOGIT", help="only tags above this logit (default: -1)")
    help = "language of the tags, by name or code (default: follow_asr, that of the text)"
    add("--label_language", type=_label_language, metavar="LANGUAGE", help=help)
    help = "only these classes: indices, MIDs or names, separated by ';'; may be repeated"
    add("--include_classes", type=_classes, action="extend", metavar="CLASSES", help=help)
    add("--sound_captions", action="store_true", help="show sounds in srt and vtt, in brackets")
    help = "tagging head, if not the one published for the model (auto); repeat it for several, also of your own sounds"
    add("--head", metavar="FILE|NAME", action="append", help=help)
    add("--at_low_compute", action="store_true", help="take the small published head (small to large-v2)")

    group = parser.add_argument_group("speech")
    add = group.add_argument
    add("--task", type=str, default="transcribe", choices=["transcribe", "translate"], help="translate writes English")
    help = "language spoken, by name or code; detected if not given"
    add("--language", type=_language, default=None, choices=LANGUAGE_CHOICES, metavar="LANGUAGE", help=help)
    add("--initial_prompt", default=None, **text, help="text to set the scene for the first window")
    add("--carry_initial_prompt", default=False, **boolean, help="give the prompt to every window")
    add("--condition_on_previous_text", default=True, **boolean, help="prompt windows with the text before")
    help = "START,END,START,... in seconds of what to listen to; the last end may be left out"
    add("--clip_timestamps", type=str, default="0", metavar="S,S", help=help)

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

    group = parser.add_argument_group("words and captions", "All but the first need --word_timestamps True.")
    add = group.add_argument
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


def _refuse_what_cannot_work(parser: argparse.ArgumentParser, args: dict[str, Any]) -> None:
    """Settle what arguments mean together; exits with status 2 before anything is loaded."""
    defaults = dict(zip(TAG_OPTIONS, (5, None, "follow_asr", None)), head=["auto"])
    wanted = args["at_low_compute"] or any(args[name] is not None for name in defaults)
    if args["at_time_res"] is None and (wanted or args["sound_captions"]):
        args["at_time_res"] = CAPTION_RESOLUTION if args["sound_captions"] else AUTO_RESOLUTION
    args.update({name: value for name, value in defaults.items() if args[name] is None})

    if args["at_time_res"] is not None:
        _refuse_missing_head(parser, args)
    if not args["word_timestamps"]:
        for option in WORD_OPTIONS:
            if args[option]:
                parser.error(f"--{option} requires --word_timestamps True")
    if args["max_line_count"] and not args["max_line_width"]:
        warnings.warn("--max_line_count has no effect without --max_line_width", stacklevel=3)
    if args["max_words_per_line"] and args["max_line_width"]:
        warnings.warn("--max_words_per_line has no effect with --max_line_width", stacklevel=3)
    if args["sound_captions"] and args["output_format"] not in (*CAPTIONS, "all"):
        parser.error(f"--sound_captions is for {' and '.join(CAPTIONS)}, not -f {args['output_format']}")
    if args["batch_size"] is not None and args["hallucination_silence_threshold"] is not None:
        parser.error("--hallucination_silence_threshold needs one window after the other: leave out --batch_size")
    if args["draft"] is not None and (args["beam_size"] is not None or (args["batch_size"] or 1) > 1):
        parser.error("--draft guesses for one greedy text at a time: add --beam_size None, leave out --batch_size")
    increment = args["temperature_increment_on_fallback"]
    if increment is not None and not increment > 0:
        parser.error("--temperature_increment_on_fallback must be above 0, or None for one try only")
    if increment is not None and not args["temperature"] <= 1:
        parser.error("--temperature above 1 needs --temperature_increment_on_fallback None: tries end at 1")


def _refuse_missing_head(parser: argparse.ArgumentParser, args: dict[str, Any]) -> None:
    """Tags need a head; whether a model of a known name has one is known without loading or fetching anything."""
    model, low = args["model"], args["at_low_compute"]
    if low and "auto" not in args["head"]:
        parser.error("--at_low_compute chooses among published heads; leave it out where --head is given")
    for head in args["head"]:
        if head == "auto":
            try:
                published = checkpoints.head_name(model, low)
            except ValueError as error:
                parser.error(_one_line(error))
            if published is None and model in checkpoints.available_models():
                parser.error(f"no tagging head is published for {model}: take another --model, or give --head FILE")
        elif head not in checkpoints.available_heads() and not os.path.isfile(os.path.expanduser(head)):
            hint = did_you_mean(head, checkpoints.available_heads())
            parser.error(f"argument --head: {head!r} is neither a file nor a known name; {hint}")


def _temperatures(temperature: float, increment: float | None) -> tuple[float, ...] | list[float]:
    """The temperatures to try on a window, one after the other."""
    return [temperature] if increment is None else tuple(np.arange(temperature, 1.0 + 1e-6, increment))


# --- argument types: each refuses with a message that says what would do -----------------------------------


def _model(name: str) -> str:
    names = checkpoints.available_models()
    if name in names or os.path.exists(os.path.expanduser(name)) or huggingface.is_hub_id(name):
        return name
    raise argparse.ArgumentTypeError(f"{name!r} is neither a file nor a known name; {did_you_mean(name, names)}")


def _language(name: str) -> str:
    if name not in LANGUAGE_CHOICES:
        raise argparse.ArgumentTypeError(f"Whisper knows no language {name!r}; {did_you_mean(name, LANGUAGE_CHOICES)}")
    return name


def _label_language(name: str) -> str:
    code = name.lower()
    return name if name == "follow_asr" or code in LANGUAGES or code in TO_LANGUAGE_CODE else _language(name)


def _resolutions(text: str) -> float | list[float]:
    try:
        seconds = [steps_to_seconds(steps) for steps in resolutions([_number(part) for part in text.split(",")])]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return seconds[0] if len(seconds) == 1 else seconds


def _classes(text: str) -> list[int]:
    names = [name.strip() for name in text.split(";") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no class is named")
    try:
        return find_classes(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


# --- reporting ----------------------------------------------------------------------------------------------


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _report(message: str) -> None:
    """One line on stderr, after the traceback of the error at hand for those who asked for it."""
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    sys.stdout.flush()
    print(make_safe(message), file=sys.stderr, flush=True)
