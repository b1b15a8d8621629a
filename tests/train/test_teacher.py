"""Heads that learn from what a tagger says of unlabelled recordings."""

from __future__ import annotations

import json
import math
import wave

import numpy as np
import pytest
import torch
from conftest import ROOT, noise, random_whisper

import whisper_at
from whisper_at import cli
from whisper_at.checkpoints import open_head
from whisper_at.data.clips import Clip
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import make_head
from whisper_at.tagging.labels import audioset_classes, find_class
from whisper_at.train.recipe import head_loss, sampling_weights, smooth_targets
from whisper_at.train.teacher import cut_recordings, taught_dataset, teach_by_model, teach_by_table


def write_wav(path, samples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@pytest.fixture
def recordings(tmp_path):
    """Of 24 s (clips of 10, 10 and 4 s), 5.5 s and 10.4 s (whose rest is too short), and a file that is none."""
    folder = tmp_path / "recordings"
    for i, (name, seconds) in enumerate((("a.wav", 24), ("deep/b.wav", 5.5), ("c.wav", 10.4))):
        write_wav(folder / name, noise(seconds, seed=i))
    (folder / "broken.wav").write_bytes(b"no sound")
    (folder / "notes.txt").write_text("not audio")
    return folder


def test_recordings_are_cut_once_and_bad_ones_are_named(recordings, tmp_path):
    warnings = []
    clips = cut_recordings(recordings, tmp_path / "clips", warn=warnings.append)
    assert len(warnings) == 1
    assert "broken.wav is left out" in warnings[0]
    by_recording = {}
    for clip in clips:
        by_recording.setdefault(clip.group.rpartition("/")[2], []).append(whisper_at.load_audio(str(clip.path)))
    assert {name: [len(part) for part in parts] for name, parts in by_recording.items()} == {
        "a.wav": [160000, 160000, 64000],
        "b.wav": [88000],
        "c.wav": [160000],
    }
    assert np.array_equal(np.concatenate(by_recording["a.wav"]), whisper_at.load_audio(str(recordings / "a.wav")))
    changed = {clip.path: clip.path.stat().st_mtime_ns for clip in clips}
    assert cut_recordings(recordings, tmp_path / "clips") == clips
    assert {clip.path: clip.path.stat().st_mtime_ns for clip in clips} == changed
    assert not [path for path in (tmp_path / "clips").iterdir() if path.name.startswith(".")]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cut_recordings(tmp_path / "nowhere", tmp_path / "clips")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no recording"):
        cut_recordings(tmp_path / "empty", tmp_path / "clips")


def test_a_model_teaches_what_transcription_with_it_would_say(recordings, tmp_path):
    """Calibrated probabilities of its head, NaN where it knows a class not."""
    model = random_whisper(whisper_at.WhisperAT, 51864)
    model.head = make_head("mean_mlp", n_layer=2, rep_dim=64)
    names = audioset_classes().names
    model.head.classes = ClassSet(names, temperature=2.0, known=(0, 74))
    clips = cut_recordings(recordings, tmp_path / "clips")
    classes, targets = teach_by_model(model, "x", clips, tmp_path / "store")
    assert classes.names == names
    assert np.isfinite(targets[:, [0, 74]]).all()
    assert np.isnan(np.delete(targets, [0, 74], 1)).all()
    for clip, row in zip(clips, targets):
        options = {"language": "en", "fp16": False, "temperature": 0, "sample_len": 1, "at_time_res": 30}
        result = model.transcribe(str(clip.path), **options)
        expected = torch.sigmoid(result["audio_tag"][0, [0, 74]] / 2)
        np.testing.assert_allclose(row[[0, 74]], expected, atol=2e-3)  # features on disk are half precision
    model.head = None
    with pytest.raises(ValueError, match="a teacher has one head, but x has none"):
        teach_by_model(model, "x", clips, tmp_path / "store")


def test_a_table_teaches_by_overlap(recordings, tmp_path):
    clips = cut_recordings(recordings, tmp_path / "clips")
    table = tmp_path / "tags.csv"
    table.write_text(
        "file,start,end,Dog,/m/09x0r\n"
        "a.wav,0,15,0.8,0.1\n"  # all of the first clip, half of the second
        "a.wav,15,20,0.2,0.5\n"
        "deep/b.wav,,,0.4,0.6\n"
    )
    classes, targets = teach_by_table(table, clips, recordings)
    assert classes == audioset_classes()
    dog, speech = find_class("Dog"), 0
    wanted = {"a.wav": [(0.8, 0.1), (0.5, 0.3), (math.nan, math.nan)], "b.wav": [(0.4, 0.6)]}
    found: dict[str, list] = {}
    for clip, row in zip(clips, targets):
        found.setdefault(clip.group.rpartition("/")[2], []).append((row[dog], row[speech]))
    for name, rows in wanted.items():
        np.testing.assert_allclose(found[name], rows, rtol=1e-6)
    assert np.isnan(found["c.wav"]).all()
    dataset, kept = taught_dataset(clips, classes, targets)
    assert [clip.labels for clip in dataset.clips] == [("Dog",), ("Dog",), ("Speech",)]
    assert len(kept) == 3
    table.write_text("file,wren,owl\na.wav,0.1,0.9\n")
    assert teach_by_table(table, clips, recordings)[0] == ClassSet(("wren", "owl"))
    for content, message in (
        ("name,Dog\na.wav,1\n", "needs a column file"),
        ("file,Dog\na.wav,2\n", "line 2: probabilities lie between 0 and 1"),
        ("file,Dog\na.wav,x\n", "line 2: not numbers"),
        ("file,Dog\nother.wav,1\n", "no row for any of the"),
    ):
        table.write_text(content)
        with pytest.raises(ValueError, match=message):
            teach_by_table(table, clips, recordings)


def test_a_teacher_that_is_sure_of_nothing_is_refused():
    clip = Clip(ROOT / "x.wav", ())
    with pytest.raises(ValueError, match="sure of no class"):
        taught_dataset([clip], ClassSet(("a", "b")), np.array([[0.4, np.nan]], np.float32))


def test_probabilities_are_targets_and_nan_does_not_count():
    targets = np.array([[0.2, 1.0], [0.7, np.nan]], np.float32)
    assert np.array_equal(smooth_targets(targets, 0.0), targets, equal_nan=True)
    np.testing.assert_allclose(smooth_targets(targets, 0.1)[0], [0.05 + 0.9 * 0.2, 0.9], rtol=1e-6)
    np.testing.assert_allclose(sampling_weights(targets), np.array([[0.2, 1], [0.7, 0]]) @ [1000 / 0.91, 1000 / 1.01])
    logits = torch.tensor([[1.0, -2.0], [0.5, 9.0]], requires_grad=True)
    loss = head_loss(logits, torch.from_numpy(targets), "bce")
    p = torch.sigmoid(logits.detach())
    parts = [(0.2, p[0, 0]), (1.0, p[0, 1]), (0.7, p[1, 0])]
    assert loss.item() == pytest.approx(
        -sum(t * math.log(q) + (1 - t) * math.log(1 - q) for t, q in parts) / 3, rel=1e-5
    )
    loss.backward()
    assert logits.grad[1, 1] == 0


def test_the_command_teaches_a_head(tmp_path, capsys, monkeypatch):
    """nano.en's own head as the teacher: the new head finds speech where the teacher does, and knows what it knows."""
    monkeypatch.chdir(tmp_path)
    for name in ("speech.flac", "sounds.ogg", "street.ogg"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes((ROOT / "sample" / name).read_bytes())
    line = "train --data data --teacher nano.en --model nano.en -o taught.safetensors --workers 0"
    settings = "--set epochs=40 --set protocol=30 --set rows=[25] --set mixup=0"
    assert cli.main([*line.split(), *settings.split()]) == 0
    output = capsys.readouterr().out
    assert "the teacher knows 527 of 527 classes" in output
    metadata = open_head(tmp_path / "taught.safetensors")[1]
    assert metadata["classes"] == "audioset-527"
    assert json.loads(metadata["training"])["settings"]["select"] == "-valid_loss"
    rows = []
    for head in ("nano.en", "taught.safetensors"):
        model = whisper_at.load_model("nano.en", "cpu", head=head)
        options = {"at_time_res": 10, "temperature": 0, "fp16": False, "sample_len": 1}
        rows.append(
            [
                model.transcribe(str(path), **options)["audio_tag"][:, 0]
                for path in sorted((tmp_path / "data").iterdir())
            ]
        )
    teacher, taught = (np.concatenate(parts) for parts in rows)
    assert len(teacher) == 12
    assert np.corrcoef(teacher, taught)[0, 1] > 0.8  # of speech; an untrained head is near 0


@pytest.mark.parametrize("option", ["--test_fold 1", "--valid x", "--labels x.csv", "--group x"])
def test_options_of_labelled_data_are_refused(option, tmp_path, capsys):
    (tmp_path / "x").mkdir()
    line = f"train --data {tmp_path} --teacher nano.en --model nano.en -o {tmp_path}/a.safetensors {option}"
    with pytest.raises(SystemExit):
        cli.main(line.split())
    assert "is for labelled data" in capsys.readouterr().err
