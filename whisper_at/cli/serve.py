"""``whisper-at serve``: an HTTP server with OpenAI's routes for transcription, which also tells what else sounds."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import uvicorn

from ..loading import load_model
from ..serve.app import Limits, create_app
from .arguments import Parser, add_model_arguments, positive_int
from .heads import check_heads, is_no_head, no_head
from .reporting import report

EXAMPLES = """\
examples:
  whisper-at serve --model small                        then open http://127.0.0.1:8000
  whisper-at serve --model base --head auto --head birds.safetensors
  curl http://127.0.0.1:8000/v1/audio/transcriptions \\
        -F file=@street.ogg -F response_format=verbose_json -F at_time_res=2

Programs for OpenAI's API need its address alone: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none").
Whoever reaches the address may use it: there are no users and no passwords."""


WITHOUT_TAGS = "to serve text alone, give --head none"


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
    model.add_argument("--model", required=True, help="a name, file, folder or hub id")
    add_model_arguments(model)
    model.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads; by default PyTorch decides")
    decoding = parser.add_argument_group("decoding")
    help = "windows of a recording decoded at once, cut where it is quiet"
    decoding.add_argument("--batch_size", type=positive_int, metavar="N", help=help)
    decoding.add_argument("--beam_size", type=positive_int, metavar="N", help="beams at temperature 0 (default: none)")
    server = parser.add_argument_group("server")
    help = "address to listen at (%(default)s: this machine alone)"
    server.add_argument("--host", default="127.0.0.1", help=help)
    server.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    help = "largest request in MB (%(default)g)"
    server.add_argument("--max_megabytes", type=float, default=limits.megabytes, metavar="N", help=help)
    help = "longest recording in minutes (%(default)g)"
    server.add_argument("--max_minutes", type=float, default=limits.minutes, metavar="N", help=help)
    help = "recordings that may wait while one is transcribed (%(default)s)"
    server.add_argument("--max_waiting", type=int, default=limits.waiting, metavar="N", help=help)
    help = "origin whose pages may use the server from a browser, https://example.org; * is any; may be repeated"
    server.add_argument("--cors", action="append", metavar="ORIGIN", help=help)
    server.add_argument("--quiet", action="store_true", help="say only what is wrong")
    return parser


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted."""
    parser = build_parser()
    args = parser.parse_args(argv)
    text_alone = is_no_head(parser, args.head, args.at_low_compute)
    if (args.head or args.at_low_compute) and not text_alone:
        check_heads(parser, args.model, args.head or ["auto"], args.at_low_compute, WITHOUT_TAGS)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_model(
        args.model,
        device=args.device,
        download_root=args.model_dir,
        at_low_compute=args.at_low_compute,
        head=None if text_alone else args.head or "auto",
        compute_type=args.compute_type,
    )
    if not model.heads and not text_alone:
        if args.head:
            raise ValueError(no_head(args.model, WITHOUT_TAGS))
        report(f"whisper-at serve: {no_head(args.model, 'requests for text alone are served')}")
    options = {name: getattr(args, name) for name in ("batch_size", "beam_size") if getattr(args, name) is not None}
    name = Path(args.model).name if os.path.exists(args.model) else args.model
    limits = Limits(args.max_megabytes, args.max_minutes, args.max_waiting)
    app = create_app(model, name, limits, cors=args.cors or (), **options)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning" if args.quiet else "info")
    return 0


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
