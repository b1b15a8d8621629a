"""Result files: upstream's bytes without tags, strict JSON with them, never half a file."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
import whisper.utils
from conftest import noise
from hypothesis import given, settings
from hypothesis import strategies as st

import whisper_at
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import make_head
from whisper_at.tagging.labels import audioset_labels
from whisper_at.tagging.rows import TagOptions
from whisper_at.writers import get_writer, result_to_json, tag_rows

FORMATS = ("txt", "vtt", "srt", "tsv", "json")
NOT_A_NUMBER = float("nan")


def segment(id: int, start: float, end: float, text: str, words: bool) -> dict:
    result = {
        "id": id, "seek": 0, "start": start, "end": end, "text": text, "tokens": [50363, 1, 2],
        "temperature": 0.0, "avg_logprob": -0.25, "compression_ratio": 0.8, "no_speech_prob": 0.01,
    }  # fmt: skip
    if words:
        parts = text.split(" ")[1:]
        step = (end - start) / max(1, len(parts))
        result["words"] = [
            {"word": " " + part, "start": start + i * step, "end": start + (i + 1) * step, "probability": 0.5}
            for i, part in enumerate(parts)
        ]
    return result


def speech(words: bool = False) -> dict:
    texts = [" one two\tthree", " «vier» --> fünf", " 六 七 eight nine ten eleven twelve"]
    segments = [segment(i, 3661.5 * i, 3661.5 * i + 2.25, text, words) for i, text in enumerate(texts)]
    return {"text": "".join(texts), "segments": segments, "language": "en"}


def silence() -> dict:
    return {"text": "", "segments": [], "language": "en"}


def tagged(result: dict, rows: int = 3, at_time_res: float = 10.0, **others) -> dict:
    """Logits that fall with the class index; the last row is half covered, the one before it not heard."""
    logits = torch.arange(rows)[:, None] + 2.0 - 0.5 * torch.arange(527)[None]
    coverage = torch.ones(rows)
    coverage[-1] = 0.5
    if rows > 1:
        logits[-2] = NOT_A_NUMBER
        coverage[-2] = 0.0
    tags = {"audio_tag": logits, "audio_tag_coverage": coverage, "at_time_res": at_time_res}
    return {**result, **tags, "duration": rows * at_time_res - 5.05, "task": "transcribe", **others}


def strict(text: str) -> dict:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("output_format", [*FORMATS, "all"])
@pytest.mark.parametrize("result", [speech(), speech(words=True), silence()], ids=["text", "words", "silence"])
@pytest.mark.parametrize(
    "options",
    [{}, {"highlight_words": True}, {"max_line_width": 12, "max_line_count": 1}, {"max_words_per_line": 2}],
    ids=["plain", "highlighted", "narrow", "few"],
)
def test_without_tags_every_byte_is_upstreams(tmp_path, output_format, result, options):
    """D27 as well: speech-free audio writes fine in every format."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(), theirs.mkdir()
    get_writer(output_format, str(ours))(result, "some/where/a.b.wav", **options)
    whisper.utils.get_writer(output_format, str(theirs))(result, "some/where/a.b.wav", **options)
    assert files(ours) == files(theirs)
    expected = FORMATS if output_format == "all" else (output_format,)
    assert set(files(ours)) == {f"a.b.{extension}" for extension in expected}


@pytest.mark.parametrize("first", [True, False])
def test_cleared_segments_do_not_stop_captions(tmp_path, first):
    """A window without text has an empty list of words though none are timed; upstream fails where it is first."""
    result = speech()
    cleared = segment(3, 0, 1, "", False) | {"words": [], "tokens": []}
    result["segments"] = [cleared, *result["segments"]] if first else [*result["segments"], cleared]
    plain = result | {"segments": [{k: v for k, v in s.items() if k != "words"} for s in result["segments"]]}
    for folder in ("one", "all", "theirs"):
        (tmp_path / folder).mkdir()
    for name in FORMATS:
        get_writer(name, str(tmp_path / "one"))(result, "a.wav", {})
        whisper.utils.get_writer(name, str(tmp_path / "theirs"))(result if name == "json" else plain, "a.wav", {})
    get_writer("all", str(tmp_path / "all"))(result, "a.wav", {})
    for name in FORMATS:
        written = [(tmp_path / folder / f"a.{name}").read_bytes() for folder in ("one", "all", "theirs")]
        assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("result", [speech(), silence()], ids=["speech", "silence"])
