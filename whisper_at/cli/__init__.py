"""``whisper-at``: transcription and tagging, and the other commands.

Importing this imports no PyTorch, so that ``--help`` comes at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..engine.cpus import available_cpus, cpu_quota
from .reporting import INTERRUPTED, one_line, one_line_warnings, outliving_readers, report

TRANSCRIBE = "transcribe"
"""What the command without a subcommand does."""
SUBCOMMANDS = {
    "captions-check": "",
    "models": "",
    "convert": "",
    "warmup": "",
    "features": "train",
    "train": "train",
    "evaluate": "train",
    "count": "train",
    "study": "train",
    "adapt": "adapt",
    "embed": "adapt",
    "search": "adapt",
    "lineareval": "adapt",
    "serve": "serve",
    "archive": "archive",
    "find": "archive",
    "live": "live",
}
"""Modules of this package, imported when called, and the extra that brings what they need."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 if anything failed, or 130 after Ctrl-C. Wrong arguments exit with status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return _run(argv.pop(0), argv) if _is_subcommand(argv) else _run(TRANSCRIBE, argv)


def run_module(file: str) -> NoReturn:
    """Run the command of a module, so that ``python -m whisper_at.cli.train`` is ``whisper-at train``, and exit."""
    name = os.path.splitext(os.path.basename(file))[0]
    sys.exit(_run(name.replace("_", "-"), sys.argv[1:]))


def _run(command: str, argv: list[str]) -> int:
    _keep_to_cpu_quota()
    with outliving_readers(), one_line_warnings():
        try:
            if command == TRANSCRIBE:  # which reports its errors by file
                return int(importlib.import_module(f".{command}", __name__).main(argv))
            return _run_subcommand(command, argv)
        except KeyboardInterrupt:
            report("whisper-at: interrupted")
            return INTERRUPTED


def _run_subcommand(command: str, argv: list[str]) -> int:
    extra = SUBCOMMANDS[command]
    try:
        module = importlib.import_module(f".{command.replace('-', '_')}", __name__)
        return int(module.main(argv))
    except ImportError as error:
        hint = f'; install what it needs: pip install ".[{extra}]"' if extra else ""
        report(f"whisper-at {command}: error: {one_line(error)}{hint}")
    except Exception as error:
        report(f"whisper-at {command}: error: {one_line(error)}")
    return 1


def _keep_to_cpu_quota() -> None:
    """Let PyTorch have no more threads than the CPUs that a container's quota allows; it knows only of the machine's.

    Before PyTorch is imported, which reads this once.
    """
    if cpu_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cpus()))


def _is_subcommand(argv: Sequence[str]) -> bool:
    """Whether this is a subcommand; a recording that happens to be named so is still a recording."""
    return argv[:1] != [] and argv[0] in SUBCOMMANDS and (os.path.isdir(argv[0]) or not os.path.lexists(argv[0]))
