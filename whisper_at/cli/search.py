"""``whisper-at search``: which embedded recordings sound most like one given."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..embed.search import search_recording


def main(argv: Sequence[str]) -> int:
    """Print the nearest rows: cosine similarity, start and end in seconds, file."""
    parser = argparse.ArgumentParser(prog="whisper-at search", description=__doc__)
    parser.add_argument("table", help="what `whisper-at embed` wrote")
    parser.add_argument("query", help="a recording, embedded as those in the table were")
    parser.add_argument("-k", type=int, default=5, help="how many to show")
    parser.add_argument("--weights", help="where the backbone's weights lie now")
    parser.add_argument("--device", help="cpu, cuda …")
    args = parser.parse_args(argv)
    if args.k < 1:
        parser.error(f"-k must be at least 1, not {args.k}")
    for hit in search_recording(args.table, args.query, args.k, args.weights, args.device):
        print(f"{hit.score:.4f}\t{hit.start:.2f}\t{hit.end:.2f}\t{hit.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
