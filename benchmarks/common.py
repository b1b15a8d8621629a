"""What all benchmarks share: the sound they hear, the machine they run on, and how results are written."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
WINDOW = 30  # seconds
DEVICES = ("cpu", "cuda")
PACKAGES = ("openai-whisper", "faster-whisper", "ctranslate2", "transformers", "torch", "numba", "numpy")
BUSY = 0.3  # of other work in the last minute, in cores, that disturbs a measurement


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it stands, and every default."""


def recording(seconds: float, seed: int = 0) -> np.ndarray:
    """Tones that swell, with bursts of noise; float32 ``(samples,)``."""
    t = np.arange(round(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * hertz * t) for hertz in (220, 554.4, 1318.5)) * np.sin(t * 0.7) ** 2
    bursts = np.random.default_rng(seed).standard_normal(len(t)) * (np.sin(t * 2.3) > 0.4)
    return (0.1 * tones + 0.05 * bursts).astype(np.float32)


def peak_memory() -> float:
    """The most RAM that this process ever held, in MB of 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # bytes there, KiB elsewhere


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int) -> None:
    """For libraries that are loaded from now on, here and in processes started from here."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def machine(device: str = "cpu") -> dict[str, Any]:
    """What results depend on beside the code; says so where other work disturbs them, or where there is no GPU.

    Raises SystemExit if ``device`` is ``cuda`` and there is none.
    """
    found: dict[str, Any] = {"processor": _processor(), "cores": cores(), "load": round(os.getloadavg()[0], 2)}
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("--device cuda: PyTorch finds no GPU here, so there is nothing to measure on one")
        found["gpu"] = torch.cuda.get_device_name()
    if found["load"] > BUSY:
        print(f"this machine is busy (load {found['load']}): these are not the times of idle cores", flush=True)
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """A median and the interval that holds it, without assuming any distribution.

    The interval runs between the order statistics that the true median lies between with at least this probability
    (the sign test); with fewer than six values it is the least and the most, whose confidence is lower.
    """
    ordered, n = sorted(values), len(values)
    below, cut = 0.0, 0
    while cut < n // 2:  # how many values may be left out at each end
        below += math.comb(n, cut) / 2**n
        if 2 * below > 1 - confidence:
            break
        cut += 1
    cut = max(0, cut - 1)
    return statistics.median(ordered), ordered[cut], ordered[n - 1 - cut]


def write_results(path: Path, args: argparse.Namespace, about: dict[str, Any], **results: Any) -> None:
    """A JSON file of a run: its options, its machine and what was measured."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"run": options, "machine": about, **results}, indent=1) + "\n")


def add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=cores(), help="of everything")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="cuda: one GPU, in half precision")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--plot", type=Path, help="draw them to this file (needs matplotlib)")
