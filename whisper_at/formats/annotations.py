"""What data sets and their scoring programs read: events (sed_eval, DCASE), and who-speaks-when files (RTTM)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..tagging.events import find_events
from ..tagging.labels import classes_under
from ..tagging.named_rows import result_events
from ..tagging.rows import AUDIOSET, read_rows
from .options import FormatOptions
from .spans import SPEECH, one_line, text_spans

RTTM_CLASSES = {"speech": SPEECH, "singing": "/m/015lz1", "music": "/m/04rlf"}
"""What RTTM tells apart, and the classes that stand for it with all below them."""
WORD_PAUSE = 0.5
"""Seconds without a word over which speech goes on."""


def sed_tsv(result: Mapping[str, Any], filename: str, options: FormatOptions) -> str:
    """Return events as DCASE's tables have them: file, onset and offset in seconds, label.

    Names are English unless a language is asked for, as they are to be compared with those of a data set.
    """
    tags = options.tags
    tags = replace(tags, label_language="en") if tags.label_language == "follow_asr" else tags
    file = one_line(os.path.basename(filename))
    lines = ["filename\tonset\toffset\tevent_label\n"]
    for event in result_events(result, tags):
        lines.append(f"{file}\t{event['start']:.3f}\t{event['end']:.3f}\t{one_line(event['name'])}\n")
    return "".join(lines)


def rttm(result: Mapping[str, Any], filename: str, options: FormatOptions) -> str:
    """Return where there is speech, singing and music, in the columns of NIST's Rich Transcription Time Marked files.

    They are found by AudioSet's tags; where there are none, speech is where words are.
    """
    name = re.sub(r"\s+", "_", os.path.splitext(os.path.basename(filename))[0].strip()) or "<NA>"
    spans: list[tuple[float, float, str]] = []
    if AUDIOSET in read_rows(result):
        for label, mid in RTTM_CLASSES.items():
            events = find_events(
                result,
                options.tags.p_threshold,
                include_class_list=sorted(classes_under([mid])),
                head=AUDIOSET,
                language="en",
                specific=False,
            )
            spans += [(*span, label) for span in joined((event["start"], event["end"]) for event in events)]
    else:
        words = ((span.start, span.end) for span in text_spans(result, words=True))
        spans += [(*span, "speech") for span in joined(words, WORD_PAUSE)]
    lines = []
    for start, end, label in sorted(spans):
        begin, duration = round(start * 1000), round(end * 1000) - round(start * 1000)
        if duration > 0:
            times = f"{begin / 1000:.3f} {duration / 1000:.3f}"
            lines.append(f"SPEAKER {name} 1 {times} <NA> <NA> {label} <NA> <NA>\n")
    return "".join(lines)


def joined(spans: Iterable[tuple[float, float]], pause: float = 0.0) -> list[tuple[float, float]]:
    """Return spans in order of time, those with no more than so many seconds between them as one.

    Examples
    --------
    >>> joined([(2.0, 3.0), (0.0, 1.0), (1.0, 1.5)])
    [(0.0, 1.5), (2.0, 3.0)]
    """
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start - found[-1][1] <= pause:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found
