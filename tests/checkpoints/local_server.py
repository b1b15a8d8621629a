"""A web server on this machine, from which downloads are tested."""

from __future__ import annotations

import hashlib
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import whisper_at.checkpoints.download as downloads

DATA = bytes(range(256)) * 1200  # 300 KiB


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; the first part of a path says how."""

    def do_GET(self):
        how, _, file = self.path.lstrip("/").partition("/")
        asked = self.headers.get("Range")
        self.server.log.append((how, asked))
        if how == "held":
            self.server.go.wait(30)
        data = self.server.files.get(file)
        if data is None:
            return self.send_error(404)
        start = 0
        if asked and how != "whole":
            start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            shift = 7 if how == "shifted" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", "text/html" if how == "page" else "application/octet-stream")
        if how != "unmeasured":
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + 100_000] if how == "cut" else data[start:])

    def log_message(self, *_):
        pass


@contextmanager
def local_server():
    """Serve DATA as `f.bin`; `log` has the way and the range of every request."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {"f.bin": DATA}
    server.log = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def isolate(tmp_path: Path, monkeypatch) -> None:
    """Hide the user's downloads and the network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    real = downloads.urllib.request.urlopen

    def here_only(request, *args, **kwargs):
        assert request.host.startswith("127.0.0.1"), f"a test reaches for {request.full_url}"
        return real(request, *args, **kwargs)

    monkeypatch.setattr(downloads.urllib.request, "urlopen", here_only)


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())
