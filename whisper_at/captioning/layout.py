"""Words → cues: where cues and lines are broken, and how long each cue stays.

Breaks are chosen for a whole recording at once, so that the sum of their costs is least (dynamic programming, as TeX
breaks paragraphs: D. E. Knuth and M. F. Plass, "Breaking paragraphs into lines", Software: Practice and Experience 11,
1981); what a break costs is in `phrases`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .phrases import AFTER_CLAUSE, WITHIN_PHRASE, break_cost, ends_sentence
from .styles import CaptionStyle, text_width
from .words import Word

MAX_PAUSE = 1.5
"""Seconds without a word over which no cue goes on."""
LINGER = 0.5
"""Seconds that a cue stays after its last word, if it may."""
MAX_LEAD, MAX_DELAY = 0.5, 2.0
"""Seconds that a cue may come before its first word, and after it, where people speak faster than can be read."""
NOTE = "♪"
_CUE_COST, _SENTENCE_INSIDE, _HASTE, _IMBALANCE, _SECOND_LINE = 3.0, 2.0, 12.0, 0.04, 0.5


@dataclass
class Cue:
    """Text that is shown from one time to another.

    Attributes
    ----------
    start, end : float
        In seconds.
    text : str
        Lines parted by newlines.
    lingers : bool
        It may stay a little after its end, as words do, to be read at ease.
    """

    start: float
    end: float
    text: str
    lingers: bool = True


def make_cues(words: Sequence[Word], style: CaptionStyle, language: str | None = None) -> list[Cue]:
    """Break words into cues; their times are those of the words, which `time_cues` makes readable.

    Parameters
    ----------
    words : sequence of Word
        In order of time.
    style : CaptionStyle
    language : str, optional
        Whisper's code.
    """
    costs = [_break_after(words, i, language) for i in range(len(words))]
    n_sentences = [0, *accumulate(ends_sentence(word.text) for word in words)]  # that end before each word
    best, begins = [0.0] + [math.inf] * len(words), [0] * (len(words) + 1)
    for end in range(1, len(words) + 1):
        for begin in range(end - 1, -1, -1):
            if begin < end - 1 and _must_break(words[begin], words[begin + 1]):
                break
            lines = _lines(words, begin, end, costs, style)
            if lines is None and begin < end - 1:
                break
            if end - begin > 1 and words[end - 1].end - words[begin].start > style.max_seconds:
                break
            inside = n_sentences[end - 1] - n_sentences[begin]
            cost = best[begin] + _cue_cost(words, begin, end, style) + costs[end - 1] + _SENTENCE_INSIDE * inside
            cost += lines[1] if lines else 0.0
            if cost < best[end]:
                best[end], begins[end] = cost, begin
    cues: list[Cue] = []
    end = len(words)
    while end:
        begin = begins[end]
        lines = _lines(words, begin, end, costs, style)
        for text in reversed(lines[0] if lines else list(cut_text(words[begin].text, style))):
            cues.append(Cue(words[begin].start, words[end - 1].end, text))
        end = begin
    return cues[::-1]


def _must_break(word: Word, following: Word) -> bool:
    long_pause = following.start - word.end > MAX_PAUSE and not word.is_sound
    return long_pause or following.is_sound or (word.is_sung != following.is_sung and not word.is_sound)


def _break_after(words: Sequence[Word], i: int, language: str | None) -> float:
    """Cost of a break after a word."""
    if i + 1 == len(words) or words[i + 1].is_sound or words[i].is_sung != words[i + 1].is_sung:
        return 0.0
    if words[i].is_sound:  # a line may end here, but no cue
        return AFTER_CLAUSE
    following = words[i + 1]
    return break_cost(words[i].text, following.text, following.start - words[i].end, language)


def _cue_cost(words: Sequence[Word], begin: int, end: int, style: CaptionStyle) -> float:
    """Cost of a cue of ``words[begin:end]`` wherever it is broken: that it is one more, and too little time for it."""
    cost = _CUE_COST
    if words[end - 1].is_sound and end < len(words) and end - begin == 1:
        cost += WITHIN_PHRASE  # sounds that stand before words stay with them
    following = words[end].start if end < len(words) else math.inf
    available = min(following - style.min_gap, words[end - 1].end + style.max_seconds) - words[begin].start
    return cost + _HASTE * max(0.0, style.reading_seconds(_text(words[begin:end])) - available)


def _text(words: Sequence[Word]) -> str:
    """Words as they are shown: sung ones between notes, after a sound that stands before them."""
    n_sounds = 1 if words[0].is_sound else 0
    text = "".join(word.text for word in words[n_sounds:]).strip()
    if any(word.is_sung for word in words):
        text = f"{NOTE} {text} {NOTE}"
    return f"{words[0].text.strip()} {text}".strip() if n_sounds else text


def _lines(
    words: Sequence[Word], begin: int, end: int, costs: Sequence[float], style: CaptionStyle
) -> tuple[list[str], float] | None:
    """Return the text of a cue as a list of one, lines parted by newlines, and their cost; None if it is too long."""
    text = _text(words[begin:end])
    length, width = style.line_length(text), text_width(text)
    if width <= length:
        return [text], 0.0
    if style.max_lines < 2 or width > 2 * length + 1:
        return None
    best, lines = math.inf, ""
    n_notes = 2 if NOTE in text else 0
    place = 0  # in the text, which has the words one after another
    for middle in range(begin + 1, end):
        place = text.index(words[middle - 1].text.strip(), place) + len(words[middle - 1].text.strip())
        first = text[:place].rstrip()
        a = text_width(first)
        if width - a > length + 2:  # the second line is too long
            continue
        if a > length:
            break
        second = text[place:].strip()
        b = text_width(second)
        if b > length or b <= n_notes:
            continue
        cost = costs[middle - 1] / 2 + _IMBALANCE * abs(a - b) + _SECOND_LINE
        if cost < best:
            best, lines = cost, f"{first}\n{second}"
    return ([lines], best) if lines else None


def cut_text(text: str, style: CaptionStyle) -> Iterator[str]:
    r"""Cut a text that is longer than a line into the texts of cues: at spaces, or anywhere in what has none.

    Examples
    --------
    >>> list(cut_text("[computer keyboard clicking, heavy breathing]", CaptionStyle()))
    ['[computer keyboard clicking, heavy\nbreathing]']
    """
    lines = textwrap.wrap(text.strip(), style.line_length(text), break_on_hyphens=False)
    for i in range(0, len(lines), style.max_lines):
        yield "\n".join(lines[i : i + style.max_lines])


def time_cues(cues: Sequence[Cue], style: CaptionStyle) -> list[Cue]:
    """Give cues, in order of time, times at which they can be read, as near as can be to what is heard.

    Cues last as long as their text needs; never overlap; begin with their first word unless the one before still has to
    be read, or up to half a second earlier where time would be short later. Where people speak faster than the style
    lets read for long, a cue begins up to two seconds late; beyond that it is shown shorter. Times are whole
    milliseconds.
    """
    gap = _milliseconds(style.min_gap, math.ceil)
    shortest, longest = _milliseconds(style.min_seconds, math.ceil), _milliseconds(style.max_seconds, math.floor)
    lead, delay, linger = (_milliseconds(seconds) for seconds in (MAX_LEAD, MAX_DELAY, LINGER))
    starts, ends = ([_milliseconds(getattr(cue, name)) for cue in cues] for name in ("start", "end"))
    needs = [min(_milliseconds(style.reading_seconds(cue.text), math.ceil), longest) for cue in cues]
    latest = list(starts)  # start from which all that follow can begin with their first word
    for i in reversed(range(len(cues) - 1)):
        latest[i] = max(min(starts[i], latest[i + 1] - gap - needs[i]), starts[i] - lead)
    timed: list[Cue] = []
    previous_end = -gap
    for i, cue in enumerate(cues):
        start, need = max(latest[i], previous_end + gap), needs[i]
        end = start + need
        if i + 1 < len(cues):
            too_late = end + gap - starts[i + 1] - delay
            end -= min(max(too_late, 0), need - min(shortest, need) // 2)
            end = max(end, min(ends[i] + linger * cue.lingers, latest[i + 1] - gap))
        else:
            end = max(end, ends[i] + linger * cue.lingers)
        previous_end = end = min(end, start + longest)
        timed.append(Cue(start / 1000, end / 1000, cue.text, cue.lingers))
    return timed


def _milliseconds(seconds: float, rounded: Callable[[float], int] = round) -> int:
    return rounded(round(seconds * 1000, 3))
