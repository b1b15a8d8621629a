"""The check of caption files: every rule broken alone, files as they are found, and the command."""

from __future__ import annotations

import pytest

from whisper_at import cli
from whisper_at.captioning import CaptionStyle, check_captions, read_captions

GOOD = {"start": 1.0, "end": 3.0, "text": "Please open\nthe door."}


@pytest.mark.parametrize(
    ("cues", "rule"),
    [
        ([GOOD | {"end": 1.9}], "short"),
        ([GOOD | {"end": 8.1}], "long"),
        ([GOOD | {"text": "a" * 41 + "\n" + "b" * 20}], "speed"),
        ([GOOD | {"text": "a" * 43, "end": 4.0}], "line"),
        ([GOOD | {"text": "a\nb\nc"}], "lines"),
        ([GOOD | {"text": " "}], "empty"),
        ([GOOD | {"text": "a\n\nb"}], "empty"),
        ([GOOD, GOOD | {"start": 2.9, "end": 5.0}], "overlap"),
        ([GOOD, GOOD | {"start": 3.05, "end": 5.0}], "gap"),
        ([GOOD | {"start": 4.0, "end": 6.0}, GOOD], "order"),
        ([GOOD | {"text": "会" * 17}], "line"),
    ],
)
def test_each_rule(cues, rule):
    assert [broken.rule for broken in check_captions(cues)] == [rule]


def test_what_is_right_breaks_none():
    assert check_captions([GOOD, GOOD | {"start": 3.084, "end": 10.084}]) == []
    assert check_captions([GOOD | {"text": "会" * 16 + "\n" + "会" * 16, "end": 4.0}]) == []
    style = CaptionStyle(min_word_seconds=0.5)
    assert [broken.rule for broken in check_captions([GOOD | {"text": "a b c d e"}], style)] == ["speed"]


def test_files_as_they_are_found(tmp_path):
    path = tmp_path / "a.srt"
    path.write_bytes("\ufeff1\r\n00:00:01,000 --> 00:00:03,000\r\nPlease open\r\nthe door.\r\n\r\n".encode())
    assert read_captions(path) == [GOOD]
    path = tmp_path / "a.vtt"
    path.write_text(
        "WEBVTT - a film\n\nNOTE\nnothing\n\nSTYLE\n::cue { color: red }\n\n"
        "intro\n00:01.000 --> 00:03.000 align:start\n"
        "<v Ann>Please <b>open</b>\nthe door.\n\n01:00:00.000 --> 01:00:02.000\nTom &amp; I &lt;3\n"
    )
    assert read_captions(path) == [GOOD, {"start": 3600.0, "end": 3602.0, "text": "Tom & I <3"}]


@pytest.mark.parametrize("content", [b"just text", b"\xff\xfe\x00", b"1\n00:00 --> 00:01\nHm.\n"])
def test_files_that_are_no_captions(tmp_path, content, capsys):
    path = tmp_path / "a.srt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.srt"):
        read_captions(path)
    assert cli.main(["captions-check", str(path)]) == 1
    assert "a.srt" in capsys.readouterr().err


def test_an_empty_file_has_no_cues(tmp_path):
    path = tmp_path / "a.srt"
    path.write_text("")
    assert read_captions(path) == []


def test_the_command(tmp_path, capsys):
    good, bad = tmp_path / "good.srt", tmp_path / "bad.srt"
    good.write_text("1\n00:00:01,000 --> 00:00:03,000\nPlease open the door.\n")
    bad.write_text("1\n00:00:01,000 --> 00:00:01,500\nPlease open the door.\n")
    assert cli.main(["captions-check", str(good)]) == 0
    assert capsys.readouterr().out == f"{good}: 1 cues, all as plain has it\n"
    assert cli.main(["captions-check", str(good), str(bad), str(tmp_path / "none.srt"), "--style", "netflix"]) == 1
    printed = capsys.readouterr()
    assert f"{bad}: cue 1 (00:00:01.000) stays for 0.500 s, at least 0.834 s is the rule" in printed.out
    assert "none.srt" in printed.err
