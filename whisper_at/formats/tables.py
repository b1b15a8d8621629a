"""Rows of tags as tables: CSV for spreadsheets, Parquet for programs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from ..tagging.named_rows import tag_rows
from ..tagging.rows import TagOptions, head_rows, read_rows
from .editors import table
from .options import FormatOptions

COLUMNS = ("head", "row_seconds", "start", "end", "coverage", "index", "mid", "name", "logit", "probability")
"""A line is a tag of a row. A row without tags is a line whose last five columns are empty."""
_INTEGERS, _TEXTS = ("index",), ("head", "mid", "name")


def tag_table(result: Mapping[str, Any], options: TagOptions) -> Iterator[tuple[Any, ...]]:
    """Yield the tags of all heads at all resolutions, with the values of `COLUMNS`; None where there is no value.

    Raises
    ------
    ValueError
        If the result carries no tags.
    """
    heads = read_rows(result) or {"audio_tag": head_rows(result)}
    for head, found in heads.items():
        rows = tag_rows(result, options, head)
        parts = rows if isinstance(rows, dict) else {next(iter(found.logits)): rows}
        for seconds, part in parts.items():
            for row in part:
                place = (head, seconds, row["start"], row["end"], row.get("coverage"))
                for tag in row["tags"] or [{}]:
                    yield (*place, *(tag.get(name) for name in COLUMNS[5:]))


def rows_csv(result: Mapping[str, Any], filename: str, options: FormatOptions) -> str:
    """Return tags as CSV; numbers that are no times have six digits."""
    lines = []
    for line in tag_table(result, options.tags):
        values = [f"{v:.3f}" if name in ("start", "end") else _short(v) for name, v in zip(COLUMNS, line)]
        lines.append(values)
    return table([COLUMNS, *lines])


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def parquet(result: Mapping[str, Any], filename: str, options: FormatOptions) -> bytes:
    """Return the same table as Parquet."""
    import pyarrow
    import pyarrow.parquet

    def kind(name: str) -> Any:
        return pyarrow.string() if name in _TEXTS else pyarrow.int32() if name in _INTEGERS else pyarrow.float64()

    schema = pyarrow.schema([(name, kind(name)) for name in COLUMNS])
    columns = list(zip(*tag_table(result, options.tags))) or [()] * len(COLUMNS)
    arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema)]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), file)
    return file.getvalue()
