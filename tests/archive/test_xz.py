"""xz streams of tar files: all that the format allows, and no more memory than is allowed."""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_at.archive.inputs import list_items
from whisper_at.archive.xz import open_xz


@given(
    parts=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    zeros=st.integers(0, 3),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5),
)
def test_streams_follow_one_another_with_padding_as_the_format_allows(parts, zeros, sizes):
    packed = b"".join(lzma.compress(part) + bytes(4 * zeros) for part in parts)
    stream, expected = open_xz(io.BytesIO(packed)), io.BytesIO(b"".join(parts))
    for size in sizes:
        assert stream.read(size) == expected.read(size)
    assert stream.read() == expected.read()


@pytest.mark.parametrize("format", [lzma.FORMAT_XZ, lzma.FORMAT_ALONE])
def test_seeks_in_what_is_unpacked(format):
    content = bytes(i * i % 251 for i in range(300_000))
    stream = open_xz(io.BytesIO(lzma.compress(content, format=format)))
    for position in (5, 70_000, 70_010, 299_990, 200, 150_000):
        stream.seek(position)
        assert stream.tell() == position
        assert stream.read(3) == content[position : position + 3]
    assert stream.seek(400_000) == len(content)
    assert stream.seek(0) == 0
    assert stream.read() == content
    with pytest.raises(io.UnsupportedOperation):
        stream.seek(0, os.SEEK_END)


def test_a_stream_cut_short_is_an_error():
    packed = lzma.compress(bytes(range(256)) * 1000)
    with pytest.raises(EOFError):
        open_xz(io.BytesIO(packed[: len(packed) // 2])).read()


def test_a_dictionary_larger_than_allowed_is_refused(tmp_path):
    """Its header asks for 1.5 GB, which would be taken before the first byte is there."""
    member = io.BytesIO()
    with tarfile.open(fileobj=member, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.wav"))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    small = lzma.compress(member.getvalue(), format=lzma.FORMAT_XZ, filters=filters)
    (tmp_path / "small.tar.xz").write_bytes(small)
    (tmp_path / "best.txz").write_bytes(lzma.compress(member.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    (tmp_path / "huge.tar.xz").write_bytes(with_dictionary(small, 37))
    for name in ("small.tar.xz", "best.txz"):
        (item,) = list_items([tmp_path / name])
        assert (item.member, item.problem) == ("a.wav", None)
    (item,) = list_items([tmp_path / "huge.tar.xz"])
    assert "huge.tar.xz cannot be read to its end as a tar file: Memory usage limit exceeded" in item.problem


def with_dictionary(packed, code):
    """Return a stream whose first block header asks for a dictionary of another size: 2 or 3 times a power of 2."""
    size = 4 * (packed[12] + 1)
    header = bytearray(packed[12 : 12 + size - 4])
    at = header.index(0x21)  # the filter LZMA2, one byte of properties
    header[at + 2] = code
    return packed[:12] + bytes(header) + zlib.crc32(header).to_bytes(4, "little") + packed[12 + size :]
