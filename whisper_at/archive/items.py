"""One recording of an archive: where it lies, and what it is called."""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple


class Item(NamedTuple):
    """A recording, as the inputs name it.

    Attributes
    ----------
    path : str
        Absolute path or URL of its file, or of the tar file or table that it lies in.
    member : str, optional
        Its name in that tar file or table.
    size, modified : int, optional
        Bytes, and time of change in ns, of the recording; of a table's row, those of the table.
    offset : int, optional
        In a tar file: where its bytes begin, in the stream as it is unpacked.
    row : int, optional
        In a table of bytes: its row.
    problem : str, optional
        Why it cannot be read, where that is known from its tar file: its row has this error.
    """

    path: str
    member: str | None = None
    size: int | None = None
    modified: int | None = None
    offset: int | None = None
    row: int | None = None
    problem: str | None = None

    @property
    def id(self) -> str:
        """32 hexadecimal digits that depend on path and member alone."""
        key = os.fsencode(self.path) + b"\0" + os.fsencode(self.member or "")
        return hashlib.sha256(key).hexdigest()[:32]

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.path if self.member is None else f"{self.path}:{self.member}"

    @property
    def is_url(self) -> bool:
        """Whether its path is a URL."""
        return is_url(self.path)


def is_url(path: str) -> bool:
    """Return whether a path names a protocol.

    Examples
    --------
    >>> is_url("s3://bucket/a.wav"), is_url("C:/a.wav"), is_url("a:b.wav")
    (True, False, False)
    """
    protocol, separator, _ = path.partition("://")
    return bool(separator) and protocol.replace("+", "").replace("::", "").isalnum() and len(protocol) > 1
