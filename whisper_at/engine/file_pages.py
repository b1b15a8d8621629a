"""Weights that are mapped from a file instead of copied: whether they were written to, and giving their memory back.

Pages of a private mapping are the file's until they are written to, when the process gets pages of its own. Linux tells
which are which (``Documentation/admin-guide/mm/pagemap.rst``). Pages that are the file's may be dropped at any time:
who reads them again reads the file. Elsewhere, and where the system does not tell, nothing here applies to any tensor.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

MIN_BYTES = 1 << 16
"""Of a tensor whose pages are looked after; smaller ones do not matter."""
MADV_DONTNEED = 4
_OF_FILE, _PRESENT = 1, 4
"""Bits 61 and 63 of an entry of pagemap, moved down by 61; bit 62 is set of pages that were swapped out."""


class FilePages:
    """Pages of those of some tensors that are mapped privately from files, and unchanged when this is made.

    Attributes
    ----------
    addresses : set of int
        Where these tensors begin.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.addresses: set[int] = set()
        self._ranges: list[tuple[int, int]] = []
        large = sorted((t.data_ptr(), t.nbytes) for t in tensors if _may_be_mapped(t))
        mappings = list(_private_mappings()) if large and _tells_pages() else []
        for address, n_bytes in large:
            start, end = address // mmap.PAGESIZE * mmap.PAGESIZE, address + n_bytes
            end = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
            inside = any(low <= start and end <= high for low, high, _offset, _path in mappings)
            if not inside or not _is_unchanged(start, end):
                continue
            self.addresses.add(address)
            if self._ranges and start <= self._ranges[-1][1]:
                start, _ = self._ranges.pop()
            self._ranges.append((start, end))

    def are_unchanged(self) -> bool:
        """Return whether none of them has been written to."""
        return all(_is_unchanged(start, end) for start, end in self._ranges)

    def release(self) -> None:
        """Give back the memory of all that have not been written to."""
        for start, end in self._ranges:
            if _is_unchanged(start, end):
                _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


class FileRows:
    """Rows of a matrix that is mapped from a file, read from the file one by one.

    Linux 6.18 maps up to 2 MB around every address that is read, so that the rows of a minute's tokens would bring most
    of an embedding into memory.
    """

    def __init__(self, matrix: Tensor, path: str, start: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - read from as long as this lives
        self._start, self._row_bytes, self._dtype = start, matrix.shape[1] * matrix.itemsize, matrix.dtype

    @classmethod
    def of(cls, matrix: Tensor) -> FileRows | None:
        """Return them if the matrix is mapped and its file is where it was, else None."""
        address = matrix.data_ptr()
        for low, high, offset, path in _private_mappings():
            if low <= address and address + matrix.nbytes <= high:
                try:
                    rows = cls(matrix, path, offset + address - low)
                    ends = torch.tensor([0, len(matrix) - 1])
                    return rows if torch.equal(rows[ends], matrix[ends]) else None
                except (OSError, ValueError, RuntimeError):
                    return None
        return None

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return rows ``(…, width)`` by their numbers ``(…)``."""
        places = [self._start + row * self._row_bytes for row in indices.flatten().tolist()]
        data = bytearray().join(os.pread(self._file.fileno(), self._row_bytes, place) for place in places)
        return torch.frombuffer(data, dtype=self._dtype).view(*indices.shape, -1)


def release_library(name: str) -> None:
    """Give back the memory of the code of a library that is loaded; whoever runs it reads it from its file again.

    Parameters
    ----------
    name : str
        What the name of its file begins with.
    """
    if not _tells_pages():
        return
    for low, high, _offset, path in list(_private_mappings(read_only=True)):  # no thread writes there meanwhile
        if os.path.basename(path).startswith(name) and _is_unchanged(low, high):
            _libc().madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), MADV_DONTNEED)


def _may_be_mapped(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.nbytes >= MIN_BYTES and tensor.is_contiguous()


def _private_mappings(*, read_only: bool = False) -> Iterator[tuple[int, int, int, str]]:
    """Yield first and last address of what is mapped privately from files, where it is in its file, and the file."""
    with open("/proc/self/maps") as file:
        for line in file:
            addresses, access, offset, _device, inode, *path = line.rstrip("\n").split(None, 5)
            is_wanted = access.endswith("p") and not (read_only and "w" in access)
            if is_wanted and inode != "0" and path:
                low, high = addresses.split("-")
                yield int(low, 16), int(high, 16), int(offset, 16), path[0]


def _is_unchanged(start: int, end: int) -> bool:
    """Return whether all pages between two addresses in a private mapping are the file's."""
    kinds = _page_kinds(start, end)
    return not kinds.any() or not np.any((kinds != 0) & (kinds & _OF_FILE == 0))


def _page_kinds(start: int, end: int) -> np.ndarray:
    first, count = start // mmap.PAGESIZE, (end - start) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        entries = os.pread(file.fileno(), 8 * count, 8 * first)
    kinds: np.ndarray = np.frombuffer(entries, np.uint64) >> np.uint64(61)
    if len(kinds) != count:
        raise OSError(f"/proc/self/pagemap tells of {len(kinds)} pages, not {count}")
    return kinds


@cache
def _tells_pages() -> bool:
    """Return whether this system tells a page that was written to from one that was read: of this file, mapped."""
    if sys.platform != "linux":
        return False
    kinds = []
    try:
        values = np.memmap(__file__, np.uint8, "c")
        start = values.ctypes.data
        for write in (False, True):
            first = values[0].copy()
            if write:
                values[0] = first
            kinds.append(int(_page_kinds(start, start + mmap.PAGESIZE)[0]))
        return kinds == [_PRESENT | _OF_FILE, _PRESENT] and hasattr(_libc(), "madvise")
    except (OSError, ValueError):
        return False


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
