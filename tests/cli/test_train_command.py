"""`whisper-at train`: from a folder of sounds to a head that loads and tags, and every way to get it wrong."""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, SAMPLE_RATE, noise

import whisper_at
from whisper_at.checkpoints import encoder_sha256, open_head, open_whisper, save_safetensors
from whisper_at.cli import evaluate, train
from whisper_at.cli import features as features_command
from whisper_at.data.background import background_kind, packaged_background
from whisper_at.data.clips import Clip, Dataset
from whisper_at.data.readers import read_folders
from whisper_at.features.files import FeatureMetadata
from whisper_at.features.prepare import read_splits
from whisper_at.features.store import Features
from whisper_at.features.writer import FeatureWriter, write_npz
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.labels import audioset_labels
from whisper_at.train import train_head
from whisper_at.train.config import Settings
from whisper_at.train.results import TrainedHead

CLASSES = ("high", "low", "noise")
QUICK = ["--set", "optimizer=adamw", "--set", "epochs=3", "--set", "rows=[3]", "--set", "least_steps=3"]
QUICK += ["--set", "valid_share=0.25", "--background", "none", "--quiet"]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """Eight sounds of each of three classes, four speakers each."""
    folder = tmp_path_factory.mktemp("data") / "sounds"
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(8):
            t = np.arange(round((1.0 + 0.1 * i) * SAMPLE_RATE)) / SAMPLE_RATE
            tone = {"high": np.sin(2e4 * t), "low": np.sin(1e3 * t), "noise": 0 * t}[name]
            samples = 0.2 * tone + noise(len(t) / SAMPLE_RATE, i + 10 * CLASSES.index(name))[: len(t)]
            soundfile.write(folder / name / f"s{i // 2}_{name}{i}.wav", samples, SAMPLE_RATE)
    return folder


@pytest.fixture(scope="module")
def features(sounds, checkpoint) -> Path:
    """Where the states of these sounds are, once they have been computed."""
    return sounds.parent / "features"


@pytest.fixture
def command(sounds, checkpoint, features, tmp_path):
    def call(*extra: str, data: str | Path = sounds, out: str = "my.safetensors") -> int:
        options = ["--model", str(checkpoint), "--device", "cpu", "--workers", "0", "--features", str(features)]
        return train.main(["--data", str(data), *options, "-o", str(tmp_path / out), *QUICK, *extra])

    return call


def test_a_folder_becomes_one_file_that_tags(command, checkpoint, sounds, tmp_path, capsys):
    """T9: the reference's logs were of code it did not publish. Here the file itself records how it was made: settings,
    clips, scores, and the hash of the encoder."""
    assert command("--group", r"^(s\d)_") == 0
    tensors, metadata = open_head(tmp_path / "my.safetensors")
    _, state = open_whisper(checkpoint)
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert metadata["kind"] == "single_label"
    assert metadata["mode"] == "stats_mlp"
    assert (metadata["n_layer"], metadata["width"]) == ("2", "64")
    assert metadata["encoder_sha256"] == encoder_sha256(state)
    assert json.loads(metadata["steps"]) == [3]
    assert 0.01 <= float(metadata["temperature"]) <= 100
    assert len(json.loads(metadata["thresholds"])) == 3
    details = json.loads(metadata["training"])
    assert details["clips"] == {"train": 18, "valid": 6, "test": 0}
    assert details["settings"]["epochs"] == 3
    assert 1 <= details["epoch"] <= 3
    assert 0 <= details["held_out"]["accuracy"] <= 1

    model = whisper_at.load_model(str(checkpoint), device="cpu", head=str(tmp_path / "my.safetensors"))
    head = model.attached["my"]
    assert tensors["mlp_layer.1.weight"].shape == (3, 3 * 2 * 64)
    features = Features.open(sounds.parent / "features")
    clips = read_folders(sounds).clips
    with torch.no_grad():
        logits = head(features.batch(features.find(clips[:2]), 3))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


