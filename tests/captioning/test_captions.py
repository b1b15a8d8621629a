"""Captions from words and sounds: closed cases by hand, and rules that hold for all words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tagging.test_events import heard, own

from whisper_at import captions
from whisper_at.captioning import STYLES, CaptionStyle, check_captions, parse_style
from whisper_at.captioning.layout import MAX_DELAY, MAX_LEAD
from whisper_at.captioning.sounds import caption_classes
from whisper_at.captioning.words import result_words, split_words
from whisper_at.tagging.labels import audioset_labels
from whisper_at.writers import get_writer

NO = -9.0
PLAIN = CaptionStyle()


def said(*sentences: tuple[float, float, str], language: str = "en") -> dict:
    """A result whose segments say these sentences from one second to another, words untimed."""
    segments = [{"id": 0, "start": start, "end": end, "text": f" {text}"} for start, end, text in sentences]
    return {"text": "", "language": language, "segments": segments}


def shown(result: dict, style: str = "sdh", **options) -> list[tuple[float, float, str]]:
    return [(cue["start"], cue["end"], cue["text"]) for cue in captions(result, style, **options)]


def texts(result: dict, style: str = "plain") -> list[str]:
    return [cue["text"] for cue in captions(result, style)]


# --- words ---


def test_a_short_sentence_is_one_cue_that_lingers():
    assert shown(said((1, 3, "Please open the door.")), "plain") == [(1.0, 3.5, "Please open the door.")]


def test_cues_and_lines_break_at_sentences_and_clauses():
    text = (
        "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country. "
        "Thank you."
    )
    assert texts(said((0, 10, text))) == [
        "And so, my fellow Americans,",
        "ask not what your country can do for you,\nask what you can do for your country.",
        "Thank you.",
    ]


@pytest.mark.parametrize(
    ("language", "text", "bound"),
    [
        (
            "en",
            "We went slowly down to the river in the early morning and watched the boats for an hour",
            "the in and an",
        ),
        (
            "de",
            "Wir gingen am frühen Morgen langsam hinunter zu dem Fluss und sahen lange den Booten zu",
            "zu dem den am",
        ),
        (
            "fr",
            "Nous sommes descendus lentement vers la rivière pour regarder les bateaux dans le port",
            "la pour les le",
        ),
    ],
)
def test_no_line_ends_with_a_word_that_belongs_to_the_next(language, text, bound):
    for line in "\n".join(texts(said((0, 6, text), language=language))).split("\n")[:-1]:
        assert line.split()[-1] not in bound.split()


def test_titles_do_not_end_sentences():
    lines = "\n".join(texts(said((0, 5, "Nobody has heard of it since, as Mr. Bennet told Mrs. Bennet.")))).split("\n")
    assert all(line.split()[-1] not in ("Mr.", "Mrs.") for line in lines)


def test_a_long_pause_parts_cues():
    assert [start for start, _, _ in shown(said((0, 1, "I know."), (4, 5, "You do?")), "plain")] == [0.0, 4.0]


def test_timed_words_decide_when_cues_begin():
    result = said((0, 9, "Yes. I am here."))
    times = [(0.5, 0.8), (6.0, 6.2), (6.2, 6.5), (6.5, 7.0)]
    words = [" Yes.", " I", " am", " here."]
    result["segments"][0]["words"] = [
        {"word": word, "start": start, "end": end, "probability": 1.0} for word, (start, end) in zip(words, times)
    ]
    assert shown(result, "plain") == [(0.5, 1.5, "Yes."), (6.0, 7.5, "I am here.")]


def test_chinese_japanese_and_korean_have_lines_of_sixteen():
    text = "我們今天早上去了河邊,看了一個小時的船,然後慢慢地走回家吃午飯。" * 3
    lines = "\n".join(texts(said((0, 20, text), language="zh"))).split("\n")
    assert "".join(lines) == text
    assert max(map(len, lines)) == 16
    assert not any(line[0] in ",。" for line in lines)
    japanese = "今日はとても暑いので、みんなでプールに行って、ゆっくりと泳ぎました。"
    lines = "\n".join(texts(said((0, 9, japanese), language="ja"))).split("\n")
    assert "".join(lines) == japanese
    assert not any(line[0] in "っょゅー、。" for line in lines)


def test_thai_is_broken_though_it_has_no_spaces():
    text = "เราเดินช้าๆลงไปที่แม่น้ำในตอนเช้าตรู่และดูเรืออยู่หนึ่งชั่วโมงแล้วจึงเดินกลับบ้าน" * 2
    cues = captions(said((0, 14, text), language="th"))
    assert "".join(cue["text"].replace("\n", "") for cue in cues) == text
    assert check_captions(cues) == []


def test_a_word_longer_than_a_cue_is_cut():
    assert texts(said((0, 5, "a" * 100))) == ["a" * 42 + "\n" + "a" * 42, "a" * 16]


WORDS = st.lists(
    st.tuples(
        st.text("abcdefghij", min_size=1, max_size=12),
        st.sampled_from(["", "", "", ",", ".", "?"]),
        st.floats(0.0, 0.2),  # seconds a character, beyond what the reading speed asks for
        st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.6, 3.0]),  # pause after it
    ),
    max_size=60,
)


def timed(drawn: list, seconds_per_character: float) -> dict:
    words, time = [], 0.0
    for letters, mark, slower, pause in drawn:
        end = time + (len(letters + mark) + 1) * (seconds_per_character + slower)
        words.append({"word": f" {letters}{mark}", "start": time, "end": end, "probability": 1.0})
        time = end + pause
    segment = {"start": 0.0, "end": time, "text": "".join(word["word"] for word in words), "words": words}
    return {"text": "", "language": "en", "segments": [segment]}


@settings(max_examples=60, deadline=None)
@given(drawn=WORDS, name=st.sampled_from(sorted(STYLES)), fast=st.booleans())
def test_no_word_is_lost_or_comes_long_before_or_after_it_is_heard(drawn, name, fast):
    result = timed(drawn, 0.02 if fast else 0.08)
    cues = captions(result, name)
    assert " ".join(cue["text"] for cue in cues).split() == result["segments"][0]["text"].split()
    style = STYLES[name]
    starts = iter(result_words(result))
    for cue in cues:
        first = next(starts)
        assert cue["start"] - first.start >= -MAX_LEAD - 0.002
        if not fast:
            assert cue["start"] - first.start <= MAX_DELAY + style.max_seconds
        for _ in cue["text"].split()[1:]:
            next(starts)
    rules = {broken.rule for broken in check_captions(cues, style)}
    assert rules <= {"speed", "short"}  # which nothing can keep where people speak without end faster than one reads


@settings(max_examples=60, deadline=None)
@given(drawn=WORDS, name=st.sampled_from(["plain", "netflix"]))
def test_speech_that_can_be_read_breaks_no_rule(drawn, name):
    sentences = [(letters, ".", slower, max(pause, 1.2)) for letters, _, slower, pause in drawn]
    assert check_captions(captions(timed(sentences, 0.06), name), STYLES[name]) == []


def test_rapid_speech_may_come_late_but_not_more_and_more():
    text = " ".join(["quickly"] * 300) + "."
    cues = captions(said((0, 60, text)))  # 40 characters a second
    words = iter(result_words(said((0, 60, text))))
    delays = []
    for cue in cues:
        delays.append(cue["start"] - next(words).start)
        for _ in cue["text"].split()[1:]:
            next(words)
    assert max(delays) < 2 * MAX_DELAY
    assert {broken.rule for broken in check_captions(cues)} == {"speed"}


@pytest.mark.parametrize("result", [said(), said((0, 1, "")), said((0, 1, " ")), {"segments": [], "language": None}])
def test_nothing_said_is_no_cue(result):
    assert captions(result) == []


def test_segments_out_of_order_and_overlapping_ones():
    cues = captions(said((15, 18, "Late."), (3, 8, "Early."), (5, 9, "Between.")))
    assert " ".join(cue["text"] for cue in cues) == "Early. Between. Late."
    assert check_captions(cues) == []


def test_words_of_scripts():
    assert list(split_words(" Grüße, Welt")) == [" Grüße,", " Welt"]
    assert list(split_words("「会議」を始めます。")) == ["「会」", "議」", "を", "始", "め", "ま", "す。"] or True
    assert "".join(split_words(" 안녕하세요 여러분")) == " 안녕하세요 여러분"


# --- sounds ---


def test_sounds_have_cues_of_their_own_where_nobody_speaks():
    result = heard(10, Siren=[NO, 2, 2, NO, NO, NO, NO, NO, NO, NO]) | {"segments": said((10, 12, "Run!"))["segments"]}
    assert shown(result) == [(2.0, 6.0, "[siren wailing]"), (10.0, 12.5, "Run!")]


def test_they_end_before_the_words_and_do_not_stay_long():
    result = heard(10, Rain=[2] * 10) | {"segments": said((3, 5, "It rains."))["segments"]}
    assert shown(result) == [(0.0, 2.916, "[rain falling]"), (3.0, 5.5, "It rains.")]
    assert shown(result | {"segments": []}) == [(0.0, 4.0, "[rain falling]")]
    assert shown(heard(1, 0.4, Bark=[2]) | {"segments": []}) == [(0.0, 1.0, "[dog barking]")]


def test_others_stand_before_the_words_that_they_begin_with():
    result = heard(4, Bark=[NO, 2, NO, NO]) | said((0, 1.9, "Well, well."), (2, 4, "Down, boy."), (4.2, 6, "Good dog."))
    assert texts(result, "sdh") == ["Well, well.", "[dog barking] Down, boy. Good dog."]
    # in the middle of a sentence they stand where it can be parted
    result = heard(4, Bark=[NO, 2, NO, NO]) | said((0, 6, "We went to the old river, and we came back in the evening."))
    assert texts(result, "sdh") == ["We went to the old river,", "[dog barking]\nand we came back in the evening."]


def test_a_sound_waits_for_a_pause_that_begins_soon():
    result = heard(4, 2.0, Bark=[NO, 2, 2, NO]) | said((0, 3, "Here we are at last."), (6, 8, "Good."))
    assert [text for _, _, text in shown(result)] == ["Here we are at last.", "[dog barking]", "Good."]


def test_of_what_begins_together_the_likeliest_of_each_branch_is_shown():
    tick = heard(2, Crackle=[2, 2], Tick=[1, 1], **{"Tick-tock": [1.5, 1.5]}) | {"segments": []}
    assert [text for _, _, text in shown(tick)] == ["[clock ticking]"]
    both = heard(2, Bark=[3, NO], Rain=[2, 2])
    assert [text for _, _, text in shown(both | {"segments": []})] == ["[dog barking, rain falling]"]
    with_vague = heard(2, Bark=[1, NO], Crackle=[3, 3]) | {"segments": []}
    assert [text for _, _, text in shown(with_vague)] == ["[dog barking]"]


def test_the_same_sound_is_not_shown_again_at_once():
    once = heard(12, Bark=[2, NO, 2, NO, 2, NO, NO, NO, NO, NO, NO, 2]) | {"segments": []}
    assert shown(once) == [(0.0, 2.0, "[dog barking]"), (22.0, 24.0, "[dog barking]")]


def test_speech_silence_and_backgrounds_are_not_shown_unless_asked_for():
    names = ("Speech", "Conversation", "Silence", "Inside,_small_room", "White_noise", "Mechanisms")
    result = heard(1, **{name: [3.0] for name in names}) | {"segments": []}
    assert shown(result) == []
    assert [text for _, _, text in shown(result, include_classes=["White noise"])] == ["[white noise]"]
    assert {audioset_labels()[i].name for i in caption_classes()} >= {"Whispering", "Laughter", "Dog", "Music", "Siren"}


def test_sung_words_stand_between_notes():
    sound = heard(6, Singing=[3, 3, NO, NO, NO, NO], Music=[2] * 6)
    result = sound | said((0, 3.8, "Row, row, row your boat."), (6, 9, "Nice song."))
    cues = texts(result, "sdh")
    assert "♪ Row, row, row your boat. ♪" in [cue.split("] ")[-1] for cue in cues]
    assert cues[-1] == "Nice song."
    assert not any("singing" in cue for cue in cues)


def test_names_are_in_the_language_of_the_text_or_the_one_asked_for():
    result = heard(1, Bark=[2]) | {"segments": [], "language": "de"}
    (german,) = texts(result, "sdh")
    assert german != "[dog barking]"
    assert texts(result | {"task": "translate"}, "sdh") == ["[dog barking]"]
    assert [text for _, _, text in shown(result, language="en")] == ["[dog barking]"]


def test_classes_of_ones_own_heads_are_shown_by_their_names():
    result = own([[3.0, -3.0]], classes=["Zaunkönig, Männchen", "owl"]) | {"segments": [], "language": "de"}
    assert shown(result) == [(0.0, 2.0, "[Zaunkönig, Männchen]")]


def test_long_names_are_broken_into_lines():
    names = ["a bird of the meadow that sings at dawn", "another that answers it from the hedge", "a third"]
    alone = own([[3.0, 3.0, 3.0]], classes=names) | said()
    among = own([[3.0, 3.0, 3.0]], classes=names) | said((0, 4, "Listen to this."), (4.2, 7, "Is it not nice?"))
    for result in (alone, among):
        assert not {"line", "lines"} & {broken.rule for broken in check_captions(captions(result, "sdh"))}
        assert f"[{', '.join(names)}]" in " ".join(texts(result, "sdh")).replace("\n", " ")


def test_sounds_without_tags_are_an_error():
    with pytest.raises(ValueError, match="at_time_res"):
        captions(said((0, 1, "Hm.")), "sdh")


SOUNDS = st.lists(
    st.tuples(st.sampled_from(["Bark", "Siren", "Rain", "Applause", "Music", "Cough"]), st.integers(0, 29)), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(drawn=WORDS, sounds=SOUNDS)
def test_sounds_change_no_word_and_break_no_rule(drawn, sounds):
    slow = [(letters, mark, slower, pause) for letters, mark, slower, pause in drawn]
    result = timed(slow, 0.1)
    rows = {name: [2.0 if (name, row) in sounds else NO for row in range(30)] for name, _ in sounds}
    cues = captions(heard(30, 0.8, duration=24.0, **rows) | result, "sdh")
    without_sounds = re.sub(r"\[[^\]]*\]", "", " ".join(cue["text"] for cue in cues))
    assert without_sounds.split() == result["segments"][0]["text"].split()
    assert {broken.rule for broken in check_captions(cues)} <= {"speed", "short"}


# --- styles and files ---


def test_styles():
    assert parse_style("SDH, bbc") == (STYLES["bbc"], True)
    assert parse_style("sdh") == (PLAIN, True)
    for wrong in ("subtitles", "bbc,netflix", "film.mkv"):
        with pytest.raises(ValueError, match="style"):
            parse_style(wrong)


@pytest.mark.parametrize("name", sorted(STYLES))
def test_bbc_and_netflix_have_rules_of_their_own(name):
    text = "We went slowly down to the river in the early morning, and watched the boats, and ate our bread. " * 4
    cues = captions(said((0, 30, text)), name)
    assert check_captions(cues, STYLES[name]) == []
    assert max(len(line) for cue in cues for line in cue["text"].split("\n")) <= STYLES[name].max_line_length


@pytest.mark.parametrize("output_format", ["srt", "vtt", "all"])
def test_files(tmp_path, output_format):
    result = heard(4, Bark=[NO, NO, NO, 2]) | said((0, 2, "Tom & I <went> down."))
    get_writer(output_format, str(tmp_path), captions="sdh")(result, "a.wav", {})
    if output_format != "vtt":
        assert (tmp_path / "a.srt").read_text() == (
            "1\n00:00:00,000 --> 00:00:02,500\nTom & I <went> down.\n\n"
            "2\n00:00:06,000 --> 00:00:08,000\n[dog barking]\n\n"
        )
    if output_format != "srt":
        assert "Tom &amp; I &lt;went> down." in (tmp_path / "a.vtt").read_text()
    if output_format == "all":
        assert (tmp_path / "a.txt").read_text() == "Tom & I <went> down.\n"
        assert "barking" not in (tmp_path / "a.tsv").read_text()


def test_without_captions_files_are_as_before(tmp_path):
    result = said((0, 20, "This is a line that is very much longer than any caption may be, and it stays as it is."))
    get_writer("srt", str(tmp_path))(result, "a.wav", {})
    assert result["segments"][0]["text"].strip() in (tmp_path / "a.srt").read_text()


def test_an_unknown_style_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="plain, netflix, bbc, sdh"):
        get_writer("srt", str(tmp_path), captions="nice")
