"""Sounds in brackets among the words of captions."""

from __future__ import annotations

import pytest
from test_events import heard, own

from whisper_at import find_events, with_sounds
from whisper_at.tagging.captions import MAX_SECONDS, MIN_SECONDS
from whisper_at.writers import get_writer

NO = -9.0


def segment(start: float, end: float, text: str, words: bool = False) -> dict:
    timed = {"words": [{"word": f" {text}", "start": start + 0.2, "end": end, "probability": 0.9}]} if words else {}
    return {"id": 0, "start": start, "end": end, "text": f" {text}", **timed}


def shown(result: dict) -> list[tuple[float, float, str]]:
    return [(one["start"], one["end"], one["text"].strip()) for one in with_sounds(result)["segments"]]


def test_sounds_have_captions_of_their_own_where_nobody_speaks():
    result = heard(10, Siren=[NO, 2, 2, NO, NO, NO, NO, NO, NO, NO]) | {"segments": [segment(10, 12, "Run!")]}
    assert shown(result) == [(2.0, 6.0, "[siren]"), (10, 12, "Run!")]


def test_they_end_before_the_words_and_do_not_stay_long():
    result = heard(10, Rain=[2] * 10) | {"segments": [segment(3, 5, "It rains.")]}
    assert shown(result) == [(0.0, 3, "[rain]"), (3, 5, "It rains.")]
    assert shown(result | {"segments": []}) == [(0.0, MAX_SECONDS, "[rain]")]
    assert shown(heard(1, 0.4, Bark=[2]) | {"segments": []}) == [(0.0, MIN_SECONDS, "[bark]")]


def test_others_stand_before_the_words_that_they_sound_with():
    result = heard(4, Bark=[NO, 2, NO, NO]) | {"segments": [segment(1, 5, "Down, boy."), segment(6, 7, "Good.")]}
    assert shown(result) == [(1, 5, "[bark] Down, boy."), (6, 7, "Good.")]
    result["segments"] = [segment(0, 1, "Well."), segment(2.5, 4, "Down.")]  # too little time before it
    assert shown(result) == [(0, 1, "Well."), (2.5, 4, "[bark] Down.")]


def test_what_begins_together_is_shown_together_and_what_follows_cuts_it_short():
    result = heard(6, Bark=[3, NO, NO, NO, NO, NO], Rain=[2] * 6, Siren=[NO, NO, 2, 2, NO, NO]) | {"segments": []}
    assert shown(result) == [(0.0, 4.0, "[bark, rain]"), (4.0, 8.0, "[siren]")]
    close = heard(6, 0.4, Bark=[3, NO, NO, NO, NO, NO], Siren=[NO, NO, 2, 2, NO, NO]) | {"segments": []}
    assert shown(close) == [(0.0, MIN_SECONDS, "[bark, siren]")]


def test_the_same_sound_is_not_shown_again_at_once():
    once = heard(12, Bark=[2, NO, 2, NO, 2, NO, NO, NO, NO, NO, NO, 2]) | {"segments": []}
    assert shown(once) == [(0.0, 2.0, "[bark]"), (22.0, 24.0, "[bark]")]


def test_speech_silence_and_the_background_are_not_shown():
    names = ("Speech", "Conversation", "Silence", "Inside,_small_room", "White_noise", "Television")
    result = heard(1, **{name: [3.0] for name in names}) | {"segments": []}
    assert len(find_events(result, specific=False)) == len(names)
    assert shown(result) == []
    assert shown(heard(1, Whispering=[2], Laughter=[1]) | {"segments": []}) == [(0.0, 2.0, "[whispering, laughter]")]


def test_names_are_short_and_those_of_ones_own_heads_are_left_as_they_are():
    result = heard(1, **{"Vehicle_horn,_car_horn,_honking": [2]}) | {"segments": []}
    assert shown(result) == [(0.0, 2.0, "[vehicle horn]")]
    assert shown(own([[3.0, -3.0]], classes=["Zaunkönig, Männchen", "owl"]) | {"segments": []}) == [
        (0.0, 2.0, "[Zaunkönig, Männchen]")
    ]


