"""Write docs/sound-names.md: the sounds that captions need most, in every language that the classes have names in.

Run it after a name has changed: ``python docs/scripts/sound_names.py``. ``tests/test_docs.py`` compares both.
"""

from __future__ import annotations

import csv
from pathlib import Path

from whisper.tokenizer import LANGUAGES

from whisper_at.captioning.sounds import caption_classes
from whisper_at.tagging.labels import LABELS, caption_names, find_class, label_languages

PAGE = Path(__file__).parents[1] / "sound-names.md"
SOUNDS = (
    "Laughter",
    "Applause",
    "Cheering",
    "Crowd",
    "Screaming",
    "Shout",
    "Whispering",
    "Crying, sobbing",
    "Baby cry, infant cry",
    "Sigh",
    "Gasp",
    "Cough",
    "Sneeze",
    "Breathing",
    "Snoring",
    "Walk, footsteps",
    "Singing",
    "Whistling",
    "Music",
    "Piano",
    "Bark",
    "Meow",
    "Bird vocalization, bird call, bird song",
    "Horse",
    "Wind",
    "Rain",
    "Thunder",
    "Waves, surf",
    "Door",
    "Knock",
    "Doorbell",
    "Telephone bell ringing",
    "Typing",
    "Shatter",
    "Engine",
    "Vehicle horn, car horn, honking",
    "Siren",
    "Train",
    "Gunshot, gunfire",
    "Explosion",
)
READINGS = Path(__file__).with_name("sound_names_read.csv")
TEXT = """\
# Names of sounds

The 527 classes have names in {n} languages. Each is there twice: a *name*, which tables and JSON show, and what
captions put in brackets. They were written for this project, class by class, and read again by back-translation, with
no native speakers so far: **if your language sounds wrong, please say so or mend it**.

- `label_names("de")` and `caption_names("de")` of `whisper_at.tagging.labels`, `print_label_name("de")`,
  `print_support_language()`.
- `--label_language de` names tags and sounds in German, whatever is spoken; by default they follow the language of
  the text.
- `--label_language my_names.csv` takes names of your own: columns `mid` or `index`, `name` and, for captions,
  `caption`.

The tables are {megabytes:.1f} MB together. One is read, in a few milliseconds, when its names are first asked for.

## Mend or add a language

1. `whisper_at/assets/labels/<code>.csv` has a line for each class: index, MID, name, caption form. Edit it as text,
   in UTF-8.
2. The definition of a class decides what it means: see the [AudioSet
   ontology](https://research.google.com/audioset/ontology/index.html).
3. A name is what one would look up: a noun phrase with a capital letter, different from all other names of the
   language.
4. A caption form is what stands in the brackets of good subtitles of the language, without the brackets: what is
   heard rather than what makes it, at most 32 characters.
5. A word of English stays only where the language has no other (*jazz*, *theremin*).
6. `python docs/scripts/sound_names.py` writes this page anew.
7. `python -m pytest tests/tagging/test_label_languages.py tests/test_docs.py` says what is wrong.

## The second reading

In every language the caption forms of the {captions} classes that captions show and the names of 60 classes drawn at
random were shuffled, translated back to English without the class beside them, and then compared with it and with
AudioSet's definition. A string that came back ambiguous counts as one that did not come back as its class. The rest of
each table was read beside the English. Some corrections are of strings that did come back, but that no subtitler would
write; a few strings that did not come back were right. The readers knew the list of classes after their first language.

| language | strings | not back as their class | classes corrected |
|---|--:|--:|--:|
{readings}

## Forty sounds in each language

"""


def page() -> str:
    """Return the page."""
    english = caption_names("en")
    indices = [find_class(name) for name in SOUNDS]
    parts = []
    for code in label_languages():
        if code == "en":
            continue
        names = caption_names(code)
        lines = "; ".join(f"*{english[i]}* {names[i]}" for i in indices)
        parts.append(f"**{LANGUAGES[code].title()} ({code}).** {lines}\n")
    text = TEXT.format(
        n=len(label_languages()),
        megabytes=sum(path.stat().st_size for path in LABELS.glob("*.csv")) / 1e6,
        captions=len(caption_classes()),
        readings=_readings(),
    )
    return text + "\n".join(parts)


def _readings() -> str:
    """Return the lines of the table of the second reading."""
    with open(READINGS, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [[LANGUAGES[row["language"]].title(), row["read"], row["not_back"], row["corrected"]] for row in rows]
    sums = (str(sum(int(row[column]) for row in rows)) for column in ("read", "not_back", "corrected"))
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, ["all", *sums]])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
