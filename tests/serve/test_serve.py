"""The HTTP server: OpenAI's routes by OpenAI's own client, what else sounds, and what is refused."""

from __future__ import annotations

import asyncio
import importlib
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import soundfile
import torch
from conftest import ROOT, noise
from fastapi.testclient import TestClient

import whisper_at
from whisper_at import cli
from whisper_at.ffmpeg_process import ffmpeg_binary
from whisper_at.serve import Limits, create_app
from whisper_at.serve.recordings import Recording
from whisper_at.serve.schemas import TranscriptionRequest
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import make_head

SAMPLE = ROOT / "sample" / "street.ogg"
TRANSCRIPTIONS = "/v1/audio/transcriptions"


def own_head(classes=("bell", "horn")):
    torch.manual_seed(3)
    head = make_head("mean_mlp", n_layer=2, rep_dim=64, label_dim=len(classes))
    head.classes = ClassSet(tuple(classes), temperature=2.0, thresholds=(0.1,) * len(classes))
    return head


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "some noise.wav"
    soundfile.write(path, noise(5), 16000)
    return path


@pytest.fixture
def post(model_en):
    """Post a file and fields to a server of a random model with its head and one of its own."""
    model_en.attach("mine", own_head())
    client = TestClient(create_app(model_en, "random", sample_len=12), raise_server_exceptions=False)

    def post(path, route=TRANSCRIPTIONS, **fields):
        fields = {name.replace("granularities", "granularities[]"): value for name, value in fields.items()}
        with open(path, "rb") as file:
            return client.post(route, data={"temperature": 1.0, **fields}, files={"file": (path.name, file)})

    post.client, post.model = client, model_en
    return post


def refusal(answer, status=400) -> str:
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


# --- what comes back ----------------------------------------------------------------------------------------


def test_the_text_is_that_of_transcribe(post, clip):
    """At temperature 1 a text is drawn: the same seed draws the same."""
    torch.manual_seed(0)
    expected = post.model.transcribe(str(clip), temperature=1.0, sample_len=12, at_time_res=None)
    torch.manual_seed(0)
    assert post(clip).json() == {"text": expected["text"].strip()}
    torch.manual_seed(0)
    told = post(clip, response_format="verbose_json").json()
    assert (told["text"], told["language"], told["task"]) == (expected["text"].strip(), "english", "transcribe")
    assert told["duration"] == 5.0
    assert "audio_tag" not in told
    assert "words" not in told
    assert [segment["tokens"] for segment in told["segments"]] == [s["tokens"] for s in expected["segments"]]
    torch.manual_seed(0)
    assert post(clip, response_format="text").text == expected["text"].strip() + "\n"


def test_own_heads_are_told_by_their_names(post, clip):
    torch.manual_seed(0)
    expected = post.model.transcribe(str(clip), temperature=1.0, sample_len=12, at_time_res=[0.4, 2])
    torch.manual_seed(0)
    told = post(clip, response_format="verbose_json", at_time_res="0.4,2", top_k=2, p_threshold=-9).json()
    assert told["at_time_res"] == [0.4, 2]
    assert told["mine"]["classes"] == ["bell", "horn"]
    found = [[tag["logit"] for tag in row["tags"] if tag["name"] == "bell"] for row in told["mine"]["rows"]["2.0"]]
    assert found == [[pytest.approx(float(row[0]), abs=1e-4)] for row in expected["mine"]["logits"][2.0]]
    assert len(told["audio_tag"]["0.4"]) == 13
    assert all(len(row["tags"]) <= 2 for row in told["audio_tag"]["0.4"])
    assert {"mine"} < {event["head"] for event in told["events"]}
    only = post(clip, response_format="verbose_json", include_classes="Dog; /m/04rlf", p_threshold=-9).json()
    assert only["at_time_res"] == 10.0
    assert {tag["name"] for row in only["audio_tag"] for tag in row["tags"]} == {"Dog", "Music"}
    models = post.client.get("/v1/models").json()["data"]
    assert models[0]["id"] == "random"
    assert models[0]["heads"]["mine"] == ["bell", "horn"]
    assert len(models[0]["heads"]["audio_tag"]) == 527


