"""What a run tells of itself: a bar on the terminal, lines of JSON, metrics for Prometheus, and a summary."""

from __future__ import annotations

import heapq
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import tqdm

from ..checkpoints.files import write_text
from .worker import FileReport, Report, ShardReport

N_SLOWEST = 5
METRICS_EVERY = 5.0
"""Seconds between two versions of the file of metrics."""


@dataclass
class Summary:
    """What a run has done.

    Attributes
    ----------
    n_items : int
        Recordings that the inputs name.
    skipped : int
        Those that had a row already.
    done, failed : int
        Those that got a row with a result, or with an error.
    shards : int
        Parts that were written.
    captioned : int
        Recordings done before that got files of `output_format` from their rows.
    audio_seconds, seconds : float
        Of audio in what was done, and that it took by the clock.
    size : int
        Bytes of what was done.
    slowest : list of FileReport
        Recordings that took longest.
    """

    n_items: int = 0
    skipped: int = 0
    done: int = 0
    failed: int = 0
    shards: int = 0
    captioned: int = 0
    audio_seconds: float = 0.0
    seconds: float = 0.0
    size: int = 0
    slowest: list[FileReport] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return it for people."""
        lines = [
            f"{self.n_items} recordings: {self.done} transcribed, {self.failed} failed, {self.skipped} done before; "
            f"{self.shards} parts written"
        ]
        if self.captioned:
            lines.append(f"{self.captioned} recordings done before got files from their rows")
        if self.done:
            rate = self.audio_seconds / max(self.seconds, 1e-9)
            lines.append(
                f"{self.audio_seconds / 3600:.2f} h of audio in {_clock(self.seconds)}, {rate:.1f} times real time"
            )
        for report in self.slowest:
            times = f"{report.decode_seconds:.1f} s to decode, {report.model_seconds:.1f} s in the model"
            lines.append(f"  slow: {report.label} ({report.duration:.0f} s of audio: {times})")
        return lines


class Progress:
    """Counts reports, and tells of them.

    Parameters
    ----------
    bar : bool
        Show a bar on stderr, with the rate and the time that is left.
    log : TextIO, optional
        Write a line of JSON there for every recording and part.
    metrics : Path, optional
        Keep a file in Prometheus's text format there.
    """

    def __init__(self, *, bar: bool = False, log: TextIO | None = None, metrics: Path | None = None) -> None:
        self.bar, self.log, self.metrics = bar, log, metrics
        self.summary = Summary()
        self._began = self._written = time.monotonic()
        self._tqdm: Any = None

    def start(self, n_items: int, n_pending: int) -> None:
        """Begin, with the numbers of all recordings and of those that are to be done."""
        self.summary.n_items, self.summary.skipped = n_items, n_items - n_pending
        self._began = time.monotonic()
        self._tqdm = tqdm.tqdm(total=n_pending, unit="file", disable=not self.bar, file=sys.stderr)
        self._log("start", recordings=n_items, pending=n_pending)

    def add(self, report: Report) -> None:
        """Count a recording or a part."""
        summary = self.summary
        if isinstance(report, ShardReport):
            summary.shards += 1
            self._log("part", part=report.number, rows=report.n_rows)
        else:
            self._add_file(report)
        if time.monotonic() - self._written > METRICS_EVERY:
            self._write_metrics()

    def _add_file(self, report: FileReport) -> None:
        summary = self.summary
        summary.skipped += report.kept
        summary.failed += report.error is not None
        summary.done += report.error is None and not report.kept
        summary.audio_seconds += report.duration
        summary.size += report.size
        slowest = [*summary.slowest, report]
        summary.slowest = heapq.nlargest(N_SLOWEST, slowest, key=lambda r: r.decode_seconds + r.model_seconds)
        self._tqdm.update()
        rate = summary.audio_seconds / max(time.monotonic() - self._began, 1e-9)
        self._tqdm.set_postfix_str(f"{rate:.1f}x real time, {summary.failed} failed", refresh=False)
        if self.bar and report.error is not None:
            self._tqdm.write(f"{report.label!r}: {report.error}", file=sys.stderr)
        self._log("file", **report._asdict())

    def finish(self) -> Summary:
        """Close the bar, write the last metrics, and return the summary."""
        self.summary.seconds = time.monotonic() - self._began
        self._tqdm.close()
        self._write_metrics()
        numbers = {name: value for name, value in vars(self.summary).items() if name != "slowest"}
        self._log("end", **numbers, slowest=[report._asdict() for report in self.summary.slowest])
        return self.summary

    def _log(self, event: str, **values: Any) -> None:
        if self.log is not None:
            print(json.dumps({"event": event, **values}), file=self.log, flush=True)

    def _write_metrics(self) -> None:
        self._written = time.monotonic()
        if self.metrics is not None:
            write_text(self.metrics, format_metrics(self.summary, self._written - self._began))


def format_metrics(summary: Summary, seconds: float) -> str:
    """Return counts in Prometheus's text format.

    Examples
    --------
    >>> print(format_metrics(Summary(n_items=3, done=2, failed=1), 10.0).splitlines()[2])
    whisper_at_archive_recordings{state="transcribed"} 2
    """
    left = summary.n_items - summary.done - summary.failed - summary.skipped
    states = {
        "transcribed": summary.done, "failed": summary.failed, "skipped": summary.skipped, "left": max(left, 0)
    }  # fmt: skip
    prefix = "whisper_at_archive"
    lines = [f"# HELP {prefix}_recordings Recordings by what became of them.", f"# TYPE {prefix}_recordings gauge"]
    lines += [f'{prefix}_recordings{{state="{state}"}} {count}' for state, count in states.items()]
    for name, help, value in (
        ("audio_seconds_total", "Seconds of audio that were transcribed.", summary.audio_seconds),
        ("bytes_total", "Bytes of recordings that were read.", summary.size),
        ("parts_total", "Parts of the dataset that were written.", summary.shards),
        ("run_seconds_total", "Seconds since the run began.", seconds),
    ):
        lines += [f"# HELP {prefix}_{name} {help}", f"# TYPE {prefix}_{name} counter", f"{prefix}_{name} {value:.10g}"]
    return "\n".join(lines) + "\n"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
