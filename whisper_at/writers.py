"""Result files: txt, vtt, srt, tsv and json as the installed openai-whisper writes them.

Without tags in the result, every file is upstream's byte for byte. With tags, only JSON differs: what follows
upstream's keys is plain numbers and names, and strict JSON (defect D26). Where it is asked for, srt and vtt are
captions for people, with or without sounds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import numpy as np
from whisper.utils import ResultWriter
from whisper.utils import get_writer as get_upstream_writer

from .captioning import captions as make_captions
from .captioning import parse_style
from .checkpoints.files import to_jsonable
from .tagging.events import find_events
from .tagging.labels import display_names, tag_language
from .tagging.rows import AUDIOSET, HeadRows, TagOptions, head_rows, read_rows, select_tags

UPSTREAM_KEYS = ("text", "segments", "language")
TAG_KEYS = ("duration", "at_time_res", "audio_tag_calibration", "audio_tag_coverage", "audio_tag")
FORMATS = ("txt", "vtt", "srt", "tsv", "json")
CAPTION_FORMATS = ("srt", "vtt")

Result = dict[str, Any]


def get_writer(
    output_format: str,
    output_dir: str,
    *,
    top_k: int = 5,
    p_threshold: float | None = None,
    label_language: str = "follow_asr",
    include_classes: Iterable[int | str] | None = None,
    captions: str | None = None,
) -> Callable[..., None]:
    """Return the function that writes a result, called as ``writer(result, audio_path, options)``.

    Files are written under another name and then renamed, so that an error leaves no half of one behind.
    As upstream's, the writer of a single format is a ``ResultWriter``; an unknown format is a ``KeyError``.

    Parameters
    ----------
    output_format : str
        ``txt``, ``vtt``, ``srt``, ``tsv``, ``json`` or ``all``.
    output_dir : str
        Existing folder. The file is named after the audio, as upstream names it.
    top_k, p_threshold, label_language, include_classes
        Which tags go into JSON, and in which language: see `TagOptions`. Events are those of
        `whisper_at.find_events` with the same classes, language and, if it is given, threshold.
    captions : str, optional
        Write captions for people into srt and vtt, as `whisper_at.captioning` makes them: ``"plain"``, ``"netflix"`` or
        ``"bbc"``, with sounds by ``"sdh"`` or ``"sdh,bbc"``.
    """
    if captions is not None:
        parse_style(captions)
    tag_options = TagOptions(top_k, p_threshold, label_language, include_classes)
    upstream = get_upstream_writer(output_format, output_dir)
    if isinstance(upstream, ResultWriter):
        return _AtomicWriter(upstream, tag_options, captions)

    def write_all(result: Result, audio_path: str, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        plain = result_to_json(result, tag_options)
        with _RenamedWhenDone(output_dir) as folder:
            for name in FORMATS:
                captioned = _shows_captions(name, result)
                content = captioned_result(result, captions, tag_options, name) if captioned else plain
                get_upstream_writer(name, folder)(content, audio_path, options, **kwargs)

    return write_all


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
        named = _named_spans(found.times(seconds), logits, found, result, options)
        if found.coverage is None:
            return named
        shares = to_jsonable(found.coverage[seconds])
        return [
            {"start": row["start"], "end": row["end"], "coverage": share, "tags": row["tags"]}
            for row, share in zip(named, shares)
        ]

    return found.at_each_resolution(rows)


def _named_spans(
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


def result_to_json(result: Result, options: TagOptions | None = None) -> Result:
    """Return the result as it goes into JSON: itself if it holds no tags, else a copy of plain values.

    Upstream's keys come first and unchanged, then ``duration``, ``at_time_res``, ``audio_tag_coverage`` and
    ``audio_tag`` (what `tag_rows` returns), then whatever else is there, for each attached head ``{"classes", "kind",
    "rows", "segments"}``, and ``events`` of all heads. Tensors become lists, and numbers that JSON lacks become null.
    """
    options = options or TagOptions()
    heads = read_rows(result)
    if not heads:
        return result
    values = dict(result)
    for name, found in heads.items():
        values[name] = tag_rows(result, options, name)
        if found.segments is not None:
            times = [(segment["start"], segment["end"]) for segment in result["segments"]]
            values[name] = {
                "classes": list(found.classes.names),
                "kind": found.classes.kind,
                "rows": values[name],
                "segments": _named_spans(times, found.segments, found, result, options),
            }
    values["events"] = _events(result, options)
    first = [key for key in UPSTREAM_KEYS + TAG_KEYS if key in values]
    return {key: to_jsonable(values[key]) for key in dict.fromkeys([*first, *values])}


def _shows_captions(output_format: str, result: Mapping[str, Any]) -> bool:
    """Return whether a format is made of captions: of what was tagged without its text, all are but JSON."""
    return output_format in CAPTION_FORMATS or (result.get("task") == "tag" and output_format != "json")


def captioned_result(result: Result, captions: str | None, options: TagOptions, output_format: str = "srt") -> Result:
    """Return the result as srt and vtt show it: with captions as its segments, if they are asked for.

    What `WhisperAT.tag` found has no words: its sounds are shown anyway.
    """
    if result.get("task") == "tag" and read_rows(result):
        captions = f"{captions},sdh" if captions else "sdh"
    if not captions:
        return {**result, "segments": unify_words(result["segments"])}
    sdh = None if read_rows(result) else False  # nothing is known of sounds
    cues = make_captions(
        result,
        captions,
        sdh=sdh,
        include_classes=options.include_classes,
        p_threshold=options.p_threshold,
        language=options.label_language,
    )
    for cue in cues if output_format == "vtt" else ():
        cue["text"] = cue["text"].replace("&", "&amp;").replace("<", "&lt;")
    return {**result, "segments": cues}


def unify_words(segments: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return copies of segments, with ``words`` only if all have them.

    A segment that was cleared has an empty list of words even where none are timed, and openai-whisper's writers
    look at the first segment alone.
    """
    copies = [dict(segment) for segment in segments]
    if not all("words" in segment for segment in copies):
        for segment in copies:
            segment.pop("words", None)
    return copies


