"""What benchmarks compare is comparable: the layouts that others read, and how texts are scored."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT

transformers = pytest.importorskip("transformers")


@pytest.fixture
def real_speech(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return pytest.importorskip("real_speech")


@pytest.fixture
def layouts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return pytest.importorskip("layouts")


@pytest.mark.parametrize("english", [True, False])
def test_a_layout_names_what_the_model_knows(layouts, tmp_path, upstream_en, upstream_multilingual, english):
    """An English-only model whose settings have languages, be it none, is made to detect one by transformers."""
    model = upstream_en if english else upstream_multilingual
    layouts.write_hugging_face(vars(model.dims), model.state_dict(), [[1, 0]], tmp_path)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings["is_multilingual"] is not english
    assert ("lang_to_id" in settings) is ("task_to_id" in settings) is not english
    if not english:
        assert len(settings["lang_to_id"]) == 99
        assert settings["lang_to_id"]["<|de|>"] == 50261
    assert settings["alignment_heads"] == [[1, 0]]
    assert settings["no_timestamps_token_id"] == (50362 if english else 50363)


UTTERANCES = [
    *("6880-216547-0000", "1183-124566-0000", "1963-142393-0000"),
    *("3607-135982-0000", "8629-261139-0000", "1455-134435-0000"),
]
"""Utterances of LibriSpeech, 36 s in all: more than a window."""


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("tiny_en")  # skips where it is not here
def test_transformers_writes_what_whisper_at_writes(real_speech, layouts, tmp_path, monkeypatch):
    """Joined utterances, with timestamps: no more than 3 words in 100 apart."""
    folder = DATA / "librispeech"
    if not (folder / "index.csv").is_file():
        pytest.skip("LibriSpeech is not here")
    with open(folder / "index.csv", encoding="utf-8", newline="") as file:
        texts = {row["file"]: row["text"] for row in csv.DictReader(file)}
    with open(tmp_path / "index.csv", "w", encoding="utf-8", newline="") as file:
        names = [f"{name}.flac" for name in UTTERANCES]
        csv.writer(file).writerows([("file", "text"), *((folder / name, texts[name]) for name in names)])
    (recording,) = real_speech.read_recordings(tmp_path / "index.csv", 60, 1, tmp_path)
    systems = ["whisper_at", "transformers"]
    layouts.write_layouts("tiny.en", tmp_path, systems)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # as the script sets it
    written = [
        real_speech.SYSTEMS[system](tmp_path, real_speech.Decoding())(np.load(recording["samples"]))
        for system in systems
    ]
    counts = real_speech.word_errors([recording["text"]] * 2, written)
    ours, theirs = counts[:, 0] / counts[:, 2]
    assert ours < 0.15
    assert abs(theirs - ours) < 0.03


def test_words_left_out_are_counted_apart(real_speech):
    pytest.importorskip("jiwer")
    references, texts = ["he went to the sea", "a dog"], ["he went", "the dog barks"]
    assert real_speech.word_errors(references, texts).tolist() == [[3, 3, 5], [2, 0, 2]]
    run = {"texts": texts, "seconds": [2.0], "cpu": [1.5], "loaded": 1, "peak": 2}
    row = real_speech.summarize("x", [run], references, 4)
    assert (row["wer"], row["left_out"], row["words_per_second"], row["times_real"]) == (5 / 7, [3, 0], 3.5, 2)
