"""Realtime sessions over a WebSocket, by OpenAI's own client."""

from __future__ import annotations

import base64
import json
import threading

import numpy as np
import openai
import pytest
import serving
from conftest import ROOT
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.sync.client import connect

import whisper_at
from whisper_at.model import WhisperAT
from whisper_at.serve import Limits, create_app

COMPLETED = "conversation.item.input_audio_transcription.completed"
PATH = "/v1/realtime?intent=transcription"


def pcm(samples, rate=24000):
    """Samples at 16 kHz as int16 at another rate, by linear interpolation."""
    times = np.arange(int(len(samples) * rate / 16000)) / rate
    return (np.interp(times, np.arange(len(samples)) / 16000, samples) * 32767).astype("<i2").tobytes()


def test_openais_client_hears_words_and_sounds(nano):
    audio = whisper_at.load_audio(str(ROOT / "sample" / "street.ogg"))[: 12 * 16000]
    sound = pcm(audio)
    with serving.in_thread(create_app(nano, "nano.en", api_keys=["key"])) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="key")
        with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            assert connection.recv().type == "session.created"
            listening = {"transcription": {"model": "whisper-1", "language": "en"}, "turn_detection": None}
            session = {"type": "transcription", "audio": {"input": listening}, "at_time_res": 0.4}
            connection.send({"type": "session.update", "session": session})
            assert connection.recv().type == "session.updated"
            for start in range(0, len(sound), 9600):  # a fifth of a second
                connection.input_audio_buffer.append(audio=base64.b64encode(sound[start : start + 9600]).decode())
            connection.input_audio_buffer.commit()
            events = []
            while not events or events[-1].type != COMPLETED:
                events.append(connection.recv())
    deltas = [event.delta for event in events if event.type.endswith("transcription.delta")]
    assert len(deltas) >= 2
    assert "".join(deltas).strip() == events[-1].transcript
    assert "open the door" in events[-1].transcript.lower()
    assert {"Speech"} <= {event.name for event in events if event.type == "audio_event"}
    assert events[-1].usage.seconds == pytest.approx(12, abs=0.1)


def test_who_may_connect(nano):
    app = create_app(nano, "nano.en", Limits(live=1), api_keys=["key"], cors=["https://a.org"])
    client = TestClient(app)
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(PATH):
        pass
    assert refused.value.code == 1008
    browser = ["realtime", "openai-insecure-api-key.key"]
    headers = {"Authorization": "Bearer key"}
    for origin in ("https://b.org", "null"):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(PATH, headers=headers | {"Origin": origin}):
            pass
    with client.websocket_connect(PATH, subprotocols=browser, headers={"Origin": "https://a.org"}) as first:
        assert first.accepted_subprotocol == "realtime"
        assert first.receive_json()["type"] == "session.created"
        with client.websocket_connect(PATH, headers=headers) as second, pytest.raises(WebSocketDisconnect) as full:
            second.receive_json()
        assert full.value.code == 1013
    with client.websocket_connect(PATH, headers=headers | {"Origin": "http://testserver"}) as own:
        assert own.receive_json()["type"] == "session.created"


def test_a_session_survives_what_is_wrong(nano):
    with TestClient(create_app(nano, "nano.en")).websocket_connect(PATH) as socket:
        socket.receive_json()
        for text in (
            "no json",
            "[]",
            '{"type": "session.update", "session": {"input_audio_transcription": {"model": "x"}}}',
        ):
            socket.send_text(text)
            assert socket.receive_json()["type"] == "error"
        socket.send_bytes(b"\xff")
        assert socket.receive_json()["type"] == "error"
        update = {"type": "session.update", "session": {"input_audio_transcription": {"language": "en"}}}
        socket.send_json(update)
        assert socket.receive_json()["type"] == "session.updated"


def update(**listening):
    wanted = {"transcription": {"language": "en"}, "turn_detection": None, **listening}
    return {"type": "session.update", "session": {"audio": {"input": wanted}}}


def appended(sound, size):
    """Events that append all of a sound, in pieces of so many bytes."""
    pieces = [sound[start : start + size] for start in range(0, len(sound), size)]
    return [{"type": "input_audio_buffer.append", "audio": base64.b64encode(piece).decode()} for piece in pieces]


def events_until_completed(socket):
    events = []
    while not events or events[-1]["type"] != COMPLETED:
        events.append(json.loads(socket.recv(timeout=60)))
    return events


@pytest.mark.parametrize("megabytes", [1000, 0.1])
def test_who_sends_faster_than_it_is_said_is_heard_to_the_end(nano, monkeypatch, megabytes):
    """Also where it may not be far ahead: then it is not read for a while."""
    passes, encode = [], WhisperAT.encode
    monkeypatch.setattr(WhisperAT, "encode", lambda *args, **kw: passes.append(1) or encode(*args, **kw))
    audio = whisper_at.load_audio(str(ROOT / "sample" / "street.ogg"))[: 30 * 16000]
    with (
        serving.in_thread(create_app(nano, "nano.en", Limits(megabytes=megabytes))) as address,
        connect(f"ws{address.removeprefix('http')}{PATH}") as socket,
    ):
        socket.send(json.dumps(update()))
        for event in appended(pcm(audio), 4800):  # a tenth of a second
            socket.send(json.dumps(event))
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        events = events_until_completed(socket)
    assert not [event for event in events if event["type"] == "error"]
    words = [word for event in events if event["type"].endswith(".delta") for word in event["words"]]
    assert "".join(word["word"] for word in words).strip() == events[-1]["transcript"]
    assert "open the door" in events[-1]["transcript"].lower()
    assert events[-1]["usage"]["seconds"] == pytest.approx(30, abs=0.01)
    assert len(passes) < 20  # one every 0.8 s would be 37


def test_a_connection_lives_while_its_session_waits(nano):
    """Whoever does not read does not answer pings either, and clients give up after twenty seconds."""
    app, may_go_on = create_app(nano, "nano.en"), threading.Event()
    sound = np.zeros(180 * 16000, "<i2").tobytes()  # more than sockets hold
    with (
        serving.in_thread(app) as address,
        connect(f"ws{address.removeprefix('http')}{PATH}", ping_interval=None, close_timeout=1) as socket,
    ):
        socket.send(json.dumps(update(format={"type": "audio/pcm", "rate": 16000})))
        try:
            while json.loads(socket.recv())["type"] != "session.updated":
                pass
            app.state.engine._worker.submit(may_go_on.wait, 60)  # a batch that takes long
            sent = threading.Event()

            def push():
                for event in appended(sound, 32000):
                    socket.send(json.dumps(event))
                sent.set()

            threading.Thread(target=push, daemon=True).start()
            assert sent.wait(30)
            assert socket.ping().wait(30)
        finally:
            may_go_on.set()
