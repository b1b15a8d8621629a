"""``whisper-at search``: find the embedded recordings that sound most like a given one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..embed.search import search_recording


def main(argv: Sequence[str]) -> int:
    """Print the most similar rows: similarity (1 the same, 0 as any two of the table), start and end, file."""
    parser = argparse.ArgumentParser(prog="whisper-at search", description=__doc__)
    parser.add_argument("table", help="a file that `whisper-at embed` wrote")
    parser.add_argument("query", help="a recording, embedded as those in the table were")
    parser.add_argument("-k", type=int, default=5, help="how many to show")
    parser.add_argument("--weights", help="where the backbone's weights are now")
    parser.add_argument("--device", help="cpu, cuda …")
    args = parser.parse_args(argv)
    if args.k < 1:
        parser.error(f"-k must be at least 1, not {args.k}")
    for result in search_recording(args.table, args.query, args.k, args.weights, args.device):
        print(f"{result.score:.4f}\t{result.start:.2f}\t{result.end:.2f}\t{result.path}")
    return 0


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
