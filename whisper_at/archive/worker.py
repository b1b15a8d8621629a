"""The worker: it loads the model once, turns recordings into rows, and writes the part of each shard.

Every engine runs this one, in this process or others, on this machine or many.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from whisper.audio import HOP_LENGTH, SAMPLE_RATE

from ..batched import PreparedRecording, transcribe_in_batches
from ..engine import compilation
from ..loading import load_model
from ..options import TranscribeOptions
from .captions import CaptionFiles
from .items import Item
from .prefetch import Prepared, Preparer
from .schema import SCHEMA_VERSION, error_row, is_machine_error, item_row, make_files_table, result_row
from .settings import ArchiveSettings, fingerprint
from .store import Shard, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from ..model import WhisperAT


class FileReport(NamedTuple):
    """What became of a recording.

    Attributes
    ----------
    label : str
        What it is called.
    duration : float
        Seconds of audio.
    size : int
        Bytes.
    decode_seconds, model_seconds : float
        By the clock: reading and decoding it, and from the result before it to its own.
    error : str, optional
        Type and message.
    kept : bool
        Whether its row was there already, for the same bytes.
    """

    label: str
    duration: float = 0.0
    size: int = 0
    decode_seconds: float = 0.0
    model_seconds: float = 0.0
    error: str | None = None
    kept: bool = False


class ShardReport(NamedTuple):
    """A part that has been written: its number, and how many rows it has."""

    number: int
    n_rows: int


Report = FileReport | ShardReport


class Worker:
    """Turns shards into parts.

    Parameters
    ----------
    settings : ArchiveSettings
        Where the dataset is, and how recordings are transcribed.
    description : dict
        What ``archive.json`` says.
    model : WhisperAT, optional
        By default it is loaded as `settings` say.
    """

    def __init__(
        self, settings: ArchiveSettings, description: Mapping[str, Any], model: WhisperAT | None = None
    ) -> None:
        self.settings = settings
        self.model = load_model(**settings.load) if model is None else model
        self.fingerprint = fingerprint(description)
        self.store = Store(settings.output)
        self.captions = CaptionFiles(settings, self.store.storage) if settings.output_format else None
        self.options = TranscribeOptions.from_keywords(**{**settings.transcribe, "batch_size": settings.batch_size})
        self._warm_up()

    def _warm_up(self) -> None:
        """Compile what transcription uses, so that all rows are computed by the same kernels."""
        if self.model.device.type == "cpu":
            silence = np.zeros(SAMPLE_RATE, np.float32)
            with torch.random.fork_rng([]):
                for _ in transcribe_in_batches(self.model, [silence], self.options):
                    compilation.wait_for_kernels()

    def run(self, shards: Iterable[Shard]) -> Iterator[Report]:
        """Do shards one after the other; recordings of the next are decoded before one is done.

        Yields what became of each recording, and then that its part is written.

        Raises
        ------
        OSError, RuntimeError
            What is wrong with the machine, as a full disk: the shard at hand is not written then.
        """
        current: dict[str, _ShardRows] = {}  # by the id of the recording
        with tempfile.TemporaryDirectory(dir=self.store.storage.work_folder()) as work:

            def items() -> Iterator[Item]:
                for shard in shards:
                    rows = _ShardRows(shard, self.store.read_part(shard.number), self)
                    for item in shard.items:
                        current[item.id] = rows
                        yield item

            preparer = Preparer(
                self.settings, Path(work), self.model.dims.n_mels, lambda item, sha: current[item.id].keeps(item, sha)
            )
            prepared = preparer.prepare_all(items())
            try:
                first = next(prepared, None)
                while first is not None:
                    rows = current[first.item.id]
                    yield from self._run_shard(rows, _chain(first, islice(prepared, len(rows.shard.items) - 1)))
                    yield ShardReport(rows.shard.number, rows.write())
                    for item in rows.shard.items:
                        del current[item.id]
                    first = next(prepared, None)
            finally:
                prepared.close()  # type: ignore[attr-defined]

    def _run_shard(self, rows: _ShardRows, prepared: Iterator[Prepared]) -> Iterator[FileReport]:
        """Transcribe the recordings of a shard.

        Only those of one shard share batches: rows would else depend on when a run was stopped.
        """
        waiting: dict[int, Prepared] = {}
        reports: list[FileReport] = []

        def recordings() -> Iterator[PreparedRecording]:
            for each in prepared:
                if each.recording is None:
                    reports.append(self._finish(rows, each, each.error))
                else:
                    waiting[id(each.recording)] = each
                    yield each.recording

        last = time.perf_counter()
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(rows.shard.number)  # texts are sampled where the likeliest one has failed
                results = transcribe_in_batches(self.model, recordings(), self.options)
                for recording, result in results:
                    each, now = waiting.pop(id(recording)), time.perf_counter()
                    yield from reports
                    reports.clear()
                    yield self._finish(rows, each, result, now - last)
                    last = time.perf_counter()
            yield from reports
        finally:
            for each in waiting.values():
                each.close()

    def _finish(
        self, rows: _ShardRows, prepared: Prepared, result: Mapping[str, Any] | Exception | None, seconds: float = 0.0
    ) -> FileReport:
        """Add the row of a recording; None is one whose row is kept."""
        item, error = prepared.item, None
        row = {"size": item.size, "modified": item.modified, "sha256": prepared.sha256}
        report = FileReport(item.label, 0.0, item.size or 0, prepared.seconds, seconds)
        try:
            if result is None:
                rows.keep(item)
                return report._replace(kept=True)
            if isinstance(result, Exception):
                raise result
            assert prepared.recording is not None
            duration = prepared.recording.mel.content_frames * HOP_LENGTH / SAMPLE_RATE
            row |= result_row(result, duration, self.settings.p_threshold)
            report = report._replace(duration=duration)
            if self.captions is not None:
                self.captions.write(rows.shard.number, item, dict(result), prepared.recording.source)
        except Exception as failure:
            if is_machine_error(failure):
                raise
            row |= error_row(failure, prepared.copied_to, item.label)
            error = f"{row['error_type']}: {row['error']}"
        finally:
            prepared.close()
        rows.add({**item_row(item, self.fingerprint), **row})
        return report._replace(error=error)


class _ShardRows:
    """The rows of a shard: those that it had, and those that are made."""

    def __init__(self, shard: Shard, existing: pa.Table | None, worker: Worker) -> None:
        self.shard, self.existing, self.worker = shard, existing, worker
        self.new: dict[str, dict[str, Any]] = {}
        self.kept: dict[str, Item] = {}
        columns = ("id", "sha256", "options_sha256", "error_type", "schema_version")
        rows = [] if existing is None else existing.select(columns).to_pylist()
        self.rows = {row["id"]: row for row in rows}

    def keeps(self, item: Item, sha256: str) -> bool:
        """Return whether there is a row for a recording whose bytes have this hash."""
        row = self.rows.get(item.id)
        return (
            row is not None
            and row["sha256"] == sha256
            and row["options_sha256"] == self.worker.fingerprint["options_sha256"]
            and row["schema_version"] == SCHEMA_VERSION
            and not (row["error_type"] and self.worker.settings.retry_failed)
        )

    def keep(self, item: Item) -> None:
        """Let a recording have the row that it had, with the size and time that it has now."""
        self.kept[item.id] = item

    def add(self, row: dict[str, Any]) -> None:
        """Add a new row."""
        self.new[row["id"]] = row

    def write(self) -> int:
        """Write the part; return its number of rows."""
        import pyarrow as pa

        table = make_files_table(self.new.values())
        if self.existing is not None:
            old = self.existing.filter(pa.array([id not in self.new for id in self.existing["id"].to_pylist()]))
            for name in ("size", "modified"):
                values = [
                    getattr(self.kept[id], name) if id in self.kept else value
                    for id, value in zip(old["id"].to_pylist(), old[name].to_pylist())
                ]
                old = old.set_column(old.schema.get_field_index(name), name, pa.array(values, pa.int64()))
            table = pa.concat_tables([old, table])
        place = {id: i for i, id in enumerate(self.shard.order)}
        ids = table["id"].to_pylist()
        table = table.take(pa.array(sorted(range(len(ids)), key=lambda i: place[ids[i]]), pa.int64()))
        self.worker.store.write_part(self.shard.number, table.combine_chunks())
        return len(ids)


def _chain(first: Prepared, rest: Iterator[Prepared]) -> Iterator[Prepared]:
    yield first
    yield from rest