@pytest.fixture(scope="module")
def animals(tmp_path_factory) -> Path:
    """Ten clips of each of two classes, none of which the package's background may hold."""
    folder = tmp_path_factory.mktemp("data") / "animals"
    for number, name in enumerate(("cricket", "owl")):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            t = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
            pulses = np.sin(2 * np.pi * (4000 + 50 * i, 400 + 10 * i)[number] * t) * (np.sin(2 * np.pi * 3 * t) > 0)
            soundfile.write(folder / name / f"{i}.wav", 0.2 * pulses + noise(2.0, i + 100 * number), SAMPLE_RATE)
    return folder


def test_by_default_a_head_is_told_apart_from_background(animals, tmp_path, capsys, monkeypatch):
    """One command, in closed form: speech, music, noise and silence are `other`, which is never an event.

    By a sixth of the background of the package, for time.
    """
    background = packaged_background()[::6]
    monkeypatch.setattr("whisper_at.train.background.packaged_background", lambda: background)
    out = tmp_path / "animals.safetensors"
    arguments = ["--data", str(animals), "--model", "nano.en", "--device", "cpu", "--workers", "0", "-o", str(out)]
    assert train.main(arguments) == 0
    printed, warned = capsys.readouterr()
    assert "other: no clips" not in warned  # background has some, which are not checked
    n = 20 + len(background)
    assert f"{n} clips to train on, 0 held out" in printed
    assert f"calibrated on all {n} clips, each by a head fitted without its part, of 10 parts" in printed
    assert "false alarms per hour of background, rows of 2 s: " in printed
    _, metadata = open_head(out)
    assert json.loads(metadata["classes"]) == ["cricket", "owl", "other"]
    thresholds = json.loads(metadata["thresholds"])
    assert thresholds[2] is None
    details = json.loads(metadata["training"])
    assert details["held_out"]["accuracy"] > 0.9  # of clips of the two classes, by heads that did not see them
    assert details["false_alarms_per_hour"].keys() == {"speech", "music", "silence"}
    assert sum(details["false_alarms_per_hour"].values()) < 30

    model = whisper_at.load_model("nano.en", "cpu", head=str(out))
    speech = whisper_at.load_audio(str(ROOT / "sample" / "speech.flac"))
    owl = np.concatenate([speech[: 6 * SAMPLE_RATE], whisper_at.load_audio(str(animals / "owl" / "3.wav"))])
    result = model.transcribe(owl.astype(np.float32), at_time_res=2, temperature=0, fp16=False)
    found = [(event["name"], event["start"]) for event in whisper_at.find_events(result, head="animals")]
    assert found == [("owl", 6.0)]
    tags = whisper_at.parse_at_label(result, head="animals", p_threshold=None)
    assert not any(name == "other" for row in tags for name, _ in row["audio tags"])

    assert train.main([*arguments, "--background", "none", "--false_alarms_per_hour", "5"]) == 0
    details = json.loads(open_head(out)[1]["training"])
    assert details["clips"]["train"] == 20
    assert details["settings"]["false_alarms_per_hour"] == 5
    assert details["false_alarms_per_hour"] == {}


def test_speech_under_other_names_is_told_apart_from_no_speech(tmp_path):
    """It is said in one line why; recordings of one's own stay."""
    clips = tuple(replace(clip, labels=("george",)) for clip in packaged_background() if "speech" in str(clip.path))
    lines: list[str] = []
    args = argparse.Namespace(background="auto", quiet=True)
    background = train._find_background(args, Dataset(clips, ("george",)), tmp_path / "features", lines.append)
    assert {background_kind(clip) for clip in background} == {"music", "noise", "silence"}
    assert lines == ["george: most of these clips are speech, so the package's speech is no background"]


def test_the_run_folder_keeps_the_history(command, tmp_path, capsys):
    arguments = [argument for argument in QUICK if argument != "--quiet"]
    assert command(*arguments) == 0
    run = tmp_path / "my.run"
    with open(run / "history.csv") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert len(lines) == 3
    assert not (run / "state.pt").exists()
    first = open_head(tmp_path / "my.safetensors")
    assert command() == 0  # a new run, not the end of the old one
    assert same(open_head(tmp_path / "my.safetensors"), first)
    assert len((run / "history.jsonl").read_text().splitlines()) == 3


