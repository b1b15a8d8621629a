"""Events by the server are those of the command line: placed by rows of 0.4 s, whatever `at_time_res` is."""

from __future__ import annotations

import json

import pytest
import soundfile
from conftest import ROOT
from fastapi.testclient import TestClient

import whisper_at
from whisper_at import cli
from whisper_at.serve import create_app

CLASSIFICATION = "/v1/audio/classification"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
ONE_TEMPERATURE = {"compression_ratio_threshold": None, "logprob_threshold": None}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twelve seconds of rain, of a voice, and of birds."""
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    soundfile.write(path, whisper_at.load_audio(str(ROOT / "sample" / "street.ogg"))[8 * 16000 : 20 * 16000], 16000)
    return path


def by_command(clip, tmp_path, output_format, *arguments):
    """Return what the command writes about a clip."""
    common = ["--model", "nano.en", "--output_dir", str(tmp_path), "-f", output_format, "--verbose", "False"]
    none = [word for name in ONE_TEMPERATURE for word in (f"--{name}", "None")]
    assert cli.main([str(clip), *common, *none, *arguments]) == 0
    return (tmp_path / f"clip.{output_format}").read_text()


def by_server(client, clip, route, **fields):
    with clip.open("rb") as file:
        answer = client.post(route, data=fields, files={"file": ("clip.wav", file)})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize(
    "fields",
    [{"at_time_res": "10"}, {"at_time_res": "0.4,4"}, {"p_threshold": "-2", "include_classes": "Speech; Rain"}],
)
def test_events_are_those_of_the_command(nano, clip, tmp_path, fields, batch_size):
    arguments = [f"--{name}={value}" for name, value in fields.items()]
    if batch_size:
        arguments.append(f"--batch_size={batch_size}")
    expected = json.loads(by_command(clip, tmp_path, "json", *arguments))["events"]
    with TestClient(create_app(nano, "nano.en", batch_size=batch_size, **ONE_TEMPERATURE)) as client:
        told = by_server(client, clip, TRANSCRIPTIONS, response_format="verbose_json", **fields).json()
        stream = by_server(client, clip, TRANSCRIPTIONS, stream="true", **fields).text
    assert expected
    assert any(event["end"] - event["start"] < 10 for event in expected)  # rows of 10 s could not say this
    assert told["events"] == expected
    assert "event_rows" not in told
    lines = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
    streamed = [line for line in lines if line.pop("type") == "audio_event"]
    assert streamed == expected


def test_captions_with_sounds_are_those_of_the_command(nano, clip, tmp_path):
    expected = by_command(clip, tmp_path, "srt", "--captions", "sdh")
    with TestClient(create_app(nano, "nano.en", **ONE_TEMPERATURE)) as client:
        told = by_server(client, clip, TRANSCRIPTIONS, response_format="srt", captions="sdh").text
    assert "[" in expected
    assert told == expected


def test_detections_are_the_events_of_the_command(nano, clip, tmp_path):
    expected = json.loads(by_command(clip, tmp_path, "json", "--task", "tag", "--at_time_res=2"))["events"]
    with TestClient(create_app(nano, "nano.en")) as client:
        told = by_server(client, clip, CLASSIFICATION).json()["detections"]
    assert any(event["start"] % 2 for event in expected)  # rows of 2 s could not say this
    values = [(event["index"], event["start"], event["end"], event["probability"]) for event in expected]
    assert [(one["index"], one["onset"], one["offset"], one["score"]) for one in told] == sorted(
        values, key=lambda value: -value[3]
    )
