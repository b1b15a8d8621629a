"""The folder of an archive: its tables in parts, its plan, and what is done of it.

A part appears whole or not at all. That of ``files`` is what counts: the part of ``events`` is made of it, and made
again where a run was stopped between the two.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checkpoints.files import atomic_write
from .items import Item
from .schema import SCHEMA_VERSION, files_schema, make_events_table

if TYPE_CHECKING:
    import pyarrow as pa

DESCRIPTION = "archive.json"
PLAN = "plan"
WORK = "work"
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
    """The folder of an archive.

    Parameters
    ----------
    folder : str or path
        Made if it is not there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.work = self.folder / WORK
        for name in ("files", "events", PLAN, WORK):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out; RuntimeError if there is one. The lock goes with the process, however it ends."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "lock", blocking=False)
        try:
            with lock:
                yield
        except Timeout:
            raise RuntimeError(f"another run is working on {self.folder}; wait for it, or stop it") from None

    def clean(self) -> None:
        """Remove what runs that were stopped have left behind, and make parts of ``events`` that are missing."""
        for name in ("files", "events", PLAN):
            for leftover in (self.folder / name).glob(".*"):
                leftover.unlink()
        for leftover in self.work.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        for path in self.parts():
            self.write_events(path)

    # --- description and plan ---

    def description(self) -> dict[str, Any] | None:
        """Return what ``archive.json`` says, or None where there is none yet."""
        try:
            content: dict[str, Any] = json.loads((self.folder / DESCRIPTION).read_bytes())
        except FileNotFoundError:
            return None
        return content

    def write_description(self, description: Mapping[str, Any]) -> None:
        """Write ``archive.json``."""
        with atomic_write(self.folder / DESCRIPTION) as temporary:
            temporary.write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", "utf-8")

    def read_plan(self) -> dict[str, int]:
        """Return the shard of every recording that is planned, by its id, in order."""
        import pyarrow.parquet as pq

        plan: dict[str, int] = {}
        for path in sorted((self.folder / PLAN).glob("*.parquet")):
            table = pq.read_table(path)
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
        number = len(list((self.folder / PLAN).glob("*.parquet")))
        table = pa.table([list(new), list(new.values())], schema=schema)
        write_table(table, self.folder / PLAN / f"plan-{number:05d}.parquet")
        plan |= new

    # --- parts ---

    def part(self, index: int) -> Path:
        """Return the path of a part of ``files``."""
        return self.folder / "files" / f"part-{index:05d}.parquet"

    def parts(self) -> list[Path]:
        """Return the parts of ``files`` that there are."""
        return sorted((self.folder / "files").glob("part-*.parquet"))

    def read_part(self, index: int) -> pa.Table | None:
        """Return a part of ``files``; None if it is not there, or has the columns of another version."""
        import pyarrow.parquet as pq

        path = self.part(index)
        if not path.exists() or not pq.read_schema(path).equals(files_schema()):
            return None
        return pq.read_table(path)

    def state(self) -> dict[str, dict[str, Any]]:
        """Return `COLUMNS_OF_STATE` of every row of this version, by its id."""
        import pyarrow.parquet as pq

        rows: dict[str, dict[str, Any]] = {}
        for path in self.parts():
            if pq.read_schema(path).equals(files_schema()):
                table = pq.read_table(path, columns=list(COLUMNS_OF_STATE))
                rows |= {row["id"]: row for row in table.to_pylist() if row["schema_version"] == SCHEMA_VERSION}
        return rows

    def write_part(self, index: int, table: pa.Table) -> None:
        """Write a part of ``files``, then that of ``events``."""
        path = self.part(index)
        write_table(table, path)
        self.write_events(path)

    def write_events(self, path: Path) -> None:
        """Write the part of ``events`` that belongs to one of ``files``, unless it is there."""
        import pyarrow.parquet as pq

        target = self.folder / "events" / path.name
        stamp = _checksum(path)
        if target.exists() and (pq.read_schema(target).metadata or {}).get(CHECKSUM) == stamp:
            return
        files = pq.read_table(path, columns=["id", "path", "member", "events"])
        write_table(make_events_table(files).replace_schema_metadata({CHECKSUM: stamp}), target)


def _checksum(path: Path) -> bytes:
    """Return a hash of a part's footer, which has sizes and statistics of all columns; the whole would take long."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        length = file.tell()
        file.seek(max(0, length - 8))
        footer = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(0, length - footer))
        return hashlib.sha256(file.read()).hexdigest().encode()


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table under a temporary name, and rename it when it is on the disk."""
    import pyarrow.parquet as pq

    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=1024)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())


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
