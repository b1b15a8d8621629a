"""Arguments and output that several commands share."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

Arguments = argparse._ActionsContainer
"""A parser, or a group of its arguments."""


def add_data_arguments(target: Arguments, name: str) -> None:
    """Add arguments that say which data to read: a positional or, if `name` begins with ``-``, a required option."""
    required: dict[str, Any] = {"required": True} if name.startswith("-") else {}
    add = target.add_argument
    add(name, metavar="DATA", help="folder of classes, .csv, .tsv or .json", **required)
    add("--labels", metavar="CSV", help="list of classes that a .json needs: index, mid, display_name")
    add("--root", metavar="DIR", help="folder that the files in a table are in")
    add("--fold", metavar="REGEX", help="finds the fold in names of files in folders, as ^(\\d)-")
    add("--group", metavar="REGEX", help="finds what must stay together (speaker, source), likewise")


def data_options(args: argparse.Namespace) -> dict[str, str | None]:
    """Return the options of `whisper_at.train.prepare.read_data` from the arguments of `add_data_arguments`."""
    return {name: getattr(args, name) for name in ("labels", "root", "fold", "group")}


def add_device_arguments(target: Arguments) -> None:
    """Add ``--model_dir`` and ``--device``."""
    target.add_argument("--model_dir", metavar="DIR", help="folder of downloaded models")
    target.add_argument("--device", help="cpu or cuda; by default a GPU if there is one")


def add_workers_argument(target: Arguments) -> None:
    """Add ``--workers``, by default one process per CPU."""
    target.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode audio")


def add_skip_bad_argument(target: Arguments, help: str) -> None:
    """Add ``--skip-bad``."""
    target.add_argument("--skip-bad", "--skip_bad", action="store_true", help=help)


def data_name(data: str) -> str:
    """Return the name of a file or folder, also of the current folder."""
    return os.path.basename(os.path.abspath(os.path.expanduser(data)))


def print_line(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def print_error(line: str) -> None:
    """Print a line to standard error at once."""
    print(line, file=sys.stderr, flush=True)
