"""Dataclasses from tables of a configuration: values of the declared types, the nearest name for an unknown one."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..suggest import did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Dataclass = TypeVar("Dataclass", bound=DataclassInstance)

_TYPE_NAMES = {int: "whole number", float: "number", dict: "table"}


def from_table(kind: type[Dataclass], table: Mapping[str, Any], prefix: str = "") -> Dataclass:
    """Build a dataclass, and the dataclasses in it, from a table as TOML has it.

    Parameters
    ----------
    kind : type
        The dataclass.
    table : mapping
        Values by the names of its fields, see `coerce`.
    prefix : str
        Goes before names in error messages.

    Raises
    ------
    ValueError
        If a name is unknown or missing, or a value has another type or is refused by the dataclass.

    Examples
    --------
    >>> @dataclasses.dataclass
    ... class Clip:
    ...     name: str
    ...     seconds: float = 5.0
    >>> from_table(Clip, {"name": "rain", "seconds": 3})
    Clip(name='rain', seconds=3.0)
    """
    known = {field.name: field for field in dataclasses.fields(kind)}
    values = coerce_fields(kind, table, prefix)
    for name, field in known.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name} is missing")
    return kind(**values)


def coerce_fields(kind: type[DataclassInstance], table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a table in the types of a dataclass's fields; ValueError as `from_table`."""
    hints = typing.get_type_hints(kind)
    known = [prefix + field.name for field in dataclasses.fields(kind)]
    for name in table:
        if prefix + name not in known:
            raise ValueError(unknown_name("there is no key", prefix + name, known))
    return {name: coerce(value, hints[name], prefix + name) for name, value in table.items()}


def coerce(value: Any, hint: Any, name: str) -> Any:
    """Convert a value read from TOML to the type of a field or parameter.

    Parameters
    ----------
    value : Any
        The value. Integers become floats where the hint is float, and 2.0 becomes 2 where it is int; booleans are not
        numbers; ``"none"`` is None; tables become dataclasses.
    hint : type hint
        A class, a dataclass, ``tuple[…]``, ``Sequence[…]`` or a union of these.
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
        elif dataclasses.is_dataclass(origin) and isinstance(value, Mapping):
            return from_table(typing.cast("type[DataclassInstance]", origin), value, f"{name}.")
        elif origin is int and isinstance(value, float) and value.is_integer():
            return int(value)
        elif origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        elif isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
            return value
    raise ValueError(f"{name} = {value!r} is not {' or '.join(map(_type_name, options))}")


def _type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is collections.abc.Sequence or (origin is tuple and args[-1] is ...):
        return f"a list of {_type_name(args[0]).removeprefix('a ')}s"
    if origin in (bool, str):
        return {bool: "true or false", str: "text"}[origin]
    if dataclasses.is_dataclass(origin):
        return "a table"
    name = _TYPE_NAMES.get(origin)
    return f"a {name}" if name else getattr(hint, "__name__", str(hint)).replace("NoneType", "none")


def unknown_name(what: str, name: Any, known: Iterable[str]) -> str:
    """Return an error message for an unknown name: the nearest valid name and all of them.

    Examples
    --------
    >>> unknown_name("no dataset", "esc5", ["esc50", "gsc"])
    "no dataset 'esc5': did you mean 'esc50'? There are esc50, gsc"
    """
    return f"{what} {name!r}: {did_you_mean(name, known)}"
