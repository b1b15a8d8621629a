"""Where a dataset lies: a folder of this machine, or an object store that fsspec reaches.

Either way a file appears whole under its name, or not at all: a folder's by renaming, an object by one upload, which a
store shows when it has all of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

from ..checkpoints.files import atomic_write
from .items import is_url

OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "memory")
"""Protocols whose uploads appear whole. Over others, as sftp or webdav, readers would see halves of files."""


class StorageError(RuntimeError):
    """An upload failed: it is no recording's fault."""


class Storage(Protocol):
    """What a dataset needs of the place where it lies. Names of files are relative, with ``/``."""

    location: str

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's files, sorted, without those that are being written."""

    def open(self, name: str) -> IO[bytes]:
        """Open a file to read; FileNotFoundError if there is none."""

    def new_file(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Yield a local file to write, which is there under its name if no error comes."""

    def new_files(self, folder: str) -> contextlib.AbstractContextManager[Path]:
        """Yield a local folder for files that are written whole; they are in `folder` afterwards."""

    def work_folder(self) -> str | None:
        """Return a local folder for temporary files, or None for the system's."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other runs out where that can be done; RuntimeError if there is one."""

    def clean(self, folders: Iterable[str]) -> None:
        """Remove what runs that were stopped have left behind in folders."""


def open_storage(location: str | os.PathLike[str]) -> Storage:
    """Return the place of a dataset.

    Parameters
    ----------
    location : str or path
        A folder, ``file://`` and a path, or the URL of one of `OBJECT_STORES`.

    Raises
    ------
    ValueError
        If the protocol is another one.
    """
    location = absolute(location)
    return ObjectStorage(location) if is_url(location) else FolderStorage(location)


def absolute(location: str | os.PathLike[str]) -> str:
    """Return a place so that it means the same in every process: a folder as an absolute path.

    Examples
    --------
    >>> absolute("file:///data/set"), absolute("s3://bucket/set/")
    ('/data/set', 's3://bucket/set')
    """
    text = os.fspath(location)
    if not is_url(text):
        return os.path.abspath(text)
    protocol, _, rest = text.partition("://")
    if protocol in ("file", "local"):
        return os.path.abspath(rest)
    if protocol not in OBJECT_STORES:
        raise ValueError(
            f"{text} is no place for a dataset: files do not appear whole over {protocol}; "
            f"give a folder, or a URL of {', '.join(OBJECT_STORES)}"
        )
    return text.rstrip("/")


class FolderStorage:
    """A folder of this machine, made if it is not there."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._folder = Path(location)
        self._work = self._folder / "work"
        self._work.mkdir(parents=True, exist_ok=True)

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's files, sorted, without those that are being written."""
        try:
            return sorted(name for name in os.listdir(self._folder / folder) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def open(self, name: str) -> IO[bytes]:
        """Open a file to read; FileNotFoundError if there is none."""
        return open(self._folder / name, "rb")

    @contextlib.contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """Yield a temporary file beside that of the name, which is renamed when it is on the disk."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def new_files(self, folder: str) -> Iterator[Path]:
        """Yield the folder itself."""
        path = self._folder / folder
        path.mkdir(parents=True, exist_ok=True)
        yield path

    def work_folder(self) -> str:
        """Return a folder inside it: recordings that are copied do not fill the disk of the system."""
        return str(self._work)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out. The lock goes with the process, however that ends."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._folder / "lock", blocking=False)
        try:
            with lock:
                yield
        except Timeout:
            raise RuntimeError(f"another run is working on {self.location}; wait for it, or stop it") from None

    def clean(self, folders: Iterable[str]) -> None:
        """Remove what runs that were stopped have left behind."""
        leftovers = [path for folder in folders for path in (self._folder / folder).glob(".*")]
        leftovers += self._folder.glob("captions/*/.whisper-at-*")
        for leftover in [*leftovers, *self._work.iterdir()]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


class ObjectStorage:
    """A place in an object store, as fsspec reaches it."""

    def __init__(self, location: str) -> None:
        import fsspec

        self.location = location
        self._store, self._root = fsspec.core.url_to_fs(location)

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's files, sorted."""
        self._store.invalidate_cache()  # other workers write, too
        try:
            found = self._store.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        return sorted(filter(None, (name.rpartition("/")[2] for name in found)))

    def open(self, name: str) -> IO[bytes]:
        """Open an object to read; FileNotFoundError if there is none."""
        file: IO[bytes] = self._store.open(f"{self._root}/{name}", "rb")
        return file

    @contextlib.contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """Yield a local file, which is uploaded."""
        with self.new_files(name.rpartition("/")[0]) as folder:
            yield folder / name.rpartition("/")[2]

    @contextlib.contextmanager
    def new_files(self, folder: str) -> Iterator[Path]:
        """Yield a temporary folder, whose files are uploaded one after the other."""
        with tempfile.TemporaryDirectory(prefix="whisper-at-") as local:
            yield Path(local)
            for name in sorted(os.listdir(local)):
                target = "/".join(part for part in (self._root, folder, name) if part)
                try:
                    self._store.put_file(os.path.join(local, name), target)
                except Exception as error:  # of the types of each protocol's package
                    raise StorageError(f"{folder}/{name} cannot be uploaded to {self.location}: {error}") from error

    def work_folder(self) -> None:
        """Return None: temporary files are the system's."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Do nothing: a lock in an object store would outlive the run that is killed."""
        yield

    def clean(self, folders: Iterable[str]) -> None:
        """Do nothing: what was not uploaded to its end is not there."""
