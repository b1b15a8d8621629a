"""The tables of names in other languages: whole, of the right script, fit for captions."""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter

import pytest
from whisper.tokenizer import LANGUAGES

from whisper_at.tagging.labels import LABELS, _read_names, audioset_labels, caption_names, label_languages, label_names

LOANS = (
    "Mantra; Banjo; Sitar; Mandolin; Ukulele; Piano; Synthesizer; Sampler; Timpani; Tabla; Hi-hat; Gong; "
    "Glockenspiel; Trombone; Pizzicato; Cello; Didgeridoo; Shofar; Theremin; Heavy metal; Punk rock; Grunge; "
    "Rock and roll; Rhythm and blues; Reggae; Bluegrass; Funk; Jazz; Disco; Opera; Techno; Dubstep; "
    "Drum and bass; Electronica; Flamenco; Blues; Afrobeat; Ska; Skateboard; Ding-dong; Blender; Alarm; Sonar; "
    "Ping; Boing; Radio"
).split("; ")
"""Genres, instruments and imitations that many languages write as English does, each of them read in its languages."""
SAME_WORD = {
    "ca": "Animal; Clarinet; Vehicle".split("; "),
    "cs": "Country".split("; "),
    "da": "Guitar; Beatboxing; Bus; Printer; Hammer; Vibration".split("; "),
    "de": "Bus; Vibration; Zither; Rimshot; Progressive rock; Psychedelic rock; Wind; Explosion; Echo".split("; "),
    "es": "Animal; Mosquito".split("; "),
    "fr": (
        "Animal; Vibration; Rimshot; Explosion; Conversation; Narration, monologue; Marimba, xylophone; "
        "Vibraphone; Saxophone; Harmonica; Train; Silence"
    ).split("; "),
    "hr": "Ocean".split("; "),
    "id": "Printer; Organ".split("; "),
    "it": "Orchestra".split("; "),
    "ms": "Zither; Organ; Siren".split("; "),
    "nl": "Bus; Printer; Rimshot; Wind; Echo; Insect; Harp; Water; Plop".split("; "),
    "no": "Hammer; Cymbal; Glass".split("; "),
    "pl": "Echo; Ocean".split("; "),
    "pt": "Animal".split("; "),
    "ro": "Animal; Clarinet".split("; "),
    "sk": "Country; Organ".split("; "),
    "sl": "Country; Ocean".split("; "),
    "sv": "Vibration; Explosion; Siren; Cymbal; Trumpet".split("; "),
    "tl": "Printer; Vacuum cleaner; Ringtone; Zither; Wind chime; Background music; Power tool".split("; "),
    "tr": "Siren".split("; "),
}
"""Words of a language that are spelled as in English."""
ASKED_FOR = (
    "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv ms nl no pl pt ro ru sk sl sr sv sw ta th "
    "tl tr uk ur vi zh"
).split()
SCRIPTS = {
    **dict.fromkeys(("bg", "ru", "sr", "uk"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)),
    "bn": ("BENGALI",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "ta": ("TAMIL",),
    "th": ("THAI",),
    "zh": ("CJK",),
}
MAX_CAPTION = 32
LATIN_ALLOWED = 5
"""Latin letters that a name in another script may have: DTMF, SLR, DJ."""


def table(language: str) -> list[dict[str, str]]:
    with open(LABELS / f"{language}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_languages_there_are():
    assert set(ASKED_FOR) <= set(label_languages())
    assert set(label_languages()) <= set(LANGUAGES)


@pytest.mark.parametrize("language", ASKED_FOR)
def test_every_class_has_a_name_of_its_own(language):
    rows = table(language)
    assert [(row["index"], row["mid"]) for row in rows] == [
        (str(label.index), label.mid) for label in audioset_labels()
    ]
    repeated = {name: n for name, n in Counter(name.casefold() for name in label_names(language)).items() if n > 1}
    assert repeated == {}
    assert all(caption_names(language))


def test_english_names_are_audiosets():
    assert label_names("en") == tuple(label.name for label in audioset_labels())


@pytest.mark.parametrize("language", ASKED_FOR)
def test_names_are_tidy_and_captions_short(language):
    for text in label_names(language) + caption_names(language):
        assert text == unicodedata.normalize("NFC", " ".join(text.split()))
        assert not set(text) & set("[]{}|♪\u200e\u200f")
    assert max(map(len, caption_names(language))) <= MAX_CAPTION
    cased = [text[0].isupper() for text in label_names(language) if text[0].lower() != text[0].upper()]
    assert all(cased)


@pytest.mark.parametrize("language", ASKED_FOR)
def test_letters_are_of_the_right_script(language):
    scripts = SCRIPTS.get(language, ("LATIN",))
    for text in label_names(language) + caption_names(language):
        others = [c for c in text if c.isalpha() and not unicodedata.name(c).startswith(scripts)]
        assert len(others) <= LATIN_ALLOWED * (language in SCRIPTS), text
        assert all(c.isascii() for c in others), text


@pytest.mark.parametrize("language", [language for language in ASKED_FOR if language != "en"])
def test_names_are_not_left_in_english(language):
    same = {a for a, b in zip(label_names("en"), label_names(language)) if a.casefold() == b.casefold()}
    assert same - set(LOANS) - set(SAME_WORD.get(language, ())) == set()


@pytest.mark.parametrize("language", ASKED_FOR)
def test_captions_of_a_language_begin_in_one_case(language):
    """Names of places, people and feasts apart, which keep their capital."""
    cased = [text[0].isupper() for text in caption_names(language) if text[0].lower() != text[0].upper()]
    assert min(sum(cased), len(cased) - sum(cased)) <= 14


def test_tables_are_read_when_they_are_asked_for():
    _read_names.cache_clear()
    label_names("de")
    assert _read_names.cache_info().currsize == 2  # and English, for classes that a table lacks
