"""Checkpoints are opened as data, and files that are not what they seem say what they are."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from local_server import files_in
from safetensors import safe_open
from tiny_checkpoints import DIMS, official_head, torch_bytes
from whisper.model import ModelDimensions

from whisper_at.checkpoints import find_whisper, head_shapes, open_head, open_whisper, save_safetensors


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


@pytest.mark.parametrize("opener", [open_whisper, open_head])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html>\n<html>expired</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"Error 404: not found\n", "text file"),
        (bytes(range(256)) * 3, "cannot be read"),
    ],
)
def test_errors_for_files_that_are_not_checkpoints_say_what_they_are_D20(tmp_path, opener, suffix, data, message):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(data)
    with pytest.raises(RuntimeError, match=message) as error:
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
    ("content", "message"),
    [
        ({"model_state_dict": {"a": torch.ones(1)}}, "dims without n_mels"),
        ({"dims": {**DIMS, "n_mels": None}, "model_state_dict": {"a": torch.ones(1)}}, "dims without n_mels"),
        ({"dims": DIMS}, "no model_state_dict"),
        ({"dims": DIMS, "model_state_dict": {"a": 1}}, "no model_state_dict"),
        ([1, 2], "dims without"),
        ({"at_model.mlp_layer.0.weight": torch.ones(1)}, "head=FILE"),
    ],
)
def test_checkpoints_of_another_layout_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(RuntimeError, match=message):
        open_whisper(tmp_path / "other.pt")


@pytest.mark.parametrize("metadata", [{}, {"dims": "no json"}, {"dims": "[]"}])
def test_safetensors_without_dims_are_refused(tmp_path, metadata):
    save_safetensors({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(RuntimeError, match="dims without n_mels"):
        open_whisper(tmp_path / "x.safetensors")


def test_a_missing_file_raises_file_not_found(tmp_path):
    for opener in (open_whisper, open_head):
        with pytest.raises(FileNotFoundError):
            opener(tmp_path / "absent.pt")


# --- heads ---


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "at_model.", "module.", "module.at_model.", "at_model.module."])
def test_heads_open_under_any_prefix(tmp_path, prefix, suffix):
    head = {
        key.replace("at_model.", prefix): torch.rand(tensor.shape).half() for key, tensor in official_head(8).items()
    }
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
        **official_head(8),
        "encoder.conv1.weight": torch.ones(1),
        "decoder.token_embedding.weight": torch.ones(1),
    }
    for content in (merged, {"dims": DIMS, "model_state_dict": merged}):
        torch.save(content, tmp_path / "merged.pth")
        assert open_head(tmp_path / "merged.pth")[0].keys() == head_shapes(8).keys()


@pytest.mark.parametrize(
    ("content", "message"),
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
def test_files_that_are_not_heads_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(RuntimeError, match=message):
        open_head(tmp_path / "x.pth")


# --- saving ---


def test_saving_is_atomic(tmp_path):
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


LOOKS = {
    "GGUF": (b"GGUF" + bytes(60), "a GGUF file of llama.cpp"),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(60), "a TensorFlow Lite model"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "a gzip archive"),
    "tar": (b"model.ckpt".ljust(257, b"\0") + b"ustar" + bytes(250), "a tar archive"),
    "FLAC": (b"fLaC" + bytes(60), "a recording"),
    "MP4": (b"\0\0\0\x20ftypisom" + bytes(60), "a recording"),
}


@pytest.mark.parametrize(("content", "message"), LOOKS.values(), ids=LOOKS)
def test_files_that_are_no_checkpoints_are_named_for_what_they_look_like(tmp_path, content, message):
    for suffix in (".pt", ".bin"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        with pytest.raises(RuntimeError, match=f"is {message}.*Give openai-whisper's") as error:
            open_whisper(path)
        assert "\n" not in str(error.value)


def test_archives_are_named_for_what_is_in_them(tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.zeros(3))
    with pytest.raises(RuntimeError, match=r"an archive of NumPy arrays \(MLX"):
        open_whisper(tmp_path / "weights.npz")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(RuntimeError, match="a TorchScript program"):
        open_whisper(tmp_path / "script.pt")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("encoder.onnx", "ONNX, with encoder.onnx"),
        ("openvino_encoder_model.xml", "OpenVINO's"),
        ("weights.npz", "MLX's"),
        ("tf_model.h5", "TensorFlow's"),
        ("small.pt", "a folder of checkpoints: give the file, with small.pt"),
        ("readme.txt", "neither Hugging Face's layout nor CTranslate2's; give"),
    ],
)
def test_folders_of_other_layouts_are_named_for_what_they_look_like(tmp_path, file, message):
    (tmp_path / file).write_bytes(b"x")
    for load in (find_whisper, open_whisper):
        with pytest.raises(RuntimeError, match=message):
            load(tmp_path)
