"""Arguments that commands share, and the types of arguments.

Nothing here imports PyTorch before a value is read, so that ``--help`` comes at once. Every type refuses a value with a
message that says what would do.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2.

        With forty flags, the usage that argparse prints first would bury the message.
        """
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults, but for switches and for flags without one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _get_help_string(self, action: argparse.Action) -> str:
        is_switch = action.default is None or action.nargs == 0
        return (action.help or "") if is_switch else super()._get_help_string(action) or ""


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
    """Return the options of `whisper_at.features.prepare.read_data` from the arguments of `add_data_arguments`."""
    return {name: getattr(args, name) for name in ("labels", "root", "fold", "group")}


def add_device_arguments(target: Arguments) -> None:
    """Add ``--model_dir``, ``--device`` and ``--compute_type``."""
    target.add_argument("--model_dir", metavar="DIR", help="where models are kept (~/.cache/whisper)")
    target.add_argument("--device", help="PyTorch device to compute on; by default a GPU if there is one")
    help = "precision by name: float32, float16 (GPU), bfloat16, int8 (CPU) or auto"
    target.add_argument("--compute_type", type=compute_type, metavar="TYPE", help=help)


def add_workers_argument(target: Arguments) -> None:
    """Add ``--workers``, by default one process per CPU."""
    target.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode audio")


def add_skip_bad_argument(target: Arguments, help: str) -> None:
    """Add ``--skip-bad``."""
    target.add_argument("--skip-bad", "--skip_bad", action="store_true", help=help)


def add_model_arguments(target: Arguments) -> None:
    """Add how a model is loaded: its folder, device and precision, and its heads."""
    add_device_arguments(target)
    add = target.add_argument
    help = (
        "tagging head, if not the one published for the model (auto), or none; repeat it for several, also of your own "
        "sounds"
    )
    add("--head", metavar="FILE|NAME", action="append", help=help)
    add("--at_low_compute", action="store_true", help="take the small published head (small to large-v2)")


# --- output -------------------------------------------------------------------------------------------------


def data_name(data: str) -> str:
    """Return the name of a file or folder, also of the current folder."""
    return os.path.basename(os.path.abspath(os.path.expanduser(data)))


def print_line(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def print_error(line: str) -> None:
    """Print a line to standard error at once."""
    print(line, file=sys.stderr, flush=True)


# --- types --------------------------------------------------------------------------------------------------


def upstream_type(name: str) -> Callable[[str], Any]:
    """Return the argument type that openai-whisper's command line has under this name."""

    def convert(text: str) -> Any:
        return getattr(importlib.import_module("whisper.utils"), name)(text)

    convert.__name__ = name  # argparse names it in messages
    return convert


str2bool = upstream_type("str2bool")
optional_int = upstream_type("optional_int")
optional_float = upstream_type("optional_float")


def model_name(name: str) -> str:
    """Read the name of a model, a path, or a hub id."""
    from .. import checkpoints
    from ..checkpoints import hub
    from ..suggest import did_you_mean

    names = checkpoints.available_models()
    if name in names or os.path.exists(os.path.expanduser(name)) or hub.is_hub_id(name):
        return name
    raise argparse.ArgumentTypeError(f"{name!r} is neither a file nor a known name; {did_you_mean(name, names)}")


def compute_type(name: str) -> str:
    """Read a precision."""
    from ..model import COMPUTE_TYPES
    from ..suggest import did_you_mean

    if name not in COMPUTE_TYPES:
        raise argparse.ArgumentTypeError(f"there is no {name!r}; {did_you_mean(name, COMPUTE_TYPES)}")
    return name


def gate_threshold(text: str) -> bool | float:
    """Read ``--speech_gate``: a probability, True or False."""
    if text in ("True", "False"):
        return text == "True"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a probability, 0 to 1")
    return value


def language(name: str) -> str | None:
    """Read a language that Whisper knows, as its code; None is one that is to be detected."""
    from ..languages import language_code

    try:
        return language_code(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def label_language(name: str) -> str:
    """Read the language of tags: ``follow_asr``, a language, or a file of names."""
    if name.lower().endswith(".csv"):
        from ..tagging.labels import label_names

        try:
            label_names(name)
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return name
    return "follow_asr" if name == "follow_asr" else language(name) or "follow_asr"


def caption_style(text: str) -> str:
    """Read the style of captions."""
    from ..captioning.styles import parse_style

    try:
        parse_style(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; recordings come before --captions") from None
    return text.lower()


def output_formats(text: str) -> str:
    """Read formats of result files, separated by commas."""
    from ..formats import parse_formats

    try:
        parse_formats(text)
    except KeyError as error:
        raise argparse.ArgumentTypeError(error.args[0]) from None
    return text.lower()


def resolution_list(text: str) -> float | list[float]:
    """Read ``10`` or ``0.4,10``: multiples of 0.4 s."""
    from ..tagging.timeline import resolutions, steps_to_seconds

    try:
        seconds = [steps_to_seconds(steps) for steps in resolutions([number(part) for part in text.split(",")])]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return seconds[0] if len(seconds) == 1 else seconds


def class_list(text: str) -> list[int]:
    """Read classes of AudioSet, separated by semicolons."""
    from ..tagging.labels import find_classes

    names = [name.strip() for name in text.split(";") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no class is named")
    try:
        return find_classes(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive_int(text: str) -> int:
    """Read a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def positive_number(text: str) -> float:
    """Read a number above 0."""
    if not 0 < (value := number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def number(text: str) -> float:
    """Read a number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value
