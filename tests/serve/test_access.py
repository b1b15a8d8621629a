"""Keys, several models, ignored fields, sounds alone, figures, and what the server says of itself."""

from __future__ import annotations

import pytest
import serving
import soundfile
from conftest import noise
from fastapi.testclient import TestClient

from whisper_at.serve import create_app

CLASSIFICATION = "/v1/audio/classification"


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "noise.wav"
    soundfile.write(path, noise(5), 16000)
    return path


def post(client, path, route=serving.TRANSCRIPTIONS, headers=None, **fields):
    with path.open("rb") as file:
        return client.post(route, data={"temperature": 1.0, **fields}, files={"file": file}, headers=headers)


def message(answer, status):
    assert answer.status_code == status
    return answer.json()["error"]["message"]


@pytest.fixture
def guarded(model_en):
    return TestClient(create_app(model_en, "random", api_keys=["first", "sécond"], cors=["*"], sample_len=4))


@pytest.mark.parametrize(
    "header", [None, "first", "Bearer", "Bearer ", "Bearer none", "Bearer firs", "Basic first", "Bearer first2"]
)
def test_without_a_key_nothing_is_heard(guarded, clip, header):
    headers = {"Authorization": header} if header else {}
    answer = post(guarded, clip, headers=headers)
    assert "send Authorization: Bearer KEY" in message(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"
    for path in ("/v1/models", "/v1/models/random", "/metrics", "/v1/nothing"):
        assert guarded.get(path, headers=headers).status_code == 401
    for path in ("/", "/health", "/ready", "/docs", "/openapi.json"):
        assert guarded.get(path, headers=headers).status_code == 200
    preflight = {"Origin": "https://a.org", "Access-Control-Request-Method": "POST"}
    assert guarded.options(serving.TRANSCRIPTIONS, headers=preflight).status_code == 200
    assert post(guarded, clip, headers={**headers, "Origin": "https://a.org"}).headers["access-control-allow-origin"]


def test_any_of_the_keys_will_do(guarded, clip):
    for key in ("first", "sécond"):
        assert post(guarded, clip, headers={"Authorization": f"bearer {key}".encode()}).status_code == 200


def test_several_models(model_en, model_multilingual, clip):
    client = TestClient(create_app(model_en, "english", more_models={"any/language": model_multilingual}, sample_len=4))
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["english", "any/language"]
    assert client.get("/v1/models/any/language").json()["id"] == "any/language"
    wanted = {"language": "de", "response_format": "verbose_json"}
    assert post(client, clip, model="any/language", **wanted).json()["language"] == "german"
    for name in ("", "whisper-1", "english"):
        assert "knows English only" in message(post(client, clip, model=name, **wanted), 400)
    says = "model: 'other' is not served here; 'english' and 'any/language' are"
    assert message(post(client, clip, model="other"), 404) == says


def test_strict_models(model_en, clip):
    client = TestClient(create_app(model_en, "random", strict_models=True, sample_len=4))
    for name, status in {"whisper-1": 404, "gpt-4o-transcribe": 404, "random": 200, "": 200}.items():
        assert post(client, clip, model=name).status_code == status
    assert client.get("/v1/models/whisper-1").status_code == 404


def test_fields_that_mean_nothing_here_are_named_in_a_header(model_en, clip):
    client = TestClient(create_app(model_en, "random", sample_len=4))
    fields = {"include[]": "logprobs", "chunking_strategy[type]": "server_vad", "languages": "en", "vad_filter": "1"}
    answer = post(client, clip, **fields, **{"naïve\r\nX: y": "1"})
    assert answer.status_code == 200
    expected = "include[], chunking_strategy[type], languages, vad_filter, na%C3%AFve%250D%250AX%3A%20y"
    assert answer.headers["x-ignored-fields"] == expected
    assert "x-ignored-fields" not in post(client, clip).headers


# --- sounds alone -------------------------------------------------------------------------------------------


def test_sounds_alone_are_those_of_tag(model_en, clip):
    client = TestClient(create_app(model_en, "random"))
    told = post(client, clip, CLASSIFICATION, model="whisper-1", threshold=0, top_k=7).json()
    assert (told["model"], told["duration"]) == ("whisper-1", 5.0)
    found = told["detections"]
    assert len(found) == 7
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True)
    result = model_en.tag(str(clip), at_time_res=1.2)  # rows that decide on events
    best = result["audio_tag"].max(0).values.sigmoid()
    for one in found:
        assert one["score"] == pytest.approx(float(best[one["index"]]), abs=1e-4)
        assert 0 <= one["onset"] < one["offset"] <= 5
        assert set(one) == {"index", "label", "score", "onset", "offset"}
    some = post(client, clip, CLASSIFICATION, threshold=0.6, include_classes="Dog; /m/04rlf").json()["detections"]
    assert all(one["score"] > 0.6 and one["label"] in ("Dog", "Music") for one in some)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"threshold": 2}, "threshold: "),
        ({"top_k": -1}, "top_k: "),
        ({"at_time_res": 0.5}, "at_time_res: .*0.4"),
        ({"include_classes": "Doog"}, "did you mean"),
        ({"treshold": 1}, "did you mean 'threshold'"),
    ],
)
def test_sounds_that_cannot_be_told(model_en, clip, fields, says):
    import re

    client = TestClient(create_app(model_en, "random"))
    assert re.search(says, message(post(client, clip, CLASSIFICATION, **fields), 400))


def test_sounds_alone_need_a_head(model_en, clip):
    model_en.head = None
    client = TestClient(create_app(model_en, "random"))
    assert "Have the server started with one" in message(post(client, clip, CLASSIFICATION), 400)


# --- figures ------------------------------------------------------------------------------------------------


def test_figures(model_en, clip):
    client = TestClient(create_app(model_en, "random", sample_len=4))
    post(client, clip)
    post(client, clip, model="large-v9")
    post(client, clip, CLASSIFICATION)
    client.get("/v1/nothing/at/all")
    client.head("/health")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in [
        'whisper_at_requests_total{route="/v1/audio/transcriptions",status="200"} 1.0',
        'whisper_at_requests_total{route="/v1/audio/transcriptions",status="404"} 1.0',
        'whisper_at_requests_total{route="/v1/audio/classification",status="200"} 1.0',
        'whisper_at_requests_total{route="other",status="404"} 1.0',
        'whisper_at_requests_total{route="/health",status="200"} 1.0',
        "whisper_at_audio_seconds_total 10.0",
        'whisper_at_recordings{state="open"} 0.0',
        'whisper_at_request_seconds_count{route="/v1/audio/transcriptions"} 2.0',
    ]:
        assert line in answer.text.splitlines()
    work = [line for line in answer.text.splitlines() if line.startswith("whisper_at_work_seconds_total")]
    assert float(work[0].split()[1]) > 0
