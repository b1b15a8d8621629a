"""Texts of nano.en: the ten digits as numerals, and sentences of everyday English.

Every word is a single token of openai-whisper's English vocabulary, with a space before it, in lower case and with a
capital at the start of a sentence. So each word has one token, one frame label and one attention target. Sentences come
from a small grammar. One in seven is a string of random words, so that the decoder cannot rely on the grammar alone.
"""

from __future__ import annotations

import random
import re
import zlib
from functools import cache

from whisper.tokenizer import get_tokenizer

DIGITS = "zero one two three four five six seven eight nine".split()

PRONOUNS = "I you he she we they".split()
OBJECT_PRONOUNS = "you him her us them me".split()
NOUNS = """dog cat bird horse fish man woman boy girl friend mother father brother sister baby king house door window
table room garden tree river street car bus train boat book letter picture ball box bag cup bread water coffee apple
phone clock music school city village park beach bed hat head hand key map name number""".split()
PLURAL_NOUNS = """dogs cats birds horses men women children friends books letters apples cars trees houses days hours
minutes weeks years""".split()
PLACES = "house garden kitchen school office city village park river station church street beach room".split()
ADJECTIVES = """big small old new good bad happy red blue green white black long short hot cold warm fast slow easy hard
strong quiet open beautiful little great""".split()
PAST_VERBS = (
    "saw found bought made took lost wanted liked loved opened closed moved carried washed heard watched".split()
)
VERBS = "see find buy make take give want like love need open close carry wash help hold".split()
PAST_MOTION_VERBS = "went walked ran came returned".split()
MOTION_VERBS = "go walk run come".split()
TIMES = "today tomorrow yesterday now again".split()
DAYS = "Monday Sunday Friday".split()
DAY_PARTS = "morning evening afternoon night summer winter".split()
MODALS = "can will must should".split()
DETERMINERS = "the the the the a my your his her our their this that".split()
PREPOSITIONS = "in near behind under with from".split()
ADVERBS = "very so".split()
WEATHER = "sun rain wind sky".split()
OTHER_WORDS = """what where how because but and before after while when there here not never always please yes no hello some
many all every last about school dinner on of for at to is was are were it I did do have think know said told asked gave
us them me him eat sleep work play read sing wait stay phone number""".split()


def _noun_phrase(rng: random.Random) -> str:
    if rng.random() < 0.12:
        return f"{rng.randrange(2, 10)} {rng.choice(PLURAL_NOUNS)}"
    if rng.random() < 0.12:
        return f"{rng.choice('the some many all our'.split())} {rng.choice(PLURAL_NOUNS)}"
    adjective = rng.choice(ADJECTIVES) + " " if rng.random() < 0.4 else ""
    return f"{rng.choice(DETERMINERS)} {adjective}{rng.choice(NOUNS)}"


def _subject(rng: random.Random) -> str:
    return rng.choice(PRONOUNS) if rng.random() < 0.45 else _noun_phrase(rng)


def _place(rng: random.Random) -> str:
    return f"{rng.choice(PREPOSITIONS)} {rng.choice(['the', 'the', 'my', 'our', 'your', 'a'])} {rng.choice(PLACES)}"


def _time(rng: random.Random) -> str:
    return rng.choice(
        [
            rng.choice(TIMES),
            f"on {rng.choice(DAYS)}",
            f"in the {rng.choice(DAY_PARTS)}",
            f"every {rng.choice(['day', 'morning', 'night'])}",
            f"at {rng.randrange(1, 10)} in the {rng.choice(DAY_PARTS[:3])}",
            f"for {rng.randrange(2, 10)} {rng.choice(['days', 'hours', 'minutes', 'weeks', 'years'])}",
            f"last {rng.choice(['night', 'summer', 'winter'])}",
            "before dinner",
            "after school",
            "all day",
        ]
    )


