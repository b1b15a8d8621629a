"""Formats beside Whisper's: each is read back by a program of another author, to the unit that it counts in."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import subprocess
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch
from conftest import ROOT, noise
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from whisper_at.captioning import captions
from whisper_at.ffmpeg_process import ffmpeg_binary
from whisper_at.formats import FORMATS, format_bytes, parse_formats
from whisper_at.formats.options import FormatOptions
from whisper_at.formats.registry import WHISPER_FORMATS, extension
from whisper_at.formats.video import frame_rate
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.events import find_events
from whisper_at.tagging.labels import find_class
from whisper_at.tagging.rows import TagOptions
from whisper_at.writers import get_writer

RAIN, DOG, MUSIC, SINGING, SPEECH = map(find_class, ("Rain", "Dog", "Music", "Singing", "Speech"))
ODD_TEXT = st.text(
    st.sampled_from("ab 1.,;:!?\"'`|#$%&*+-=<>/{}[]()\\~_\t\n\r\u2028\x85\x00é中國한い🐕👩‍🚒\u200fשלםسلم"),
    max_size=12,
)
TIMES = st.lists(st.integers(0, 20_000_000), min_size=2, max_size=8, unique=True).map(sorted)


def segment(start: float, end: float, text: str, words: bool = False) -> dict:
    found = {"start": start, "end": end, "text": text}
    if words:
        parts = re.findall(r"\s*\S+", text)
        step = (end - start) / max(1, len(parts))
        found["words"] = [
            {"word": part, "start": start + i * step, "end": start + (i + 1) * step} for i, part in enumerate(parts)
        ]
    return found


def spoken(*segments: dict, **others) -> dict:
    return {"text": "".join(s["text"] for s in segments), "segments": list(segments), "language": "en", **others}


def tagged(result: dict, sounds: dict[int, tuple[int, ...]], n_rows: int = 10, seconds: float = 2.0) -> dict:
    """The result with rows in which the classes of `sounds` have a logit of 2 in the rows that are named."""
    logits = torch.full((n_rows, 527), -6.0)
    for index, rows in sounds.items():
        logits[list(rows), index] = 2.0
    tags = {"audio_tag": logits, "audio_tag_coverage": torch.ones(n_rows), "at_time_res": seconds}
    return {**result, **tags, "duration": n_rows * seconds - 0.5, "task": "transcribe"}


TALK = spoken(
    segment(0.5, 4.25, " Hello, dear {friends}; it is raining.", words=True),
    segment(61.001, 63.999, ' "Come in," she said, <now>.', words=True),
)
STREET = tagged(TALK, {RAIN: (0, 1, 2, 8, 9), DOG: (4,), SPEECH: (0, 1), MUSIC: (5, 6), SINGING: (6,)})


def text(name: str, result: dict, filename: str = "talk.wav", **options) -> str:
    return format_bytes(name, result, filename, FormatOptions(**options)).decode("utf-8")


def by_ffmpeg(name: str, content: str, folder: Path, to: str) -> str:
    path = folder / f"x.{name}"
    path.write_text(content, "utf-8", newline="")
    command = [ffmpeg_binary(), "-nostdin", "-v", "error", "-f", name, "-i", str(path), "-f", to, "-"]
    read = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert read.stderr == ""
    return read.stdout


# --- names --------------------------------------------------------------------------------------------------


def test_no_file_overwrites_another():
    endings = [extension(name) for name in (*WHISPER_FORMATS, *FORMATS)]
    assert len(set(endings)) == len(endings) == len(WHISPER_FORMATS) + len(FORMATS)


def test_all_is_whispers_five_and_unknown_names_are_refused():
    assert parse_formats("all") == WHISPER_FORMATS
    assert parse_formats("srt, Labels,srt") == ("srt", "labels")
    with pytest.raises(KeyError, match="labels"):
        parse_formats("srt,label")


def test_every_format_is_written_at_once_or_none(tmp_path):
    audio = tmp_path / "street.wav"
    soundfile.write(audio, noise(3), 16000)
    names = [*WHISPER_FORMATS, *FORMATS]
    full = json.loads(json.dumps(TALK))
    (tmp_path / "out").mkdir()
    get_writer(",".join(names), str(tmp_path / "out"))({**STREET, **full}, str(audio))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"street.{extension(name)}" for name in names}
    assert all(path.stat().st_size for path in (tmp_path / "out").iterdir())
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="carries no tags"):
        get_writer("txt,sed", str(tmp_path / "none"))(TALK, str(audio))
    assert list((tmp_path / "none").iterdir()) == []


@pytest.mark.parametrize("name", ["labels", "parquet"])
def test_a_single_writer_writes_open_files(tmp_path, name):
    writer = get_writer(name, str(tmp_path))
    writer(STREET, "talk.wav", None)
    file = io.BytesIO()
    writer.write_result(STREET, file)
    assert file.getvalue() == (tmp_path / f"talk.{writer.extension}").read_bytes()


def test_without_the_package_it_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'parquet needs pyarrow.*pip install "\.\[formats\]"'):
        get_writer("txt,parquet", str(tmp_path))


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].at_time_res is not None])
def test_what_is_made_of_tags_says_so(name):
    with pytest.raises(ValueError, match="carries no"):
        format_bytes(name, TALK, "talk.wav")


@pytest.mark.parametrize("name", FORMATS)
def test_silence_is_written_too(name):
    assert format_bytes(name, tagged(spoken(), {}), "silence.wav")[:0] == b""


# --- editors ------------------------------------------------------------------------------------------------


def read_labels(content: str) -> list[tuple[int, int, str]]:
    """Audacity's rules: lines of start, end and text, parted by tabs; none begins with a backslash."""
    labels = []
    for line in content.split("\n")[:-1]:
        start, end, name = line.split("\t")
        labels.append((round(float(start) * 1000), round(float(end) * 1000), name))
    return labels


