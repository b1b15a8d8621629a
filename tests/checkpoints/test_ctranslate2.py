"""Folders in CTranslate2's layout give the tensors that went into them; what cannot be read is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
from tiny_checkpoints import logits, tiny_whisper

import whisper_at
from whisper_at.checkpoints import alignment_heads, decode_alignment_heads, find_whisper, open_whisper

NUMBERS = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.float16: 4, torch.bfloat16: 5}


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name: str, tensor: torch.Tensor) -> bytes:
    data = (
        tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.dim() else tensor.numpy().tobytes()
    )
    header = text(name) + struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)
    return header + struct.pack("<BI", NUMBERS[tensor.dtype], len(data)) + data


def ct2_variables(model: whisper.Whisper) -> dict[str, torch.Tensor]:
    """The model under CTranslate2's names (specification of the layouts), in float32."""
    state, dims = model.state_dict(), model.dims
    out: dict[str, torch.Tensor] = {}
    for part, kind in (("encoder", "audio"), ("decoder", "text")):
        width = getattr(dims, f"n_{kind}_state")
        out[f"{part}/num_heads"] = torch.tensor(getattr(dims, f"n_{kind}_head"), dtype=torch.int16)
        out[f"{part}/position_encodings/encodings"] = state[f"{part}.positional_embedding"]
        norm = {"encoder": "ln_post", "decoder": "ln"}[part]
        out |= {
            f"{part}/layer_norm/{a}": state[f"{part}.{norm}.{b}"] for a, b in (("gamma", "weight"), ("beta", "bias"))
        }
        for i in range(getattr(dims, f"n_{kind}_layer")):
            ours, theirs = f"{part}.blocks.{i}", f"{part}/layer_{i}"
            groups = [("self_attention", "attn", (("query", "key", "value"), ("out",)))]
            if part == "decoder":
                groups += [("attention", "cross_attn", (("query",), ("key", "value"), ("out",)))]
            for name, module, stacks in groups:
                for j, stack in enumerate(stacks):
                    bias = [state.get(f"{ours}.{module}.{m}.bias", torch.zeros(width)) for m in stack]
                    out[f"{theirs}/{name}/linear_{j}/bias"] = torch.cat(bias)
                    weights = [state[f"{ours}.{module}.{m}.weight"] for m in stack]
                    out[f"{theirs}/{name}/linear_{j}/weight"] = torch.cat(weights)
                out[f"{theirs}/{name}/layer_norm/gamma"] = state[f"{ours}.{module}_ln.weight"]
                out[f"{theirs}/{name}/layer_norm/beta"] = state[f"{ours}.{module}_ln.bias"]
            for j, m in enumerate(("mlp.0", "mlp.2")):
                out |= {f"{theirs}/ffn/linear_{j}/{leaf}": state[f"{ours}.{m}.{leaf}"] for leaf in ("weight", "bias")}
            out[f"{theirs}/ffn/layer_norm/gamma"] = state[f"{ours}.mlp_ln.weight"]
            out[f"{theirs}/ffn/layer_norm/beta"] = state[f"{ours}.mlp_ln.bias"]
    for conv in ("conv1", "conv2"):
        out |= {f"encoder/{conv}/{leaf}": state[f"encoder.{conv}.{leaf}"] for leaf in ("weight", "bias")}
    out["decoder/embeddings/weight"] = state["decoder.token_embedding.weight"]
    return out | {"decoder/scale_embeddings": torch.tensor(0, dtype=torch.int8)}


