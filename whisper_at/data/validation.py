"""Checks of configuration values: convert to the declared type, suggest the nearest valid name."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Iterable
from typing import Any

from ..suggest import did_you_mean


def coerce(value: Any, hint: Any, name: str) -> Any:
    """Convert a value read from TOML to the type of a field or parameter.

    Parameters
    ----------
    value : Any
        The value. Integers become floats where the hint is float; booleans are not numbers; ``"none"`` is None.
    hint : type hint
        A class, ``tuple[…]``, ``Sequence[…]`` or a union of these.
    name : str
        Name in the error message.

    Returns
    -------
    Any
        The value; lists become tuples where the hint is a tuple.

    Raises
    ------
    ValueError
        If the value has another type.

    Examples
    --------
    >>> coerce([1, 2], tuple[float, ...], "rates")
    (1.0, 2.0)
    >>> coerce("none", int | None, "count")
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if types.NoneType in options and value in (None, "none"):  # TOML has no null
        return None
    is_list = isinstance(value, (list, tuple, range))
    for option in options:
        origin, args = typing.get_origin(option) or option, typing.get_args(option)
        if origin is tuple and is_list:
            item_types = [args[0]] * len(value) if args[-1] is ... else args
            if len(item_types) == len(value):
                return tuple(coerce(item, item_type, name) for item, item_type in zip(value, item_types))
        elif origin is collections.abc.Sequence:
            if is_list:
                return [coerce(item, args[0], name) for item in value]
        elif origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        elif isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
            return value
    raise ValueError(f"{name} = {value!r} is not {' or '.join(map(_type_name, options))}")


def _type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is collections.abc.Sequence or (origin is tuple and args[-1] is ...):
        return f"a list of {_type_name(args[0])}"
    return getattr(hint, "__name__", str(hint)).replace("NoneType", "none")


def unknown_name(what: str, name: Any, known: Iterable[str]) -> str:
    """Return an error message for an unknown name: the nearest valid name and all of them.

    Examples
    --------
    >>> unknown_name("no dataset", "esc5", ["esc50", "gsc"])
    "no dataset 'esc5': did you mean 'esc50'? There are esc50, gsc"
    """
    return f"{what} {name!r}: {did_you_mean(name, known)}"
