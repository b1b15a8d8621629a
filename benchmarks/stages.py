"""Where the time of a transcription with tags goes, by stage.

    python benchmarks/stages.py                                # tiny and small, float32 and int8
    python benchmarks/stages.py --sizes base --compute int8 --beam 5 --plot stages.png
    python benchmarks/stages.py --batch 8 --seconds 240

The calls that make up each stage are timed from outside, each second counted once: what a call spends inside another
stage's is that stage's. "rest" is what no such call took. Logits are the product with the embedding, which both the
prompt and the steps end with; "tagging" is pooling, rows and head. Medians of several turns of each stage by itself,
after a warm-up; with random weights of an official size (see weights.py), and so many tokens in each window of 30 s.
On a GPU the clock waits for it at every call, which makes the whole slower than it is.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import draw
import numpy as np
import weights
from common import RATE, Help, add_outputs, machine, recording, use_threads, write_results
from contestants import TAG_SECONDS, Work, clips, default_head, open_ours, upstream_options
from stopwatch import Stopwatch, all_calls, watching

COMPUTE = ("float32", "bfloat16", "int8")


def turn(transcribe: Callable[[], Any], sync: Callable[[], None] | None) -> dict[str, float]:
    """Seconds by stage of one run, and the rest of it."""
    with watching(Stopwatch(sync), all_calls()) as stopwatch:
        start = time.perf_counter()
        transcribe()
        whole = time.perf_counter() - start
    return {**stopwatch.seconds, "rest": whole - sum(stopwatch.seconds.values())}


def measure(model: Any, audio: np.ndarray, args: argparse.Namespace) -> dict[str, float]:
    """The median of each stage, in the order of a run."""
    import torch

    work = Work(beam=args.beam, tags=TAG_SECONDS, batch=args.batch)
    options = {**upstream_options(work, args.tokens, args.device), "at_time_res": work.tags}
    if args.batch:
        options |= {"batch_size": args.batch, "clip_timestamps": clips(audio)}
    sync = torch.cuda.synchronize if args.device == "cuda" else None
    model.transcribe(audio[: 5 * RATE], **{**options, "sample_len": 8, "clip_timestamps": "0"})
    turns = [turn(lambda: model.transcribe(audio, **options), sync) for _ in range(args.repeat)]
    stages = dict.fromkeys([stage for stage, *_ in all_calls()] + ["rest"])
    return {stage: statistics.median([found.get(stage, 0.0) for found in turns]) for stage in stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add("--sizes", nargs="+", choices=weights.SIZES, default=["tiny", "small"], help="whose dimensions models have")
    add("--compute", nargs="+", choices=COMPUTE, default=["float32", "int8"], help="precisions; float16 on a GPU")
    add("--seconds", type=float, default=60, help="length of the recording")
    add("--tokens", type=int, default=100, help="decoded in each window of 30 s")
    add("--beam", type=int, help="of so many, not greedy")
    add("--batch", type=int, help="so many windows of 30 s at a time, not one after the other")
    add("--repeat", type=int, default=5, help="turns")
    add_outputs(parser)
    args = parser.parse_args()
    use_threads(args.threads)
    about = machine(args.device)

    import torch

    torch.set_num_threads(args.threads)
    audio = recording(args.seconds)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            weights.write_checkpoint(weights.random_state(size), size, Path(folder) / "model.pt")
            for compute in ["float16"] if args.device == "cuda" else args.compute:
                model = open_ours(Path(folder) / "model.pt", compute, args.device, default_head(size))
                stages = found[f"{size}, {compute}"] = measure(model, audio, args)
                whole = sum(stages.values())
                print(f"\n{size}, {compute}: {whole:.3f} s for {args.seconds:g} s of sound")
                for stage, seconds in stages.items():
                    print(f"  {stage:20} {1e3 * seconds:9.1f} ms {100 * seconds / whole:6.1f} %", flush=True)
    if args.json:
        write_results(args.json, args, about, stages=found)
    if args.plot:
        how = f"beam of {args.beam}" if args.beam else "greedy"
        how += f", batches of {args.batch}" if args.batch else ""
        title = f"whisper_at with tags: {args.seconds:g} s, {args.tokens} tokens per window, {how}"
        draw.stacked(found, "seconds", f"{title}, {args.threads} threads", args.plot)


if __name__ == "__main__":
    main()
