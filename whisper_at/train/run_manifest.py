"""Tables that grow line by line, each with a JSON file beside it that says what run it is of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.files import write_text
from ..data.clips import Clip


def check_same_run(table: Path, config: Mapping[str, Any], growing: Iterable[str] = ()) -> None:
    """Check that a table is of this run, and write what defines the run to a ``.json`` beside the table.

    Parameters
    ----------
    table : Path
        The table; it need not exist.
    config : mapping
        What defines the run.
    growing : iterable of str
        Keys of `config` that may differ.

    Raises
    ------
    ValueError
        If the table is of another run.
    """
    manifest = table.with_suffix(".json")
    expected = json.loads(json.dumps(config, sort_keys=True))
    if table.exists() and manifest.exists():
        found = json.loads(manifest.read_text("utf-8"))
        for name in sorted((found.keys() | expected.keys()) - set(growing)):
            if found.get(name) != expected.get(name):
                raise ValueError(
                    f"{table} holds a run with {name} = {found.get(name)!r}, not {expected.get(name)!r}: "
                    "choose another folder, or delete it to start over"
                )
    table.parent.mkdir(parents=True, exist_ok=True)
    write_text(manifest, json.dumps(expected, indent=1) + "\n")


def complete_lines(table: Path) -> bytes:
    """Return the content of a table without an unfinished last line; empty if there is no such file."""
    content = table.read_bytes() if table.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def truncate_partial_line(table: Path) -> None:
    """Cut off a last line that a killed run left unfinished."""
    if table.exists():
        os.truncate(table, len(complete_lines(table)))


def clips_digest(clips: Iterable[Clip]) -> str:
    """Return a hash of recordings (by name and size), labels, folds and parts, but not of their folders."""
    rows = [
        [
            clip.path.name,
            sorted(clip.labels),
            clip.split,
            clip.fold,
            clip.group,
            clip.start,
            clip.end,
            clip.path.stat().st_size if clip.path.exists() else -1,
        ]
        for clip in clips
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
