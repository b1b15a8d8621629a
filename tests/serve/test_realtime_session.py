"""Realtime sessions, with a stream that tells what a test wants; and sound as clients send it."""

from __future__ import annotations

import base64
from types import SimpleNamespace

import numpy as np
import pytest

from whisper_at.serve.realtime import PARTIAL, RealtimeSession
from whisper_at.serve.realtime_audio import AudioFormat, Resampler

DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"


def message(type, **values):
    return SimpleNamespace(type=type, to_jsonable=lambda: {"type": type, **values})


def told(type, text, start=0.0, end=0.0):
    return message(type, text=text, start=start, end=end)


class Script:
    """A stream that tells the next list of messages at each piece of sound."""

    def __init__(self, *messages, position=0.0, last=(), **options):
        self.messages, self.position, self.last, self.options = list(messages), position, last, options
        self.fed = []

    def feed(self, samples, *, catch_up):
        assert catch_up
        self.fed.append(len(samples) / 16000)
        self.position += len(samples) / 16000
        return self.messages.pop(0) if self.messages else []

    def finish(self):
        return self.last


def session_of(*messages, **script):
    opened = []

    def open_stream(**options):
        if options["language"] == "xx":
            raise ValueError("there is no language 'xx'")
        opened.append(Script(*([] if opened else messages), **script, **options))
        return opened[-1]

    session = RealtimeSession(open_stream)
    session.opened = opened
    return session


def sound(seconds, rate=24000):
    return base64.b64encode(np.zeros(round(seconds * rate), "<i2").tobytes()).decode()


def append(session, seconds=1.0):
    answers = [*session.handle({"type": "input_audio_buffer.append", "audio": sound(seconds)}), *session.listen()]
    while session.unheard:
        answers += session.listen()
    return answers


def test_deltas_of_an_item_make_up_its_transcript():
    session = session_of(
        [told("partial", " Hell")],
        [told("final", " Hello", 0.2, 0.6), told("partial", " wor")],
        [told("final", " world.", 0.7, 1.1)],
        last=[told("final", " Bye.", 2.5, 2.9)],
    )
    assert session.created()["session"]["type"] == "transcription"
    assert [event["type"] for event in append(session)] == ["input_audio_buffer.speech_started"]
    (delta,) = append(session)
    assert (delta["type"], delta["delta"], delta["start"]) == (DELTA, "Hello", 0.2)
    last, committed, completed = append(session)  # more than half a second after the last word
    assert (last["delta"], committed["type"]) == (" world.", "input_audio_buffer.committed")
    assert (completed["type"], completed["transcript"]) == (COMPLETED, "Hello world.")
    assert completed["item_id"] == committed["item_id"] == delta["item_id"]
    assert completed["usage"]["seconds"] == pytest.approx(3, abs=0.01)
    assert append(session) == []
    _, delta, committed, completed = list(session.handle({"type": "input_audio_buffer.commit"}))
    assert (delta["delta"], completed["transcript"]) == ("Bye.", "Bye.")
    assert committed["previous_item_id"] == last["item_id"] != completed["item_id"]
    append(session)
    assert len(session.opened) == 2
    assert session.opened[1].options["model"] == ""
    assert session.opened[1].position == pytest.approx(5, abs=0.02)  # times go on


