"""Recordings of several clients: batches that they share, turns, limits, and clients that go."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import serving
import soundfile
import torch
from conftest import ROOT, noise
from fastapi.testclient import TestClient

import whisper_at
from whisper_at import audio
from whisper_at.batched import BatchDecoder
from whisper_at.serve import Limits, create_app, engine
from whisper_at.serve.recordings import Recording

SAMPLE = ROOT / "sample" / "street.ogg"
DETERMINISTIC = {"compression_ratio_threshold": None, "logprob_threshold": None}
"""No window is decoded again at a higher temperature, where texts are drawn."""


def wav(samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV")
    return file.getvalue()


def ask(client, sound, key=None, **fields):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return client.post(serving.TRANSCRIPTIONS, data=fields, files={"file": ("a.wav", sound)}, headers=headers)


def wait_for(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the batches that are decoded; decoding waits for ``batches.go``."""
    real = BatchDecoder._decode_batch

    class Batches(list):
        go = threading.Event()

    sizes = Batches()

    def decode_batch(self, batch):
        assert sizes.go.wait(60)
        sizes.append(len(batch))
        return real(self, batch)

    monkeypatch.setattr(BatchDecoder, "_decode_batch", decode_batch)
    return sizes


def test_clients_share_batches_and_have_the_text_that_they_have_alone(nano, batches):
    street = whisper_at.load_audio(str(SAMPLE))
    sounds = [wav(street[i * 16000 * 5 : (i * 5 + 4 + 9 * i) * 16000]) for i in range(6)]  # of 4 to 49 s
    fields = {"response_format": "verbose_json", "timestamp_granularities": "word,segment"}
    tagged = [fields | ({"at_time_res": "2"} if i % 2 else {}) for i in range(6)]
    app = create_app(nano, "nano.en", batch_size=8, **DETERMINISTIC)
    with TestClient(app) as client:
        batches.go.set()
        alone = [ask(client, sound, **wanted).json() for sound, wanted in zip(sounds, tagged)]
        batches.clear()
        batches.go.clear()
        with ThreadPoolExecutor(6) as pool:
            answers = [pool.submit(ask, client, sound, **wanted) for sound, wanted in zip(sounds, tagged)]
            wait_for(lambda: len(app.state.engine.open) == 6)
            batches.go.set()
            together = [answer.result().json() for answer in answers]
    assert max(batches) >= 4
    assert len({one["text"] for one in alone}) >= 4
    for one, other in zip(together, alone):
        assert one["text"] == other["text"]
        assert [s["tokens"] for s in one["segments"]] == [s["tokens"] for s in other["segments"]]
        assert [w["word"] for w in one["words"]] == [w["word"] for w in other["words"]]
        times = [[time for w in of["words"] for time in (w["start"], w["end"])] for of in (one, other)]
        assert times[0] == pytest.approx(times[1], abs=0.021)  # a word may move by a frame
        assert [e["name"] for e in one.get("events", [])] == [e["name"] for e in other.get("events", [])]


def test_a_recording_is_read_once(model_en, monkeypatch):
    opened, real = [], audio._decode
    monkeypatch.setattr(audio, "_decode", lambda *args: opened.append(args) or real(*args))
    with TestClient(create_app(model_en, "random", batch_size=2, sample_len=4, **DETERMINISTIC)) as client:
        answer = ask(client, wav(noise(40)), response_format="verbose_json").json()
    assert answer["duration"] == pytest.approx(40)
    assert len(opened) == 1


