"""Words, texts and sounds are found in a dataset; what reads it elsewhere reads the same."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import pytest

from whisper_at.archive import Query, find, run_sql
from whisper_at.archive.schema import make_files_table, result_row
from whisper_at.archive.store import Store
from whisper_at.cli import main
from whisper_at.tagging.labels import find_class


def tagged(segments, sounds, seconds=20, words=True):
    """A result with segments ``(start, end, text)`` and sounds ``(row of 2 s, class)``."""
    logits = np.full((seconds // 2, 527), -8.0, np.float32)
    for row, name in sounds:
        logits[row, find_class(name)] = 3.0
    numbers = {"tokens": [1], "seek": 0, "temperature": 0.0, "avg_logprob": -1.0, "compression_ratio": 1.0}
    rows = []
    for start, end, text in segments:
        row = {"start": start, "end": end, "text": text, "no_speech_prob": 0.0, **numbers}
        if words:
            split = text.split()
            step = (end - start) / len(split)
            row["words"] = [
                {"word": f" {w}", "start": start + i * step, "end": start + (i + 1) * step, "probability": 0.5}
                for i, w in enumerate(split)
            ]
        rows.append(row)
    return {
        "text": "".join(f" {text}" for _, _, text in segments),
        "segments": rows,
        "language": "en",
        "at_time_res": 2.0,
        "audio_tag": logits,
        "audio_tag_coverage": [1.0] * len(logits),
        "duration": float(seconds),
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data'set [1]")
    results = {
        "/a/1.wav": tagged([(0, 4, "About the Budget, then."), (12, 16, "The budgets of others.")], [(3, "Giggle")]),
        "/a/2.wav": tagged([(0, 4, "The budget again")], [(9, "Laughter")]),
        "/a/3.wav": tagged([(0, 4, "100% of a_budget plan")], [(1, "Dog")], words=False),
    }
    rows = [
        {"id": path, "path": path, "schema_version": 1, **result_row(result, 20.0)} for path, result in results.items()
    ]
    rows.append({"id": "x", "path": "/a/broken.wav", "schema_version": 1, "error_type": "RuntimeError", "error": "no"})
    Store(folder).write_part(0, make_files_table(rows))
    return folder


def places(dataset, **query):
    return [(match.path[-5:], round(match.start, 2), match.near) for match in find(dataset, Query(**query))]


def test_a_word_is_found_without_its_punctuation_and_in_any_case(dataset):
    assert places(dataset, words=("budget",)) == [("1.wav", 2.0, ()), ("2.wav", 1.33, ())]
    assert [place[0] for place in places(dataset, words=("budget*",))] == ["1.wav", "1.wav", "2.wav"]
    assert places(dataset, words=("PLAN",)) == [("3.wav", 0, ())]  # whose words are not timed


def test_a_sound_near_a_word_counts_and_one_far_away_does_not(dataset):
    assert places(dataset, words=("budget",), sounds=("laughter",)) == [("1.wav", 2.0, ("Giggle",))]
    assert places(dataset, words=("budget",), sounds=("laughter",), within=1.0) == []
    assert len(places(dataset, words=("budget",), sounds=("laughter",), within=20.0)) == 2


def test_texts_are_taken_literally(dataset):
    assert [place[0] for place in places(dataset, texts=("100%",))] == ["3.wav"]
    assert [place[0] for place in places(dataset, texts=("a_b",))] == ["3.wav"]
    assert places(dataset, texts=("t_e",)) == []
    assert places(dataset, texts=("'; DROP VIEW files; --",)) == []


def test_sql_reads_the_dataset_and_nothing_else(dataset, tmp_path):
    names, rows = run_sql(dataset, "SELECT count(*) AS n, sum(duration) AS s FROM files")
    assert (names, rows) == (["n", "s"], [(4, 60.0)])
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    with pytest.raises(duckdb.PermissionException):
        run_sql(dataset, f"SELECT * FROM '{secret}'")
    for sql in (
        f"COPY files TO '{tmp_path}/out.csv'",
        "SET enable_external_access = true",
        "SELECT 1; DROP VIEW files",
    ):
        with pytest.raises(ValueError, match="only queries"):
            run_sql(dataset, sql)


def test_the_command_prints_path_time_and_text(dataset, capsys):
    assert main(["find", str(dataset), "--word", "budget", "--sound", "laughter", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["text"], found["near"]) == ("/a/1.wav", "About the Budget, then.", ["Giggle"])
    assert main(["find", str(dataset), "nothing of the kind"]) == 1
    assert main(["find", str(dataset), "--sql", "SELECT 1 + 1"]) == 0
    assert capsys.readouterr().out == "2\n"


def test_pandas_and_polars_read_the_tables(dataset):
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    files = pandas.read_parquet(dataset / "files")
    assert files["text"].notna().sum() == 3
    assert np.stack(files["tags"][0][0]["rows"]).shape == (10, 527)
    names = polars.read_parquet(dataset / "events" / "part-00000.parquet", glob=False)["name"].to_list()
    assert names == ["Giggle", "Laughter", "Dog"]
    assert polars.read_parquet(dataset / "files" / "part-00000.parquet", glob=False).height == 4
