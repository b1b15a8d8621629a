"""Result files: txt, vtt, srt, tsv and json as the installed openai-whisper writes them.

Without tags in the result, every file is upstream's byte for byte. With tags, only JSON differs: what follows
upstream's keys is plain numbers and names, and strict JSON (defect D26). Where it is asked for, srt and vtt show
sounds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from whisper.utils import ResultWriter
from whisper.utils import get_writer as get_upstream_writer

from .checkpoints.files import to_jsonable
from .tagging.captions import alike, with_sounds
from .tagging.events import find_events
from .tagging.labels import audioset_labels, find_class, label_names, parse_at_label, sigmoid, tag_language
from .tagging.listeners import attached_names, named_tags

UPSTREAM_KEYS = ("text", "segments", "language")
TAG_KEYS = ("duration", "at_time_res", "audio_tag_coverage", "audio_tag")
FORMATS = ("txt", "vtt", "srt", "tsv", "json")
CAPTIONS = ("srt", "vtt")


def get_writer(
    output_format: str,
    output_dir: str,
    *,
    top_k: int = 5,
    p_threshold: float | None = None,
    label_language: str = "follow_asr",
    include_classes: Iterable[int | str] | None = None,
    sound_captions: bool = False,
) -> Callable[..., None]:
    """Make the function that writes a result, called as ``writer(result, audio_path, options)``.

    Parameters
    ----------
    output_format
        ``txt``, ``vtt``, ``srt``, ``tsv``, ``json`` or ``all``.
    output_dir
        Existing folder. The file is named after the audio, as upstream names it.
    top_k, p_threshold, label_language, include_classes
        Which tags go into JSON, and in which language, as :func:`tag_rows` understands them. Events are those of
        :func:`whisper_at.tagging.events.find_events` with the same classes, language and, if it is given, threshold.
    sound_captions
        Show these events in srt and vtt, too, as :func:`whisper_at.tagging.captions.with_sounds` does it.

    Files are written under another name and then renamed, so that an error leaves no half of one behind.
    As upstream's, the writer of a single format is a ``ResultWriter``; an unknown format is a ``KeyError``.
    """
    tag_options: dict[str, Any] = {
        "top_k": top_k,
        "p_threshold": p_threshold,
        "label_language": label_language,
        "include_classes": include_classes,
    }
    upstream = get_upstream_writer(output_format, output_dir)
    if isinstance(upstream, ResultWriter):
        return _WholeFileWriter(upstream, tag_options, sound_captions)

    def write_all(result: dict, audio_path: str, options: dict | None = None, **kwargs) -> None:
        plain = plain_result(result, **tag_options)
        shown = captioned_result(result, sound_captions, **tag_options)
        with _Renamed(output_dir) as folder:
            for name in FORMATS:
                content = shown if name in CAPTIONS else plain
                get_upstream_writer(name, folder)(content, audio_path, options, **kwargs)

    return write_all


def tag_rows(
    result: Mapping[str, Any],
    top_k: int = 5,
    p_threshold: float | None = None,
    label_language: str = "follow_asr",
    include_classes: Iterable[int | str] | None = None,
) -> list[dict[str, Any]] | dict[float, list[dict[str, Any]]]:
    """Name the tags of a result, row by row; the rules are :func:`whisper_at.tagging.labels.parse_at_label`'s.

    Each row is ``{"start", "end", "coverage", "tags"}``: seconds, the share that was heard (0…1), and the
    tags from the strongest down, each ``{"index", "mid", "name", "logit", "probability"}``. A row that
    nothing covered has no tags. For several resolutions, a dict from seconds to such lists.
    """
    if include_classes is not None:
        include_classes = list(include_classes)
    # English names are unique and lead back to the class; those of other languages are not.
    parsed = parse_at_label(result, "en", top_k, p_threshold, include_classes)
    names = label_names(tag_language(result, label_language))
    labels = audioset_labels()

    def tag(english: str, logit: float) -> dict[str, Any]:
        index = find_class(english)
        return {
            "index": index,
            "mid": labels[index].mid,
            "name": names[index],
            "logit": logit,
            "probability": sigmoid(logit),
        }

    def rows(entries: list[dict[str, Any]], coverage: Any) -> list[dict[str, Any]]:
        return [
            {**entry["time"], "coverage": share, "tags": [tag(*pair) for pair in entry["audio tags"]]}
            for entry, share in zip(entries, to_jsonable(coverage))
        ]

    coverage = result["audio_tag_coverage"]
    if isinstance(parsed, dict):
        by_seconds = {float(seconds): shares for seconds, shares in coverage.items()}
        return {seconds: rows(entries, by_seconds[seconds]) for seconds, entries in parsed.items()}
    return rows(parsed, coverage)


def own_rows(result: Mapping[str, Any], head: str, top_k: int = 5, p_threshold: float | None = None) -> dict[str, Any]:
    """Name what an attached head found: ``{"classes", "kind", "rows", "segments"}``.

    ``rows`` are as of :func:`tag_rows`, without ``mid`` (for several resolutions, a dict from seconds to such lists),
    ``segments`` the same with the times of the transcript's segments; probabilities are calibrated. Which tags count
    is decided as :func:`whisper_at.tagging.labels.parse_at_label` does it.
    """
    found = result[head]
    entries = parse_at_label(result, top_k=top_k, p_threshold=p_threshold, head=head)  # for the times of rows

    def rows(logits: Any, times: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        tagged = named_tags(found, logits, top_k, p_threshold)
        return [{"start": time["start"], "end": time["end"], "tags": tags} for time, tags in zip(times, tagged)]

    by_row: Any
    if isinstance(entries, dict):
        by_row = {
            seconds: rows(logits, (entry["time"] for entry in entries[float(seconds)]))
            for seconds, logits in found["logits"].items()
        }
    else:
        by_row = rows(found["logits"], (entry["time"] for entry in entries))
    return {
        "classes": list(found["classes"]),
        "kind": found["kind"],
        "rows": by_row,
        "segments": rows(found["segments"], result["segments"]),
    }


def plain_result(result: dict, **tag_options) -> dict:
    """The result as it goes into files: itself if it holds no tags, else a copy of plain values.

    Upstream's keys come first and unchanged, then ``duration``, ``at_time_res``, ``audio_tag_coverage`` and
    ``audio_tag`` (what :func:`tag_rows` returns), then whatever else is there, attached heads as :func:`own_rows`
    names them, and ``events`` of all heads. Tensors become lists, and numbers that JSON lacks become null. Keyword
    arguments are those of :func:`tag_rows`.
    """
    attached = attached_names(result)
    if result.get("audio_tag") is None and not attached:
        return result
    if tag_options.get("include_classes") is not None:  # needed twice
        tag_options["include_classes"] = list(tag_options["include_classes"])
    values = dict(result)
    if result.get("audio_tag") is not None:
        values["audio_tag"] = tag_rows(result, **tag_options)
    shared = {name: value for name, value in tag_options.items() if name in ("top_k", "p_threshold")}
    values |= {name: own_rows(result, name, **shared) for name in attached}
    values["events"] = _events(result, **tag_options)
    first = [key for key in UPSTREAM_KEYS + TAG_KEYS if key in values]
    return {key: to_jsonable(values[key]) for key in dict.fromkeys([*first, *values])}


def captioned_result(result: dict, sounds: bool, **tag_options) -> dict:
    """The result as srt and vtt show it: with its sounds among the words, if it is asked for and holds tags.

    Keyword arguments are those of :func:`tag_rows`.
    """
    if not sounds or (result.get("audio_tag") is None and not attached_names(result)):
        return {**result, "segments": alike(result["segments"])}
    return with_sounds(result, _events(result, **tag_options))


def _events(
    result: Mapping[str, Any],
    p_threshold: float | None = None,
    label_language: str = "follow_asr",
    include_classes: Iterable[int | str] | None = None,
    **_: Any,
) -> list[dict[str, Any]]:
    return find_events(result, p_threshold, include_class_list=include_classes, language=label_language)


class _Renamed:
    """A temporary folder inside ``output_dir`` whose files are moved there if all of them were written."""

    def __init__(self, output_dir: str):
        self.output_dir = output_dir

    def __enter__(self) -> str:
        # Inside the target, so that the move is a rename on one file system.
        self.folder = tempfile.TemporaryDirectory(dir=self.output_dir, prefix=".whisper-at-")
        return self.folder.name

    def __exit__(self, exception_type: type | None, *_) -> None:
        try:
            if exception_type is None:
                for name in os.listdir(self.folder.name):
                    os.replace(os.path.join(self.folder.name, name), os.path.join(self.output_dir, name))
        finally:
            self.folder.cleanup()


class _WholeFileWriter(ResultWriter):
    """One of upstream's writers, whose files appear whole or not at all."""

    def __init__(self, upstream: ResultWriter, tag_options: dict[str, Any], sound_captions: bool):
        super().__init__(upstream.output_dir)
        self.upstream = upstream
        self.tag_options = tag_options
        self.sound_captions = sound_captions
        self.extension = upstream.extension

    def prepare(self, result: dict) -> dict:
        if self.extension in CAPTIONS:
            return captioned_result(result, self.sound_captions, **self.tag_options)
        return plain_result(result, **self.tag_options)

    def __call__(self, result: dict, audio_path: str, options: dict | None = None, **kwargs) -> None:
        result = self.prepare(result)
        with _Renamed(self.output_dir) as folder:
            type(self.upstream)(folder)(result, audio_path, options, **kwargs)

    def write_result(self, result: dict, file, options: dict | None = None, **kwargs) -> None:
        self.upstream.write_result(self.prepare(result), file, options, **kwargs)
