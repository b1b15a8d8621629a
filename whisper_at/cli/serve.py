"""``whisper-at serve``: an HTTP server with OpenAI's routes for transcription, which also tells what else sounds."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import uvicorn

from ..loading import load_model
from ..model import WhisperAT
from ..serve import Limits, create_app
from .arguments import Parser, add_model_arguments, positive_int
from .heads import check_heads, is_no_head, no_head
from .reporting import report

EXAMPLES = """\
examples:
  whisper-at serve --model small                        then open http://127.0.0.1:8000
  whisper-at serve --model base --head auto --head birds.safetensors
  whisper-at serve --model base --model tiny.en --head base=birds.safetensors
  curl http://127.0.0.1:8000/v1/audio/transcriptions \\
        -F file=@street.ogg -F response_format=verbose_json -F at_time_res=2

Programs for OpenAI's API need its address alone: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none").
Whoever reaches the address may use it, unless --api_key is given."""


WITHOUT_TAGS = "to serve text alone, give --head none"
KEYS_VARIABLE = "WHISPER_AT_API_KEY"
"""Environment variable with keys, parted by commas: there, other users of the machine do not see them."""
DEFAULT_BATCH = 8


def build_parser() -> Parser:
    """Return the parser of ``whisper-at serve``."""
    limits = Limits()
    parser = Parser(
        prog="whisper-at serve",
        description="Serve a Whisper and its heads by HTTP: OpenAI's routes for transcription, and a page.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("model")
    help = "a name, file, folder or hub id; may be repeated: requests choose by it, and have the first by default"
    model.add_argument("--model", required=True, action="append", help=help)
    help = "refuse requests for OpenAI's whisper-1, gpt-4o-transcribe and so on, which else mean the first model"
    model.add_argument("--strict_models", action="store_true", help=help)
    add_model_arguments(model)
    model.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads; by default PyTorch decides")
    decoding = parser.add_argument_group("decoding")
    help = (
        "windows transcribed at once, of several recordings where there are several, cut where it is quiet "
        "(%(default)s). 0: every recording by itself, each window with the text before it as a prompt, as "
        "openai-whisper does"
    )
    decoding.add_argument("--batch_size", type=_batch_size, default=DEFAULT_BATCH, metavar="N", help=help)
    decoding.add_argument("--beam_size", type=positive_int, metavar="N", help="beams at temperature 0 (default: none)")
    server = parser.add_argument_group("server")
    help = "address to listen at (%(default)s: this machine alone)"
    server.add_argument("--host", default="127.0.0.1", help=help)
    server.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    help = "largest request in MB (%(default)g)"
    server.add_argument("--max_megabytes", type=float, default=limits.megabytes, metavar="N", help=help)
    help = "longest recording in minutes (%(default)g)"
    server.add_argument("--max_minutes", type=float, default=limits.minutes, metavar="N", help=help)
    help = "recordings that may wait while others are transcribed (%(default)s)"
    server.add_argument("--max_waiting", type=int, default=limits.waiting, metavar="N", help=help)
    help = "as many of one client (%(default)s)"
    server.add_argument("--max_per_client", type=int, default=limits.waiting_per_client, metavar="N", help=help)
    help = "realtime sessions at once (%(default)s)"
    server.add_argument("--max_live", type=int, default=limits.live, metavar="N", help=help)
    help = f"key that requests have to show as Authorization: Bearer KEY; may be repeated, or stand in {KEYS_VARIABLE}"
    server.add_argument("--api_key", action="append", metavar="KEY", help=help)
    help = "origin whose pages may use the server from a browser, https://example.org; * is any; may be repeated"
    server.add_argument("--cors", action="append", metavar="ORIGIN", help=help)
    server.add_argument("--quiet", action="store_true", help="say only what is wrong")
    return parser


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted. What has been accepted is finished then."""
    parser = build_parser()
    args = parser.parse_args(argv)
    names = [Path(model).name if os.path.exists(model) else model for model in args.model]
    if len(set(names)) < len(names):
        parser.error(f"--model: two models would have one name: {', '.join(names)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    heads = {name: _heads_for(name, names, args.head) for name in names}
    models = {name: _load(parser, args, model, heads[name]) for name, model in zip(names, args.model)}
    options = {"batch_size": args.batch_size or None, "beam_size": args.beam_size}
    first, *others = models
    app = create_app(
        models[first],
        first,
        Limits(args.max_megabytes, args.max_minutes, args.max_waiting, args.max_per_client, args.max_live),
        more_models={name: models[name] for name in others},
        strict_models=args.strict_models,
        cors=args.cors or (),
        api_keys=[*(args.api_key or ()), *_keys_of_environment()],
        **{name: value for name, value in options.items() if value is not None},
    )
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning" if args.quiet else "info")
    return 0


def _heads_for(name: str, names: Sequence[str], heads: Sequence[str] | None) -> list[str]:
    """Return the heads of one of several models: those of ``NAME=HEAD``, and those without a name, which all get."""
    found = []
    for head in heads or ():
        owner, _, rest = head.partition("=")
        if owner not in names:
            found.append(head)
        elif owner == name:
            found.append(rest)
    return found


def _load(parser: Parser, args: argparse.Namespace, model: str, heads: list[str]) -> WhisperAT:
    """Load a model with its heads, or end with what is wrong with them."""
    text_alone = is_no_head(parser, heads, args.at_low_compute)
    if (heads or args.at_low_compute) and not text_alone:
        check_heads(parser, model, heads or ["auto"], args.at_low_compute, WITHOUT_TAGS)
    loaded = load_model(
        model,
        device=args.device,
        download_root=args.model_dir,
        at_low_compute=args.at_low_compute,
        head=None if text_alone else heads or "auto",
        compute_type=args.compute_type,
    )
    if not loaded.heads and not text_alone:
        if heads:
            raise ValueError(no_head(model, WITHOUT_TAGS))
        report(f"whisper-at serve: {no_head(model, 'requests for text alone are served')}")
    return loaded


def _keys_of_environment() -> list[str]:
    return [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]


def _batch_size(text: str) -> int:
    return 0 if text == "0" else positive_int(text)


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
