"""The recipe of ESC-50: heads over folds in one table, and YAMNet's guesses among the classes that it knows."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
from conftest import SAMPLE_RATE, noise
from scipy.io import wavfile

from recipes.heads import esc50
from whisper_at.data.clips import Clip, Dataset
from whisper_at.tagging.labels import audioset_labels


def test_names_are_audiosets():
    names = {label.name for label in audioset_labels()}
    assert len(esc50.AUDIOSET_NAMES) == 47
    assert {name for text in esc50.AUDIOSET_NAMES.values() for name in text.split("|")} <= names


def test_guesses_are_among_classes_that_have_a_name():
    labels = ("cat", "rain", "can_opening", "rain")
    clips = [Clip(Path(f"{i}.wav"), (label,), fold=str(i // 2 + 1)) for i, label in enumerate(labels)]
    names = ["Speech", "Cat", "Meow", "Rain"]
    scores = np.array([[0.9, 0.1, 0.3, 0.2], [0.9, 0.3, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4], [0.9, 0, 0, 0.1]], np.float32)
    accuracies, count = esc50.zero_shot_accuracies(Dataset(tuple(clips), tuple(sorted(set(labels)))), names, scores)
    assert accuracies.tolist() == [0.5, 1.0]  # a clip of can_opening is none of these
    assert count == 2


def test_the_command_writes_a_row_per_head_and_protocol(checkpoint, tmp_path):
    lines = ["filename,fold,category"]
    for i, fold, label in product(range(5), (1, 2), ("rain", "siren")):
        name = f"{fold}-{i}-{label}.wav"
        wave = noise(0.9, i) if label == "rain" else np.sin(np.arange(14400) * (0.1 + 0.01 * i))
        wavfile.write(tmp_path / name, SAMPLE_RATE, (0.2 * wave).astype(np.float32))
        lines.append(f"{name},{fold},{label}")
    (tmp_path / "esc50.csv").write_text("\n".join(lines) + "\n")
    arguments = ["--data", tmp_path / "esc50.csv", "--models", checkpoint, "--modes", "last_mlp", "stats_mlp"]
    arguments += ["--seeds", "1", "--set", "epochs=1", "--workers", "0", "--out", tmp_path / "out"]
    assert esc50.main([str(word) for word in arguments]) == 0
    rows = (tmp_path / "out" / "esc50.md").read_text().splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1] for row in cells[:4]] == ["`last_mlp`", "`stats_mlp`"] * 2
    assert [bool(row[5]) for row in cells[:4]] == [False, False, True, True]  # joined, under protocol 30+
    assert all("±" in row[4] for row in cells[:4])
    assert len(cells) == 4 + len(esc50.PUBLISHED)
