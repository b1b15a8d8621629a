"""``whisper-at find``: where a text, a word or a sound occurs in an archive."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ..archive.find import Match, Query, find, run_sql
from .arguments import Parser, number, positive_int

EXAMPLES = """\
examples:
  whisper-at find dataset "annual report"
  whisper-at find dataset --word "budget*" --sound laughter --within 5
  whisper-at find dataset --sound "glass" --limit 20 --json
  whisper-at find dataset --sql "SELECT language, sum(duration) / 3600 FROM files GROUP BY language"

All that is asked for has to occur in one recording, no more than --within seconds apart.
docs/archives.md lists the columns of the tables files and events."""


def build_parser() -> Parser:
    """Return the parser of ``whisper-at find``."""
    parser = Parser(
        prog="whisper-at find",
        description="Find texts, words and sounds in a dataset that whisper-at archive wrote.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="its folder or URL")
    add("text", metavar="TEXT", nargs="*", help="part of what is said in a segment, in any case")
    help = "a word, in any case; * stands for any letters; may be repeated"
    add("--word", action="append", default=[], metavar="WORD", help=help)
    help = "a class of sound, with those below it; may be repeated"
    add("--sound", action="append", default=[], metavar="NAME", help=help)
    add("--within", type=number, default=5.0, metavar="S", help="seconds between all of them (%(default)g)")
    add("--limit", type=positive_int, metavar="N", help="no more places than these")
    add("--json", action="store_true", help="a line of JSON for each")
    add("--sql", metavar="SQL", help="a query over the tables files and events instead")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print path, time and text of each place; return 1 if there is none."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.sql is not None:
        if args.text or args.word or args.sound:
            parser.error("--sql is a query of its own: leave out TEXT, --word and --sound")
        names, rows = run_sql(args.dataset, args.sql)
        for row in rows:
            print(json.dumps(dict(zip(names, row)), default=str) if args.json else "\t".join(map(str, row)))
        return 0 if rows else 1
    try:
        query = Query(tuple(args.text), tuple(args.word), tuple(args.sound), args.within)
    except ValueError as error:
        parser.error(str(error))
    found = 0
    for match in find(args.dataset, query, args.limit):
        print(json.dumps(match._asdict(), ensure_ascii=False) if args.json else format_match(match))
        found += 1
    return 0 if found else 1


def format_match(match: Match) -> str:
    r"""Return a place as a line: path, time, text, and what else is near.

    Examples
    --------
    >>> format_match(Match("a.wav", 61.2, 61.5, "The budget.", ("Laughter",)))
    'a.wav\t0:01:01.20\tThe budget.\t[Laughter]'
    """
    minutes, seconds = divmod(match.start, 60)
    hours, minutes = divmod(int(minutes), 60)
    path = match.path.encode("unicode_escape").decode() if not match.path.isprintable() else match.path
    near = "".join(f"\t[{name}]" for name in match.near)
    return f"{path}\t{hours}:{minutes:02}:{seconds:05.2f}\t{' '.join(match.text.split())}{near}"


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