def test_captions_show_sounds_if_asked(post, clip):
    with_them = post(clip, response_format="srt", captions="sdh", p_threshold=-3)
    assert "[" in with_them.text
    assert "bell" in with_them.text
    plain = post(clip, response_format="vtt")
    assert "[" not in plain.text
    assert plain.headers["content-type"].startswith("text/vtt")


def test_words(post, clip):
    told = post(clip, response_format="verbose_json", timestamp_granularities=["word"]).json()
    assert "segments" not in told
    assert told["words"]
    assert all(word["word"] == word["word"].strip() and word["start"] <= word["end"] for word in told["words"])


def test_languages_and_translation(model_multilingual, clip):
    app = create_app(model_multilingual, "random", sample_len=4)
    client = TestClient(app)

    def told(route, **fields):
        with clip.open("rb") as file:
            fields |= {"temperature": 1.0, "response_format": "verbose_json"}
            return client.post(f"/v1/audio/{route}", data=fields, files={"file": file}).json()

    assert told("transcriptions", language="German")["language"] == "german"
    assert told("transcriptions", language="ca")["language"] == "catalan"
    assert told("transcriptions", language="pt-BR")["language"] == "portuguese"
    assert told("transcriptions", language="auto")["language"] in whisper_at.tokenizer.LANGUAGES.values()
    assert told("translations", language="de")["task"] == "translate"
    assert told("transcriptions")["language"] in whisper_at.tokenizer.LANGUAGES.values()


