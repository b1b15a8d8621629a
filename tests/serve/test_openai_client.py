"""OpenAI's own client: everything that it can ask of recordings, and what it makes of refusals."""

from __future__ import annotations

import asyncio
import re

import openai
import pytest
import serving
import soundfile
from conftest import ROOT, noise
from starlette.exceptions import HTTPException

import whisper_at
from whisper_at.serve import Limits, create_app

SAMPLE = ROOT / "sample" / "street.ogg"


@pytest.fixture
def clip(tmp_path):
    soundfile.write(tmp_path / "noise.wav", noise(4), 16000)
    return tmp_path / "noise.wav"


def client_of(address, **options):
    return openai.OpenAI(base_url=f"{address}/v1", **{"api_key": "none", "max_retries": 0, **options})


def test_openais_client(served, tmp_path):
    """The official client, in the formats it knows, against `transcribe` itself."""
    client = openai.OpenAI(base_url=f"{served}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["nano.en"]

    def ask(path=SAMPLE, **options):
        with open(path, "rb") as file:
            return client.audio.transcriptions.create(file=file, model="whisper-1", **options)

    told = ask(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert told.language == "english"
    assert told.duration == pytest.approx(56, abs=0.1)
    assert "open the door" in told.text
    assert len(told.segments) >= 5
    assert {"rain", "door."} <= {word.word for word in told.words}
    assert all(0 <= word.start <= word.end <= 56 for word in told.words)
    start = tmp_path / "start.wav"
    soundfile.write(start, whisper_at.load_audio(str(SAMPLE))[: 10 * 16000], 16000)
    assert "open the door" in ask(start).text
    assert "open the door" in ask(start, response_format="text")
    assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\nThe rain", ask(start, response_format="srt"))
    assert ask(start, response_format="vtt").startswith("WEBVTT\n\n")
    sounds = ask(response_format="verbose_json", extra_body={"at_time_res": "4", "include_classes": "Speech; Rain"})
    assert {event["name"] for event in sounds.events} == {"Speech", "Rain"}
    with pytest.raises(openai.NotFoundError, match="'large-v9' is not served here; 'nano.en' is"):
        client.audio.transcriptions.create(file=SAMPLE, model="large-v9")
    with pytest.raises(openai.BadRequestError, match="English only"):
        client.audio.translations.create(file=SAMPLE, model="whisper-1")


def test_translations(model_multilingual, clip):
    with serving.in_thread(create_app(model_multilingual, "random", sample_len=4)) as address:
        create = client_of(address).audio.translations.create
        told = create(file=clip, model="whisper-1", response_format="verbose_json", temperature=1)
        assert (told.duration, told.task) == (4, "translate")
        assert create(file=clip, model="whisper-1", prompt="One.", temperature=1).text is not None
        for format in ("text", "srt", "vtt"):
            assert isinstance(create(file=clip, model="whisper-1", response_format=format, temperature=1), str)


def test_every_field_of_the_client_is_taken(model_en, clip):
    fields = {
        "chunking_strategy": {"type": "server_vad", "threshold": 0.5},
        "include": ["logprobs"],
        "keywords": ["door"],
        "known_speaker_names": ["a"],
        "known_speaker_references": ["data:audio/wav;base64,AA=="],
        "language": "en-US",
        "languages": ["en"],
        "prompt": "A door.",
        "temperature": 1,
        "timestamp_granularities": ["word"],
        "response_format": "verbose_json",
    }
    with serving.in_thread(create_app(model_en, "random", sample_len=4)) as address:
        raw = client_of(address).audio.transcriptions.with_raw_response.create(
            file=clip, model="gpt-4o-transcribe", **fields
        )
        ignored = raw.headers["x-ignored-fields"]
        for name in ("chunking_strategy", "include", "keywords", "known_speaker_names", "languages"):
            assert name in ignored
        assert raw.parse().words
        with client_of(address).audio.transcriptions.with_streaming_response.create(
            file=("named.wav", clip.read_bytes(), "audio/wav"), model="random"
        ) as response:
            assert b"text" in b"".join(response.iter_bytes())


def test_the_asynchronous_client(served):
    async def ask():
        client = openai.AsyncOpenAI(base_url=f"{served}/v1", api_key="none")
        create = client.audio.transcriptions.create
        whole = await asyncio.gather(*(create(file=SAMPLE, model="whisper-1") for _ in range(3)))
        stream = await create(file=SAMPLE, model="gpt-4o-transcribe", stream=True)
        return [one.text for one in whole], [event async for event in stream]

    texts, events = asyncio.run(ask())
    assert texts == [events[-1].text] * 3


def test_errors_are_the_clients_own(model_en, clip):
    app = create_app(model_en, "random", Limits(waiting=0, megabytes=0.1), api_keys=["right"], sample_len=4)
    with serving.in_thread(app) as address:
        client = client_of(address, api_key="right")
        with pytest.raises(openai.AuthenticationError, match="no key, or an unknown one"):
            client_of(address, api_key="wrong").audio.transcriptions.create(file=clip, model="")
        with pytest.raises(openai.NotFoundError, match="is not served here"):
            client.models.retrieve("gpt-4o-transcribe-diarize")
        with pytest.raises(openai.BadRequestError, match="Failed to load audio: a.wav"):
            client.audio.transcriptions.create(file=("a.wav", b"no sound"), model="")
        with pytest.raises(openai.NotFoundError):
            client.audio.speech.create(input="a", model="tts-1", voice="alloy")
        with pytest.raises(openai.APIStatusError, match=r"requests are of 0.1 MB at most") as told:
            client.audio.transcriptions.create(file=("a.wav", bytes(10_000_000)), model="")
        assert told.value.status_code == 413
        assert client.models.retrieve("whisper-1").id == "whisper-1"


def test_the_client_comes_again_when_it_is_told_to(model_en, clip):
    """A server that is full refuses with Retry-After, and the client's own retries get through."""
    app = create_app(model_en, "random", sample_len=4)
    refusals, real = [], app.state.check_room

    def check_room(request):
        if len(refusals) < 2:
            refusals.append(1)
            raise HTTPException(503, "too many recordings are waiting; try again later", {"Retry-After": "0"})
        real(request)

    app.state.check_room = check_room
    with serving.in_thread(app) as address:
        assert client_of(address, max_retries=2).audio.transcriptions.create(file=clip, model="").text is not None
    assert len(refusals) == 2
