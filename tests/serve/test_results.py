"""Results that are kept: files of every format as the command writes them, sounds by other thresholds."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from conftest import ROOT
from fastapi.testclient import TestClient

from whisper_at import cli, find_events
from whisper_at.formats import FORMATS
from whisper_at.formats.registry import WHISPER_FORMATS, extension
from whisper_at.serve import Limits, create_app
from whisper_at.serve.kept_results import KeptResults
from whisper_at.serve.recordings import Recording

SAMPLE = ROOT / "sample" / "street.ogg"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
ASKED = {"language": "en", "temperature": "0", "at_time_res": "2", "timestamp_granularities[]": "word"}


@pytest.fixture(scope="module")
def client(nano):
    with TestClient(create_app(nano, "nano.en", beam_size=5)) as client:
        yield client


def post(client, path=SAMPLE, headers=None, **fields):
    with path.open("rb") as file:
        return client.post(TRANSCRIPTIONS, data=fields, files={"file": (path.name, file)}, headers=headers)


@pytest.fixture(scope="module")
def kept(client):
    answer = post(client, **ASKED, response_format="verbose_json", keep="true")
    assert answer.status_code == 200, answer.text
    assert float(answer.headers["x-audio-duration"]) == pytest.approx(answer.json()["duration"])
    return answer.headers["x-result-id"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the command writes of the same recording with the same options, in all formats at once."""
    folder = tmp_path_factory.mktemp("written")
    formats = ",".join([*WHISPER_FORMATS, *FORMATS])
    options = ["--model", "nano.en", "--head", "auto", "--at_time_res", "2", "--word_timestamps", "True"]
    options += ["--device", "cpu", "--verbose", "False", "-f", formats, "-o", str(folder)]
    assert cli.main([str(SAMPLE), *options, "--p_threshold", "-2", "--label_language", "de"]) == 0
    return folder


@pytest.mark.parametrize("name", [*WHISPER_FORMATS, *FORMATS])
def test_files_are_those_of_the_command_and_nothing_is_heard_again(client, kept, written, name, monkeypatch):
    monkeypatch.setattr(Recording, "open", lambda *_: pytest.fail("it was heard again"))
    query = {"format": name, "p_threshold": -2, "label_language": "German"}
    answer = client.get(f"/v1/results/{kept}/file", params=query)
    assert answer.status_code == 200, answer.text
    assert f"street.{extension(name)}" in answer.headers["content-disposition"]
    expected = (written / f"street.{extension(name)}").read_bytes()
    assert len(expected) > 10
    if name == "pdf":  # has the names of its fonts' subsets
        assert abs(len(answer.content) - len(expected)) < 100
        assert answer.content[:5] == b"%PDF-"
    else:
        assert answer.content == expected


def test_what_is_known_of_a_result(client, kept, nano):
    told = client.get(f"/v1/results/{kept}").json()
    assert (told["filename"], told["language"], told["language_name"]) == ("street.ogg", "en", "english")
    assert told["label_languages"]["de"] == "german"
    assert [one["name"] for one in told["formats"]] == [*WHISPER_FORMATS, *FORMATS]
    without_tags = post(client, response_format="json", keep="true").headers["x-result-id"]
    formats = {one["name"] for one in client.get(f"/v1/results/{without_tags}").json()["formats"]}
    assert {"srt", "labels", "png"} <= formats
    assert not formats & {"sed", "rows.csv", "metadata.vtt"}
    refused = client.get(f"/v1/results/{without_tags}/events")
    assert (refused.status_code, "no tags" in refused.json()["error"]["message"]) == (400, True)