@pytest.mark.parametrize(
    ("fields", "timed"),
    [
        ([("timestamp_granularities", "word")], {"words"}),
        ([("timestamp_granularities[]", "word")], {"words"}),
        ([("timestamp_granularities", "word"), ("timestamp_granularities", "segment")], {"words", "segments"}),
        ([("timestamp_granularities[]", "word"), ("timestamp_granularities", "segment")], {"words", "segments"}),
        ([("timestamp_granularities", "word,segment")], {"words", "segments"}),
        ([("timestamp_granularities", '["word", "segment"]')], {"words", "segments"}),
        ([("timestamp_granularities[]", "")], {"segments"}),
        ([("timestamp_granularities", "")], {"segments"}),
        ([("timestamp_granularities", "[]")], {"segments"}),
        ([("timestamp_granularities[]", ""), ("timestamp_granularities[]", "word")], {"words"}),
        (
            [("temperature", ""), ("language", ""), ("prompt", ""), ("stream", ""), ("chunking_strategy", "auto")],
            {"segments"},
        ),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_what_is_timed_however_the_field_is_written(post, clip, fields, timed):
    parts = [(name, (None, value)) for name, value in [*fields, ("response_format", "verbose_json")]]
    told = post.client.post(TRANSCRIPTIONS, files=[*parts, ("file", ("a.wav", clip.read_bytes()))])
    assert told.status_code == 200, told.text
    assert told.json().keys() & {"words", "segments"} == timed


@pytest.mark.parametrize(
    "name",
    [
        *("", "random", "whisper-1", "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"),
        "gpt-4o-transcribe-2025-12-15",
    ],
)
def test_openais_names_mean_the_model_that_is_served(post, clip, name):
    assert post(clip, model=name).status_code == 200
    if name:
        model = post.client.get(f"/v1/models/{name}")
        assert (model.status_code, model.json()["id"], model.json()["object"]) == (200, name, "model")


@pytest.mark.parametrize("name", ["large-v9", "gpt-4o", "gpt-4o-transcribe-diarize", "whisper-10", "owner/model"])
def test_other_models_are_not_here(post, clip, name):
    assert "is not served here; 'random' is" in refusal(post(clip, model=name), 404)
    assert "is not served here; 'random' is" in refusal(post.client.get(f"/v1/models/{name}"), 404)


def test_a_model_whose_name_has_a_slash(model_en):
    client = TestClient(create_app(model_en, "owner/model"))
    assert client.get("/v1/models/owner/model").json()["id"] == "owner/model"


PATHS = {
    "/": "GET, HEAD, OPTIONS",
    "/docs": "GET, HEAD, OPTIONS",
    "/health": "GET, HEAD, OPTIONS",
    "/ready": "GET, HEAD, OPTIONS",
    "/page/app.js": "GET, HEAD, OPTIONS",
    "/v1/models": "GET, HEAD, OPTIONS",
    "/v1/models/whisper-1": "GET, HEAD, OPTIONS",
    "/openapi.json": "GET, HEAD, OPTIONS",
    TRANSCRIPTIONS: "OPTIONS, POST",
    "/v1/audio/translations": "OPTIONS, POST",
    "/v1/audio/classification": "OPTIONS, POST",
}


@pytest.mark.parametrize("path", PATHS)
def test_every_path_says_what_it_takes(post, path):
    answer = post.client.options(path)
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, PATHS[path], b"")
    assert "access-control-allow-origin" not in answer.headers
    head, get = post.client.head(path), post.client.get(path)
    assert head.status_code == get.status_code == (200 if "GET" in PATHS[path] else 405)
    assert (head.content, head.headers["content-length"]) == (b"", get.headers["content-length"])


def test_a_path_that_is_not_there_is_not_there_for_any_method(post):
    for method in ("OPTIONS", "HEAD", "GET", "POST"):
        assert post.client.request(method, "/v1/nothing").status_code == 404


@pytest.mark.parametrize("origins", [["https://a.org", "https://b.org"], ["*"]])
def test_pages_of_named_origins_may_read(model_en, clip, origins):
    client = TestClient(create_app(model_en, "random", cors=origins, sample_len=4))
    asks = {"Origin": "https://a.org", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    allowed = client.options(TRANSCRIPTIONS, headers=asks)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] in ("https://a.org", "*")
    assert "POST" in allowed.headers["access-control-allow-methods"]
    with clip.open("rb") as file:
        told = client.post(TRANSCRIPTIONS, files={"file": file}, headers={"Origin": "https://a.org"})
    assert told.headers["access-control-allow-origin"] in ("https://a.org", "*")
    if "*" not in origins:
        assert client.options(TRANSCRIPTIONS, headers=asks | {"Origin": "https://c.org"}).status_code == 400
    assert client.options(TRANSCRIPTIONS).headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("filename*=UTF-8''na%C3%AFve%20%E2%82%AC.wav", "naïve €.wav"),
        ("filename*=utf-8'en'a.wav", "a.wav"),
        ("filename*=iso-8859-1''na%EFve.wav", "naïve.wav"),
        ("filename*=\"UTF-8''a%22b.wav\"", "a_b.wav"),
        ("filename*=no-such-charset''a.wav", "a.wav"),
        ("filename=\"plain.wav\"; filename*=UTF-8''other.wav", "plain.wav"),
        ("FileName*=UTF-8''a.wav", "a.wav"),
    ],
)
def test_a_file_may_be_named_as_rfc_5987_says(post, clip, disposition, name):
    head = f'--b\r\nContent-Disposition: form-data; name="file"; {disposition}\r\n\r\n'.encode()
    headers = {"content-type": "multipart/form-data; boundary=b"}
    told = post.client.post(TRANSCRIPTIONS, content=head + clip.read_bytes() + b"\r\n--b--\r\n", headers=headers)
    assert told.status_code == 200, told.text
    told = post.client.post(TRANSCRIPTIONS, content=head + b"no sound" + b"\r\n--b--\r\n", headers=headers)
    assert refusal(told).startswith(f"Failed to load audio: {name}: ")


def test_a_file_without_a_name_is_told_how_to_come(post):
    told = post.client.post(TRANSCRIPTIONS, files={"file": (None, "RIFF")})
    assert refusal(told) == "file: it came as text; send it as a file that has a name (curl: -F file=@NAME)"


