"""Writing of pooled states: to a feature store, or as one ``.npz`` file per clip."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from torch import Tensor

from ..checkpoints.files import atomic_write, size_and_mtime, write_text
from ..checkpoints.hashing import file_sha256
from ..data.clips import Clip
from .files import (
    DTYPES,
    INDEX_FILE,
    METADATA_FILE,
    FeatureMetadata,
    IndexRow,
    check_metadata,
    clip_key,
    open_locked,
    read_index,
    read_metadata,
    stem_key,
)
from .store import Features

MAX_SHARD_BYTES = 256 << 20
MAX_SHARD_CLIPS = 1000
"""A killed run loses the work on up to this many clips."""


class FeatureWriter:
    """Add clips to a feature store, creating it if necessary; a context manager.

    Parameters
    ----------
    folder : path
        The store: a folder that is new, empty, or holds features with the same metadata.
    metadata : FeatureMetadata
        What the states are.

    Attributes
    ----------
    written : dict of str to IndexRow
        The row of every clip that is safely on disk, by its key.

    Raises
    ------
    ValueError
        If the folder holds other things, features of another encoder or protocol, or another process writes there.
    """

    def __init__(self, folder: str | os.PathLike[str], metadata: FeatureMetadata) -> None:
        if metadata.dtype not in DTYPES:
            raise ValueError(f"dtype must be {' or '.join(DTYPES)}, not {metadata.dtype!r}")
        self.folder, self.metadata = Path(folder).expanduser(), metadata
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / METADATA_FILE).exists():
            check_metadata(self.folder, read_metadata(self.folder), metadata)
        elif any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no features; choose another folder")
        else:
            write_text(self.folder / METADATA_FILE, json.dumps(metadata.to_dict(), indent=1) + "\n")
        self._lock = open_locked(self.folder / INDEX_FILE)
        rows, shards, end = read_index(self.folder)
        os.truncate(self.folder / INDEX_FILE, end)  # drop rows whose shard was never finished
        self.written = {row.key: row for row in rows}
        self._next_shard = len(shards)
        self._pending: list[tuple[str, np.ndarray, int, int]] = []
        self._pending_bytes = 0

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()  # also after an error or Ctrl-C: what was computed is kept
        finally:
            self._lock.close()

    def add(self, clip: Clip, states: Tensor | np.ndarray, may_flush: bool = True) -> None:
        """Add the states of a clip; a clip that is already there is replaced.

        Parameters
        ----------
        clip : Clip
            The clip.
        states : Tensor or ndarray, shape (layers, steps, dim)
            Its pooled states, those of several views one after the other.
        may_flush : bool
            Whether a shard may end with this clip. Clips that were encoded in one recording must share a shard.

        Raises
        ------
        ValueError
            If the shape is another, or a value is NaN, infinite, or too large for half precision.
        """
        array = states.detach().cpu().float().numpy() if isinstance(states, Tensor) else np.asarray(states)
        layers, dim = self.metadata.layers, self.metadata.dim
        if array.ndim != 3 or (array.shape[0], array.shape[2]) != (layers, dim) or not array.shape[1]:
            raise ValueError(f"states of {clip.path.name} are {array.shape}, not ({layers}, steps, {dim})")
        with np.errstate(over="ignore"):
            stored = array.astype(self.metadata.dtype)
        if not np.isfinite(stored).all():
            reason = "do not fit half precision; make float32 ones: whisper-at features --dtype float32"
            raise ValueError(f"states of {clip.path.name} {reason if np.isfinite(array).all() else 'are no numbers'}")
        size, mtime = size_and_mtime(clip.path) if clip.path.exists() else (0, 0)
        self._pending.append((clip_key(clip), np.ascontiguousarray(stored.transpose(1, 0, 2)), size, mtime))
        self._pending_bytes += stored.nbytes
        if may_flush and (len(self._pending) >= MAX_SHARD_CLIPS or self._pending_bytes >= MAX_SHARD_BYTES):
            self.flush()

    def flush(self) -> None:
        """Write the pending clips as a shard."""
        if not self._pending:
            return
        name = f"shard-{self._next_shard:05d}.safetensors"
        with atomic_write(self.folder / name) as temporary:
            with open(temporary, "wb") as file:
                file.write(save({"states": np.concatenate([states for _, states, _, _ in self._pending])}))
                file.flush()
                os.fsync(file.fileno())
            sha256, n_bytes = file_sha256(temporary), temporary.stat().st_size
        rows, position = [], 0
        for key, states, size, mtime in self._pending:
            rows.append(IndexRow(key, self._next_shard, position, len(states), size, mtime))
            position += len(states)
        lines = [row._asdict() for row in rows]
        lines.append({"shard": self._next_shard, "file": name, "sha256": sha256, "bytes": n_bytes, "clips": len(rows)})
        with open(self.folder / INDEX_FILE, "a", encoding="utf-8") as index:
            index.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            index.flush()
            os.fsync(index.fileno())
        self.written |= {row.key: row for row in rows}
        self._next_shard, self._pending, self._pending_bytes = self._next_shard + 1, [], 0


def write_npz(features: Features, folder: str | os.PathLike[str], clips: Sequence[int] | None = None) -> int:
    """Write one ``<base name>.npz`` per clip, as earlier recipes read them (spec section 3.1).

    Parameters
    ----------
    features : Features
        Where the states are; of clips with several views, the first one (in isolation) is written.
    folder : path
        Where to write; created if necessary. Each file has an array ``arr_0`` of shape (layers, steps, dim).
    clips : sequence of int, optional
        Indices of the clips; all by default.

    Returns
    -------
    int
        Number of files.

    Raises
    ------
    ValueError
        If two clips have the same base name.
    """
    folder = Path(folder).expanduser()
    clips = range(len(features)) if clips is None else clips
    keys: dict[str, str] = {}
    for i in clips:
        key = features.rows[i].key
        if (other := keys.setdefault(stem_key(key), key)) != key:
            raise ValueError(f"{other} and {key} would have the same name as .npz; rename one of them")
    folder.mkdir(parents=True, exist_ok=True)
    for i in clips:
        path = folder / f"{stem_key(features.rows[i].key)}.npz"
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, np.ascontiguousarray(features.states(i)))
    return len(keys)
