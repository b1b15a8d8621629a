"""``whisper-at captions-check``: whether caption files keep to the rules of a style."""

from __future__ import annotations

from collections.abc import Sequence

from .arguments import HelpFormatter, Parser, caption_style
from .reporting import one_line, report

DESCRIPTION = """\
Check caption files (.srt, .vtt) for what makes them hard to read: long lines, cues that stay too short or too long,
too much text for their time, overlaps. Prints a line for every rule that a cue breaks; the exit status is then 1."""


def main(argv: Sequence[str]) -> int:
    """Check files; return 0, or 1 if a rule is broken or a file cannot be read."""
    from whisper.utils import format_timestamp

    from ..captioning import check_captions, parse_style, read_captions

    parser = Parser(prog="whisper-at captions-check", description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument("files", metavar="FILE", nargs="+", help="captions, as .srt or .vtt")
    help = "whose rules: plain, netflix or bbc"
    parser.add_argument("--style", type=caption_style, default="plain", metavar="STYLE", help=help)
    parser.add_argument("--quiet", action="store_true", help="print no line for files that are right")
    args = parser.parse_args(argv)
    style, _ = parse_style(args.style)
    failed = False
    for path in args.files:
        try:
            cues = read_captions(path)
        except (OSError, ValueError) as error:
            failed = True
            report(f"{parser.prog}: error: {one_line(error)}")
            continue
        broken = check_captions(cues, style)
        for rule in broken:
            start = format_timestamp(max(cues[rule.cue - 1]["start"], 0.0), always_include_hours=True)
            print(f"{path}: cue {rule.cue} ({start}) {rule.message}")
        failed = failed or bool(broken)
        if not broken and not args.quiet:
            print(f"{path}: {len(cues)} cues, all as {args.style} has it")
    return 1 if failed else 0


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