def _events(result: Mapping[str, Any], options: TagOptions) -> list[dict[str, Any]]:
    return find_events(
        result, options.p_threshold, include_class_list=options.include_classes, language=options.label_language
    )


class _RenamedWhenDone:
    """A temporary folder inside `output_dir` whose files are moved there if all of them were written."""

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir

    def __enter__(self) -> str:
        # Inside the target, so that the move is a rename on one file system.
        self.folder = tempfile.TemporaryDirectory(dir=self.output_dir, prefix=".whisper-at-")
        return self.folder.name

    def __exit__(self, exception_type: type | None, *_: object) -> None:
        try:
            if exception_type is None:
                for name in os.listdir(self.folder.name):
                    os.replace(os.path.join(self.folder.name, name), os.path.join(self.output_dir, name))
        finally:
            self.folder.cleanup()


class _AtomicWriter(ResultWriter):
    """One of upstream's writers, whose files appear whole or not at all."""

    def __init__(self, upstream: ResultWriter, tag_options: TagOptions, captions: str | None) -> None:
        super().__init__(upstream.output_dir)
        self.upstream = upstream
        self.tag_options = tag_options
        self.captions = captions
        self.extension = upstream.extension

    def _content(self, result: Result) -> Result:
        if _shows_captions(self.extension, result):
            return captioned_result(result, self.captions, self.tag_options, self.extension)
        return result_to_json(result, self.tag_options)

    def __call__(self, result: Result, audio_path: str, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        content = self._content(result)
        with _RenamedWhenDone(self.output_dir) as folder:
            type(self.upstream)(folder)(content, audio_path, options, **kwargs)

    def write_result(self, result: Result, file: IO[str], options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write a result to an open file."""
        self.upstream.write_result(self._content(result), file, options, **kwargs)
