"""Weights that are mapped from a file: their memory is given back, and whatever is written to them is seen."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from llvmlite import binding
from safetensors.torch import load_file, save_file
from torch import nn

import whisper_at
from whisper_at.checkpoints.files import read_tensors
from whisper_at.engine import file_pages
from whisper_at.engine.file_pages import FilePages, FileRows, release_library
from whisper_at.engine.kv_cache import DecoderState
from whisper_at.engine.weights import WeightsVersion

pytestmark = pytest.mark.skipif(not file_pages._tells_pages(), reason="this system does not tell what pages are")


def resident(tensor: torch.Tensor) -> int:
    """Pages of a tensor that are in memory."""
    size = file_pages.mmap.PAGESIZE
    start, end = tensor.data_ptr() // size * size, -(-(tensor.data_ptr() + tensor.nbytes) // size) * size
    return int((file_pages._page_kinds(start, end) != 0).sum())


@pytest.fixture(params=[".safetensors", ".pt"])
def module(request, tmp_path):
    """Two layers whose matrices are mapped from a file; biases are not."""
    layers = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 256)).requires_grad_(False)
    state = {name: tensor.half() for name, tensor in layers.state_dict().items()}
    path = tmp_path / f"weights{request.param}"
    (save_file if request.param == ".safetensors" else torch.save)(state, path)
    content, _ = read_tensors(path)
    layers.load_state_dict({n: t if t.ndim == 2 else t.float() for n, t in content.items()}, assign=True)
    return layers


def test_memory_is_given_back_and_read_again(module):
    weight = module[0].weight
    values = weight.clone()
    pages = FilePages(module.parameters())
    assert len(pages.addresses) == 2
    assert resident(weight) > 0
    pages.release()
    assert resident(weight) == 0
    assert torch.equal(weight, values)


@pytest.mark.parametrize("change", [lambda w: w.data[300:301].zero_(), lambda w: w.data.numpy()[7].fill(1), torch.neg_])
def test_what_was_written_is_seen_and_kept(module, change):
    """A part of a matrix, too, and by whatever means: pages that were written to are the process's own."""
    version = WeightsVersion(module)
    version.pages.release()
    assert version.matches(module)
    change(module[0].weight)
    changed = module[0].weight.clone()
    assert not version.matches(module)
    version.pages.release()
    assert torch.equal(module[0].weight, changed)
    again = WeightsVersion(module)  # what has been written to is compared by values from now on
    assert module[0].weight.data_ptr() not in again.pages.addresses
    assert again.matches(module)
    module[0].weight.data.mul_(2)
    assert not again.matches(module)


def test_what_is_not_mapped_is_left_alone(module):
    weights = [copy.deepcopy(module)[0].weight, pickle.loads(pickle.dumps(module))[0].weight, module[0].bias]
    weights.append(torch.ones(1 << 16).share_memory_())
    expected = [weight.clone() for weight in weights]
    pages = FilePages(weights)
    pages.release()
    assert not pages.addresses
    assert all(map(torch.equal, weights, expected))


def test_rows_are_read_from_the_file(module, tmp_path):
    weight = module[0].weight
    rows = FileRows.of(weight)
    FilePages([weight]).release()
    numbers = torch.tensor([[3, 511], [0, 3]])
    found = rows[numbers]
    assert resident(weight) == 0
    assert torch.equal(found, weight[numbers])
    (file,) = tmp_path.iterdir()
    file.unlink()
    assert torch.equal(rows[numbers], weight[numbers])
    assert FileRows.of(weight) is None
    assert FileRows.of(torch.ones(1 << 10, 64)) is None


def test_another_file_in_its_place_is_not_read(module, tmp_path):
    (file,) = tmp_path.iterdir()
    values = module[0].weight.clone()
    save_file({"0.weight": values + 1}, tmp_path / "new")
    (tmp_path / "new").rename(file)
    assert FileRows.of(module[0].weight) is None
    assert torch.equal(module[0].weight, values)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_model_in_int8_leaves_its_weights_in_the_file(upstream_en, tmp_path, suffix):
    """It is the model that is read as a whole, in fewer pages; it is saved and changed like any other."""
    path = tmp_path / f"model.{suffix}"
    state = {name: tensor.half() for name, tensor in upstream_en.state_dict().items()}
    if suffix == "pt":
        torch.save({"dims": vars(upstream_en.dims), "model_state_dict": state}, path)
    else:
        save_file(state, path, {"dims": json.dumps(vars(upstream_en.dims))})
    options = {"head": None, "compute_type": "int8"}
    mapped, read = (whisper_at.load_model(str(path), "cpu", in_memory=read, **options) for read in (False, True))
    embedding = mapped.decoder.token_embedding.weight
    mel = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 80, 3000), np.float32))
    tokens = torch.tensor([[50257, 50362, 11, 262]])

    def prefill(model):
        decoder = model.fast_decoder(torch.float32)
        return DecoderState(decoder, decoder.precompute_cross_kv(model.embed_audio(mel))).prefill(tokens)

    logits = prefill(mapped)
    assert torch.equal(logits, prefill(read))
    assert 50 * resident(embedding) < resident(read.decoder.token_embedding.weight)  # pages beside what is read
    save_file(mapped.state_dict(), tmp_path / "saved.safetensors")
    saved = load_file(tmp_path / "saved.safetensors")
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], state[name].to(saved[name].dtype)) for name in state)
    embedding.data[11] = embedding.data[262]
    changed = prefill(mapped)
    assert not torch.equal(changed, logits)
    assert torch.equal(prefill(copy.deepcopy(mapped)), changed)


def test_the_code_of_a_library_is_given_back_and_read_again():
    def in_memory():
        mappings = [m for m in file_pages._private_mappings() if "libllvmlite" in m[3]]
        return sum(int((file_pages._page_kinds(low, high) != 0).sum()) for low, high, _, _ in mappings)

    binding.parse_assembly("define i32 @one() { ret i32 1 }").verify()
    before = in_memory()
    release_library("libllvmlite")
    assert in_memory() < before / 2  # what was written to while it was linked stays
    binding.parse_assembly("define i32 @two() { ret i32 2 }").verify()
