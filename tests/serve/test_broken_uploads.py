"""Files and requests that are not what they say: a clear answer, and the server goes on."""

from __future__ import annotations

import json
import socket
import struct
import urllib.error
import urllib.request
import wave

import numpy as np
import pytest
import serving
import soundfile
from conftest import noise

MAX_MEGABYTES = 2


@pytest.fixture(scope="module")
def server():
    with serving.served("--max_megabytes", str(MAX_MEGABYTES), "--max_minutes", "2") as (address, process):
        yield address
        assert process.poll() is None


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "a.wav"
    soundfile.write(path, noise(2), 16000)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _it_still_serves(server, sound):
    yield
    assert post(server, sound)[0] == 200
    assert json.load(urllib.request.urlopen(f"{server}/health"))["recordings"] == 0


def post(server, content, **fields):
    body, content_type = serving.multipart(content, **fields)
    request = urllib.request.Request(server + serving.TRANSCRIPTIONS, body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]


def encoded(samples, format, **options):
    import io

    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format=format, **options)
    return file.getvalue()


def with_header_of(seconds, sound):
    """A wave file that says that it is longer than it is."""
    size = seconds * 32000
    return b"RIFF" + struct.pack("<I", size + 36) + sound[8:40] + struct.pack("<I", size) + sound[44:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no sound " * 200,
        b"\0" * 1_000_000,
        b"RIFF\0\0\0\0WAVE",
        b"RIFF" * 1000,
        b"ID3\4\0\0\0\0\0\0" + b"\xff" * 50,
        b"<!doctype html><html></html>",
        b"#EXTM3U\nhttp://127.0.0.1/a.ts\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ],
    ids=["empty", "text", "zeros", "header", "headers", "mp3 of nothing", "page", "playlist", "list of files"],
)
def test_what_is_no_sound(server, content):
    status, says = post(server, content)
    assert status == 400
    assert says.startswith("Failed to load audio: a.wav: ")
    assert "/tmp" not in says


def test_a_film_cut_off_before_its_index(server, sound):
    assert post(server, encoded(noise(5), "FLAC")[:30])[0] == 400


def test_a_truncated_recording_is_what_there_is_of_it(server, sound):
    status, told = post(server, sound[:32044], response_format="verbose_json")
    assert (status, told["duration"]) == (200, 1.0)


def test_a_header_of_ten_hours_is_not_believed(server, sound):
    status, told = post(server, with_header_of(36000, sound), response_format="verbose_json")
    assert (status, told["duration"]) == (200, 2.0)


def test_hours_in_few_bytes_are_too_long(server):
    silence = encoded(np.zeros(16000 * 600, np.float32), "FLAC")
    assert len(silence) < 1_000_000
    assert post(server, silence) == (413, "a.wav is longer than 2 minutes")


def test_eight_channels(server):
    channels = np.stack([noise(2, seed) for seed in range(8)], axis=1)
    status, told = post(server, encoded(channels, "WAV"), response_format="verbose_json")
    assert (status, told["duration"]) == (200, 2.0)


def test_samples_that_are_no_numbers(server):
    samples = noise(2)
    samples[5000] = np.nan
    assert post(server, encoded(samples, "WAV", subtype="FLOAT"))[0] in (200, 400)  # ffmpeg may make numbers of them


def test_rates_that_nobody_uses(server, tmp_path):
    with wave.open(str(tmp_path / "slow.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(1)
        file.writeframes(b"\x80" * 90)
    status, _ = post(server, (tmp_path / "slow.wav").read_bytes())
    assert status in (200, 400)


# --- requests that lie ---------------------------------------------------------------------------------------


def talk(server, head, body=b"", then_close=False, headers=()):
    """Send a request byte for byte; return what comes back, and leave before that if told to."""
    address = server.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as connection:
        lines = ["POST /v1/audio/transcriptions HTTP/1.1", "Host: a", "Connection: close", *head, *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode() + body)
        if then_close:
            return b""
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def test_a_length_that_is_too_small(server, sound):
    body, kind = serving.multipart(sound)
    found = talk(server, [f"Content-Type: {kind}", "Content-Length: 1000"], body)
    assert found.startswith(b"HTTP/1.1 400")
    assert b'"error"' in found


@pytest.mark.parametrize("part", [1.0, 0.5, 0.0])
def test_a_client_that_sends_less_than_it_said_and_goes(server, sound, part):
    body, kind = serving.multipart(sound)
    head = [f"Content-Type: {kind}", f"Content-Length: {len(body) + 1000}"]
    assert b"HTTP/1.1 200" not in talk(server, head, body[: int(len(body) * part)], then_close=True)


def test_a_length_that_is_too_large_for_the_server(server):
    found = talk(server, ["Content-Type: multipart/form-data; boundary=b", "Content-Length: 99999999999"], b"--b\r\n")
    assert found.startswith(b"HTTP/1.1 413")  # although no more of it comes
    body, kind = serving.multipart(b"x" * (MAX_MEGABYTES * 1_000_000 + 10))
    found = talk(server, [f"Content-Type: {kind}", f"Content-Length: {len(body)}"], body)
    assert found.startswith(b"HTTP/1.1 413")
    assert b"requests are of 2 MB at most" in found


def test_a_length_that_is_no_number(server):
    assert talk(server, ["Content-Length: many"]).startswith(b"HTTP/1.1 400")


def test_a_client_that_expects_to_be_asked_is_told_at_once(server):
    head = ["Content-Type: multipart/form-data; boundary=b", "Content-Length: 5000000", "Expect: 100-continue"]
    found = talk(server, head)
    assert found.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--b\r\n"),
        ("multipart/form-data; boundary=b", b"--c\r\n\r\n--c--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx',
        ),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        ("application/json", b"{"),
        ("application/x-www-form-urlencoded", b"file=%ff"),
        ("text/plain", b"\0\xff"),
    ],
)
def test_bodies_that_are_no_forms(server, kind, body):
    found = talk(server, [f"Content-Type: {kind}", f"Content-Length: {len(body)}"], body)
    assert found.startswith(b"HTTP/1.1 400")
    assert b'"error"' in found
