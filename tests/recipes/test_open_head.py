"""The recipe of the open heads: what may be trained on, how scenes are labelled, and what the file says."""

from __future__ import annotations

import csv
import json
import random
import struct

import numpy as np
import pytest

import whisper_at
from recipes.open_head import evaluate
from recipes.open_head.head import Settings, classify_rows, fixed_rows, save, train
from recipes.open_head.instruments import EFFECTS, KIT, PROGRAMS, midi_file, phrase, pieces
from recipes.open_head.openclonk import unpack
from recipes.open_head.pool import Item, Pool, with_parents
from recipes.open_head.scenes import SceneMaker
from recipes.open_head.sources import FOLDERS, TABLE, class_indices, is_free
from recipes.open_head.states import States, scenes, write
from recipes.open_head.teacher import HOP
from whisper_at import checkpoints
from whisper_at.tagging.heads import build_head
from whisper_at.tagging.labels import ASSETS, ancestors, find_class

DOG, SPEECH, ANIMAL, MUSIC = (find_class(name) for name in ("Dog", "Speech", "Animal", "Music"))


@pytest.fixture
def pool(tmp_path) -> Pool:
    """Four recordings of two seconds: two of a dog, one of speech, one of music, half of them held out."""
    rng, n, rows = np.random.default_rng(0), 5 * HOP, []
    samples = rng.normal(0, 3000, 6 * n).astype(np.int16)
    for i, (source, name) in enumerate([("a", "Dog"), ("librispeech", "Speech"), ("a", "Music")] * 2):
        labels = list(class_indices(name))
        rows.append(Item(f"{i}.wav", source, str(i), tuple(labels), i >= 3, i * n, n, i * 5).__dict__)
    np.save(tmp_path / "samples.npy", samples)
    np.save(tmp_path / "scores.npy", np.zeros((30, 527), np.uint8))
    (tmp_path / "pool.json").write_text(json.dumps(rows))
    return Pool(tmp_path)


