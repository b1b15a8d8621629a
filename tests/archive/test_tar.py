"""Tar files: what `tarfile` and GNU tar write is read as they would; what is damaged or crafted costs nothing."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from functools import cache

import pytest
import soundfile
from conftest import noise
from hypothesis import given
from mutations import fuzz, mutate, mutations

from whisper_at.archive import inputs
from whisper_at.archive.inputs import list_items
from whisper_at.archive.tar import BLOCK, MAX_HEADER, read_members

LONG = "/".join(f"folder-{i:04}" for i in range(40)) + "/long.wav"


class Watched(io.BytesIO):
    """A stream that knows the most that was read of it at once, and the bytes that were read altogether."""

    largest = total = 0

    def read(self, size=-1):
        content = super().read(size)
        self.largest, self.total = max(self.largest, size if size >= 0 else 1 << 62), self.total + len(content)
        return content


def header(name="a.wav", kind=tarfile.REGTYPE, size=0, fields=(), sign=0o200):
    """A header block; `fields` are bytes at offsets, and a size above what octal digits hold is in base 256."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    octal = 0 <= size < 8**11
    block[124:136] = (
        b"%011o\0" % size if octal else bytes([0o377 if size < 0 else sign]) + size.to_bytes(11, "big", signed=True)
    )
    for at, value in fields:
        block[at : at + len(value)] = value
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    return bytes(block)


def padded(content):
    return content + bytes(-len(content) % BLOCK)


def pax(**records):
    """A pax header with its records; the length of a record counts its own digits."""
    content = b""
    for keyword, value in records.items():
        record = b" %s=%s\n" % (keyword.encode(), value)
        length = next(n for n in range(len(record), len(record) + 9) if n == len(b"%d" % n) + len(record))
        content += b"%d%s" % (length, record)
    return header("pax", tarfile.XHDTYPE, len(content)) + padded(content)


def names(content):
    return [member.name for member in read_members(io.BytesIO(content))]


@cache
def write_tar(format):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, pax_headers={"comment": "of all"}) as archive:
        for i, name in enumerate(["a.wav", "../../etc/up.wav", "ü 日本.wav", "a.wav", "x" * 99, "empty.wav", LONG]):
            if format == tarfile.USTAR_FORMAT and name == LONG:
                name = "/".join(["d" * 90, "e" * 60, "f.wav"])
            info = tarfile.TarInfo(name)
            content = b"" if name == "empty.wav" else bytes([i]) * (i * 300 + 5)
            info.size, info.mtime = len(content), 1.5e9 + i + (0.25 if format == tarfile.PAX_FORMAT else 0)
            archive.addfile(info, io.BytesIO(content))
        for name, kind in (
            ("folder", tarfile.DIRTYPE), ("soft.wav", tarfile.SYMTYPE), ("hard.wav", tarfile.LNKTYPE),
            ("pipe.wav", tarfile.FIFOTYPE), ("disk.wav", tarfile.BLKTYPE), ("tty.wav", tarfile.CHRTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.wav" if "d" in name else ""
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("last.wav"))
    return buffer.getvalue()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_those_that_tarfile_reads(format):
    content = write_tar(format)
    found = [tuple(member)[:5] for member in read_members(io.BytesIO(content))]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert found == [(m.name, m.size, int(m.mtime * 1e9), m.offset_data, m.isreg()) for m in archive]
    assert len(found) == 14
    assert sum(is_file for *_, is_file in found) == 8


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
@pytest.mark.parametrize("format", ["gnu", "pax", "oldgnu"])
def test_sparse_files_are_told_and_what_follows_is_found(tmp_path, format):
    with open(tmp_path / "sparse.wav", "wb") as file:
        for i in range(40):  # so many pieces that old GNU tar's list of them needs further blocks
            file.seek(i << 16)
            file.write(b"sound")
    (tmp_path / "z.wav").write_bytes(b"after it")
    made = tmp_path / "a.tar"
    command = ["tar", "--sparse", f"--format={format}", "-cf", made, "-C", tmp_path, "sparse.wav", "z.wav"]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this tar has no --sparse")
    content = made.read_bytes()
    found = list(read_members(io.BytesIO(content)))
    assert [(member.name, member.is_sparse) for member in found] == [("sparse.wav", True), ("z.wav", False)]
    assert content[found[1].offset :].startswith(b"after it")
    items = list_items([made])
    assert [item.member for item in items] == ["sparse.wav", "z.wav"]
    assert "--sparse" in items[0].problem
    assert items[1].problem is None


# --- headers that are crafted ---


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [MAX_HEADER + 1, 8**11 - 1, 1 << 40])
def test_a_header_of_any_size_is_not_read(kind, size):
    stream = Watched(header() + header("x", kind, size) + bytes(4 * MAX_HEADER) + header())
    with pytest.raises(tarfile.ReadError, match="more than"):
        list(read_members(stream))
    assert stream.largest <= BLOCK


