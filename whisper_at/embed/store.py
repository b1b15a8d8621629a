"""Embeddings on disk: Parquet, or ``.npz`` without pyarrow; written piece by piece, there whole or not at all.

A row is ``path``, ``start``, ``end`` (seconds) and ``embedding`` (float32); how they were made is kept as JSON, in
Parquet's metadata under ``whisper_at`` and in ``.npz`` as ``config``.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ..checkpoints.files import temporary_beside
from .embedding import Embedding

KEY = b"whisper_at"
GROUP = 256  # rows that are written together


class Rows(NamedTuple):
    """Some rows of a file: paths, starts and ends in seconds, and vectors ``(rows, width)``."""

    paths: list[str]
    starts: np.ndarray
    ends: np.ndarray
    vectors: np.ndarray


class EmbeddingWriter:
    """Writes rows to ``path`` as they come; at the end of a ``with`` block without error the file is there.

    Parameters
    ----------
    path : ``.parquet`` or ``.npz``
    width : of the vectors
    config : how they are made, for `read_config`

    Raises
    ------
    ValueError
        If the name ends otherwise.
    RuntimeError
        If it is to be Parquet and pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], width: int, config: Mapping[str, Any]):
        self.path, self.width, self.config = Path(path), width, dict(config)
        self.rows = 0
        self._pending: list[Embedding] = []
        self._temporary = temporary_beside(self.path)
        if self.path.suffix.lower() not in (".parquet", ".npz"):
            raise ValueError(f"embeddings are written to a .parquet or an .npz, not to {self.path.name}")
        kind = _Npz if self.path.suffix.lower() == ".npz" else _Parquet
        self._sink: _Parquet | _Npz = kind(self._temporary, width, self.config)

    def write(self, row: Embedding) -> None:
        """Add a row."""
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) >= GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            paths, starts, ends, vectors = zip(*self._pending)
            self._sink.add(Rows(list(paths), np.array(starts), np.array(ends), np.stack(vectors)))
            self._pending = []

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
            self._sink.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


class _Parquet:
    def __init__(self, path: Path, width: int, config: Mapping[str, Any]):
        pa = _pyarrow()
        fields = [("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
        fields.append(("embedding", pa.list_(pa.float32(), width)))
        self.width, self.schema = width, pa.schema(fields, metadata={KEY: json.dumps(config).encode()})
        self._writer = pa.parquet.ParquetWriter(path, self.schema)

    def add(self, rows: Rows) -> None:
        pa = _pyarrow()
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.reshape(-1)), self.width)
        columns = [pa.array(rows.paths), pa.array(rows.starts), pa.array(rows.ends), vectors]
        self._writer.write_table(pa.table(columns, schema=self.schema))

    def close(self) -> None:
        self._writer.close()


class _Npz:
    """Vectors go to a file as they come, since an ``.npy`` says at its start how many it holds."""

    def __init__(self, path: Path, width: int, config: Mapping[str, Any]):
        self._path, self._width, self._config = path, width, dict(config)
        self._raw_path = path.with_name(f"{path.name}.raw")
        self._raw = open(self._raw_path, "wb")
        self._paths: list[str] = []
        self._starts: list[float] = []
        self._ends: list[float] = []

    def add(self, rows: Rows) -> None:
        self._raw.write(np.ascontiguousarray(rows.vectors, "<f4").data)
        self._paths += rows.paths
        self._starts += rows.starts.tolist()
        self._ends += rows.ends.tolist()

    def close(self) -> None:
        try:
            self._raw.close()
            with zipfile.ZipFile(self._path, "w", allowZip64=True) as archive:
                small = {"path": np.array(self._paths, str), "start": np.array(self._starts, float)}
                small |= {"end": np.array(self._ends, float), "config": np.array(json.dumps(self._config))}
                for name, array in small.items():
                    with archive.open(f"{name}.npy", "w") as out:
                        np.lib.format.write_array(out, array, allow_pickle=False)
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(self._paths), self._width)}
                with archive.open("embedding.npy", "w", force_zip64=True) as out, open(self._raw_path, "rb") as raw:
                    np.lib.format.write_array_header_1_0(out, header)
                    shutil.copyfileobj(raw, out)
        finally:
            self._raw_path.unlink(missing_ok=True)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How the embeddings of a file were made.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a file of embeddings.
    """
    path = _existing(path)
    text: bytes | str | None = None
    if path.suffix.lower() == ".npz":
        with np.load(path) as content:
            text = str(content["config"]) if "config" in content else None
    else:
        text = (_opened(path).schema_arrow.metadata or {}).get(KEY)
    if text is None:
        raise ValueError(f"{path} does not say how its embeddings were made; write it with `whisper-at embed`")
    return json.loads(text)


def read_rows(path: str | os.PathLike[str], at_once: int = 4096) -> Iterator[Rows]:
    """The rows of a file, ``at_once`` at a time."""
    path = _existing(path)
    if path.suffix.lower() == ".npz":
        with np.load(path) as content:
            names, starts, ends, vectors = (content[key] for key in ("path", "start", "end", "embedding"))
        for i in range(0, len(names), at_once):
            part = slice(i, i + at_once)
            yield Rows(names[part].tolist(), starts[part], ends[part], vectors[part])
        return
    for batch in _opened(path).iter_batches(at_once, columns=["path", "start", "end", "embedding"]):
        flat = batch.column(3).flatten().to_numpy(zero_copy_only=False)
        starts, ends = (batch.column(i).to_numpy(zero_copy_only=False) for i in (1, 2))
        yield Rows(batch.column(0).to_pylist(), starts, ends, flat.reshape(len(batch), -1))


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file of embeddings: {path}")
    return path


def _opened(path: Path) -> Any:
    pa = _pyarrow()
    try:
        return pa.parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error})") from None


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RuntimeError("Parquet needs pyarrow: pip install pyarrow, or name a file that ends in .npz") from None
    return pyarrow
