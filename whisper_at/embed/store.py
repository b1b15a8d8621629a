"""Embeddings on disk: Parquet, or ``.npz`` without pyarrow; written in batches, complete or not at all.

A row is ``path``, ``start``, ``end`` (seconds) and ``embedding`` (float32). How the embeddings were made is kept as
JSON, in Parquet's metadata under ``whisper_at`` and in ``.npz`` as ``config``.
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

METADATA_KEY = b"whisper_at"
ROWS_PER_WRITE = 256
SUFFIXES = (".parquet", ".npz")


class EmbeddingBatch(NamedTuple):
    """Rows of a file: paths, starts and ends in seconds, and vectors, float32, shape (rows, width)."""

    paths: list[str]
    starts: np.ndarray
    ends: np.ndarray
    vectors: np.ndarray


class EmbeddingWriter:
    """Write embeddings to a file, which is there after a ``with`` block that ends without an error.

    Parameters
    ----------
    path : str or path
        File to write, ``.parquet`` or ``.npz``.
    width : int
        Width of the vectors.
    config : mapping
        How they are made, for `read_config`.

    Attributes
    ----------
    rows : int
        Number of rows written so far.

    Raises
    ------
    ValueError
        If the file's name ends otherwise.
    RuntimeError
        If it is to be Parquet and pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], width: int, config: Mapping[str, Any]):
        self.path, self.rows = Path(path), 0
        self._pending: list[Embedding] = []
        self._temporary = temporary_beside(self.path)
        suffix = self.path.suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"embeddings are written to a .parquet or an .npz, not to {self.path.name}")
        file_class = _NpzFile if suffix == ".npz" else _ParquetFile
        self._file: _ParquetFile | _NpzFile = file_class(self._temporary, width, config)

    def write(self, embedding: Embedding) -> None:
        """Add a row."""
        self._pending.append(embedding)
        self.rows += 1
        if len(self._pending) >= ROWS_PER_WRITE:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            paths, starts, ends, vectors = zip(*self._pending)
            self._file.write(EmbeddingBatch(list(paths), np.array(starts), np.array(ends), np.stack(vectors)))
            self._pending = []

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
            self._file.close()
            if error is None:
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


class _ParquetFile:
    def __init__(self, path: Path, width: int, config: Mapping[str, Any]):
        pa = _import_pyarrow()
        fields = [("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
        fields.append(("embedding", pa.list_(pa.float32(), width)))
        self._width = width
        self._schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(dict(config)).encode()})
        self._writer = pa.parquet.ParquetWriter(path, self._schema)

    def write(self, batch: EmbeddingBatch) -> None:
        pa = _import_pyarrow()
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(batch.vectors.reshape(-1)), self._width)
        columns = [pa.array(batch.paths), pa.array(batch.starts), pa.array(batch.ends), vectors]
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _NpzFile:
    """Vectors are first collected in a raw file, since the header of an ``.npy`` says how many follow."""

    def __init__(self, path: Path, width: int, config: Mapping[str, Any]):
        self._path, self._width, self._config = path, width, dict(config)
        self._raw_path = path.with_name(f"{path.name}.raw")
        self._raw = open(self._raw_path, "wb")  # noqa: SIM115  (closed by `close`)
        self._paths: list[str] = []
        self._starts: list[float] = []
        self._ends: list[float] = []

    def write(self, batch: EmbeddingBatch) -> None:
        self._raw.write(np.ascontiguousarray(batch.vectors, "<f4").data)
        self._paths += batch.paths
        self._starts += batch.starts.tolist()
        self._ends += batch.ends.tolist()

    def close(self) -> None:
        try:
            self._raw.close()
            with zipfile.ZipFile(self._path, "w", allowZip64=True) as archive:
                arrays = {"path": np.array(self._paths, str), "start": np.array(self._starts, float)}
                arrays |= {"end": np.array(self._ends, float), "config": np.array(json.dumps(self._config))}
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w") as out:
                        np.lib.format.write_array(out, array, allow_pickle=False)
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(self._paths), self._width)}
                with archive.open("embedding.npy", "w", force_zip64=True) as out, open(self._raw_path, "rb") as raw:
                    np.lib.format.write_array_header_1_0(out, header)
                    shutil.copyfileobj(raw, out)
        finally:
            self._raw_path.unlink(missing_ok=True)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read how the embeddings of a file were made.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a file of embeddings.
    """
    path = _check_is_file(path)
    text: bytes | str | None = None
    if path.suffix.lower() == ".npz":
        with np.load(path) as content:
            text = str(content["config"]) if "config" in content else None
    else:
        text = (_open_parquet(path).schema_arrow.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(f"{path} does not say how its embeddings were made; write it with `whisper-at embed`")
    return json.loads(text)


def read_batches(path: str | os.PathLike[str], batch_size: int = 4096) -> Iterator[EmbeddingBatch]:
    """Yield the rows of a file, at most ``batch_size`` at a time."""
    path = _check_is_file(path)
    if path.suffix.lower() == ".npz":
        with np.load(path) as content:
            paths, starts, ends, vectors = (content[key] for key in ("path", "start", "end", "embedding"))
        for i in range(0, len(paths), batch_size):
            rows = slice(i, i + batch_size)
            yield EmbeddingBatch(paths[rows].tolist(), starts[rows], ends[rows], vectors[rows])
        return
    for batch in _open_parquet(path).iter_batches(batch_size, columns=["path", "start", "end", "embedding"]):
        flat = batch.column(3).flatten().to_numpy(zero_copy_only=False)
        starts, ends = (batch.column(i).to_numpy(zero_copy_only=False) for i in (1, 2))
        yield EmbeddingBatch(batch.column(0).to_pylist(), starts, ends, flat.reshape(len(batch), -1))


def _check_is_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file of embeddings: {path}")
    return path


def _open_parquet(path: Path) -> Any:
    pa = _import_pyarrow()
    try:
        return pa.parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error})") from None


def _import_pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RuntimeError("Parquet needs pyarrow: pip install pyarrow, or name a file that ends in .npz") from None
    return pyarrow
