"""Adapters of the package peft are merged into their model, as peft merges them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_ctranslate2 import ct2_variables, write_ct2
from tiny_checkpoints import hf_tensors, tiny_whisper, write_folder

import whisper_at
from whisper_at.checkpoints import alignment_heads, decode_alignment_heads, open_whisper

DIMS = vars(tiny_whisper().dims)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    generation = {"alignment_heads": [[1, 0]]}
    folder, ffn = tmp_path_factory.mktemp("base") / "model", {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    return write_folder(folder, tiny_whisper(), generation=generation, **ffn)


def train_adapter(base: Path, folder: Path, **options) -> dict[str, torch.Tensor]:
    """Save an adapter with random values by peft, and return what peft merges it to, in transformers' names."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 1.0 if "magnitude" in name else 0.0, 0.1)
    adapted.save_pretrained(folder)
    return {name.removeprefix("model."): tensor for name, tensor in adapted.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "fc1"]},
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "fc2"], "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "target_modules": ["k_proj", "out_proj"], "use_dora": True},
        {
            "r": 4,
            "target_modules": ["q_proj"],
            "rank_pattern": {"encoder.*q_proj": 2},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 32},
        },
        {"r": 2, "target_modules": ["v_proj"], "bias": "all"},
        {"r": 2, "target_modules": ["v_proj"], "modules_to_save": ["conv1"]},
        {"r": 2, "target_modules": ["conv2", "q_proj"]},
        {"r": 2, "target_modules": r".*encoder.*\.(fc1|fc2)"},
    ],
    ids=["lora", "rslora", "dora", "patterns", "bias", "whole modules", "convolution", "expression"],
)
def test_the_merged_model_is_pefts(base, tmp_path, options):
    expected = train_adapter(base, tmp_path / "adapter", **options)
    dims, state = open_whisper(tmp_path / "adapter")
    assert dims == DIMS
    ours = dict(zip(hf_tensors(tiny_whisper(), ""), tiny_whisper().state_dict()))
    plain = open_whisper(base)[1]
    changed = 0
    for theirs, name in ours.items():
        torch.testing.assert_close(state[name], expected[theirs], rtol=1e-5, atol=1e-6)
        changed += not torch.equal(state[name], plain[name])
    assert changed
    assert decode_alignment_heads(alignment_heads("x", tmp_path / "adapter", dims), dims) == [[1, 0]]  # its model's
    assert whisper_at.load_model(str(tmp_path / "adapter"), device="cpu", head=None).dims.n_text_layer == 2


