"""One step of the decoder: milliseconds by rows, against the time that reading its weights takes.

    python benchmarks/decoder_step.py                                  # tiny and small
    python benchmarks/decoder_step.py --sizes base --rows 1 5 6 7 8 9 10
    python benchmarks/decoder_step.py --device cuda --sizes small large-v3

A step gives every row (a beam, or a sample) of one window its next token. Weights are random (see weights.py); figures
are medians of steps from the fifth token on. The columns: whisper_at's compiled kernels; whisper_at by PyTorch, which
it uses for more rows than `MAX_KERNEL_TOKENS`; openai-whisper. Three precisions: "half" is float32 with weights
that are exact in half precision, as those of official checkpoints are, and stored so; "float32" is with weights that
are not; "int8". On a GPU there are no kernels, and all compute in half precision: PyTorch against openai-whisper.

The floor is the time to read once what a step must read (the decoder's weights with the embedding, and the cross-
attention's keys and values) at the bandwidth of memory, which is measured by reading a large array with all threads. A
model that fits into the processor's cache can be faster than its floor. The crossing is where, interpolated between the
numbers of rows tried, PyTorch becomes faster than the kernels.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import weights  # also puts this checkout's whisper_at in reach
from common import (
    DEVICES,
    HelpFormatter,
    available_cores,
    compile_kernels,
    machine_info,
    set_num_threads,
    write_results,
)

PRECISIONS = ("half", "float32", "int8")
PROMPT_TOKENS = [50258, 50259, 50359, 50363]  # start, English, transcribe, no timestamps
NO_LIMIT = 1 << 30
Step = Callable[[torch.Tensor], Any]


class Result(NamedTuple):
    """Milliseconds of a step, by implementation."""

    rows: int
    kernels: float | None
    torch: float
    openai: float | None


def synchronized_clock(device: str) -> float:
    """Return the time in seconds after all work so far is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def memory_bandwidth(device: str, megabytes: int = 512) -> float:
    """Measure the bytes per second that all threads, or the GPU, read from memory; the best of several passes."""
    best = 0.0
    if device == "cuda":
        large = torch.ones(megabytes << 18, device=device)
        for _ in range(6):
            start = synchronized_clock(device)
            large.sum()
            best = max(best, large.nbytes / (synchronized_clock(device) - start))
        return best
    from numba import njit, prange

    @njit(parallel=True)
    def read(array):
        total = 0
        for i in prange(array.shape[0]):
            for j in range(array.shape[1]):
                total += array[i, j]
        return total

    array = np.ones((megabytes, 131072), np.int64)  # a row is 1 MiB
    read(array[:8])
    for _ in range(5):
        start = time.perf_counter()
        read(array)
        best = max(best, array.nbytes / (time.perf_counter() - start))
    return best


def make_model(size: str, precision: str, device: str) -> Any:
    """Make openai-whisper's model; for ``float32``, with weights that are not exact in half precision."""
    from whisper.model import ModelDimensions, Whisper

    model = Whisper(ModelDimensions(**weights.dimensions(size)))
    model.load_state_dict(weights.random_state(size))
    if precision == "float32":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.0003)
    return model.eval().to(device)


def make_decoder(model: Any, precision: str) -> Any:
    """Make whisper_at's decoder of a model."""
    from whisper_at.engine.decoder import Decoder

    dtype = torch.float16 if model.device.type == "cuda" else torch.float32
    return Decoder(model, dtype, "int8" if precision == "int8" else None)


def start_whisper_at(decoder: Any, features: torch.Tensor, rows: int) -> Step:
    from whisper_at.engine.kv_cache import DecoderState

    state = DecoderState(decoder, decoder.precompute_cross_kv(features), rows)
    state.prefill(torch.tensor([PROMPT_TOKENS], device=features.device))
    return state.step


def start_openai(model: Any, features: torch.Tensor, rows: int) -> Step:
    from whisper.decoding import PyTorchInference

    inference = PyTorchInference(model, len(PROMPT_TOKENS))
    tokens = torch.tensor([PROMPT_TOKENS], device=features.device).expand(rows, -1)
    with torch.no_grad():
        inference.logits(tokens, features)

    def step(next_tokens: torch.Tensor) -> torch.Tensor:
        nonlocal tokens
        tokens = torch.cat((tokens, next_tokens[:, None]), 1)
        with torch.no_grad():
            return inference.logits(tokens, features)[:, -1]

    step.end = inference.cleanup_caching  # type: ignore[attr-defined]
    return step


def time_steps(step: Step, rows: int, steps: int, device: str) -> list[float]:
    """Return the milliseconds of each step, after two that are not timed."""
    generator = torch.Generator().manual_seed(0)
    milliseconds = []
    for i in range(steps + 2):
        tokens = torch.randint(0, weights.EOT, (rows,), generator=generator).to(device)
        start = synchronized_clock(device)
        step(tokens)
        if i >= 2:
            milliseconds.append(1e3 * (synchronized_clock(device) - start))
    getattr(step, "end", lambda: None)()
    return milliseconds


