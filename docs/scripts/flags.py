"""Write the tables of flags in docs/command-line.md from the parsers of the commands.

Run it after a flag has changed: ``python docs/scripts/flags.py``. ``tests/test_docs.py`` compares the flags of both.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "command-line.md"
MACHINE_DEFAULTS = ("device", "workers")  # differ from machine to machine


class _ParserFound(BaseException):
    """Carries a command's parser out of the command, which would go on with its work."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser that ``whisper-at COMMAND`` parses its arguments with; "" is the command alone."""
    from whisper_at.cli import main

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _ParserFound(parser)

    with mock.patch.multiple(argparse.ArgumentParser, parse_args=stop, parse_known_args=stop):
        try:
            main([command] if command else ["recording.wav"])
        except _ParserFound as found:
            return found.parser
    raise RuntimeError(f"whisper-at {command} parses no arguments")


def parsers(command: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the parser of a command, then those of its own subcommands, with their names."""
    parser = parser_of(command)
    yield f"whisper-at {command}".strip(), parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield f"whisper-at {command} {name}", inner


def flags(parser: argparse.ArgumentParser) -> set[str]:
    """Return the long flags of a parser."""
    found = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    return found - {"--help"}


def tables(command: str) -> str:
    """Return the tables of a command: one for each group of arguments."""
    parts = []
    for name, parser in parsers(command):
        inner = name.count(" ") > 1
        if inner:
            parts.append(f"### {name}")
        rows: list[str] = []
        for group in parser._action_groups:
            if group.title not in ("positional arguments", "options"):  # these two are one table
                parts += _table(rows)
                rows = []
                if group._group_actions:
                    parts.append(f"**{(group.title or '').capitalize()}.** {group.description or ''}".strip())
            rows += [row for action in group._group_actions if (row := _row(parser, action))]
        parts += _table(rows)
    return "\n\n".join(parts)


def _table(rows: list[str]) -> list[str]:
    return ["\n".join(["| argument | meaning | default |", "|---|---|---|", *rows])] if rows else []


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str | None:
    if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
        return None
    usage = parser.formatter_class(parser.prog)
    value = "" if action.nargs == 0 else usage._format_args(action, usage._get_default_metavar_for_optional(action))
    if not action.option_strings:
        value, names = "", [usage._format_args(action, usage._get_default_metavar_for_positional(action))]
    else:
        names = list(action.option_strings)
    shown = ", ".join(f"`{name}`" for name in names) + (f" `{value}`" if value and len(value) < 30 else "")
    shown = shown.replace("|", "/")  # a bar in code in a table is shown differently by every Markdown
    help = (action.help or "") % {**vars(action), "prog": parser.prog}
    choices = f" {', '.join(map(str, action.choices))}" if action.choices and len(action.choices) < 8 else ""
    if choices and not any(str(choice) in help + shown for choice in action.choices or ()):
        help = f"{help}:{choices}" if help else choices.strip()
    default = action.default
    plain = default in (None, [], argparse.SUPPRESS) or action.nargs == 0
    default = "" if plain or action.dest in MACHINE_DEFAULTS else f"`{default}`"
    help = re.sub(r"(?<![\w`-])--\w+", r"`\g<0>`", help)
    return f"| {_cell(shown)} | {_cell(help)} | {_cell(default)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def with_tables(page: str) -> str:
    """Return the page with the tables of every command between its marks."""
    return re.sub(
        r"<!-- flags: ?([\w-]*) -->\n.*?<!-- end -->",
        lambda match: f"<!-- flags: {match[1]} -->\n\n{tables(match[1])}\n\n<!-- end -->".replace(":  -->", ": -->"),
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
