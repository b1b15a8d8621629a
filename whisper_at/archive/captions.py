"""Files beside the tables: captions and other formats, written with a row, or later from it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..formats import FORMATS, parse_formats
from ..formats.registry import check_package, extension
from ..limits import LimitedRecording
from ..writers import get_writer
from .fetch import Fetcher
from .items import Item
from .schema import is_machine_error, row_result
from .settings import ArchiveSettings
from .storage import Storage
from .store import Store

NEED_RECORDING = ("premiere", "png", "svg", "pdf")
"""Formats that show the waveform, or need the frame rate of a video: no row has these."""
TEXT_FORMATS = ("txt", "tsv", "srt", "vtt")
"""Formats that show no sounds, unless captions do."""


class CaptionFiles:
    """Writes and finds the files of recordings, in ``captions/part-00000/`` and so on.

    Parameters
    ----------
    settings : ArchiveSettings
        With the formats, and the options of their writers.
    storage : Storage
        Of the dataset.
    """

    def __init__(self, settings: ArchiveSettings, storage: Storage) -> None:
        self.options, self.storage = settings.writer_options, storage
        self.formats = parse_formats(settings.output_format or "")

    def write(
        self, part: int, item: Item, result: dict[str, Any], audio: Any, formats: Sequence[str] | None = None
    ) -> None:
        """Write the files of a recording, or those of some formats, from what `transcribe` returned."""
        with self.storage.new_files(_folder(part)) as folder:
            writer = get_writer(",".join(formats or self.formats), str(folder), **self.options)
            writer(result, f"{caption_name(item)}.", audio=audio)  # what follows the dot is cut off

    def existing(self, part: int) -> frozenset[str]:
        """Return the names of the files of a part."""
        return frozenset(self.storage.names(_folder(part)))

    def missing(self, item: Item, existing: Collection[str]) -> list[str]:
        """Return the formats of which a recording has no file."""
        name = caption_name(item)
        return [form for form in self.formats if f"{name}.{extension(form)}" not in existing]


def _folder(part: int) -> str:
    return f"captions/part-{part:05d}"


def caption_name(item: Item) -> str:
    """Return what files of a recording are called: its own name, made harmless, and the start of its id."""
    stem = os.path.splitext(os.path.basename(item.member or item.path))[0]
    harmless = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in stem)[:80].lstrip("-.")
    return f"{harmless}-{item.id[:8]}"


def check_formats(settings: ArchiveSettings, has_heads: bool) -> None:
    """Check before anything is done that the formats can be written.

    Raises
    ------
    KeyError
        If there is no such format.
    ImportError
        If one needs a package that is not installed.
    ValueError
        If one is made of tags, and the model has no head.
    """
    for name in parse_formats(settings.output_format) if settings.output_format else ():
        if name in FORMATS:
            check_package(name)
            if FORMATS[name].at_time_res is not None and not has_heads:
                raise ValueError(f"-f {name} is made of tags, and none are made: attach a head, or leave {name} out")


def write_missing_captions(
    settings: ArchiveSettings,
    store: Store,
    items: Iterable[Item],
    plan: Mapping[str, int],
    description: Mapping[str, Any],
) -> Iterator[Item]:
    """Write the files that recordings with a row lack, from their rows; yield each recording that got some.

    Nothing is transcribed. Numbers of tags are those that float16 holds.

    Parameters
    ----------
    settings : ArchiveSettings
        With the formats.
    store : Store
        The dataset.
    items : iterable of Item
        Recordings of this run.
    plan : dict
        The part of each, by its id.
    description : dict
        What ``archive.json`` says.

    Raises
    ------
    ValueError
        If files are missing that cannot be made of rows.
    """
    captions = CaptionFiles(settings, store.storage)
    state, options_sha256 = store.state(), description["options_sha256"]
    done = [
        item
        for item in items
        if (row := state.get(item.id)) and row["error_type"] is None and row["options_sha256"] == options_sha256
    ]
    with TemporaryDirectory(dir=store.storage.work_folder()) as work:
        fetcher = Fetcher(Path(work), settings.max_bytes, settings.column)
        for part, item, row, formats in _rows_without_files(captions, store, done, plan):
            _check_rows_suffice(settings, formats)
            result = row_result(row, description["heads"])
            if _write_from_row(captions, part, item, result, formats, fetcher, settings):
                yield item
        fetcher.close()


def _rows_without_files(
    captions: CaptionFiles, store: Store, items: Iterable[Item], plan: Mapping[str, int]
) -> Iterator[tuple[int, Item, dict[str, Any], list[str]]]:
    """Yield the part, the recording, its row, and the formats of which it has no file."""
    by_part: dict[int, list[Item]] = {}
    for item in items:
        by_part.setdefault(plan[item.id], []).append(item)
    for part in sorted(by_part):
        existing = captions.existing(part)
        missing = {item.id: (item, formats) for item in by_part[part] if (formats := captions.missing(item, existing))}
        table = store.read_part(part) if missing else None
        for row in table.to_pylist() if table is not None else ():
            if row["id"] in missing:
                yield part, missing[row["id"]][0], row, missing[row["id"]][1]


def _check_rows_suffice(settings: ArchiveSettings, formats: Sequence[str]) -> None:
    """Raise ValueError if files show what a result has beside its row."""
    shows_sounds = settings.writer_options.get("captions") or any(name not in TEXT_FORMATS for name in formats)
    for name, is_shown in (("event_rows", shows_sounds), ("speech_gate", "json" in formats)):
        if settings.transcribe.get(name) and is_shown:
            raise ValueError(
                f"recordings that were done before lack files of {', '.join(formats)}, and their rows do not hold all "
                f"that {name} found: take another folder for these formats, or leave {name} out and --redo"
            )


def _write_from_row(
    captions: CaptionFiles,
    part: int,
    item: Item,
    result: dict[str, Any],
    formats: Sequence[str],
    fetcher: Fetcher,
    settings: ArchiveSettings,
) -> bool:
    """Write the files of a recording; return False, with a warning, if it is needed and cannot be read any more."""
    copy = audio = None
    try:
        if any(name in NEED_RECORDING for name in formats):
            copy = fetcher.fetch(item)
            track = settings.transcribe.get("audio_track")
            audio = LimitedRecording(os.fspath(copy or item.path), settings.limits, item.label, track)
        captions.write(part, item, result, audio, formats)
    except Exception as error:
        if is_machine_error(error):
            raise
        warnings.warn(f"{item.label!r} lacks files of {', '.join(formats)}: {error}")
        return False
    finally:
        if copy is not None:
            copy.unlink()
    return True
