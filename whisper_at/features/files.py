"""Files of a feature store: metadata, the index of clips, and shards of pooled states.

A store is a folder::

    features.json            what the states are: model, encoder_sha256, protocol, seconds, layers, dim, dtype, hearings
    index.jsonl              a row per clip; after the rows of a shard, a line with the shard's file, SHA-256 and size
    shard-00000.safetensors  "states", shape (steps of all its clips, layers, dim)
    heard.jsonl              cache of `whisper_at.features.validate_data`; optional

A shard is valid once its line is in the index, which is only appended to. A killed run therefore loses no more than the
shard that it was filling.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..data.clips import Clip
from .concat_clips import NUM_ORDERS

if sys.platform != "win32":
    import fcntl

METADATA_FILE, INDEX_FILE = "features.json", "index.jsonl"
DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class FeatureMetadata:
    """What the pooled states of a store are.

    Attributes
    ----------
    model : str
        Name or path of the Whisper; empty, as are hash and protocol, for ``.npz`` files, which do not record it.
    encoder_sha256 : str
        Hash of its encoder, see `whisper_at.checkpoints.encoder_sha256`.
    protocol : str
        How clips are presented to the encoder, see `whisper_at.features.encode.describe_features`.
    seconds : float
        Length of the clips under protocol ``"10"``; 0 otherwise.
    layers, dim : int
        Size of the encoder.
    dtype : str
        ``"float16"`` or ``"float32"``.
    views : int
        How often each clip is encoded, see `num_views`; ``hearings`` on disk.
    """

    model: str
    encoder_sha256: str
    protocol: str
    seconds: float
    layers: int
    dim: int
    dtype: str = "float16"
    views: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the fields under their names on disk."""
        values = asdict(self)
        values["hearings"] = values.pop("views")
        return values


def num_views(protocol: str) -> int:
    """Return how often a clip is encoded: under protocol 30+, once in isolation and several times in context."""
    return 1 + NUM_ORDERS if protocol == "30+" else 1


class IndexRow(NamedTuple):
    """Where the states of a clip are stored; the field names are those on disk.

    Attributes
    ----------
    key : str
        Name of the clip, see `clip_key`.
    shard : int
        Number of the shard.
    position : int
        First step within the shard.
    steps : int
        Number of steps, of all views together.
    size, mtime : int
        Bytes and time of change (ns) of the audio file; 0 if it is not known.
    """

    key: str
    shard: int
    position: int
    steps: int
    size: int
    mtime: int


class ShardInfo(NamedTuple):
    """File name, SHA-256 and number of bytes of a shard."""

    file: str
    sha256: str
    bytes: int


def clip_key(clip: Clip) -> str:
    """Return the name of a clip in an index: the absolute path, and the part of the file if it is one."""
    return os.path.abspath(clip.path) + clip.key[len(str(clip.path)) :]


def stem_key(key: str) -> str:
    """Return what remains of a key when files move: the name without folder and ending, and the part of the file."""
    path, part = split_key(key)
    return Path(path).stem + part


def split_key(key: str) -> tuple[str, str]:
    """Return file and part (``#start-end`` or empty) of a key; file names may contain ``#`` themselves."""
    part = re.search(r"#[\d.]+-[\d.]*$", key)
    return (key[: part.start()], part.group()) if part else (key, "")


def read_metadata(folder: Path) -> FeatureMetadata:
    """Read ``features.json``; ValueError if it is damaged."""
    path = folder / METADATA_FILE
    try:
        values = json.loads(path.read_text("utf-8"))
        values["views"] = values.pop("hearings", 1)
        return FeatureMetadata(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe features ({error}); delete {folder}") from None


def check_metadata(folder: Path, found: FeatureMetadata, expected: FeatureMetadata) -> None:
    """Raise ValueError unless a store holds the expected features; the model may have another name."""
    found_values, expected_values = found.to_dict(), expected.to_dict()
    for name in ("encoder_sha256", "protocol", "hearings", "seconds", "layers", "dim", "dtype"):
        if found_values[name] != expected_values[name]:
            raise ValueError(
                f"{folder} holds features of {found.model} with {name} = {found_values[name]}, not "
                f"{expected_values[name]}; choose another folder, or delete that one"
            )


def read_index(folder: Path) -> tuple[list[IndexRow], list[ShardInfo], int]:
    """Read ``index.jsonl`` up to the last finished shard.

    Returns
    -------
    rows : list of IndexRow
        The last row of each key.
    shards : list of ShardInfo
        The finished shards.
    end : int
        Number of bytes read; what follows belongs to a shard that was not finished.

    Raises
    ------
    ValueError
        If the index is damaged.
    """
    path = folder / INDEX_FILE
    if not path.exists():
        return [], [], 0
    rows: dict[str, IndexRow] = {}
    pending: list[IndexRow] = []
    shards: list[ShardInfo] = []
    end = position = 0
    with open(path, "rb") as file:
        for line in file:
            position += len(line)
            try:
                fields = json.loads(line)
                if "key" in fields:
                    pending.append(IndexRow(**fields))
                    continue
                shards.append(ShardInfo(fields["file"], fields["sha256"], fields["bytes"]))
                complete = fields["shard"] == len(shards) - 1 and fields["clips"] == len(pending)
            except (ValueError, TypeError, KeyError):
                if not line.endswith(b"\n"):
                    break  # a run was killed while it wrote this line
                complete = False
            if not complete:
                raise ValueError(f"{path} is damaged; delete {folder} and make the features again")
            for row in pending:
                rows.pop(row.key, None)
                rows[row.key] = row
            pending, end = [], position
    return list(rows.values()), shards, end


def open_locked(path: Path) -> IO[bytes]:
    """Open a file for appending and lock it until it is closed; ValueError if another process holds the lock.

    There is no lock on Windows.
    """
    file = open(path, "ab")  # noqa: SIM115  the caller closes it
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ValueError(
                f"another process is writing to {path.parent}; wait for it, or choose another folder"
            ) from None
    return file
