"""The page in a real Chromium: recordings, words, timeline, filters, files, the microphone, keys, narrow screens."""

from __future__ import annotations

import io
import math
import shutil

import numpy as np
import pytest
import serving
import soundfile
from conftest import ROOT

import whisper_at
from whisper_at import find_events
from whisper_at.formats import FORMATS
from whisper_at.formats.registry import WHISPER_FORMATS, extension
from whisper_at.serve import Limits, create_app
from whisper_at.writers import get_writer

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright drives the browser: pip install playwright"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]
SAMPLE = ROOT / "sample" / "street.ogg"
HEARD_MS = 120_000
"""Patience with a machine that has much else to do."""


@pytest.fixture(scope="module")
def app(nano):
    return create_app(nano, "nano.en")


@pytest.fixture(scope="module")
def address(app):
    with serving.in_thread(app) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium whose microphone hears a sentence of the sample again and again."""
    sound = tmp_path_factory.mktemp("microphone") / "microphone.wav"
    samples = whisper_at.load_audio(str(SAMPLE))[int(22.5 * 16000) : 27 * 16000]
    times = np.arange(3 * len(samples)) / 3
    soundfile.write(sound, np.interp(times, np.arange(len(samples)), samples), 48000, "PCM_16")
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--mute-audio"]
    switches += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    switches += [f"--use-file-for-fake-audio-capture={sound}"]
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=switches)
        yield browser
        browser.close()


def open_page(browser, address, **options):
    """A page; ``page.faults`` are errors of its scripts and what its policy forbids."""
    page = browser.new_page(**options)
    page.set_default_timeout(HEARD_MS)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: page.faults.append(message.text) if "Policy" in message.text else None)
    page.goto(address)
    return page


def wait_until(page, expression, argument=None):
    """Playwright's own ``wait_for_function`` evaluates text in the page, which the page's policy forbids."""
    for _ in range(HEARD_MS // 50):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"this did not come true: {expression}")


@pytest.fixture
def page(browser, address):
    page = open_page(browser, address)
    page.wait_for_selector("#model option", state="attached")
    yield page
    assert page.faults == []
    page.close()


def hear(page, path):
    page.set_input_files("#file", path)
    page.wait_for_selector(".format, #error:not([hidden])")


@pytest.fixture(scope="module")
def shared(browser, address, app):
    """A page on which the sample was heard; whoever changes it sets it back."""
    page = open_page(browser, address, viewport={"width": 1200, "height": 900})
    page.wait_for_selector("#model option", state="attached")
    hear(page, SAMPLE)
    assert not page.is_visible("#error"), page.inner_text("#error")
    (id,) = app.state.engine.kept.ids()
    page.kept = app.state.engine.kept.find(id, "127.0.0.1")
    yield page
    assert page.faults == []
    page.close()


def timeline(page, expression):
    return page.evaluate(f"import('./page/file.js').then(({{ timeline }}) => {expression})")


def seconds(page):
    return page.evaluate("document.querySelector('#player').currentTime")


# --- a recording -----------------------------------------------------------------------------------------------


def test_text_and_sounds_are_those_of_the_recording(shared, nano):
    result = shared.kept.result
    lines = [line.strip() for line in shared.locator(".segment p").all_inner_texts()]
    assert lines == [segment["text"].strip() for segment in result["segments"] if segment["text"].strip()]
    assert shared.locator("#events li").count() == len(find_events(result))
    lanes = timeline(shared, "timeline.data.lanes.map(lane => [lane.name, lane.probabilities.length])")
    assert {name for name, _ in lanes} == {event["name"] for event in find_events(result)}
    assert {rows for _, rows in lanes} == {math.ceil(56 / 1.2)}
    assert "0:56, English" in shared.inner_text("#status")
    n_peaks, highest = timeline(shared, "[timeline.data.peaks.length, Math.max(...timeline.data.peaks)]")
    assert n_peaks == pytest.approx(5600, abs=20)
    assert highest == pytest.approx(1)


def test_a_word_that_is_clicked_plays_and_lights_up(shared):
    words = [word for segment in shared.kept.result["segments"] for word in segment["words"]]
    word = next(i for i, word in enumerate(words) if word["start"] > 20 and len(word["word"]) > 4)
    shared.locator(".word").nth(word).click()
    wait_until(shared, "!document.querySelector('#player').paused")
    wait_until(shared, "document.querySelector('.word.lit') !== null")
    assert words[word]["start"] - 0.1 <= seconds(shared) < words[word]["start"] + 30
    first = shared.inner_text(".word.lit")
    assert first in [word["word"].strip() for word in words[word:]]
    wait_until(
        shared, "first => ![null, first].includes(document.querySelector('.word.lit')?.textContent ?? null)", first
    )
    shared.evaluate("document.querySelector('#player').pause()")
    assert shared.locator(".segment.lit").count() == 1


def test_keys(shared):
    shared.evaluate("document.activeElement.blur(); document.querySelector('#player').currentTime = 20")
    for key, expected in [("ArrowRight", 25), ("ArrowLeft", 20), ("l", 30), ("j", 20)]:
        shared.keyboard.press(key)
        assert seconds(shared) == pytest.approx(expected, abs=0.01)
    words = [word["start"] for segment in shared.kept.result["segments"] for word in segment["words"]]
    shared.keyboard.press(".")
    assert seconds(shared) == pytest.approx(min(start for start in words if start > 20.01), abs=0.01)
    shared.keyboard.press("Space")
    wait_until(shared, "!document.querySelector('#player').paused")
    shared.keyboard.press("k")
    wait_until(shared, "document.querySelector('#player').paused")
    shared.keyboard.press("+")
    shared.keyboard.press("+")
    assert timeline(shared, "timeline.view.end - timeline.view.start") == pytest.approx(14, abs=0.1)
    shared.keyboard.press("0")
    assert timeline(shared, "timeline.view.end - timeline.view.start") == pytest.approx(56, abs=0.1)
    shared.keyboard.press("?")
    assert shared.is_visible("#help-dialog")
    shared.keyboard.press("Escape")
    assert not shared.is_visible("#help-dialog")
    shared.keyboard.press("/")
    shared.keyboard.type("k0")  # letters are letters there
    assert shared.input_value("#class-search") == "k0"
    shared.fill("#class-search", "")
    shared.keyboard.press("Escape")
    shared.focus("#timeline")
    shared.keyboard.press("Home")
    assert seconds(shared) == 0
    assert shared.get_attribute("#timeline", "aria-valuetext") == "0:00.0"


def test_the_timeline_under_the_mouse(shared):
    shared.locator("#timeline").scroll_into_view_if_needed()
    box = shared.locator("#timeline").bounding_box()
    gutter, lanes, height = timeline(
        shared, "[timeline.places.gutter, timeline.places.lanes, timeline.places.laneHeight]"
    )
    middle = box["x"] + gutter + (box["width"] - gutter) / 2
    shared.mouse.click(middle, box["y"] + 40)
    assert seconds(shared) == pytest.approx(28, abs=0.2)
    shared.mouse.move(middle, box["y"] + lanes + height / 2)
    name = timeline(shared, "timeline.data.lanes[0].name")
    assert shared.inner_text("#tooltip").startswith(f"{name} · 0:28")
    assert shared.inner_text("#tooltip").endswith(" %")
    shared.mouse.wheel(0, -200)
    wait_until(shared, "import('./page/file.js').then(({ timeline }) => timeline.view.end - timeline.view.start < 50)")
    start, end = timeline(shared, "[timeline.view.start, timeline.view.end]")
    assert start < 28 < end
    shared.mouse.move(middle, box["y"] + 40)
    shared.mouse.down()
    shared.mouse.move(middle - 100, box["y"] + 40, steps=4)
    shared.mouse.up()
    assert timeline(shared, "timeline.view.start") > start
    assert seconds(shared) == pytest.approx(28, abs=0.2)  # dragging is no click
    shared.click("#zoom-fit")
    assert timeline(shared, "timeline.view.start") == 0


def test_the_timeline_under_two_fingers(browser, address):
    page = open_page(browser, address, has_touch=True, viewport={"width": 360, "height": 740})
    page.evaluate("document.querySelector('#result').hidden = false")
    timeline(page, "timeline.setData({ duration: 60 })")
    page.locator("#timeline").scroll_into_view_if_needed()
    wait_until(page, "import('./page/file.js').then(({ timeline }) => timeline.places?.width > 0)")
    box = page.locator("#timeline").bounding_box()
    touch = page.context.new_cdp_session(page)

    def fingers(kind, *places):
        points = [{"x": box["x"] + x, "y": box["y"] + 20, "id": i} for i, x in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", 140)
    fingers("touchStart", 140, 180)
    for x in range(10, 110, 10):
        fingers("touchMove", 140 - x, 180 + x)
    fingers("touchEnd")
    start, end = timeline(page, "[timeline.view.start, timeline.view.end]")
    assert end - start == pytest.approx(60 * 40 / 240, rel=0.2)
    assert start < 30 * 320 / box["width"] < end
    assert seconds(page) == 0  # it was no tap
    page.close()


def test_threshold_search_and_classes(shared):
    shared.fill("#threshold", "90")
    expected = find_events(shared.kept.result, math.log(9))
    wait_until(shared, "n => document.querySelectorAll('#events li').length === n", len(expected))
    assert shared.inner_text("#threshold-value") == "90 %"
    shared.click("#threshold-auto")
    wait_until(
        shared, "n => document.querySelectorAll('#events li').length === n", len(find_events(shared.kept.result))
    )
    shared.fill("#class-search", "rain")
    assert all("rain" in name.lower() for name in shared.locator("#classes li").all_inner_texts())
    shared.locator("#classes input").first.check()
    assert timeline(shared, "timeline.data.lanes.map(lane => lane.name)") == ["Rain"]
    assert set(shared.locator("#events li span:not(.soft)").all_inner_texts()) == {"Rain"}
    with shared.expect_download() as download:
        shared.click("[data-format=sed]")
    assert {line.split("\t")[-1] for line in download.value.path().read_text().splitlines()[1:]} == {"Rain"}
    shared.fill("#class-search", "")
    shared.click("#class-all")
    assert len(timeline(shared, "timeline.data.lanes.map(lane => lane.name)")) > 1


def test_names_in_other_languages(shared):
    shared.select_option("#label-language", "de")
    wait_until(
        shared,
        "import('./page/file.js').then(({ timeline }) => timeline.data.lanes.some(lane => lane.name === 'Regen'))",
    )
    shared.select_option("#label-language", "")
    wait_until(
        shared,
        "import('./page/file.js').then(({ timeline }) => timeline.data.lanes.some(lane => lane.name === 'Rain'))",
    )


@pytest.mark.parametrize("name", [*WHISPER_FORMATS, *FORMATS])
def test_downloads_are_what_the_commands_writer_writes(shared, name, tmp_path):
    with shared.expect_download() as download:
        shared.click(f"[data-format='{name}']")
    assert download.value.suggested_filename == f"street.{extension(name)}"
    get_writer(name, str(tmp_path))(shared.kept.result, "street.ogg", audio=shared.kept.audio)
    content = download.value.path().read_bytes()
    assert len(content) > 10
    if name != "pdf":  # has names that differ from file to file
        assert content == (tmp_path / f"street.{extension(name)}").read_bytes()


def test_captions_with_sounds(shared):
    shared.select_option("#captions", "sdh")
    with shared.expect_download() as download:
        shared.click("[data-format=srt]")
    assert "[" in download.value.path().read_text()
    shared.select_option("#captions", "")


# --- what goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no sound " * 99], ids=["empty", "text"])
def test_a_file_that_is_no_sound_shows_what_the_server_says(page, content):
    page.set_input_files("#file", {"name": "bad.wav", "mimeType": "audio/wav", "buffer": content})
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error").startswith("Failed to load audio: bad.wav: ")
    assert not page.is_visible("#work")


def test_a_server_that_is_gone(page):
    page.context.set_offline(True)
    page.set_input_files("#file", SAMPLE)
    page.wait_for_selector("#error:not([hidden])")
    assert "cannot be reached" in page.inner_text("#error")
    page.context.set_offline(False)
    hear(page, ROOT / "sample" / "speech.flac")  # and is back
    assert not page.is_visible("#error")


def test_cancel(page, app, monkeypatch):
    sound = io.BytesIO()
    soundfile.write(sound, np.tile(whisper_at.load_audio(str(SAMPLE)), 20), 16000, format="flac")
    page.set_input_files("#file", {"name": "long.flac", "mimeType": "audio/flac", "buffer": sound.getvalue()})
    page.wait_for_selector(".segment")  # what is heard is shown at once
    assert app.state.engine.n_recordings == 1
    page.click("#cancel")
    wait_until(page, "document.querySelector('#status').textContent === 'Cancelled.'")
    for _ in range(600):
        if not app.state.engine.n_recordings:
            break
        page.wait_for_timeout(100)
    assert app.state.engine.n_recordings == 0


def test_a_key_is_asked_for_and_sent(browser, nano):
    app = create_app(nano, "nano.en", Limits(megabytes=1), api_keys=["secret"])
    with serving.in_thread(app) as address:
        page = open_page(browser, address)
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-error:not(:empty)")
        assert "does not know this key" in page.inner_text("#key-error")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#model option", state="attached")
        hear(page, ROOT / "sample" / "speech.flac")
        assert not page.is_visible("#error")
        with page.expect_download() as download:
            page.click("[data-format=txt]")
        assert download.value.path().read_text().strip()
        page.click("#tab-live")
        page.click("#listen")
        page.wait_for_selector(".final")
        page.click("#listen")
        page.wait_for_selector("#live-actions:not([hidden])")
        page.click("#tab-file")
        page.set_input_files("#file", {"name": "long.wav", "mimeType": "audio/wav", "buffer": bytes(2_000_000)})
        page.wait_for_selector("#error:not([hidden])")
        assert page.inner_text("#error") == "requests are of 1 MB at most"
        assert page.faults == []
        page.close()


# --- live ------------------------------------------------------------------------------------------------------


def test_the_microphone(page):
    page.click("#tab-live")
    page.click("#listen")
    page.wait_for_selector(".final")
    wait_until(page, "document.querySelector('#live-text').textContent.includes('bus')")
    page.wait_for_selector("#live-sounds li")
    page.click("#listen")
    page.wait_for_selector("#live-actions:not([hidden])")
    assert "Speech" in page.inner_text("#live-sounds")
    assert page.inner_text(".partial") == ""
    for button in ("#live-txt", "#live-json"):
        with page.expect_download() as download:
            page.click(button)
        assert "bus" in download.value.path().read_text()
    with page.expect_download() as download:
        page.click("#live-wav")
    samples, rate = soundfile.read(download.value.path())
    assert rate == 16000
    assert np.abs(samples).max() > 0.01
    page.click("#live-again")
    page.wait_for_selector(".format")
    assert "bus" in page.inner_text("#text")


def test_a_microphone_that_is_refused(page):
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError') } }"
    )
    page.click("#tab-live")
    page.click("#listen")
    page.wait_for_selector("#error:not([hidden])")
    assert "does not let this page use the microphone" in page.inner_text("#error")
    assert page.inner_text("#listen") == "Start the microphone"


def test_a_connection_that_drops_is_opened_again(browser, address):
    page = open_page(browser, address)
    sockets = []

    def connect(socket):
        sockets.append(socket)
        socket.connect_to_server()

    page.route_web_socket("**/v1/realtime*", connect)
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    page.click("#tab-live")
    page.click("#listen")
    page.wait_for_selector(".final")
    n_words = page.locator(".final").count()
    sockets[0].close(code=1011, reason="the line is cut")
    wait_until(page, "document.querySelector('#live-status').textContent.includes('the next try')")
    wait_until(page, "document.querySelector('#live-status').textContent === 'Listening …'")
    wait_until(page, "n => document.querySelectorAll('.final').length > n", n_words)
    assert len(sockets) == 2
    times = page.locator(".final").evaluate_all("spans => spans.map(span => span.title)")
    assert times == sorted(times)
    page.click("#listen")
    page.wait_for_selector("#live-actions:not([hidden])")
    assert page.faults == []
    page.close()


# --- looks -----------------------------------------------------------------------------------------------------


def brightness(page):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L")).mean()


def test_dark_and_narrow(shared):
    try:
        shared.emulate_media(color_scheme="light")
        assert brightness(shared) > 190
        shared.emulate_media(color_scheme="dark", reduced_motion="reduce")
        assert brightness(shared) < 90
        shared.click("#theme")  # against the system's
        assert brightness(shared) > 190
        shared.click("#theme")
        assert brightness(shared) < 90
        shared.click("#theme")
        shared.set_viewport_size({"width": 360, "height": 740})
        for tab in ("#tab-live", "#tab-file"):
            shared.click(tab)
            assert shared.evaluate("document.documentElement.scrollWidth") <= 360
        assert shared.locator("#timeline").bounding_box()["width"] <= 360
    finally:
        shared.emulate_media(color_scheme="light")
        shared.set_viewport_size({"width": 1200, "height": 900})


def test_text_from_right_to_left(page):
    script = """async () => {
        const { Transcript } = await import('./page/transcript.js');
        const box = document.createElement('div');
        document.body.append(box);
        const transcript = new Transcript(box, () => {});
        for (const text of ['مرحبا بالعالم', 'שלום עולם', 'Hello']) transcript.add({ start: 0, end: 1, text });
        return [...box.querySelectorAll('p')].map(line => getComputedStyle(line).direction);
    }"""
    assert page.evaluate(script) == ["rtl", "rtl", "ltr"]


def test_what_a_screen_reader_is_told(shared):
    unnamed = shared.evaluate(
        """() => [...document.querySelectorAll('button, input, select, canvas, video, progress, meter')]
            .filter(one => !one.getAttribute('aria-label') && !one.textContent.trim() && !one.labels?.length)
            .map(one => one.outerHTML)"""
    )
    assert unnamed == []
    shared.focus("#tab-file")
    shared.keyboard.press("ArrowRight")
    assert shared.get_attribute("#tab-live", "aria-selected") == "true"
    assert shared.is_visible("#live-panel")
    shared.keyboard.press("ArrowLeft")
    assert shared.is_visible("#file-panel")
