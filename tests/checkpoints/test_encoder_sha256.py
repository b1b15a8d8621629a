"""The SHA-256 of an encoder tells which heads fit it."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import pytest
import torch
import whisper
from conftest import noise
from scipy.io import wavfile
from tiny_checkpoints import hf_tensors, tiny_whisper, write_folder

import whisper_at
from whisper_at import checkpoints, cli
from whisper_at.checkpoints import HEADS, encoder_sha256, save_safetensors
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import make_head


def load(folder: Path, **options) -> whisper_at.WhisperAT:
    return whisper_at.load_model(str(folder), device="cpu", **options)


@pytest.fixture(scope="module")
def model() -> whisper.Whisper:
    return tiny_whisper()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return write_folder(tmp_path / "model", model)


def test_the_hash_of_an_encoder_is_the_one_described():
    state = {
        "encoder.b": torch.tensor([1.0, 2.0], dtype=torch.float16),
        "decoder.a": torch.ones(3),
        "encoder.a": torch.tensor([[0.1], [-3.0]]),
        "encoder.positional_embedding": torch.ones(2, 2),
    }
    data = b"encoder.a (2, 1)\n" + bytes.fromhex("662e00c2") + b"encoder.b (2,)\n" + bytes.fromhex("003c0040")
    assert encoder_sha256(state) == hashlib.sha256(data).hexdigest()


def test_copies_of_an_encoder_have_one_hash_and_others_another(model):
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


def head_file(tmp_path: Path, **metadata: str) -> Path:
    head = make_head("tl_tr_1_8", n_layer=3, rep_dim=16)
    save_safetensors(head.state_dict(), tmp_path / "head.safetensors", {"mode": "tl_tr_1_8", **metadata})
    return tmp_path / "head.safetensors"


def test_a_head_of_another_encoder_warns_once_and_goes_on(folder, tmp_path):
    head = head_file(tmp_path, encoder_sha256="0" * 64)
    with pytest.warns(UserWarning, match="trained on another encoder .* its tags may be wrong") as caught:
        loaded = load(folder, head=head)
    assert [w.filename for w in caught] == [__file__]
    assert loaded.head is not None


def test_a_head_of_this_encoder_is_silent_in_every_layout(model, folder, tmp_path):
    """The encoder is what counts: a float16 copy in another layout, and with another decoder, is the same one."""
    model = model.half()
    head = head_file(tmp_path, encoder_sha256=encoder_sha256(model.state_dict()))
    tensors = hf_tensors(model)
    model.float()
    tensors["model.decoder.layer_norm.bias"] += 1
    write_folder(folder, model, tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(folder, head=head).head is not None


def test_published_heads_are_compared_with_the_whisper_of_their_name(model, folder, tmp_path, monkeypatch):
    """A distilled or fine-tuned Whisper may take the head of its teacher, if it kept the encoder."""
    name = "medium.en"
    monkeypatch.setattr(checkpoints, "find_head", lambda *_: head_file(tmp_path))
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
    known = {key: head._replace(width=width) for key, head in HEADS.items() if key.startswith("small")}
    for key, head in known.items():
        monkeypatch.setitem(HEADS, key, head)
    find_head = checkpoints.find_head
    monkeypatch.setattr(
        checkpoints,
        "find_head",
        lambda head, *rest: asked.append(head) or head_file(tmp_path) if head in known else find_head(head, *rest),
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
    arguments += ["--output_dir", str(tmp_path / "out"), "--language", "en", "--beam_size", "None"]
    arguments += ["--temperature_increment_on_fallback", "None"]
    assert cli.main([*arguments, "--model_dir", str(tmp_path / "root")]) == 0
    assert (tmp_path / "out" / "one.json").is_file()
    assert cli.main([*arguments, "--model_dir", str(tmp_path), "--output_dir", str(tmp_path / "none")]) == 1
    assert "train a head with `whisper-at train`" in capsys.readouterr().err
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
        load(folder, head=[head_file(tmp_path), head_file(tmp_path)])


def test_nothing_is_hashed_where_there_is_nothing_to_compare(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "encoder_sha256", lambda state: pytest.fail("hashed"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(folder, head=head_file(tmp_path)).head is not None
        assert load(folder).head is None
