"""Folders in Hugging Face's layout give the same logits; what cannot be expressed is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
import whisper
from safetensors.torch import save_file
from tiny_checkpoints import TEXT_LAYERS, hf_config, hf_tensors, logits, tiny_whisper, write_folder

import whisper_at
from whisper_at.checkpoints import alignment_heads, decode_alignment_heads, open_whisper, shapes


def load(folder: Path, **options) -> whisper_at.WhisperAT:
    return whisper_at.load_model(str(folder), device="cpu", **options)


@pytest.fixture(scope="module")
def model() -> whisper.Whisper:
    return tiny_whisper()


@pytest.fixture(scope="module")
def expected(model) -> torch.Tensor:
    return logits(model)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return write_folder(tmp_path / "model", model)


# --- against transformers ---


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("n_mels", "n_vocab", "text_layers", "shard"), [(80, 51865, 2, "1GB"), (128, 51866, 1, "1MB")])
def test_logits_are_those_of_transformers(tmp_path, n_mels, n_vocab, text_layers, shard, dtype):
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        vocab_size=n_vocab,
        num_mel_bins=n_mels,
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_layers=text_layers,
        decoder_attention_heads=2,
        decoder_ffn_dim=128,
    )
    torch.manual_seed(0)
    theirs = transformers.WhisperForConditionalGeneration(config).eval()
    for name, parameter in theirs.named_parameters():
        if "encoder.embed_positions" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard == "1MB")
    mel = torch.randn(2, n_mels, 3000)
    tokens = torch.tensor([[50258, 50259, 50360, 11], [50258, 50300, 50359, 400]])
    with torch.no_grad():
        wanted = theirs.float()(input_features=mel, decoder_input_ids=tokens).logits
        ours = load(tmp_path)
        got = ours(mel, tokens)
    assert wanted.std() > 0.5
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    assert ours.is_multilingual
    assert ours.num_languages == n_vocab - 51766
    assert open_whisper(tmp_path)[1]["encoder.conv1.weight"].dtype == getattr(torch, dtype)


# --- by hand ---


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("output", ["absent", "tied", "alone"])
def test_the_same_tensors_give_the_same_logits(model, expected, tmp_path, prefix, output, in_memory):
    tensors = hf_tensors(model, prefix)
    if output != "absent":
        tensors["proj_out.weight"] = tensors[f"{prefix}decoder.embed_tokens.weight"].clone()
    if output == "alone":
        del tensors[f"{prefix}decoder.embed_tokens.weight"]
    loaded = load(write_folder(tmp_path / "m", model, tensors), in_memory=in_memory)
    assert loaded.dims == model.dims
    assert torch.equal(logits(loaded), expected)


def test_distilled_decoders_and_128_mels(tmp_path):
    model = tiny_whisper(51866, 128, text_layers=1)
    loaded = load(write_folder(tmp_path / "m", model))
    assert loaded.dims == model.dims
    assert loaded.dims.n_text_layer < loaded.dims.n_audio_layer
    assert torch.equal(logits(loaded, 128), logits(model, 128))


def shards(tensors: dict) -> dict[str, dict]:
    names = sorted(tensors)
    return {"one": {k: tensors[k] for k in names[::2]}, "two": {k: tensors[k] for k in names[1::2]}}


def write_index(folder: Path, name: str, parts: dict[str, dict]) -> None:
    places = {key: part for part, tensors in parts.items() for key in tensors}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_every_kind_of_weights(model, expected, folder, name, sharded):
    (folder / "model.safetensors").unlink()
    save = save_file if name.endswith(".safetensors") else torch.save
    stem, suffix = name.split(".")
    tensors = hf_tensors(model)
    parts = {f"{stem}-{k}.{suffix}": v for k, v in shards(tensors).items()} if sharded else {name: tensors}
    for file, part in parts.items():
        save(part, folder / file)
    if sharded:
        write_index(folder, name, parts)
    assert torch.equal(logits(load(folder)), expected)


def test_safetensors_come_before_pickles(folder, expected):
    (folder / "pytorch_model.bin").write_bytes(b"not even opened")
    assert torch.equal(logits(load(folder)), expected)


# --- vocabularies ---


@pytest.mark.parametrize(("known", "rows"), [(51864, 51865), (51865, 51904), (51866, 51968)])
def test_a_padded_vocabulary_is_trimmed_with_a_warning(tmp_path, known, rows):
    model = tiny_whisper(known)
    tensors = hf_tensors(model)
    key = "model.decoder.embed_tokens.weight"
    tensors[key] = torch.cat([tensors[key], torch.zeros(rows - known, 16)])
    write_folder(tmp_path / "m", model, tensors, vocab_size=rows)
    if rows in shapes.VOCABULARY_SIZES:  # as large as another of Whisper's: taken as it is
        assert load(tmp_path / "m").dims.n_vocab == rows
        return
    with pytest.warns(UserWarning, match=f"the last {rows - known} of {rows} tokens are empty") as caught:
        loaded = load(tmp_path / "m")
    assert [w.filename for w in caught] == [__file__]
    assert loaded.dims.n_vocab == known
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("rows", "message"), [(51867, "1 more than large-v3, so tokens were"), (40000, "not Whisper's")]
)
def test_another_vocabulary_is_refused_with_its_reason(model, tmp_path, rows, message):
    tensors = hf_tensors(model)
    tensors["model.decoder.embed_tokens.weight"] = torch.randn(rows, 16)
    write_folder(tmp_path / "m", model, tensors, vocab_size=rows)
    with pytest.raises(RuntimeError, match=f"vocabulary of {rows} tokens, .*{message}.*51864, 51865, 51866") as error:
        load(tmp_path / "m")
    assert "\n" not in str(error.value)


# --- what is refused ---


def edit_config(folder: Path, model, **changes) -> None:
    (folder / "config.json").write_text(json.dumps(hf_config(model.dims, **changes)))


def edit_tensors(folder: Path, model, change) -> None:
    tensors = hf_tensors(model)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def missing_shard(folder: Path, model) -> None:
    parts = {f"model-{k}.safetensors": v for k, v in shards(hf_tensors(model)).items()}
    write_index(folder, "model.safetensors", parts)
    save_file(parts["model-one.safetensors"], folder / "model-one.safetensors")
    (folder / "model.safetensors").unlink()


def thin_shard(folder: Path, model) -> None:
    missing_shard(folder, model)
    save_file({"model.encoder.conv1.bias": torch.ones(16)}, folder / "model-two.safetensors")


def outside_shard(folder: Path, model) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    write_index(folder, "model.safetensors", {"../model.safetensors": hf_tensors(model)})


def pickled_program(folder: Path, model) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": subprocess.Popen}, folder / "pytorch_model.bin")


BAD = {
    "no config": (lambda f, m: (f / "config.json").unlink(), "is a folder"),
    "config is no json": (lambda f, m: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "config is a list": (lambda f, m: (f / "config.json").write_text("[]"), r"config\.json is not a JSON object"),
    "other model": (lambda f, m: edit_config(f, m, model_type="wav2vec2"), "type 'wav2vec2', not of a Whisper"),
    "config too short": (
        lambda f, m: edit_config(f, m, d_model=None, vocab_size="9"),
        "does not give d_model, vocab_size;",
    ),
    "other activation": (lambda f, m: edit_config(f, m, activation_function="relu"), "activation 'relu'"),
    "scaled": (lambda f, m: edit_config(f, m, scale_embedding=True), "scale_embedding True"),
    "no weights": (lambda f, m: (f / "model.safetensors").unlink(), r"has no weights: neither model\.safetensors nor"),
    "missing shard": (missing_shard, r"model-two\.safetensors is missing, which model\.safetensors\.index\.json names"),
    "thin shard": (thin_shard, r"model-two\.safetensors lacks model\..*its index names"),
    "shard outside": (outside_shard, "no 'weight_map' from tensors to files beside it"),
    "text": (lambda f, m: (f / "model.safetensors").write_text("Entry not found"), r"safetensors is a text file"),
    "program": (pickled_program, r"pytorch_model\.bin holds Python objects .* it is refused"),
    "missing key": (
        lambda f, m: edit_tensors(f, m, lambda t: t.pop("model.decoder.layers.1.encoder_attn.q_proj.bias")),
        r"decoder\.layers\.1\.encoder_attn\.q_proj\.bias is missing, expected \(16,\) \(1 such\)",
    ),
    "no embedding": (
        lambda f, m: edit_tensors(f, m, lambda t: t.pop("model.decoder.embed_tokens.weight")),
        r"decoder\.embed_tokens\.weight is missing",
    ),
    "extra key": (
        lambda f, m: edit_tensors(f, m, lambda t: t.update({"model.encoder.layers.0.lora_A.weight": torch.ones(1)})),
        r"encoder\.layers\.0\.lora_A\.weight is \(1,\), expected none of that name",
    ),
    "fewer layers in config": (
        lambda f, m: edit_config(f, m, decoder_layers=1),
        r"decoder\.layers\.1\..* none of that name",
    ),
    "other mels": (
        lambda f, m: edit_config(f, m, num_mel_bins=128),
        r"weight is \(16, 80, 3\), expected \(16, 128, 3\)",
    ),
    "other vocabulary": (lambda f, m: edit_config(f, m, vocab_size=51865), r"is \(51864, 16\), expected \(51865, 16\)"),
    "untied": (
        lambda f, m: edit_tensors(f, m, lambda t: t.update({"proj_out.weight": torch.randn(51864, 16)})),
        r"proj_out\.weight differs from decoder\.embed_tokens\.weight",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_a_bad_folder_is_refused_in_one_line(model, folder, spoil, message):
    spoil(folder, model)
    with pytest.raises(RuntimeError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_for_adapters_and_single_files_say_what_to_give(folder):
    expected, by_file = open_whisper(folder)[1], open_whisper(folder / "model.safetensors")[1]
    assert all(torch.equal(by_file[name], value) for name, value in expected.items())
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(RuntimeError, match="Hugging Face's layout, of which the folder is given"):
        load(folder / "model.safetensors")
    with pytest.raises(RuntimeError, match="does not say of which model the adapter is; merge it where it was trained"):
        load(folder)


# --- word timing ---


def test_alignment_heads_of_the_generation_config(model, tmp_path):
    folder = write_folder(tmp_path / "m", model, generation={"alignment_heads": [[0, 3], [1, 0], [1, 2]]})
    heads = load(folder).alignment_heads.to_dense()
    assert heads.nonzero().tolist() == [[0, 3], [1, 0], [1, 2]]
    assert heads.shape == (TEXT_LAYERS, 4)


@pytest.mark.parametrize(
    "generation",
    [None, {}, {"alignment_heads": None}, {"alignment_heads": []}, {"alignment_heads": [[0, 0], [7, 1]]}],
)
def test_without_usable_alignment_heads_the_upper_half_is_taken(model, tmp_path, generation):
    """Distilled models come with their teacher's list, whose layers they do not have."""
    heads = load(write_folder(tmp_path / "m", model, generation=generation)).alignment_heads.to_dense()
    assert torch.equal(heads, model.alignment_heads.to_dense())
    assert heads.sum() == 4


