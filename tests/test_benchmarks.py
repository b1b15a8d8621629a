"""What benchmarks compare is comparable: the layouts that others read, and how texts are scored."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import DATA, ROOT

transformers = pytest.importorskip("transformers")


@pytest.fixture
def real_speech(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return pytest.importorskip("real_speech")


@pytest.mark.parametrize("english", [True, False])
def test_a_layout_names_what_the_model_knows(real_speech, tmp_path, upstream_en, upstream_multilingual, english):
    """An English-only model whose settings have languages, be it none, is made to detect one by transformers."""
    model = upstream_en if english else upstream_multilingual
    real_speech.write_hugging_face(vars(model.dims), model.state_dict(), [[1, 0]], tmp_path)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings["is_multilingual"] is not english
    assert ("lang_to_id" in settings) is ("task_to_id" in settings) is not english
    if not english:
        assert len(settings["lang_to_id"]) == 99
        assert settings["lang_to_id"]["<|de|>"] == 50261
    assert settings["alignment_heads"] == [[1, 0]]
    assert settings["no_timestamps_token_id"] == (50362 if english else 50363)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("tiny_en")  # skips where it is not here
def test_transformers_writes_what_whisper_at_writes(real_speech, tmp_path):
    """Half a minute of joined utterances, with timestamps: no more than 3 words in 100 apart."""
    table = DATA / "librispeech" / "index.csv"
    if not table.is_file():
        pytest.skip("LibriSpeech is not here")
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "real_speech.py"), "--model", "tiny.en", "--data", str(table)]
    command += ["--seconds", "28", "--minutes", "0.4", "--rounds", "1", "--threads", "1", "--json", str(out)]
    subprocess.run([*command, "--systems", "whisper_at", "transformers"], check=True)
    ours, theirs = json.loads(out.read_text())["systems"]
    assert [ours["system"], theirs["system"]] == ["whisper_at", "transformers"]
    assert ours["wer"] < 0.15
    assert abs(theirs["wer"] - ours["wer"]) < 0.03


def test_words_left_out_are_counted_apart(real_speech):
    pytest.importorskip("jiwer")
    references, texts = ["he went to the sea", "a dog"], ["he went", "the dog barks"]
    assert real_speech.word_errors(references, texts).tolist() == [[3, 3, 5], [2, 0, 2]]
    run = {"texts": texts, "seconds": [2.0], "cpu": [1.5], "loaded": 1, "peak": 2}
    row = real_speech.summarize("x", [run], references, 4)
    assert (row["wer"], row["left_out"], row["words_per_second"], row["times_real"]) == (5 / 7, [3, 0], 3.5, 2)
