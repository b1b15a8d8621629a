"""Recordings as files on this machine: from tar files, tables and URLs they are copied to a working folder.

What is copied is bounded, so that a few bytes that unpack to very many do not fill the disk.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from .inputs import find_column, open_binary, open_unpacked
from .items import Item

CHUNK = 1 << 20
ROWS_AT_ONCE = 16
"""Rows of a table of bytes that are in memory at once."""


class Fetcher:
    """Copies recordings that are not files of their own, one after the other.

    It keeps the tar file or table that it read last open, since the next recording is most often the one behind.

    Parameters
    ----------
    folder : Path
        Where copies go; whoever gets one deletes it.
    max_bytes : int
        Largest recording.
    column : str, optional
        As of `InputOptions`.
    """

    def __init__(self, folder: Path, max_bytes: int, column: str | None = None) -> None:
        self.folder, self.max_bytes, self.column = folder, max_bytes, column
        self._open: tuple[str, Any] | None = None

    def fetch(self, item: Item) -> Path | None:
        """Return a copy of a recording, or None if it is a local file itself.

        Raises
        ------
        ValueError
            If it is larger than allowed, its tar file or table has changed, or it is known that it cannot be read.
        OSError
            If it cannot be read, or the disk is full.
        """
        if item.problem is not None:
            raise ValueError(item.problem)
        if item.offset is None and item.row is None and not item.is_url:
            return None
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=os.path.splitext(item.member or item.path)[1][:16])
        try:
            with open(handle, "wb") as target:
                self._copy(item, target)
        except BaseException:
            os.unlink(name)
            raise
        return Path(name)

    def _copy(self, item: Item, target: IO[bytes]) -> None:
        if item.size is not None and item.size > self.max_bytes:
            raise ValueError(f"{item.label} has {item.size} bytes, more than the {self.max_bytes} that are allowed")
        if item.offset is not None:
            stream = self._container(item.path, open_unpacked)
            stream.seek(item.offset)
            self._copy_stream(item, stream, target, item.size)
        elif item.row is not None:
            content = self._container(item.path, lambda path: TableOfBytes(path, self.column))[item.row]
            if content is None or len(content) > self.max_bytes:
                raise ValueError(f"{item.label} holds {'no bytes' if content is None else 'more than allowed'}")
            target.write(content)
        else:
            with open_binary(item.path) as source:
                self._copy_stream(item, source, target, None)

    def _copy_stream(self, item: Item, source: IO[bytes], target: IO[bytes], size: int | None) -> None:
        left = self.max_bytes if size is None else size
        while chunk := source.read(min(CHUNK, left + 1) if size is None else min(CHUNK, left)):
            left -= len(chunk)
            if left < 0:
                raise ValueError(f"{item.label} has more than the {self.max_bytes} bytes that are allowed")
            target.write(chunk)
        if size is not None and left:
            raise ValueError(f"{item.path} ends within {item.member}")

    def _container(self, path: str, opener: Any) -> Any:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = path, opener(path)
        return self._open[1]

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            self._open[1].close()
        self._open = None


class TableOfBytes:
    """The recordings in a column of a Parquet file, by row; rows are best asked for in their order."""

    def __init__(self, path: str, column: str | None = None) -> None:
        import pyarrow.parquet as pq

        self._file = open_binary(path)
        self._table = pq.ParquetFile(self._file)
        self._column = find_column(path, self._table.schema_arrow.names, column)
        self._batches: OrderedDict[int, list[Any]] = OrderedDict()
        self._restart()

    def _restart(self) -> None:
        self._next, self._iterator = 0, self._table.iter_batches(ROWS_AT_ONCE, columns=[self._column])

    def __getitem__(self, row: int) -> bytes | None:
        while True:
            for first, values in self._batches.items():
                if first <= row < first + len(values):
                    value = values[row - first]
                    return value.get("bytes") if isinstance(value, dict) else value
            if row < self._next:
                self._restart()
            batch = next(self._iterator, None)
            if batch is None:
                raise ValueError(f"there is no row {row} any more")
            self._batches[self._next] = batch.column(0).to_pylist()
            self._next += batch.num_rows
            while len(self._batches) > 2:
                self._batches.popitem(last=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def sha256_and_size(path: str | os.PathLike[str]) -> tuple[str, int]:
    """Return the SHA-256 of a file in hexadecimal, and its bytes."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def check_float_wave(path: str | os.PathLike[str], label: str) -> None:
    """Raise ValueError if a WAV file of floating point samples has some that are NaN or infinite.

    Decoded to 16 bits they would be loud clicks, from which a model makes up text.
    """
    with open(path, "rb") as file:
        for dtype, channels, rate, offset, size in _float_wave_data(file):
            file.seek(offset)
            first, left = 0, size
            while block := file.read(min(CHUNK, left)):
                samples = np.frombuffer(block[: len(block) // dtype.itemsize * dtype.itemsize], dtype)
                wrong = ~np.isfinite(samples)
                if wrong.any():
                    at = (first + int(wrong.argmax())) // channels
                    raise ValueError(f"{label} must be finite, but is NaN or infinite at {at / rate:.4f} s")
                first, left = first + len(samples), left - len(block)


def _float_wave_data(file: IO[bytes]) -> Iterator[tuple[np.dtype[Any], int, int, int, int]]:
    """Yield type, channels, rate, offset and bytes of the samples of a WAV of floats; nothing of other files."""
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
        return
    form: tuple[np.dtype[Any], int, int] | None = None
    while len(header := file.read(8)) == 8:
        name, size = header[:4], struct.unpack("<I", header[4:])[0]
        start = file.tell()
        if name == b"fmt " and size >= 16:
            content = file.read(min(size, 40))
            code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
            if code == 0xFFFE and len(content) >= 26:
                code = struct.unpack("<H", content[24:26])[0]
            if code != 3 or bits not in (32, 64) or not channels or not rate:
                return
            form = np.dtype(f"<f{bits // 8}"), channels, rate
        if name == b"data":
            if form is not None:  # to the end of the file, where the header does not know
                yield *form, start, size if 0 < size < 0xFFFFFFFF else 1 << 62
            return
        file.seek(start + size + size % 2)
