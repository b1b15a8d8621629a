"""Compare time and memory of whisper_at, openai-whisper, faster-whisper (CTranslate2) and transformers, for equal work.

    python benchmarks/peers.py --size tiny
    python benchmarks/peers.py --size small --seconds 30 --tokens 50 --minutes 6 --modes greedy int8
    python benchmarks/peers.py --json tiny.json --plot tiny.png
    python benchmarks/peers.py --device cuda --size large-v3 --modes greedy beam batch

All have the same random weights, of an official size, and the same recording of tones and noise. Every window of 30 s
is decoded to the same number of tokens after the same prompt: the end of text is suppressed, and a random model writes
no timestamps (see weights.py). Each library runs in a process of its own; the processes alternate, A B C A B C …, one
at a time, all with the same number of threads, after a warm-up that is not timed.

Seconds are those of one call that takes samples and returns text: median, minimum and maximum. "times" is the multiple
of the time of the first whisper_at of the mode: the ratio of the medians, and minimum and maximum of the ratios of
single rounds. "decoded" counts decodings of windows, "tokens" their tokens; "same" is the share that equals
openai-whisper's. A "!" marks work that was not equal. Peak memory is the maximum resident memory of the process,
loading of the model included, in MB of 10^6 bytes.

On a GPU all compute in half precision where a mode says float32, and the modes of int8 are left out.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
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
from runners import PROMPT_TOKENS, REFERENCE, RUNNERS, TAG_SECONDS, Workload

TAGGED = Workload(tags=TAG_SECONDS)


def peers(compute: str, work: Workload, with_transformers: bool = True) -> list[Case]:
    """Return the same work for all."""
    names = ["whisper_at", REFERENCE, "faster-whisper", *["transformers"] * with_transformers]
    return [Case(name, name, compute, work) for name in names]


def int8(work: Workload) -> list[Case]:
    ours = Case("whisper_at int8, tags", "whisper_at", "int8", replace(work, tags=TAG_SECONDS))
    return [ours, Case("faster-whisper int8", "faster-whisper", "int8", work)]


def precisions(compute: str) -> list[Case]:
    """Return whisper_at in every precision of the device, with tags, and openai-whisper."""
    computes = ("float32", "bfloat16", "int8") if compute == "float32" else ("float16", "bfloat16")
    ours = [Case(f"whisper_at {name}, tags", "whisper_at", name, TAGGED) for name in computes]
    return [*ours, Case(REFERENCE, REFERENCE, compute, Workload())]


def words(compute: str) -> list[Case]:
    work = Workload(words=True)
    strict, *others = peers(compute, work, with_transformers=False)
    not_strict = strict._replace(label="whisper_at, not strict", work=replace(work, strict=False))
    return [strict, not_strict, *others]


def two_models(compute: str) -> list[Case]:
    """Return text and tags from one pass, and from a Whisper followed by an audio tagger."""
    cases = [
        Case("whisper_at, tags", "whisper_at", compute, TAGGED),
        Case(f"{REFERENCE} + AST", REFERENCE, compute, TAGGED),
        Case(f"{REFERENCE} alone", REFERENCE, compute, Workload()),
    ]
    if compute == "float32":
        cases += [
            Case("whisper_at int8, tags", "whisper_at", "int8", TAGGED),
            Case("faster-whisper int8 + AST", "faster-whisper", "int8", TAGGED),
        ]
    return cases


def batched(batch: int, seconds: float) -> Workload:
    """Return work in full batches, for a recording of at least ``seconds``."""
    full = WINDOW_SECONDS * batch
    return Workload(batch=batch, seconds=full * math.ceil(seconds / full))


Mode = tuple[str, Callable[[str, Workload], list[Case]]]  # title; cases by compute type and the work of batches
MODES: dict[str, Mode] = {
    "greedy": ("float32, greedy", lambda compute, _: peers(compute, Workload())),
    "beam": ("float32, beam of 5", lambda compute, _: peers(compute, Workload(beam=5))),
    "language": ("float32, greedy, language detected", lambda compute, _: peers(compute, Workload(language=None))),
    "fallback": (
        "float32, greedy, then again at temperature 0.2",
        lambda compute, _: peers(compute, Workload(fallback=True), False),
    ),
    "words": ("float32, greedy, word timestamps", lambda compute, _: words(compute)),
    "int8": ("int8, greedy, whisper_at with tags", lambda *_: int8(Workload())),
    "int8-beam": ("int8, beam of 5, whisper_at with tags", lambda *_: int8(Workload(beam=5))),
    "batch": (
        "float32, greedy, full batches of windows (openai-whisper: one by one)",
        lambda compute, batch: peers(compute, batch),
    ),
    "batch-int8": ("int8, greedy, full batches of windows, whisper_at with tags", lambda _, batch: int8(batch)),
    "precisions": ("greedy, whisper_at by precision", lambda compute, _: precisions(compute)),
    "two-models": ("greedy, text and tags, by one model or by two", lambda compute, _: two_models(compute)),
}
INT8_MODES = ("int8", "int8-beam", "batch-int8")  # not for a GPU


def print_memory(memory: dict[str, dict[str, float]], mode: str) -> None:
    print(f"\nPeak memory in MB: with the model loaded, after its first mode ({mode}, or int8's), after all modes")
    for label, peaks in memory.items():
        figures = [f"{peaks.get(when, float('nan')):8.0f}" for when in ("loaded", "first", "last")]
        print(f"  {label:26}", *figures)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
        epilog="modes:\n" + "\n".join(f"  {mode:10} {title}" for mode, (title, _) in MODES.items()),
    )
    add = parser.add_argument
    add("--size", choices=weights.SIZES, default="tiny", help="whose dimensions the random model has")
    add("--seconds", type=float, default=60, help="length of the recording; its last batch is filled")
    add("--tokens", type=int, default=100, help="decoded in each window of 30 s")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE", help="what to time; see below")
    add("--peers", nargs="+", choices=RUNNERS, default=list(RUNNERS), metavar="PEER", help="|".join(RUNNERS))
    add("--batch", type=int, default=8, help="windows at a time, in the modes of batches")
    add("--repeat", type=int, default=5, help="rounds of each mode")
    add("--minutes", type=float, default=60, help="for all modes; as it runs out there are fewer rounds, but two")
    add_common_arguments(parser)
    args = parser.parse_args()
    if not PROMPT_TOKENS <= args.tokens <= 224 or min(args.repeat, args.threads, args.batch) < 1:
        parser.error(f"--tokens is {PROMPT_TOKENS} to 224, half of a decoder's positions; others are at least 1")
    if args.device == "cuda":
        args.modes = [mode for mode in args.modes if mode not in INT8_MODES]
    if not args.modes:
        parser.error("int8 is for CPUs: choose other --modes")
    return args


def main() -> None:
    args = parse_args()
    set_num_threads(args.threads)
    machine = machine_info(args.device)
    compile_kernels(args.device)
    compute = "float16" if args.device == "cuda" else "float32"
    title = f"{args.size}, {args.seconds:g} s, {args.tokens} tokens per window, {args.threads} threads, {args.device}"
    print(title, *(f"{name} {value}" for name, value in machine.items()), sep=" | ", flush=True)
    batch = batched(args.batch, args.seconds)
    modes = {mode: (MODES[mode][0].replace("float32", compute), MODES[mode][1](compute, batch)) for mode in args.modes}
    tables: dict[str, dict[str, Any]] = {}
    every = [case for _, cases in modes.values() for case in cases]
    with start_comparison(
        args.size, args.seconds, args.tokens, args.threads, args.device, args.peers, every
    ) as comparison:
        end = time.monotonic() + 60 * args.minutes
        for i, (mode, (name, cases)) in enumerate(modes.items()):
            now = time.monotonic()
            measurements = comparison.run(cases, args.repeat, until=now + (end - now) / (len(modes) - i))
            if measurements:
                tables[mode] = {"title": name, "entries": summarize(measurements, args.tokens)}
                print_table(name, tables[mode]["entries"])
        memory = comparison.memory()
        print_memory(memory, args.modes[0])
    if args.json:
        write_results(args.json, args, machine, modes=tables, memory=memory)
    if args.plot:
        plots.bars({table["title"]: table["entries"] for table in tables.values()}, title, args.plot)


if __name__ == "__main__":
    main()