def write_adapter(folder: Path, base: object, tensors: dict | None = None, **config) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 2, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    module = "base_model.model.model.encoder.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(2, 16), f"{module}.lora_B.weight": torch.ones(16, 2)}
    save_file(factors if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_beside_a_model_is_merged_into_it(tmp_path):
    """Both layouts that a model beside it may have; it used to be dropped without a word."""
    model = tiny_whisper()
    name = "encoder.blocks.0.attn.query.weight"
    for folder in (write_folder(tmp_path / "hf", model), write_ct2(tmp_path / "ct2", ct2_variables(model))):
        write_adapter(folder, "nowhere/else")
        with pytest.warns(UserWarning, match="has a model and an adapter, which is merged into it"):
            _, state = open_whisper(folder)
        assert torch.equal(state[name], model.state_dict()[name] + 2)


@pytest.mark.parametrize("layout", ["model and adapter", "adapter alone", "ctranslate2 and adapter"])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "config.json", "weights"])
@pytest.mark.filterwarnings("ignore:.*has a model and an adapter")
def test_a_file_of_a_folder_stands_for_the_folder(tmp_path, base, layout, file):
    """`adapter_model.safetensors` gave "dims without n_mels", and `model.safetensors` beside it the bare model."""
    model, folder = tiny_whisper(), tmp_path / "folder"
    if layout == "model and adapter":
        write_folder(folder, model)
    elif layout == "ctranslate2 and adapter":
        write_ct2(folder, ct2_variables(model))
    write_adapter(folder, base)
    path = folder / {"weights": "model.bin" if "ct" in layout else "model.safetensors"}.get(file, file)
    if not path.exists():
        pytest.skip(f"{layout} has no {path.name}")
    _, state = open_whisper(folder)
    _, by_file = open_whisper(path)
    assert all(torch.equal(by_file[name], state[name]) for name in state)
    loaded = whisper_at.load_model(str(path), device="cpu", head=None).state_dict()
    expected = whisper_at.load_model(str(folder), device="cpu", head=None)
    assert all(torch.equal(loaded[name], value) for name, value in expected.state_dict().items())
    heads = whisper_at.load_model(str(path), device="cpu", head=None).alignment_heads.to_dense()
    assert torch.equal(heads, expected.alignment_heads.to_dense())


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("beside", ["hf", "ct2", "nothing"])
def test_an_adapter_without_its_configuration_is_not_dropped(tmp_path, name, beside):
    folder = tmp_path / "folder"
    if beside == "hf":
        write_folder(folder, tiny_whisper())
    elif beside == "ct2":
        write_ct2(folder, ct2_variables(tiny_whisper()))
    write_adapter(folder, "x")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_model.safetensors").rename(folder / name)
    with pytest.raises(RuntimeError, match=f"has an adapter, {name}, without its adapter_config.json"):
        whisper_at.load_model(str(folder), device="cpu", head=None)
    if name.endswith("safetensors"):
        with pytest.raises(RuntimeError, match="this is an adapter, of which the folder is given, with adapter_config"):
            whisper_at.load_model(str(folder / name), device="cpu", head=None)


def test_an_adapter_of_an_official_whisper_needs_no_hub(tmp_path, monkeypatch):
    model = tiny_whisper()
    folder = write_ct2(tmp_path / "package", ct2_variables(model))
    monkeypatch.setattr(
        "whisper_at.checkpoints.whisper.find_local", lambda name, root: folder if name == "tiny.en" else None
    )
    adapter = write_adapter(tmp_path / "adapter", "openai/whisper-tiny.en")
    _, state = open_whisper(adapter)
    name = "encoder.blocks.0.attn.query.weight"
    assert torch.equal(state[name], model.state_dict()[name] + 2)


def test_what_cannot_be_merged_says_so(base, tmp_path):
    folder = tmp_path / "adapter"
    module = "base_model.model.model.encoder.layers.0.self_attn.q_proj"
    a, b = torch.ones(2, 16), torch.ones(16, 2)
    for message, tensors, config in (
        ("type IA3", None, {"peft_type": "IA3"}),
        ("init_lora_weights = 'pissa'", None, {"init_lora_weights": "pissa"}),
        ("layer_replication cannot", None, {"layer_replication": [[0, 1]]}),
        ("does not say of which model", None, {"base_model_name_or_path": None}),
        ("whose model cannot be had", None, {"base_model_name_or_path": "/nowhere"}),
        ("names itself", None, {"base_model_name_or_path": str(folder)}),
        ("A or B is missing", {f"{module}.lora_A.weight": a}, {}),
        ("of another model", {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": torch.ones(8, 2)}, {}),
        ("does not have", {f"{module}x.lora_A.weight": a, f"{module}x.lora_B.weight": b}, {}),
        ("has no counterpart", {"base_model.model.proj_out.weight": torch.ones(3, 3)}, {}),
    ):
        write_adapter(folder, base, tensors, **config)
        with pytest.raises(RuntimeError, match=message) as error:
            open_whisper(folder)
        assert "\n" not in str(error.value)
    (folder / "adapter_model.safetensors").unlink()
    write = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(write))
    with pytest.raises(RuntimeError, match=r"neither adapter_model.safetensors nor adapter_model.bin"):
        open_whisper(folder)
    assert load_file(base / "model.safetensors")  # the model is as it was
