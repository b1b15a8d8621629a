"""Write docs/sound-names.md: the sounds that captions need most, in every language that the classes have names in.

Run it after a name has changed: ``python docs/scripts/sound_names.py``. ``tests/test_docs.py`` compares both.
"""

from __future__ import annotations

from pathlib import Path

from whisper.tokenizer import LANGUAGES

from whisper_at.tagging.labels import caption_names, find_class, label_languages

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
TEXT = """\
# Names of sounds

The 527 classes have names in {n} languages. Each is there twice: a *name*, which tables and JSON show, and what
captions put in
brackets. They were written for this project, class by class, and read a second time by back-translation, with no
native speakers so far:
**if your language sounds wrong, please say so or mend it**.

- `label_names("de")` and `caption_names("de")` of `whisper_at.tagging.labels`, `print_label_name("de")`,
  `print_support_language()`.
- `--label_language de` names tags and sounds in German, whatever is spoken; by default they follow the language of
  the text.
- `--label_language my_names.csv` takes names of your own: columns `mid` or `index`, `name` and, for captions,
  `caption`.

## Mend or add a language

1. `whisper_at/assets/labels/<code>.csv` has a line for each class: index, MID, name, caption form. Edit it as text,
   in UTF-8.
2. The definition of a class decides what it means: see the [AudioSet
   ontology](https://research.google.com/audioset/ontology/index.html).
3. A name is what one would look up: a noun phrase with a capital letter, different from all other names of the
   language.
4. A caption form is what stands in the brackets of good subtitles of the language, without the brackets: what is
   heard
   rather than what makes it, at most 32 characters.
5. A word of English stays only where the language has no other (*jazz*, *theremin*).
6. `python docs/scripts/sound_names.py` writes this page anew.
7. `python -m pytest tests/tagging/test_label_languages.py tests/test_docs.py` says what is wrong.

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
    return TEXT.format(n=len(label_languages())) + "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
