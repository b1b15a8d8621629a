"""A decoder in float32 whose matrices are kept in half precision until they are read."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import whisper
from conftest import noise, random_whisper

import whisper_at
from whisper_at.engine.half_parameters import HalfParameters, keep_in_half, stored_parameters, stored_weight
from whisper_at.engine.kv_cache import DecoderState
from whisper_at.model import WhisperAT


@pytest.fixture
def checkpoint(tmp_path):
    model = random_whisper(whisper.model.Whisper, 51864, seed=3).half()
    path = tmp_path / "model.pt"
    torch.save({"dims": vars(model.dims), "model_state_dict": model.state_dict()}, path)
    return path


@pytest.fixture
def model(checkpoint):
    return whisper_at.load_model(str(checkpoint), "cpu", head=None)


def halves(module):
    return {name for name, parameter in stored_parameters(module) if parameter.dtype == torch.float16}


def prefill(model, features):
    decoder = model.fast_decoder(torch.float32)
    return DecoderState(decoder, decoder.precompute_cross_kv(features)).prefill(torch.tensor([[50257, 50362, 11]]))


def test_what_is_read_is_in_float32(model, checkpoint):
    """Names, numbers, precision and gradients are those that openai-whisper's own loader gives."""
    expected = whisper.load_model(str(checkpoint), "cpu")
    assert halves(model) == {name for name, p in expected.named_parameters() if _is_kept_in_half(name, p)}
    for (name, found), (other, parameter) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert (name, found.dtype, found.requires_grad) == (other, torch.float32, parameter.requires_grad)
        assert torch.equal(found, parameter)
    assert halves(model) == set()
    assert model.state_dict().keys() == expected.state_dict().keys()


def _is_kept_in_half(name, parameter):
    return name.startswith("decoder.") and parameter.ndim == 2 and "positional" not in name


def test_a_transcription_reads_none(model, checkpoint):
    upstream = whisper.load_model(str(checkpoint), "cpu")
    before = halves(model)
    options = {"language": "en", "fp16": False, "temperature": 0.0, "sample_len": 12, "word_timestamps": True}
    audio = noise(40)
    assert model.transcribe(audio, **options)["text"] == upstream.transcribe(audio, **options)["text"]
    assert halves(model) == before
    packed = model.fast_decoder(torch.float32).packed
    where = {array.ctypes.data for array in (packed.mlp_up.weight, packed.qkv.weight, packed.embedding.weight)}
    block = model.decoder.blocks[0]
    weights = map(stored_weight, (block.mlp[0], block.attn.query, model.decoder.token_embedding))
    assert {weight.data_ptr() for weight in weights} == where  # no second copy


def test_logits_do_not_depend_on_it(model, checkpoint):
    features = torch.randn(1, 1500, 64, generator=torch.Generator().manual_seed(0))
    usual = WhisperAT(model.dims)
    usual.load_state_dict(torch.load(checkpoint, weights_only=True)["model_state_dict"])
    logits = prefill(model, features)
    assert halves(model)
    assert torch.equal(logits, prefill(usual, features))
    list(model.parameters())
    assert torch.equal(logits, prefill(model, features))
    with torch.no_grad():
        model.decoder.blocks[0].mlp[0].weight.mul_(-1)
    assert not torch.equal(logits, prefill(model, features))


def test_one_is_read_alone(model):
    before, block = halves(model), model.decoder.blocks[1]
    weight = block.attn.out.weight
    assert block.attn.out.weight is weight
    assert before - halves(model) == {"decoder.blocks.1.attn.out.weight"}


@pytest.mark.parametrize("read", [dict, lambda p: {**p}, lambda p: p.copy(), lambda p: {"weight": p.get("weight")}])
def test_every_way_of_reading_gives_float32(model, read):
    parameters = model.decoder.blocks[0].mlp[2]._parameters
    assert isinstance(parameters, HalfParameters)
    found = read(parameters)
    assert found["weight"].dtype == torch.float32
    assert found["weight"] is parameters.pop("weight")
    assert "weight" not in parameters
    assert parameters.get("weight") is None


def test_threads_read_the_same(model):
    module = model.decoder.token_embedding
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: module.weight, range(32)))
    assert all(weight is found[0] for weight in found)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_usual_modules(model, copied):
    features = torch.randn(1, 1500, 64, generator=torch.Generator().manual_seed(0))
    logits = prefill(model, features)
    other = copied(model)
    assert all(type(part._parameters) is dict for part in other.modules())
    assert torch.equal(prefill(other, features), logits)


def test_what_is_set_stays(model):
    """Also before it was ever read."""
    module = model.decoder.blocks[0].mlp[0]
    new = torch.nn.Parameter(torch.ones_like(stored_weight(module), dtype=torch.float32))
    module.weight = new
    assert module.weight is new
    model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()})
    assert not any(parameter.any() for parameter in model.parameters())


def test_it_can_be_trained(model):
    """Gradients come to the parameters, although they were first read where none are recorded."""
    with torch.inference_mode():
        assert not model.decoder.blocks[0].mlp[0].weight.is_inference()
    logits = model.decoder(torch.tensor([[50257, 11]]), torch.randn(1, 1500, 64))
    logits.sum().backward()
    assert all(p.grad is not None for name, p in model.decoder.named_parameters())


def test_what_half_precision_cannot_hold_is_left_alone(model):
    weights = {name: tensor * (1 + 1e-5) for name, tensor in model.state_dict().items()}
    other = WhisperAT(model.dims)
    other.load_state_dict(weights)
    keep_in_half(other.decoder)
    assert halves(other) == set()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in other.state_dict().items())
