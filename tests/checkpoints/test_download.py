"""Downloads from a local server: cut, resumed, wrong, mirrored, at once."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from local_server import DATA, files_in, isolate, local_server, sha256

import whisper_at.checkpoints.download as downloads
from whisper_at.checkpoints.download import download


@pytest.fixture
def server():
    with local_server() as server:
        yield server


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


def failed_download(urls, path, **kwargs) -> str:
    """Message of a download that must fail and leave nothing under its final name."""
    with pytest.raises(RuntimeError) as error:
        download(urls, path, progress=False, **kwargs)
    assert not path.exists()
    message = str(error.value)
    assert str(path) in message
    assert "pretrained_models/README.md" in message
    for url in [urls] if isinstance(urls, str) else urls:
        assert url in message
    return message


@pytest.mark.parametrize("how", ["plain", "whole", "unmeasured"])
def test_download(server, tmp_path, how):
    target = tmp_path / "new" / "f.bin"
    assert download(f"{server.url}/{how}/f.bin", target, sha256(DATA)) == target
    assert target.read_bytes() == DATA
    assert files_in(target.parent) == ["f.bin"]


def test_a_bar_is_shown_unless_told_not_to(server, tmp_path, capsys):
    download(f"{server.url}/plain/f.bin", tmp_path / "a")
    assert "100%" in capsys.readouterr().err
    download(f"{server.url}/plain/f.bin", tmp_path / "b", progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("hashed", [True, False])
def test_a_cut_download_is_noticed_and_continued_D20(server, tmp_path, hashed):
    target = tmp_path / "f.bin"
    expected = sha256(DATA) if hashed else None
    message = failed_download(f"{server.url}/cut/f.bin", target, sha256=expected)
    assert "100000 of 307200 bytes" in message or "IncompleteRead" in message
    part = tmp_path / "f.bin.part"
    assert part.read_bytes() == DATA[: part.stat().st_size]
    have = part.stat().st_size
    assert have > 0
    # without a hash, bytes go on only from the URL that they came from; this server sends 100 000 a time
    url = f"{server.url}/{'plain' if hashed else 'cut'}/f.bin"
    for _ in range(0 if hashed else 2):
        failed_download(url, target)
    download(url, target, expected, progress=False)
    assert target.read_bytes() == DATA
    assert server.log[1][1] == f"bytes={have}-"
    assert files_in(tmp_path) == ["f.bin"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(DATA[:1000])
    download(f"{server.url}/whole/f.bin", tmp_path / "f.bin", sha256(DATA), progress=False)
    assert (tmp_path / "f.bin").read_bytes() == DATA
    assert server.log == [("whole", "bytes=1000-")]


def test_a_complete_part_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(DATA)
    download(f"{server.url}/plain/f.bin", tmp_path / "f.bin", sha256(DATA), progress=False)
    assert (tmp_path / "f.bin").read_bytes() == DATA
    assert len(server.log) == 1


@pytest.mark.parametrize("begun", [b"x" * 1000, b"x" * len(DATA), b"x" * (len(DATA) + 5)])
def test_a_part_of_another_file_is_thrown_away(server, tmp_path, begun):
    (tmp_path / "f.bin.part").write_bytes(begun)
    download(f"{server.url}/plain/f.bin", tmp_path / "f.bin", sha256(DATA), progress=False)
    assert (tmp_path / "f.bin").read_bytes() == DATA
    assert server.log[-1] == ("plain", None)


def test_mirrors_without_a_hash_are_never_mixed(server, tmp_path):
    server.files["other.bin"] = bytes(len(DATA))
    download([f"{server.url}/cut/f.bin", f"{server.url}/plain/other.bin"], tmp_path / "f.bin", progress=False)
    assert (tmp_path / "f.bin").read_bytes() == bytes(len(DATA))
    assert server.log == [("cut", None), ("plain", None)]


def test_a_range_that_was_not_asked_for_is_failed_download(server, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(DATA[:1000])
    assert "another part" in failed_download(f"{server.url}/shifted/f.bin", tmp_path / "f.bin", sha256="0" * 64)


def test_a_wrong_hash_is_refused_and_its_bytes_dropped_D20(server, tmp_path):
    message = failed_download(f"{server.url}/plain/f.bin", tmp_path / "f.bin", sha256="0" * 64)
    assert sha256(DATA) in message
    assert "0" * 64 in message
    assert files_in(tmp_path) == []


def test_a_cut_download_of_unknown_length_fails_by_its_hash(server, tmp_path):
    server.files["half.bin"] = DATA[:1000]
    failed_download(f"{server.url}/unmeasured/half.bin", tmp_path / "f.bin", sha256=sha256(DATA))
    assert files_in(tmp_path) == []


def test_a_web_page_is_refused_D20(server, tmp_path):
    server.files["page"] = b"<!DOCTYPE html><html>This link has expired</html>"
    assert "web page" in failed_download(f"{server.url}/page/page", tmp_path / "f.bin")
    assert files_in(tmp_path) == []


def test_mirrors_are_tried_in_order(server, tmp_path):
    urls = [f"{server.url}/plain/absent", f"{server.url}/cut/f.bin", f"{server.url}/plain/f.bin"]
    download(urls, tmp_path / "f.bin", sha256(DATA), progress=False)
    assert [how for how, _ in server.log] == ["plain", "cut", "plain"]
    assert (tmp_path / "f.bin").read_bytes() == DATA


def test_one_error_names_all_failures(server, tmp_path):
    closed = "http://127.0.0.1:1/f.bin"
    message = failed_download([closed, f"{server.url}/plain/absent", "nonsense"], tmp_path / "f.bin")
    assert "refused" in message
    assert "404" in message
    assert "unknown url type" in message
    assert files_in(tmp_path) == []


def test_a_target_that_is_not_a_file_or_cannot_be_made(server, tmp_path):
    (tmp_path / "f.bin").mkdir()
    with pytest.raises(RuntimeError, match="not a regular file"):
        download(f"{server.url}/plain/f.bin", tmp_path / "f.bin")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RuntimeError, match=re.escape(str(tmp_path / "file" / "f.bin"))):
        download(f"{server.url}/plain/f.bin", tmp_path / "file" / "f.bin")
    assert server.log == []


def test_downloads_at_once_wait_for_one_another(server, tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    target = tmp_path / "f.bin"
    waiting = threading.Semaphore(0)
    lock = downloads._lock

    def counted_lock(path):
        waiting.release()
        return lock(path)

    monkeypatch.setattr(downloads, "_lock", counted_lock)
    server.go = threading.Event()
    with ThreadPoolExecutor(6) as pool:
        arguments = (f"{server.url}/held/f.bin", target, sha256(DATA), False)
        jobs = [pool.submit(download, *arguments) for _ in range(6)]
        for _ in jobs:
            assert waiting.acquire(timeout=30)
        server.go.set()
    assert all(job.result() == target for job in jobs)
    assert len(server.log) == 1  # the others found the file there
    assert files_in(tmp_path) == ["f.bin"]
