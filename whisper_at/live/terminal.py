"""A stream as a person reads it: on a terminal that is drawn over, or line by line where nobody can draw."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

from ..captioning.sounds import caption_classes
from ..tagging.labels import caption_names
from ..tagging.rows import AUDIOSET
from .messages import EventStart, Final, Message, Partial, Word
from .transcript import starts_sentence

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
CLEAR_BELOW = "\r\x1b[J"


class LinePrinter:
    """Prints final lines, ``[00:01:05] text`` and ``[00:01:08] [dog]``, and nothing that might change.

    Parameters
    ----------
    output : text file
    language : str
        Of what stands in brackets.
    """

    def __init__(self, output: TextIO, language: str = "en") -> None:
        self.output, self.captions = output, caption_names(language)
        self.shown = frozenset(caption_classes())
        self.line: list[Word] = []

    def show(self, messages: Iterable[Message]) -> None:
        """Print what messages say that is final."""
        for message in messages:
            if isinstance(message, Final):
                for word in message.words:
                    if starts_sentence(word, self.line):
                        self.end_line()
                    self.line.append(word)
            elif isinstance(message, EventStart) and (message.head != AUDIOSET or message.index in self.shown):
                self.end_line()
                self._print(message.start, self._in_brackets(message))
        self.output.flush()

    def close(self) -> None:
        """Print what is left."""
        self.end_line()
        self.output.flush()

    def end_line(self) -> None:
        """Print the words since the last line."""
        if self.line:
            self._print(self.line[0].start, "".join(word.word for word in self.line).strip())
            self.line = []

    def _print(self, seconds: float, text: str) -> None:
        self.output.write(f"{clock(seconds)} {text}\n")

    def _in_brackets(self, event: EventStart) -> str:
        return f"[{self.captions[event.index] if event.head == AUDIOSET else event.name}]"


class Screen(LinePrinter):
    """Draws on a terminal: as `LinePrinter`, and below it the line that grows, partial words dim."""

    def __init__(self, output: TextIO, language: str = "en") -> None:
        super().__init__(output, language)
        self.partial: Sequence[Word] = ()
        self._rows_drawn = 0

    def show(self, messages: Iterable[Message]) -> None:
        """Draw what messages say."""
        messages = list(messages)
        if not messages:
            return
        self._erase()
        for message in messages:
            if isinstance(message, Partial):
                self.partial = message.words
        super().show(messages)
        self._draw()

    def close(self) -> None:
        """Print what is left, and leave the terminal as it was."""
        self._erase()
        super().close()

    def _draw(self) -> None:
        words = [*self.line, *self.partial]
        if not words:
            return
        columns = shutil.get_terminal_size().columns
        head = clock(words[0].start) + " "
        final = "".join(word.word for word in self.line).lstrip()
        partial = "".join(word.word for word in self.partial)
        partial = partial if final else partial.lstrip()
        self.output.write(f"{head}{final}{DIM}{partial}{PLAIN}")
        self.output.flush()
        self._rows_drawn = -(-width(head + final + partial) // columns)

    def _erase(self) -> None:
        if self._rows_drawn:
            up = f"\x1b[{self._rows_drawn - 1}A" if self._rows_drawn > 1 else ""
            self.output.write(up + CLEAR_BELOW)
            self._rows_drawn = 0


def clock(seconds: float) -> str:
    """Return a time as ``[00:01:05]``.

    Examples
    --------
    >>> clock(86_400.5)
    '[24:00:00]'
    """
    whole = int(seconds)
    return f"[{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}]"


def width(text: str) -> int:
    """Return the columns of a terminal that text takes: two for the characters of East Asia.

    Examples
    --------
    >>> width("abc"), width("日本")
    (3, 4)
    """
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)
