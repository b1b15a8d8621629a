"""Contestants by turns: A B C A B C …, each in a process of its own, and what comes of it."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import weights
from contestants import REFERENCE, Decodings, Setting, Work, Worker

PAUSE = 0.3  # seconds between two turns: the threads of some libraries spin for a while after their work


class Entry(NamedTuple):
    """A contestant at a piece of work."""

    label: str
    peer: str
    compute: str
    work: Work


@dataclass
class Timing:
    """What was measured of an entry."""

    entry: Entry
    seconds: list[float] = field(default_factory=list)
    decoded: list[Decodings] = field(default_factory=list)
    """By round, as are seconds."""

    def tokens(self, round_: int) -> list[int]:
        return [len(tokens) for tokens in self.decoded[round_]]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Race:
    """All workers of a run; each is started when an entry first needs it."""

    def __init__(self, setting: Setting, chosen: Sequence[str]) -> None:
        self.setting, self.chosen = setting, chosen
        self.workers: dict[tuple[str, str], Worker | None] = {}

    def worker(self, entry: Entry) -> Worker | None:
        key = entry.peer, entry.compute
        if key not in self.workers:
            try:
                self.workers[key] = Worker(*key, self.setting)
            except RuntimeError as error:
                print(f"{entry.peer} {entry.compute}: skipped ({error})", flush=True)
                self.workers[key] = None
        return self.workers[key]

    def run(self, entries: Sequence[Entry], repeat: int, until: float) -> list[Timing]:
        """Time the entries by turns: ``repeat`` rounds, fewer (but two) if time is up.

        Nothing, if the first entry fails: the others are compared with it.
        """
        racing = []
        for entry in entries:
            if entry.peer in self.chosen and (worker := self.worker(entry)) is not None:
                if turn(worker, entry, earnest=False):
                    racing.append((worker, Timing(entry)))
        for round_ in range(repeat):
            if round_ >= 2 and time.monotonic() > until:
                break
            for racer in list(racing):
                worker, timing = racer
                time.sleep(PAUSE)
                if (answer := turn(worker, timing.entry)) is None:
                    racing.remove(racer)
                    continue
                timing.seconds.append(answer["seconds"])
                timing.decoded.append(answer["decoded"])
                worker.peaks.setdefault("first", answer["peak"])
                worker.peaks["last"] = answer["peak"]
        timings = [timing for _, timing in racing]
        first = next((entry for entry in entries if entry.peer in self.chosen), None)
        return timings if timings and timings[0].entry is first else []

    def memory(self) -> dict[str, dict[str, float]]:
        return {" ".join(key): worker.peaks for key, worker in self.workers.items() if worker is not None}

    def stop(self) -> None:
        for worker in self.workers.values():
            if worker is not None:
                worker.stop()


def turn(worker: Worker, entry: Entry, earnest: bool = True) -> dict[str, Any] | None:
    """What a worker answers; None, with a line that says why, if it failed."""
    try:
        return worker.do(entry.work, earnest)
    except (OSError, RuntimeError) as error:
        print(f"{entry.label}: left out of this mode ({error})", flush=True)
        return None


@contextmanager
def racing(
    size: str, seconds: float, tokens: int, threads: int, device: str, chosen: Sequence[str], entries: Sequence[Entry]
) -> Iterator[Race]:
    """A race of whom of these peers is installed, with the weights made that these entries need."""
    quantizations = sorted({entry.compute for entry in entries if entry.peer == "faster-whisper"})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own: on Linux the peak of a process is at least what its parent held when starting it
        arguments = folder, size, 0, list(chosen), quantizations
        making = multiprocessing.get_context("spawn").Process(target=make_weights, args=arguments)
        making.start()
        making.join()
        if making.exitcode:
            raise SystemExit("the weights could not be made")
        race = Race(Setting(folder, size, seconds, tokens, threads, device), chosen)
        try:
            yield race
        finally:
            race.stop()


def make_weights(folder: Path, size: str, seed: int, chosen: list[str], quantizations: list[str]) -> None:
    """The checkpoint, and its conversions for the peers that are installed."""
    state = weights.random_state(size, seed)
    weights.write_checkpoint(state, size, folder / "model.pt")
    if not {"transformers", "faster-whisper"} & set(chosen):
        return
    try:
        weights.write_folder(state, size, folder / "hf")
        for quantization in quantizations * ("faster-whisper" in chosen):
            weights.convert(folder / "hf", folder / f"ct2_{quantization}", quantization)
    except ImportError as error:
        print(f"no conversion ({error}): transformers and ctranslate2 are needed for it", flush=True)


def same(timing: Timing, reference: Timing) -> float:
    """The share of a reference's tokens that are in the same place of the same decoding of the same round."""
    rounds = list(zip(timing.decoded, reference.decoded))
    pairs = [pair for ours, theirs in rounds for a, b in zip(ours, theirs) for pair in zip(a, b)]
    return sum(a == b for a, b in pairs) / max(1, sum(len(tokens) for _, theirs in rounds for tokens in theirs))


def rows(timings: list[Timing], tokens: int) -> list[dict[str, Any]]:
    """What is printed and written of a race; multiples are those of the first entry's time.

    Work is equal where in all rounds every decoding has as many tokens as were asked for, and there are as many
    decodings as for the first entry with as much sound.
    """
    first = timings[0]
    found = []
    for timing in timings:
        alike = [other for other in timings if other.entry.work.seconds == timing.entry.work.seconds]
        reference = next((other for other in alike if other.entry.peer == REFERENCE), None)
        ratios = [theirs / ours for theirs, ours in zip(timing.seconds, first.seconds)]
        found.append(
            {
                "label": timing.entry.label,
                "median": timing.median,
                "seconds": timing.seconds,
                "times": timing.median / first.median,
                "times_range": [min(ratios), max(ratios)],
                "tokens": timing.tokens(-1),
                "same": None if reference is None else same(timing, reference),
                "equal": all(
                    timing.tokens(i) == [tokens] * len(alike[0].decoded[-1]) for i in range(len(timing.decoded))
                ),
                "work": asdict(timing.entry.work),
            }
        )
    return found


def show(title: str, table: list[dict[str, Any]]) -> None:
    """Print what `rows` found."""
    print(f"\n{title}")
    heads = f"{'seconds':>8} {'least–most':>15} {'times':>6} {'least–most':>11} {'decoded':>8} {'tokens':>7} same"
    print(f"  {'':32} {heads}")
    for row in table:
        spread = f"{min(row['seconds']):.3f}–{max(row['seconds']):.3f}"
        ratios = "{:.2f}–{:.2f}".format(*row["times_range"])
        equal = "" if row["equal"] else " !"
        share = "" if row["same"] is None else f"{row['same']:.3f}"
        work = f"{len(row['tokens']):8} {sum(row['tokens']):7}"
        seconds = f"{row['median']:8.3f} {spread:>15} {row['times']:6.2f} {ratios:>11}"
        print(f"  {row['label']:32} {seconds} {work} {share}{equal}")
    sys.stdout.flush()