def test_quiet_prints_the_result_alone(command, tmp_path, capsys):
    """One line; and a report beside the head has what is printed without --quiet."""
    head = tmp_path / "my.safetensors"
    assert command() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(head))}: held out \w+ \d\.\d{{3}}.*", line)
    report = (tmp_path / "my.report.txt").read_text("utf-8")
    assert report.startswith("# my.safetensors\n")
    assert line.partition("held out ")[2].partition(";")[0] in report
    assert all(f"\n{name}" in report for name in CLASSES)


def test_figures_of_each_class_are_printed(sounds, checkpoint, features, tmp_path, capsys):
    options = ["--model", str(checkpoint), "--device", "cpu", "--workers", "0", "--features", str(features)]
    out = str(tmp_path / "my.safetensors")
    assert train.main(["--data", str(sounds), *options, "-o", out, *QUICK[:-1]]) == 0
    printed = capsys.readouterr().out
    assert "18 clips to train on, 6 held out" in printed
    table = [line.split() for line in printed.splitlines() if line.split()[:1] in [[name] for name in CLASSES]]
    assert [row[:3] for row in table] == [[name, "6", "2"] for name in CLASSES]
    assert "temperature" in printed
    assert f"--head {out}" in printed


@contextmanager
def stopped_in(monkeypatch, epoch: int):
    """Training inside of this is interrupted in that epoch."""
    real = train_head.HeadTask.batch

    def stop(self, at, step):
        if at == epoch:
            raise KeyboardInterrupt
        return real(self, at, step)

    with monkeypatch.context() as patch:
        patch.setattr(train_head.HeadTask, "batch", stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_run_that_was_stopped_goes_on(command, tmp_path, monkeypatch):
    assert command(out="whole.safetensors") == 0
    with stopped_in(monkeypatch, epoch=2):
        command()
    assert not (tmp_path / "my.safetensors").exists()
    with pytest.raises(ValueError, match="holds a run with settings"):
        command("--set", "rate=1e-2")  # not that run
    assert command() == 0
    assert same(open_head(tmp_path / "my.safetensors"), open_head(tmp_path / "whole.safetensors"))


def test_the_head_that_is_written_has_seen_every_clip(command, tmp_path, monkeypatch):
    """It is trained on held-out clips too; its scores and thresholds are of one that was not."""
    assert command("--set", "refit=false", out="first.safetensors") == 0
    assert command(out="whole.safetensors") == 0
    (first, about_first), (whole, about_whole) = (open_head(tmp_path / f"{n}.safetensors") for n in ("first", "whole"))
    assert not torch.equal(first["mlp_layer.0.mean"], whole["mlp_layer.0.mean"])
    assert about_first["thresholds"] == about_whole["thresholds"]
    assert json.loads(about_first["training"])["held_out"] == json.loads(about_whole["training"])["held_out"]

    real = train_head.HeadTask.batch

    def stop(self, epoch, step):
        if self.valid is None and step == 1:
            raise KeyboardInterrupt
        return real(self, epoch, step)

    with monkeypatch.context() as patch:
        patch.setattr(train_head.HeadTask, "batch", stop)
        with pytest.raises(KeyboardInterrupt):
            command()
    assert command() == 0
    assert same(open_head(tmp_path / "my.safetensors"), (whole, about_whole))
    assert not (tmp_path / "my.run" / train_head.REFIT_FOLDER).exists()


def test_a_validation_split_of_the_data_is_not_trained_on(command, sounds, tmp_path):
    rows = ["file,labels,split"]
    rows += [
        f"{clip.path.relative_to(sounds)},{clip.labels[0]},{'valid' if i % 4 == 0 else 'train'}"
        for i, clip in enumerate(read_folders(sounds).clips)
    ]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    for refit in ("true", "false"):
        options = ["--root", str(sounds), "--set", f"refit={refit}"]
        assert command(*options, data=tmp_path / "table.csv", out=f"{refit}.safetensors") == 0
    (one, _), (other, _) = (open_head(tmp_path / f"{refit}.safetensors") for refit in ("true", "false"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_one_command_in_the_folder_of_the_sounds_itself(sounds, checkpoint, tmp_path, monkeypatch, capsys):
    """What it writes there is no class of sound when it is given again."""
    shutil.copytree(sounds, tmp_path / "sounds")
    monkeypatch.chdir(tmp_path / "sounds")
    arguments = ["--data", ".", "--model", str(checkpoint), "--device", "cpu", "--workers", "0", *QUICK[:-1]]
    with stopped_in(monkeypatch, epoch=1):
        train.main(arguments)
    for _ in range(2):  # the rest of that run, and a new one
        assert train.main(arguments) == 0
        assert "--head sounds.safetensors" in capsys.readouterr().out
        _, metadata = open_head("sounds.safetensors")
        assert json.loads(metadata["classes"]) == list(CLASSES)
        assert json.loads(metadata["training"])["data"] == "sounds"
    assert {path.name for path in Path().iterdir() if path.is_dir()} == {*CLASSES, "sounds.features", "sounds.run"}


def test_no_file_is_overwritten_that_was_not_named(sounds, tmp_path, monkeypatch, capsys):
    assert train.default_output("there/esc50.csv") == Path("esc50.safetensors")
    monkeypatch.chdir(tmp_path)
    save_safetensors({"a": torch.zeros(1)}, "sounds.safetensors")
    with pytest.raises(SystemExit):
        train.main(["--data", str(sounds), "--model", "gone.pt"])
    assert "sounds.safetensors is there, and is no head for sounds: choose a file with -o" in capsys.readouterr().err


def test_half_precision_is_for_gpus(command, sounds, checkpoint, features, tmp_path, monkeypatch, capsys):
    """Elsewhere gradients are not scaled. What is taken instead is part of the run, which goes on."""
    with stopped_in(monkeypatch, epoch=1):
        command()
    options = ["--model", str(checkpoint), "--device", "cpu", "--workers", "0", "--features", str(features)]
    options += ["-o", str(tmp_path / "my.safetensors"), *QUICK[:-1], "--set", "precision=float16"]
    assert train.main(["--data", str(sounds), *options]) == 0
    assert "training in float32" in capsys.readouterr().out
    details = json.loads(open_head(tmp_path / "my.safetensors")[1]["training"])
    assert details["settings"]["precision"] == "float32"


def test_the_same_command_finds_the_same_again(command, sounds, tmp_path, capsys):
    """Copies and leaks are reported, and held together, also when all states are there."""
    copy = tmp_path / "sounds"
    for part, without in (("train", "s[23]*"), ("test", "s[01]*")):
        shutil.copytree(sounds, copy / part, ignore=shutil.ignore_patterns(without))
    shutil.copy(copy / "train" / "low" / "s0_low0.wav", copy / "train" / "low" / "again.wav")
    shutil.copy(copy / "train" / "high" / "s0_high0.wav", copy / "test" / "high" / "leak.wav")
    own = ["--features", str(tmp_path / "f"), "--set", "protocol=30", "--skip-bad", "--set", "epochs=1"]
    assert command(*own, data=copy) == 0
    first, errors = open_head(tmp_path / "my.safetensors"), capsys.readouterr().err
    assert "both sides of a split" in errors
    assert "held together" in errors
    assert command(*own, data=copy) == 0
    assert capsys.readouterr().err == errors
    assert same(open_head(tmp_path / "my.safetensors"), first)
    assert command(*own[:4], data=copy) == 1  # without --skip-bad


def same(one: tuple, other: tuple) -> bool:
    """Whether two heads have the same parameters and metadata."""
    return one[1] == other[1] and all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())


def test_several_labels_a_clip_and_a_table_with_splits(command, sounds, tmp_path):
    rows = ["file,labels,split"]
    for i, clip in enumerate(read_folders(sounds).clips):
        split = ("train", "train", "valid", "test")[i % 4]
        labels = f"{clip.labels[0]};sound" if i % 3 else ""
        rows.append(f"{clip.path.relative_to(sounds)},{labels},{split}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    options = ["--root", str(sounds), "--set", "loss=auto", "--set", "threshold_precision=0.5", "--set", "readers=2"]
    assert command(*options, data=tmp_path / "table.csv") == 0
    _, metadata = open_head(tmp_path / "my.safetensors")
    details = json.loads(metadata["training"])
    assert metadata["kind"] == "multi_label"
    assert details["clips"] == {"train": 12, "valid": 6, "test": 6}
    assert len(json.loads(metadata["thresholds"])) == 4
    assert details["test"].keys() >= {"mAP", "AUC", "d_prime"}


def test_labels_of_audioset(command, sounds, tmp_path):
    """The JSON of earlier recipes (spec section 3.2); the 527 classes keep their place and go by AudioSet's name."""
    mids = {"high": "/m/09x0r", "low": "/m/04rlf,/m/09x0r", "noise": "/m/0bt9lr"}
    items = [{"wav": str(clip.path), "labels": mids[clip.labels[0]]} for clip in read_folders(sounds).clips]
    (tmp_path / "train.json").write_text(json.dumps({"data": items[::2]}))
    (tmp_path / "eval.json").write_text(json.dumps({"data": items[1::2]}))
    shutil.copy(ROOT / "audioset_label.csv", tmp_path)
    options = ["--test", str(tmp_path / "eval.json"), "--preset", "audioset", "--set", "average=[2, 3]"]
    options += ["--set", "protocol=30+", "--set", "seconds=0"]
    assert command(*options, data=tmp_path / "train.json") == 0
    _, metadata = open_head(tmp_path / "my.safetensors")
    details = json.loads(metadata["training"])
    assert metadata["classes"] == "audioset-527"
    assert details["epoch"] == 0
    assert details["clips"]["test"] == 12
    assert details["settings"]["average"] == [2, 3]


def test_bad_clips_stop_it_or_are_left_out(command, sounds, tmp_path, capsys):
    copy = tmp_path / "sounds"
    shutil.copytree(sounds, copy)
    (copy / "low" / "broken.wav").write_text("no sound")
    (copy / "low" / "empty.wav").write_bytes(b"")
    own = ["--features", str(tmp_path / "f"), "--set", "protocol=30"]
    assert command(*own, data=copy) == 1
    errors = capsys.readouterr().err
    assert "broken.wav: cannot be read" in errors
    assert "empty.wav: is empty" in errors
    assert "nothing was trained" in errors
    assert not (tmp_path / "my.safetensors").exists()
    assert not (tmp_path / "f").exists()
    (copy / "low" / "empty.wav").unlink()
    assert command(*own, "--check", "quick", data=copy) == 1
    errors = capsys.readouterr().err
    assert "1 clips could not be used" in errors
    assert "broken.wav" in errors
    assert command(*own, "--skip-bad", data=copy) == 0
    _, metadata = open_head(tmp_path / "my.safetensors")
    assert sum(json.loads(metadata["training"])["clips"].values()) == 24


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "epoch=3"], "did you mean 'epochs'"),
        (["--set", "mode=tl_tr_1_7"], "divi"),
        (["--set", "mode=nonsense"], "mode"),
        (["--set", "select=acuracy"], "select must be one of"),
        (["--set", "select=accuracy", "--set", "loss=bce"], "for loss bce"),
        (["--config", "gone.toml"], "gone.toml"),
        (["--test_fold", "1"], "--fold"),
        (["--root", "x"], "tables"),
        (["--labels", "x.csv"], "--labels is for a .json"),
        (["--data", "nowhere"], "nowhere"),
        (["-o", "head.pt"], "safetensors"),
        (["-o", "no/such/folder/my.safetensors"], "no folder"),
        (["-o", "audio.safetensors"], "would be attached as 'audio', which is reserved"),
        (["-o", "auto.head.safetensors"], "choose a file with -o"),
        (["--workers", "-1"], "--workers"),
        (["--set", "seconds=5"], "seconds is for protocol 10"),
        (["--set", "average=[2, 3]", "--set", "select=mAP"], "select does nothing where epochs are averaged"),
        (["--set", "average=[2, 3]", "--set", "patience=2"], "patience does nothing where epochs are averaged"),
        (["--set", "select=", "--set", "patience=2"], "patience does nothing without select"),
    ],
)
def test_wrong_arguments_are_reported_before_any_work(command, capsys, extra, message):
    with pytest.raises(SystemExit) as caught:
        command(*extra)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_labels_may_be_for_one_part_alone(sounds, tmp_path):
    (tmp_path / "labels.csv").write_text("index,mid,display_name\n0,/m/1,low\n")
    (tmp_path / "eval.json").write_text('{"data": [{"wav": "a.wav", "labels": "/m/1"}]}')
    data = read_splits(str(sounds), test=str(tmp_path / "eval.json"), labels=str(tmp_path / "labels.csv"))
    assert data.classes == CLASSES
    assert data.split("test").clips[0].labels == ("low",)