def test_labels_are_words_and_sounds_but_speech():
    labels = read_labels(text("labels", STREET))
    words = [label for label in labels if not label[2].startswith("[")]
    assert words[0] == (500, 1125, "Hello,")
    assert len(words) == 6 + 5
    sounds = [label for label in labels if label not in words]
    assert sounds == [
        (0, 6000, "[Rain]"),
        (8000, 10000, "[Dog]"),
        (10000, 14000, "[Music]"),
        (12000, 14000, "[Singing]"),
        (16000, 19500, "[Rain]"),
    ]
    assert labels == sorted(labels, key=lambda label: label[:2])
    assert "[Speech]" in text("labels", STREET, tags=TagOptions(include_classes=["Speech"]))


@settings(max_examples=60, deadline=None)
@given(TIMES, ODD_TEXT)
def test_labels_of_any_text(times, odd):
    result = spoken(segment(times[0] / 1000, times[1] / 1000, odd))
    labels = read_labels(text("labels", result))
    assert [label[:2] for label in labels] == [(times[0], times[1])] * len(labels)
    assert [label[2] for label in labels] in ([], [" ".join(odd.replace("\x00", " ").split())])


def milliseconds(clock: str) -> int:
    hours, minutes, seconds = clock.split(":")
    return (int(hours) * 60 + int(minutes)) * 60_000 + round(float(seconds) * 1000)


def test_markers_of_reaper():
    rows = list(csv.DictReader(io.StringIO(text("markers", STREET))))
    assert [row["#"] for row in rows] == [f"R{i}" for i in range(1, 8)]
    assert rows[1]["Name"] == "Hello, dear {friends}; it is raining."
    assert (rows[1]["Start"], rows[1]["End"], rows[1]["Length"]) == ("00:00:00.500", "00:00:04.250", "00:00:03.750")
    assert rows[6]["Name"] == '"Come in," she said, <now>.'