def convert(variables: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The weights in a type as CTranslate2 stores it: int8 is ``round(w · 127 / max |w|)`` by row, with its scales."""
    if kind in ("float16", "bfloat16", "float32"):
        dtype = getattr(torch, kind)
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in variables.items()}
    out = {}
    rest = torch.float16 if kind == "int8_float16" else torch.float32
    for name, v in variables.items():
        if v.is_floating_point() and name.endswith("/weight") and "conv" not in name:
            scale = 127 / v.abs().amax(1)
            out[name], out[f"{name}_scale"] = (v * scale[:, None]).round().to(torch.int8), scale
        elif v.is_floating_point():
            out[name] = v.to(rest)
        else:
            out[name] = v
    return out


def write_ct2(folder: Path, variables: dict[str, torch.Tensor], config: dict | None = None, spec="WhisperSpec") -> Path:
    folder.mkdir(exist_ok=True)
    body = b"".join(variable(name, tensor) for name, tensor in sorted(variables.items()))
    aliases = struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")
    head = struct.pack("<I", 6) + text(spec) + struct.pack("<II", 3, len(variables))
    (folder / "model.bin").write_bytes(head + body + aliases)
    (folder / "config.json").write_text(json.dumps(config if config is not None else {"lang_ids": [50259]}))
    return folder


@pytest.fixture(scope="module")
def model() -> whisper.Whisper:
    return tiny_whisper()


@pytest.fixture(scope="module")
def variables(model) -> dict[str, torch.Tensor]:
    return ct2_variables(model)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_tensors_are_kept_bit_for_bit(model, variables, tmp_path, kind, in_memory):
    folder = write_ct2(tmp_path / "model", convert(variables, kind))
    dims, state = open_whisper(folder, in_memory)
    assert dims == vars(model.dims)
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == getattr(torch, kind)
        assert torch.equal(state[name], tensor.to(getattr(torch, kind))), name


@pytest.mark.parametrize("kind", ["int8", "int8_float16"])
def test_int8_is_within_half_a_step_of_its_row(model, variables, tmp_path, kind):
    _, state = open_whisper(write_ct2(tmp_path / "model", convert(variables, kind)))
    for name, tensor in model.state_dict().items():
        step = tensor.abs().amax(-1, keepdim=True) / 127 if tensor.dim() == 2 else torch.tensor(2e-3)
        assert ((state[name].float() - tensor).abs() <= 0.5001 * step + 1e-3 * ("position" in name)).all(), name


def test_a_folder_and_its_file_load(model, variables, tmp_path):
    folder = write_ct2(tmp_path / "model", convert(variables, "float32"), {"alignment_heads": [[1, 0], [0, 3]]})
    expected = logits(model)
    for name in (folder, folder / "model.bin"):
        loaded = whisper_at.load_model(str(name), device="cpu")
        assert torch.equal(logits(loaded), expected)
        assert decode_alignment_heads(
            alignment_heads(name, find_whisper(name), vars(model.dims)), vars(model.dims)
        ) == [
            [0, 3],
            [1, 0],
        ]
        assert loaded.alignment_heads.indices().T.tolist() == [[0, 3], [1, 0]]


def test_tokens_that_round_the_vocabulary_up_are_cut(variables, tmp_path):
    padded = {
        **variables,
        "decoder/embeddings/weight": torch.cat([variables["decoder/embeddings/weight"], torch.zeros(8, 16)]),
    }
    with pytest.warns(UserWarning, match="the last 8 of 51872 tokens are empty"):
        dims, state = open_whisper(write_ct2(tmp_path / "model", padded))
    assert dims["n_vocab"] == len(state["decoder.token_embedding.weight"]) == 51864


def test_what_is_not_such_a_file_says_so(variables, tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(RuntimeError, match=message) as error:
            open_whisper(folder)
        assert "\n" not in str(error.value)

    folder = write_ct2(tmp_path / "model", variables)
    whole = (folder / "model.bin").read_bytes()
    for end in (3, 9, 40, len(whole) // 2, len(whole) - 60):
        (folder / "model.bin").write_bytes(whole[:end])
        refused("cut short")
    (folder / "model.bin").write_bytes(b"")
    refused("is empty")
    (folder / "model.bin").write_bytes(np.random.default_rng(0).bytes(1 << 16))
    refused("cut short, or something else")
    write_ct2(folder, variables, spec="TransformerSpec")
    refused("holds 'TransformerSpec', not a Whisper")
    write_ct2(folder, {k: v for k, v in variables.items() if "layer_1/ffn/linear_1/bias" not in k})
    refused("mlp.2.bias is missing")
    write_ct2(folder, {k: v for k, v in variables.items() if k != "encoder/conv1/weight"})
    refused("has no encoder.conv1.weight")
    bias = "decoder/layer_0/self_attention/linear_0/bias"
    write_ct2(folder, {**variables, bias: torch.ones_like(variables[bias])})
    refused("gives keys a bias")
    quantised = convert(variables, "int8")
    del quantised["encoder/layer_0/ffn/linear_0/weight_scale"]
    write_ct2(folder, quantised)
    refused("its scale is missing")


def test_it_converts_to_safetensors(model, variables, tmp_path):
    from whisper_at.checkpoints.convert import convert as write

    folder = write_ct2(tmp_path / "model", convert(variables, "float16"), {"alignment_heads": [[1, 2]]})
    loaded = whisper_at.load_model(str(write(folder, tmp_path / "whole.safetensors")), device="cpu")
    assert torch.equal(logits(loaded), logits(whisper_at.load_model(str(folder), device="cpu")))
    assert loaded.alignment_heads.indices().T.tolist() == [[1, 2]]
