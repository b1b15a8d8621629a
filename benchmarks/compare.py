"""Compare runners: they alternate A B C A B C …, each in a process of its own; then a table."""

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
from runners import REFERENCE, Decodings, RunConfig, Worker, Workload

PAUSE_SECONDS = 0.3  # between two runs: the threads of some libraries spin for a while after their work


class Case(NamedTuple):
    """A runner with a compute type, and its workload."""

    label: str
    peer: str
    compute: str
    work: Workload


@dataclass
class Measurement:
    """What was measured of a case: ``seconds`` and ``decoded`` by round."""

    case: Case
    seconds: list[float] = field(default_factory=list)
    decoded: list[Decodings] = field(default_factory=list)

    def token_counts(self, round_: int) -> list[int]:
        return [len(tokens) for tokens in self.decoded[round_]]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Comparison:
    """All workers of a run; each is started when a case first needs it."""

    def __init__(self, config: RunConfig, peers: Sequence[str]) -> None:
        self.config, self.peers = config, peers
        self.workers: dict[tuple[str, str], Worker | None] = {}

    def worker(self, case: Case) -> Worker | None:
        key = case.peer, case.compute
        if key not in self.workers:
            try:
                self.workers[key] = Worker(*key, self.config)
            except RuntimeError as error:
                print(f"{case.peer} {case.compute}: skipped ({error})", flush=True)
                self.workers[key] = None
        return self.workers[key]

    def run(self, cases: Sequence[Case], repeat: int, until: float) -> list[Measurement]:
        """Time the cases alternately: ``repeat`` rounds, fewer (but two) if time is up.

        Returns nothing if the first case fails, since the others are compared with it.
        """
        cases = [case for case in cases if case.peer in self.peers]
        running = []
        for case in cases:
            if (worker := self.worker(case)) is not None and run_case(worker, case, warm_up=True):
                running.append((worker, Measurement(case)))
        for round_ in range(repeat):
            if round_ >= 2 and time.monotonic() > until:
                break
            for pair in list(running):
                worker, measurement = pair
                time.sleep(PAUSE_SECONDS)
                if (reply := run_case(worker, measurement.case)) is None:
                    running.remove(pair)
                    continue
                measurement.seconds.append(reply["seconds"])
                measurement.decoded.append(reply["decoded"])
                worker.peaks.setdefault("first", reply["peak"])
                worker.peaks["last"] = reply["peak"]
        measurements = [measurement for _, measurement in running]
        return measurements if measurements and measurements[0].case is cases[0] else []

    def memory(self) -> dict[str, dict[str, float]]:
        return {" ".join(key): worker.peaks for key, worker in self.workers.items() if worker is not None}

    def stop(self) -> None:
        for worker in self.workers.values():
            if worker is not None:
                worker.stop()


def run_case(worker: Worker, case: Case, warm_up: bool = False) -> dict[str, Any] | None:
    """Return a worker's reply; None, after printing why, if it failed."""
    try:
        return worker.run(case.work, warm_up)
    except (OSError, RuntimeError) as error:
        print(f"{case.label}: left out of this mode ({error})", flush=True)
        return None


@contextmanager
def start_comparison(
    size: str, seconds: float, tokens: int, threads: int, device: str, peers: Sequence[str], cases: Sequence[Case]
) -> Iterator[Comparison]:
    """Write the weights that the cases need, and stop all workers at the end; peers not installed are left out."""
    quantizations = sorted({case.compute for case in cases if case.peer == "faster-whisper"})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own: on Linux the peak of a process is at least what its parent held when starting it
        arguments = folder, size, 0, list(peers), quantizations
        writer = multiprocessing.get_context("spawn").Process(target=write_weights, args=arguments)
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit("the weights could not be written")
        comparison = Comparison(RunConfig(folder, size, seconds, tokens, threads, device), peers)
        try:
            yield comparison
        finally:
            comparison.stop()


def write_weights(folder: Path, size: str, seed: int, peers: list[str], quantizations: list[str]) -> None:
    """Write the checkpoint, and its conversions for the peers that are installed."""
    state = weights.random_state(size, seed)
    weights.write_checkpoint(state, size, folder / "model.pt")
    if not {"transformers", "faster-whisper"} & set(peers):
        return
    try:
        weights.write_hugging_face(state, size, folder / "hf")
        for quantization in quantizations * ("faster-whisper" in peers):
            weights.write_ctranslate2(folder / "hf", folder / f"ct2_{quantization}", quantization)
    except ImportError as error:
        print(f"no conversion ({error}): transformers and ctranslate2 are needed for it", flush=True)


def token_agreement(measurement: Measurement, reference: Measurement) -> float:
    """Return the share of a reference's tokens that are at the same position of the same decoding and round."""
    rounds = list(zip(measurement.decoded, reference.decoded))
    pairs = [pair for ours, theirs in rounds for a, b in zip(ours, theirs) for pair in zip(a, b)]
    return sum(a == b for a, b in pairs) / max(1, sum(len(tokens) for _, theirs in rounds for tokens in theirs))


def summarize(measurements: list[Measurement], tokens: int) -> list[dict[str, Any]]:
    """Summarise measurements as a table; ``times`` is the multiple of the first case's time.

    Work is ``equal`` if in all rounds every decoding has as many tokens as were asked for, and there are as many
    decodings as for the first case with as much audio.
    """
    first = measurements[0]
    table = []
    for measurement in measurements:
        same_audio = [m for m in measurements if m.case.work.seconds == measurement.case.work.seconds]
        reference = next((m for m in same_audio if m.case.peer == REFERENCE), None)
        ratios = [theirs / ours for theirs, ours in zip(measurement.seconds, first.seconds)]
        expected_counts = [tokens] * len(same_audio[0].decoded[-1])
        table.append(
            {
                "label": measurement.case.label,
                "median": measurement.median,
                "seconds": measurement.seconds,
                "times": measurement.median / first.median,
                "times_range": [min(ratios), max(ratios)],
                "tokens": measurement.token_counts(-1),
                "same": None if reference is None else token_agreement(measurement, reference),
                "equal": all(measurement.token_counts(i) == expected_counts for i in range(len(measurement.decoded))),
                "work": asdict(measurement.case.work),
            }
        )
    return table


def print_table(title: str, table: list[dict[str, Any]]) -> None:
    """Print a table of `summarize`."""
    print(f"\n{title}")
    columns = f"{'seconds':>8} {'min–max':>15} {'times':>6} {'min–max':>11} {'decoded':>8} {'tokens':>7} same"
    print(f"  {'':32} {columns}")
    for row in table:
        spread = f"{min(row['seconds']):.3f}–{max(row['seconds']):.3f}"
        ratios = "{:.2f}–{:.2f}".format(*row["times_range"])
        unequal = "" if row["equal"] else " !"
        share = "" if row["same"] is None else f"{row['same']:.3f}"
        work = f"{len(row['tokens']):8} {sum(row['tokens']):7}"
        seconds = f"{row['median']:8.3f} {spread:>15} {row['times']:6.2f} {ratios:>11}"
        print(f"  {row['label']:32} {seconds} {work} {share}{unequal}")
    sys.stdout.flush()
