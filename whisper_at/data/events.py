"""Tables of events with times, as DCASE and sed_eval have them: filename, onset, offset, event_label."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

from .files import StrPath

EVENT_COLUMNS = ("filename", "onset", "offset", "event_label")
"""Columns of a table of events; others are ignored."""


class LabelledEvent(NamedTuple):
    """A sound with onset and offset in seconds."""

    onset: float
    offset: float
    label: str


def is_event_table(path: StrPath) -> bool:
    """Return whether a file is a ``.csv``, ``.tsv`` or ``.txt`` with the columns of a table of events."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".csv", ".tsv", ".txt") or not path.is_file():
        return False
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        return set(EVENT_COLUMNS) <= set(_columns(_reader(file)))


def read_event_table(path: StrPath) -> dict[str, list[LabelledEvent]]:
    """Read a table of events.

    Columns are separated by tabs, or by commas or semicolons where there are no tabs. A file without any event has a
    row with nothing but its name.

    Parameters
    ----------
    path : path
        The table.

    Returns
    -------
    dict of str to list of LabelledEvent
        Events by the name of their file, in order of onset. Those of a class that overlap or touch are one.

    Raises
    ------
    ValueError
        If a column is missing, a time is not a number, or an event ends before it begins.
    """
    path = Path(path).expanduser()
    table: dict[str, list[LabelledEvent]] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = _reader(file)
        columns = _columns(reader)
        if missing := [name for name in EVENT_COLUMNS if name not in columns]:
            raise ValueError(f"{path} has no column {' and no column '.join(missing)}; it has {', '.join(columns)}")
        for row in reader:
            filename, onset, offset, label = ((row[columns[name]] or "").strip() for name in EVENT_COLUMNS)
            if not filename:
                continue
            events = table.setdefault(filename, [])
            if onset or offset or label:
                events.append(_event(onset, offset, label, f"{path}, line {reader.line_num + 1}"))
    if not any(table.values()):
        raise ValueError(f"{path} has no events")
    return {filename: _joined(events) for filename, events in table.items()}


def _reader(file: object) -> csv.DictReader[str]:
    """Return a reader whose separator is the one that the first line has."""
    lines = iter(file)  # type: ignore[call-overload]
    header = next(lines, "")
    separator = next((character for character in "\t;," if character in header), "\t")
    names = next(csv.reader([header], delimiter=separator), [])
    return csv.DictReader(lines, names, delimiter=separator)


def _columns(reader: csv.DictReader[str]) -> dict[str, str]:
    return {(name or "").strip().lower(): name for name in reader.fieldnames or []}


def _event(onset: str, offset: str, label: str, place: str) -> LabelledEvent:
    try:
        times = float(onset), float(offset)
    except ValueError:
        times = math.nan, math.nan
    if not (0 <= times[0] < times[1] < math.inf):
        raise ValueError(f"{place}: onset and offset must be seconds, one after the other; they are {onset}, {offset}")
    if not label:
        raise ValueError(f"{place}: the event has no event_label")
    return LabelledEvent(*times, label)


def _joined(events: list[LabelledEvent]) -> list[LabelledEvent]:
    joined: dict[str, list[LabelledEvent]] = {}
    for event in sorted(events):
        same = joined.setdefault(event.label, [])
        if same and event.onset <= same[-1].offset:
            same[-1] = same[-1]._replace(offset=max(event.offset, same[-1].offset))
        else:
            same.append(event)
    return sorted(event for same in joined.values() for event in same)
