"""The tables of an archive: one row per recording, one row per event. docs/archives.md describes every column.

Nothing in them depends on when, where or in how many attempts they were made.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tagging.events import find_events
from ..tagging.rows import AUDIOSET, CALIBRATION, HeadRows, read_rows
from .storage import StorageError

if TYPE_CHECKING:
    import pyarrow as pa

    from .items import Item

SCHEMA_VERSION = 1
"""Goes up whenever a column changes its name, type or meaning; rows of other versions are made again."""
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS)
"""What is wrong with the machine and not with a recording: full disks, too many open files."""
EVENT_LANGUAGE = "en"
"""Names of events are English whatever is spoken, so that one query finds them all."""
_SEGMENT_NUMBERS = ("start", "end", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob")


def files_schema() -> pa.Schema:
    """Return the columns of ``files/*.parquet``."""
    import pyarrow as pa

    text, integer, number = pa.string(), pa.int64(), pa.float64()
    segment = pa.struct(
        [
            ("start", number),
            ("end", number),
            ("text", text),
            ("tokens", pa.list_(pa.int32())),
            ("seek", pa.int32()),
            *((name, number) for name in _SEGMENT_NUMBERS[2:]),
        ]
    )
    word = pa.struct(
        [("segment", pa.int32()), ("word", text), ("start", number), ("end", number), ("probability", number)]
    )
    rows = pa.list_(pa.list_(pa.float16()))
    tags = pa.struct(
        [
            ("head", text),
            ("row_seconds", number),
            ("rows", rows),
            ("coverage", pa.list_(pa.float32())),
            ("segments", rows),
        ]
    )
    return pa.schema(
        [
            ("id", text),
            ("path", text),
            ("path_bytes", pa.binary()),
            ("member", text),
            ("size", integer),
            ("modified", integer),
            ("sha256", text),
            ("duration", number),
            ("language", text),
            ("text", text),
            ("segments", pa.list_(segment)),
            ("words", pa.list_(word)),
            ("tags", pa.list_(tags)),
            ("events", pa.list_(_event_type())),
            ("model_sha256", text),
            ("head_sha256", pa.list_(pa.struct([("head", text), ("sha256", text)]))),
            ("options_sha256", text),
            ("schema_version", pa.int32()),
            ("error_type", text),
            ("error", text),
        ]
    )


def _event_type() -> pa.DataType:
    import pyarrow as pa

    return pa.struct(
        [
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("name", pa.string()),
            ("index", pa.int32()),
            ("mid", pa.string()),
            ("probability", pa.float64()),
            ("head", pa.string()),
        ]
    )


def events_schema() -> pa.Schema:
    """Return the columns of ``events/*.parquet``."""
    import pyarrow as pa

    return pa.schema([("id", pa.string()), ("path", pa.string()), ("member", pa.string()), *_event_type()])


def item_row(item: Item, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that a row has whatever comes of its recording; `fingerprint` says by what it is made."""
    raw = os.fsencode(item.path)
    path = printable(item.path)
    return {
        "id": item.id,
        "path": path,
        "path_bytes": None if path.encode() == raw else raw,
        "member": None if item.member is None else printable(item.member),
        "schema_version": SCHEMA_VERSION,
        **fingerprint,
    }


def printable(path: str) -> str:
    r"""Return a path as text that every program can store: bytes that are no UTF-8 become ``\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def result_row(result: Mapping[str, Any], duration: float, p_threshold: float | None = None) -> dict[str, Any]:
    """Return the columns that a result of `transcribe` fills.

    Parameters
    ----------
    result : dict
        What `transcribe` or `tag` returned.
    duration : float
        Seconds of audio.
    p_threshold : float, optional
        Of events, as of `find_events`.
    """
    segments = result["segments"]
    words = None
    if any("words" in segment for segment in segments):
        words = [{"segment": i, **word} for i, segment in enumerate(segments) for word in segment.get("words", [])]
        words = [{**word, **{name: float(word[name]) for name in ("start", "end", "probability")}} for word in words]
    heads = read_rows(result)
    return {
        "duration": duration,
        "language": result["language"],
        "text": result["text"],
        "segments": [_segment_row(segment) for segment in segments],
        "words": words,
        "tags": [tags for found in heads.values() for tags in _tag_rows(found)],
        "events": find_events(result, p_threshold, language=EVENT_LANGUAGE) if heads else [],
    }


def _segment_row(segment: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: float(segment[name]) for name in _SEGMENT_NUMBERS}
    return {"text": segment["text"], "tokens": segment["tokens"], "seek": int(segment["seek"]), **numbers}


def _tag_rows(found: HeadRows) -> Iterable[dict[str, Any]]:
    for seconds, logits in found.logits.items():
        coverage = None if found.coverage is None else np.asarray(found.coverage[seconds], np.float32)
        segments = None if found.segments is None else _as_float16(found.segments)
        rows = _as_float16(logits)
        yield {"head": found.head, "row_seconds": seconds, "rows": rows, "coverage": coverage, "segments": segments}


def _as_float16(logits: np.ndarray) -> list[np.ndarray]:
    largest = float(np.finfo(np.float16).max)
    return list(np.clip(logits, -largest, largest).astype(np.float16))


def error_row(error: BaseException, copied_to: str | None = None, label: str = "") -> dict[str, Any]:
    """Return the columns that an error fills; `label` stands for the name of a copy, which is another in every run."""
    message = str(error) if copied_to is None else str(error).replace(copied_to, label)
    message = " ".join(message.split()) or type(error).__name__
    message = re.sub(r"\b0x[0-9a-f]{6,}\b", "0x…", message)  # addresses differ from run to run
    return {"error_type": type(error).__name__, "error": message.encode("utf-8", "backslashreplace").decode()[:2000]}


def is_machine_error(error: BaseException | None) -> bool:
    """Return whether an error, or what it came from, is not the recording's fault."""
    while error is not None:
        if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in MACHINE_ERRORS):
            return True
        error = error.__cause__ or error.__context__
    return False


def make_files_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table; columns that a row lacks are null."""
    import pyarrow as pa

    schema = files_schema()
    columns = list(rows)
    return pa.table({f.name: pa.array([row.get(f.name) for row in columns], f.type) for f in schema}, schema=schema)


def make_events_table(files: pa.Table) -> pa.Table:
    """Return the events of a table of files, one row each: the same as its column ``events``."""
    import pyarrow as pa

    rows = [
        {"id": id, "path": path, "member": member, **event}
        for id, path, member, events in zip(*(files[n].to_pylist() for n in ("id", "path", "member", "events")))
        for event in events or []
    ]
    return pa.Table.from_pylist(rows, schema=events_schema())


def row_result(row: Mapping[str, Any], heads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row of ``files`` as `transcribe` would have returned it, for writers, captions and `find_events`.

    Logits of tags are those that float16 holds.

    Parameters
    ----------
    row : dict
        A row, as ``table.to_pylist()`` gives it.
    heads : dict
        What ``archive.json`` of the dataset says of the heads.

    Raises
    ------
    ValueError
        If the row has an error instead of a result.
    """
    if row["error_type"] is not None:
        raise ValueError(f"{row['path']} has no result: {row['error']}")
    segments = [{"id": i, **segment} for i, segment in enumerate(row["segments"])]
    if row["words"] is not None:
        by_segment = itertools.groupby(row["words"], lambda word: word["segment"])
        words = {i: [{k: v for k, v in word.items() if k != "segment"} for word in part] for i, part in by_segment}
        segments = [{**segment, "words": words.get(i, [])} for i, segment in enumerate(segments)]
    result: dict[str, Any] = {"text": row["text"], "segments": segments, "language": row["language"]}
    if not row["tags"]:
        return result
    resolutions = list(dict.fromkeys(tags["row_seconds"] for tags in row["tags"]))
    result |= {"at_time_res": resolutions if len(resolutions) > 1 else resolutions[0], "duration": row["duration"]}

    def by_resolution(head: str, column: str) -> Any:
        found = {tags["row_seconds"]: tags[column] for tags in row["tags"] if tags["head"] == head}
        return found if len(resolutions) > 1 else found[resolutions[0]]

    for head in dict.fromkeys(tags["head"] for tags in row["tags"]):
        n_classes = len(heads[head]["classes"])

        def logits(rows: list[list[float]], n_classes: int = n_classes) -> np.ndarray:
            return np.array(rows, np.float32).reshape(len(rows), n_classes)

        rows = by_resolution(head, "rows")
        rows = {s: logits(part) for s, part in rows.items()} if isinstance(rows, dict) else logits(rows)
        if head == AUDIOSET:
            result |= {AUDIOSET: rows, "audio_tag_coverage": by_resolution(head, "coverage")}
            result[CALIBRATION] = {k: v for k, v in heads[head].items() if k in ("temperature", "thresholds", "known")}
        else:
            of_segments = next(tags["segments"] for tags in row["tags"] if tags["head"] == head)
            result[head] = {**heads[head], "logits": rows, "segments": logits(of_segments or [])}
    return result
