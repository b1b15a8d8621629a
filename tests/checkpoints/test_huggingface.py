"""Folders in Hugging Face's layout give the same logits; what cannot be expressed is refused; heads know encoders."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
import whisper
from conftest import noise
from safetensors.torch import save_file
from scipy.io import wavfile
from whisper.model import ModelDimensions

import whisper_at
from whisper_at import checkpoints, cli
from whisper_at.checkpoints import (
    alignment_heads,
    decode_alignment_heads,
    encoder_sha256,
    find_whisper,
    huggingface,
    open_whisper,
    save_safetensors,
)
from whisper_at.checkpoints.huggingface import is_hub_id
from whisper_at.checkpoints.shapes import whisper_shapes
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import make_head

TEXT_LAYERS = 2


def tiny(n_vocab: int = 51864, n_mels: int = 80, text_layers: int = TEXT_LAYERS) -> whisper.Whisper:
    """A Whisper of width 16 and three encoder layers, random enough to say different things."""
    torch.manual_seed(0)
    model = whisper.Whisper(ModelDimensions(n_mels, 1500, 16, 2, 3, n_vocab, 448, 16, 4, text_layers))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def their_config(dims: ModelDimensions, **changes) -> dict:
    return {
        "model_type": "whisper",
        "activation_function": "gelu",
        "scale_embedding": False,
        "num_mel_bins": dims.n_mels,
        "max_source_positions": dims.n_audio_ctx,
        "d_model": dims.n_audio_state,
        "encoder_attention_heads": dims.n_audio_head,
        "encoder_layers": dims.n_audio_layer,
        "vocab_size": dims.n_vocab,
        "max_target_positions": dims.n_text_ctx,
        "decoder_attention_heads": dims.n_text_head,
        "decoder_layers": dims.n_text_layer,
    } | changes


def their_tensors(model: whisper.Whisper, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """The tensors under transformers' names, by replacements one after the other."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in (
            (".blocks.", ".layers."),
            (".cross_attn_ln", ".encoder_attn_layer_norm"),
            (".cross_attn.", ".encoder_attn."),
            (".attn_ln", ".self_attn_layer_norm"),
            (".attn.", ".self_attn."),
            (".query.", ".q_proj."),
            (".key.", ".k_proj."),
            (".value.", ".v_proj."),
            (".out.", ".out_proj."),
            (".mlp_ln.", ".final_layer_norm."),
            (".mlp.0.", ".fc1."),
            (".mlp.2.", ".fc2."),
            (".ln_post.", ".layer_norm."),
            ("decoder.ln.", "decoder.layer_norm."),
            ("token_embedding", "embed_tokens"),
            ("positional_embedding", "embed_positions.weight"),
        ):
            name = name.replace(ours, theirs)
        tensors[prefix + name] = tensor.clone()
    return tensors


def write(folder: Path, model: whisper.Whisper, tensors: dict | None = None, generation=None, **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(their_config(model.dims, **config)))
    save_file(their_tensors(model) if tensors is None else tensors, folder / "model.safetensors")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def load(folder: Path, **options) -> whisper_at.WhisperAT:
    return whisper_at.load_model(str(folder), device="cpu", **options)


@torch.no_grad()
def logits(model, n_mels: int = 80) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    mel = torch.randn(1, n_mels, 3000, generator=generator)
    return model(mel, torch.tensor([[50257, 50362, 11, 400]]))


@pytest.fixture(scope="module")
def model() -> whisper.Whisper:
    return tiny()


@pytest.fixture(scope="module")
def expected(model) -> torch.Tensor:
    return logits(model)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return write(tmp_path / "model", model)


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
    tensors = their_tensors(model, prefix)
    if output != "absent":
        tensors["proj_out.weight"] = tensors[f"{prefix}decoder.embed_tokens.weight"].clone()
    if output == "alone":
        del tensors[f"{prefix}decoder.embed_tokens.weight"]
    loaded = load(write(tmp_path / "m", model, tensors), in_memory=in_memory)
    assert loaded.dims == model.dims
    assert torch.equal(logits(loaded), expected)


