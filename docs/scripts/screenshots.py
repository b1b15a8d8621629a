"""Take the pictures of the page and of the terminal in docs/images, of real runs on the sample.

Run it where Chromium and the weights of base are: ``pip install playwright pyte``, then
``python docs/scripts/screenshots.py``.
"""

from __future__ import annotations

import io
import os
import pty
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from html import escape
from pathlib import Path

import pyte
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from whisper_at.audio import ffmpeg_binary

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
SAMPLE = ROOT / "sample" / "reading.ogg"
MODEL = ("--model", "base", "--head", "open.base", "--device", "cpu")
PATIENCE_MS = 300_000
COLUMNS, ROWS = 92, 16
MAX_BYTES = 150_000
STYLE = """
body{margin:0;background:#12151a}.dim{color:#8a94a3}.prompt{color:#7ea6ff}
pre{margin:0;padding:18px 22px;font:15px/1.45 'DejaVu Sans Mono',monospace;color:#e6e9ee;display:inline-block}
"""


def save(picture: bytes, name: str) -> None:
    """Write a picture with 256 colours."""
    path = IMAGES / name
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < MAX_BYTES, f"{path} has {path.stat().st_size} bytes"
    print(path)


def take_page(browser: Browser, address: str) -> None:
    """Take a recording that plays, in light colours."""
    page = open_page(browser, address, "light", {"width": 1180, "height": 1120})
    page.set_input_files("#file", SAMPLE)
    page.wait_for_selector(".format")
    play = "() => { const player = document.querySelector('#player'); player.currentTime = 26.3; return player.play() }"
    page.evaluate(play)
    page.wait_for_timeout(900)
    page.evaluate("document.querySelector('#player').pause()")
    page.mouse.move(963, 605)
    page.wait_for_timeout(300)
    save(page.screenshot(), "page.png")
    page.close()


def take_live(browser: Browser, address: str) -> None:
    """Take the live tab, in dark colours."""
    page = open_page(browser, address, "dark", {"width": 1180, "height": 460})
    page.click("#tab-live")
    page.click("#listen")
    page.wait_for_timeout(34_000)
    save(page.screenshot(), "page-live.png")
    page.click("#listen")
    page.wait_for_selector("#live-actions:not([hidden])")
    page.close()


def open_page(browser: Browser, address: str, colours: str, size: dict[str, int]) -> Page:
    """Return a page with English chosen."""
    page = browser.new_page(viewport=size, color_scheme=colours)
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.wait_for_selector("#model option", state="attached")
    page.select_option("#language", "en")
    return page


def take_terminal(browser: Browser) -> None:
    """Take `whisper-at live` on a terminal at a moment when some words are not final."""
    command = ["live", str(SAMPLE.relative_to(ROOT)), "--model", "base", "--head", "open.base", "--language", "en"]
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    best = ""
    main, other = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "whisper_at", *command],
        stdout=other,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment,
    )
    os.close(other)
    while process.poll() is None or select.select([main], [], [], 0)[0]:
        if select.select([main], [], [], 0.5)[0]:
            try:
                stream.feed(dim_as_italics(os.read(main, 65536)))
            except OSError:  # the other end is closed
                break
            shown = as_html(screen)
            if "dim" in shown and len(shown) > 0.8 * len(best):
                best = shown
    prompt = f'<span class="prompt">$</span> whisper-at {escape(" ".join(command))}\n'
    page = browser.new_page(viewport={"width": 900, "height": 600})
    page.set_content(f"<style>{STYLE}</style><pre>{prompt}{best}</pre>")
    save(page.locator("pre").screenshot(), "live-terminal.png")
    page.close()


def dim_as_italics(output: bytes) -> bytes:
    """Pyte knows no dim letters."""
    return output.replace(b"\x1b[2m", b"\x1b[3m").replace(b"\n", b"\r\n").replace(b"\r\r", b"\r")


def as_html(screen: pyte.Screen) -> str:
    """Return the lines of a screen, dim letters in spans."""
    lines = []
    for y in range(screen.lines):
        cells = [screen.buffer[y][x] for x in range(screen.columns)]
        line = "".join(
            f'<span class="dim">{escape(cell.data)}</span>' if cell.italics else escape(cell.data) for cell in cells
        )
        lines.append(line.rstrip())
    return "\n".join(lines).rstrip()


def main() -> None:
    """Take all pictures."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        microphone = Path(folder, "microphone.wav")
        convert = [ffmpeg_binary(), "-v", "error", "-i", str(SAMPLE), "-ar", "48000", "-ac", "1", str(microphone)]
        subprocess.run(convert, check=True)
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--mute-audio"]
        switches += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        switches += [f"--use-file-for-fake-audio-capture={microphone}"]
        browser = playwright.chromium.launch(executable_path=chromium, args=switches)
        wanted = sys.argv[1:] or ["terminal", "page", "live"]
        if "terminal" in wanted:
            take_terminal(browser)
        serve = [sys.executable, "-m", "whisper_at", "serve", *MODEL, "--port", str(port), "--quiet"]
        server = subprocess.Popen(serve, cwd=ROOT)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"{address}/health")
                    break
                except OSError:
                    time.sleep(0.5)
            if "page" in wanted:
                take_page(browser, address)
            if "live" in wanted:
                take_live(browser, address)
        finally:
            server.terminate()
            server.wait()
        browser.close()


if __name__ == "__main__":
    main()
