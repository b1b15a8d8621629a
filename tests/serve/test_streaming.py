"""Server-sent events, by OpenAI's own client and as they are."""

from __future__ import annotations

import json

import openai
import pytest
import serving
import soundfile
from conftest import ROOT, noise
from fastapi.testclient import TestClient

import whisper_at
from whisper_at.serve import create_app

SAMPLE = ROOT / "sample" / "street.ogg"


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served}/v1", api_key="none")


@pytest.mark.parametrize("name", ["gpt-4o-transcribe", "nano.en"])
def test_openais_client_reads_deltas_that_make_up_the_text(client, name):
    with SAMPLE.open("rb") as file:
        whole = client.audio.transcriptions.create(file=file, model=name).text
    with SAMPLE.open("rb") as file:
        events = list(client.audio.transcriptions.create(file=file, model=name, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta"] * (len(events) - 1) + ["transcript.text.done"]
    assert len(events) >= 4
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == whole


def test_sounds_and_times_come_too_if_asked_for(client):
    options = {"at_time_res": "4", "include_classes": "Speech; Rain"}
    fields = {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
    with SAMPLE.open("rb") as file:
        told = client.audio.transcriptions.create(file=file, model="", **fields, extra_body=options)
    with SAMPLE.open("rb") as file:
        events = list(
            client.audio.transcriptions.create(file=file, model="", **fields, extra_body=options, stream=True)
        )
    by_type: dict[str, list] = {}
    for event in events:
        by_type.setdefault(event.type, []).append(event)
    segments, deltas = by_type["transcript.text.segment"], by_type["transcript.text.delta"]
    assert [segment.id for segment in segments] == [delta.segment_id for delta in deltas]
    assert [word["word"].strip() for segment in segments for word in segment.words] == [w.word for w in told.words]
    sounds = [sound.to_dict() for sound in by_type["audio_event"]]
    assert {sound["name"] for sound in sounds} == {"Speech", "Rain"}
    assert [(sound["name"], sound["start"], sound["end"]) for sound in sounds] == [
        (event["name"], event["start"], event["end"]) for event in told.events
    ]
    assert events[-1].type == "transcript.text.done"


def test_a_file_that_cannot_be_read_is_an_error_and_no_stream(client, tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(openai.BadRequestError, match=r"Failed to load audio: text.wav"):
        client.audio.transcriptions.create(file=tmp_path / "text.wav", model="", stream=True)


def test_a_failure_in_the_middle_is_told(model_en, monkeypatch, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(3), 16000)
    monkeypatch.setattr(whisper_at.model.WhisperAT, "embed_audio", lambda *_: 1 / 0)
    with TestClient(create_app(model_en, "random")) as app, (tmp_path / "a.wav").open("rb") as file:
        answer = app.post(serving.TRANSCRIPTIONS, data={"stream": "true"}, files={"file": file})
    assert answer.headers["content-type"].startswith("text/event-stream")
    error = json.loads(answer.text.removeprefix("data: "))["error"]
    assert error["message"] == "the server failed (ZeroDivisionError); its log says where"