@pytest.mark.parametrize("prompt", ["<|endoftext|>", "a\0b", "🦜" * 5000, "word " * 10000])
def test_any_prompt_is_text(post, clip, prompt):
    assert post(clip, prompt=prompt).status_code == 200


def test_the_documentation_has_every_route_and_field_and_fetches_nothing(post):
    """FastAPI's own pages of documentation load scripts from elsewhere."""
    assert post.client.get("/redoc").status_code == 404
    page = post.client.get("/docs")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.findall(r"<script|https?://|@import", page.text)
    paths = post.client.get("/openapi.json").json()["paths"]
    assert paths.keys() >= {TRANSCRIPTIONS, "/v1/audio/classification", "/v1/models/{id}", "/metrics"}
    for path in paths:
        assert f" {path}</code>" in page.text
    for name, field in TranscriptionRequest.model_fields.items():
        assert f"<code>{field.alias or name}</code>" in page.text
    assert "json, text, srt, vtt, verbose_json, txt, tsv, labels" in page.text


def test_the_page(post):
    """It brings all that it shows: nothing is fetched from elsewhere, and it may not be; nothing in it is inline."""
    pending, seen = ["/"], set()
    while pending:
        path = pending.pop()
        seen.add(path)
        answer = post.client.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        text = answer.text.replace("http://www.w3.org/2000/svg", "").replace("from https:// and", "")
        assert not re.findall(r"https?://|@import|innerHTML|<script>|<style|\sstyle=|\son\w+=\"", text), path
        found = re.findall(
            r'(?:src|href)="(page/[^"]+)"|"(page/[\w-]+\.js)"|from "\./([^"]+)"|import "\./([^"]+)"', text
        )
        names = {name.removeprefix("page/") for names in found for name in names if name}
        pending += [path for path in (f"/page/{name}" for name in names) if path not in seen and path not in pending]
    folder = ROOT / "whisper_at" / "serve" / "page"
    assert seen == {"/"} | {f"/page/{file.name}" for file in folder.iterdir()} - {"/page/index.html"}
    assert post.client.get("/").headers["content-type"].startswith("text/html")
    assert post.client.get("/page/app.js").headers["content-type"].startswith("text/javascript")
    assert post.client.get("/page/../app.py").status_code == post.client.get("/page/%2e%2e%2fapp.py").status_code == 404


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"response_format": "mp3"}, "response_format: "),
        ({"temperature": "warm"}, "temperature: "),
        ({"temperature": 3}, "temperature: "),
        ({"temperature": "nan"}, "temperature: "),
        ({"language": "Elvish"}, "language: Whisper knows no language 'Elvish'"),
        ({"lang": "en"}, "lang: there is no such field; did you mean 'language'"),
        ({"timestamp_granularity": "word"}, "there is no such field; did you mean 'timestamp_granularities"),
        ({"language": "de"}, "knows English only, not german"),
        ({"at_time_res": "0.5", "response_format": "verbose_json"}, "at_time_res: .*0.4"),
        ({"at_time_res": "often", "response_format": "verbose_json"}, "at_time_res: .*'often'"),
        ({"at_time_res": "2"}, "response_format=verbose_json, not json"),
        ({"captions": "sdh"}, "srt or vtt"),
        ({"timestamp_granularities": "word"}, "response_format=verbose_json"),
        ({"timestamp_granularities": "letter"}, "timestamp_granularities"),
        ({"include_classes": "Doog", "response_format": "verbose_json"}, "Doog.*did you mean"),
        ({"p_threshold": "nan"}, "p_threshold: "),
        ({"top_k": 0}, "top_k: "),
        ({"stream": "true", "response_format": "srt"}, "stream: events are JSON"),
    ],
)
def test_what_cannot_be_done_is_refused_unheard(post, clip, fields, says, monkeypatch):
    monkeypatch.setattr(Recording, "open", lambda *_: pytest.fail("it was heard"))
    assert re.search(says, refusal(post(clip, **fields)))


