"""The encoder in bfloat16 by whisper_at's own loops and by PyTorch: time, and distance from float32.

    python benchmarks/encoder.py --sizes tiny small

Random weights; the two take turns. Distances are those of features, relative to the norm of float32's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

from common import machine, write_results
from weights import SIZES, dimensions
from whisper.model import ModelDimensions

from whisper_at.encoding import Encoder
from whisper_at.model import WhisperAT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["tiny", "small"])
    parser.add_argument("--batch", type=int, default=1, help="windows at once (1)")
    parser.add_argument("--repeat", type=int, default=7, help="turns (7)")
    parser.add_argument("--threads", type=int, default=2, help="of everything (2)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args()
    about = machine()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {}
    for size in args.sizes:
        torch.manual_seed(0)
        model = WhisperAT(ModelDimensions(**dimensions(size))).eval()
        if not Encoder.fits(model.encoder):
            sys.exit("this processor has no loops of their own for bfloat16: PyTorch does all")
        mel = torch.randn(args.batch, model.dims.n_mels, 3000)
        own = Encoder(model.encoder)
        ways = {"own loops": own, "PyTorch": lambda mel, model=model: model.encoder(mel.bfloat16()).float()}
        with torch.no_grad():
            exact = model.encoder(mel)
            distances = {name: distance(way(mel), exact) for name, way in ways.items()}  # and compiled
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(args.repeat):
                for name, way in ways.items():
                    begun = time.perf_counter()
                    way(mel)
                    seconds[name].append(time.perf_counter() - begun)
        ratio = statistics.median(a / b for a, b in zip(*seconds.values()))
        print(f"{size}, {args.batch} windows: own loops take {ratio:.2f} of PyTorch's time")
        for name in ways:
            median = 1000 * statistics.median(seconds[name]) / args.batch
            print(f"  {name:10} {median:7.0f} ms a window   distance from float32 {distances[name]:.4f}")
        found[size] = {"ratio": ratio, "seconds": seconds, "distances": distances}
    if args.json:
        write_results(args.json, args, about, sizes=found)


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