def test_many_headers_before_one_member_are_bounded_together():
    part = header("x", tarfile.XHDTYPE, 1 << 16) + pax(comment=b"x" * (1 << 15))[BLOCK:].ljust(1 << 16, b"\0")
    assert names(part * 16 + header()) == ["a.wav"]
    with pytest.raises(tarfile.ReadError, match="more than"):
        names(part * 17 + header())
    deep = header("x", tarfile.XHDTYPE, 0) * 5000 + header()  # tarfile calls itself for each
    assert names(deep) == ["a.wav"]


def test_defaults_of_all_members_and_targets_of_links_are_not_read():
    stream = Watched()
    for kind in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
        stream.write(header("x", kind, 4 * MAX_HEADER) + bytes(4 * MAX_HEADER))
    stream.write(header())
    stream.seek(0)
    assert [member.name for member in read_members(stream)] == ["a.wav"]
    assert stream.largest <= BLOCK


def test_digits_without_end_take_no_time():
    """A regular expression would try every digit of them with all that follow."""
    content = b"1" * MAX_HEADER
    with pytest.raises(tarfile.ReadError, match="pax header at byte 0 is damaged"):
        names(header("x", tarfile.XHDTYPE, len(content)) + content + header())


@pytest.mark.parametrize("record", [b"0 path=a\n", b"-9 path=a\n", b"99 path=a\n", b"5 path", b"9 path=a.", b"x", b" "])
def test_pax_records_of_a_wrong_length_are_an_error(record):
    with pytest.raises(tarfile.ReadError, match="damaged"):
        names(header("x", tarfile.XHDTYPE, len(record)) + padded(record) + header())


@pytest.mark.parametrize("size", [-1, -512, -(1 << 80), 1 << 63, 1 << 80])
def test_sizes_that_none_can_have_are_an_error(size):
    """One of -512 would lead back to the same header for ever."""
    with pytest.raises(tarfile.ReadError, match="size of"):
        names(header() + header(size=size))
    with pytest.raises(tarfile.ReadError, match="size of"):
        names(pax(size=b"%d" % size) + header())


@pytest.mark.parametrize("size", [b"", b"nan", b"1" * 5000, b"0x1"])
def test_numbers_that_are_none_are_an_error(size):
    with pytest.raises(tarfile.ReadError, match="number"):
        names(pax(size=size) + header())


@pytest.mark.parametrize("mtime", [b"nan", b"inf", b"1e300", b"9e18", b"-9e18"])
def test_times_that_64_bits_cannot_hold_are_unknown(mtime):
    (member,) = read_members(io.BytesIO(pax(mtime=mtime) + header()))
    assert member.modified is None


def test_a_name_longer_than_a_path_is_an_error():
    assert len(names(pax(path=b"x" * 4092 + b".wav") + header())[0]) == 4096
    with pytest.raises(tarfile.ReadError, match="name of more"):
        names(pax(path=b"x" * 4093 + b".wav") + header())


def test_damage_is_not_taken_for_the_end():
    whole = write_tar(tarfile.PAX_FORMAT)
    damaged = bytearray(whole)
    third = list(read_members(io.BytesIO(whole)))[2].offset - BLOCK
    damaged[third + 5] ^= 1
    found = []
    with pytest.raises(tarfile.ReadError, match=f"at byte {third} is damaged"):
        found.extend(member.name for member in read_members(io.BytesIO(damaged)))
    assert found == ["a.wav", "../../etc/up.wav"]
    for broken in (b"", b"RIFF" * 500, whole[:100], pax(path=b"a.wav"), pax(path=b"a.wav")[:-1]):
        with pytest.raises(tarfile.ReadError):
            names(broken)