@settings(max_examples=60, deadline=None)
@given(TIMES, ODD_TEXT)
def test_markers_of_any_text(times, odd):
    result = spoken(segment(times[0] / 1000, times[1] / 1000, "x" + odd))
    (row,) = csv.DictReader(io.StringIO(text("markers", result)))
    assert row["Name"] == " ".join(f"x{odd}".replace("\x00", " ").split())
    start, end, length = (milliseconds(row[name]) for name in ("Start", "End", "Length"))
    assert (start, end, length) == (times[0], times[1], times[1] - times[0])


@pytest.mark.parametrize(("rate", "fps"), [("25", 25), ("30000/1001", 30000 / 1001), ("24000/1001", 24000 / 1001)])
def test_markers_of_premiere_count_the_frames_of_the_video(tmp_path, rate, fps):
    video = tmp_path / "x.mkv"
    command = [
        ffmpeg_binary(),
        "-nostdin",
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        f"color=size=32x32:rate={rate}:duration=1",
    ]
    subprocess.run([*command, "-c:v", "mpeg4", str(video)], check=True)
    assert frame_rate(video) == pytest.approx(fps, abs=1e-9)
    rows = list(csv.DictReader(io.StringIO(text("premiere", TALK, audio=video)), delimiter="\t"))
    assert list(rows[0]) == ["Marker Name", "Description", "In", "Out", "Duration", "Marker Type"]
    for row, said in zip(rows, TALK["segments"]):
        *clock, frame = map(int, row["In"].split(":"))
        number = np.dot(clock, (3600, 60, 1)) * round(fps) + frame
        assert number / fps == pytest.approx(said["start"], abs=0.51 / fps)
        assert frame < fps


def test_a_recording_without_video_has_no_frames(tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(1), 16000)
    assert frame_rate(tmp_path / "x.wav") is None
    assert frame_rate(None) is None
    assert "00:00:04:06" in text("premiere", TALK)  # 4.25 s at 25


# --- subtitles ----------------------------------------------------------------------------------------------


def without_marks(line: str) -> str:
    """As srt is read, in which ``<now>`` is taken for a mark."""
    return re.sub(r"<[^>]*>", "", line)


def as_read(line: str) -> str:
    return " ".join(line.split())


def test_ass_is_read_by_pysubs2_and_ffmpeg(tmp_path):
    pysubs2 = pytest.importorskip("pysubs2")
    content = text("ass", STREET, captions="sdh")
    cues = captions(STREET, "sdh")
    assert any(cue["text"].startswith("[") for cue in cues)
    read = pysubs2.SSAFile.from_string(content, format_="ass")
    assert len(read) == len(cues)
    for line, cue in zip(read, cues):
        assert abs(line.start - cue["start"] * 1000) <= 5.001
        assert abs(line.end - cue["end"] * 1000) <= 5.001
        assert line.plaintext == cue["text"].translate(str.maketrans("{}", "\uff5b\uff5d"))
    srt = pysubs2.SSAFile.from_string(by_ffmpeg("ass", content, tmp_path, "srt"), format_="srt")
    assert [line.plaintext for line in srt] == [without_marks(line.plaintext) for line in read]
    assert [(line.start, line.end) for line in srt] == [(line.start, line.end) for line in read]


@settings(max_examples=60, deadline=None)
@given(TIMES, st.lists(ODD_TEXT, min_size=1, max_size=4))
def test_ass_of_any_text(times, texts):
    pysubs2 = pytest.importorskip("pysubs2")
    segments = [segment(a / 1000, b / 1000, t) for a, b, t in zip(times[::2], times[1::2], texts)]
    cues = captions(spoken(*segments))
    read = pysubs2.SSAFile.from_string(text("ass", spoken(*segments)), format_="ass")
    lookalikes = str.maketrans("{}\\", "\uff5b\uff5d\uff3c")
    assert [as_read(line.plaintext) for line in read] == [
        as_read(cue["text"].replace("\x00", " ").translate(lookalikes)) for cue in cues
    ]
    assert all(abs(line.start - 1000 * cue["start"]) <= 5.001 for line, cue in zip(read, cues))
    assert all(a.end <= b.start for a, b in itertools.pairwise(read))


