"""From what is named on a command line to recordings: folders, patterns, lists, tables, tar files and URLs.

Only what the operator names is opened. What lists and tables name may be local files, and URLs below those that the
operator allows; nothing is taken from what recordings themselves contain.
"""

from __future__ import annotations

import glob
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from ..data.clips import AUDIO_SUFFIXES
from .items import Item, is_url
from .tar import read_members
from .xz import open_xz

MEDIA_SUFFIXES = AUDIO_SUFFIXES | frozenset(
    ".ac3 .aifc .amr .ape .asf .avi .caf .dts .flv .m4b .m4v .mka .mp2 .mpeg .mpg .mts .mxf .rm .snd .spx .tta .ts "
    ".voc .w64 .wv .wmv".split()
)
"""Files that are taken from folders and tar files; others are not looked at."""
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
MAX_TAR_LISTING = 256 << 20
"""Bytes, of names and 256 for each, of the recordings that are taken from one tar file: some MB can hold very many."""
PATH_COLUMNS = ("path", "file", "filename", "file_name", "url", "audio")
BYTES_COLUMNS = ("bytes", "audio", "wav", "mp3", "flac", "data")


def is_media(name: str) -> bool:
    """Return whether a file is one that is looked at, by its suffix."""
    return os.path.splitext(name)[1].lower() in MEDIA_SUFFIXES


@dataclass(frozen=True)
class InputOptions:
    """How inputs are read.

    Attributes
    ----------
    column : str, optional
        Column of tables that has the paths or the bytes; by default the first whose name says so.
    root : str, optional
        Folder that paths in lists and tables are relative to, instead of that of the list.
    allowed_urls : tuple of str
        What URLs in lists and tables must begin with.
    """

    column: str | None = None
    root: str | None = None
    allowed_urls: tuple[str, ...] = ()


def list_items(inputs: Iterable[str | os.PathLike[str]], options: InputOptions | None = None) -> list[Item]:
    """Return all recordings, each once, sorted by path and by their order in tar files and tables.

    Parameters
    ----------
    inputs : iterable of str or path
        Folders (with all folders in them), patterns with ``*``, files; ``.txt`` (a path a line, or parted by null
        bytes), ``.csv``, ``.tsv`` and ``.parquet`` of paths or bytes; tar files; or URLs of these.
    options : InputOptions, optional

    Raises
    ------
    FileNotFoundError
        If an input does not exist. What lists name is looked for later.
    ValueError
        If a table has no column of recordings, or a list names a URL that is not allowed.
    """
    options = options or InputOptions()
    found: dict[tuple[str, str | None], Item] = {}
    for source in inputs:
        for item in _items_of(os.fspath(source), options):
            found.setdefault((item.path, item.member), item)
    return sorted(found.values(), key=lambda i: (os.fsencode(i.path), i.offset or 0, i.row or 0, i.member or ""))


def _items_of(source: str, options: InputOptions) -> Iterator[Item]:
    if is_url(source):
        yield from _url_items(source, options)
        return
    path = os.path.abspath(source if os.path.lexists(source) else os.path.expanduser(source))
    if os.path.isdir(path):
        yield from _folder_items(path)
    elif os.path.lexists(path):
        yield from _file_items(path, options)
    elif glob.has_magic(source):
        matches = glob.glob(os.path.expanduser(source), recursive=True)
        if not matches:
            raise FileNotFoundError(f"nothing matches {source!r}")
        for match in matches:
            path = os.path.abspath(match)
            yield from _folder_items(path) if os.path.isdir(path) else _file_items(path, options)
    else:
        raise FileNotFoundError(f"no such file or folder: {source!r}")


def _folder_items(folder: str) -> Iterator[Item]:
    """Yield the recordings in a folder and those below; links to folders, pipes and devices are left out."""
    for parent, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            if is_media(name):
                item = _local_item(os.path.join(parent, name))
                if item is not None:
                    yield item


def _raise(error: OSError) -> None:
    raise error


