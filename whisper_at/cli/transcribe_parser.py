"""The arguments of ``whisper-at AUDIO…``, and what its ``--help`` says."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from ..formats.registry import FORMATS
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
from .reporting import TRACEBACK_VARIABLE

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
