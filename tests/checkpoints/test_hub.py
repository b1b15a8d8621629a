"""Models of the Hugging Face hub: ids, its cache, what it does not have."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
import whisper
from tiny_checkpoints import logits, tiny_whisper, write_folder

import whisper_at
from whisper_at.checkpoints import find_whisper
from whisper_at.checkpoints.hub import is_hub_id
from whisper_at.cli.arguments import model_name


@pytest.fixture(scope="module")
def model() -> whisper.Whisper:
    return tiny_whisper()


@pytest.fixture(scope="module")
def expected(model) -> torch.Tensor:
    return logits(model)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return write_folder(tmp_path / "model", model)


@pytest.mark.parametrize("name", ["distil-whisper/distil-large-v3", "openai/whisper-tiny.en", "me/x_1"])
def test_hub_ids(name):
    assert is_hub_id(name)
    assert model_name(name) == name


@pytest.mark.parametrize("name", ["a", "a/b/c", "/a/b", "./a", "~/a", "a/b.pt", "a/b.safetensors", "a/", "a b/c"])
def test_names_that_are_not_hub_ids(name):
    assert not is_hub_id(name)
    with pytest.raises(RuntimeError, match="not found"):
        find_whisper(name)


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    """A stand-in for huggingface_hub: `files` on the hub, `cached` here, `asked` what was asked of it."""
    hub = types.SimpleNamespace(files=set(), cached=set(), asked=[], error=OSError("404 Client Error\nRequest ID: x"))
    hub.folder = write_folder(tmp_path / "snapshot", model)

    def snapshot_download(name, *, cache_dir, allow_patterns, local_files_only):
        hub.asked.append((name, cache_dir, local_files_only))
        there = hub.cached if local_files_only else hub.files
        if not there:
            raise hub.error
        for file in sorted(there):
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (hub.folder / file).touch()
                hub.cached.add(file)
        for file in hub.folder.iterdir():
            if file.name not in hub.cached:
                file.unlink()
        return str(hub.folder)

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return hub


def test_a_model_of_the_hub_is_fetched(hub, expected, tmp_path):
    hub.files = {"config.json", "model.safetensors", "model.fp32-00001-of-00002.safetensors", "pytorch_model.bin"}
    loaded = whisper_at.load_model("me/tiny", device="cpu", download_root=str(tmp_path / "root"))
    assert torch.equal(logits(loaded), expected)
    assert hub.asked[-1] == ("me/tiny", str(tmp_path / "root"), False)
    assert hub.cached == {"config.json", "model.safetensors"}  # neither pickles nor other precisions


def test_a_model_in_the_hubs_cache_needs_no_network(hub, expected):
    hub.cached = {"config.json", "model.safetensors"}
    assert torch.equal(logits(whisper_at.load_model("me/tiny", device="cpu")), expected)
    assert hub.asked == [("me/tiny", None, True)]


def test_a_half_cached_model_is_completed(hub):
    hub.cached = {"config.json"}
    hub.files = {"config.json", "model.safetensors"}
    assert find_whisper("me/tiny") == hub.folder
    assert hub.asked[-1][2] is False


def test_pickles_are_fetched_only_where_there_is_nothing_else(hub):
    hub.files = {"config.json", "pytorch_model.bin", "training_args.bin"}
    assert find_whisper("me/tiny") == hub.folder
    assert hub.cached == {"config.json", "pytorch_model.bin"}


@pytest.mark.parametrize(
    "files",
    [{"config.json", "model.bin"}, {"adapter_config.json", "adapter_model.safetensors"}],
    ids=["ct2", "adapter"],
)
def test_other_layouts_are_fetched(hub, files):
    """As Systran/faster-whisper-small, and an adapter that names its model."""
    hub.files = {*files, "vocabulary.json", "README.md"}
    assert find_whisper("me/other") == hub.folder
    assert hub.cached == files


@pytest.mark.parametrize(("files", "message"), [([], r"did not give it \(404 Client"), (["config.json"], "no weights")])
def test_what_the_hub_does_not_have(hub, files, message):
    hub.files = set(files)
    with pytest.raises(RuntimeError, match=message) as error:
        whisper_at.load_model("me/tiny")
    assert "'me/tiny'" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_huggingface_hub_the_error_says_what_to_do(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match="pip install huggingface_hub, or give the folder") as error:
        whisper_at.load_model("distil-whisper/distil-large-v3")
    assert "\n" not in str(error.value)
    assert find_whisper(folder) == folder  # a folder needs nothing


def test_a_relative_folder_is_no_id(hub, folder, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    name = f"{folder.parent.name}/{folder.name}"
    assert is_hub_id(name)
    assert find_whisper(name) == Path(name)
    assert hub.asked == []


def test_the_real_cache_of_the_hub(model, expected, tmp_path):
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    write_folder(repository / "snapshots" / ("0" * 40), model)
    loaded = whisper_at.load_model("me/tiny", device="cpu", download_root=str(tmp_path))
    assert torch.equal(logits(loaded), expected)