def test_chosen_events_and_the_result_stays_as_it_was():
    result = heard(2, Rain=[2, 2], Bark=[2, 2]) | {"segments": [segment(0, 1, "Hm.")]}
    events = find_events(result, include_class_list="Bark")
    assert with_sounds(result, events)["segments"][0]["text"] == " [bark] Hm."
    assert result["segments"] == [segment(0, 1, "Hm.")]


def test_segments_with_words_get_the_sounds_as_words():
    result = heard(4, Bark=[2, NO, NO, NO], Siren=[NO, NO, NO, 2]) | {"segments": [segment(0, 2, "Down", words=True)]}
    first, last = with_sounds(result)["segments"]
    assert [word["word"] for word in first["words"]] == [" [bark]", " Down"]
    assert (first["words"][0]["start"], first["words"][0]["end"]) == (0, 0.2)
    assert [(word["word"], word["start"], word["end"]) for word in last["words"]] == [(" [siren]", 6.0, 8.0)]


def test_cleared_segments_are_no_words(tmp_path):
    """They have an empty list of words though none are timed, and no length."""
    cleared = segment(4.5, 4.5, "") | {"text": "", "words": []}
    result = heard(10, Music=[NO, NO, 2, 2, NO, NO, NO, NO, NO, NO]) | {"segments": [cleared, segment(10, 12, "Bye.")]}
    assert shown(result) == [(4.0, 8.0, "[music]"), (4.5, 4.5, ""), (10, 12, "Bye.")]
    result["language"] = "en"
    get_writer("all", str(tmp_path), sound_captions=True)(result, "a.wav", {})
    assert "[music]" in (tmp_path / "a.srt").read_text()
    assert "Bye." in (tmp_path / "a.vtt").read_text()


def test_segments_of_clips_out_of_order():
    result = heard(10, Rain=[2] * 10) | {"segments": [segment(15, 18, "Late."), segment(3, 5, "Early.")]}
    assert shown(result) == [(0.0, 3, "[rain]"), (3, 5, "Early."), (15, 18, "Late.")]


@pytest.mark.parametrize("words", [False, True])
def test_files(tmp_path, words):
    result = heard(4, Bark=[NO, NO, NO, 2]) | {"segments": [segment(0, 2, "Down, boy.", words)], "text": "Down, boy."}
    options = {"max_line_width": None, "max_line_count": None, "highlight_words": False}
    for name in ("all", "srt", "vtt"):
        folder = tmp_path / name
        folder.mkdir()
        get_writer(name, str(folder), sound_captions=True)(result, "a.wav", options)
    srt = "1\n00:00:00,{}00 --> 00:00:02,000\nDown, boy.\n\n2\n00:00:06,000 --> 00:00:08,000\n[bark]\n\n"
    assert (tmp_path / "srt" / "a.srt").read_text() == srt.format(2 if words else 0)
    for name in ("srt", "vtt"):
        assert (tmp_path / "all" / f"a.{name}").read_bytes() == (tmp_path / name / f"a.{name}").read_bytes()
    assert "bark" not in (tmp_path / "all" / "a.txt").read_text() + (tmp_path / "all" / "a.tsv").read_text()
    plain = tmp_path / "plain"
    plain.mkdir()
    get_writer("srt", str(plain))(result, "a.wav", options)
    assert "bark" not in (plain / "a.srt").read_text()


def test_nothing_to_show_is_the_plain_file(tmp_path):
    untagged = {"text": "Hm.", "language": "en", "segments": [segment(0, 1, "Hm.")]}
    for folder, captions in (("a", True), ("b", False)):
        (tmp_path / folder).mkdir()
        get_writer("srt", str(tmp_path / folder), sound_captions=captions)(untagged, "a.wav")
    assert (tmp_path / "a" / "a.srt").read_bytes() == (tmp_path / "b" / "a.srt").read_bytes()