def test_events_and_probabilities_are_those_of_the_result(client, kept, nano):
    result = nano.transcribe(str(SAMPLE), language="en", at_time_res=2, event_rows=True, beam_size=5)
    for threshold in (None, -1.5, 2.0):
        query = {} if threshold is None else {"p_threshold": threshold}
        told = client.get(f"/v1/results/{kept}/events", params=query).json()["events"]
        expected = find_events(result, threshold)
        assert [(e["name"], e["start"], e["end"]) for e in told] == [
            (e["name"], e["start"], e["end"]) for e in expected
        ]
    only = client.get(f"/v1/results/{kept}/events", params={"include_classes": "0", "label_language": "fr"}).json()
    assert {event["index"] for event in only["events"]} <= {0}
    (head,) = client.get(f"/v1/results/{kept}/probabilities").json()["heads"]
    assert (head["head"], head["seconds"]) == ("audio_tag", 1.2)
    rows = result["event_rows"]["audio_tag"][1.2]
    for one in head["classes"]:
        values = np.frombuffer(base64.b64decode(one["probabilities"]), np.uint8) / 255
        assert len(values) == head["rows"] == len(rows)
        expected = nano.head.classes.probabilities(rows.double())[:, one["index"]]
        assert values == pytest.approx(expected.numpy(), abs=0.003)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"format": "doc"}, "format"),
        ({"format": "srt", "captions": "loud"}, "loud"),
        ({"format": "srt", "label_language": "/etc/names.csv"}, "label_language"),
        ({"format": "sed", "include_classes": "Doog"}, "Doog"),
        ({"format": "sed", "top_k": 0}, "top_k"),
    ],
)
def test_what_cannot_be_written_is_refused(client, kept, query, says):
    answer = client.get(f"/v1/results/{kept}/file", params=query)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["tsv", "labels", "lrc", "sed", "png", "parquet"])
def test_a_request_may_ask_for_any_format_at_once(client, name):
    answer = post(client, response_format=name, language="en")
    assert answer.status_code == 200, answer.text
    assert "x-result-id" not in answer.headers
    assert f"street.{extension(name)}" in answer.headers["content-disposition"]
    assert len(answer.content) > 10


def test_rows_of_tags_come_while_it_is_heard(client):
    """Of two windows, the rows of the first one come before the text of the second."""
    answer = post(client, ROOT / "sample" / "street.ogg", **ASKED, response_format="verbose_json", stream="true")
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
    kinds = [event["type"] for event in events]
    assert kinds.index("audio_tags") < len(kinds) - 1 - kinds[::-1].index("transcript.text.segment")
    rows = [event for event in events if event["type"] == "audio_tags"]
    starts = [row["start"] for row in rows]
    assert starts == sorted(set(starts))
    assert all(row["end"] - row["start"] <= 2.0 + 1e-9 and row["tags"] for row in rows)


def test_who_has_another_key_sees_nothing(nano):
    client = TestClient(create_app(nano, "nano.en", api_keys=["mine", "yours"]))
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    id = post(client, headers=mine, keep="true", language="en").headers["x-result-id"]
    assert client.get(f"/v1/results/{id}").status_code == 401
    assert client.get(f"/v1/results/{id}", headers=yours).status_code == 404
    assert client.delete(f"/v1/results/{id}", headers=yours).status_code == 404
    assert client.get(f"/v1/results/{id}", headers=mine).status_code == 200
    assert client.delete(f"/v1/results/{id}", headers=mine).json() == {"id": id, "deleted": True}
    gone = client.get(f"/v1/results/{id}", headers=mine)
    assert (gone.status_code, "send the recording again" in gone.json()["error"]["message"]) == (404, True)


def recording(id, seconds=60.0, client="a"):
    made = Recording(client, None, {}, print, name=f"{id}.wav", keep_as=id)
    made.path.write_bytes(b"sound")
    made.seconds = seconds
    return made


def test_the_oldest_results_go(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    results = KeptResults(count=3, hours=2, minutes=10)
    made = {id: recording(id) for id in "abcd"}
    for one in made.values():
        results.add(one, {})
    assert results.ids() == ["b", "c", "d"]
    assert [one.path.exists() for one in made.values()] == [False, True, True, True]
    now += 500
    assert results.find("b", "a").filename == "b.wav"
    now += 200
    assert results.find("c", "a") is None
    assert results.ids() == ["b"]
    assert not made["d"].path.exists()
    results.add(recording("long", seconds=3 * 3600), {})
    assert results.ids() == ["long"]
    assert not results.remove("long", client="b")
    assert results.remove("long", client="a")
    assert len(results) == 0


def test_nothing_is_kept_unless_it_is_asked_for(nano, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app = create_app(nano, "nano.en", Limits(kept=1))
    client = TestClient(app)
    assert "x-result-id" not in post(client, language="en").headers
    post(client, language="en", response_format="svg")
    assert len(app.state.engine.kept) == 0
    assert not list(tmp_path.iterdir())
    first, second = (post(client, language="en", keep="true").headers["x-result-id"] for _ in range(2))
    assert first != second
    assert app.state.engine.kept.ids() == [second]
    assert len(list(tmp_path.iterdir())) == 1


def test_files_of_the_server_are_no_names_of_classes(client):
    answer = post(client, response_format="sed", label_language="/etc/names.csv")
    assert (answer.status_code, "label_language" in answer.json()["error"]["message"]) == (400, True)
