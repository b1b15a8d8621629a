"""A head of AudioSet's classes may be calibrated, and may know some of the classes only."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import noise, random_whisper

import whisper_at
from whisper_at import checkpoints, loading
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import build_head, make_head
from whisper_at.tagging.labels import audioset_classes
from whisper_at.tagging.rows import TagOptions, read_rows
from whisper_at.writers import result_to_json

KNOWN = (0, 72, 74, 137)
THRESHOLDS = [0.9 if i == 0 else 0.1 if i in KNOWN else None for i in range(527)]


def head_file(path, model, **metadata) -> str:
    """A TL-TR with the metadata that `whisper-at train` gives a head of AudioSet's classes, and the known ones."""
    torch.manual_seed(0)
    dims = {"n_layer": model.dims.n_audio_layer, "rep_dim": model.dims.n_audio_state}
    about = {"classes": "audioset-527", "mode": "tl_tr_1_8", "temperature": "2.0", "known": json.dumps(KNOWN)}
    about |= {"thresholds": json.dumps(THRESHOLDS), "encoder_sha256": checkpoints.encoder_sha256(model.state_dict())}
    checkpoints.save_safetensors(make_head("tl_tr_1_8", **dims).state_dict(), path, about | metadata)
    return str(path)


@pytest.fixture
def model(tmp_path):
    model = random_whisper(whisper_at.WhisperAT, 51864)
    tensors, metadata = checkpoints.open_head(head_file(tmp_path / "some.safetensors", model))
    model.head = build_head(tensors, metadata, n_layer=2, rep_dim=64)
    return model


@pytest.fixture
def result(model):
    return model.transcribe(noise(12), language="en", fp16=False, temperature=0, sample_len=4, at_time_res=4)


def test_logits_of_other_classes_are_nan(model, result):
    others = np.setdiff1d(np.arange(527), KNOWN)
    assert result["audio_tag"][:, others].isnan().all()
    assert result["audio_tag"][:, KNOWN].isfinite().all()
    assert result["audio_tag_coverage"].tolist() == [1, 1, 1]  # NaN there says nothing of the audio
    calibration = result["audio_tag_calibration"]
    assert (calibration["temperature"], calibration["known"]) == (2.0, list(KNOWN))
    assert model.head.classes.mids == audioset_classes().mids


def test_tags_follow_its_temperature_and_thresholds(result):
    logits = torch.full((1, 527), float("nan"))
    logits[0, KNOWN] = torch.tensor([4.0, -4.0, 5.0, -6.0])  # / 2: probabilities 0.88, 0.12, 0.92, 0.05
    result = {**result, "audio_tag": logits, "audio_tag_coverage": torch.ones(1), "duration": 4.0}
    ((start, end), (tags,)) = (4.0, 0.0)[::-1], whisper_at.parse_at_label(result, p_threshold=None, top_k=527)
    assert tags["time"] == {"start": start, "end": end}
    assert tags["audio tags"] == [("Dog", 5.0), ("Animal", -4.0)]  # Speech is below its own threshold
    assert {event["name"] for event in whisper_at.find_events(result)} == {"Dog"}  # which explains Animal
    assert len(whisper_at.parse_at_label(result, p_threshold=-99, top_k=527)[0]["audio tags"]) == 4


def test_json_holds_the_same(result):
    written = json.loads(json.dumps(result_to_json(result, TagOptions(top_k=527, p_threshold=-99)), allow_nan=False))
    assert written["audio_tag_calibration"]["known"] == list(KNOWN)
    assert {tag["index"] for row in written["audio_tag"] for tag in row["tags"]} == set(KNOWN)
    classes = read_rows({**result, "audio_tag_calibration": written["audio_tag_calibration"]})["audio_tag"].classes
    assert classes.thresholds[:2] == (0.9, 0.5)  # a class without a threshold has the default


def test_official_heads_say_nothing_of_it(model):
    model.head = make_head("tl_tr_1_8", n_layer=2, rep_dim=64)
    result = model.transcribe(noise(4), language="en", fp16=False, temperature=0, sample_len=4, at_time_res=4)
    assert "audio_tag_calibration" not in result
    assert result["audio_tag"].isfinite().all()


def test_classes_that_there_are_not_cannot_be_known():
    with pytest.raises(ValueError, match="indices below 2"):
        ClassSet(("a", "b"), known=(0, 2))


def test_a_head_of_the_package_stands_in_for_one_that_cannot_be_downloaded(tmp_path, monkeypatch):
    whisper = random_whisper(whisper_at.WhisperAT, 51864)
    path = tmp_path / "fine-tuned.pt"
    torch.save({"dims": vars(whisper.dims), "model_state_dict": whisper.state_dict()}, path)
    stand_in = head_file(tmp_path / "open.base.head.safetensors", whisper)
    monkeypatch.setattr("whisper_at.checkpoints.registry.ASSETS", tmp_path)
    monkeypatch.setattr("whisper_at.checkpoints.heads.ASSETS", tmp_path)
    monkeypatch.setattr("whisper_at.checkpoints.heads.download", no_network)
    with pytest.warns(UserWarning, match="no network.*'open.base', which comes with whisper_at") as caught:
        loaded = whisper_at.load_model(str(path), "cpu", str(tmp_path))
    assert [warning.filename for warning in caught] == [__file__]
    assert loaded.head.classes.known == KNOWN
    bias = checkpoints.open_head(stand_in)[0]["mlp_layer.1.bias"]
    assert torch.equal(loaded.head.state_dict()["mlp_layer.1.bias"], bias)
    with pytest.raises(RuntimeError, match="no network"):  # who asks for the published one gets no other
        whisper_at.load_model(str(path), "cpu", str(tmp_path), head="base")
    explicit = whisper_at.load_model(str(path), "cpu", str(tmp_path), head="open.base")
    assert explicit.head.classes == loaded.head.classes


def test_a_published_head_that_is_there_but_another_file_stays_an_error(tmp_path):
    """Another file than the one first loaded is not a head that cannot be had: nothing stands in for it."""
    (tmp_path / "base_ori.pth").write_bytes(b"another file")
    (tmp_path / "base_ori.pth.sha256").write_text(f"{'0' * 64}  base_ori.pth\n")
    whisper = random_whisper(whisper_at.WhisperAT, 51864)
    with pytest.raises(RuntimeError, match="not the file that was first loaded"):
        loading._automatic_head(whisper, "base", False, str(tmp_path))


def no_network(*_: object, **__: object) -> None:
    raise checkpoints.DownloadError("no network\n  and more of it")
