"""A server that is told to stop finishes what it has accepted."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import serving
import soundfile
from conftest import ROOT

import whisper_at


def test_sigterm(tmp_path):
    audio = whisper_at.load_audio(str(ROOT / "sample" / "street.ogg"))
    soundfile.write(tmp_path / "long.flac", np.tile(audio, 4), 16000)
    body, kind = serving.multipart((tmp_path / "long.flac").read_bytes(), response_format="text")
    with serving.served() as (address, process), ThreadPoolExecutor(2) as pool:

        def ask():
            request = urllib.request.Request(address + serving.TRANSCRIPTIONS, body, {"Content-Type": kind})
            return urllib.request.urlopen(request, timeout=120).read().decode()

        def health():
            return json.load(urllib.request.urlopen(f"{address}/health", timeout=10))["recordings"]

        def watch():
            while True:
                health()
                time.sleep(0.02)

        answers = [pool.submit(ask) for _ in range(2)]
        while health() < 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            watch()
        assert process.poll() is None  # it is still at work
        texts = [answer.result() for answer in answers]
        assert texts[0] == texts[1]
        assert texts[0].count("open the door") >= 3
        process.wait(30)
        assert "Traceback" not in process.stderr.read()
