"""Words and sounds on screen while a recording is heard: one timeline, and below it how far it has got."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import tqdm
from whisper.tokenizer import LANGUAGES
from whisper.utils import format_timestamp

from ..segments import print_line
from ..speech_gate import withheld_text
from ..tagging.named_rows import named_spans
from ..tagging.progress import Progress
from ..tagging.rows import AUDIOSET, HeadRows, TagOptions, read_rows

BAR_FORMAT = "{desc}{percentage:3.0f}% |{bar:30}| {n:.0f} of {total:.0f} s, {remaining} left"


class Timeline:
    """Words and sounds in order of time: ``[00:10.000 --> 00:20.000] (Dog 0.91, Animal 0.89)``, one line a row.

    Numbers are probabilities. Rows without tags are left out; of those that begin together, longer ones come first, and
    words last. Names of attached heads stand before what they found. What was withheld is told where it would stand.

    Parameters
    ----------
    options : TagOptions, optional
        Which tags to show.
    """

    def __init__(self, options: TagOptions | None = None) -> None:
        self.options = options or TagOptions()
        self._waiting: list[tuple[tuple[float, float], str]] = []  # start and minus the length of rows, line
        self._n_segments = self._n_withheld = 0
        self._n_rows: dict[tuple[str, float], int] = {}

    def add(
        self,
        segments: Iterable[Mapping[str, Any]],
        rows: Mapping[str, HeadRows],
        about: Mapping[str, Any],
        withheld: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """Add segments, rows, and what was withheld; names depend on ``language`` and ``task``, which `about` has."""
        for segment in segments:
            self._n_segments += 1
            self._add(segment["start"], segment["end"], math.inf, segment["text"])
        for part in withheld:
            self._n_withheld += 1
            self._add(part["start"], part["end"], math.inf, withheld_text(part))
        for name, found in rows.items():
            prefix = "" if name == AUDIOSET else f"{name}: "
            for seconds, logits in found.logits.items():
                self._n_rows[name, seconds] = self._n_rows.get((name, seconds), 0) + len(logits)
                for row in named_spans(found.times(seconds), logits, found, about, self.options):
                    if row["tags"]:
                        tags = ", ".join(f"{tag['name']} {tag['probability']:.2f}" for tag in row["tags"])
                        self._add(row["start"], row["end"], row["start"] - row["end"], f"({prefix}{tags})")

    def add_rest(self, result: Mapping[str, Any]) -> None:
        """Add what a result has beyond all that was added before."""
        rows = {}
        for name, found in read_rows(result).items():
            first = {seconds: self._n_rows.get((name, seconds), 0) for seconds in found.logits}
            rest = {seconds: logits[first[seconds] :] for seconds, logits in found.logits.items()}
            rows[name] = replace(found, logits=rest, first_row=first)
        withheld = result.get("withheld", [])[self._n_withheld :]
        self.add(result["segments"][self._n_segments :], rows, result, withheld)

    def _add(self, start: float, end: float, order: float, text: str) -> None:
        line = f"[{format_timestamp(start)} --> {format_timestamp(end)}] {text}"
        self._waiting.append(((start, order), line))

    def lines(self, before: float = math.inf) -> Iterator[str]:
        """Yield, in order, the lines that begin before so many seconds, and forget them."""
        self._waiting.sort(key=lambda line: line[0])  # stable: heads and resolutions keep their order
        n = sum(start < before for (start, _), _ in self._waiting)
        ready, self._waiting = self._waiting[:n], self._waiting[n:]
        yield from (line for _, line in ready)


def timeline_lines(result: Mapping[str, Any], options: TagOptions | None = None) -> Iterator[str]:
    """Yield the whole timeline of a result, see `Timeline`."""
    timeline = Timeline(options)
    timeline.add_rest(result)
    return timeline.lines()


class Screen:
    """Shows a recording while it is heard: its timeline, if that is wanted, and on a terminal a bar with the time left.

    Parameters
    ----------
    timeline : Timeline, optional
        To print; None where `transcribe` prints the text.
    description : str
        What stands before the bar.
    says_language : bool
        Print the language with the timeline, as soon as it is known, as openai-whisper's command does.
    """

    def __init__(self, timeline: Timeline | None, description: str = "", says_language: bool = False) -> None:
        self.timeline = timeline
        self._description, self._says_language = description, says_language
        self._bar: Any = None

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, progress: Progress) -> None:
        """Show what is new."""
        if self._bar is None:
            self._bar = tqdm.tqdm(
                total=progress.duration,
                desc=self._description,
                bar_format=BAR_FORMAT,
                file=sys.stderr,
                disable=None,  # where that is no terminal
                leave=False,
                mininterval=0,
            )
        if self.timeline is not None:
            if self._says_language and progress.language is not None:
                self._print([f"Detected language: {LANGUAGES[progress.language].title()}"])
                self._says_language = False
            about = {"language": progress.language, "task": progress.task}
            self.timeline.add(progress.segments, progress.rows, about, progress.withheld)
            self._print(self.timeline.lines(progress.settled_before))
        self._bar.update(progress.seconds - self._bar.n)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Print what is left of the timeline."""
        if self.timeline is not None:
            self.timeline.add_rest(result)
            self._print(self.timeline.lines())

    def _print(self, lines: Iterable[str]) -> None:
        for line in lines:
            print_line(line)
        if hasattr(sys.stdout, "flush"):  # a program's own stream need not have it
            sys.stdout.flush()  # whoever reads a pipe waits for it
