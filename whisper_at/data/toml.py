"""Settings as TOML: whole files, and single values on a command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Names and values in a TOML file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no TOML.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None


def parse_assignment(text: str, form: str = "name=value") -> tuple[str, Any]:
    """``rate=1e-4``, ``rows=[25]`` or ``mode=mean_mlp`` as name and value; a value that is no TOML is text.

    Raises ValueError, which says the ``form`` that is wanted, if there is no ``=``.
    """
    name, mark, value = text.partition("=")
    if not mark:
        raise ValueError(f"a change is written {form}, not {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
