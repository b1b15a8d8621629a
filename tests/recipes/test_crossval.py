"""The recipe of cross-validation: its table is of one run, which goes on where it was stopped."""

from __future__ import annotations

import re
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE_RATE, noise
from scipy.io import wavfile

from recipes.heads.crossval import COLUMNS, IN_CONTEXT, FeatureStores, cross_validate, main, read_rows
from whisper_at.data.clips import Clip, Dataset
from whisper_at.features.files import FeatureMetadata
from whisper_at.features.store import Features
from whisper_at.features.writer import FeatureWriter
from whisper_at.train.config import Settings


def settings(mode: str, epochs: int = 1) -> Settings:
    return Settings(mode=mode, loss="ce", epochs=epochs, batch=8, rows=(3,), least_steps=1)


@pytest.fixture
def world(tmp_path) -> tuple[Dataset, dict[str, FeatureStores]]:
    clips = [Clip(Path(f"/sounds/{i}.wav"), ("ab"[i % 2],), fold=str(i // 8)) for i in range(16)]
    r = np.random.default_rng(0)

    def store(name: str, protocol: str, some: list[Clip]) -> Features:
        with FeatureWriter(tmp_path / name, FeatureMetadata("m", "sha", protocol, 0.0, 2, 8, views=2)) as writer:
            for clip in some:
                writer.add(clip, r.standard_normal((2, 4, 8)))
        return Features.open(tmp_path / name)

    training = store("f", "30+", clips)
    tests = {"": (training, 0), IN_CONTEXT: (training, 1)}
    return Dataset(tuple(clips), ("a", "b")), {"trained": FeatureStores(training, tests)}


def test_a_table_goes_on_after_a_line_that_was_not_finished(world, tmp_path):
    table = tmp_path / "crossval.csv"
    rows = cross_validate(*world, ["mean_mlp"], [0], settings, table)
    assert len(rows) == 2
    assert tuple(rows[0]) == COLUMNS
    content = table.read_bytes()
    table.write_bytes(content[:-9])
    again = cross_validate(*world, ["mean_mlp"], [0], settings, table)
    assert again[0] == rows[0]
    assert again[1]["accuracy"] == rows[1]["accuracy"]
    assert [row["fold"] for row in read_rows(table)] == ["0", "1"]
    table.write_bytes(content[:5])  # of the header
    assert len(cross_validate(*world, ["mean_mlp"], [0], settings, table)) == len(read_rows(table)) == 2
    assert len(cross_validate(*world, ["mean_mlp"], [0, 1], settings, table)) == 4  # more seeds or modes may come


def test_a_table_of_other_settings_or_clips_is_refused(world, tmp_path):
    table, (dataset, features) = tmp_path / "crossval.csv", world
    cross_validate(dataset, features, ["mean_mlp"], [0], settings, table)
    with pytest.raises(ValueError, match="holds a run with epochs = 1, not 2"):
        cross_validate(dataset, features, ["mean_mlp"], [0], partial(settings, epochs=2), table)
    with pytest.raises(ValueError, match="holds a run with clips = "):
        cross_validate(dataset.select(range(15)), features, ["mean_mlp"], [0], settings, table)


def test_the_command_encodes_trains_prints_and_draws(checkpoint, tmp_path, capsys):
    for i in range(5):
        for fold, label in product((1, 2), "ab"):
            path = tmp_path / "sounds" / label / f"{fold}-{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            wave = noise(0.9, i) if label == "a" else np.sin(np.arange(14400) * (0.1 + 0.01 * i))
            wavfile.write(path, SAMPLE_RATE, (0.2 * wave).astype(np.float32))
    arguments = ["--data", str(tmp_path / "sounds"), "--fold", r"^(\d)-", "--modes", "mean_mlp", "--seeds", "1"]
    arguments += [
        "--model",
        str(checkpoint),
        "--encoders",
        "trained",
        "--set",
        "epochs=2",
        "--workers",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    for _ in range(2):  # the second time, all is there
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        row = re.search(r"trained  mean_mlp +accuracy (\S+) ± \S+  mAP (\S+) ± \S+  accuracy_joined (\S+) ±", shown)
        rows = read_rows(tmp_path / "out" / "crossval.csv")
        assert [row["fold"] for row in rows] == ["0", "1"]
        for found, name in zip(row.groups(), ("accuracy", "mAP", "accuracy_joined")):
            assert float(found) == pytest.approx(np.mean([float(row[name]) for row in rows]), abs=6e-4)
    assert (tmp_path / "out" / "crossval.png").stat().st_size > 10_000