def test_memory_does_not_grow_with_the_number_of_members():
    class Endless(io.RawIOBase):
        """So many headers of folders as are asked for."""

        def __init__(self, count):
            self.left, self.block = count, header("folder", tarfile.DIRTYPE)

        def seek(self, position):
            return position

        def read(self, size=-1):
            self.left -= 1
            return self.block if self.left >= 0 else b""

    tracemalloc.start()
    try:
        assert sum(1 for _ in read_members(Endless(1000))) == 1000
        before = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert sum(1 for _ in read_members(Endless(50_000))) == 50_000
        assert tracemalloc.get_traced_memory()[1] < before + 50_000
    finally:
        tracemalloc.stop()


@fuzz(200)
@given(mutations())
def test_a_damaged_tar_file_is_read_or_refused(changes):
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = Watched(mutate(write_tar(format), changes))
        with contextlib.suppress(tarfile.ReadError):
            for member in read_members(stream):
                assert 0 < member.offset <= len(stream.getvalue())
        assert stream.largest <= MAX_HEADER
        assert stream.total <= len(stream.getvalue())


# --- what an archive makes of them ---


def test_what_lies_before_the_damage_is_done_and_the_damage_has_a_row(tmp_path):
    pytest.importorskip("pyarrow")
    from archive_data import OPTIONS, read

    from whisper_at.archive import transcribe_archive

    wav = io.BytesIO()
    soundfile.write(wav, noise(1), 16000, format="wav")
    content = header("../../a.wav", size=len(wav.getvalue())) + padded(wav.getvalue())
    content += header("late.wav", fields=[(136, b"\x80" + b"\xff" * 11)])  # its time of change is beyond all bounds
    (tmp_path / "a.tar").write_bytes(content + header("x", tarfile.XHDTYPE, 1 << 40))
    (tmp_path / "b.tar").write_bytes(b"no tar file" * 100)
    with gzip.open(tmp_path / "c.tar.gz", "wb") as file:
        file.write(content)
    (tmp_path / "c.tar.gz").write_bytes((tmp_path / "c.tar.gz").read_bytes()[:-20])
    output = tmp_path / "out"
    tars = [tmp_path / name for name in ("a.tar", "b.tar", "c.tar.gz")]
    summary = transcribe_archive(tars, output, model="nano.en", **OPTIONS)
    rows = {(os.path.basename(row["path"]), row["member"]): row["error"] for row in read(output).to_pylist()}
    assert rows[("a.tar", "../../a.wav")] is None
    assert "more than" in rows[("a.tar", None)]
    assert "damaged" in rows[("b.tar", None)]
    assert "c.tar.gz cannot be read to its end" in rows[("c.tar.gz", None)]
    assert (summary.done, summary.n_items) == (2, len(rows))
    assert not (tmp_path.parent / "a.wav").exists()
    assert transcribe_archive(tars, output, model="nano.en", **OPTIONS).skipped == len(rows)


def test_empty_members_cost_no_decoding(tmp_path, monkeypatch):
    from whisper_at.archive import prefetch
    from whisper_at.archive.settings import ArchiveSettings

    monkeypatch.setattr(prefetch, "PreparedRecording", None)
    monkeypatch.setattr(prefetch, "LogMel", None)
    (tmp_path / "a.tar").write_bytes(b"".join(header(f"{i}.wav") for i in range(50)))
    (tmp_path / "work").mkdir()
    preparer = prefetch.Preparer(ArchiveSettings(""), tmp_path / "work", 80, lambda item, sha256: False)
    found = list(preparer.prepare_all(list_items([tmp_path / "a.tar"])))
    assert [str(prepared.error) for prepared in found] == [f"{tmp_path}/a.tar:{i}.wav is empty" for i in range(50)]
    assert not list((tmp_path / "work").iterdir())


def test_no_more_recordings_are_listed_than_memory_may_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_TAR_LISTING", 10 * 300)
    (tmp_path / "a.tar").write_bytes(b"".join(header(f"{i}.wav") for i in range(20)))
    items = list_items([tmp_path / "a.tar"])
    assert len(items) == 12
    assert "more than the 11 recordings" in items[0].problem