def _grammar_sentence(rng: random.Random) -> str:
    tail = " " + _time(rng) if rng.random() < 0.35 else ""
    where = " " + _place(rng) if rng.random() < 0.35 else ""
    noun, adjective = rng.choice(NOUNS), rng.choice(ADJECTIVES)
    forms = [
        lambda: f"{_subject(rng)} {rng.choice(PAST_VERBS)} {_noun_phrase(rng)}{where}{tail}.",
        lambda: f"{_subject(rng)} {rng.choice(PAST_VERBS)} {_noun_phrase(rng)}{where}{tail}.",
        lambda: (
            f"{_subject(rng)} {rng.choice(MODALS)} {rng.choice(['', '', 'not ', 'always ', 'never '])}{rng.choice(VERBS)} {_noun_phrase(rng)}{tail}."
        ),
        lambda: f"{_subject(rng)} {rng.choice(PAST_MOTION_VERBS)} to the {rng.choice(PLACES)}{tail}.",
        lambda: (
            f"the {noun} {rng.choice(['is', 'was'])} {rng.choice(['', 'not '] + [a + ' ' for a in ADVERBS])}{adjective}{tail}."
        ),
        lambda: f"{rng.choice(['it', 'this', 'that'])} {rng.choice(['is', 'was'])} a {adjective} {noun}.",
        lambda: f"there {rng.choice(['is', 'was'])} a {adjective} {noun}{where or ' ' + _place(rng)}.",
        lambda: (
            f"there {rng.choice(['are', 'were'])} {rng.choice([str(rng.randrange(2, 10)), 'many', 'some', 'no'])} {rng.choice(PLURAL_NOUNS)}{where}."
        ),
        lambda: (
            f"{rng.choice(['do', 'did'])} {rng.choice(['you', 'they', 'we'])} {rng.choice(VERBS)} {_noun_phrase(rng)}{tail}?"
        ),
        lambda: f"{rng.choice(['where', 'how'])} is {rng.choice(['the', 'my', 'your', 'our'])} {noun}?",
        lambda: f"what {rng.choice(['did', 'do'])} you {rng.choice(VERBS)}{where}{tail}?",
        lambda: (
            f"{rng.choice(['I', 'you', 'we', 'they'])} {rng.choice(['think', 'know', 'said'])} that {_subject(rng)} {rng.choice(PAST_VERBS)} {_noun_phrase(rng)}."
        ),
        lambda: f"please {rng.choice(VERBS)} {rng.choice(['the', 'my', 'this'])} {noun}{tail}.",
        lambda: (
            f"{rng.choice(['she', 'he'])} {rng.choice(['told', 'asked', 'gave'])} {rng.choice(OBJECT_PRONOUNS)} {rng.choice(['about', 'for'])} {_noun_phrase(rng)}."
        ),
        lambda: (
            f"{rng.choice(['I', 'you', 'we', 'they'])} {rng.choice(['want', 'like', 'need', 'have'])} to {rng.choice([*MOTION_VERBS, 'eat', 'sleep', 'work', 'play', 'read', 'sing'])}{where}{tail}."
        ),
        lambda: (
            f"the {rng.choice(WEATHER)} is {rng.choice(['very ', '', 'so '])}{rng.choice(['cold', 'warm', 'strong', 'beautiful', 'blue'])} {rng.choice(TIMES[:3])}."
        ),
        lambda: (
            f"my {rng.choice(['phone', 'house', 'room', 'bus'])} number is {' '.join(str(rng.randrange(10)) for _ in range(rng.randrange(2, 6)))}."
        ),
        lambda: (
            f"{rng.choice(['the', 'my'])} {noun} and {rng.choice(['the', 'my'])} {rng.choice(NOUNS)} {rng.choice(['are', 'were'])} {adjective}."
        ),
        lambda: (
            f"{_subject(rng)} {rng.choice(PAST_VERBS)} {_noun_phrase(rng)} {rng.choice(['because', 'when', 'while', 'before', 'after', 'but'])} {rng.choice(PRONOUNS)} {rng.choice(PAST_VERBS)} {_noun_phrase(rng)}."
        ),
        lambda: (
            f"{rng.choice(PRONOUNS[:2] + PRONOUNS[4:])} {rng.choice(MODALS)} {rng.choice([*MOTION_VERBS, 'wait', 'stay', 'work', 'play', 'sing'])}{where or ' here'}{tail}."
        ),
    ]
    return rng.choice(forms)()


@cache
def tokenizer():
    """Return the English-only tokenizer of openai-whisper."""
    return get_tokenizer(False)


def _is_one_token(text: str) -> bool:
    return len(tokenizer().encode(text)) == 1


@cache
def lexicon() -> tuple[str, ...]:
    """Return all words that are one token, sorted; lower case except "I" and the days of the week."""
    words: set[str] = {"an", "the", "our"}
    for group in (
        PRONOUNS,
        OBJECT_PRONOUNS,
        NOUNS,
        PLURAL_NOUNS,
        PLACES,
        ADJECTIVES,
        PAST_VERBS,
        VERBS,
        PAST_MOTION_VERBS,
        MOTION_VERBS,
        TIMES,
        DAYS,
        DAY_PARTS,
        MODALS,
        DETERMINERS,
        PREPOSITIONS,
        ADVERBS,
        WEATHER,
        OTHER_WORDS,
    ):
        words.update(group)
    return tuple(sorted(w for w in words if _is_one_token(" " + w)))


def random_sentence(rng: random.Random) -> list[str]:
    """Return a random sentence: words, numerals "0" to "9", and a final "." or "?"."""
    known = set(lexicon())
    while True:
        if rng.random() < 0.15:
            text = " ".join(rng.choice(lexicon()) for _ in range(rng.randrange(2, 9))) + "."
        else:
            text = re.sub(r"\ba (?=[aeiou])", "an ", " ".join(_grammar_sentence(rng).split()))
        words = text[:-1].split()
        first = words[0][0].upper() + words[0][1:]
        if (
            all(w in known or w.isdigit() for w in words)
            and _is_one_token(" " + first)
            and not first.isdigit()
            and len(words) <= 14
        ):
            return [first, *words[1:], text[-1]]


def is_held_out(words: list[str]) -> bool:
    """Whether a sentence is for the evaluation: one in ten, chosen by checksum."""
    return zlib.crc32(" ".join(words).lower().encode()) % 10 == 0


def spoken_form(word: str) -> str:
    """Return how a written word is pronounced: "seven" for "7"."""
    return DIGITS[int(word)] if word.isdigit() else word


def class_name(word: str) -> str:
    """Return the class of a written word: lower case, except "I" and the days of the week."""
    return word if word == "I" or word in DAYS else word.lower()


def token_id(word: str) -> int:
    """Return the token id of a written word with a space before it, or of "." or "?"."""
    ids = tokenizer().encode(word if word in ".?" else " " + word)
    if len(ids) != 1:
        raise ValueError(f"{word!r} is not one token")
    return ids[0]


@cache
def text_token_ids() -> tuple[int, ...]:
    """Return the ids of all text tokens that the model can write, sorted."""
    words = set(lexicon()) | {str(d) for d in range(10)} | {".", "?"}
    for word in lexicon():
        capital = word[0].upper() + word[1:]
        if _is_one_token(" " + capital):
            words.add(capital)
    return tuple(sorted(token_id(w) for w in words))


def frame_classes() -> dict[str, int]:
    """Return the index of each word for the frame classifier; the next index is "no word"."""
    return {w: i for i, w in enumerate([str(d) for d in range(10)] + list(lexicon()))}
