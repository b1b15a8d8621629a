"""`whisper-at convert`: whatever loads becomes one file that loads the same; `whisper-at AUDIO` stays as it was."""

from __future__ import annotations

import base64
import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
from safetensors import safe_open
from tiny_checkpoints import tiny_whisper, write_folder

import whisper_at
from whisper_at import cli
from whisper_at.checkpoints import file_sha256, files, open_whisper
from whisper_at.checkpoints.convert import convert

PAIRS = [[0, 3], [1, 0], [1, 2]]


@pytest.fixture(scope="module")
def model() -> whisper.Whisper:
    return tiny_whisper()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("convert") / "tiny.pt"
    state = {key: tensor.half() for key, tensor in model.state_dict().items()}
    torch.save({"dims": vars(model.dims), "model_state_dict": state}, path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def header(path: Path) -> dict:
    """Metadata, straight from the bytes."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size])["__metadata__"]


def assert_same(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    dims, state = open_whisper(source)
    got_dims, got = open_whisper(target)
    assert got_dims == dims
    assert got.keys() == state.keys()
    for key, tensor in state.items():
        expected = tensor.to(dtype or tensor.dtype)
        assert got[key].dtype == expected.dtype, key
        assert torch.equal(got[key], expected), key


# --- what is written ---


def test_a_checkpoint_keeps_its_tensors_and_precision(checkpoint, here):
    assert cli.main(["convert", str(checkpoint), "out.safetensors"]) == 0
    assert_same(checkpoint, here / "out.safetensors")
    assert {tensor.dtype for tensor in open_whisper("out.safetensors")[1].values()} == {torch.float16}
    assert os.listdir() == ["out.safetensors"]
    theirs = whisper_at.load_model(str(checkpoint), device="cpu")
    ours = whisper_at.load_model("out.safetensors", device="cpu")
    assert torch.equal(ours.alignment_heads.to_dense(), theirs.alignment_heads.to_dense())


def test_the_embedded_model_by_name(here):
    nano = whisper_at.load_model("nano.en", device="cpu", head=None)
    assert cli.main(["convert", "nano.en", "n.safetensors"]) == 0
    again = whisper_at.load_model("n.safetensors", device="cpu", head="nano.en")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in nano.state_dict().items())
    assert again.head is not None


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_folders_with_their_word_timing(model, here, dtype):
    kept = getattr(torch, dtype)
    write_folder(here / "folder", tiny_whisper().to(kept), generation={"alignment_heads": PAIRS})
    assert cli.main(["convert", "folder", "out.safetensors"]) == 0
    assert_same(here / "folder", here / "out.safetensors")
    assert open_whisper("out.safetensors")[1]["decoder.ln.weight"].dtype == kept
    loaded = whisper_at.load_model("out.safetensors", device="cpu")
    assert loaded.alignment_heads.to_dense().nonzero().tolist() == PAIRS
    metadata = header(here / "out.safetensors")
    assert json.loads(metadata["alignment_heads"]) == PAIRS
    assert json.loads(metadata["dims"]) == vars(model.dims)


def test_an_official_name_keeps_its_word_timing(checkpoint, here, monkeypatch):
    """An official file has no alignment heads inside: they hang on its name, which is lost with it."""
    mask = np.zeros((2, 4), bool)
    mask[1, 3] = True
    url = f"https://example.invalid/{file_sha256(checkpoint)}/{checkpoint.name}"
    monkeypatch.setitem(whisper._MODELS, "tiny", url)
    monkeypatch.setitem(whisper._ALIGNMENT_HEADS, "tiny", base64.b85encode(gzip.compress(mask.tobytes())))
    assert cli.main(["convert", "tiny", "out.safetensors", "--model_dir", str(checkpoint.parent)]) == 0
    loaded = whisper_at.load_model("out.safetensors", device="cpu")
    assert loaded.alignment_heads.to_dense().nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_another_precision(model, checkpoint, here, dtype):
    write_folder(here / "folder", model)
    for source in (checkpoint, here / "folder"):
        assert cli.main(["convert", str(source), "out.safetensors", "--dtype", dtype]) == 0
        assert_same(source, here / "out.safetensors", getattr(torch, dtype))


def test_a_file_of_ours_again_and_onto_itself(checkpoint, here):
    convert(checkpoint, "a.safetensors", "float32")
    before = header(here / "a.safetensors")
    convert("a.safetensors", "a.safetensors", "float16")
    assert_same(checkpoint, here / "a.safetensors")
    assert header(here / "a.safetensors") == before
    assert os.listdir() == ["a.safetensors"]


def test_damaged_alignment_heads_in_metadata_are_refused(checkpoint, here):
    dims, state = open_whisper(checkpoint)
    for text in ("no json", "[[1]]", '{"0": 1}'):
        metadata = {"dims": json.dumps(dims), "alignment_heads": text}
        whisper_at.checkpoints.save_safetensors(state, "x.safetensors", metadata)
        with pytest.raises(RuntimeError, match=r"x\.safetensors: alignment_heads is not a list"):
            whisper_at.load_model("x.safetensors")


# --- what is not ---


def failure(capsys, *args: str, status: int = 1) -> str:
    """The last line on stderr of a command that must fail and write nothing on stdout."""
    try:
        found = cli.main(["convert", *args])
    except SystemExit as exit:
        found = exit.code
    assert found == status
    output = capsys.readouterr()
    assert output.out == ""
    assert status == 2 or output.err.count("\n") == 1
    return output.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("absent.pt", "x.safetensors"), "Model 'absent.pt' not found"),
        (("smal", "x.safetensors"), "did you mean 'small'"),
        (("nano.en", "x.pt"), "give a file that ends in .safetensors"),
        (("nano.en", "folder.safetensors"), "give a file that ends in .safetensors"),
        (("nano.en", "absent/x.safetensors"), "there is no folder absent"),
        (("folder.safetensors", "x.safetensors"), "folder without config.json"),
        (("text.pt", "x.safetensors"), "text.pt is a text file"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(here, capsys, args, message):
    (here / "folder.safetensors").mkdir()
    (here / "text.pt").write_text("nothing")
    line = failure(capsys, *args)
    assert line.startswith("whisper-at convert: error: ")
    assert message in line
    assert sorted(os.listdir()) == ["folder.safetensors", "text.pt"]
    assert not os.listdir("folder.safetensors")


@pytest.mark.parametrize("args", [(), ("nano.en",), ("a", "b", "c"), ("nano.en", "x.safetensors", "--dtype", "int8")])
def test_wrong_arguments(here, capsys, args):
    assert "whisper-at convert: error: " in failure(capsys, *args, status=2)
    assert os.listdir() == []


def test_a_checkpoint_that_would_not_load_is_refused(checkpoint, here, capsys):
    dims, state = open_whisper(checkpoint)
    del state["encoder.blocks.2.attn.out.bias"]
    torch.save({"dims": dims, "model_state_dict": state}, "cut.pt")
    assert "encoder.blocks.2.attn.out.bias is missing" in failure(capsys, "cut.pt", "x.safetensors")
    assert os.listdir() == ["cut.pt"]


def test_what_float16_cannot_hold_is_refused(model, here, capsys):
    dims, state = vars(model.dims), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["decoder.ln.bias"][3] = 1e6
    torch.save({"dims": dims, "model_state_dict": state}, "large.pt")
    line = failure(capsys, "large.pt", "x.safetensors", "--dtype", "float16")
    assert "decoder.ln.bias has values beyond the range of float16" in line
    assert os.listdir() == ["large.pt"]
    assert cli.main(["convert", "large.pt", "x.safetensors"]) == 0


def test_an_interrupted_write_leaves_the_old_file(checkpoint, here, capsys, monkeypatch):
    (here / "x.safetensors").write_bytes(b"old")

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    assert "No space left" in failure(capsys, str(checkpoint), "x.safetensors")
    assert os.listdir() == ["x.safetensors"]
    assert (here / "x.safetensors").read_bytes() == b"old"


# --- beside `whisper-at AUDIO` ---


class LoadedError(Exception):
    pass


@pytest.fixture
def loading(monkeypatch):
    """What `whisper-at AUDIO...` would load."""

    def load_model(name, **options):
        raise LoadedError(name)

    monkeypatch.setattr("whisper_at.loading.load_model", load_model)
    return "whisper-at: error: x.en\n"


@pytest.mark.parametrize(
    "args", [["convert"], ["convert", "b.safetensors"], ["a.wav", "convert"], ["./convert"], ["a.wav"]]
)
def test_a_recording_named_convert_is_a_recording(here, capsys, loading, args):
    for name in ("convert", "x.en"):
        (here / name).write_bytes(b"sound")
    assert cli.main([*args, "--model", "x.en"]) == 1
    assert capsys.readouterr().err == loading


def test_convert_elsewhere_than_first_is_a_recording(here, capsys, loading):
    (here / "x.en").write_bytes(b"")
    for args in (["--model", "x.en", "convert"], ["a.wav", "convert", "--model", "x.en"]):
        assert cli.main(args) == 1
        assert capsys.readouterr().err == loading


def test_a_folder_named_convert_is_no_recording(here, capsys):
    (here / "convert").mkdir()
    assert cli.main(["convert", "nano.en", "convert/n.safetensors"]) == 0
    with safe_open("convert/n.safetensors", "pt") as file:
        assert len(list(file.keys())) > 50


def test_help(capsys, monkeypatch):
    for args, message in ((["convert", "--help"], "TARGET.safetensors"), (["--help"], "whisper-at convert")):
        with pytest.raises(SystemExit) as exit:
            cli.main(args)
        assert exit.value.code == 0
        assert message in capsys.readouterr().out