def test_bad_files(post, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for name, content in {
        "empty.wav": b"",
        "text.mp3": b"no sound " * 99,
        "list.m3u8": b"#EXTM3U\nhttp://x/y.ts\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        message = refusal(post(tmp_path / name))
        assert message.startswith(f"Failed to load audio: {name}: ")
        assert "temporary" not in message
    assert not list((tmp_path / "temporary").iterdir())
    assert "file: " in refusal(post.client.post(TRANSCRIPTIONS, data={}))
    assert "file: " in refusal(post.client.post(TRANSCRIPTIONS, data={"file": "a name"}))
    assert "file: " in refusal(post.client.post(TRANSCRIPTIONS, json={"file": 1}))
    assert refusal(post.client.get("/v1/nothing"), 404) == "Not Found"


def test_a_truncated_file_gives_what_it_holds(post, clip, tmp_path):
    (tmp_path / "half.wav").write_bytes(clip.read_bytes()[:80044])
    assert post(tmp_path / "half.wav", response_format="verbose_json").json()["duration"] == 2.5


def test_a_model_without_heads(model_en, clip):
    model_en.head = None
    client = TestClient(create_app(model_en, "random", sample_len=4))
    fields = {"response_format": "verbose_json", "at_time_res": "10"}
    with clip.open("rb") as file:
        assert "cannot tag sounds" in refusal(client.post(TRANSCRIPTIONS, data=fields, files={"file": file}))
    assert client.get("/v1/models").json()["data"][0]["heads"] == {}


def test_a_track_of_a_video(post, clip):
    film = clip.with_name("film.mkv")
    soundfile.write(clip.with_name("short.wav"), noise(2, seed=1), 16000)
    inputs = ["-i", clip, "-i", clip.with_name("short.wav"), "-map", "0", "-map", "1", "-c:a", "flac"]
    subprocess.run(
        [ffmpeg_binary(), "-nostdin", "-v", "error", *inputs, "-metadata:s:a:1", "language=ger", film], check=True
    )
    with pytest.warns(UserWarning, match="has 2 audio tracks"):
        assert post(film, response_format="verbose_json").json()["duration"] == pytest.approx(5)
    for track in ("2", "de"):
        answer = post(film, response_format="verbose_json", audio_track=track)
        assert answer.json()["duration"] == pytest.approx(2)
    message = "film.mkv: there is no audio_track '3': its audio tracks are 1, 2 (German)"
    assert refusal(post(film, audio_track="3")) == message


def test_too_much(model_en, clip):
    client = TestClient(create_app(model_en, "random", Limits(megabytes=0.1, minutes=0.05)))
    small = clip.with_name("small.ogg")
    soundfile.write(small, noise(4), 16000)

    def ask(path, **options):
        with path.open("rb") as file:
            return client.post(TRANSCRIPTIONS, files={"file": file}, **options)

    assert refusal(ask(clip), 413) == "requests are of 0.1 MB at most"
    body = iter([b"--b\r\n", b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n', *[b"x" * 50000] * 9])
    headers = {"content-type": "multipart/form-data; boundary=b"}  # and no length
    assert refusal(client.post(TRANSCRIPTIONS, content=body, headers=headers), 413) == "requests are of 0.1 MB at most"
    assert refusal(ask(small), 413) == "small.ogg is longer than 0.05 minutes"


def test_a_failure_of_the_model(post, clip, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("something secret")

    monkeypatch.setattr(type(post.model), "embed_audio", fail)
    assert refusal(post(clip), 500) == "the server failed (RuntimeError); its log says where"
    monkeypatch.undo()
    assert post(clip).status_code == 200  # and goes on


def test_who_has_gone_is_not_waited_upon(model_en, clip, monkeypatch):
    heard = []
    monkeypatch.setattr(type(model_en), "embed_audio", lambda *_: heard.append(1))
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    messages = [
        {"type": "http.request", "body": head + clip.read_bytes() + b"\r\n--b--\r\n", "more_body": False},
        {"type": "http.disconnect"},
    ]
    sent = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": TRANSCRIPTIONS, "headers": headers, "query_string": b""}
    asyncio.run(create_app(model_en, "random")(scope, receive, send))
    assert sent[0]["status"] == 499
    assert heard == []


# --- the command --------------------------------------------------------------------------------------------


def test_arguments(capsys):
    for arguments, says in {
        ("--model", "nano.en", "--batch_size", "-2"): "'-2' is not a number from 1",
        ("--model", "nano.en", "--model", "nano.en"): "two models would have one name",
        ("--model", "nano.en", "--threads", "-1"): "'-1' is not a number from 1",
        (): "--model",
    }.items():
        with pytest.raises(SystemExit):
            cli.main(["serve", *arguments])
        assert says in capsys.readouterr().err
    assert cli.main(["serve", "--model", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err


def test_arguments_reach_model_and_server(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setenv("WHISPER_AT_API_KEY", "third, fourth")
    serve_cli = importlib.import_module("whisper_at.cli.serve")
    model_with_head = SimpleNamespace(heads={"audio_tag": None})
    monkeypatch.setattr(
        serve_cli, "load_model", lambda name, **options: asked.update(model=name, **options) or model_with_head
    )
    monkeypatch.setattr(serve_cli, "create_app", lambda _, name, limits, **options: (name, limits, options))
    monkeypatch.setattr(serve_cli.uvicorn, "run", lambda app, **options: asked.update(app=app, **options))
    (tmp_path / "mine.pt").touch()
    (tmp_path / "b.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    model = str(tmp_path / "mine.pt")
    arguments = (
        "--device cpu --compute_type int8 --head auto --head b.safetensors --batch_size 4 --beam_size 5 --port 9"
    )
    limits = (
        "--max_megabytes 5 --max_minutes 1 --max_waiting 0 --max_per_client 3 --max_live 2 --host 0.0.0.0 "
        "--cors https://a.org --cors https://b.org --api_key one --api_key two --strict_models"
    )
    assert cli.main(["serve", "--model", model, *arguments.split(), *limits.split()]) == 0
    assert asked["model"] == model
    assert asked["head"] == ["auto", "b.safetensors"]
    assert asked["compute_type"] == "int8"
    options = {"batch_size": 4, "beam_size": 5, "cors": ["https://a.org", "https://b.org"], "more_models": {}}
    options |= {"api_keys": ["one", "two", "third", "fourth"], "strict_models": True}
    assert asked["app"] == ("mine.pt", Limits(5, 1, 0, 3, 2), options)
    assert (asked["host"], asked["port"]) == ("0.0.0.0", 9)
    assert cli.main(["serve", "--model", model]) == 0
    assert asked["head"] == "auto"
    assert asked["app"][2]["batch_size"] == 8
    assert cli.main(["serve", "--model", model, "--batch_size", "0"]) == 0
    assert "batch_size" not in asked["app"][2]
    heads = "--head mine.pt=b.safetensors --head tiny.en=open.tiny.en"
    assert cli.main(["serve", "--model", "tiny.en", "--model", model, *heads.split()]) == 0
    assert (asked["model"], asked["head"], asked["app"][0]) == (model, ["b.safetensors"], "tiny.en")
    assert asked["app"][2]["more_models"] == {"mine.pt": model_with_head}
    assert cli.main(["serve", "--model", model, "--head", "none"]) == 0
    assert asked["head"] is None


def test_a_port_that_is_taken(served):
    port = served.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "whisper_at", "serve", "--model", "nano.en", "--port", port, "--device", "cpu"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert "address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "whisper_at.cli.serve", raising=False)
    assert cli.main(["serve", "--model", "nano.en"]) == 1
    assert 'pip install ".[serve]"' in capsys.readouterr().err
