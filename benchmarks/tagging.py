"""What tagging costs, as a share of a transcription without it, by head and size. Two measures:

    python benchmarks/tagging.py                               # tiny and small, TL-TR and TL-TR-512
    python benchmarks/tagging.py --sizes base --pairs 60 --compute int8 --plot tagging.png

"whole": the same recording is transcribed with tags and without, in one process, by turns: with, without, without,
with, with, … Each pair of neighbours gives one difference, and whatever slows both alike drops out of it. Shown is the
median of the differences, divided by the median time without tags, and the interval that holds it with 95 %
confidence whatever their distribution (the sign test's).

"calls": the time of the calls that exist for tags alone (pooling inside the encoder; rows and head), as a share of the
same run's remaining time. It misses what tagging costs others, such as a cache that it sweeps, and sees far less noise.

Weights are random, of an official size (see weights.py). Decoding is greedy, with so many tokens in each window of
30 s; there is a row of tags every 10 s.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import draw
import numpy as np
import weights
from common import RATE, Help, add_outputs, machine, median_interval, recording, use_threads, write_results
from contestants import HEADS, TAG_SECONDS, Work, open_ours, upstream_options
from stopwatch import Stopwatch, tagging_calls, watching

COMPUTE = ("float32", "bfloat16", "int8")
FEWEST = 6  # pairs: the interval of fewer is not of 95 %


def compare(model: Any, audio: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    """Times with and without tags by turns, and in each run with them the time of their calls."""
    import torch

    sync = torch.cuda.synchronize if args.device == "cuda" else None
    options = upstream_options(Work(), args.tokens, args.device)

    def run(tags: float | None, tokens: int = args.tokens) -> tuple[float, dict[str, float]]:
        with watching(Stopwatch(sync), tagging_calls() if tags else []) as stopwatch:
            start = time.perf_counter()
            model.transcribe(audio, **{**options, "sample_len": tokens, "at_time_res": tags})
            return time.perf_counter() - start, dict(stopwatch.seconds)

    for tags in (TAG_SECONDS, None):
        run(tags, tokens=8)
    end = time.monotonic() + 60 * args.minutes
    pairs: list[tuple[float, float]] = []  # with, without
    calls: list[dict[str, float]] = []
    while len(pairs) < args.pairs and (len(pairs) < FEWEST or time.monotonic() < end):
        spent: dict[bool, float] = {}
        for tagged in (True, False) if len(pairs) % 2 == 0 else (False, True):
            spent[tagged], found = run(TAG_SECONDS if tagged else None)
            if tagged:
                calls.append(found)
        pairs.append((spent[True], spent[False]))
    return summary(pairs, calls)


def summary(pairs: list[tuple[float, float]], calls: list[dict[str, float]]) -> dict[str, Any]:
    """Shares in percent, each with its interval: (median, low, high)."""
    without = statistics.median(b for _, b in pairs)
    whole = median_interval([100 * (a - b) / without for a, b in pairs])
    found = [(sum(parts.values()), a) for parts, (a, _) in zip(calls, pairs)]
    direct = median_interval([100 * spent / (a - spent) for spent, a in found])
    parts = {name: statistics.median(parts.get(name, 0.0) for parts in calls) for name in ("pooling", "head")}
    return {"whole": whole, "calls": direct, "without": without, "parts": parts, "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add("--sizes", nargs="+", choices=weights.SIZES, default=["tiny", "small"], help="whose dimensions models have")
    add("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="with random weights")
    add("--compute", nargs="+", choices=COMPUTE, default=["float32", "int8"], help="precisions; float16 on a GPU")
    add("--seconds", type=float, default=30, help="length of the recording")
    add("--tokens", type=int, default=50, help="decoded in each window of 30 s")
    add("--pairs", type=int, default=50, help="of turns, at most")
    add("--minutes", type=float, default=2, help=f"for each size, precision and head; but {FEWEST} pairs at least")
    add_outputs(parser)
    args = parser.parse_args()
    if args.pairs < FEWEST:
        parser.error(f"--pairs is at least {FEWEST}")
    use_threads(args.threads)
    about = machine(args.device)

    import torch

    torch.set_num_threads(args.threads)
    audio = recording(args.seconds)
    rows = -(-len(audio) // (TAG_SECONDS * RATE))
    print(f"{args.seconds:g} s, {args.tokens} tokens per window, {rows} rows of tags, {args.threads} threads")
    print(f"\n{'':28} {'seconds':>8} {'whole':>20} {'calls':>20} {'pooling':>9} {'head':>9} {'pairs':>6}")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            weights.write_checkpoint(weights.random_state(size), size, Path(folder) / "model.pt")
            for compute in ["float16"] if args.device == "cuda" else args.compute:
                for head, mode in HEADS.items():
                    if head in args.heads:
                        model = open_ours(Path(folder) / "model.pt", compute, args.device, mode)
                        label = f"{size}, {compute}, {head}"
                        found[label] = compare(model, audio, args)
                        print(f"{label:28}", line(found[label]), flush=True)
    if args.json:
        write_results(args.json, args, about, tagging=found)
    if args.plot:
        shares = {label: {name: row[name] for name in ("whole", "calls")} for label, row in found.items()}
        title = f"Cost of tags: {args.seconds:g} s, {args.tokens} tokens per window, {args.threads} threads"
        draw.intervals(shares, "% of the time without tags (median, interval of 95 %)", title, args.plot)


def line(row: dict[str, Any]) -> str:
    shares = [f"{v:+.2f} % ({low:+.2f} {high:+.2f})" for v, low, high in (row["whole"], row["calls"])]
    parts = [f"{1e3 * row['parts'][name]:6.2f} ms" for name in ("pooling", "head")]
    return f"{row['without']:8.3f} {shares[0]:>20} {shares[1]:>20} {' '.join(parts)} {len(row['pairs']):6}"


if __name__ == "__main__":
    main()