def test_a_head_of_a_name_that_is_taken_says_what_to_do(model_en):
    with pytest.raises(ValueError, match="rename its file, or attach it under another name"):
        model_en.attach("audio", "audio.safetensors")


def test_states_of_float32_are_added_to(command, sounds, checkpoint, tmp_path):
    (tmp_path / "some.txt").write_text("".join(f"{clip.path}\n" for clip in read_folders(sounds).clips[:3]))
    options = [
        "--model",
        str(checkpoint),
        "--device",
        "cpu",
        "--workers",
        "0",
        "--dtype",
        "float32",
        "--protocol",
        "30",
    ]
    assert features_command.main([str(tmp_path / "some.txt"), *options, "-o", str(tmp_path / "f")]) == 0
    assert command("--features", str(tmp_path / "f"), "--set", "protocol=30") == 0
    found = Features.open(tmp_path / "f")
    assert len(found) == 24
    assert found.metadata.dtype == "float32"
    assert found.states(23).dtype == np.float32


def test_states_of_another_encoder_are_refused(command, tmp_path):
    with FeatureWriter(tmp_path / "f", FeatureMetadata("other", "sha", "30", 0.0, 2, 64)) as writer:
        writer.add(Clip(tmp_path / "a.wav", ()), np.zeros((2, 3, 64)))
    with pytest.raises(ValueError, match="encoder_sha256"):
        command("--features", str(tmp_path / "f"))


