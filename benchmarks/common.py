"""Common to all benchmarks: the audio, facts about the machine, and how results are written."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_RATE = 16000
WINDOW_SECONDS = 30
DEVICES = ("cpu", "cuda")
PACKAGES = ("openai-whisper", "faster-whisper", "ctranslate2", "transformers", "torch", "numba", "numpy")
MAX_LOAD = 0.3  # load average of the last minute above which a measurement is disturbed
INSTRUCTION_LIMITS = (
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "NUMBA_CPU_NAME",
    "CT2_FORCE_CPU_ISA",
)
"""Variables that hold libraries to fewer instruction sets than the processor has."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keep line breaks of the description, and show every default."""


def synthetic_audio(seconds: float, seed: int = 0) -> np.ndarray:
    """Make swelling tones with bursts of noise, float32, shape (samples,)."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * hertz * t) for hertz in (220, 554.4, 1318.5)) * np.sin(t * 0.7) ** 2
    bursts = np.random.default_rng(seed).standard_normal(len(t)) * (np.sin(t * 2.3) > 0.4)
    return (0.1 * tones + 0.05 * bursts).astype(np.float32)


def peak_memory() -> float:
    """Return the peak resident memory of this process, in MB of 10^6 bytes."""
    with contextlib.suppress(OSError, StopIteration):  # what getrusage says on Linux includes the parent's at the fork
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # bytes on macOS, KiB elsewhere


def current_memory() -> float:
    """Return the resident memory of this process now, in MB of 10^6 bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024 / 1e6


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(threads: int) -> None:
    """Set the threads of libraries that are loaded after this, here and in processes started from here."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def machine_info(device: str = "cpu") -> dict[str, Any]:
    """Collect what results depend on besides the code, and warn if the machine is busy.

    Raises SystemExit if ``device`` is ``cuda`` and there is no GPU.
    """
    info: dict[str, Any] = {
        "processor": _processor_name(),
        "cores": available_cores(),
        "load": round(os.getloadavg()[0], 2),
    }
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("--device cuda: PyTorch finds no GPU here, so there is nothing to measure on one")
        info["gpu"] = torch.cuda.get_device_name()
    if info["load"] > MAX_LOAD:
        print(f"this machine is busy (load {info['load']}): these are not the times of idle cores", flush=True)
    if limits := {name: os.environ[name] for name in INSTRUCTION_LIMITS if name in os.environ}:
        info["held_to"] = limits
        print("held to", *(f"{name}={value}" for name, value in limits.items()), flush=True)
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            info[name] = importlib.metadata.version(name)
    return info


def compile_kernels(device: str = "cpu") -> None:
    """Compile whisper_at's kernels, or see that they are compiled, so that no run is by PyTorch in their place."""
    if device == "cpu":
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run([sys.executable, "-m", "whisper_at", "warmup"], env=env, check=True, stdout=subprocess.DEVNULL)


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return a median and its confidence interval (low, high), without assuming any distribution.

    The interval lies between the order statistics that enclose the true median with at least this probability (the sign
    test). With fewer than six values it is the smallest and the largest, whose confidence is lower.
    """
    ordered, n = sorted(values), len(values)
    tail, skipped = 0.0, 0
    while skipped < n // 2:  # how many values may be left out at each end
        tail += math.comb(n, skipped) / 2**n
        if 2 * tail > 1 - confidence:
            break
        skipped += 1
    skipped = max(0, skipped - 1)
    return statistics.median(ordered), ordered[skipped], ordered[n - 1 - skipped]


def write_results(path: Path, args: argparse.Namespace, machine: dict[str, Any], **results: Any) -> None:
    """Write a run's options, machine and results as JSON."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"run": options, "machine": machine, **results}, indent=1) + "\n")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=available_cores(), help="of everything")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="cuda: one GPU, in half precision")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--plot", type=Path, help="plot them to this file (needs matplotlib)")
