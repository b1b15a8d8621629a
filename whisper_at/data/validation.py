"""What people write into configurations: values of the right type, and the nearest of the right names."""

from __future__ import annotations

import collections.abc
import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any


def coerce(value: Any, hint: Any, name: str) -> Any:
    """The value in the type that a hint of a field or parameter says: lists for sequences, ``none`` for None.

    ValueError, by the name, if it is of another type; texts and truth values are no numbers.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if types.NoneType in options and value in (None, "none"):  # TOML has no word for it
        return None
    for option in options:
        origin, inner = typing.get_origin(option) or option, typing.get_args(option)
        several = isinstance(value, (list, tuple, range))
        if origin is tuple and several:
            each = [inner[0]] * len(value) if inner[-1] is ... else inner
            if len(each) == len(value):
                return tuple(coerce(one, kind, name) for one, kind in zip(value, each))
        elif origin is collections.abc.Sequence:
            if several:
                return [coerce(one, inner[0], name) for one in value]
        elif origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        elif isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
            return value
    said = " or ".join(_said(option) for option in options)
    raise ValueError(f"{name} = {value!r} is not {said}")


def _said(option: Any) -> str:
    if typing.get_origin(option) is collections.abc.Sequence:
        return f"a list of {_said(typing.get_args(option)[0])}"
    return getattr(option, "__name__", str(option)).replace("NoneType", "none")


def unknown_name(what: str, name: Any, known: Iterable[str]) -> str:
    """A message that there is no such name, with the nearest one and all that there are."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{what} {name!r}: {hint}There are {', '.join(known)}"
