"""Pooled states of many clips on disk: half precision, in shards that are read without loading them.

A store is a folder::

    features.json            what the states are: model, encoder_sha256, protocol, layers, dim, dtype
    index.jsonl              a row for each clip, and after the rows of a shard one that names its file and SHA-256
    shard-00000.safetensors  "states" (steps of all its clips, layers, dim)
    heard.jsonl              what training's look over the clips found in each, see `check`; it may be missing

A shard counts once its row is in the index, which is only ever appended to: a run that is killed loses the shard
it was filling. The layout of earlier recipes, one ``.npz`` a clip (spec section 3.1), is read and written too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from ..checkpoints.files import atomic_write, write_text
from ..data.clips import Clip
from .concat_clips import TIMES

ABOUT, INDEX = "features.json", "index.jsonl"
DTYPES = ("float16", "float32")
SHARD_BYTES = 256 << 20
SHARD_CLIPS = 1000  # at most so many clips' work is lost when a run is killed


@dataclass(frozen=True)
class About:
    """What the states of a store are.

    Attributes
    ----------
    model : name or path of the Whisper; empty where the store does not say (``.npz``), as SHA-256 and protocol then are
    encoder_sha256 : of its encoder, see `whisper_at.checkpoints.encoder_sha256`
    protocol : ``"10"`` for clips alone, ``"30"`` for windows as transcription makes them …, see `extract.describe`
    seconds : length of the clips under protocol 10; 0 otherwise
    layers, dim : of the encoder
    dtype : ``float16`` or ``float32``
    hearings : how often each clip was heard, see `hearings_of`
    """

    model: str
    encoder_sha256: str
    protocol: str
    seconds: float
    layers: int
    dim: int
    dtype: str = "float16"
    hearings: int = 1


def hearings_of(protocol: str) -> int:
    """How often clips are heard: under protocol 30+ by themselves, and some times in company."""
    return 1 + TIMES if protocol == "30+" else 1


class Row(NamedTuple):
    """Where the states of a clip lie, and the size (bytes) and time of change (ns) of the file they are of."""

    key: str
    shard: int
    position: int  # first step in the shard
    steps: int  # of all hearings
    size: int
    mtime: int


def key_of(clip: Clip) -> str:
    """The name of a clip in an index: its absolute path, and which part of the file it is."""
    return os.path.abspath(clip.path) + clip.key[len(str(clip.path)) :]


def short_key(key: str) -> str:
    """The part of a key that survives when files move: base name without its ending, and the part of the file."""
    path, part = parted(key)
    return Path(path).stem + part


def parted(key: str) -> tuple[str, str]:
    """The file and the part of it (``#start-end``, or nothing) of a key; files may have a ``#`` in their names."""
    part = re.search(r"#[\d.]+-[\d.]*$", key)
    return (key[: part.start()], part.group()) if part else (key, "")


def stamp(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Size and time of change of a file, which tell whether states are still its own."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


class Features:
    """Pooled states of clips, read as they are asked for.

    Open one by :meth:`open`. Shards are mapped into memory; each is checked against its SHA-256 when it is first
    used, unless ``verify`` is False.
    """

    def __init__(self, folder: Path, about: About, rows: Sequence[Row], shards: Sequence[_Shard], verify: bool = True):
        self.folder, self.about, self.rows = folder, about, tuple(rows)
        self._shards, self._verify = shards, verify
        self._maps: dict[int, np.ndarray] = {}
        self._index = {row.key: i for i, row in enumerate(self.rows)}
        self._by_short: dict[str, int] = {}
        for i, row in enumerate(self.rows):  # -1: several have that name
            self._by_short[short_key(row.key)] = -1 if short_key(row.key) in self._by_short else i

    @classmethod
    def open(cls, folder: str | os.PathLike[str], verify: bool = True) -> Features:
        """Open a store, or a folder of ``.npz`` with an array ``arr_0`` ``(layers, steps, dim)`` each.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        ValueError
            If it holds no features, or they are damaged.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"no features in {folder}: there is no such folder; make them: whisper-at features")
        if (folder / ABOUT).is_file():
            rows, shards, _ = _read_index(folder)
            return cls(folder, _read_about(folder), rows, shards, verify)
        files = sorted(path for path in folder.iterdir() if path.suffix == ".npz")
        if not files:
            raise ValueError(f"{folder} holds no features: neither {ABOUT} nor .npz; make them: whisper-at features")
        return _NpzFeatures(folder, files)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_steps(self) -> np.ndarray:
        """Steps of 0.4 s of each hearing, int ``(hearings · clips,)``: the first of every clip, the second …"""
        once = np.array([row.steps // self.about.hearings for row in self.rows], int)
        return np.tile(once, self.about.hearings)

    def hearings(self, items: np.ndarray) -> np.ndarray:
        """Numbers of all hearings of clips ``(clips,)``, int ``(hearings, clips)``; the first row is ``items``."""
        return items + len(self) * np.arange(self.about.hearings)[:, None]

    def find(self, clips: Iterable[Clip]) -> np.ndarray:
        """Where each clip is in this store, int ``(clips,)``; -1 for those that are not.

        A clip is found by its path. Since audio and features move, it is else found by its base name, if only one of
        ``clips`` and one here have it, and the file that the states are of is gone from where it was. Where a clip's
        own file is there and is not the one that the states are of, it is not found.
        """
        clips = list(clips)
        names = Counter(short_key(key) for key in {key_of(clip) for clip in clips})
        return np.array([self._find(clip, names) for clip in clips], int)

    def _find(self, clip: Clip, names: Mapping[str, int]) -> int:
        """Where a clip is, by what `find` says; ``names`` counts the clips of each base name that are asked for."""
        key = key_of(clip)
        try:
            own = stamp(clip.path)
        except OSError:
            own = None  # the audio has gone, or is elsewhere
        if (i := self._index.get(key)) is not None:
            return i if own in (None, (self.rows[i].size, self.rows[i].mtime)) else -1
        i = self._by_short.get(short_key(key), -1)
        if i < 0 or names[short_key(key)] > 1:
            return -1
        row = self.rows[i]
        if not row.size:  # it was not known which file the states are of, as with .npz
            return i
        moved = not os.path.exists(parted(row.key)[0])
        return i if moved and (own is None or own[0] == row.size) else -1

    def states(self, i: int) -> np.ndarray:
        """States of hearing ``i``, ``(layers, steps, dim)`` in the precision of the store, mapped from the disk.

        That is the number of a clip, for its first one; see `hearings`.

        Raises
        ------
        ValueError
            If its shard is missing or is not the one that was written.
        """
        hearing, i = divmod(i, len(self))
        row, steps = self.rows[i], self.rows[i].steps // self.about.hearings
        first = row.position + hearing * steps
        return self._map(row.shard)[first : first + steps].transpose(1, 0, 2)

    def batch(self, indices: Sequence[int] | np.ndarray, steps: int, starts: Sequence[int] | None = None) -> Tensor:
        """``steps`` steps of each hearing, float32 ``(batch, layers, steps, dim)``.

        They start at ``starts``, 0 by default. Where a clip ends too early it goes on from its beginning: heads have no
        notion of order, so repeated steps mean what the clip means, which zeros would not (defect D5).
        """
        out = np.empty((len(indices), self.about.layers, steps, self.about.dim), np.float32)
        for item, i in enumerate(indices):
            states, start = self.states(int(i)), 0 if starts is None else int(starts[item])
            if start + steps <= states.shape[1]:
                out[item] = states[:, start : start + steps]
            else:
                out[item] = states[:, (start + np.arange(steps)) % states.shape[1]]
        return torch.from_numpy(out)

    def _map(self, number: int) -> np.ndarray:
        """The states of a shard, ``(steps, layers, dim)``."""
        if number not in self._maps:
            shard = self._shards[number]
            path = self.folder / shard.file
            again = f"delete {self.folder} and make the features again"
            if not path.is_file():
                raise ValueError(f"{path}, a shard of these features, is missing; {again}")
            if path.stat().st_size != shard.bytes:
                raise ValueError(f"{path} has {path.stat().st_size} bytes, not {shard.bytes}: it is damaged; {again}")
            if self._verify and _sha256(path) != shard.sha256:
                raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {INDEX}; {again}")
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))["states"]
            dtype = {"F16": "<f2", "F32": "<f4"}[header["dtype"]]
            offset = 8 + length + header["data_offsets"][0]
            self._maps[number] = np.memmap(path, dtype, "r", offset, tuple(header["shape"]))
        return self._maps[number]


class _NpzFeatures(Features):
    """A folder of ``<base name>.npz``."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        shapes = [_npz_shape(path) for path in files]
        layers, _, dim = shapes[0]
        for path, shape in zip(files, shapes):
            if (shape[0], shape[2]) != (layers, dim):
                raise ValueError(f"{path} is of {shape[0]} layers of width {shape[2]}, {files[0]} of {layers} of {dim}")
        rows = [Row(path.stem, i, 0, shape[1], 0, 0) for i, (path, shape) in enumerate(zip(files, shapes))]
        super().__init__(folder, About("", "", "", 0, layers, dim), rows, ())
        self._files = files

    def _find(self, clip: Clip, names: Mapping[str, int]) -> int:
        name = short_key(key_of(clip))
        return self._index.get(name, -1) if names[name] == 1 else -1

    def states(self, i: int) -> np.ndarray:
        return np.load(self._files[i])["arr_0"]


class FeatureWriter:
    """Adds clips to a store, making it if need be; use it in a ``with`` statement.

    Attributes
    ----------
    done : the row of every clip that is safely on disk, by its key

    Raises
    ------
    ValueError
        If the folder holds other things, features of another encoder or protocol, or another process writes there.
    """

    def __init__(self, folder: str | os.PathLike[str], about: About) -> None:
        if about.dtype not in DTYPES:
            raise ValueError(f"dtype must be {' or '.join(DTYPES)}, not {about.dtype!r}")
        self.folder, self.about = Path(folder).expanduser(), about
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / ABOUT).exists():
            refuse_other(self.folder, _read_about(self.folder), about)
        elif any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no features; choose another folder")
        else:
            write_text(self.folder / ABOUT, json.dumps(asdict(about), indent=1) + "\n")
        self._lock = _locked(self.folder / INDEX)
        rows, shards, end = _read_index(self.folder)
        os.truncate(self.folder / INDEX, end)  # rows whose shard was never finished
        self.done = {row.key: row for row in rows}
        self._next = len(shards)
        self._waiting: list[tuple[str, np.ndarray, int, int]] = []
        self._bytes = 0

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()  # also when an error or Ctrl-C ends the work: what was heard is kept
        finally:
            self._lock.close()

    def add(self, clip: Clip, states: Tensor | np.ndarray, last: bool = True) -> None:
        """Add a clip's states ``(layers, steps, dim)``; a clip that is there already is replaced.

        Of clips that were heard together, only the ``last`` may end a shard.

        Raises
        ------
        ValueError
            If they have another shape, or values that are no numbers or too large for half precision.
        """
        array = states.detach().cpu().float().numpy() if isinstance(states, Tensor) else np.asarray(states)
        wanted = (self.about.layers, self.about.dim)
        if array.ndim != 3 or (array.shape[0], array.shape[2]) != wanted or not array.shape[1]:
            raise ValueError(f"states of {clip.path.name} are {array.shape}, not ({wanted[0]}, steps, {wanted[1]})")
        with np.errstate(over="ignore"):
            stored = array.astype(self.about.dtype)
        if not np.isfinite(stored).all():
            reason = "do not fit half precision; make float32 ones: whisper-at features --dtype float32"
            raise ValueError(f"states of {clip.path.name} {reason if np.isfinite(array).all() else 'are no numbers'}")
        size, mtime = stamp(clip.path) if clip.path.exists() else (0, 0)
        self._waiting.append((key_of(clip), np.ascontiguousarray(stored.transpose(1, 0, 2)), size, mtime))
        self._bytes += stored.nbytes
        if last and (len(self._waiting) >= SHARD_CLIPS or self._bytes >= SHARD_BYTES):
            self.flush()

    def flush(self) -> None:
        """Write a shard of what is waiting."""
        if not self._waiting:
            return
        name = f"shard-{self._next:05d}.safetensors"
        path = self.folder / name
        with atomic_write(path) as temporary:
            with open(temporary, "wb") as file:
                file.write(save({"states": np.concatenate([states for _, states, _, _ in self._waiting])}))
                file.flush()
                os.fsync(file.fileno())
            sha256, n_bytes = _sha256(temporary), temporary.stat().st_size
        rows, position = [], 0
        for key, states, size, mtime in self._waiting:
            rows.append(Row(key, self._next, position, len(states), size, mtime))
            position += len(states)
        lines = [row._asdict() for row in rows]
        lines.append({"shard": self._next, "file": name, "sha256": sha256, "bytes": n_bytes, "clips": len(rows)})
        with open(self.folder / INDEX, "a", encoding="utf-8") as index:
            index.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            index.flush()
            os.fsync(index.fileno())
        self.done |= {row.key: row for row in rows}
        self._next, self._waiting, self._bytes = self._next + 1, [], 0


def refuse_other(folder: Path, there: About, wanted: About) -> None:
    """Raise ValueError unless a store holds what is wanted; the model may go by another name."""
    for name in ("encoder_sha256", "protocol", "hearings", "seconds", "layers", "dim", "dtype"):
        if getattr(there, name) != getattr(wanted, name):
            raise ValueError(
                f"{folder} holds features of {there.model} with {name} = {getattr(there, name)}, not "
                f"{getattr(wanted, name)}; choose another folder, or delete that one"
            )


# --- files --------------------------------------------------------------------------------------------------


class _Shard(NamedTuple):
    file: str
    sha256: str
    bytes: int


def _read_about(folder: Path) -> About:
    try:
        return About(**json.loads((folder / ABOUT).read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / ABOUT} does not describe features ({error}); delete {folder}") from None


def _read_index(folder: Path) -> tuple[list[Row], list[_Shard], int]:
    """Rows of whole shards (the last of each key), the shards, and the byte at which the whole part ends."""
    rows: dict[str, Row] = {}
    waiting: list[Row] = []
    shards: list[_Shard] = []
    end = place = 0
    for line in _lines(folder / INDEX):
        place += len(line)
        try:
            parts = json.loads(line)
            if "key" in parts:
                waiting.append(Row(**parts))
                continue
            shards.append(_Shard(parts["file"], parts["sha256"], parts["bytes"]))
            whole = parts["shard"] == len(shards) - 1 and parts["clips"] == len(waiting)
        except (ValueError, TypeError, KeyError):
            if not line.endswith(b"\n"):
                break  # a run was killed while it wrote this
            whole = False
        if not whole:
            raise ValueError(f"{folder / INDEX} is damaged; delete {folder} and make the features again")
        for row in waiting:
            rows.pop(row.key, None)
            rows[row.key] = row
        waiting, end = [], place
    return list(rows.values()), shards, end


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with open(path, "rb") as file:
            yield from file


def _locked(path: Path) -> IO[bytes]:
    """Open a file that no other process may have opened so; the lock goes when it is closed or the process ends."""
    file = open(path, "ab")
    try:
        import fcntl
    except ImportError:  # Windows: nothing guards there
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(
            f"another process is writing to {path.parent}; wait for it, or choose another folder"
        ) from None
    return file


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _npz_shape(path: Path) -> tuple[int, int, int]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = read(file)
    except Exception as error:  # of many types, by what the bytes happen to be
        raise ValueError(f"{path} cannot be read as features ({error}); delete it and make it again") from None
    if len(shape) != 3:
        raise ValueError(f"{path} holds an array of shape {shape}, not (layers, steps, dim)")
    return shape