def test_requests_that_decode_otherwise_have_batches_of_their_own(model_en, batches):
    app = create_app(model_en, "random", batch_size=8, sample_len=4, **DETERMINISTIC)
    with TestClient(app) as client:
        wanted = [{}, {"prompt": "One two."}, {"prompt": "One two."}, {"temperature": 1.0}, {"language": "en"}]
        with ThreadPoolExecutor(6) as pool:
            blocker = pool.submit(ask, client, wav(noise(3)), prompt="first")
            wait_for(lambda: len(app.state.engine.open) == 1)
            time.sleep(0.2)  # and it is being transcribed
            answers = [pool.submit(ask, client, wav(noise(4, i)), **fields) for i, fields in enumerate(wanted)]
            wait_for(lambda: len(app.state.engine.open) == 6)
            batches.go.set()
            assert [answer.result().status_code for answer in [blocker, *answers]] == [200] * 6
    # the two with one prompt, and the two that want nothing but the default; of what is left over, one at a time
    assert sorted(batches)[-2:] == [2, 2]
    assert batches.count(2) == 2


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}])
def test_a_short_recording_does_not_wait_for_the_end_of_a_long_one(model_en, monkeypatch, options):
    app = create_app(model_en, "random", api_keys=["a", "b"], sample_len=4, **DETERMINISTIC, **options)
    finished, begun = [], threading.Event()
    real = type(model_en).embed_audio
    monkeypatch.setattr(type(model_en), "embed_audio", lambda *args: begun.set() or time.sleep(0.05) or real(*args))
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        long = pool.submit(ask, client, wav(noise(240)), "a")
        long.add_done_callback(lambda _: finished.append("long"))
        assert begun.wait(60)
        short = pool.submit(ask, client, wav(noise(4)), "b")
        short.add_done_callback(lambda _: finished.append("short"))
        assert [long.result().status_code, short.result().status_code] == [200, 200]
    assert finished == ["short", "long"]


def test_freed_memory_is_given_back(model_en, monkeypatch):
    trimmed = []
    monkeypatch.setattr(engine, "trim_heap", lambda: trimmed.append(1))
    with TestClient(create_app(model_en, "random", sample_len=4)) as client:
        assert ask(client, wav(noise(3))).status_code == 200
        assert not trimmed
        monkeypatch.setattr(engine, "TRIM_SECONDS", 0.0)
        assert ask(client, wav(noise(3))).status_code == 200
    assert trimmed


def test_sessions_that_always_have_sound_do_not_keep_recordings_waiting(model_en):
    app, passes, is_answered = create_app(model_en, "random", sample_len=4, **DETERMINISTIC), [], threading.Event()

    def make_pass():
        passes.append(1)
        if not is_answered.is_set() and len(passes) < 1_000_000:
            app.state.engine._urgent.append(make_pass)

    with TestClient(app) as client:
        app.state.engine._urgent.append(make_pass)
        assert ask(client, wav(noise(3))).status_code == 200
        is_answered.set()
    assert 1 < len(passes) < 1_000_000


def test_limits(model_en, monkeypatch):
    """One recording is open, two may wait, one of each client."""
    go, real = threading.Event(), Recording.open
    monkeypatch.setattr(Recording, "open", lambda self, samples: (go.wait(60), real(self, samples)))
    keys = ["a", "b", "c"]
    app = create_app(model_en, "random", Limits(waiting=2, waiting_per_client=1), api_keys=keys, sample_len=4)
    app.state.engine.max_open = 1
    sound = wav(noise(3))
    with TestClient(app) as client, ThreadPoolExecutor(4) as pool:
        answers = []
        assert client.get("/ready").json() == {"status": "ready"}
        for n, key in enumerate(["a", "a", "b"], 1):
            answers.append(pool.submit(ask, client, sound, key))
            wait_for(lambda n=n: client.get("/health").json()["recordings"] == n)
        for key, status, says in [("a", 429, "1 recordings of yours are waiting"), ("c", 503, "too many recordings")]:
            late = ask(client, sound, key)
            assert (late.status_code, late.headers["retry-after"]) == (status, "15")
            assert late.json()["error"]["message"].startswith(says)
        assert client.get("/ready").status_code == 503
        text = client.get("/metrics", headers={"Authorization": "Bearer a"}).text
        assert 'whisper_at_recordings{state="waiting"} 2.0' in text
        go.set()
        assert [answer.result().status_code for answer in answers] == [200] * 3
        assert client.get("/health").json()["recordings"] == 0
        assert ask(client, sound, "c").status_code == 200


