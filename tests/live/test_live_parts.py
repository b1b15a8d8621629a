"""What streams are made of: policies, events, the spectrogram, messages, sources, the terminal."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, SAMPLE_RATE, noise
from hypothesis import given, settings
from hypothesis import strategies as st

import whisper_at
from whisper_at import find_events
from whisper_at.live import EventEnd, EventStart, Final, Partial, Row, Stream, Transcript, Word
from whisper_at.live.events import EventTracker
from whisper_at.live.hypothesis import TimedWord, WordDecoder, num_sayable
from whisper_at.live.policies import num_agreed, num_attended
from whisper_at.live.sources import decoded_stream, microphone
from whisper_at.live.spectrogram import StreamingLogMel
from whisper_at.live.terminal import LinePrinter, Screen
from whisper_at.live.text import TextTracker
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.labels import audioset_classes, find_class
from whisper_at.windows import Window


def words(text: str, start: float = 0.0) -> list[TimedWord]:
    """One word a second, each attending to its end."""
    return [TimedWord(f" {w}", (i,), start + i, start + i + 1, 0.9, start + i + 1) for i, w in enumerate(text.split())]


def test_agreement_is_on_letters():
    assert num_agreed(words("and so my"), words("And so, my fellow")) == 3
    assert num_agreed(words("and so his"), words("and so my his")) == 2
    assert num_agreed([], words("and")) == 0


def test_words_that_attend_to_the_edge_are_not_final():
    assert num_attended(words("and so my fellow"), 3.0, 2.0) == 3
    assert num_attended(words("and"), 0.5, 0.5) == 0


def test_the_last_word_may_be_the_beginning_of_a_longer_one():
    assert num_attended(words("and so"), 2.5, 1.9) == 1
    assert num_attended(words("and so"), 2.5, 2.0) == 2


def test_what_is_behind_a_word_of_the_edge_is_not_final_either():
    first, second = words("and so")
    assert num_attended([first._replace(attends_until=9.0), second], 5.0, 5.0) == 0


def test_words_that_nobody_says_so_fast_are_left_out():
    said = words("and so")
    fast = [
        word._replace(start=2.0 + 0.05 * i, end=2.05 + 0.05 * i) for i, word in enumerate(words("and so my fellow"))
    ]
    assert num_sayable([*said, *fast]) == 2
    assert num_sayable([*said, *fast[:3]]) == 5


def test_what_all_tokens_attend_to_does_not_count():
    """Tokens look at their words, and all of them more at one other place, and each at a single one besides."""
    decoder = WordDecoder(whisper_at.load_model("nano.en"), "en", "transcribe", {})
    before = len(decoder.tokenizer.sot_sequence)
    scores = torch.zeros(1, decoder.model.dims.n_text_head, before + 6, 200)
    scores[..., :10] = 8.0
    for token in range(6):
        scores[:, :, before + token, 20 + 25 * token : 30 + 25 * token] += 5.0
        scores[:, :, before + token, 160 + 5 * token] += 9.0
    attended = decoder._attended([scores] * decoder.model.dims.n_text_layer, Window(1000, 400))
    assert len(attended) == 5  # one for every text token
    for token, seconds in enumerate(attended):
        assert 20 + 25 * token <= round(seconds / 0.02) < 30 + 25 * token


def test_punctuation_does_not_tell_where_a_word_is():
    decoder = WordDecoder(whisper_at.load_model("nano.en"), "en", "transcribe", {})
    tokens = decoder.tokenizer.encode(" went up.")
    assert list(decoder._lettered(tokens, 0, len(tokens))) == list(range(len(tokens) - 1))
    assert list(decoder._lettered(tokens, len(tokens) - 1, len(tokens))) == [len(tokens) - 1]


@pytest.mark.parametrize("policy", ["align_att", "local_agreement"])
def test_a_pass_is_cut_behind_its_last_sentence(policy):
    text = TextTracker(policy, 0.4, [1, 2], 0.0)
    heard = words("It rains. We go home again now")
    for _ in range(1 if policy == "align_att" else 2):
        text.update(heard, 8.2)
    assert text.cut(0, 780) is None  # short
    assert text.cut(-400, 480) is None  # the next one would hear too little again
    assert text.cut(0, 820) == (170, 230)
    assert text.prompt == [1, 2, 0, 1]
    assert [word.text for word in text.finals] == [" We", " go", " home", " again", " now"]


def test_a_pass_in_which_nothing_follows_is_cut():
    text = TextTracker("align_att", 0.4, [], 0.0)
    text.update(words("It rains."), 3.9)
    assert text.cut(0, 390) is None
    text.update(words("We", 2.5), 4.1)
    assert text.cut(0, 410) is None  # something follows
    text.update([], 4.1)
    assert text.cut(0, 410) == (170, 230)
    assert (text.prompt, text.finals) == ([0, 1], [])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from([-3.0, -0.5, 0.5, 2.0]), min_size=2, max_size=2), min_size=1, max_size=12))
def test_events_are_those_of_the_rows(logits):
    """Of classes that explain no others, events as they happen are what `find_events` makes of all rows."""
    tracker = EventTracker("birds", ClassSet(("wren", "owl")), ("wren", "owl"), None, [0, 1])
    messages = []
    for i, row in enumerate(logits):
        messages += tracker.add_row(2.0 * i, 2.0 * i + 2, np.array(row, np.float32))
    messages += tracker.finish(2.0 * len(logits))
    ended = [m for m in messages if isinstance(m, EventEnd)]
    birds = {"classes": ["wren", "owl"], "kind": "multi_label", "temperature": 1.0, "thresholds": None}
    result = {"at_time_res": 2.0, "duration": 2.0 * len(logits), "birds": {**birds, "logits": torch.tensor(logits)}}
    expected = [(e["name"], e["start"], e["end"], pytest.approx(e["probability"])) for e in find_events(result)]
    assert sorted((e.name, e.start, e.end, e.probability) for e in ended) == sorted(expected, key=lambda e: e[:2])
    started = [(m.name, m.start) for m in messages if isinstance(m, EventStart)]
    assert sorted(started) == sorted((e.name, e.start) for e in ended)


def test_a_class_that_another_explains_begins_no_event():
    classes = audioset_classes()
    tracker = EventTracker("audio_tag", classes, classes.names, None, range(527))
    row = np.full(527, -9.0, np.float32)
    row[[find_class("Animal"), find_class("Dog"), find_class("Bark")]] = 2.0
    assert [message.name for message in tracker.add_row(0.0, 2.0, row)] == ["Bark"]


@pytest.mark.parametrize("block", [800, 1600, 9600])
def test_the_spectrogram_is_that_of_the_file(block):
    audio = noise(8)
    mel = StreamingLogMel(80, 100)
    for start in range(0, len(audio), block):
        mel.append(audio[start : start + block])
    mel.append(np.zeros(400, np.float32))
    expected = whisper_at.log_mel_spectrogram(audio, padding=480_000)[:, :800]  # or it ends in a mirror image
    assert torch.allclose(mel.window(100, 900), expected, atol=1e-4)
    assert 100 <= mel.quietest(100, 900) < 900
    mel.drop_before(500)
    assert (mel.start, mel.end - mel.start) == (500, mel.end - 500)
    assert torch.allclose(mel.window(600, 900), expected[:, 500:], atol=1e-4)


def test_messages_as_json():
    word = Word(" so", 1.0, 1.5, 0.9, (3,))
    values = json.loads(json.dumps(Final((word,)).to_jsonable()))
    spoken = {"word": " so", "start": 1.0, "end": 1.5, "probability": 0.9}
    assert values == {"type": "final", "text": " so", "start": 1.0, "end": 1.5, "words": [spoken]}
    assert Partial(()).to_jsonable() == {"type": "partial", "text": "", "words": []}
    row = Row(0.0, 2.0, "audio_tag", 5, 1.0, [{"name": "Dog", "probability": 0.9}], np.zeros(527))
    assert list(row.to_jsonable()) == ["type", "start", "end", "head", "coverage", "tags"]
    event = EventEnd(0.0, 2.0, "Dog", 74, "/m/0bt9lr", 0.9, "audio_tag")
    assert event.to_jsonable()["type"] == "event_end"


def test_a_result_of_all_that_was_told(tmp_path):
    stream = Stream(
        whisper_at.load_model("nano.en", "cpu"), at_time_res=[0.4, 10]
    )  # no rows in between, which would decide on events
    transcript = Transcript(stream)
    audio = whisper_at.load_audio(str(ROOT / "sample/street.ogg"))[: 10 * SAMPLE_RATE]
    messages = stream.feed(audio) + stream.finish()
    transcript.add(messages)
    result = transcript.result()
    assert result["audio_tag"][0.4].shape == (25, 527)
    assert result["audio_tag"][10.0].shape == (1, 527)
    assert result["audio_tag_coverage"][10.0].tolist() == [1.0]
    assert result["text"] == "".join(m.text for m in messages if isinstance(m, Final))
    assert [segment["id"] for segment in result["segments"]] == list(range(len(result["segments"])))
    started = {(e.name, e.start) for e in messages if isinstance(e, EventStart)}
    assert {(e["name"], e["start"]) for e in find_events(result)} <= started
    whisper_at.utils.get_writer("all", str(tmp_path))(result, "live")
    assert {path.suffix for path in tmp_path.iterdir()} == {".txt", ".vtt", ".srt", ".tsv", ".json"}


def test_a_file_is_decoded_as_elsewhere():
    path = str(ROOT / "sample/speech.flac")
    samples = np.concatenate(list(decoded_stream(path, path)))
    assert np.array_equal(samples.astype(np.float32) / 32768, whisper_at.load_audio(path))


def test_a_pipe_is_heard_before_it_ends():
    """What has come in is yielded, while whoever writes holds the other end open."""
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(4), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    reader, writer = os.pipe()
    goes_on = threading.Event()

    def write() -> None:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(buffer.getvalue()[:100_000])
            pipe.flush()
            goes_on.wait(60)
            pipe.write(buffer.getvalue()[100_000:])

    threading.Thread(target=write, daemon=True).start()
    with os.fdopen(reader, "rb") as source:
        pieces = decoded_stream(source, "a pipe")
        heard = len(next(pieces))
        assert heard
        assert not goes_on.is_set()
        goes_on.set()
        assert heard + sum(map(len, pieces)) == 4 * SAMPLE_RATE


def test_what_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(RuntimeError, match="Failed to load audio: notes"):
        list(decoded_stream(str(tmp_path / "text.wav"), "notes"))


def test_a_microphone_tells_all_that_it_has_heard(monkeypatch):
    class RawInputStream:
        def __init__(self, callback, samplerate, channels, dtype, **_):
            assert (samplerate, channels, dtype) == (SAMPLE_RATE, 1, "int16")
            self.callback = callback

        def __enter__(self):
            for value in (1, 2):
                self.callback(np.full(4, value, np.int16).tobytes(), 4, None, None)

        def __exit__(self, *_):
            pass

    fake = SimpleNamespace(RawInputStream=RawInputStream, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    assert next(microphone()).tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_a_microphone_that_is_not_there(monkeypatch):
    def refuse(**_):
        raise ValueError("No input device matching 'x'")

    monkeypatch.setitem(sys.modules, "sounddevice", SimpleNamespace(RawInputStream=refuse, PortAudioError=OSError))
    with pytest.raises(RuntimeError, match="no sound from the microphone: No input device"):
        next(microphone("x"))


DOG = EventStart(4.0, "Dog", find_class("Dog"), "/m/0bt9lr", 0.9, "audio_tag")
SPEECH = EventStart(0.0, "Speech", 0, "/m/09x0r", 0.9, "audio_tag")


def said(text: str, start: float = 0.0) -> tuple[Word, ...]:
    return tuple(Word(word.text, word.start, word.end, 0.9) for word in words(text, start))


def test_lines_are_final():
    output = io.StringIO()
    printer = LinePrinter(output)
    printer.show([SPEECH, Partial(said("It brains"))])
    printer.show([Final(said("It rains.")), Partial(said("We", 2.0))])
    printer.show([Final(said("We go", 2.0)), DOG, Final(said("home", 61.0))])
    assert output.getvalue() == "[00:00:00] It rains.\n[00:00:02] We go\n[00:00:04] [dog]\n"
    printer.close()
    assert output.getvalue().endswith("[00:01:01] home\n")


def test_a_terminal_is_drawn_over(monkeypatch):
    """Of two rows that a long line takes, both are cleared, and partial words are dim."""
    monkeypatch.setenv("COLUMNS", "20")
    output = io.StringIO()
    screen = Screen(output)
    screen.show([Final(said("It rains")), Partial(said("on us all", 2.0))])
    assert output.getvalue() == "[00:00:00] It rains\x1b[2m on us all\x1b[0m"
    screen.show([Final(said("on us", 2.0)), Partial(())])
    assert output.getvalue().endswith("\x1b[1A\r\x1b[J[00:00:00] It rains on us\x1b[2m\x1b[0m")
    screen.close()
    assert output.getvalue().endswith("\r\x1b[J[00:00:00] It rains on us\n")