def test_distilled_decoders_and_128_mels(tmp_path):
    model = tiny(51866, 128, text_layers=1)
    loaded = load(write(tmp_path / "m", model))
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
    tensors = their_tensors(model)
    parts = {f"{stem}-{k}.{suffix}": v for k, v in shards(tensors).items()} if sharded else {name: tensors}
    for file, part in parts.items():
        save(part, folder / file)
    if sharded:
        write_index(folder, name, parts)
    assert torch.equal(logits(load(folder)), expected)


def test_safetensors_come_before_pickles(folder, expected):
    (folder / "pytorch_model.bin").write_bytes(b"not even opened")
    assert torch.equal(logits(load(folder)), expected)


@pytest.mark.parametrize("dims", [(80, 1500, 8, 2, 1, 51864, 448, 8, 2, 3), (128, 20, 12, 2, 3, 51866, 9, 12, 2, 1)])
def test_the_shapes_of_a_whisper(dims):
    state = whisper.Whisper(ModelDimensions(*dims)).state_dict()
    assert whisper_shapes(vars(ModelDimensions(*dims))) == {key: tuple(tensor.shape) for key, tensor in state.items()}


# --- vocabularies ---


@pytest.mark.parametrize(("known", "rows"), [(51864, 51865), (51865, 51904), (51866, 51968)])
def test_a_padded_vocabulary_is_trimmed_aloud(tmp_path, known, rows):
    model = tiny(known)
    tensors = their_tensors(model)
    key = "model.decoder.embed_tokens.weight"
    tensors[key] = torch.cat([tensors[key], torch.zeros(rows - known, 16)])
    write(tmp_path / "m", model, tensors, vocab_size=rows)
    if rows in huggingface.VOCABULARY_SIZES:  # as large as another of Whisper's: taken as it is
        assert load(tmp_path / "m").dims.n_vocab == rows
        return
    with pytest.warns(UserWarning, match=f"the last {rows - known} of {rows} tokens are empty") as caught:
        loaded = load(tmp_path / "m")
    assert [w.filename for w in caught] == [__file__]
    assert loaded.dims.n_vocab == known
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(("rows", "says"), [(51867, "1 more than large-v3, so tokens were"), (40000, "not Whisper's")])
def test_another_vocabulary_is_refused_with_its_reason(model, tmp_path, rows, says):
    tensors = their_tensors(model)
    tensors["model.decoder.embed_tokens.weight"] = torch.randn(rows, 16)
    write(tmp_path / "m", model, tensors, vocab_size=rows)
    with pytest.raises(RuntimeError, match=f"vocabulary of {rows} tokens, .*{says}.*51864, 51865, 51866") as error:
        load(tmp_path / "m")
    assert "\n" not in str(error.value)


# --- what is refused ---


def edit(folder: Path, model, **changes) -> None:
    (folder / "config.json").write_text(json.dumps(their_config(model.dims, **changes)))


def retensor(folder: Path, model, change) -> None:
    tensors = their_tensors(model)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def missing_shard(folder: Path, model) -> None:
    parts = {f"model-{k}.safetensors": v for k, v in shards(their_tensors(model)).items()}
    write_index(folder, "model.safetensors", parts)
    save_file(parts["model-one.safetensors"], folder / "model-one.safetensors")
    (folder / "model.safetensors").unlink()


def thin_shard(folder: Path, model) -> None:
    missing_shard(folder, model)
    save_file({"model.encoder.conv1.bias": torch.ones(16)}, folder / "model-two.safetensors")


def outside_shard(folder: Path, model) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    write_index(folder, "model.safetensors", {"../model.safetensors": their_tensors(model)})


def pickled_program(folder: Path, model) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": subprocess.Popen}, folder / "pytorch_model.bin")


