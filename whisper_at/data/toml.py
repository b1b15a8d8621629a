"""Settings in TOML files and in ``name=value`` arguments."""

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
    """Read a TOML file.

    Parameters
    ----------
    path : path
        The file; ``~`` is expanded.

    Returns
    -------
    dict of str to Any

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not TOML.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None


def parse_assignment(text: str, form: str = "name=value") -> tuple[str, Any]:
    """Split ``name=value`` into the name and the value, which is parsed as TOML if possible and is text otherwise.

    Parameters
    ----------
    text : str
        The argument.
    form : str
        The expected form, for the error message.

    Returns
    -------
    (str, Any)

    Raises
    ------
    ValueError
        If there is no ``=``.

    Examples
    --------
    >>> parse_assignment("rows=[25]"), parse_assignment("mode=mean_mlp")
    (('rows', [25]), ('mode', 'mean_mlp'))
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected {form}, not {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
