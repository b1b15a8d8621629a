"""Time and memory of whisper_at beside openai-whisper, faster-whisper (CTranslate2) and transformers, for equal work.

    python benchmarks/peers.py --size tiny
    python benchmarks/peers.py --size small --seconds 30 --tokens 50 --minutes 6 --modes greedy int8
    python benchmarks/peers.py --json tiny.json --plot tiny.png
    python benchmarks/peers.py --device cuda --size large-v3 --modes greedy beam batch

All have the same random weights, of an official size, and the same recording of tones and noise. Every window of 30 s
is decoded to the same number of tokens behind the same prompt: the end of text is suppressed, and a random model writes
no timestamps (see weights.py). Each contestant lives in a process of its own; the processes take turns,
A B C A B C …, one at a time, all with the same number of threads, after a warm-up that is not timed.

Seconds are those of one call that takes samples and returns text, medians with least and most. "times" is how many
times as long as the first whisper_at of its mode: the ratio of the medians, and least and most of the ratios of single
turns. "decoded" counts decodings of windows, "tokens" their tokens; "same" is the share that are openai-whisper's. A
"!" stands where the work was not equal. Peak memory is the most that the process ever held in RAM, the loading of the
model included, in MB of 10^6 bytes.

On a GPU all compute in half precision, where the modes say float32, and int8's modes are left out.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import draw
import weights
from common import WINDOW, Help, add_outputs, machine, use_threads, write_results
from contestants import LOADERS, PROMPT, REFERENCE, TAG_SECONDS, Work
from race import Entry, racing, rows, show

TAGGED = Work(tags=TAG_SECONDS)


def peers(compute: str, work: Work, with_transformers: bool = True) -> list[Entry]:
    """The same work for all."""
    names = ["whisper_at", REFERENCE, "faster-whisper", *["transformers"] * with_transformers]
    return [Entry(name, name, compute, work) for name in names]


def int8(work: Work) -> list[Entry]:
    ours = Entry("whisper_at int8, tags", "whisper_at", "int8", replace(work, tags=TAG_SECONDS))
    return [ours, Entry("faster-whisper int8", "faster-whisper", "int8", work)]


def precisions(compute: str) -> list[Entry]:
    """whisper_at in every precision of the device, with tags, beside openai-whisper."""
    kinds = ("float32", "bfloat16", "int8") if compute == "float32" else ("float16", "bfloat16")
    ours = [Entry(f"whisper_at {kind}, tags", "whisper_at", kind, TAGGED) for kind in kinds]
    return [*ours, Entry(REFERENCE, REFERENCE, compute, Work())]


def words(compute: str) -> list[Entry]:
    work = Work(words=True)
    exact, *others = peers(compute, work, with_transformers=False)
    loose = exact._replace(label="whisper_at, not strict", work=replace(work, strict=False))
    return [exact, loose, *others]


def two_models(compute: str) -> list[Entry]:
    """Text and tags: from one pass, or by a Whisper and an audio tagger one after the other."""
    entries = [
        Entry("whisper_at, tags", "whisper_at", compute, TAGGED),
        Entry(f"{REFERENCE} + AST", REFERENCE, compute, TAGGED),
        Entry(f"{REFERENCE} alone", REFERENCE, compute, Work()),
    ]
    if compute == "float32":
        entries += [
            Entry("whisper_at int8, tags", "whisper_at", "int8", TAGGED),
            Entry("faster-whisper int8 + AST", "faster-whisper", "int8", TAGGED),
        ]
    return entries


def batched(batch: int, seconds: float) -> Work:
    """Full batches, as many as a recording so long begins."""
    full = WINDOW * batch
    return Work(batch=batch, seconds=full * math.ceil(seconds / full))


Mode = tuple[str, Callable[[str, Work], list[Entry]]]  # title; entries by compute type and the work of batches
MODES: dict[str, Mode] = {
    "greedy": ("float32, greedy", lambda compute, _: peers(compute, Work())),
    "beam": ("float32, beam of 5", lambda compute, _: peers(compute, Work(beam=5))),
    "language": ("float32, greedy, language detected", lambda compute, _: peers(compute, Work(language=None))),
    "fallback": (
        "float32, greedy, then again at temperature 0.2",
        lambda compute, _: peers(compute, Work(fallback=True), False),
    ),
    "words": ("float32, greedy, word timestamps", lambda compute, _: words(compute)),
    "int8": ("int8, greedy, whisper_at with tags", lambda *_: int8(Work())),
    "int8-beam": ("int8, beam of 5, whisper_at with tags", lambda *_: int8(Work(beam=5))),
    "batch": (
        "float32, greedy, full batches of windows (openai-whisper: one by one)",
        lambda compute, batch: peers(compute, batch),
    ),
    "batch-int8": ("int8, greedy, full batches of windows, whisper_at with tags", lambda _, batch: int8(batch)),
    "precisions": ("greedy, whisper_at by precision", lambda compute, _: precisions(compute)),
    "two-models": ("greedy, text and tags, by one model or by two", lambda compute, _: two_models(compute)),
}
IN_INT8 = ("int8", "int8-beam", "batch-int8")  # not for a GPU


def show_memory(memory: dict[str, dict[str, float]], mode: str) -> None:
    print(f"\nPeak memory in MB: with the model loaded, after its first mode ({mode}, or int8's), after all modes")
    for label, peaks in memory.items():
        figures = [f"{peaks.get(when, float('nan')):8.0f}" for when in ("loaded", "first", "last")]
        print(f"  {label:26}", *figures)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=Help,
        epilog="modes:\n" + "\n".join(f"  {mode:10} {title}" for mode, (title, _) in MODES.items()),
    )
    add = parser.add_argument
    add("--size", choices=weights.SIZES, default="tiny", help="whose dimensions the random model has")
    add("--seconds", type=float, default=60, help="length of the recording; its last batch is filled")
    add("--tokens", type=int, default=100, help="decoded in each window of 30 s")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE", help="what to time; see below")
    add("--peers", nargs="+", choices=LOADERS, default=list(LOADERS), metavar="PEER", help="|".join(LOADERS))
    add("--batch", type=int, default=8, help="windows at a time, in the modes of batches")
    add("--repeat", type=int, default=5, help="rounds of each mode")
    add("--minutes", type=float, default=60, help="for all modes; as it runs out there are fewer rounds, but two")
    add_outputs(parser)
    args = parser.parse_args()
    if not PROMPT <= args.tokens <= 224 or min(args.repeat, args.threads, args.batch) < 1:
        parser.error(f"--tokens is {PROMPT} to 224, half of a decoder's places; others are at least 1")
    if args.device == "cuda":
        args.modes = [mode for mode in args.modes if mode not in IN_INT8]
    if not args.modes:
        parser.error("int8 is for CPUs: choose other --modes")
    return args


def main() -> None:
    args = parse()
    use_threads(args.threads)
    about = machine(args.device)
    compute = "float16" if args.device == "cuda" else "float32"
    title = f"{args.size}, {args.seconds:g} s, {args.tokens} tokens per window, {args.threads} threads, {args.device}"
    print(title, *(f"{name} {value}" for name, value in about.items()), sep=" | ", flush=True)
    batch = batched(args.batch, args.seconds)
    modes = {mode: (MODES[mode][0].replace("float32", compute), MODES[mode][1](compute, batch)) for mode in args.modes}
    tables: dict[str, dict[str, Any]] = {}
    every = [entry for _, entries in modes.values() for entry in entries]
    with racing(args.size, args.seconds, args.tokens, args.threads, args.device, args.peers, every) as race:
        end = time.monotonic() + 60 * args.minutes
        for i, (mode, (name, entries)) in enumerate(modes.items()):
            now = time.monotonic()
            timings = race.run(entries, args.repeat, until=now + (end - now) / (len(modes) - i))
            if timings:
                tables[mode] = {"title": name, "entries": rows(timings, args.tokens)}
                show(name, tables[mode]["entries"])
        memory = race.memory()
        show_memory(memory, args.modes[0])
    if args.json:
        write_results(args.json, args, about, modes=tables, memory=memory)
    if args.plot:
        draw.bars({table["title"]: table["entries"] for table in tables.values()}, title, args.plot)


if __name__ == "__main__":
    main()