BAD = {
    "no config": (lambda f, m: (f / "config.json").unlink(), "is a folder"),
    "config is no json": (lambda f, m: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "config is a list": (lambda f, m: (f / "config.json").write_text("[]"), r"config\.json is not a JSON object"),
    "other model": (lambda f, m: edit(f, m, model_type="wav2vec2"), "type 'wav2vec2', not of a Whisper"),
    "config too short": (lambda f, m: edit(f, m, d_model=None, vocab_size="9"), "does not give d_model, vocab_size;"),
    "other activation": (lambda f, m: edit(f, m, activation_function="relu"), "activation 'relu'"),
    "scaled": (lambda f, m: edit(f, m, scale_embedding=True), "scale_embedding True"),
    "no weights": (lambda f, m: (f / "model.safetensors").unlink(), r"has no weights: neither model\.safetensors nor"),
    "missing shard": (missing_shard, r"model-two\.safetensors is missing, which model\.safetensors\.index\.json names"),
    "thin shard": (thin_shard, r"model-two\.safetensors lacks model\..*its index names"),
    "shard outside": (outside_shard, "no 'weight_map' from tensors to files beside it"),
    "text": (lambda f, m: (f / "model.safetensors").write_text("Entry not found"), r"safetensors is a text file"),
    "program": (pickled_program, r"pytorch_model\.bin holds Python objects .* it is refused"),
    "missing key": (
        lambda f, m: retensor(f, m, lambda t: t.pop("model.decoder.layers.1.encoder_attn.q_proj.bias")),
        r"decoder\.layers\.1\.encoder_attn\.q_proj\.bias is missing, expected \(16,\) \(1 such\)",
    ),
    "no embedding": (
        lambda f, m: retensor(f, m, lambda t: t.pop("model.decoder.embed_tokens.weight")),
        r"decoder\.embed_tokens\.weight is missing",
    ),
    "extra key": (
        lambda f, m: retensor(f, m, lambda t: t.update({"model.encoder.layers.0.lora_A.weight": torch.ones(1)})),
        r"encoder\.layers\.0\.lora_A\.weight is \(1,\), expected none of that name",
    ),
    "fewer layers in config": (lambda f, m: edit(f, m, decoder_layers=1), r"decoder\.layers\.1\..* none of that name"),
    "other mels": (lambda f, m: edit(f, m, num_mel_bins=128), r"weight is \(16, 80, 3\), expected \(16, 128, 3\)"),
    "other vocabulary": (lambda f, m: edit(f, m, vocab_size=51865), r"is \(51864, 16\), expected \(51865, 16\)"),
    "untied": (
        lambda f, m: retensor(f, m, lambda t: t.update({"proj_out.weight": torch.randn(51864, 16)})),
        r"proj_out\.weight differs from decoder\.embed_tokens\.weight",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), BAD.values(), ids=BAD)
def test_a_bad_folder_is_refused_in_one_line(model, folder, spoil, says):
    spoil(folder, model)
    with pytest.raises(RuntimeError, match=says) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_adapters_and_single_files_are_told_the_way_out(folder):
    with pytest.raises(RuntimeError, match="Hugging Face's layout, of which the folder is given"):
        load(folder / "model.safetensors")
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(RuntimeError, match="merge it into its model"):
        load(folder)


# --- word timing ---


def test_alignment_heads_of_the_generation_config(model, tmp_path):
    folder = write(tmp_path / "m", model, generation={"alignment_heads": [[0, 3], [1, 0], [1, 2]]})
    heads = load(folder).alignment_heads.to_dense()
    assert heads.nonzero().tolist() == [[0, 3], [1, 0], [1, 2]]
    assert heads.shape == (TEXT_LAYERS, 4)


@pytest.mark.parametrize(
    "generation",
    [None, {}, {"alignment_heads": None}, {"alignment_heads": []}, {"alignment_heads": [[0, 0], [7, 1]]}],
)
def test_without_usable_alignment_heads_the_upper_half_is_taken(model, tmp_path, generation):
    """Distilled models come with their teacher's list, whose layers they do not have."""
    heads = load(write(tmp_path / "m", model, generation=generation)).alignment_heads.to_dense()
    assert torch.equal(heads, model.alignment_heads.to_dense())
    assert heads.sum() == 4


@pytest.mark.parametrize("heads", ["text", [1, 2], [[1]], [[0, -1]], [[0, 0.5]], {"0": 1}])
def test_alignment_heads_that_are_none_are_refused(model, tmp_path, heads):
    folder = write(tmp_path / "m", model, generation={"alignment_heads": heads})
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


# --- the hub ---


@pytest.mark.parametrize("name", ["distil-whisper/distil-large-v3", "openai/whisper-tiny.en", "me/x_1"])
def test_names_of_the_hub(name):
    assert is_hub_id(name)
    assert cli._model(name) == name


@pytest.mark.parametrize("name", ["a", "a/b/c", "/a/b", "./a", "~/a", "a/b.pt", "a/b.safetensors", "a/", "a b/c"])
def test_names_that_are_none_of_the_hub(name):
    assert not is_hub_id(name)
    with pytest.raises(RuntimeError, match="not found"):
        find_whisper(name)


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    """A stand-in for huggingface_hub: `files` on the hub, `cached` here, `asked` what was asked of it."""
    hub = types.SimpleNamespace(files=set(), cached=set(), asked=[], error=OSError("404 Client Error\nRequest ID: x"))
    hub.folder = write(tmp_path / "snapshot", model)

    def snapshot_download(name, *, cache_dir, allow_patterns, local_files_only):
        hub.asked.append((name, cache_dir, local_files_only))
        there = hub.cached if local_files_only else hub.files
        if not there:
            raise hub.error
        for file in sorted(there):
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (hub.folder / file).touch()
                hub.cached.add(file)
        for file in hub.folder.iterdir():
            if file.name not in hub.cached:
                file.unlink()
        return str(hub.folder)

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return hub


def test_a_model_of_the_hub_is_fetched(hub, expected, tmp_path):
    hub.files = {"config.json", "model.safetensors", "model.fp32-00001-of-00002.safetensors", "pytorch_model.bin"}
    loaded = whisper_at.load_model("me/tiny", device="cpu", download_root=str(tmp_path / "root"))
    assert torch.equal(logits(loaded), expected)
    assert hub.asked[-1] == ("me/tiny", str(tmp_path / "root"), False)
    assert hub.cached == {"config.json", "model.safetensors"}  # neither pickles nor other precisions


def test_a_model_in_the_hubs_cache_needs_no_network(hub, expected):
    hub.cached = {"config.json", "model.safetensors"}
    assert torch.equal(logits(whisper_at.load_model("me/tiny", device="cpu")), expected)
    assert hub.asked == [("me/tiny", None, True)]


def test_a_half_cached_model_is_completed(hub):
    hub.cached = {"config.json"}
    hub.files = {"config.json", "model.safetensors"}
    assert find_whisper("me/tiny") == hub.folder
    assert hub.asked[-1][2] is False


def test_pickles_are_fetched_only_where_there_is_nothing_else(hub):
    hub.files = {"config.json", "pytorch_model.bin", "training_args.bin"}
    assert find_whisper("me/tiny") == hub.folder
    assert hub.cached == {"config.json", "pytorch_model.bin"}


@pytest.mark.parametrize(("files", "says"), [([], r"did not give it \(404 Client"), (["config.json"], "no weights")])
def test_what_the_hub_does_not_have(hub, files, says):
    hub.files = set(files)
    with pytest.raises(RuntimeError, match=says) as error:
        whisper_at.load_model("me/tiny")
    assert "'me/tiny'" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_huggingface_hub_the_error_says_what_to_do(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match="pip install huggingface_hub, or give the folder") as error:
        whisper_at.load_model("distil-whisper/distil-large-v3")
    assert "\n" not in str(error.value)
    assert find_whisper(folder) == folder  # a folder needs nothing


def test_a_relative_folder_is_no_id(hub, folder, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    name = f"{folder.parent.name}/{folder.name}"
    assert is_hub_id(name)
    assert find_whisper(name) == Path(name)
    assert hub.asked == []


def test_the_real_cache_of_the_hub(model, expected, tmp_path):
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    write(repository / "snapshots" / ("0" * 40), model)
    loaded = whisper_at.load_model("me/tiny", device="cpu", download_root=str(tmp_path))
    assert torch.equal(logits(loaded), expected)


# --- encoders and heads ---


def test_the_hash_of_an_encoder_is_the_one_described():
    state = {
        "encoder.b": torch.tensor([1.0, 2.0], dtype=torch.float16),
        "decoder.a": torch.ones(3),
        "encoder.a": torch.tensor([[0.1], [-3.0]]),
        "encoder.positional_embedding": torch.ones(2, 2),
    }
    data = b"encoder.a (2, 1)\n" + bytes.fromhex("662e00c2") + b"encoder.b (2,)\n" + bytes.fromhex("003c0040")
    assert encoder_sha256(state) == hashlib.sha256(data).hexdigest()


def test_copies_of_an_encoder_agree_and_others_differ(model):
    state = model.half().state_dict()
    model.float()
    known = encoder_sha256(state)
    assert encoder_sha256({key: state[key].float() for key in reversed(state)}) == known
    ignored = {"encoder.positional_embedding", *(key for key in state if key.startswith("decoder."))}
    for key, tensor in state.items():
        changed = tensor.clone()
        changed.view(-1)[0] += 1
        assert (encoder_sha256(state | {key: changed}) == known) == (key in ignored)
    weight = state["encoder.conv1.weight"]
    assert encoder_sha256(state | {"encoder.conv1.weight": weight.reshape(16, 3, 80)}) != known
    assert encoder_sha256({**state, "encoder.more": torch.ones(1)}) != known
    with pytest.raises(ValueError, match="no encoder"):
        encoder_sha256({"model.encoder.conv1.bias": torch.ones(1)})


def head_of(tmp_path: Path, **metadata: str) -> Path:
    head = make_head("tl_tr_1_8", n_layer=3, rep_dim=16)
    save_safetensors(head.state_dict(), tmp_path / "head.safetensors", {"mode": "tl_tr_1_8", **metadata})
    return tmp_path / "head.safetensors"


def test_a_head_of_another_encoder_warns_once_and_goes_on(folder, tmp_path):
    head = head_of(tmp_path, encoder_sha256="0" * 64)
    with pytest.warns(UserWarning, match="trained on another encoder .* its tags may be wrong") as caught:
        loaded = load(folder, head=head)
    assert [w.filename for w in caught] == [__file__]
    assert loaded.head is not None


def test_a_head_of_this_encoder_is_silent_in_every_layout(model, folder, tmp_path):
    """The encoder is what counts: a float16 copy in another layout, and with another decoder, is the same one."""
    model = model.half()
    head = head_of(tmp_path, encoder_sha256=encoder_sha256(model.state_dict()))
    tensors = their_tensors(model)
    model.float()
    tensors["model.decoder.layer_norm.bias"] += 1
    write(folder, model, tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(folder, head=head).head is not None


def test_published_heads_are_compared_with_the_whisper_of_their_name(model, folder, tmp_path, monkeypatch):
    """A distilled or fine-tuned Whisper may take the head of its teacher, if it kept the encoder."""
    name = "medium.en"
    monkeypatch.setattr(checkpoints, "find_head", lambda *_: head_of(tmp_path))
    with pytest.warns(UserWarning, match=r"only if that has the encoder of medium.en, which is not here") as caught:
        load(folder, head=name, download_root=str(tmp_path))
    assert [w.filename for w in caught] == [__file__]
    dims, state = vars(model.dims), model.state_dict()
    torch.save({"dims": dims, "model_state_dict": state}, tmp_path / "medium.en.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder, head=name, download_root=str(tmp_path))
    state["encoder.conv1.bias"] = state["encoder.conv1.bias"] + 1
    torch.save({"dims": dims, "model_state_dict": state}, tmp_path / "medium.en.pt")
    with pytest.warns(UserWarning, match="medium.en was trained on another encoder"):
        load(folder, head=name, download_root=str(tmp_path))


def test_a_model_takes_the_head_of_its_teacher_by_itself(model, folder, tmp_path, monkeypatch, capsys):
    """A distilled or fine-tuned Whisper whose encoder is that of one with a published head, which is here."""
    name, asked = "small", []
    width = model.dims.n_audio_state
    known = {key: head._replace(width=width) for key, head in checkpoints.HEADS.items() if key.startswith("small")}
    for head in set(checkpoints.HEADS) - set(known):
        monkeypatch.delitem(checkpoints.HEADS, head)
    for head, published in known.items():
        monkeypatch.setitem(checkpoints.HEADS, head, published)
    find_head = checkpoints.find_head
    monkeypatch.setattr(
        checkpoints,
        "find_head",
        lambda head, *rest: asked.append(head) or head_of(tmp_path) if head in known else find_head(head, *rest),
    )
    (tmp_path / "root").mkdir()
    root = {"download_root": str(tmp_path / "root")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(folder, **root).head is None
        assert not asked
        state = model.state_dict()
        other = state | {"encoder.conv1.bias": state["encoder.conv1.bias"] + 1}
        for official, weights in (("small.en", other), (name, state)):
            torch.save({"dims": vars(model.dims), "model_state_dict": weights}, tmp_path / "root" / f"{official}.pt")
        found = load(folder, **root)
        assert found.head is not None
        assert set(asked) == {name}
        assert load(folder, at_low_compute=True, **root).head is not None
        assert set(asked) == {name, "small_low"}

    wavfile.write(tmp_path / "one.wav", 16000, noise(1))
    arguments = [str(tmp_path / "one.wav"), "--model", str(folder), "--at_time_res", "2", "--fp16", "False"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--language", "en", "--temperature", "0"]
    assert cli.main([*arguments, "--model_dir", str(tmp_path / "root")]) == 0
    assert (tmp_path / "out" / "one.json").is_file()
    assert cli.main([*arguments, "--model_dir", str(tmp_path), "--output_dir", str(tmp_path / "none")]) == 1
    assert "no head is published for" in capsys.readouterr().err
    assert not (tmp_path / "none" / "one.json").exists()
    own = make_head("tl_tr_1_8", n_layer=3, rep_dim=16, label_dim=2)
    about = ClassSet(("hiss", "hum")).metadata() | {"mode": "tl_tr_1_8"}
    save_safetensors(own.state_dict(), tmp_path / "own.safetensors", about)
    with pytest.warns(UserWarning, match="no tags of AudioSet's classes: no head is published for"):
        assert list(load(folder, head=["auto", tmp_path / "own.safetensors"]).attached) == ["own"]


def test_the_embedded_model_under_another_name_has_its_head(tmp_path):
    nano = whisper_at.load_model("nano.en", "cpu")
    state = {key: tensor.half() for key, tensor in nano.state_dict().items()}
    torch.save({"dims": vars(nano.dims), "model_state_dict": state}, tmp_path / "copy.pt")
    found = whisper_at.load_model(str(tmp_path / "copy.pt"), "cpu", download_root=str(tmp_path)).head
    for key, tensor in nano.head.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[key])


def test_a_second_head_for_audioset_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="is a second one for AudioSet"):
        load(folder, head=[head_of(tmp_path), head_of(tmp_path)])


def test_nothing_is_hashed_where_there_is_nothing_to_compare(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "encoder_sha256", lambda state: pytest.fail("hashed"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(folder, head=head_of(tmp_path)).head is not None
        assert load(folder).head is None


def test_the_manual_tells_of_folders_and_ids():
    text = (Path(__file__).parents[2] / "pretrained_models" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r'load_model\("([^"]*/[^"]*)"', text)
    assert [name for name in named if is_hub_id(name)] == ["distil-whisper/distil-medium.en"]
    assert re.search(r"It must be Whisper's: (\d+), (\d+) or (\d+) tokens", text).groups() == tuple(
        str(n) for n in huggingface.VOCABULARY_SIZES
    )
    for word in ("whisper-at convert SOURCE TARGET.safetensors", "`huggingface_hub`", "`encoder_sha256`"):
        assert word in text
