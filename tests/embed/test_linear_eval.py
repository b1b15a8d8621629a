"""Two-pass linear evaluation: splits, crops, caches, tables and plots, the command."""

from __future__ import annotations

import csv
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise

from whisper_at.adapt.waveforms import WaveformDataset
from whisper_at.cli import lineareval
from whisper_at.data.clips import Clip, Dataset
from whisper_at.data.readers import read_folders
from whisper_at.embed import experiment, linear_eval
from whisper_at.embed.fusion import load_fusion
from whisper_at.embed.linear_eval import (
    BEST_PAIR,
    ProbeResult,
    best_pair,
    crop_or_pad,
    embed_clips,
    evaluate_layers,
    split_dataset,
)
from whisper_at.embed.plots import summarize, to_markdown
from whisper_at.embed.probes import ProbeSettings

QUICK = ProbeSettings(lr=0.01, epochs=12, patience=4, batch=16)


@pytest.fixture(scope="module")
def model():
    return load_fusion("whisper-nano", "all", "random", device="cpu")


@pytest.fixture
def tones(tmp_path):
    """Two classes that are easy to separate: 0.5 s of a low and of a high tone, 12 clips each, in three folds."""
    for i in range(24):
        folder = tmp_path / "tones" / ("low" if i % 2 else "high")
        folder.mkdir(parents=True, exist_ok=True)
        time = np.arange(8000) / 16000
        samples = np.sin(2 * np.pi * (200 if i % 2 else 3000) * time + i) * 0.3 + noise(0.5, i) * 0.1
        with wave.open(str(folder / f"{i // 2 % 3}-{i:02d}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((samples * 32767).astype("<i2").tobytes())
    return tmp_path / "tones"


def test_layers_and_fusions_of_folds(tones, model, tmp_path):
    dataset = read_folders(tones, fold=r"^(\d)-")
    options = {"fusions": [[2, 0, 2], [0, 1, 2]], "seeds": (42, 43), "settings": QUICK}
    rows = evaluate_layers(model, dataset, 0.5, cache=tmp_path / "c", audio_cache=tmp_path / "a", **options)
    by_probe: dict[str, list[ProbeResult]] = {}
    for row in rows:
        by_probe.setdefault(row.probe, []).append(row)
    pairs = {"pair 0+1", "fusion 0+2", "pair 1+2"}
    assert set(by_probe) == {"layer 0", "layer 1", "layer 2", "fusion 0+1+2", BEST_PAIR} | pairs
    assert all(len(of) == 2 * 3 for of in by_probe.values())
    assert by_probe["fusion 0+1+2"][0].parameters == (3 * 32 + 1) * 2
    assert summarize(rows)["layer 2"].mean == 100.0
    for row in by_probe[BEST_PAIR]:
        same = [r for name in pairs for r in by_probe[name] if (r.seed, r.division) == (row.seed, row.division)]
        assert len(same) == 3
        assert row._replace(probe=same[0].probe) in [r._replace(probe=same[0].probe) for r in same]
        assert row.valid == max(r.valid for r in same)
    with pytest.raises(ValueError, match="names layer 7"):
        evaluate_layers(model, dataset, 0.5, fusions=[[7]], cache=tmp_path / "c", audio_cache=tmp_path / "a")


def test_embeddings_are_cached_until_something_changes(tones, model, tmp_path, monkeypatch):
    waves = WaveformDataset(read_folders(tones).clips, cache=tmp_path / "a")
    first = embed_clips(model, waves, 0.5, tmp_path / "c", batch=5)
    assert [first.layers[i].shape for i in model.layers] == [(24, 32)] * 3
    direct = model.encode_layers([torch.from_numpy(waves[3])])
    for layer, vector in zip(model.layers, direct):
        np.testing.assert_allclose(first.layers[layer][3], vector[0], atol=1e-5)

    def refuse(*_):
        raise AssertionError("embedded again")

    monkeypatch.setattr(type(model), "encode_layers", refuse)
    again = embed_clips(model, waves, 0.5, tmp_path / "c")
    assert all(np.array_equal(first.layers[i], again.layers[i]) for i in model.layers)
    for other in (0.4, 0.6):
        with pytest.raises(AssertionError):
            embed_clips(model, waves, other, tmp_path / "c")
    with pytest.raises(AssertionError):
        embed_clips(load_fusion("whisper-nano", "all", "random", device="cpu", seed=1), waves, 0.5, tmp_path / "c")


def test_f6_crops_change_with_the_seed():
    """F6: crops of training are drawn for each seed; those of the test split are from the start."""
    samples = np.arange(100.0)
    assert np.array_equal(crop_or_pad(samples, 30, None), samples[:30])
    drawn = {crop_or_pad(samples, 30, [seed, 5])[0] for seed in range(20)}
    assert len(drawn) > 10
    assert max(drawn) <= 70
    assert np.array_equal(crop_or_pad(samples, 30, [3, 5]), crop_or_pad(samples, 30, [3, 5]))
    assert np.array_equal(crop_or_pad(samples[:10], 12, [1, 2]), np.append(samples[:10], [0, 0]))


def test_f6_evaluation_embeds_crops_of_each_seed(tones, model, tmp_path, monkeypatch):
    """F6: clips longer than ``seconds`` are embedded from the start and once for each seed; others only once."""
    seeds_used = []

    def spy(*args, seed=None, **options):
        seeds_used.append(seed)
        return embed_clips(*args, seed=seed, **options)

    monkeypatch.setattr(linear_eval, "embed_clips", spy)
    dataset = read_folders(tones, fold=r"^(\d)-")
    options = {"seeds": (1, 2), "settings": QUICK, "cache": tmp_path / "c", "audio_cache": tmp_path / "a"}
    evaluate_layers(model, dataset, 0.3, **options)
    assert seeds_used == [None, 1, 2]
    seeds_used.clear()
    evaluate_layers(model, dataset, 0.5, **options)
    assert seeds_used == [None]


def make_dataset(n=60, splits=("",), folds=("",), groups=True) -> Dataset:
    clips = [
        Clip(
            Path(f"{i}.wav"),
            (str(i % 3),),
            splits[i % len(splits)],
            folds[i % len(folds)],
            f"g{i // 2}" if groups else "",
        )
        for i in range(n)
    ]
    return Dataset(tuple(clips), ("0", "1", "2"))


@pytest.mark.parametrize(
    ("dataset", "count"),
    [
        (make_dataset(splits=("train", "train", "train", "test", "valid")), 1),
        (make_dataset(splits=("train", "train", "train", "test")), 1),
        (make_dataset(folds=("1", "2", "3", "4"), groups=False), 4),
        (make_dataset(), 5),
    ],
)
def test_f6_validation_is_held_out_before_anything_is_fitted(dataset, count):
    """F6: train, valid and test have no clip in common, and validation comes from training alone."""
    found = split_dataset(dataset, 42)
    assert len(found) == count
    for split in found:
        parts = [set(part.tolist()) for part in split[1:]]
        assert all(parts)
        assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])
        splits = {dataset.clips[i].split for i in parts[1]}
        assert splits == ({"valid"} if any(c.split == "valid" for c in dataset.clips) else splits - {"test"})
        if count == 5:
            of = [{dataset.clips[i].group for i in part} for part in parts]
            assert not of[0] & of[1]
            assert not of[0] & of[2]
    assert {tuple(s.test) for s in split_dataset(dataset, 43)} == {tuple(s.test) for s in found}
    tiny = Dataset(make_dataset(3, splits=("train", "train", "test")).clips, ("0", "1", "2"))
    with pytest.raises(ValueError, match="too few"):
        split_dataset(tiny, 1)