def call(app, sound, on_message=lambda message: None, leaves=None, **fields):
    """Send a request to an application itself; return the messages it answers with.

    ``leaves`` is an event at which the client goes.
    """
    body, content_type = serving.multipart(sound, **fields)
    scope = {"type": "http", "method": "POST", "path": serving.TRANSCRIPTIONS, "query_string": b""}
    scope["headers"] = [(b"content-type", content_type.encode())]
    first, sent = [{"type": "http.request", "body": body, "more_body": False}], []

    async def run():
        over = asyncio.Event()

        async def receive():
            if first:
                return first.pop()
            while not over.is_set() and not (leaves and leaves.is_set()):
                await asyncio.sleep(0.005)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            on_message(message)

        await app(scope, receive, send)
        over.set()

    asyncio.run(run())
    return sent


@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize("options", [{}, {"batch_size": 1}])
def test_work_stops_at_the_next_window_when_the_client_has_gone(model_en, monkeypatch, tmp_path, options, stream):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    encoded, leaves = [], threading.Event()
    real = type(model_en).embed_audio

    def embed_audio(self, mel):
        encoded.append(1)
        if len(encoded) == 3:
            leaves.set()
            time.sleep(0.3)
        return real(self, mel)

    app = create_app(model_en, "random", sample_len=4, **DETERMINISTIC, **options)
    monkeypatch.setattr(type(model_en), "embed_audio", embed_audio)
    call(app, wav(noise(300)), leaves=leaves, stream=stream)
    with TestClient(app) as client:
        wait_for(lambda: client.get("/health").json()["recordings"] == 0)
        assert len(encoded) in (3, 4)
        assert "whisper_at_cancelled_total 1.0" in client.get("/metrics").text
        assert ask(client, wav(noise(3))).status_code == 200
    wait_for(lambda: not list(tmp_path.iterdir()))


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}])
def test_text_is_sent_as_soon_as_it_is_known(model_en, monkeypatch, options):
    """The second window is not decoded before the text of the first has been sent."""
    told, n_windows = threading.Event(), []
    real = type(model_en).embed_audio

    def embed_audio(self, mel):
        n_windows.append(1)
        assert len(n_windows) != 2 or told.wait(60)
        return real(self, mel)

    def on_message(message):
        if b"transcript.text.delta" in message.get("body", b""):
            told.set()

    app = create_app(model_en, "random", sample_len=4, no_speech_threshold=None, **DETERMINISTIC, **options)
    monkeypatch.setattr(type(model_en), "embed_audio", embed_audio)
    sent = call(app, wav(noise(45)), on_message, stream="true")
    body = b"".join(message.get("body", b"") for message in sent).decode()
    events = [json.loads(line[6:]) for line in body.splitlines() if line]
    assert [event["type"] for event in events][-1] == "transcript.text.done"
    assert "".join(e["delta"] for e in events if e["type"] == "transcript.text.delta").strip() == events[-1]["text"]


def test_less_memory_means_smaller_batches(model_en, monkeypatch, batches):
    decode = BatchDecoder._decode_batch
    sizes = []

    def decode_batch(self, batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        sizes.append(len(batch))
        return decode(self, batch)

    monkeypatch.setattr(BatchDecoder, "_decode_batch", decode_batch)
    batches.go.set()
    with TestClient(create_app(model_en, "random", batch_size=8, sample_len=4, **DETERMINISTIC)) as client:
        with pytest.warns(UserWarning, match="out of memory: going on with batches of"):
            assert ask(client, wav(noise(140))).status_code == 200
        assert max(sizes) == 2


def test_one_that_fails_takes_no_other_along(model_en, monkeypatch, batches):
    real = BatchDecoder._add_segments

    def add_segments(self, job, *rest):
        if job.recording.mel.content_frames < 250:
            raise RuntimeError("something secret")
        return real(self, job, *rest)

    monkeypatch.setattr(BatchDecoder, "_add_segments", add_segments)
    app = create_app(model_en, "random", batch_size=4, sample_len=4, **DETERMINISTIC)
    with TestClient(app) as client:
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(ask, client, wav(noise(seconds))) for seconds in (2, 4, 5)]
            wait_for(lambda: len(app.state.engine.open) == 3)
            batches.go.set()
            found = [answer.result() for answer in answers]
        assert [one.status_code for one in found] == [500, 200, 200]
        assert found[0].json()["error"]["message"] == "the server failed (RuntimeError); its log says where"
        assert 'whisper_at_errors_total{kind="RuntimeError"} 1.0' in client.get("/metrics").text