def test_without_turns_an_item_lasts_until_it_is_committed():
    session = session_of([], [told("final", " One.", 0.1, 0.5)])
    list(session.handle({"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}}))
    session.opened[0].messages = [[told("final", " One.", 0.1, 0.5)]]
    assert [event["type"] for event in append(session, 5)] == ["input_audio_buffer.speech_started", DELTA]
    assert append(session, 5) == []
    assert list(session.handle({"type": "input_audio_buffer.commit"}))[-1]["transcript"] == "One."


def test_partial_words_and_sounds():
    sound_of = {"name": "Dog", "start": 0.4, "index": 74, "mid": "/m/0bt9lr", "probability": 0.9, "head": "audio_tag"}
    session = session_of()
    list(session.handle({"type": "session.update", "session": {"include": [PARTIAL], "at_time_res": 0.4}}))
    assert session.opened[0].options["at_time_res"] == 0.4
    ended = message("event_end", **sound_of, end=2.0)
    session.opened[0].messages = [[told("partial", " a b"), message("event_start", **sound_of), ended]]
    _, partial, started, ended = append(session)
    assert (partial["type"].rsplit(".")[-1], partial["text"]) == ("partial", "a b")
    assert (started["type"], started["name"]) == ("audio_event.started", "Dog")
    assert (ended["type"], ended["end"]) == ("audio_event", 2.0)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (None, "there is no event ''"),
        ([], "there is no event ''"),
        ({"type": 3}, "there is no event ''"),
        ({"type": "response.create"}, "there is no event 'response.create'"),
        ({"type": "input_audio_buffer.append"}, "audio: it is no base64"),
        ({"type": "input_audio_buffer.append", "audio": "!"}, "audio: it is no base64"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "audio: samples are of two bytes"),
        ({"type": "input_audio_buffer.commit"}, "no sound has come"),
        ({"type": "session.update", "session": 1}, "session: an object"),
        ({"type": "session.update", "session": {"at_time_res": "2"}}, "at_time_res: seconds"),
        ({"type": "session.update", "session": {"audio": {"input": {"format": {"type": "mp3"}}}}}, "format: audio/pcm"),
        ({"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 44100}}}}}, "format: a rate of"),
        (
            {"type": "transcription_session.update", "session": {"input_audio_transcription": {"language": "xx"}}},
            "'xx'",
        ),
        ({"type": "session.update", "session": {"turn_detection": {"silence_duration_ms": -1}}}, "silence_duration_ms"),
        ({"type": "session.update", "session": {"input_audio_transcription": {"model": 5}}}, "model: text"),
    ],
)
def test_what_is_wrong_is_told_and_the_session_goes_on(event, says):
    session = session_of([told("final", " One.", 0.1, 0.2)])
    (error,) = list(session.handle(event if not isinstance(event, dict) else event | {"event_id": "mine"}))
    assert error["type"] == "error"
    assert says in error["error"]["message"]
    assert error["error"]["event_id"] == ("mine" if isinstance(event, dict) else None)
    assert append(session)[1]["delta"] == "One."


def test_the_older_form_of_settings():
    session = session_of()
    settings = {"input_audio_format": "g711_ulaw", "input_audio_transcription": {"language": "de", "prompt": "Hallo"}}
    (updated,) = list(session.handle({"type": "transcription_session.update", "session": settings}))
    assert updated["session"]["audio"]["input"]["format"] == {"type": "audio/pcmu", "rate": 8000}
    assert (session.opened[0].options["language"], session.opened[0].options["prompt"]) == ("de", "Hallo")


def test_sound_that_piled_up_is_listened_to_in_parts():
    session = session_of(last=[told("final", " End.", 11.0, 11.5)])
    for seconds in (0.5, 6.0, 5.5):
        assert list(session.handle({"type": "input_audio_buffer.append", "audio": sound(seconds)})) == []
    assert session.unheard == 12.0
    assert session.opened == []
    list(session.listen())
    assert session.unheard == pytest.approx(9.6)
    completed = list(session.handle({"type": "input_audio_buffer.commit"}))[-1]  # of all that came before it
    assert session.opened[0].fed == pytest.approx([2.4] * 5, abs=0.01)
    assert (completed["transcript"], completed["usage"]["seconds"]) == ("End.", pytest.approx(12, abs=0.01))


def test_a_stream_that_cannot_be_opened_for_sound_is_an_error():
    session = session_of()
    session.settings["language"] = "xx"
    (error,) = append(session)
    assert (error["type"], error["error"]["message"]) == ("error", "there is no language 'xx'")


def test_cleared_sound_is_forgotten():
    session = session_of(last=[told("final", " Old.", 0.1, 0.2)])
    append(session)
    assert [event["type"] for event in session.handle({"type": "input_audio_buffer.clear"})] == [
        "input_audio_buffer.cleared"
    ]
    assert [event["type"] for event in session.handle({"type": "input_audio_buffer.commit"})] == ["error"]


# --- sound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 24000, 48000])
@pytest.mark.parametrize("piece", [1, 160, 4799])
def test_a_tone_is_the_same_tone_at_16_khz_whatever_the_pieces(rate, piece):
    seconds = 0.1 if piece == 1 else 1.0
    samples = np.sin(2 * np.pi * 1000 * np.arange(round(rate * seconds)) / rate).astype(np.float32)
    resample = Resampler(rate)
    found = np.concatenate([resample(samples[i : i + piece]) for i in range(0, len(samples), piece)])
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(found)) / 16000)
    assert len(found) >= seconds * 16000 - 40
    np.testing.assert_allclose(found[40:], expected[40:], atol=2e-3)


def test_what_16_khz_cannot_hold_is_left_out():
    samples = np.sin(2 * np.pi * 10000 * np.arange(24000) / 24000).astype(np.float32)
    assert np.abs(Resampler(24000)(samples)[100:]).max() < 1e-3


def test_telephones_samples():
    """Known values of G.711: the extremes, and silence."""
    mu, a = AudioFormat("audio/pcmu"), AudioFormat("audio/pcma")
    scale = 32768
    assert [round(float(mu._table[code]) * scale) for code in (0x00, 0x80, 0xFF, 0x7F)] == [-32124, 32124, 0, 0]
    assert [round(float(a._table[code]) * scale) for code in (0x2A, 0xAA, 0xD5, 0x55)] == [-32256, 32256, 8, -8]
    tone = base64.b64encode(bytes(range(256)) * 10).decode()
    assert len(mu.read(mu.decode(tone))) == pytest.approx(5120, abs=70)