def test_lrc_is_read_by_ffmpeg_and_lrcparser(tmp_path):
    pysubs2, lrcparser = pytest.importorskip("pysubs2"), pytest.importorskip("lrcparser")
    street = json.loads(json.dumps({**STREET, "audio_tag": STREET["audio_tag"].tolist(), "audio_tag_coverage": None}))
    content = text("lrc", street, captions="sdh")
    cues = captions(street, "sdh")
    shown = [as_read(cue["text"]).translate(str.maketrans("[]", "()")) for cue in cues]
    assert any(line.startswith("(") for line in shown)
    starts = [round(cue["start"] * 1000) for cue in cues]
    lines = [line for line in lrcparser.LrcParser.parse(content)["lrc_lines"] if str(line.text)]
    assert [str(line.text) for line in lines] == shown
    times = [line.start_time for line in lines]
    assert [60_000 * t.minutes + 1000 * t.seconds + t.microseconds // 1000 for t in times] == starts
    srt = by_ffmpeg("lrc", content.replace("{", "").replace("}", ""), tmp_path, "srt")  # which writes \\{ for these
    read = [line for line in pysubs2.SSAFile.from_string(srt) if line.text]
    assert [as_read(line.plaintext) for line in read] == [
        without_marks(line.replace("{", "").replace("}", "")) for line in shown
    ]
    assert [line.start for line in read] == starts


@settings(max_examples=60, deadline=None)
@given(TIMES, st.lists(ODD_TEXT, min_size=1, max_size=4))
def test_lrc_of_any_text(times, texts):
    segments = [segment(a / 1000, b / 1000, t) for a, b, t in zip(times[::2], times[1::2], texts)]
    cues = captions(spoken(*segments))
    lines = [
        re.fullmatch(r"\[(\d\d+):(\d\d\.\d{3})\](.*)", line) for line in text("lrc", spoken(*segments)).splitlines()
    ]
    assert None not in lines
    starts = [int(found[1]) * 60_000 + round(float(found[2]) * 1000) for found in lines]
    assert starts == sorted(starts)
    said = [(start, found[3]) for start, found in zip(starts, lines) if found[3]]
    plain = str.maketrans("[]\x00", "() ")
    shown = [(round(cue["start"] * 1000), as_read(cue["text"].translate(plain))) for cue in cues]
    assert said == [(start, line) for start, line in shown if line]


def read_vtt(content: str) -> list[tuple[int, int, dict]]:
    webvtt = pytest.importorskip("webvtt")
    cues = webvtt.from_string(content)
    return [(milliseconds(cue.start), milliseconds(cue.end), json.loads(cue.raw_text)) for cue in cues]


def test_metadata_are_events_and_rows_as_json(tmp_path):
    content = text("metadata.vtt", STREET, tags=TagOptions(top_k=1))
    cues = read_vtt(content)
    events = [value["event"] for _, _, value in cues if "event" in value]
    assert events == find_events(STREET)
    rows = [value["row"] for _, _, value in cues if "row" in value]
    assert [(row["start"], row["tags"][0]["name"]) for row in rows][:2] == [(0.0, "Speech"), (2.0, "Speech")]
    for start, end, value in cues:
        (inner,) = value.values()
        assert (start, end) == (round(inner["start"] * 1000), round(inner["end"] * 1000))
    assert by_ffmpeg("webvtt", content, tmp_path, "webvtt").count(" --> ") == len(cues)


@settings(max_examples=60, deadline=None)
@given(ODD_TEXT, st.integers(1, 9000))
def test_metadata_of_any_name(odd, steps):
    name = f"--> {odd}"
    classes = ClassSet((name, "other"), thresholds=(0.5, 0.5))
    rows = {**classes.values(), "logits": torch.tensor([[-3.0, -3.0]] * steps + [[3.0, -3.0]])}
    result = {**spoken(), "at_time_res": 0.4, "duration": 0.4 * (steps + 1), "mine": rows}
    cues = read_vtt(text("metadata.vtt", result))
    start, end = round(400 * steps), round(400 * (steps + 1))
    assert [cue[:2] for cue in cues] == [(start, end)] * 2
    assert [value["event"]["name"] for _, _, value in cues if "event" in value] == [name]


# --- annotations --------------------------------------------------------------------------------------------


def test_sed_is_dcases_table():
    rows = list(csv.DictReader(io.StringIO(text("sed", STREET, "a folder/talk.wav")), delimiter="\t"))
    events = find_events(STREET)
    assert [(row["filename"], float(row["onset"]), float(row["offset"]), row["event_label"]) for row in rows] == [
        ("talk.wav", event["start"], event["end"], event["name"]) for event in events
    ]
    german = {**STREET, "language": "de"}
    assert text("sed", german) == text("sed", STREET)
    assert "Regen" in text("sed", german, tags=TagOptions(label_language="de"))


def test_sed_is_read_by_dcase_util_and_scored_by_sed_eval(tmp_path):
    dcase_util = pytest.importorskip("dcase_util")
    sed_eval = pytest.importorskip("sed_eval")
    path = tmp_path / "talk.sed.tsv"
    path.write_text(text("sed", STREET), "utf-8")
    read = dcase_util.containers.MetaDataContainer().load(str(path))
    found = [(item.filename, item.onset, item.offset, item.event_label) for item in read]
    assert found == [("talk.wav", event["start"], event["end"], event["name"]) for event in find_events(STREET)]
    metrics = sed_eval.sound_event.EventBasedMetrics(read.unique_event_labels, t_collar=0.4)
    metrics.evaluate(reference_event_list=read, estimated_event_list=read)
    assert metrics.results_overall_metrics()["f_measure"]["f_measure"] == 1.0


RTTM = re.compile(r"SPEAKER (\S+) 1 (\d+\.\d{3}) (\d+\.\d{3}) <NA> <NA> (speech|singing|music) <NA> <NA>")


def read_rttm(content: str) -> list[tuple[str, int, int, str]]:
    """The ten columns of NIST's layout (The 2009 (RT-09) Rich Transcription Meeting Recognition Evaluation Plan)."""
    found = [RTTM.fullmatch(line) for line in content.splitlines()]
    assert None not in found
    return [(m[1], round(1000 * float(m[2])), round(1000 * float(m[3])), m[4]) for m in found]


def test_rttm_tells_speech_singing_and_music():
    assert read_rttm(text("rttm", STREET, "my talk.wav")) == [
        ("my_talk", 0, 4000, "speech"),
        ("my_talk", 10000, 4000, "music"),
        ("my_talk", 12000, 2000, "singing"),
    ]


def test_rttm_without_tags_is_where_words_are():
    assert read_rttm(text("rttm", TALK)) == [("talk", 500, 3750, "speech"), ("talk", 61001, 2998, "speech")]


@settings(max_examples=60, deadline=None)
@given(TIMES, ODD_TEXT)
def test_rttm_of_any_times_and_names(times, odd):
    result = spoken(*(segment(a / 1000, b / 1000, "x") for a, b in zip(times[::2], times[1::2])))
    read = read_rttm(text("rttm", result, f"{odd.replace('/', '')}.wav"))
    ends = [start + length for _, start, length, _ in read]
    assert all(b[1] - end > 500 for end, b in zip(ends, read[1:]))
    assert (read[0][1], ends[-1]) == (times[0], times[2 * (len(times) // 2) - 1])


def test_rttm_is_read_by_pyannote(tmp_path):
    util = pytest.importorskip("pyannote.database.util")
    path = tmp_path / "talk.rttm"
    path.write_text(text("rttm", STREET), "utf-8")
    tracks = util.load_rttm(path)["talk"].itertracks(yield_label=True)
    assert [(round(span.start, 3), round(span.end, 3), label) for span, _, label in tracks] == [
        (0.0, 4.0, "speech"),
        (10.0, 14.0, "music"),
        (12.0, 14.0, "singing"),
    ]


# --- tables -------------------------------------------------------------------------------------------------


def test_rows_are_the_same_table_in_csv_and_parquet():
    options = {"tags": TagOptions(top_k=2)}
    rows = list(csv.DictReader(io.StringIO(text("rows.csv", STREET, **options))))
    table = pyarrow.parquet.read_table(io.BytesIO(format_bytes("parquet", STREET, "", FormatOptions(**options))))
    same = table.to_pylist()
    assert len(rows) == len(same) > 10
    for row, other in zip(rows, same):
        assert list(row) == list(other)
        for name, value in other.items():
            if value is None or isinstance(value, str):
                assert row[name] == (value or "")
            else:
                assert float(row[name]) == pytest.approx(value, rel=1e-5, abs=5e-4)
    assert [(row["start"], row["name"]) for row in rows][:3] == [
        ("0.000", "Speech"),
        ("0.000", "Rain"),
        ("2.000", "Speech"),
    ]
    assert [row["start"] for row in rows if not row["name"]] == ["6.000", "14.000"]
    assert rows[-1]["end"] == "19.500"


def test_rows_of_all_heads_and_resolutions():
    fine, coarse = tagged(spoken(), {DOG: (1,)}, 10, 0.4), tagged(spoken(), {DOG: (0,)}, 2, 2.0)
    both = {**coarse, "at_time_res": [0.4, 2.0], "duration": 4.0}
    for key in ("audio_tag", "audio_tag_coverage"):
        both[key] = {0.4: fine[key], 2.0: coarse[key]}
    logits = {seconds: torch.full((n, 1), 4.0) for seconds, n in ((0.4, 10), (2.0, 2))}
    both["mine"] = {**ClassSet(('a, "b"\nc',)).values(), "logits": logits}
    rows = list(csv.DictReader(io.StringIO(text("rows.csv", both))))
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row["head"], row["row_seconds"]
        counts[key] = counts.get(key, 0) + 1
    assert counts == {("audio_tag", "0.4"): 10, ("audio_tag", "2"): 2, ("mine", "0.4"): 10, ("mine", "2"): 2}
    assert {row["name"] for row in rows if row["head"] == "mine"} == {'a, "b"\nc'}


# --- picture ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def street_wav(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "street $x$ 雨.wav"
    soundfile.write(path, noise(20), 16000)
    return path


def test_svg_has_words_and_lanes_as_text(street_wav):
    svg = text("svg", STREET, street_wav.name, audio=street_wav)
    root = xml.etree.ElementTree.fromstring(svg)
    shown = {element.text.strip() for element in root.iter() if element.text}
    assert {"Rain", "Dog", "Music", "Singing", street_wav.name} <= shown
    assert any("raining" in line for line in shown)
    assert svg == text("svg", STREET, street_wav.name, audio=street_wav)  # no date, no random ids


def test_png_shows_the_waveform_where_there_is_audio(street_wav):
    from matplotlib.image import imread

    with_wave, without = (
        imread(io.BytesIO(format_bytes("png", STREET, "x", FormatOptions(audio=audio)))) for audio in (street_wav, None)
    )
    grey = [np.isclose(image[..., :3], 0.45, atol=0.02).all(-1).mean() for image in (with_wave, without)]
    assert with_wave.shape[0] > without.shape[0]
    assert grey[0] > 0.01 > 10 * grey[1]


def test_pdf_is_one_page_read_by_another_program(street_wav):
    pdf = format_bytes("pdf", STREET, street_wav.name, FormatOptions(audio=street_wav))
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 1


@settings(max_examples=6, deadline=None, phases=[Phase.generate])  # to shrink a picture takes minutes
@given(TIMES, st.lists(ODD_TEXT, min_size=1, max_size=4))
def test_pictures_of_any_text(times, texts):
    segments = [segment(a / 1000, b / 1000, t) for a, b, t in zip(times[::2], times[1::2], texts)]
    svg = text("svg", spoken(*segments), "".join(texts))
    xml.etree.ElementTree.fromstring(svg)


def test_the_page_shows_what_is_written():
    """Every format has a section on its page."""
    page = (ROOT / "docs" / "formats.md").read_text("utf-8")
    assert [name for name in FORMATS if f"`{name}`" not in page] == []