def measure(model: Any, precision: str, rows_tried: list[int], steps: int, repeat: int) -> Iterator[Result]:
    """Time the three implementations alternately for each number of rows; openai-whisper has no int8."""
    from whisper_at.engine import cpu_kernels

    decoder, dims, device = make_decoder(model, precision), model.dims, model.device.type
    features = torch.randn(1, dims.n_audio_ctx, dims.n_audio_state, generator=torch.Generator().manual_seed(0))
    features = features.to(device, decoder.dtype)
    limit = cpu_kernels.MAX_KERNEL_TOKENS
    for rows in rows_tried:
        times: dict[str, list[float]] = {"kernels": [], "torch": [], "openai": []}
        for _ in range(repeat):
            for name, max_tokens in (("kernels", NO_LIMIT), ("torch", 0))[device == "cuda" :]:
                cpu_kernels.MAX_KERNEL_TOKENS = max_tokens
                times[name] += time_steps(start_whisper_at(decoder, features, rows), rows, steps, device)
            if precision != "int8":
                times["openai"] += time_steps(start_openai(model, features, rows), rows, steps, device)
        cpu_kernels.MAX_KERNEL_TOKENS = limit
        yield Result(rows, *(statistics.median(s) if s else None for s in times.values()))  # type: ignore[arg-type]


def bytes_read(model: Any, precision: str) -> tuple[int, int]:
    """Return the bytes that a step reads: of the decoder's weights, and of the cross-attention's keys and values."""
    decoder, dims = make_decoder(model, precision), model.dims
    cross = 2 * dims.n_text_layer * dims.n_audio_ctx * dims.n_text_state * decoder.cross_kv_dtype.itemsize
    return decoder.weight_bytes(), cross


def crossing(results: list[Result]) -> str:
    """Return the number of rows at which PyTorch becomes faster than the kernels (the last such)."""
    leads = [r.torch / (r.kernels or r.torch) - 1 for r in results]  # positive: the kernels are faster
    for i in range(len(results) - 1, 0, -1):
        if leads[i - 1] > 0 >= leads[i]:
            low, high = results[i - 1].rows, results[i].rows
            return f"{low + (high - low) * leads[i - 1] / (leads[i - 1] - leads[i]):.1f}"
    return f"above {results[-1].rows}" if leads[-1] > 0 else f"below {results[0].rows}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", nargs="+", choices=weights.SIZES, default=["tiny", "small"], help="whose dimensions models have")
    add("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="of the weights, see above")
    add("--rows", nargs="+", type=int, default=[1, 2, 5, 8, 16, 32], help="that are decoded at once")
    add("--steps", type=int, default=20, help="timed in a run")
    add("--repeat", type=int, default=3, help="runs of each implementation")
    add("--threads", type=int, default=available_cores(), help="of everything")
    add("--device", choices=DEVICES, default="cpu", help="cuda: one GPU, in half precision")
    add("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args()
    set_num_threads(args.threads)
    machine = machine_info(args.device)
    compile_kernels(args.device)
    if args.device == "cuda":
        args.precisions = ["half"]
    args.rows = sorted(set(args.rows))

    import numba

    torch.set_num_threads(args.threads)
    numba.set_num_threads(min(args.threads, numba.config.NUMBA_NUM_THREADS))
    bandwidth = memory_bandwidth(args.device)
    results: dict[str, Any] = {}
    print(f"{args.threads} threads of {os.cpu_count()}; memory bandwidth {bandwidth / 1e9:.1f} GB/s; times in ms")
    for size in args.sizes:
        for precision in args.precisions:
            model = make_model(size, precision, args.device)
            packed, cross = bytes_read(model, precision)
            floor = 1e3 * (packed + cross) / bandwidth
            read = f"{packed / 1e6:.0f} MB of weights and {cross / 1e6:.0f} MB of keys and values"
            print(f"\n{size}, {precision}: {read}, floor {floor:.2f} ({1e3 * packed / bandwidth:.2f} of weights alone)")
            columns = f"{'kernels':>9} {'PyTorch':>9} {'openai-whisper':>15} {'ours ÷ floor':>16}"
            print(f"{'rows':>6} {columns}", flush=True)
            rows = []
            for result in measure(model, precision, args.rows, args.steps, args.repeat):
                rows.append(result)
                openai, ours = ("" if ms is None else f"{ms:.2f}" for ms in (result.openai, result.kernels))
                line = f"{result.rows:6} {ours:>9} {result.torch:9.2f} {openai:>15}"
                print(f"{line} {(result.kernels or result.torch) / floor:16.2f}", flush=True)
            if args.device == "cpu":
                print(f"crossing: {crossing(rows)} rows")
            results[f"{size}, {precision}"] = {"floor": floor, "results": [result._asdict() for result in rows]}
    if args.json:
        write_results(args.json, args, machine, bandwidth=bandwidth, steps=results)


if __name__ == "__main__":
    main()