def test_files_that_changed_are_another_run(command, sounds, tmp_path, monkeypatch):
    copy, own = tmp_path / "sounds", ["--features", str(tmp_path / "f"), "--set", "protocol=30"]
    shutil.copytree(sounds, copy)
    with stopped_in(monkeypatch, epoch=1):
        command(*own, data=copy)
    soundfile.write(copy / "low" / "s0_low0.wav", noise(1.0, 99), SAMPLE_RATE)
    with pytest.raises(ValueError, match="holds a run with data"):
        command(*own, data=copy)


def test_npz_features_give_a_head_of_the_model_named(command, checkpoint, features, tmp_path, recwarn):
    """``.npz``, as earlier recipes keep states, are taken at one's word."""
    assert command() == 0
    write_npz(Features.open(features), tmp_path / "npz")
    assert command("--features", str(tmp_path / "npz"), "--background", "auto") == 0  # of which they hold none
    _, metadata = open_head(tmp_path / "my.safetensors")
    assert metadata["encoder_sha256"] == encoder_sha256(open_whisper(checkpoint)[1])
    details = json.loads(metadata["training"])
    assert details["protocol"] == details["settings"]["protocol"] == "30+"
    whisper_at.load_model(str(checkpoint), device="cpu", head=str(tmp_path / "my.safetensors"))
    assert not [warning for warning in recwarn if "another encoder" in str(warning.message)]


