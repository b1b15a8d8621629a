"""Whatever bytes a checkpoint has, it opens or is refused as a RuntimeError, and asks for no more than it holds."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import fuzz, mutate, mutations
from safetensors.torch import save
from test_ctranslate2 import ct2_variables, write_ct2
from test_ggml import write_ggml
from tiny_checkpoints import hf_tensors, tiny_whisper, write_folder

import whisper_at
from whisper_at.checkpoints import open_head, open_whisper
from whisper_at.tagging.heads import make_head

LAYOUTS = (
    "model.pt",
    "model.safetensors",
    "ggml.bin",
    "hf/model.safetensors",
    "hf/config.json",
    "ct2/model.bin",
    "head.pth",
)


@cache
def small_whisper():
    """A Whisper with hardly any weights: a vocabulary of 51864 rows of 16 would be most of the file."""
    return tiny_whisper(text_layers=1)


def write(layout: str, folder: Path) -> Path:
    """Write a whole checkpoint; return the file that is damaged afterwards."""
    model = small_whisper()
    path = folder / layout
    path.parent.mkdir(exist_ok=True, parents=True)
    if layout == "model.pt":
        torch.save({"dims": vars(model.dims), "model_state_dict": model.state_dict()}, path)
    elif layout == "model.safetensors":
        path.write_bytes(save(dict(model.state_dict()), {"dims": json.dumps(vars(model.dims))}))
    elif layout == "ggml.bin":
        write_ggml(path, model)
    elif layout.startswith("hf"):
        write_folder(path.parent, model, hf_tensors(model))
    elif layout.startswith("ct2"):
        write_ct2(path.parent, ct2_variables(model))
    else:
        torch.save(make_head("tl_tr_1_8", n_layer=2, rep_dim=64).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, {layout: write(layout, folder).read_bytes() for layout in LAYOUTS}


@pytest.fixture(autouse=True)
def limited_memory():
    """What a crafted header asks for is refused by the system, and not taken from the machine."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@fuzz(30)
@given(st.sampled_from(LAYOUTS), mutations())
def test_a_damaged_checkpoint_opens_or_is_refused(whole, layout, changes):
    folder, contents = whole
    path = folder / layout
    path.write_bytes(mutate(contents[layout], changes))
    opened = open_head if layout == "head.pth" else open_whisper
    try:
        with warnings.catch_warnings(), contextlib.suppress(RuntimeError, ValueError):
            warnings.simplefilter("ignore")
            opened(path)
    finally:
        path.write_bytes(contents[layout])


@pytest.mark.parametrize("value", [0, -1, 2**31 - 1, 2**40])
@pytest.mark.parametrize("name", ["n_mels", "n_audio_layer", "n_audio_state", "n_vocab", "n_text_ctx", "n_text_head"])
def test_dimensions_that_no_model_has_are_refused_before_anything_is_made_of_them(tmp_path, name, value):
    model = small_whisper()
    buffer = io.BytesIO()
    torch.save({"dims": {**vars(model.dims), name: value}, "model_state_dict": model.state_dict()}, buffer)
    path = tmp_path / "model.pt"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(RuntimeError, match=name):
        whisper_at.load_model(str(path), "cpu", head=None)
