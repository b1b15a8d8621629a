"""Measure what tagging costs, as a share of a transcription without it, by head and size.

    python benchmarks/tagging.py                               # tiny and small, TL-TR and TL-TR-512
    python benchmarks/tagging.py --sizes base --pairs 60 --compute int8 --plot tagging.png

Two measures:

"whole": one process transcribes the same recording with and without tags, alternately: with, without, without, with,
with, … Each pair of neighbours gives one difference, in which anything that slows down both cancels. Shown are the
median of the differences, as a share of the median time without tags, and its 95 % confidence interval, whatever the
distribution (the sign test).

"calls": the time of the calls that are made only for tags (pooling inside the encoder; rows and head), as a share of
the rest of the same run. It misses indirect costs, such as of a cache that tagging evicts, but has far less noise.

Weights are random, of an official size (see weights.py). Decoding is greedy, with a fixed number of tokens per window
of 30 s; there is a row of tags every 10 s.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import plots
import weights
from common import (
    SAMPLE_RATE,
    HelpFormatter,
    add_common_arguments,
    compile_kernels,
    machine_info,
    median_interval,
    set_num_threads,
    synthetic_audio,
    write_results,
)
from runners import HEADS, TAG_SECONDS, Workload, load_whisper_at, transcribe_options
from timing import StageTimer, tagging_calls, time_calls

COMPUTE = ("float32", "bfloat16", "int8")
MIN_PAIRS = 6  # the interval of fewer is not one of 95 %


def measure(model: Any, audio: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    """Time runs with and without tags alternately, and in each run with tags the calls made for them."""
    import torch

    sync = torch.cuda.synchronize if args.device == "cuda" else None
    options = transcribe_options(Workload(), args.tokens, args.device)

    def run(tags: float | None, tokens: int = args.tokens) -> tuple[float, dict[str, float]]:
        with time_calls(StageTimer(sync), tagging_calls() if tags else []) as timer:
            start = time.perf_counter()
            model.transcribe(audio, **{**options, "sample_len": tokens, "at_time_res": tags})
            return time.perf_counter() - start, dict(timer.seconds)

    for tags in (TAG_SECONDS, None):
        run(tags, tokens=8)
    end = time.monotonic() + 60 * args.minutes
    pairs: list[tuple[float, float]] = []  # with, without
    calls: list[dict[str, float]] = []
    while len(pairs) < args.pairs and (len(pairs) < MIN_PAIRS or time.monotonic() < end):
        seconds: dict[bool, float] = {}
        for tagged in (True, False) if len(pairs) % 2 == 0 else (False, True):
            seconds[tagged], of_calls = run(TAG_SECONDS if tagged else None)
            if tagged:
                calls.append(of_calls)
        pairs.append((seconds[True], seconds[False]))
    return summarize(pairs, calls)


def summarize(pairs: list[tuple[float, float]], calls: list[dict[str, float]]) -> dict[str, Any]:
    """Return shares in percent, each with its interval: (median, low, high)."""
    without = statistics.median(b for _, b in pairs)
    whole = median_interval([100 * (a - b) / without for a, b in pairs])
    call_seconds = [(sum(parts.values()), a) for parts, (a, _) in zip(calls, pairs)]
    direct = median_interval([100 * seconds / (a - seconds) for seconds, a in call_seconds])
    parts = {name: statistics.median(parts.get(name, 0.0) for parts in calls) for name in ("pooling", "head")}
    return {"whole": whole, "calls": direct, "without": without, "parts": parts, "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--sizes", nargs="+", choices=weights.SIZES, default=["tiny", "small"], help="whose dimensions models have")
    add("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="with random weights")
    add("--compute", nargs="+", choices=COMPUTE, default=["float32", "int8"], help="precisions; float16 on a GPU")
    add("--seconds", type=float, default=30, help="length of the recording")
    add("--tokens", type=int, default=50, help="decoded in each window of 30 s")
    add("--pairs", type=int, default=50, help="of runs, at most")
    add("--minutes", type=float, default=2, help=f"for each size, precision and head; but {MIN_PAIRS} pairs at least")
    add_common_arguments(parser)
    args = parser.parse_args()
    if args.pairs < MIN_PAIRS:
        parser.error(f"--pairs is at least {MIN_PAIRS}")
    set_num_threads(args.threads)
    machine = machine_info(args.device)
    compile_kernels(args.device)

    import torch

    torch.set_num_threads(args.threads)
    audio = synthetic_audio(args.seconds)
    rows = -(-len(audio) // (TAG_SECONDS * SAMPLE_RATE))
    print(f"{args.seconds:g} s, {args.tokens} tokens per window, {rows} rows of tags, {args.threads} threads")
    print(f"\n{'':28} {'seconds':>8} {'whole':>20} {'calls':>20} {'pooling':>9} {'head':>9} {'pairs':>6}")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            weights.write_checkpoint(weights.random_state(size), size, Path(folder) / "model.pt")
            for compute in ["float16"] if args.device == "cuda" else args.compute:
                for head, mode in HEADS.items():
                    if head in args.heads:
                        model = load_whisper_at(Path(folder) / "model.pt", compute, args.device, mode)
                        label = f"{size}, {compute}, {head}"
                        results[label] = measure(model, audio, args)
                        print(f"{label:28}", format_row(results[label]), flush=True)
    if args.json:
        write_results(args.json, args, machine, tagging=results)
    if args.plot:
        shares = {label: {name: row[name] for name in ("whole", "calls")} for label, row in results.items()}
        title = f"Cost of tags: {args.seconds:g} s, {args.tokens} tokens per window, {args.threads} threads"
        plots.intervals(shares, "% of the time without tags (median, 95 % interval)", title, args.plot)


def format_row(row: dict[str, Any]) -> str:
    shares = [f"{v:+.2f} % ({low:+.2f} {high:+.2f})" for v, low, high in (row["whole"], row["calls"])]
    parts = [f"{1e3 * row['parts'][name]:6.2f} ms" for name in ("pooling", "head")]
    return f"{row['without']:8.3f} {shares[0]:>20} {shares[1]:>20} {' '.join(parts)} {len(row['pairs']):6}"


if __name__ == "__main__":
    main()
