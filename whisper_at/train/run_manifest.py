"""Tables that grow line by line, and beside each a note of the run it is of, so that no two runs are mixed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.files import write_text
from ..data.clips import Clip


def refuse_other_run(table: Path, facts: Mapping[str, Any], growing: Iterable[str] = ()) -> None:
    """Note in a ``.json`` beside ``table`` what defines its run; raise ValueError if the table is of another.

    Facts that are ``growing`` may differ.
    """
    beside = table.with_suffix(".json")
    wanted = json.loads(json.dumps(facts, sort_keys=True))
    if table.exists() and beside.exists():
        there = json.loads(beside.read_text("utf-8"))
        for name in sorted((there.keys() | wanted.keys()) - set(growing)):
            if there.get(name) != wanted.get(name):
                raise ValueError(
                    f"{table} holds a run with {name} = {there.get(name)!r}, not {wanted.get(name)!r}: choose another "
                    "folder, or delete it to begin anew"
                )
    table.parent.mkdir(parents=True, exist_ok=True)
    write_text(beside, json.dumps(wanted, indent=1) + "\n")


def whole_lines(table: Path) -> bytes:
    """The content of a table without a last line that is not finished; nothing if there is no such file."""
    content = table.read_bytes() if table.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def cut_unfinished(table: Path) -> None:
    """Cut off a last line that a killed run left unfinished."""
    if table.exists():
        os.truncate(table, len(whole_lines(table)))


def clips_digest(clips: Iterable[Clip]) -> str:
    """Text that differs for other recordings, labels, folds or parts, but not where the same lie elsewhere."""
    rows = [
        [
            clip.path.name,
            sorted(clip.labels),
            clip.split,
            clip.fold,
            clip.group,
            clip.start,
            clip.end,
            _bytes(clip.path),
        ]
        for clip in clips
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
