"""Pooled states of many clips on disk, read when they are needed."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.files import size_and_mtime
from ..checkpoints.hashing import file_sha256
from ..data.clips import Clip
from .files import (
    INDEX_FILE,
    METADATA_FILE,
    FeatureMetadata,
    IndexRow,
    ShardInfo,
    clip_key,
    read_index,
    read_metadata,
    split_key,
    stem_key,
)


class Features:
    """Pooled states of clips in a store, see `whisper_at.features.files`; open one with :meth:`open`.

    Shards are memory-mapped. Each is compared with its SHA-256 at its first use, unless `verify` is False.
    """

    def __init__(
        self,
        folder: Path,
        metadata: FeatureMetadata,
        rows: Sequence[IndexRow],
        shards: Sequence[ShardInfo],
        verify: bool = True,
    ) -> None:
        self.folder, self.metadata, self.rows = folder, metadata, tuple(rows)
        self._shards, self._verify = shards, verify
        self._mapped: dict[int, np.ndarray] = {}
        self._by_key = {row.key: i for i, row in enumerate(self.rows)}
        self._by_stem: dict[str, int] = {}
        for i, row in enumerate(self.rows):  # -1 marks names that several clips have
            self._by_stem[stem_key(row.key)] = -1 if stem_key(row.key) in self._by_stem else i

    @classmethod
    def open(cls, folder: str | os.PathLike[str], verify: bool = True) -> Features:
        """Open a store, or a folder of ``.npz`` files with an array ``arr_0`` of shape (layers, steps, dim) each.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        ValueError
            If the folder holds no features, or they are damaged.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"no features in {folder}: there is no such folder; make them: whisper-at features")
        if (folder / METADATA_FILE).is_file():
            rows, shards, _ = read_index(folder)
            return cls(folder, read_metadata(folder), rows, shards, verify)
        files = sorted(path for path in folder.iterdir() if path.suffix == ".npz")
        if not files:
            raise ValueError(
                f"{folder} holds no features: neither {METADATA_FILE} nor .npz; make them: whisper-at features"
            )
        return _NpzFeatures(folder, files)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_steps(self) -> np.ndarray:
        """Steps of 0.4 s in each view, int of shape (views · clips,), ordered by view, then by clip."""
        per_view = np.array([row.steps // self.metadata.views for row in self.rows], int)
        return np.tile(per_view, self.metadata.views)

    def view_indices(self, clips: np.ndarray) -> np.ndarray:
        """Return the indices of all views of clips (n,), int of shape (views, n); the first row is `clips`."""
        return clips + len(self) * np.arange(self.metadata.views)[:, None]

    def find(self, clips: Iterable[Clip]) -> np.ndarray:
        """Return the index of each clip in this store, int of shape (clips,); -1 for those that are not in it.

        A clip is found by its path. Since audio and features get moved, a clip is else found by its file name, if only
        one of `clips` and one in the store have it, and the file that the states were computed from is gone. A clip
        whose file is there, but has changed since, is not found.
        """
        clips = list(clips)
        stems = Counter(stem_key(key) for key in {clip_key(clip) for clip in clips})
        return np.array([self._find(clip, stems) for clip in clips], int)

    def _find(self, clip: Clip, stems: Mapping[str, int]) -> int:
        """Return the index of a clip or -1; `stems` counts the clips of each file name that are asked for."""
        key = clip_key(clip)
        try:
            current = size_and_mtime(clip.path)
        except OSError:
            current = None  # the audio was deleted or moved
        if (i := self._by_key.get(key)) is not None:
            return i if current in (None, (self.rows[i].size, self.rows[i].mtime)) else -1
        i = self._by_stem.get(stem_key(key), -1)
        if i < 0 or stems[stem_key(key)] > 1:
            return -1
        row = self.rows[i]
        if not row.size:  # the audio file is not known, as with .npz
            return i
        moved = not os.path.exists(split_key(row.key)[0])
        return i if moved and (current is None or current[0] == row.size) else -1

    def states(self, i: int) -> np.ndarray:
        """Return the states of view `i`, shape (layers, steps, dim), memory-mapped in the precision of the store.

        The index of a clip is that of its first view; for others see `view_indices`.

        Raises
        ------
        ValueError
            If the shard is missing or damaged.
        """
        view, i = divmod(i, len(self))
        row, steps = self.rows[i], self.rows[i].steps // self.metadata.views
        first = row.position + view * steps
        return self._map_shard(row.shard)[first : first + steps].transpose(1, 0, 2)

    def batch(self, indices: Sequence[int] | np.ndarray, steps: int, starts: Sequence[int] | None = None) -> Tensor:
        """Return rows of equal length, each cut from a view.

        A view that ends too early is continued from its beginning: heads do not depend on order, so repeated steps mean
        what the clip means, while zeros would not (defect D5).

        Parameters
        ----------
        indices : sequence of int
            Views, see `view_indices`.
        steps : int
            Length of the rows.
        starts : sequence of int, optional
            First step of each row; 0 by default.

        Returns
        -------
        Tensor
            float32, shape (batch, layers, steps, dim).
        """
        out = np.empty((len(indices), self.metadata.layers, steps, self.metadata.dim), np.float32)
        for item, i in enumerate(indices):
            states, start = self.states(int(i)), 0 if starts is None else int(starts[item])
            if start + steps <= states.shape[1]:
                out[item] = states[:, start : start + steps]
            else:
                out[item] = states[:, (start + np.arange(steps)) % states.shape[1]]
        return torch.from_numpy(out)

    def _map_shard(self, number: int) -> np.ndarray:
        """Return the memory-mapped states of a shard, shape (steps, layers, dim)."""
        if number not in self._mapped:
            shard = self._shards[number]
            path = self.folder / shard.file
            advice = f"delete {self.folder} and make the features again"
            if not path.is_file():
                raise ValueError(f"{path}, a shard of these features, is missing; {advice}")
            if path.stat().st_size != shard.bytes:
                raise ValueError(f"{path} has {path.stat().st_size} bytes, not {shard.bytes}: it is damaged; {advice}")
            if self._verify and file_sha256(path) != shard.sha256:
                raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {INDEX_FILE}; {advice}")
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))["states"]
            dtype = {"F16": "<f2", "F32": "<f4"}[header["dtype"]]
            offset = 8 + length + header["data_offsets"][0]
            self._mapped[number] = np.memmap(path, dtype, "r", offset, tuple(header["shape"]))
        return self._mapped[number]