def test_tags_change_json_only(tmp_path, result):
    """D26: tags in the result do not break writing. D27: nor do they need speech."""
    get_writer("all", str(tmp_path))(tagged(result), "a.wav")
    whisper.utils.get_writer("all", str(tmp_path))(result, "b.wav")
    written = files(tmp_path)
    for extension in ("txt", "vtt", "srt", "tsv"):
        assert written[f"a.{extension}"] == written[f"b.{extension}"]
    ours, theirs = strict(written["a.json"].decode()), strict(written["b.json"].decode())
    assert {key: ours[key] for key in theirs} == theirs
    assert list(ours) == [*theirs, "duration", "at_time_res", "audio_tag_coverage", "audio_tag", "task", "events"]


def test_json_rows(tmp_path):
    get_writer("json", str(tmp_path), top_k=2)(tagged(speech()), "a.wav")
    content = strict((tmp_path / "a.json").read_text())
    assert content["duration"] == 24.95
    assert content["at_time_res"] == 10.0
    assert content["audio_tag_coverage"] == [1.0, 0.0, 0.5]
    assert [(r["start"], r["end"], r["coverage"]) for r in content["audio_tag"]] == [
        (0.0, 10.0, 1.0),
        (10.0, 20.0, 0.0),
        (20.0, 24.95, 0.5),
    ]
    first, unheard, last = (row["tags"] for row in content["audio_tag"])
    assert unheard == []
    speech_class = audioset_labels()[0]
    assert first[0] == {
        "index": 0,
        "mid": speech_class.mid,
        "name": "Speech",
        "logit": 2.0,
        "probability": pytest.approx(1 / (1 + math.exp(-2))),
    }
    assert [tag["logit"] for tag in last] == [4.0, 3.5]


def test_several_resolutions_are_keyed_by_seconds(tmp_path):
    coarse, fine = tagged(speech(), 2, 10.0), tagged(speech(), 30, 0.4)
    result = {**coarse, "at_time_res": [10.0, 0.4], "duration": 12.0}
    for key in ("audio_tag", "audio_tag_coverage"):
        result[key] = {10.0: coarse[key], 0.4: fine[key]}
    get_writer("json", str(tmp_path))(result, "a.wav")
    content = strict((tmp_path / "a.json").read_text())
    assert content["at_time_res"] == [10.0, 0.4]
    assert {key: len(rows) for key, rows in content["audio_tag"].items()} == {"10.0": 2, "0.4": 30}
    assert {key: len(shares) for key, shares in content["audio_tag_coverage"].items()} == {
        "10.0": 2,
        "0.4": 30,
    }
    assert content["audio_tag"]["0.4"][3]["end"] == 1.6


def test_tags_are_chosen_by_class_then_threshold_then_number():
    options = TagOptions(include_classes=["Dog", "/m/09x0r", 3, 1], p_threshold=0.5, top_k=2)
    rows = tag_rows(tagged(silence(), 1), options)
    assert [[tag["index"] for tag in row["tags"]] for row in rows] == [[0, 1]]
    assert [tag["index"] for tag in tag_rows(tagged(silence(), 1), TagOptions(p_threshold=1.0))[0]["tags"]] == [
        0,
        1,
    ]  # strictly
    assert tag_rows(tagged(silence(), 1), TagOptions(include_classes=iter([500])))[0]["tags"] == []


def test_names_follow_the_language_but_the_class_does_not(monkeypatch):
    """Names of another language may repeat, so the index must not be looked up by them."""
    monkeypatch.setattr("whisper_at.tagging.labels.label_names", lambda language: [f"{language} sound"] * 527)
    for language, task, wanted, shown in [
        ("de", "transcribe", "follow_asr", "de"),
        ("de", "translate", "follow_asr", "en"),
        ("de", "transcribe", "fr", "fr"),
    ]:
        result = tagged({**silence(), "language": language}, 1, task=task)
        tags = tag_rows(result, TagOptions(label_language=wanted))[0]["tags"]
        assert {tag["name"] for tag in tags} == {f"{shown} sound"}
        assert [tag["index"] for tag in tags] == [0, 1, 2, 3, 4]


