"""Members of tar files that may be damaged or crafted.

`tarfile` reads what extends the header of a member into memory whatever its size, and takes a damaged header for the
end of the file. Here that size is bounded, and damage is an error. What a single header block says is left to it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER = 1 << 20
"""Bytes of what extends the header of one member, pax records and long names, as in Go's archive/tar."""
MAX_NAME = 4096
"""Bytes of a name; no path on Linux has more."""
MAX_OFFSET = 1 << 62
MAX_INT64 = (1 << 63) - 1
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_SKIPPED_TYPES = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)  # defaults of all members, and where a link leads


class TarMember(NamedTuple):
    """A member of a tar file.

    Attributes
    ----------
    name : str
        As it is in the file, ``..`` included: it is no path to write to.
    size : int
        Bytes.
    modified : int, optional
        Time of change in ns, None if it is none that 64 bits hold.
    offset : int
        Where its bytes begin.
    is_file : bool
        False for folders, links, devices and pipes.
    is_sparse : bool
        Whether bytes that are zero were left out.
    """

    name: str
    size: int
    modified: int | None
    offset: int
    is_file: bool
    is_sparse: bool


def read_members(stream: IO[bytes]) -> Iterator[TarMember]:
    """Yield the members of an unpacked tar file, in order; memory does not grow with their number.

    Parameters
    ----------
    stream : file
        Which can seek forwards.

    Raises
    ------
    tarfile.ReadError
        If a header is damaged, cut short or larger than allowed. Members before it have been yielded.
    """
    position = 0
    while True:
        member, position = _read_member(stream, position)
        if member is None:
            return
        yield member


def _read_member(stream: IO[bytes], position: int) -> tuple[TarMember | None, int]:
    """Return the member whose headers begin at a position, or None at the end, and where the next one's begin."""
    start, extended = position, 0
    records: dict[str, bytes] = {}
    while True:
        stream.seek(position)
        block = stream.read(BLOCK)
        if (not block and position) or block.count(0) == BLOCK:
            if position > start:
                raise tarfile.ReadError(f"the header at byte {start} belongs to no member")
            return None, position
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the header at byte {position} is damaged ({error})") from None
        data = position + BLOCK
        if header.type not in (*_PAX_TYPES, *_SKIPPED_TYPES, tarfile.GNUTYPE_LONGNAME):
            return _make_member(stream, block, header, data, records)
        position = _behind(data, header.size)
        if header.type in _SKIPPED_TYPES:
            continue
        extended += header.size
        if extended > MAX_HEADER:
            raise tarfile.ReadError(f"the header at byte {start} has more than {MAX_HEADER} bytes")
        content = stream.read(header.size)
        if len(content) < header.size:
            raise tarfile.ReadError(f"it ends within the header at byte {start}")
        if header.type in _PAX_TYPES:
            records |= _pax_records(content, start)
        else:
            records["path"] = content.partition(b"\0")[0]


def _make_member(
    stream: IO[bytes], block: bytes, header: tarfile.TarInfo, data: int, records: dict[str, bytes]
) -> tuple[TarMember, int]:
    """Return a member, and the position behind it, from its header and the records that extend it."""
    is_sparse = any(keyword.startswith("GNU.sparse.") for keyword in records)
    if header.type == tarfile.GNUTYPE_SPARSE:
        is_sparse, more = True, bool(block[482])
        while more:  # a list of what is there goes on in further blocks
            block = stream.read(BLOCK)
            if len(block) < BLOCK:
                raise tarfile.ReadError(f"it ends within the header before byte {data}")
            data, more = data + BLOCK, bool(block[504])
    try:
        size = int(records["size"]) if "size" in records else header.size
        mtime = float(records["mtime"]) if "mtime" in records else header.mtime
    except ValueError:
        raise tarfile.ReadError(f"the header before byte {data} has a number that is none") from None
    has_data = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
    behind = _behind(data, size) if has_data else data
    raw = records.get("GNU.sparse.name", records.get("path"))
    name = header.name if raw is None else raw.decode("utf-8", "surrogateescape").rstrip("/")
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
        raise tarfile.ReadError(f"the header before byte {data} has a name of more than {MAX_NAME} bytes")
    return TarMember(name, size, _nanoseconds(mtime), data, header.isreg(), is_sparse), behind


def _behind(data: int, size: int) -> int:
    """Return the position behind the blocks of some bytes; ReadError if there can be no such place."""
    behind = data + -(-size // BLOCK) * BLOCK
    if size < 0 or behind > MAX_OFFSET:
        raise tarfile.ReadError(f"the header before byte {data} claims a size of {size} bytes")
    return behind


def _pax_records(content: bytes, start: int) -> dict[str, bytes]:
    r"""Return the records of a pax header that matter: ``<length> <keyword>=<value>\n`` one after the other."""
    records: dict[str, bytes] = {}
    at = 0
    while content[at : at + 1].strip(b"\0"):
        space = content.find(b" ", at, at + 10)
        digits = content[at : max(at, space)]
        end = at + int(digits) if digits.isdigit() else 0
        record = content[space + 1 : end]
        if not record.endswith(b"\n") or end > len(content):
            raise tarfile.ReadError(f"the pax header at byte {start} is damaged")
        keyword, _, value = record[:-1].partition(b"=")
        if keyword in (b"path", b"size", b"mtime") or keyword.startswith(b"GNU.sparse."):
            records[keyword.decode("ascii", "replace")] = value
        at = end
    return records


def _nanoseconds(seconds: float) -> int | None:
    try:
        nanoseconds = int(seconds * 1e9)
    except (OverflowError, ValueError):  # infinite, or NaN
        return None
    return nanoseconds if abs(nanoseconds) <= MAX_INT64 else None