# --- tables, plots, the command ---------------------------------------------------------------------------------


def test_summary_is_over_seeds_of_means_over_splits():
    values = {42: (0.5, 0.7), 43: (0.6, 0.8), 44: (0.7, 0.9)}
    rows = [
        ProbeResult("layer 0", (0,), s, f"fold {i}", 0.5, v, 1, 9)
        for s, both in values.items()
        for i, v in enumerate(both)
    ]
    found = summarize(rows)["layer 0"]
    assert found.mean == pytest.approx(70.0)
    assert found.half_width == pytest.approx(4.302653 * 10 / 3**0.5, rel=1e-5)  # t of 2 degrees of freedom
    assert "| esc10 | nano | 70.0 ± 24.8 |" in to_markdown({("esc10", "nano"): rows})


def test_the_best_pair_of_all_tasks():
    """Tasks are weighted equally, whatever their splits; test scores, single layers, larger fusions do not count."""

    def row(layers, valid, test=0.0, probe="pair"):
        return ProbeResult(probe, layers, 42, "fold 1", valid, test, 1, 10)

    few = [row((0, 1), 0.5), row((0, 2), 0.6, test=0.1), row((1,), 0.9), row((0, 1, 2), 0.9)]
    many = [row((0, 1), 0.61, test=1.0)] * 9 + [row((0, 2), 0.6)] * 9 + [row((0, 1), 0.99, probe=BEST_PAIR)] * 9
    layers, valid = best_pair([few, many])
    assert layers == (0, 2)
    assert valid == pytest.approx(0.6)
    assert best_pair([[row((3,), 0.5)]]) is None
    table = to_markdown({("a", "nano"): few, ("b", "nano"): many})
    assert table.endswith("\n\nBest pair of nano on validation, over all tasks: --layers 0,2 (60.0 %)\n")