def test_scores_go_to_tensorboard(command, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command() == 0
    board = EventAccumulator(str(tmp_path / "my.run")).Reload()
    assert {"train_loss", "valid_loss", "mAP", "accuracy"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("mAP")] == [1, 2, 3]


def commands() -> list[tuple[str, list[str]]]:
    """Every ``whisper-at train``, ``features`` and ``evaluate`` that help and recipes show, with its arguments."""
    recipes = [*(ROOT / "recipes" / "heads").glob("*.toml"), ROOT / "recipes" / "heads" / "README.md"]
    texts = [path.read_text("utf-8").replace("\n#", "\n") for path in recipes]
    texts += [train.EXAMPLES, features_command.EXAMPLES, evaluate.EXAMPLES]
    lines = [line.strip() for text in texts for line in re.sub(r"\\\n\s*", " ", text).splitlines()]
    shown = [
        shlex.split(re.split(r"\s{3,}", line)[0], comments=True) for line in lines if line.startswith("whisper-at ")
    ]
    return [(words[1], words[2:]) for words in shown if words[1] in ("train", "features", "evaluate")]


def test_the_commands_that_are_shown_are_those_there_are_T5():
    """T5: the reference's README and its shell script called different programs."""
    parsers = {"train": train, "features": features_command, "evaluate": evaluate}
    assert {name for name, _ in commands()} == set(parsers)
    assert len(commands()) > 12
    for name, arguments in commands():
        args = parsers[name].build_parser().parse_args(arguments)
        if getattr(args, "config", None) is not None:
            assert (ROOT / args.config).is_file(), args.config


def test_no_path_of_one_machine_is_written_down_T3():
    """T3: the reference held paths of the cluster it was written on. Arguments alone say what is read."""
    files = [*(ROOT / "whisper_at" / "train").glob("*.py"), *(ROOT / "recipes" / "heads").glob("*.*")]
    files += [ROOT / "whisper_at" / "cli" / f"{name}.py" for name in ("train", "features", "evaluate", "count")]
    texts = {path: path.read_text("utf-8") for path in files if path.is_file()}
    assert len(texts) > 20
    for path, text in texts.items():
        text = re.sub(r"^(EXAMPLES = )?\"\"\".*?\"\"\"", "", text, flags=re.S | re.M)  # /data/… as an example
        assert not re.findall(r"[\"'\s=](/(?!m/)[\w.]+/[\w./]+)", text), path


def test_a_config_names_its_preset(command, tmp_path):
    (tmp_path / "a.toml").write_text('preset = "audioset"\nprotocol = "30+"\nseconds = 0\naverage = []\nloss = "ce"\n')
    assert command("--config", str(tmp_path / "a.toml")) == 0
    settings = json.loads(open_head(tmp_path / "my.safetensors")[1]["training"])["settings"]
    assert settings["betas"] == [0.95, 0.999]
    assert settings["weight_decay"] == 5e-7
    assert settings["batch"] == 48
    assert settings["epochs"] == 3


def test_torchrun_trains_as_one_process_does(command, sounds, checkpoint, features, tmp_path):
    options = ["--set", "epochs=2", "--set", "batch=6"]
    assert command(*options, out="one.safetensors") == 0
    arguments = ["--data", sounds, "--model", checkpoint, "--device", "cpu", "--features", features]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29761"]
    program = [sys.executable, *launch, "-m", "whisper_at.cli.train"]
    where = ["-o", tmp_path / "two.safetensors", *QUICK, *options]
    subprocess.run([str(part) for part in (*program, *arguments, *where)], check=True, timeout=280, cwd=ROOT)
    (one, _), (two, _) = open_head(tmp_path / "one.safetensors"), open_head(tmp_path / "two.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("audioset", [False, True])
def test_events_of_audiosets_classes_do_not_depend_on_thresholds(audioset):
    names = tuple(label.name for label in audioset_labels()) if audioset else ("hiss", "hum")
    fitted = SimpleNamespace(epoch=1)
    table = [{"class": name, "threshold": np.inf} for name in names]
    trained = TrainedHead(None, ClassSet(names), fitted, {"mAP": 0.5}, {}, table)
    lines: list[str] = []
    train.log_results(trained, Settings(), lines.append)
    assert trained.is_audioset == audioset
    assert any("as events these never count" in line for line in lines) == (not audioset)