def test_an_extra_key_never_breaks_json():
    result = tagged(speech(), 1, scores=torch.tensor([1.0, NOT_A_NUMBER]), nested={1: (float("inf"), None, True)})
    content = strict(json.dumps(result_to_json(result), allow_nan=False))
    assert content["scores"] == [1.0, None]
    assert content["nested"] == {"1": [None, None, True]}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=8),
    st.integers(1, 600),
)
def test_any_logits_make_strict_json(values, top_k):
    logits = torch.full((1, 527), NOT_A_NUMBER)
    logits[0, : len(values)] = torch.tensor(values)
    result = tagged(silence(), 1, audio_tag=logits)
    content = strict(json.dumps(result_to_json(result, TagOptions(top_k, -math.inf)), allow_nan=False))
    for tag in content["audio_tag"][0]["tags"]:
        assert 0 <= tag["probability"] <= 1
        assert tag["logit"] is None or tag["logit"] == values[tag["index"]]


def test_the_result_itself_is_left_alone():
    result = tagged(speech())
    keys, logits = list(result), result["audio_tag"].clone()
    result_to_json(result)
    assert list(result) == keys
    assert torch.equal(result["audio_tag"].nan_to_num(0), logits.nan_to_num(0))
    bare = speech()
    assert result_to_json(bare) is bare


@pytest.mark.parametrize("output_format", ["txt", "json", "all"])
def test_an_error_leaves_no_file_and_the_old_one_stays(tmp_path, output_format):
    """D26: a failing writer left a truncated file behind."""
    bad = speech()
    bad["segments"].append({**bad["segments"][0], "text": object()})
    (tmp_path / "a.txt").write_text("of before")
    with pytest.raises((TypeError, AttributeError)):
        get_writer(output_format, str(tmp_path))(bad, "a.wav")
    assert files(tmp_path) == {"a.txt": b"of before"}


def test_an_old_file_is_replaced(tmp_path):
    (tmp_path / "a.txt").write_text("of before")
    get_writer("txt", str(tmp_path))(silence(), "a.wav")
    assert files(tmp_path) == {"a.txt": b""}


def test_single_writers_are_upstreams_kind(tmp_path):
    import io

    for output_format in FORMATS:
        writer = get_writer(output_format, str(tmp_path))
        theirs = whisper.utils.get_writer(output_format, str(tmp_path))
        assert isinstance(writer, whisper.utils.ResultWriter)
        assert (writer.extension, writer.output_dir) == (output_format, str(tmp_path))
        ours, expected = io.StringIO(), io.StringIO()
        writer.write_result(speech(), ours)
        theirs.write_result(speech(), expected)
        assert ours.getvalue() == expected.getvalue()


def test_an_unknown_format_is_refused_as_upstream_does(tmp_path):
    with pytest.raises(KeyError):
        whisper.utils.get_writer("doc", str(tmp_path))
    with pytest.raises(KeyError):
        get_writer("doc", str(tmp_path))


def test_a_language_without_names_is_said_once(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        get_writer("all", str(tmp_path), label_language="xx", captions="sdh")(tagged(speech()), "a.wav")
    assert ["no class names in 'xx'" in str(warning.message) for warning in caught] == [True]


@pytest.mark.parametrize("resolution", [4.0, [0.4, 4.0]])
def test_the_standard_library_writes_a_result_and_it_is_read_back(model_en, resolution):
    """D26, of the result itself: the names of tags, events and files are the same from JSON."""
    head = make_head("mean_mlp", n_layer=2, rep_dim=64, label_dim=2)
    head.classes = ClassSet(("bell", "horn"))
    model_en.attach("mine", head)
    options = dict(at_time_res=resolution, temperature=0.0, sample_len=8, word_timestamps=True, clip_timestamps="0,5,9")
    result = model_en.transcribe(noise(12), **options)
    back = strict(json.dumps(whisper_at.to_jsonable(result), allow_nan=False))
    assert back["segments"] == json.loads(json.dumps(result["segments"]))
    assert whisper_at.parse_at_label(back, p_threshold=-9) == whisper_at.parse_at_label(result, p_threshold=-9)
    assert whisper_at.find_events(back, -9) == whisper_at.find_events(result, -9)
    assert result_to_json(back)["mine"] == result_to_json(result)["mine"]