class _NpzFeatures(Features):
    """A folder of ``<base name>.npz``, the layout of earlier recipes (spec section 3.1)."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        shapes = [_npz_shape(path) for path in files]
        layers, _, dim = shapes[0]
        for path, shape in zip(files, shapes):
            if (shape[0], shape[2]) != (layers, dim):
                raise ValueError(f"{path} is of {shape[0]} layers of width {shape[2]}, {files[0]} of {layers} of {dim}")
        rows = [IndexRow(path.stem, i, 0, shape[1], 0, 0) for i, (path, shape) in enumerate(zip(files, shapes))]
        super().__init__(folder, FeatureMetadata("", "", "", 0, layers, dim), rows, ())
        self._files = files

    def _find(self, clip: Clip, stems: Mapping[str, int]) -> int:
        stem = stem_key(clip_key(clip))
        return self._by_key.get(stem, -1) if stems[stem] == 1 else -1

    def states(self, i: int) -> np.ndarray:
        return np.load(self._files[i])["arr_0"]


def _npz_shape(path: Path) -> tuple[int, int, int]:
    """Return the shape of ``arr_0`` from its header alone."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = read(file)
    except Exception as error:  # its type depends on what the bytes happen to be
        raise ValueError(f"{path} cannot be read as features ({error}); delete it and make it again") from None
    if len(shape) != 3:
        raise ValueError(f"{path} holds an array of shape {shape}, not (layers, steps, dim)")
    return shape