def test_the_table_says_which_probes_were_not_finished():
    rows = [ProbeResult("layer 0", (0,), seed, "fold 1", 0.5, 0.5, 200, 9, seed > 42) for seed in (42, 43, 44)]
    assert to_markdown({("esc10", "nano"): rows[1:]}).count("\n") == 3
    assert to_markdown({("esc10", "nano"): rows}).endswith(
        "1 of 3 probes of nano on esc10 were still improving at the last epoch: its figures are a lower bound\n"
    )


CONFIG = """
seeds = [42, 43]
[probe]
lr = 0.01
epochs = 8
[[task]]
dataset = "files"
name = "tones"
root = "{root}"
seconds = 0.5
[task.options]
fold = '^(\\d)-'
[[network]]
backbone = "whisper-nano"
weights = "random"
name = "nano"
fusions = [[0, 2]]
[network.lr]
tones = 0.02
[[network]]
backbone = "whisper-nano"
weights = "random"
name = "other"
layers = [0, 2]
"""


def test_command_evaluates_plots_and_resumes(tones, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    config = tmp_path / "config.toml"
    config.write_text(f'audio_cache = "{tmp_path / "a"}"\ndevice = "cpu"\n' + CONFIG.format(root=tones))
    out = tmp_path / "out"
    run = ["--config", str(config), "--out", str(out)]
    assert lineareval.main([*run, "--network", "nano"]) == 0
    assert "tones, nano" in capsys.readouterr().err
    assert lineareval.main(run) == 0
    captured = capsys.readouterr()
    assert "tones, nano" not in captured.err
    assert "tones, other" in captured.err
    assert captured.out == (out / "scores.md").read_text()
    with open(out / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["network"] for row in rows} == {"nano", "other"}
    assert {row["layers"] for row in rows if row["probe"] == "fusion 0+2"} == {"0+2"}
    assert len([row for row in rows if row["network"] == "nano" and row["probe"] == "layer 1"]) == 2 * 3
    assert (out / "tones.png").read_bytes().startswith(b"\x89PNG")
    learning_rates = []

    def evaluate(*_, settings, **__):
        learning_rates.append(settings.lr)
        return [ProbeResult("layer 0", (0,), 42, "fold 1", 0.5, 0.5, 1, 66)]

    monkeypatch.setattr(experiment, "evaluate_layers", evaluate)
    config.write_text(config.read_text().replace("epochs = 8", "epochs = 9"))
    lineareval.main(run)
    assert learning_rates == [0.02, 0.01]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[[task]]", "[[tasks]]"), "has no [[task]]"),
        (('name = "tones"', 'nam = "tones"'), "there is no key 'task.nam'"),
        (('name = "other"', 'name = "nano"'), "two networks are called 'nano'"),
        (("seconds = 0.5", ""), "no length is published"),
        (('dataset = "files"', 'dataset = "esc51"'), "no dataset 'esc51': did you mean 'esc50'?"),
        (('dataset = "files"', ""), "task.dataset is missing"),
        (("epochs = 8", "epochs = "), "is not TOML"),
    ],
)
def test_wrong_configurations_say_so(tones, tmp_path, capsys, change, message):
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(root=tones).replace(*change))
    with pytest.raises(SystemExit) as stopped:
        lineareval.main(["--config", str(config)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    with pytest.raises(SystemExit):
        lineareval.main(["--config", str(tmp_path / "none.toml")])
