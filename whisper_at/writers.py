"""Result files: txt, vtt, srt, tsv and json as the installed openai-whisper writes them, and other formats.

Without tags in the result, every file is upstream's byte for byte. With tags, only JSON differs: what follows
upstream's keys is plain numbers and names, and strict JSON (defect D26). Where it is asked for, srt and vtt are
captions for people, with or without sounds. Other formats are those of `whisper_at.formats`.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import IO, Any

from whisper.utils import ResultWriter
from whisper.utils import get_writer as get_upstream_writer

from .captioning import parse_style
from .checkpoints.files import to_jsonable
from .formats import FORMATS, format_bytes, parse_formats
from .formats.options import FormatOptions
from .formats.registry import check_package, extension
from .formats.subtitles import caption_style, result_cues
from .tagging.named_rows import named_spans, result_events, tag_rows
from .tagging.rows import EVENT_ROWS, TagOptions, read_rows

UPSTREAM_KEYS = ("text", "segments", "language")
TAG_KEYS = ("duration", "at_time_res", "audio_tag_calibration", "audio_tag_coverage", "audio_tag")
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
    events: str = "specific",
    captions: str | None = None,
) -> Callable[..., None]:
    """Return the function that writes a result, called as ``writer(result, audio_path, options)``.

    Files are written under another name and then renamed, so that an error leaves no half of one behind.
    As upstream's, the writer of a single format is a ``ResultWriter``; an unknown format is a ``KeyError``.

    Parameters
    ----------
    output_format : str
        ``txt``, ``vtt``, ``srt``, ``tsv``, ``json``, or ``all`` for these; a name of `whisper_at.formats.FORMATS`; or
        several, parted by commas.
    output_dir : str
        Existing folder. Files are named after the audio, as upstream names them. Where that is only a name, the writer
        takes the recording as ``audio=``; a picture shows its waveform.
    top_k, p_threshold, label_language, include_classes, events
        Which tags are written, and in which language: see `TagOptions`. Events are those of
        `whisper_at.find_events` with the same classes, language and, if it is given, threshold.
    captions : str, optional
        Write captions for people into srt and vtt, as `whisper_at.captioning` makes them: ``"plain"``, ``"netflix"`` or
        ``"bbc"``, with sounds by ``"sdh"`` or ``"sdh,bbc"``. lrc and ass are such captions in any case.

    Raises
    ------
    KeyError
        If there is no such format.
    ImportError
        If a format needs a package that is not installed.
    """
    if captions is not None:
        parse_style(captions)
    names = parse_formats(output_format)
    for name in names:
        if name in FORMATS:
            check_package(name)
    options = FormatOptions(TagOptions(top_k, p_threshold, label_language, include_classes, events), captions)
    writers = [_writer(name, output_dir, options) for name in names]
    if len(writers) == 1:
        return writers[0]

    def write_all(
        result: Result,
        audio_path: str,
        options: dict[str, Any] | None = None,
        *,
        audio: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        with _RenamedWhenDone(output_dir) as folder:
            for writer in writers:
                writer.write_file(result, folder, audio_path, options, audio=audio, **kwargs)

    return write_all


def result_bytes(
    output_format: str,
    result: Result,
    filename: str,
    *,
    audio: str | os.PathLike[str] | None = None,
    captions: str | None = None,
    **options: Any,
) -> bytes:
    """Return the content of the file that `get_writer` writes in one format.

    Parameters
    ----------
    output_format : str
        ``txt``, ``vtt``, ``srt``, ``tsv``, ``json``, or a name of `whisper_at.formats.FORMATS`.
    result : dict
        What `transcribe` or `tag` returned.
    filename : str
        Name of the recording, which some formats contain.
    audio : str or path, optional
        The recording itself, for a picture's waveform.
    captions, **options
        As of `get_writer`.
    """
    if output_format in FORMATS:
        return format_bytes(output_format, result, filename, FormatOptions(TagOptions(**options), captions, audio))
    file = io.StringIO()
    get_writer(output_format, ".", captions=captions, **options).write_result(result, file, {})  # type: ignore[attr-defined]
    return file.getvalue().encode("utf-8")


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
    values = {key: value for key, value in result.items() if key != EVENT_ROWS}  # the events are there
    for name, found in heads.items():
        values[name] = tag_rows(result, options, name)
        if found.segments is not None:
            times = [(segment["start"], segment["end"]) for segment in result["segments"]]
            values[name] = {
                "classes": list(found.classes.names),
                "kind": found.classes.kind,
                "rows": values[name],
                "segments": named_spans(times, found.segments, found, result, options),
            }
    values["events"] = result_events(result, options)
    first = [key for key in UPSTREAM_KEYS + TAG_KEYS if key in values]
    return {key: to_jsonable(values[key]) for key in dict.fromkeys([*first, *values])}


def _shows_captions(output_format: str, result: Mapping[str, Any]) -> bool:
    """Return whether a format is made of captions: of what was tagged without its text, all are but JSON."""
    return output_format in CAPTION_FORMATS or (result.get("task") == "tag" and output_format != "json")


def captioned_result(result: Result, captions: str | None, options: TagOptions, output_format: str = "srt") -> Result:
    """Return the result as srt and vtt show it: with captions as its segments, if they are asked for.

    What `WhisperAT.tag` found has no words: its sounds are shown anyway.
    """
    style = caption_style(result, captions)
    if not style:
        return {**result, "segments": unify_words(result["segments"])}
    cues = result_cues(result, style, options)
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
    """A writer whose files appear whole or not at all."""

    def __init__(self, name: str, output_dir: str, options: FormatOptions) -> None:
        super().__init__(output_dir)
        self.name = name
        self.options = options
        self.extension = extension(name)

    def __call__(
        self,
        result: Result,
        audio_path: str,
        options: dict[str, Any] | None = None,
        *,
        audio: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        with _RenamedWhenDone(self.output_dir) as folder:
            self.write_file(result, folder, audio_path, options, audio=audio, **kwargs)


class _WhisperWriter(_AtomicWriter):
    """One of upstream's writers."""

    def _content(self, result: Result) -> Result:
        if _shows_captions(self.extension, result):
            return captioned_result(result, self.options.captions, self.options.tags, self.extension)
        return result_to_json(result, self.options.tags) if self.name == "json" else result

    def write_file(
        self, result: Result, folder: str, audio_path: str, options: dict[str, Any] | None, *, audio: Any, **kwargs: Any
    ) -> None:
        """Write a result into a folder."""
        get_upstream_writer(self.name, folder)(self._content(result), audio_path, options, **kwargs)

    def write_result(self, result: Result, file: IO[str], options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write a result to an open file."""
        upstream = get_upstream_writer(self.name, self.output_dir)
        upstream.write_result(self._content(result), file, options, **kwargs)


class _FormatWriter(_AtomicWriter):
    """The writer of one of our `FORMATS`."""

    def write_file(
        self, result: Result, folder: str, audio_path: str, options: dict[str, Any] | None, *, audio: Any, **kwargs: Any
    ) -> None:
        """Write a result into a folder; upstream's options, for the words of captions, are not for these formats."""
        if audio is None and os.path.isfile(os.path.expanduser(audio_path)):
            audio = audio_path
        stem = os.path.splitext(os.path.basename(audio_path))[0]  # as upstream
        filename = os.path.basename(audio_path).removesuffix(
            "."
        )  # which follows a name that no suffix is to be cut off
        content = format_bytes(self.name, result, filename, replace(self.options, audio=audio))
        with open(os.path.join(folder, f"{stem}.{self.extension}"), "wb") as file:
            file.write(content)

    def write_result(self, result: Result, file: IO[Any], options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write a result to an open file: a text file, or a binary one, which tables and pictures need."""
        content = format_bytes(self.name, result, os.path.basename(str(getattr(file, "name", ""))), self.options)
        file.write(content.decode("utf-8") if isinstance(file, io.TextIOBase) else content)


def _writer(name: str, output_dir: str, options: FormatOptions) -> _WhisperWriter | _FormatWriter:
    return (_FormatWriter if name in FORMATS else _WhisperWriter)(name, output_dir, options)
