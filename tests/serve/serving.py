"""A server of nano.en in a process of its own, started by the command, and requests to it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import uvicorn

TRANSCRIPTIONS = "/v1/audio/transcriptions"


@contextlib.contextmanager
def served(*arguments: str, model: str = "nano.en") -> Iterator[tuple[str, subprocess.Popen]]:
    """Start a server; yield its address and process, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "whisper_at", "serve", "--model", model, "--device", "cpu", "--quiet"]
    process = subprocess.Popen([*command, "--port", str(port), *arguments], stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                assert json.load(urllib.request.urlopen(f"{address}/health"))["status"] == "ok"
                break
            except OSError:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.2)
        yield address, process
    finally:
        process.kill()
        process.wait(20)


def multipart(sound: bytes, **fields: str) -> tuple[bytes, str]:
    """Return a form with a file, and its content type."""
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields]
    head = "".join(parts) + '--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return head.encode() + sound + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


@contextlib.contextmanager
def in_thread(app) -> Iterator[str]:
    """Serve an application from a thread of this process; yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