def test_every_recording_of_the_table_is_free_and_credited():
    with open(TABLE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 500
    for row in rows:
        assert is_free(row["licence"]), row
        assert row["source"] in FOLDERS
        class_indices(row["labels"])  # raises for a name that is no class
    assert sum(not row["author"] for row in rows) <= 3


@pytest.mark.parametrize("licence", ["CC BY-NC 3.0", "CC BY-SA 4.0", "CC BY-NC-ND 4.0", "GPL-2+", "", "see source"])
def test_other_licences_are_refused(licence):
    assert not is_free(licence)


def test_instruments_have_classes_and_midi_that_can_be_read():
    for names in (*PROGRAMS.values(), *EFFECTS.values(), *KIT.values()):
        class_indices(names)
    names = [name for name, *_ in pieces(random.Random(0), 1)]
    assert len(names) == len(set(names)) > 150
    midi = midi_file(phrase(random.Random(1), 0, 40))
    assert midi[:4] == b"MThd"
    assert midi[14:18] == b"MTrk"
    assert struct.unpack(">I", midi[18:22])[0] == len(midi) - 22


def test_a_class_implies_those_that_contain_it():
    targets = np.zeros((2, 527), np.float32)
    targets[1, DOG] = 0.7
    assert with_parents(targets)[1, [DOG, *ancestors(DOG)]] == pytest.approx(0.7)
    assert not targets[0].any()
    assert ANIMAL in class_indices("Dog")


def test_scenes_hold_what_they_say_and_nothing_that_is_held_out(pool):
    maker = SceneMaker(pool, held_out=False, seed=0)
    assert {item.path for item in maker.others + maker.speech} == {"0.wav", "1.wav", "2.wav"}
    heard = np.zeros(527)
    for _ in range(40):
        scene = maker.scene()
        assert len(scene.audio) == len(scene.targets) * HOP <= 30 * 16_000
        assert np.abs(scene.audio).max() <= 1
        assert 0 <= scene.targets.min() <= scene.targets.max() <= 1
        heard = np.maximum(heard, scene.targets.max(0))
    assert heard[[DOG, ANIMAL, SPEECH, MUSIC]].min() > 0.9
    assert heard[find_class("Cat")] == 0
    again = SceneMaker(pool, held_out=False, seed=0).scene()
    np.testing.assert_array_equal(again.audio, SceneMaker(pool, held_out=False, seed=0).scene().audio)


def test_a_head_is_trained_calibrated_and_loads(pool, tmp_path):
    model = whisper_at.load_model("nano.en", head=None)
    for name, held_out in (("train", False), ("valid", True)):
        write(tmp_path / name, scenes(model, pool, 3, held_out, seed=0))
    states, valid = States(tmp_path / "train"), States(tmp_path / "valid")
    settings = Settings(mode="tl_down_tr_32_1_4", epochs=2, steps=2, batch=4)
    head, temperature, thresholds = train(states, valid, settings)
    assert 0.01 <= temperature <= 100
    assert ((thresholds >= 0.05) & (thresholds <= 0.95)).all()
    path = tmp_path / "open.safetensors"
    save(head, path, model, "nano.en", temperature, thresholds, [DOG, SPEECH], settings, {})
    _, metadata = checkpoints.open_head(path)
    assert json.loads(metadata["known"]) == [DOG, SPEECH]
    assert len(json.loads(metadata["thresholds"])) == 527
    assert metadata["encoder_sha256"] == checkpoints.encoder_sha256(model.state_dict())
    loaded = whisper_at.load_model("nano.en", head=str(path)).head
    rows = fixed_rows(valid, 5)
    np.testing.assert_allclose(
        classify_rows(loaded, rows)[0], classify_rows(head, rows)[0], atol=0.05
    )  # half precision


@pytest.mark.parametrize(("name", "shape"), [("tiny.en", (4, 384)), ("base", (6, 512))])
def test_the_heads_that_ship_say_what_they_know(name, shape):
    path = ASSETS / f"open.{name}.head.safetensors"
    assert path.stat().st_size < 10e6
    tensors, metadata = checkpoints.open_head(path)
    head = build_head(tensors, metadata, n_layer=shape[0], rep_dim=shape[1])
    assert head.label_dim == 527
    known = json.loads(metadata["known"])
    assert known == sorted(set(known))
    assert {SPEECH, MUSIC} <= set(known)
    assert len(known) >= 20
    assert metadata["model"] == name
    assert len(metadata["encoder_sha256"]) == 64
    thresholds = json.loads(metadata["thresholds"])
    assert all(0 < threshold < 1 for threshold in thresholds)
    assert len(thresholds) == 527


def test_classes_are_claimed_by_one_half_and_reported_on_the_other():
    clips = [
        evaluate.Clip(path=evaluate.Path(f"{i}.wav"), source="s", group=str(i), labels=(DOG,) if i % 4 else (SPEECH,))
        for i in range(40)
    ]
    targets = np.zeros((40, 527), bool)
    targets[:, DOG], targets[::4, SPEECH] = np.arange(40) % 4 > 0, True
    logits = np.zeros((40, 527), np.float32)
    logits[:, DOG] = np.where(targets[:, DOG], 1, -1)
    logits[:, SPEECH] = np.where(targets[:, SPEECH], -1, 1)
    table = evaluate.class_figures(clips, logits, targets)
    assert [row["index"] for row in table] == [SPEECH, DOG]
    assert evaluate.claim(table) == [DOG]
    assert table[1]["report"] == 1


def test_a_group_file_is_unpacked(tmp_path):
    def group(members: dict[str, bytes]) -> bytes:
        header = bytearray(204)
        header[:24], header[36:40] = b"RedWolf Design GrpFolder", struct.pack("<i", len(members))
        header = bytearray(byte ^ 237 for byte in header)
        for i in range(0, 202, 3):
            header[i], header[i + 2] = header[i + 2], header[i]
        entries, offset = b"", 0
        for name, content in members.items():
            entries += name.encode().ljust(260, b"\0") + struct.pack("<5i", 1, "." not in name, len(content), 0, offset)
            entries += bytes(36)
            offset += len(content)
        return bytes(header) + entries + b"".join(members.values())

    assert unpack(group({"a.wav": b"12", "sub": group({"b.wav": b"345"})}), tmp_path) == 2
    assert (tmp_path / "sub/b.wav").read_bytes() == b"345"
    with pytest.raises(ValueError, match="not a group"):
        unpack(bytes(300), tmp_path)
    with pytest.raises(ValueError, match="a member"):
        unpack(group({"../c.wav": b""}), tmp_path)