def _local_item(path: str) -> Item | None:
    """Return a file with its size and time; without them if it is not there, and None if it is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return Item(path)
    return Item(path, size=status.st_size, modified=status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _file_items(path: str, options: InputOptions) -> Iterator[Item]:
    """Yield what a file or URL holds or names: itself, if it is no list, table or tar file."""
    lower = path.lower()
    if lower.endswith(".txt"):
        for line in _lines(path):
            yield _named_item(line, path, options)
    elif lower.endswith(TABLE_SUFFIXES):
        yield from _table_items(path, options)
    elif lower.endswith(TAR_SUFFIXES):
        yield from _tar_items(path)
    elif is_url(path):
        yield _url_item(path)
    elif (item := _local_item(path)) is not None:
        yield item
    else:
        raise ValueError(f"{path} is no file")


def _named_item(name: str, source: str, options: InputOptions) -> Item:
    """Return the recording that a list or table names."""
    if is_url(name):
        if not name.startswith(options.allowed_urls or ("\0",)):
            raise ValueError(f"{source} names {name}: URLs in lists need allowed_urls, of which one begins this one")
        return Item(name)
    if is_url(source) and not options.root:
        if not os.path.isabs(name) and ".." not in name.split("/"):
            return Item(f"{source.rpartition('/')[0]}/{name}")
        raise ValueError(f"{source} names {name!r}: a list at a URL names files below it, or relative to a root")
    root = options.root or os.path.dirname(source)
    path = os.path.abspath(os.path.join(os.path.expanduser(root), name))
    return _local_item(path) or Item(path)


def _lines(path: str) -> list[str]:
    with open_binary(path) as file:
        content: bytes = file.read()
    lines = content.split(b"\0") if b"\0" in content else content.removeprefix(b"\xef\xbb\xbf").splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def open_binary(path: str) -> IO[bytes]:
    """Open a local file or a URL; ImportError says what to install for one."""
    if not is_url(path):
        return open(path, "rb")
    import fsspec

    file: IO[bytes] = fsspec.open(path, "rb").open()
    return file


# --- tar files ----------------------------------------------------------------------------------------------


def open_unpacked(path: str) -> IO[bytes]:
    """Open a tar file, local or at a URL, as the stream that it is when unpacked."""
    import fsspec

    lower = path.lower()
    if lower.endswith((".xz", ".txz")):
        return open_xz(open_binary(path))
    compression = "infer"
    for ending, kind in ((".tgz", "gzip"), (".tbz2", "bz2")):
        if lower.endswith(ending):
            compression = kind
    file: IO[bytes] = fsspec.open(path if is_url(path) else f"file://{path}", "rb", compression=compression).open()
    return file


def _tar_items(path: str) -> Iterator[Item]:
    """Yield the recordings in a tar file, and the file itself with what is wrong with it, if it is damaged.

    Of members of one name each is a recording, numbered from the second on.
    """
    names: dict[str, int] = {}
    left = MAX_TAR_LISTING
    try:
        with open_unpacked(path) as stream:
            for member in read_members(stream):
                if not member.is_file or not is_media(member.name):
                    continue
                left -= 256 + len(member.name)
                if left < 0:
                    raise tarfile.ReadError(f"it has more than the {len(names)} recordings that are taken")
                name = _unused_name(member.name, names)
                problem = f"{path}:{name} is stored without its zeros: pack it without --sparse"
                item = Item(path, name, member.size, member.modified, member.offset)
                yield item._replace(problem=problem) if member.is_sparse else item
    except Exception as error:  # of many types, depending on how it is packed
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        problem = f"{path} cannot be read to its end as a tar file: {' '.join(str(error).split())}"
        yield (Item(path) if is_url(path) else _local_item(path) or Item(path))._replace(problem=problem)


# --- tables -------------------------------------------------------------------------------------------------


def _table_items(path: str, options: InputOptions) -> Iterator[Item]:
    if not path.lower().endswith(".parquet"):
        yield from _csv_items(path, options)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_binary(path) as file:
        table = pq.ParquetFile(file)
        schema = table.schema_arrow
        column = find_column(path, schema.names, options.column)
        kind = schema.field(column).type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            for batch in table.iter_batches(columns=[column]):
                yield from (_named_item(n, path, options) for n in batch.column(0).to_pylist() if n)
            return
        read = [column]
        if pa.types.is_struct(kind):  # as the package datasets keeps audio: {bytes, path}
            read = [f"{column}.path"] if "path" in {f.name for f in kind} else []
        elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ValueError(f"{path}: column {column!r} holds {kind}, neither paths nor bytes")
        names = _member_names(table, read) if pa.types.is_struct(kind) else [None] * table.metadata.num_rows
    container = None if is_url(path) else _local_item(path)
    modified = container.modified if container else None
    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        member = _unused_name(f"{row}" if name is None else os.path.basename(name), seen)
        yield Item(path, member, None, modified, None, row)


def _unused_name(name: str, counts: dict[str, int]) -> str:
    """Return a name, numbered from its second recording on, that none before has; `counts` are of those before."""
    unused = name
    while unused in counts:
        counts[name] += 1
        unused = f"{name}#{counts[name]}"
    counts[unused] = 1
    return unused


def _member_names(table: Any, columns: Sequence[str]) -> list[str | None]:
    """Return the names that a column of structs has for its recordings."""
    if not columns:
        return [None] * int(table.metadata.num_rows)
    structs = [value for batch in table.iter_batches(columns=columns) for value in batch.column(0).to_pylist()]
    return [value and value.get("path") for value in structs]


def find_column(path: str, names: Sequence[str], wanted: str | None) -> str:
    """Return the column of a table that has recordings; ValueError if there is none."""
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{path} has no column {wanted!r}; it has {', '.join(names)}")
        return wanted
    for name in dict.fromkeys([*PATH_COLUMNS, *BYTES_COLUMNS]):
        if name in names:
            return name
    raise ValueError(f"{path} has no column of recordings by a usual name: name one of {', '.join(names)}")


def _csv_items(path: str, options: InputOptions) -> Iterator[Item]:
    import csv

    with open_binary(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.DictReader(text, delimiter="\t" if path.lower().endswith(".tsv") else ",")
        column = find_column(path, list(reader.fieldnames or []), options.column)
        for row in reader:
            if row[column]:
                yield _named_item(row[column], path, options)


# --- URLs ---------------------------------------------------------------------------------------------------


def _url_items(url: str, options: InputOptions) -> Iterator[Item]:
    """Yield what the operator's URL names: a folder's recordings, a pattern's, or one file's."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    if glob.has_magic(path):
        names = filesystem.glob(path)
        if not names:
            raise FileNotFoundError(f"nothing matches {url!r}")
    elif filesystem.isdir(path):
        names = [name for name in filesystem.find(path) if is_media(name)]
    else:
        yield from _file_items(url, options)
        return
    for name in names:
        yield from _file_items(filesystem.unstrip_protocol(name), options)


def _url_item(url: str) -> Item:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    details = filesystem.info(path)
    return Item(url, size=details.get("size"), modified=_modified_ns(details))


def _modified_ns(details: dict[str, Any]) -> int | None:
    """Return when a file at a URL was changed, in ns, where its protocol says that."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = details.get(key)
        if isinstance(value, datetime):
            return int(value.timestamp() * 1e9)
        if isinstance(value, (int, float)):
            return int(value * 1e9)
    return None
