"""What nano.en can write: the ten digits as numerals and sentences of everyday English.

Every word is one token of openai-whisper's English vocabulary, with a space before it, both in lower case and
where it opens a sentence with a capital letter. That keeps a word, its frame label and its guided attention in
one-to-one correspondence. Sentences come from a small grammar; one in seven is a string of random words with the
shape of a sentence, so that the decoder has to listen instead of completing the grammar.
"""

from __future__ import annotations

import random
import re
import zlib
from functools import cache

from whisper.tokenizer import get_tokenizer

DIGITS = "zero one two three four five six seven eight nine".split()

PEOPLE = "I you he she we they".split()
OBJECT_PEOPLE = "you him her us them me".split()
NOUNS = """dog cat bird horse fish man woman boy girl friend mother father brother sister baby king house door window
table room garden tree river street car bus train boat book letter picture ball box bag cup bread water coffee apple
phone clock music school city village park beach bed hat head hand key map name number""".split()
PLURALS = """dogs cats birds horses men women children friends books letters apples cars trees houses days hours
minutes weeks years""".split()
PLACES = "house garden kitchen school office city village park river station church street beach room".split()
ADJECTIVES = """big small old new good bad happy red blue green white black long short hot cold warm fast slow easy hard
strong quiet open beautiful little great""".split()
PAST = "saw found bought made took lost wanted liked loved opened closed moved carried washed heard watched".split()
BASE = "see find buy make take give want like love need open close carry wash help hold".split()
WENT = "went walked ran came returned".split()
GO = "go walk run come".split()
TIMES = "today tomorrow yesterday now again".split()
DAYS = "Monday Sunday Friday".split()
PARTS = "morning evening afternoon night summer winter".split()
MODALS = "can will must should".split()
DETERMINERS = "the the the the a my your his her our their this that".split()
PREPOSITIONS = "in near behind under with from".split()
ADVERBS = "very so".split()
WEATHER = "sun rain wind sky".split()
EXTRA = """what where how because but and before after while when there here not never always please yes no hello some
many all every last about school dinner on of for at to is was are were it I did do have think know said told asked gave
us them me him eat sleep work play read sing wait stay phone number""".split()


def _noun_phrase(r: random.Random) -> str:
    if r.random() < 0.12:
        return f"{r.randrange(2, 10)} {r.choice(PLURALS)}"
    if r.random() < 0.12:
        return f"{r.choice('the some many all our'.split())} {r.choice(PLURALS)}"
    adjective = r.choice(ADJECTIVES) + " " if r.random() < 0.4 else ""
    return f"{r.choice(DETERMINERS)} {adjective}{r.choice(NOUNS)}"


def _subject(r: random.Random) -> str:
    return r.choice(PEOPLE) if r.random() < 0.45 else _noun_phrase(r)


def _place(r: random.Random) -> str:
    return f"{r.choice(PREPOSITIONS)} {r.choice(['the', 'the', 'my', 'our', 'your', 'a'])} {r.choice(PLACES)}"


def _time(r: random.Random) -> str:
    return r.choice(
        [
            r.choice(TIMES),
            f"on {r.choice(DAYS)}",
            f"in the {r.choice(PARTS)}",
            f"every {r.choice(['day', 'morning', 'night'])}",
            f"at {r.randrange(1, 10)} in the {r.choice(PARTS[:3])}",
            f"for {r.randrange(2, 10)} {r.choice(['days', 'hours', 'minutes', 'weeks', 'years'])}",
            f"last {r.choice(['night', 'summer', 'winter'])}",
            "before dinner",
            "after school",
            "all day",
        ]
    )


