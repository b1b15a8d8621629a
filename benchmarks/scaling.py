"""Time by the length of a recording, by the number of tag rows, and by the windows in a batch.

    python benchmarks/scaling.py                               # all three, tiny
    python benchmarks/scaling.py --size small --what rows --plot rows.png

length : whisper_at without and with tags, and openai-whisper, one window after the other; seconds per minute of audio
rows : whisper_at by seconds per row of tags, relative to no tags
batch : whisper_at by windows of 30 s in a batch, of the same recording, which fills the largest batch

Weights, audio, work and the order of runs are those of peers.py; greedy decoding, medians of rounds.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import plots
import weights
from common import (
    WINDOW_SECONDS,
    HelpFormatter,
    add_common_arguments,
    compile_kernels,
    machine_info,
    set_num_threads,
    write_results,
)
from compare import Case, print_table, start_comparison, summarize
from runners import REFERENCE, TAG_SECONDS, Workload

LENGTHS = (30, 60, 600)  # seconds
RESOLUTIONS = (30, 10, 4, 2, 0.8, 0.4)  # seconds per row of tags
BATCHES = (1, 2, 4, 8, 16)
Point = tuple[str, float]  # a line of the plot, and x on it


def cases_by_point(what: str, computes: list[str]) -> dict[Point, Case]:
    """Return the cases by where they are plotted."""
    cases: dict[Point, Case] = {}

    def add(line: str, x: float, peer: str, compute: str, label: str, work: Workload) -> None:
        cases[line, x] = Case(label, peer, compute, work)

    if what == "length":
        for seconds in LENGTHS:
            work = Workload(seconds=seconds)
            for compute in computes:
                ours = f"whisper_at {compute}"
                add(ours, seconds, "whisper_at", compute, f"{ours}, {seconds} s", work)
                tagged = Workload(seconds=seconds, tags=TAG_SECONDS)
                add(f"{ours}, tags", seconds, "whisper_at", compute, f"{ours}, tags, {seconds} s", tagged)
            add(REFERENCE, seconds, REFERENCE, computes[0], f"{REFERENCE}, {seconds} s", work)
    for compute in computes:
        ours = f"whisper_at {compute}"
        if what == "rows":
            cases[ours, 0] = Case(f"{ours}, no tags", "whisper_at", compute, Workload())
            for resolution in RESOLUTIONS:
                label = f"{ours}, {resolution:g} s"
                add(ours, resolution, "whisper_at", compute, label, Workload(tags=resolution))
        if what == "batch":
            seconds = WINDOW_SECONDS * max(BATCHES)
            for batch in BATCHES:
                work = Workload(seconds=seconds, batch=batch)
                add(ours, batch, "whisper_at", compute, f"{ours}, batch of {batch}", work)
    return cases


def make_panel(what: str, points: list[Point], table: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a panel for `plots.lines` from a table."""
    lines: dict[str, list[tuple[float, ...]]] = {}
    for (name, x), row in zip(points, table):
        values = [row["median"], min(row["seconds"]), max(row["seconds"])]
        if what == "length":
            values = [value * 60 / x for value in values]
        if what == "batch":
            values = [value / max(BATCHES) for value in values]
        lines.setdefault(name, []).append((x, *values))
    if what == "rows":  # the first point is the time without tags
        lines = {
            name: [(x, *(value / line[0][1] for value in values)) for x, *values in line[1:]]
            for name, line in lines.items()
        }
    axes = {
        "length": ("seconds of audio", "seconds per minute of audio"),
        "rows": ("seconds per row of tags", "time, of the time without tags"),
        "batch": ("windows in a batch", "seconds per window of 30 s"),
    }
    return dict(zip(("xlabel", "ylabel"), axes[what])) | {"lines": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add(
        "--what",
        nargs="+",
        choices=("length", "rows", "batch"),
        default=["length", "rows", "batch"],
        help="what to vary",
    )
    add("--size", choices=weights.SIZES, default="tiny", help="whose dimensions the random model has")
    add("--compute", nargs="+", default=["float32", "int8"], help="precisions of whisper_at; float16 on a GPU")
    add("--seconds", type=float, default=60, help="length of the recording for rows")
    add("--tokens", type=int, default=100, help="decoded in each window of 30 s")
    add("--repeat", type=int, default=3, help="rounds of each")
    add("--minutes", type=float, default=60, help="for all; as it runs out there are fewer rounds, but two")
    add_common_arguments(parser)
    args = parser.parse_args()
    set_num_threads(args.threads)
    machine = machine_info(args.device)
    compile_kernels(args.device)
    computes = ["float16"] if args.device == "cuda" else args.compute
    chosen = {what: cases_by_point(what, computes) for what in args.what}
    every = [case for cases in chosen.values() for case in cases.values()]
    tables, panels = {}, []
    peers = ["whisper_at", REFERENCE]
    with start_comparison(args.size, args.seconds, args.tokens, args.threads, args.device, peers, every) as comparison:
        end = time.monotonic() + 60 * args.minutes
        for i, (what, cases) in enumerate(chosen.items()):
            now = time.monotonic()
            until = now + (end - now) / (len(chosen) - i)
            measurements = comparison.run(list(cases.values()), args.repeat, until)
            if not measurements:
                continue
            tables[what] = summarize(measurements, args.tokens)
            print_table(f"{args.size}, {what} (times: of the first line's)", tables[what])
            measured = [measurement.case for measurement in measurements]
            points = [point for point, case in cases.items() if case in measured]
            panels.append(make_panel(what, points, tables[what]))
    if args.json:
        write_results(args.json, args, machine, scaling=tables)
    if args.plot:
        title = f"{args.size}, greedy, {args.tokens} tokens per window, {args.threads} threads, {args.device}"
        plots.lines(panels, title, args.plot)


if __name__ == "__main__":
    main()
