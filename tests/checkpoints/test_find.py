"""Names and paths become files: downloaded, verified, suggested, refused."""

from __future__ import annotations

import re

import pytest
import torch
import whisper
from local_server import DATA, files_in, isolate, local_server, sha256
from tiny_checkpoints import official_head, torch_bytes

from whisper_at.checkpoints import (
    HEADS,
    PublishedHead,
    find_head,
    find_whisper,
    head_name,
    model_dims,
    registry,
    whisper_shapes,
)


@pytest.fixture
def server():
    with local_server() as server:
        yield server


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


# --- Whisper ---


@pytest.fixture
def published(server, monkeypatch):
    """A Whisper "tiny" whose URL is on the local server."""
    monkeypatch.setitem(whisper._MODELS, "tiny", f"{server.url}/{sha256(DATA)}/tiny.pt")
    server.files["tiny.pt"] = DATA
    return server


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


def saved_again(dtype=torch.float32, **changes) -> dict:
    """A checkpoint of tiny's size, whose weights take no room on disk; a change replaces or (None) removes a weight."""
    dims = {**model_dims("tiny"), **changes.pop("dims", {})}
    weights = {name: torch.zeros(1, dtype=dtype).expand(shape) for name, shape in whisper_shapes(dims).items()}
    weights |= {name.replace("__", "."): value for name, value in changes.items()}
    return {"dims": dims, "model_state_dict": {name: value for name, value in weights.items() if value is not None}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_official_name_that_was_saved_again_is_used_with_a_warning(published, tmp_path, dtype):
    """openai-whisper downloads it again, over what is there."""
    cached = tmp_path / "tiny.pt"
    torch.save(saved_again(dtype), cached)
    before = cached.read_bytes()
    with pytest.warns(UserWarning, match="but is a Whisper of the size of tiny: it is used as it is") as told:
        assert find_whisper("tiny", str(tmp_path)) == cached
    assert len(told) == 1
    assert cached.read_bytes() == before
    assert published.log == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not here</html>",
        saved_again(decoder__ln__bias=None),
        saved_again(decoder__ln__bias=torch.zeros(3)),
        saved_again(decoder__ln__bias=torch.full((384,), torch.nan)),
        saved_again(dims={"n_text_layer": 2}),
        saved_again(dims={"n_vocab": 51864}),
        {"model_state_dict": saved_again()["model_state_dict"]},
    ],
    ids=["empty", "page", "missing", "shape", "nan", "layers", "vocabulary", "no dims"],
)
def test_what_is_no_complete_whisper_of_that_name_is_downloaded_again_D20(published, tmp_path, content):
    cached = tmp_path / "tiny.pt"
    if isinstance(content, bytes):
        cached.write_bytes(content)
    else:
        torch.save(content, cached)
    with pytest.warns(UserWarning, match="and is no complete tiny; downloading it again"):
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


# --- heads ---


@pytest.mark.parametrize("name", ["tiny", "tiny.en", "base", "base.en", "nano.en"])
def test_low_compute_heads_that_do_not_exist_are_refused_first_D21(name, server):
    with pytest.raises(ValueError, match="small.en, small, medium.en, medium, large-v1, large-v2"):
        head_name(name, low_compute=True)
    with pytest.raises(ValueError, match=f"'{name}'"):
        find_head(f"{name}_low")
    assert server.log == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal", "did you mean 'small'"),
        ("large", "that of 'large-v2'"),
        ("turbo", "no head is published for 'turbo'"),
        ("absent.pth", "Head 'absent.pth' not found"),
        (".", "is a folder"),
    ],
)
def test_unknown_heads(name, message):
    with pytest.raises(FileNotFoundError, match=message):
        find_head(name)


def test_embedded_head_and_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ASSETS", tmp_path)
    (tmp_path / "nano.en.head.safetensors").write_bytes(b"x")
    assert find_head("nano.en") == find_head(tmp_path / "nano.en.head.safetensors")


@pytest.fixture
def small_head(server, monkeypatch, tmp_path):
    """A head "tiny" of width 8 on the local server, its first share gone."""
    urls = (f"{server.url}/plain/gone.pth", f"{server.url}/plain/tiny_ori.pth")
    monkeypatch.setitem(HEADS, "tiny", PublishedHead("tiny_ori.pth", 8, False, urls))
    server.files["tiny_ori.pth"] = torch_bytes(official_head(8), tmp_path)
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
def test_a_download_with_other_parameters_is_refused_D20(server, small_head, tmp_path, what):
    head = official_head(16 if what == "wrong shapes" else 8)
    if what == "missing key":
        del head["at_model.mlp_layer.1.bias"]
    data = torch_bytes(head, tmp_path)
    server.files["tiny_ori.pth"] = {"page": b"<html>expired</html>", "cut": data[:-100]}.get(what, data)
    with pytest.raises(RuntimeError, match="README"):
        find_head("tiny", str(small_head))
    assert files_in(small_head) == []
