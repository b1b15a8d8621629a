"""Names → files → tensors: tables, downloads from a local server, files that are not what they seem."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import whisper
from safetensors import safe_open
from whisper.model import ModelDimensions

import whisper_at.checkpoints.download as downloads
from whisper_at.checkpoints import (
    HEADS,
    WIDTHS,
    PublishedHead,
    alignment_heads,
    available_heads,
    available_models,
    find_head,
    find_whisper,
    head_name,
    head_shapes,
    open_head,
    open_whisper,
    registry,
    save_safetensors,
)
from whisper_at.checkpoints.download import download

ROOT = Path(__file__).parents[2]
DATA = bytes(range(256)) * 1200  # 300 KiB
DIMS = asdict(ModelDimensions(80, 1500, 8, 2, 1, 51864, 448, 8, 2, 1))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; the first part of a path says how."""

    def do_GET(self):
        how, _, file = self.path.lstrip("/").partition("/")
        asked = self.headers.get("Range")
        self.server.log.append((how, asked))
        if how == "held":
            self.server.go.wait(30)
        data = self.server.files.get(file)
        if data is None:
            return self.send_error(404)
        start = 0
        if asked and how != "whole":
            start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            shift = 7 if how == "shifted" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", "text/html" if how == "page" else "application/octet-stream")
        if how != "unmeasured":
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + 100_000] if how == "cut" else data[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {"f.bin": DATA}
    server.log = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_real_cache(tmp_path, monkeypatch):
    """Whatever a test does, it finds neither the user's downloads nor a network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    real = downloads.urllib.request.urlopen

    def here_only(request, *args, **kwargs):
        assert request.host.startswith("127.0.0.1"), f"a test reaches for {request.full_url}"
        return real(request, *args, **kwargs)

    monkeypatch.setattr(downloads.urllib.request, "urlopen", here_only)


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def refused(urls, path, **kwargs) -> str:
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


# --- download ---


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
    message = refused(f"{server.url}/cut/f.bin", target, sha256=expected)
    assert "100000 of 307200 bytes" in message or "IncompleteRead" in message
    part = tmp_path / "f.bin.part"
    assert part.read_bytes() == DATA[: part.stat().st_size]
    have = part.stat().st_size
    assert have > 0
    # without a hash, bytes go on only from the URL that they came from; this server sends 100 000 a time
    url = f"{server.url}/{'plain' if hashed else 'cut'}/f.bin"
    for _ in range(0 if hashed else 2):
        refused(url, target)
    download(url, target, expected, progress=False)
    assert target.read_bytes() == DATA
    assert server.log[1][1] == f"bytes={have}-"
    assert files_in(tmp_path) == ["f.bin"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(DATA[:1000])
    download(f"{server.url}/whole/f.bin", tmp_path / "f.bin", sha256(DATA), progress=False)
    assert (tmp_path / "f.bin").read_bytes() == DATA
    assert server.log == [("whole", "bytes=1000-")]


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
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


def test_a_range_that_was_not_asked_for_is_refused(server, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(DATA[:1000])
    assert "another part" in refused(f"{server.url}/shifted/f.bin", tmp_path / "f.bin", sha256="0" * 64)


def test_a_wrong_hash_is_refused_and_its_bytes_dropped_D20(server, tmp_path):
    message = refused(f"{server.url}/plain/f.bin", tmp_path / "f.bin", sha256="0" * 64)
    assert sha256(DATA) in message
    assert "0" * 64 in message
    assert files_in(tmp_path) == []


def test_a_cut_download_of_unknown_length_fails_by_its_hash(server, tmp_path):
    server.files["half.bin"] = DATA[:1000]
    refused(f"{server.url}/unmeasured/half.bin", tmp_path / "f.bin", sha256=sha256(DATA))
    assert files_in(tmp_path) == []


def test_a_web_page_is_refused_D20(server, tmp_path):
    server.files["page"] = b"<!DOCTYPE html><html>This link has expired</html>"
    assert "web page" in refused(f"{server.url}/page/page", tmp_path / "f.bin")
    assert files_in(tmp_path) == []


def test_mirrors_are_tried_in_order(server, tmp_path):
    urls = [f"{server.url}/plain/absent", f"{server.url}/cut/f.bin", f"{server.url}/plain/f.bin"]
    download(urls, tmp_path / "f.bin", sha256(DATA), progress=False)
    assert [how for how, _ in server.log] == ["plain", "cut", "plain"]
    assert (tmp_path / "f.bin").read_bytes() == DATA


def test_all_failures_are_told_in_one_error(server, tmp_path):
    closed = "http://127.0.0.1:1/f.bin"
    message = refused([closed, f"{server.url}/plain/absent", "nonsense"], tmp_path / "f.bin")
    assert "refused" in message
    assert "404" in message
    assert "unknown url type" in message
    assert files_in(tmp_path) == []


def test_a_target_that_is_no_file_or_cannot_be_made(server, tmp_path):
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


# --- Whisper ---


@pytest.fixture
def published(server, monkeypatch):
    """A Whisper "tiny" whose URL is on the local server."""
    monkeypatch.setitem(whisper._MODELS, "tiny", f"{server.url}/{sha256(DATA)}/tiny.pt")
    server.files["tiny.pt"] = DATA
    return server


def test_models_are_upstreams_and_ours():
    assert available_models() == [*whisper.available_models(), "nano.en"]
    assert available_models()[-5:-1] == ["large-v3", "large", "large-v3-turbo", "turbo"]
    assert whisper._MODELS["large"] == whisper._MODELS["large-v3"]  # not large-v2, as it was in Whisper-AT
    for name in whisper._MODELS:
        assert alignment_heads(name) == whisper._ALIGNMENT_HEADS[name]
    assert alignment_heads("nano.en") is alignment_heads("my.pt") is None


def test_a_name_is_downloaded_once(published, tmp_path):
    assert find_whisper("tiny") == tmp_path / "cache" / "whisper" / "tiny.pt"
    assert find_whisper("tiny").read_bytes() == DATA
    assert len(published.log) == 1
    elsewhere = find_whisper("tiny", str(tmp_path / "mine"))
    assert elsewhere == tmp_path / "mine" / "tiny.pt"
    assert len(published.log) == 2


def test_the_folder_is_openai_whispers(published, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert find_whisper("tiny") == tmp_path / "home" / ".cache" / "whisper" / "tiny.pt"


def test_a_cached_file_is_verified_D20(published, tmp_path):
    cached = tmp_path / "tiny.pt"
    cached.write_bytes(DATA[:5000])
    with pytest.warns(UserWarning, match="again"):
        assert find_whisper("tiny", str(tmp_path)) == cached
    assert cached.read_bytes() == DATA


def test_a_server_with_another_file_is_refused_D20(published, tmp_path):
    published.files["tiny.pt"] = DATA[::-1]
    with pytest.raises(RuntimeError, match="SHA-256"):
        find_whisper("tiny", str(tmp_path))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("small_en", "small.en"), ("Tiny", "tiny"), ("large-v4", "large-v3"), ("turbo3", "turbo")],
)
def test_a_misspelt_name_gets_a_suggestion(name, nearest):
    with pytest.raises(RuntimeError, match=f"did you mean '{re.escape(nearest)}'") as error:
        find_whisper(name)
    assert repr(name) in str(error.value)
    assert "nano.en" in str(error.value)


def test_paths(tmp_path, monkeypatch):
    own = tmp_path / "own.pt"
    own.write_bytes(b"x")
    assert find_whisper(str(own)) == find_whisper(own) == own
    with pytest.raises(RuntimeError, match="is a folder"):
        find_whisper(str(tmp_path))
    with pytest.raises(RuntimeError, match="not found"):
        find_whisper(str(tmp_path / "absent.pt"))
    monkeypatch.setattr(registry, "ASSETS", tmp_path)
    with pytest.raises(RuntimeError, match="reinstall"):
        find_whisper("nano.en")
    (tmp_path / "nano.en.pt").write_bytes(b"x")
    assert find_whisper("nano.en") == tmp_path / "nano.en.pt"


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_opening_a_whisper_by_path_D19(tmp_path, suffix, in_memory):
    path = tmp_path / f"own{suffix}"
    state = {"encoder.a": torch.arange(6.0).reshape(2, 3).half(), "decoder.b": torch.ones(2)}
    if suffix == ".pt":
        torch.save({"dims": DIMS, "model_state_dict": state}, path)
    else:
        save_safetensors(state, path, {"dims": json.dumps(DIMS)})
    dims, tensors = open_whisper(path, in_memory)
    assert ModelDimensions(**dims) == ModelDimensions(**DIMS)
    assert tensors.keys() == state.keys()
    for key in state:
        assert tensors[key].dtype == state[key].dtype
        assert torch.equal(tensors[key], state[key])


class Malicious:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def torch_bytes(content, tmp_path, **kwargs) -> bytes:
    torch.save(content, tmp_path / "made", **kwargs)
    return (tmp_path / "made").read_bytes()


@pytest.mark.parametrize("opener", [open_whisper, open_head])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html>\n<html>expired</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"Error 404: not found\n", "text file"),
        (bytes(range(256)) * 3, "cannot be read"),
    ],
)
def test_files_that_are_no_checkpoints_say_what_they_are_D20(tmp_path, opener, suffix, data, says):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(data)
    with pytest.raises(RuntimeError, match=says) as error:
        opener(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_truncated_checkpoint_says_so_D20(tmp_path, in_memory):
    path = tmp_path / "cut.pt"
    data = torch_bytes({"dims": DIMS, "model_state_dict": {"a": torch.ones(5000)}}, tmp_path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(RuntimeError, match="cut short"):
        open_whisper(path, in_memory)


@pytest.mark.parametrize("opener", [open_whisper, open_head])
@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_programs_in_pickles_never_run_D20(tmp_path, opener, kind):
    trace = tmp_path / "ran"
    evil = {"dims": DIMS, "model_state_dict": {"a": Malicious(trace)}}
    if kind == "pickle":
        data = pickle.dumps(evil, protocol=2)
    else:
        data = torch_bytes(evil, tmp_path, _use_new_zipfile_serialization=kind == "zip")
    (tmp_path / "evil.pt").write_bytes(data)
    with pytest.raises(RuntimeError, match="refused"):
        opener(tmp_path / "evil.pt")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model_state_dict": {"a": torch.ones(1)}}, "dims without n_mels"),
        ({"dims": {**DIMS, "n_mels": None}, "model_state_dict": {"a": torch.ones(1)}}, "dims without n_mels"),
        ({"dims": DIMS}, "no model_state_dict"),
        ({"dims": DIMS, "model_state_dict": {"a": 1}}, "no model_state_dict"),
        ([1, 2], "dims without"),
        ({"at_model.mlp_layer.0.weight": torch.ones(1)}, "head=FILE"),
    ],
)
def test_checkpoints_of_another_layout_are_refused(tmp_path, content, says):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(RuntimeError, match=says):
        open_whisper(tmp_path / "other.pt")


@pytest.mark.parametrize("metadata", [{}, {"dims": "no json"}, {"dims": "[]"}])
def test_safetensors_without_dims_are_refused(tmp_path, metadata):
    save_safetensors({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(RuntimeError, match="dims without n_mels"):
        open_whisper(tmp_path / "x.safetensors")


def test_a_missing_file_is_a_missing_file(tmp_path):
    for opener in (open_whisper, open_head):
        with pytest.raises(FileNotFoundError):
            opener(tmp_path / "absent.pt")


# --- heads ---


@pytest.mark.parametrize(
    ("size", "low", "n_keys", "n_parameters"),
    [
        ("tiny", False, 34, 3_751_823),
        ("base", False, 34, 6_575_119),
        ("small", False, 34, 14_581_007),
        ("medium", False, 34, 25_732_623),
        ("large", False, 34, 40_029_967),
        ("small", True, 38, 6_970_383),
        ("medium", True, 38, 7_101_967),
        ("large", True, 38, 7_233_551),
    ],
)
def test_head_shapes_are_the_published_ones(size, low, n_keys, n_parameters):
    d = WIDTHS[size]
    shapes = head_shapes(d, low)
    total = sum(math.prod(shape) for shape in shapes.values())
    width = 512 if low else d
    assert len(shapes) == n_keys
    assert total == n_parameters == 24 * width**2 + 553 * width + 527 + low * (2 * d + 512 * d + 512)
    assert shapes["time_tr.attn.key.weight"] == (width, width)
    assert "time_tr.attn.key.bias" not in shapes


def test_the_table_of_heads():
    whispers = "tiny.en tiny base.en base small.en small medium.en medium large-v1 large-v2".split()
    assert [name for name in HEADS if not HEADS[name].low_compute] == whispers
    assert [name for name in HEADS if HEADS[name].low_compute] == [f"{name}_low" for name in whispers[4:]]
    assert available_heads() == [*HEADS, "nano.en"]
    assert HEADS["small"] == PublishedHead(
        "small_ori.pth",
        768,
        False,
        (
            "https://www.dropbox.com/s/jftj9s0kr4ycvr1/small_ori.pth?dl=1",
            "https://www.dropbox.com/s/5zqzs3e47zwhjd3/small_ori.pth?dl=1",
        ),
    )
    with_mirror = {name for name, head in HEADS.items() if len(head.urls) == 2}
    differing = "tiny base small small_low medium medium_low large-v2 large-v2_low"
    assert with_mirror == set(differing.split())
    shares = [url.split("/")[4] for head in HEADS.values() for url in head.urls]
    assert len(shares) == len(set(shares)) == 24
    assert {len(share) for share in shares} == {15}


def test_head_names():
    assert [head_name(name) for name in ("tiny", "large-v2", "nano.en")] == ["tiny", "large-v2", "nano.en"]
    assert head_name("small.en", low_compute=True) == "small.en_low"
    for name in ("large", "large-v3", "turbo", "large-v3-turbo", "my/own.pt"):  # no head was made for these
        assert head_name(name) is head_name(name, low_compute=True) is None


@pytest.mark.parametrize("name", ["tiny", "tiny.en", "base", "base.en", "nano.en"])
def test_low_compute_heads_that_do_not_exist_are_refused_first_D21(name, server):
    with pytest.raises(ValueError, match="small.en, small, medium.en, medium, large-v1, large-v2"):
        head_name(name, low_compute=True)
    with pytest.raises(ValueError, match=f"'{name}'"):
        find_head(f"{name}_low")
    assert server.log == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smal", "did you mean 'small'"),
        ("large", "that of 'large-v2'"),
        ("turbo", "no head is published for 'turbo'"),
        ("absent.pth", "Head 'absent.pth' not found"),
        (".", "is a folder"),
    ],
)
def test_unknown_heads(name, says):
    with pytest.raises(FileNotFoundError, match=says):
        find_head(name)


def test_embedded_head_and_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ASSETS", tmp_path)
    (tmp_path / "nano.en.head.safetensors").write_bytes(b"x")
    assert find_head("nano.en") == find_head(tmp_path / "nano.en.head.safetensors")


def make_head(width: int = 384, low: bool = False) -> dict[str, torch.Tensor]:
    return {f"at_model.{key}": torch.zeros(shape) for key, shape in head_shapes(width, low).items()}


@pytest.fixture
def small_head(server, monkeypatch, tmp_path):
    """A head "tiny" of width 8 on the local server, its first share gone."""
    urls = (f"{server.url}/plain/gone.pth", f"{server.url}/plain/tiny_ori.pth")
    monkeypatch.setitem(HEADS, "tiny", PublishedHead("tiny_ori.pth", 8, False, urls))
    server.files["tiny_ori.pth"] = torch_bytes(make_head(8), tmp_path)
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_a_heads_first_hash_is_recorded_and_then_required_D20(server, small_head):
    path = find_head("tiny", str(small_head))
    record = small_head / "tiny_ori.pth.sha256"
    assert files_in(small_head) == ["tiny_ori.pth", "tiny_ori.pth.sha256"]
    assert record.read_text() == f"{sha256(path.read_bytes())}  tiny_ori.pth\n"  # as sha256sum -c reads it
    assert [how for how, _ in server.log] == ["plain", "plain"]  # the mirror answered

    assert find_head("tiny", str(small_head)) == path
    assert len(server.log) == 2

    kept = path.read_bytes()
    path.write_bytes(kept + b"\0")
    with pytest.raises(RuntimeError, match="not the file that was first loaded") as error:
        find_head("tiny", str(small_head))
    assert sha256(kept) in str(error.value)
    assert "tiny_ori.pth.sha256" in str(error.value)

    # a later download, too, must be the recorded file
    path.unlink()
    server.files["tiny_ori.pth"] += b"\0"
    with pytest.raises(RuntimeError, match="not the file that was first loaded"):
        find_head("tiny", str(small_head))
    assert files_in(small_head) == ["tiny_ori.pth.sha256"]


def test_a_head_put_there_by_hand_is_checked_and_recorded(server, small_head):
    (small_head / "tiny_ori.pth").write_bytes(server.files["tiny_ori.pth"])
    find_head("tiny", str(small_head))
    assert files_in(small_head) == ["tiny_ori.pth", "tiny_ori.pth.sha256"]
    assert server.log == []


def test_a_page_kept_by_an_earlier_program_is_replaced_D20(server, small_head):
    (small_head / "tiny_ori.pth").write_bytes(b"<html>expired</html>")
    with pytest.warns(UserWarning, match="web page"):
        path = find_head("tiny", str(small_head))
    assert path.read_bytes() == server.files["tiny_ori.pth"]


@pytest.mark.parametrize("what", ["page", "wrong shapes", "missing key", "cut"])
def test_a_download_that_is_no_such_head_is_refused_D20(server, small_head, tmp_path, what):
    head = make_head(16 if what == "wrong shapes" else 8)
    if what == "missing key":
        del head["at_model.mlp_layer.1.bias"]
    data = torch_bytes(head, tmp_path)
    server.files["tiny_ori.pth"] = {"page": b"<html>expired</html>", "cut": data[:-100]}.get(what, data)
    with pytest.raises(RuntimeError, match="README"):
        find_head("tiny", str(small_head))
    assert files_in(small_head) == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "at_model.", "module.", "module.at_model.", "at_model.module."])
def test_heads_open_under_any_prefix(tmp_path, prefix, suffix):
    head = {key.replace("at_model.", prefix): torch.rand(tensor.shape).half() for key, tensor in make_head(8).items()}
    path = tmp_path / f"head{suffix}"
    if suffix == ".pth":
        torch.save(head, path)
    else:
        save_safetensors(head, path, {"mode": "tl_tr_1_8"})
    tensors, metadata = open_head(path)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == head_shapes(8)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert torch.equal(tensors["mlp_layer.1.bias"], head[f"{prefix}mlp_layer.1.bias"].float())
    assert metadata == ({} if suffix == ".pth" else {"mode": "tl_tr_1_8"})


def test_a_merged_checkpoint_gives_its_head_only(tmp_path):
    merged = {
        **make_head(8),
        "encoder.conv1.weight": torch.ones(1),
        "decoder.token_embedding.weight": torch.ones(1),
    }
    for content in (merged, {"dims": DIMS, "model_state_dict": merged}):
        torch.save(content, tmp_path / "merged.pth")
        assert open_head(tmp_path / "merged.pth")[0].keys() == head_shapes(8).keys()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"dims": DIMS, "model_state_dict": {"decoder.token_embedding.weight": torch.ones(1)}},
            "holds no head",
        ),
        ({"a": 1}, "flat dict of tensors"),
        ({}, "flat dict of tensors"),
        (torch.ones(1), "flat dict of tensors"),
    ],
)
def test_what_is_no_head_is_refused(tmp_path, content, says):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(RuntimeError, match=says):
        open_head(tmp_path / "x.pth")


# --- saving ---


def test_saving_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.safetensors"
    shared = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": shared, "tied": shared, "view": shared.T, "p": torch.nn.Parameter(torch.ones(2))}
    save_safetensors(tensors, path, {"k": "v"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"k": "v"}
        for key, tensor in tensors.items():
            assert torch.equal(file.get_tensor(key), tensor)
    before = path.read_bytes()
    with pytest.raises(Exception, match="str"):
        save_safetensors({"a": shared}, path, {"k": 1})
    assert path.read_bytes() == before
    assert files_in(tmp_path) == ["x.safetensors"]


# --- documentation ---


def table(start: str) -> list[list[str]]:
    """Rows of the table of pretrained_models/README.md whose first heading is `start`."""
    lines = iter((ROOT / "pretrained_models" / "README.md").read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {start} |"):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")])
    return rows


def link(cell: str) -> str:
    match = re.search(r"\]\((.*)\)", cell)
    return match.group(1) if match else ""


def test_the_manual_lists_every_whisper():
    rows = table("model")
    assert {name: link(url) for name, url, *_ in rows} == whisper._MODELS
    sizes = {"tiny": "39", "base": "74", "small": "244", "medium": "769", "large": "1550", "turbo": "809"}
    for name, _, millions, digest in rows:
        assert digest == whisper._MODELS[name].split("/")[-2]
        assert millions == sizes["turbo" if "turbo" in name else re.split(r"[.-]", name)[0]]


def test_the_manual_lists_every_head():
    rows = table("head")
    assert [row[0] for row in rows] == list(HEADS)
    for name, url, mirror, n_bytes, n_parameters, score in rows:
        head = HEADS[name]
        total = sum(math.prod(shape) for shape in head_shapes(head.width, head.low_compute).values())
        assert url.startswith(f"[{head.file}]")
        assert tuple(filter(None, (link(url), link(mirror)))) == head.urls
        assert int(n_parameters.replace(" ", "")) == total
        assert int(n_bytes.replace(" ", "")) == 4 * total
        assert 35 < float(score) < 43