@pytest.mark.parametrize("heads", ["text", [1, 2], [[1]], [[0, -1]], [[0, 0.5]], {"0": 1}])
def test_malformed_alignment_heads_are_refused(model, tmp_path, heads):
    folder = write_folder(tmp_path / "m", model, generation={"alignment_heads": heads})
    with pytest.raises(RuntimeError, match=r"alignment_heads is not a list of \[layer, head\]"):
        load(folder)


def test_official_alignment_heads_as_lists_and_back(tmp_path):
    sizes = {"tiny": (4, 6), "base.en": (6, 8), "small": (12, 12), "large-v3": (32, 20), "turbo": (4, 20)}
    for name, (layers, heads) in sizes.items():
        dims = {"n_text_layer": layers, "n_text_head": heads}
        dump = whisper._ALIGNMENT_HEADS[name]
        pairs = decode_alignment_heads(dump, dims)
        (tmp_path / "generation_config.json").write_text(json.dumps({"alignment_heads": pairs}))
        again = alignment_heads("own", tmp_path, dims)
        assert again is not None
        assert decode_alignment_heads(again, dims) == pairs
        assert len(pairs) > 4
    assert decode_alignment_heads(whisper._ALIGNMENT_HEADS["turbo"], dims) == [  # as generation_config.json has it
        [2, 4], [2, 11], [3, 3], [3, 6], [3, 11], [3, 14]
    ]  # fmt: skip
