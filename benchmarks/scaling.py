"""How time grows with the length of a recording, with the number of tag rows, and with the windows in a batch.

    python benchmarks/scaling.py                               # all three, tiny
    python benchmarks/scaling.py --size small --what rows --plot rows.png

length : whisper_at without and with tags, openai-whisper, one window after the other; in seconds per minute of sound
rows : whisper_at with a row of tags every so many seconds, against none
batch : whisper_at with so many windows of 30 s at a time, of the same recording, which fills the largest batch

Weights, sound and work are those of peers.py, as are the turns that contestants take; greedy, medians of rounds.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import draw
import weights
from common import WINDOW, Help, add_outputs, machine, use_threads, write_results
from contestants import REFERENCE, TAG_SECONDS, Work
from race import Entry, racing, rows, show

LENGTHS = (30, 60, 600)  # seconds
RESOLUTIONS = (30, 10, 4, 2, 0.8, 0.4)  # seconds per row of tags
BATCHES = (1, 2, 4, 8, 16)
Key = tuple[str, float]  # the line of a picture, and the place on it


def entries(what: str, computes: list[str]) -> dict[Key, Entry]:
    """What is raced, by where it is drawn."""
    found: dict[Key, Entry] = {}

    def add(line: str, x: float, peer: str, compute: str, label: str, work: Work) -> None:
        found[line, x] = Entry(label, peer, compute, work)

    if what == "length":
        for seconds in LENGTHS:
            work = Work(seconds=seconds)
            for compute in computes:
                ours = f"whisper_at {compute}"
                add(ours, seconds, "whisper_at", compute, f"{ours}, {seconds} s", work)
                tagged = Work(seconds=seconds, tags=TAG_SECONDS)
                add(f"{ours}, tags", seconds, "whisper_at", compute, f"{ours}, tags, {seconds} s", tagged)
            add(REFERENCE, seconds, REFERENCE, computes[0], f"{REFERENCE}, {seconds} s", work)
    for compute in computes:
        ours = f"whisper_at {compute}"
        if what == "rows":
            found[ours, 0] = Entry(f"{ours}, no tags", "whisper_at", compute, Work())
            for resolution in RESOLUTIONS:
                label = f"{ours}, {resolution:g} s"
                add(ours, resolution, "whisper_at", compute, label, Work(tags=resolution))
        if what == "batch":
            seconds = WINDOW * max(BATCHES)
            for batch in BATCHES:
                work = Work(seconds=seconds, batch=batch)
                add(ours, batch, "whisper_at", compute, f"{ours}, batch of {batch}", work)
    return found


def panel(what: str, keys: list[Key], table: list[dict[str, Any]]) -> dict[str, Any]:
    """A drawing of a table: points of (x, median, least, most)."""
    lines: dict[str, list[tuple[float, ...]]] = {}
    for (name, x), row in zip(keys, table):
        points = [row["median"], min(row["seconds"]), max(row["seconds"])]
        if what == "length":
            points = [point * 60 / x for point in points]
        if what == "batch":
            points = [point / max(BATCHES) for point in points]
        lines.setdefault(name, []).append((x, *points))
    if what == "rows":
        lines = {name: [share(point, points[0][1]) for point in points[1:]] for name, points in lines.items()}
    axes = {
        "length": ("seconds of sound", "seconds per minute of sound"),
        "rows": ("seconds per row of tags", "time, of the time without tags"),
        "batch": ("windows in a batch", "seconds per window of 30 s"),
    }
    return dict(zip(("xlabel", "ylabel"), axes[what])) | {"lines": lines}


def share(point: tuple[float, ...], whole: float) -> tuple[float, ...]:
    x, *values = point
    return (x, *(value / whole for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add("--what", nargs="+", choices=("length", "rows", "batch"), default=["length", "rows", "batch"], help="to time")
    add("--size", choices=weights.SIZES, default="tiny", help="whose dimensions the random model has")
    add("--compute", nargs="+", default=["float32", "int8"], help="precisions of whisper_at; float16 on a GPU")
    add("--seconds", type=float, default=60, help="length of the recording for rows")
    add("--tokens", type=int, default=100, help="decoded in each window of 30 s")
    add("--repeat", type=int, default=3, help="rounds of each")
    add("--minutes", type=float, default=60, help="for all; as it runs out there are fewer rounds, but two")
    add_outputs(parser)
    args = parser.parse_args()
    use_threads(args.threads)
    about = machine(args.device)
    computes = ["float16"] if args.device == "cuda" else args.compute
    chosen = {what: entries(what, computes) for what in args.what}
    every = [entry for by_key in chosen.values() for entry in by_key.values()]
    tables, panels = {}, []
    peers = ["whisper_at", REFERENCE]
    with racing(args.size, args.seconds, args.tokens, args.threads, args.device, peers, every) as race:
        end = time.monotonic() + 60 * args.minutes
        for i, (what, by_key) in enumerate(chosen.items()):
            now = time.monotonic()
            timings = race.run(list(by_key.values()), args.repeat, until=now + (end - now) / (len(chosen) - i))
            if not timings:
                continue
            tables[what] = rows(timings, args.tokens)
            show(f"{args.size}, {what} (times: of the first line's)", tables[what])
            keys = [key for key, entry in by_key.items() if entry in [timing.entry for timing in timings]]
            panels.append(panel(what, keys, tables[what]))
    if args.json:
        write_results(args.json, args, about, scaling=tables)
    if args.plot:
        title = f"{args.size}, greedy, {args.tokens} tokens per window, {args.threads} threads, {args.device}"
        draw.lines(panels, title, args.plot)


if __name__ == "__main__":
    main()
