"""Rules of captions: how long lines are, how long cues stay, how fast they are to be read."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from ..suggest import did_you_mean

PLAIN = "plain"
FIRST_MARK, FIRST_WIDE = "\u0300", "\u1100"
"""Characters before which none stands above or below another, and none is of full width."""
SDH = "sdh"
"""Subtitles for the deaf and hard of hearing: with sounds."""


@dataclass(frozen=True)
class CaptionStyle:
    """The rules of one kind of captions.

    Attributes
    ----------
    max_line_length : int
        Characters in a line.
    max_line_length_cjk : int
        The same of Chinese, Japanese and Korean, in characters of full width; others count half.
    max_lines : int
        Lines in a cue, 1 or 2.
    min_seconds, max_seconds : float
        How long a cue stays.
    max_chars_per_second : float
        Reading speed, spaces included.
    min_word_seconds : float
        Seconds that a cue stays for each of its words, where that is the rule.
    min_gap : float
        Seconds without a cue between two of them.
    """

    max_line_length: int = 42
    max_line_length_cjk: int = 16
    max_lines: int = 2
    min_seconds: float = 1.0
    max_seconds: float = 7.0
    max_chars_per_second: float = 20.0
    min_word_seconds: float = 0.0
    min_gap: float = 0.084  # two frames at 24 a second

    def line_length(self, text: str) -> int:
        """Return the characters that a line of such text may have."""
        return self.max_line_length_cjk if is_cjk(text) else self.max_line_length

    def reading_seconds(self, text: str) -> float:
        """Return the seconds that a cue of this text has to stay at least."""
        words = len(text.split()) * self.min_word_seconds
        return max(self.min_seconds, text_width(text) / self.max_chars_per_second, words)


STYLES = {
    PLAIN: CaptionStyle(),
    # Netflix, Timed Text Style Guide: 5/6 s to 7 s, 42 characters, English for the deaf 20 characters a second
    "netflix": CaptionStyle(min_seconds=0.834),
    # BBC, Subtitle Guidelines: lines of 37 characters, 0.3 s a word
    "bbc": CaptionStyle(max_line_length=37, min_word_seconds=0.3),
}
"""Styles by name."""


def parse_style(text: str) -> tuple[CaptionStyle, bool]:
    """Return the style that a text such as ``"bbc"`` or ``"sdh,netflix"`` names, and whether sounds are shown.

    Raises
    ------
    ValueError
        If there is no such style, or two are named.

    Examples
    --------
    >>> parse_style("sdh,bbc")[0].max_line_length, parse_style("sdh,bbc")[1]
    (37, True)
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name != SDH and name not in STYLES:
            raise ValueError(f"there is no caption style {name!r}; {did_you_mean(name, [*STYLES, SDH])}")
    styles = [name for name in names if name != SDH]
    if len(styles) > 1:
        raise ValueError(f"captions have one style, not {' and '.join(styles)}")
    return STYLES[styles[0] if styles else PLAIN], SDH in names


def is_cjk(text: str) -> bool:
    """Return whether most letters of a text are of full width, as Chinese, Japanese and Korean ones are."""
    if text.isascii() or max(text, default="") < FIRST_WIDE:
        return False
    letters = [character for character in text if character.isalpha()]
    return 2 * sum(map(_is_wide, letters)) > len(letters)


def text_width(text: str) -> float:
    """Return the characters of a text as lines are measured by.

    Marks that are written above or below others do not count. In Chinese, Japanese and Korean, characters of full
    width count one and others half.

    Examples
    --------
    >>> text_width("Straße"), text_width("会議を始めます。"), text_width("1 会議")
    (6, 8, 3.0)
    """
    if text.isascii() or max(text, default="") < FIRST_MARK:  # for speed, as lines are measured very often
        return len(text) - text.count("\n")
    shown = [c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf") and c != "\n"]
    if not is_cjk(text):
        return len(shown)
    narrow = sum(not _is_wide(character) for character in shown)
    return len(shown) - narrow / 2 if narrow else len(shown)


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"
