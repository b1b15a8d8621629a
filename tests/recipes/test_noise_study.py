"""The configurations, data and published results of the noise study."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from conftest import ROOT

from whisper_at.study.config import read_study
from whisper_at.study.noises import clips_by_class


def test_the_recipe_uses_data_that_nano_en_was_not_trained_on(data, monkeypatch):
    from recipes.nano.data import HELD_OUT_TAKES, SOUNDS, read_esc10

    monkeypatch.setattr("recipes.nano.data.read_audio", lambda path: np.zeros(1, np.int16))  # names are enough
    study = read_study(os.path.join(os.path.dirname(__file__), "..", "..", "recipes", "noise_study", "digits.toml"))
    assert study.speech.takes == (HELD_OUT_TAKES[0], HELD_OUT_TAKES[-1])
    noises = clips_by_class(study.noise.read(data))
    assert set(noises) == set(SOUNDS)
    _, held_out = read_esc10(data / study.noise.folder)
    wanted = {(clip.sound, clip.source) for clip in held_out}
    assert {(name, clip.path.stem.split("-")[1]) for name, clips in noises.items() for clip in clips} == wanted
    assert sum(map(len, noises.values())) == len(held_out)


def test_the_card_of_nano_en_has_the_numbers_of_the_results():
    lines = (ROOT / "recipes/noise_study/results/digits/results.md").read_text("utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines]
    header = next(i for i, row in enumerate(rows) if row[0] == "noise")
    text = " ".join((ROOT / "pretrained_models/nano.en.md").read_text("utf-8").split())
    said = r"most \(([\w, ]+): over (\d+) % at (\S+ dB)\), [\w ]+ least \(([\w, ]+): (\d+) to (\d+) %\)"
    found = re.search(said, text)
    assert found is not None
    column = rows[header].index(found[3].replace("−", "-"))
    rates = {row[0].replace("_", " "): float(row[column]) for row in rows[header + 2 : header + 12]}
    most, least = ([rates["clock tick" if n == "clock" else n] for n in found[i].split(", ")] for i in (1, 4))
    assert min(most) > int(found[2])
    assert [round(min(least)), round(max(least))] == [int(found[5]), int(found[6])]


def test_the_readme_has_the_numbers_of_the_results():
    folder = ROOT / "recipes" / "noise_study"
    results = (folder / "results/librispeech_cpu/results.md").read_text("utf-8")
    text = " ".join((folder / "README.md").read_text("utf-8").split())
    table = [line.strip("| ").split(" | ") for line in reversed(results.splitlines())]
    rows = {row[0]: row[1:] for row in table if len(row) > 1}  # the first of each name
    columns = [name.removesuffix(" dB") for name in rows["recogniser, rules"]]
    rates = dict(zip(columns, rows["whisper_at:tiny.en, plain"]))
    assert f"({rates['no noise']} % of words are wrong without noise, {rates['10']} % at 10 dB)" in text
    assert f"{rates['0']} % at 0 dB, {rates['-10']} % at −10 dB" in text
    rain, dog, drops = (float(dict(zip(columns[1:], rows[n]))["-10"]) for n in ("rain", "dog", "water_drops"))
    assert f"rain {rain:.0f} %" in text
    assert f"dog {dog:.0f} %, water drops {drops:.0f} %" in text
    assert f"{rows['tiny.en'][1].split()[0]} % of clips rightly" in text
    assert f"({rows['tiny.en'][2]} and {rows['base'][2]} % in the last)" in text
    correlation = re.search(r"r = (\S+) \(95 % interval (\S+) to (\S+),", results)
    assert correlation is not None
    r, low, high = (value.replace("-", "−") for value in correlation.groups())
    assert f"r = {r}, between {low} and {high} with 95 % confidence" in text


def test_the_configurations_are_valid():
    for path in sorted((Path(__file__).parents[2] / "recipes" / "noise_study").glob("*.toml")):
        study = read_study(path)
        assert study.backbones
        assert study.recognisers
        assert {study.robustness.low, study.robustness.high} <= set(study.mix.snrs)