def _grammatical(r: random.Random) -> str:
    tail = " " + _time(r) if r.random() < 0.35 else ""
    where = " " + _place(r) if r.random() < 0.35 else ""
    noun, adjective = r.choice(NOUNS), r.choice(ADJECTIVES)
    forms = [
        lambda: f"{_subject(r)} {r.choice(PAST)} {_noun_phrase(r)}{where}{tail}.",
        lambda: f"{_subject(r)} {r.choice(PAST)} {_noun_phrase(r)}{where}{tail}.",
        lambda: (
            f"{_subject(r)} {r.choice(MODALS)} {r.choice(['', '', 'not ', 'always ', 'never '])}{r.choice(BASE)} {_noun_phrase(r)}{tail}."
        ),
        lambda: f"{_subject(r)} {r.choice(WENT)} to the {r.choice(PLACES)}{tail}.",
        lambda: (
            f"the {noun} {r.choice(['is', 'was'])} {r.choice(['', 'not '] + [a + ' ' for a in ADVERBS])}{adjective}{tail}."
        ),
        lambda: f"{r.choice(['it', 'this', 'that'])} {r.choice(['is', 'was'])} a {adjective} {noun}.",
        lambda: f"there {r.choice(['is', 'was'])} a {adjective} {noun}{where or ' ' + _place(r)}.",
        lambda: (
            f"there {r.choice(['are', 'were'])} {r.choice([str(r.randrange(2, 10)), 'many', 'some', 'no'])} {r.choice(PLURALS)}{where}."
        ),
        lambda: (
            f"{r.choice(['do', 'did'])} {r.choice(['you', 'they', 'we'])} {r.choice(BASE)} {_noun_phrase(r)}{tail}?"
        ),
        lambda: f"{r.choice(['where', 'how'])} is {r.choice(['the', 'my', 'your', 'our'])} {noun}?",
        lambda: f"what {r.choice(['did', 'do'])} you {r.choice(BASE)}{where}{tail}?",
        lambda: (
            f"{r.choice(['I', 'you', 'we', 'they'])} {r.choice(['think', 'know', 'said'])} that {_subject(r)} {r.choice(PAST)} {_noun_phrase(r)}."
        ),
        lambda: f"please {r.choice(BASE)} {r.choice(['the', 'my', 'this'])} {noun}{tail}.",
        lambda: (
            f"{r.choice(['she', 'he'])} {r.choice(['told', 'asked', 'gave'])} {r.choice(OBJECT_PEOPLE)} {r.choice(['about', 'for'])} {_noun_phrase(r)}."
        ),
        lambda: (
            f"{r.choice(['I', 'you', 'we', 'they'])} {r.choice(['want', 'like', 'need', 'have'])} to {r.choice([*GO, 'eat', 'sleep', 'work', 'play', 'read', 'sing'])}{where}{tail}."
        ),
        lambda: (
            f"the {r.choice(WEATHER)} is {r.choice(['very ', '', 'so '])}{r.choice(['cold', 'warm', 'strong', 'beautiful', 'blue'])} {r.choice(TIMES[:3])}."
        ),
        lambda: (
            f"my {r.choice(['phone', 'house', 'room', 'bus'])} number is {' '.join(str(r.randrange(10)) for _ in range(r.randrange(2, 6)))}."
        ),
        lambda: (
            f"{r.choice(['the', 'my'])} {noun} and {r.choice(['the', 'my'])} {r.choice(NOUNS)} {r.choice(['are', 'were'])} {adjective}."
        ),
        lambda: (
            f"{_subject(r)} {r.choice(PAST)} {_noun_phrase(r)} {r.choice(['because', 'when', 'while', 'before', 'after', 'but'])} {r.choice(PEOPLE)} {r.choice(PAST)} {_noun_phrase(r)}."
        ),
        lambda: (
            f"{r.choice(PEOPLE[:2] + PEOPLE[4:])} {r.choice(MODALS)} {r.choice([*GO, 'wait', 'stay', 'work', 'play', 'sing'])}{where or ' here'}{tail}."
        ),
    ]
    return r.choice(forms)()


@cache
def tokenizer():
    """The English-only tokenizer of openai-whisper."""
    return get_tokenizer(False)


def _one_token(text: str) -> bool:
    return len(tokenizer().encode(text)) == 1


@cache
def lexicon() -> tuple[str, ...]:
    """Sorted lower-case words (apart from "I" and names of days) that are one token with and without capital."""
    words: set[str] = {"an", "the", "our"}
    for group in (
        PEOPLE,
        OBJECT_PEOPLE,
        NOUNS,
        PLURALS,
        PLACES,
        ADJECTIVES,
        PAST,
        BASE,
        WENT,
        GO,
        TIMES,
        DAYS,
        PARTS,
        MODALS,
        DETERMINERS,
        PREPOSITIONS,
        ADVERBS,
        WEATHER,
        EXTRA,
    ):
        words.update(group)
    return tuple(sorted(w for w in words if _one_token(" " + w)))


def sentence(r: random.Random) -> list[str]:
    """One sentence as a list of spoken tokens: words, numerals "0"…"9", and a final "." or "?"."""
    known = set(lexicon())
    while True:
        if r.random() < 0.15:
            text = " ".join(r.choice(lexicon()) for _ in range(r.randrange(2, 9))) + "."
        else:
            text = re.sub(r"\ba (?=[aeiou])", "an ", " ".join(_grammatical(r).split()))
        words = text[:-1].split()
        first = words[0][0].upper() + words[0][1:]
        if (
            all(w in known or w.isdigit() for w in words)
            and _one_token(" " + first)
            and not first.isdigit()
            and len(words) <= 14
        ):
            return [first, *words[1:], text[-1]]


def held_out(words: list[str]) -> bool:
    """Whether a sentence belongs to the evaluation (one in ten, chosen by its checksum)."""
    return zlib.crc32(" ".join(words).lower().encode()) % 10 == 0


def spoken(word: str) -> str:
    """How a written word is read aloud: "7" → "seven"."""
    return DIGITS[int(word)] if word.isdigit() else word


def normal(word: str) -> str:
    """The class name of a written word: lower case, except "I" and the days of the week."""
    return word if word == "I" or word in DAYS else word.lower()


def token(word: str) -> int:
    """Token id of a written word with a space before it, or of "." and "?"."""
    ids = tokenizer().encode(word if word in ".?" else " " + word)
    if len(ids) != 1:
        raise ValueError(f"{word!r} is not one token")
    return ids[0]


@cache
def text_tokens() -> tuple[int, ...]:
    """All text tokens the model may write, sorted."""
    words = set(lexicon()) | {str(d) for d in range(10)} | {".", "?"}
    for word in lexicon():
        capital = word[0].upper() + word[1:]
        if _one_token(" " + capital):
            words.add(capital)
    return tuple(sorted(token(w) for w in words))


def frame_classes() -> dict[str, int]:
    """Class number of each spoken word for the frame loss; the number after the last one means "no word"."""
    return {w: i for i, w in enumerate([str(d) for d in range(10)] + list(lexicon()))}
