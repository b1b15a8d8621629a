"""What an archive consists of: its tables in parts, its plan, and what is done of it.

A part appears whole or not at all. That of ``files`` is what counts: the part of ``events`` is made of it, and made
again where a run was stopped between the two.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from .items import Item
from .schema import SCHEMA_VERSION, files_schema, make_events_table
from .storage import open_storage

if TYPE_CHECKING:
    import pyarrow as pa

DESCRIPTION = "archive.json"
FILES, EVENTS, PLAN = "files", "events", "plan"
COLUMNS_OF_STATE = ("id", "size", "modified", "sha256", "options_sha256", "schema_version", "error_type")
CHECKSUM = b"files_rows"
"""Metadata of a part of ``events``: of which rows it was made."""


class Shard(NamedTuple):
    """Recordings whose rows are in one part.

    Attributes
    ----------
    number : int
        Of the part.
    order : tuple of str
        Ids of all its rows, in order.
    items : tuple of Item
        Those that are to be done, or looked at again.
    """

    number: int
    order: tuple[str, ...]
    items: tuple[Item, ...]


class Store:
    """The tables of an archive.

    Parameters
    ----------
    location : str or path
        A folder, which is made if it is not there, or a URL: see `open_storage`.

    Attributes
    ----------
    storage : Storage
        Where they lie.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.storage = open_storage(location)

    def clean(self) -> None:
        """Remove what runs that were stopped have left behind, and make parts of ``events`` that are missing."""
        self.storage.clean((FILES, EVENTS, PLAN))
        for name in self.parts():
            self.write_events(name)

    # --- description and plan ---

    def description(self) -> dict[str, Any] | None:
        """Return what ``archive.json`` says, or None where there is none yet."""
        try:
            with self.storage.open(DESCRIPTION) as file:
                content: dict[str, Any] = json.loads(file.read())
        except FileNotFoundError:
            return None
        return content

    def write_description(self, description: Mapping[str, Any]) -> None:
        """Write ``archive.json``."""
        with self.storage.new_file(DESCRIPTION) as path:
            path.write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", "utf-8")

    def read_plan(self) -> dict[str, int]:
        """Return the shard of every recording that is planned, by its id, in order."""
        plan: dict[str, int] = {}
        for name in self.storage.names(PLAN):
            table = self.read_table(f"{PLAN}/{name}")
            plan |= zip(table["id"].to_pylist(), table["shard"].to_pylist())
        return plan

    def extend_plan(self, plan: dict[str, int], items: Iterable[Item], shard_size: int, shard_bytes: int) -> None:
        """Add recordings that are not planned yet to new shards, and write that down before any of them is done.

        A shard ends after `shard_size` recordings, or when those with a known size have `shard_bytes`.
        """
        import pyarrow as pa

        index, count, size = max(plan.values(), default=-1) + 1, 0, 0
        new: dict[str, int] = {}
        for item in items:
            if item.id in plan or item.id in new:
                continue
            if count and (count == shard_size or size + (item.size or 0) > shard_bytes):
                index, count, size = index + 1, 0, 0
            new[item.id] = index
            count, size = count + 1, size + (item.size or 0)
        if not new:
            return
        schema = pa.schema([("id", pa.string()), ("shard", pa.int32())])
        table = pa.table([list(new), list(new.values())], schema=schema)
        self.write_table(table, f"{PLAN}/plan-{len(self.storage.names(PLAN)):05d}.parquet")
        plan |= new

    # --- parts ---

    def parts(self) -> list[str]:
        """Return the names of the parts of ``files`` that there are."""
        return [name for name in self.storage.names(FILES) if name.startswith("part-")]

    def read_part(self, index: int) -> pa.Table | None:
        """Return a part of ``files``; None if it is not there, or has the columns of another version."""
        try:
            return self._read_files(part_name(index))
        except FileNotFoundError:
            return None

    def _read_files(self, name: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        import pyarrow.parquet as pq

        with self.storage.open(f"{FILES}/{name}") as source, pq.ParquetFile(source) as file:
            return file.read(columns) if file.schema_arrow.equals(files_schema()) else None

    def state(self) -> dict[str, dict[str, Any]]:
        """Return `COLUMNS_OF_STATE` of every row of this version, by its id."""
        rows: dict[str, dict[str, Any]] = {}
        for name in self.parts():
            table = self._read_files(name, COLUMNS_OF_STATE)
            if table is not None:
                rows |= {row["id"]: row for row in table.to_pylist() if row["schema_version"] == SCHEMA_VERSION}
        return rows

    def write_part(self, index: int, table: pa.Table) -> None:
        """Write a part of ``files``, then that of ``events``."""
        self.write_table(table, f"{FILES}/{part_name(index)}")
        self.write_events(part_name(index))

    def write_events(self, name: str) -> None:
        """Write the part of ``events`` that belongs to one of ``files``, unless it is there."""
        import pyarrow.parquet as pq

        with self.storage.open(f"{FILES}/{name}") as file:
            checksum = _checksum(file)
        try:
            with self.storage.open(f"{EVENTS}/{name}") as file:
                if (pq.read_schema(file).metadata or {}).get(CHECKSUM) == checksum:
                    return
        except FileNotFoundError:
            pass
        files = self.read_table(f"{FILES}/{name}", ["id", "path", "member", "events"])
        self.write_table(make_events_table(files).replace_schema_metadata({CHECKSUM: checksum}), f"{EVENTS}/{name}")

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table, or some columns of it."""
        import pyarrow.parquet as pq

        with self.storage.open(name) as source, pq.ParquetFile(source) as file:
            return file.read(columns)

    def write_table(self, table: pa.Table, name: str) -> None:
        """Write a table, which appears whole."""
        import pyarrow.parquet as pq

        with self.storage.new_file(name) as path:
            pq.write_table(table, path, compression="zstd", row_group_size=1024)


def part_name(index: int) -> str:
    """Return the name of a part of ``files`` and ``events``."""
    return f"part-{index:05d}.parquet"


def _checksum(file: IO[bytes]) -> bytes:
    """Return a hash of a part's footer, which has sizes and statistics of all columns; the whole would take long."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - 8))
    footer = int.from_bytes(file.read(4), "little") + 8
    file.seek(max(0, length - footer))
    return hashlib.sha256(file.read()).hexdigest().encode()


def pending_shards(
    plan: Mapping[str, int],
    items: Sequence[Item],
    state: Mapping[str, Mapping[str, Any]],
    options_sha256: str,
    retry_failed: bool,
) -> list[Shard]:
    """Return the shards that have recordings to be done, in order.

    A recording is done if it has a row of the same options, and the size and time that it had; one that has other
    ones is looked at again, by its hash.
    """
    orders: dict[int, list[str]] = {}
    for id, shard in plan.items():
        orders.setdefault(shard, []).append(id)
    to_do: dict[int, list[Item]] = {}
    for item in items:
        row = state.get(item.id)
        if row is None or not is_done(row, item, options_sha256, retry_failed):
            to_do.setdefault(plan[item.id], []).append(item)
    return [Shard(index, tuple(orders[index]), tuple(to_do[index])) for index in sorted(to_do)]


def is_done(row: Mapping[str, Any], item: Item, options_sha256: str, retry_failed: bool) -> bool:
    """Return whether a row is that of a recording as it is now, as far as size and time tell."""
    is_current: bool = row["options_sha256"] == options_sha256
    if row["error_type"] is not None and retry_failed:
        return False
    same_size = item.size is None or row["size"] == item.size  # that of a table's row is known when it is read
    return is_current and same_size and row["modified"] == item.modified
