"""What recipes of heads are expected to take: counted from the clips and settings, timed on few."""

from __future__ import annotations

import json

import pytest

from recipes.heads import expected
from recipes.heads.expected import RECIPES


@pytest.fixture
def small(monkeypatch):
    """Every Whisper is tiny, and few clips are encoded."""
    width = {"n_audio_state": 64, "n_audio_head": 2, "n_audio_layer": 3, "n_text_state": 64, "n_text_head": 2}
    dims = expected.model_dims("tiny")
    monkeypatch.setattr(expected, "model_dims", lambda name: {**dims, **width})
    monkeypatch.setattr(expected, "CLIPS", 5)
    monkeypatch.setattr(expected, "BATCHES", 2)


def test_space_is_that_of_every_clips_states(small, tmp_path, capsys):
    assert (
        expected.main(["--recipes", "esc50", "audioset_tiny", "--device", "cpu", "--json", str(tmp_path / "a.json")])
        == 0
    )
    found = json.loads((tmp_path / "a.json").read_text())
    clip = 3 * 64 * 2  # layers, width, bytes of a step of 0.4 s
    assert found["esc50"]["space"] == 2000 * 13 * clip
    data = RECIPES["audioset_tiny"]
    assert found["audioset_tiny"]["space"] == (data.train + data.test) * 25 * clip
    assert all(found[name][part] > 0 for name in ("esc50", "audioset_tiny") for part in ("features", "training"))
    assert found["audioset_tiny"]["features"] > 20 * found["esc50"]["features"]  # a thousand times the clips
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["recipe", "esc50", "audioset_tiny"]


def test_every_recipe_has_an_expectation():
    files = {path.stem for path in expected.FOLDER.glob("*.toml")} - {"own_sounds", "esc10"}  # which were run
    assert files == set(RECIPES)
    for recipe in RECIPES:
        assert expected.settings_of(recipe, 768, "cpu").precision == "float32"


def test_times_for_people():
    found = [expected.format_long(seconds) for seconds in (40, 600, 7200, 86400 * 30)]
    assert found == ["40 s", "10 min", "2.0 h", "30 days"]
