"""Rows of tags with times, names and probabilities, as files and screens show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..checkpoints.files import to_jsonable
from .events import find_events
from .labels import display_names, tag_language
from .rows import AUDIOSET, HeadRows, TagOptions, head_rows, select_tags


def tag_rows(
    result: Mapping[str, Any], options: TagOptions | None = None, head: str | None = None
) -> list[dict[str, Any]] | dict[float, list[dict[str, Any]]]:
    """Name the tags that a head found, row by row; the rules are those of `whisper_at.parse_at_label`.

    Parameters
    ----------
    result : dict
        What `transcribe` returned.
    options : TagOptions, optional
        Which tags to name; ``include_classes`` is for AudioSet's head.
    head : str, optional
        Name of an attached head; AudioSet's by default.

    Returns
    -------
    list of dict, or dict of float to list of dict
        Rows ``{"start", "end", "coverage", "tags"}``: seconds, the share with audio (0…1, for AudioSet's head), and
        the tags from the strongest down, each ``{"index", "mid", "name", "logit", "probability"}`` (``mid`` likewise).
        A row that nothing covered has no tags. For several resolutions, a dict from seconds to such lists.
    """
    found, options = head_rows(result, head), options or TagOptions()

    def rows(seconds: float, logits: np.ndarray) -> list[dict[str, Any]]:
        named = named_spans(found.times(seconds), logits, found, result, options)
        if found.coverage is None:
            return named
        shares = to_jsonable(found.coverage[seconds])
        return [
            {"start": row["start"], "end": row["end"], "coverage": share, "tags": row["tags"]}
            for row, share in zip(named, shares)
        ]

    return found.at_each_resolution(rows)


def named_spans(
    times: Iterable[tuple[float, float]],
    logits: np.ndarray,
    found: HeadRows,
    result: Mapping[str, Any],
    options: TagOptions,
) -> list[dict[str, Any]]:
    """Start, end and tags of rows or segments."""
    include = options.include_classes if found.head == AUDIOSET else None
    names = display_names(found.classes, tag_language(result, options.label_language))
    tags_by_row = select_tags(found.classes, logits, options.top_k, options.p_threshold, include, names)
    return [{"start": start, "end": end, "tags": tags} for (start, end), tags in zip(times, tags_by_row)]


def result_events(result: Mapping[str, Any], options: TagOptions | None = None) -> list[dict[str, Any]]:
    """Return the events of all heads, as `find_events` does, with these classes, threshold, language and groups."""
    options = options or TagOptions()
    return find_events(
        result,
        options.p_threshold,
        include_class_list=options.include_classes,
        language=options.label_language,
        specific=options.events != "all",
        groups=options.events == "groups",
    )
