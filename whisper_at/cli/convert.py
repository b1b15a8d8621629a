"""``whisper-at convert``: any Whisper that loads, written as one ``.safetensors``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..checkpoints.convert import DTYPES, convert


def main(argv: Sequence[str]) -> int:
    """Run the subcommand and return 0; wrong arguments exit with status 2, other errors are raised."""
    args = build_parser().parse_args(argv)
    target = convert(args.source, args.target, args.dtype, args.model_dir)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``whisper-at convert``."""
    parser = argparse.ArgumentParser(
        prog="whisper-at convert",
        description="Write a Whisper as one .safetensors, which --model and load_model open.",
    )
    add = parser.add_argument
    help = "model name, checkpoint file, folder in Hugging Face's or CTranslate2's layout, or hub id (owner/model)"
    add("source", metavar="SOURCE", help=help)
    add("target", metavar="TARGET.safetensors", help="file to write")
    add("--dtype", choices=list(DTYPES), help="precision of the weights; the source's if not given")
    add("--model_dir", metavar="DIR", help="where downloaded models are kept (~/.cache/whisper)")
    return parser


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
