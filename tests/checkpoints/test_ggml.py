"""Files in ggml's layout give the tensors that went into them; quantised ones what ggml's formulas say."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
from tiny_checkpoints import logits, tiny_whisper

import whisper_at
from whisper_at.checkpoints import alignment_heads, open_whisper

HEADER = ("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer")
HEADER += ("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels")


def ggml_tensor(name: str, values: np.ndarray | bytes, number: int, shape: tuple[int, ...]) -> bytes:
    data = values if isinstance(values, bytes) else values.tobytes()
    head = struct.pack("<3i", len(shape), len(name.encode()), number) + struct.pack(f"<{len(shape)}i", *shape[::-1])
    return head + name.encode() + data


def write_ggml(path: Path, model: whisper.Whisper, half: bool = False, quantised: dict | None = None) -> Path:
    """As whisper.cpp's converter writes it: matrices may be half, norms and biases are float32, conv biases (n, 1)."""
    dims = vars(model.dims)
    parts = [struct.pack("<I", 0x67676D6C), struct.pack("<11i", *(dims[name] for name in HEADER), int(half))]
    parts += [struct.pack("<2i", dims["n_mels"], 201), np.zeros((dims["n_mels"], 201), np.float32).tobytes()]
    parts += [struct.pack("<i", 3)] + [struct.pack("<I", len(token)) + token for token in (b"a", b" the", "é".encode())]
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype("<f4")
        if name.endswith(("conv1.bias", "conv2.bias")):
            array = array[:, None]
        number, values = 0, array
        if half and array.ndim >= 2 and "bias" not in name and "positional" not in name:
            number, values = 1, array.astype("<f2")
        if quantised and name in quantised:
            number, values = quantised[name]
        parts.append(ggml_tensor(name, values, number, array.shape))
    path.write_bytes(b"".join(parts))
    return path


@pytest.fixture(scope="module")
def model() -> whisper.Whisper:
    return tiny_whisper()


@pytest.mark.parametrize("in_memory", [False, True])
def test_float32_is_kept_bit_for_bit(model, tmp_path, in_memory):
    path = write_ggml(tmp_path / "ggml-tiny.bin", model)
    dims, state = open_whisper(path, in_memory)
    assert dims == vars(model.dims)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(whisper_at.load_model(str(path), device="cpu")), logits(model))
    assert alignment_heads(path, path, dims) is None  # the layout has none


def test_half_precision_is_kept_bit_for_bit(model, tmp_path):
    _, state = open_whisper(write_ggml(tmp_path / "ggml.bin", model, half=True))
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name].float(), tensor.to(state[name].dtype).float())
    assert state["encoder.blocks.0.attn.query.weight"].dtype == torch.float16
    assert state["encoder.blocks.0.attn_ln.weight"].dtype == torch.float32


def blocks_by_formula(kind: int, n_blocks: int) -> tuple[bytes, np.ndarray]:
    """Random blocks as bytes, and their weights by ggml's formulas, one weight after the other."""
    rng = np.random.default_rng(kind)
    data, weights = b"", []
    for _ in range(n_blocks):
        d, m = (np.float16(v) for v in rng.normal(0, 0.1, 2))
        low = rng.integers(0, 256, 16, dtype=np.uint8)
        high = int(rng.integers(0, 1 << 32))
        signed = rng.integers(-127, 128, 32).astype(np.int8)
        data += d.tobytes() + (m.tobytes() if kind in (3, 7) else b"")
        data += struct.pack("<I", high) if kind in (6, 7) else b""
        data += signed.tobytes() if kind == 8 else low.tobytes()
        for i in range(32):
            q = int(low[i % 16]) >> (4 if i >= 16 else 0) & 15
            fifth = (high >> i & 1) << 4
            value = {2: q - 8, 3: q, 6: (q | fifth) - 16, 7: q | fifth, 8: int(signed[i])}[kind]
            weights.append(np.float32(d) * np.float32(value) + (np.float32(m) if kind in (3, 7) else 0))
    return data, np.array(weights, np.float32)


@pytest.mark.parametrize("kind", [2, 3, 6, 7, 8])
def test_quantised_weights_are_widened(model, tmp_path, kind):
    name = "decoder.blocks.1.mlp.0.weight"
    shape = model.state_dict()[name].shape
    data, expected = blocks_by_formula(kind, shape.numel() // 32)
    _, state = open_whisper(write_ggml(tmp_path / "ggml.bin", model, quantised={name: (kind, data)}))
    assert torch.equal(state[name], torch.from_numpy(expected).reshape(shape))
    assert torch.equal(state["decoder.ln.weight"], model.state_dict()["decoder.ln.weight"])


def test_what_cannot_be_read_says_so(model, tmp_path):
    path = write_ggml(tmp_path / "ggml.bin", model)
    whole = path.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(RuntimeError, match=message) as error:
            open_whisper(path)
        assert "\n" not in str(error.value)

    for end in (6, 30, 60, 60_000, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:end])
        refused("cut short or damaged")
    path.write_bytes(whole[:48] + np.random.default_rng(0).bytes(len(whole) - 48))
    refused("cut short or damaged")
    write_ggml(path, model, quantised={"decoder.ln.weight": (12, bytes(144))})
    refused("decoder.ln.weight has ggml's type 12; f32, f16, q4_0, q4_1, q5_0, q5_1, q8_0 can be read")
    last = ggml_tensor("decoder.ln.bias", np.zeros(16, "<f4"), 0, (16,))
    path.write_bytes(whole[: -len(last)])
    refused("decoder.ln.bias is missing")
