"""A stream whose language nobody gives: the command and the server find it, and write in it."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from conftest import real_pair
from fastapi.testclient import TestClient
from real_recordings import find, voice

from whisper_at import cli
from whisper_at.live import Final, Stream
from whisper_at.serve import create_app

pytestmark = pytest.mark.real
FRENCH = "fr__multi_leopard__test_fr"
SAID = {"consulat", "devient", "conservateur", "eaux", "forêts", "conseiller", "général"}
"""Words of it that a Whisper as small as base writes."""


@pytest.fixture(scope="module")
def model():
    return real_pair("base").model


def is_french(text: str) -> bool:
    words = {word.strip(" .,").lower() for word in text.replace("'", " ").split()}
    return len(SAID & words) >= len(SAID) - 2


def test_it_is_found_and_kept(model):
    stream, words = Stream(model, at_time_res=None), []
    for piece in np.array_split(voice(FRENCH), 8):
        had_words = bool(words)
        before = stream.language
        words += [w.word for message in stream.feed(piece) if isinstance(message, Final) for w in message.words]
        assert stream.language == before or not had_words
    words += [w.word for message in stream.finish() if isinstance(message, Final) for w in message.words]
    assert stream.language == "fr"
    assert is_french("".join(words))


def test_by_the_command(model, tmp_path, capsys):
    path = find(f"voices/{FRENCH}.ogg")
    options = ["--model", "base", "--head", "none", "--json", "-f", "json", "-o", str(tmp_path)]
    assert cli.main(["live", str(path), *options]) == 0
    capsys.readouterr()
    result = json.loads((tmp_path / f"{FRENCH}.json").read_text(encoding="utf-8"))
    assert result["language"] == "fr"
    assert is_french(result["text"])


def test_by_a_realtime_session(model):
    sound = (voice(FRENCH) * 32767).astype("<i2").tobytes()
    listening = {"format": {"type": "audio/pcm", "rate": 16000}, "turn_detection": None}
    update = {"type": "session.update", "session": {"audio": {"input": listening}}}
    with TestClient(create_app(model, "base")).websocket_connect("/v1/realtime?intent=transcription") as socket:
        socket.send_json(update)
        for start in range(0, len(sound), 6400):  # a fifth of a second
            piece = base64.b64encode(sound[start : start + 6400]).decode()
            socket.send_json({"type": "input_audio_buffer.append", "audio": piece})
        socket.send_json({"type": "input_audio_buffer.commit"})
        event = socket.receive_json()
        while not event["type"].endswith("transcription.completed"):
            assert event["type"] != "error"
            event = socket.receive_json()
    assert is_french(event["transcript"])
