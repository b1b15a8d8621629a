"""Where the time of a transcription with tags goes, by stage.

    python benchmarks/stages.py                                # tiny and small, float32 and int8
    python benchmarks/stages.py --sizes base --compute int8 --beam 5 --plot stages.png
    python benchmarks/stages.py --batch 8 --seconds 240

The calls that make up each stage are timed from outside; a call inside another stage's call counts for the inner stage
only. "rest" is the time outside of these calls. Logits are the product with the embedding, which ends the prompt and
every step; "tagging" is pooling, rows and head. Figures are medians of several runs, for each stage by itself, after a
warm-up, with random weights of an official size (see weights.py) and a fixed number of tokens per window of 30 s. On a
GPU the clock waits for the device at every call, which slows down the whole.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
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
    set_num_threads,
    synthetic_audio,
    write_results,
)
from runners import TAG_SECONDS, Workload, default_head, load_whisper_at, transcribe_options, window_edges
from timing import StageTimer, all_calls, time_calls

COMPUTE = ("float32", "bfloat16", "int8")


def time_run(transcribe: Callable[[], Any], sync: Callable[[], None] | None) -> dict[str, float]:
    """Return the seconds of one run by stage, and the rest of it."""
    with time_calls(StageTimer(sync), all_calls()) as timer:
        start = time.perf_counter()
        transcribe()
        total = time.perf_counter() - start
    return {**timer.seconds, "rest": total - sum(timer.seconds.values())}


def measure(model: Any, audio: np.ndarray, args: argparse.Namespace) -> dict[str, float]:
    """Return the median of each stage, in the order of a run."""
    import torch

    work = Workload(beam=args.beam, tags=TAG_SECONDS, batch=args.batch)
    options = {**transcribe_options(work, args.tokens, args.device), "at_time_res": work.tags}
    if args.batch:
        options |= {"batch_size": args.batch, "clip_timestamps": window_edges(audio)}
    sync = torch.cuda.synchronize if args.device == "cuda" else None
    model.transcribe(audio[: 5 * SAMPLE_RATE], **{**options, "sample_len": 8, "clip_timestamps": "0"})
    runs = [time_run(lambda: model.transcribe(audio, **options), sync) for _ in range(args.repeat)]
    stages = dict.fromkeys([stage for stage, *_ in all_calls()] + ["rest"])
    return {stage: statistics.median([run.get(stage, 0.0) for run in runs]) for stage in stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--sizes", nargs="+", choices=weights.SIZES, default=["tiny", "small"], help="whose dimensions models have")
    add("--compute", nargs="+", choices=COMPUTE, default=["float32", "int8"], help="precisions; float16 on a GPU")
    add("--seconds", type=float, default=60, help="length of the recording")
    add("--tokens", type=int, default=100, help="decoded in each window of 30 s")
    add("--beam", type=int, help="size of the beam; greedy by default")
    add("--batch", type=int, help="windows of 30 s at a time; one after the other by default")
    add("--repeat", type=int, default=5, help="runs")
    add_common_arguments(parser)
    args = parser.parse_args()
    set_num_threads(args.threads)
    machine = machine_info(args.device)
    compile_kernels(args.device)

    import torch

    torch.set_num_threads(args.threads)
    audio = synthetic_audio(args.seconds)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            weights.write_checkpoint(weights.random_state(size), size, Path(folder) / "model.pt")
            for compute in ["float16"] if args.device == "cuda" else args.compute:
                model = load_whisper_at(Path(folder) / "model.pt", compute, args.device, default_head(size))
                stages = results[f"{size}, {compute}"] = measure(model, audio, args)
                total = sum(stages.values())
                print(f"\n{size}, {compute}: {total:.3f} s for {args.seconds:g} s of audio")
                for stage, seconds in stages.items():
                    print(f"  {stage:20} {1e3 * seconds:9.1f} ms {100 * seconds / total:6.1f} %", flush=True)
    if args.json:
        write_results(args.json, args, machine, stages=results)
    if args.plot:
        decoding = f"beam of {args.beam}" if args.beam else "greedy"
        decoding += f", batches of {args.batch}" if args.batch else ""
        title = f"whisper_at with tags: {args.seconds:g} s, {args.tokens} tokens per window, {decoding}"
        plots.stacked(results, "seconds", f"{title}, {args.threads} threads", args.plot)


if __name__ == "__main__":
    main()
