"""The encoder in float32 and bfloat16, by whisper_at and by openai-whisper's modules: time, and how far features move.

    python benchmarks/encoder.py --sizes tiny small

Random weights; all take turns. whisper_at multiplies float32 by oneDNN and bfloat16 by loops of its own;
openai-whisper, as PyTorch does, by MKL and by oneDNN. Distances are those of features from openai-whisper's in float32,
relative to the norm of these.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

from common import machine, write_results
from weights import SIZES, dimensions
from whisper.model import ModelDimensions, Whisper

from whisper_at.engine.encoder_bf16 import Encoder
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
        upstream = Whisper(model.dims).eval().encoder
        upstream.load_state_dict(model.encoder.state_dict())
        mel = torch.randn(args.batch, model.dims.n_mels, 3000)
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "float32, whisper_at": model.embed_audio,
            "float32, openai-whisper": upstream,
            "bfloat16, openai-whisper": lambda mel, upstream=upstream: upstream(mel.bfloat16()).float(),
        }
        if Encoder.fits(model.encoder):  # else this processor has no loops of their own: PyTorch does all
            ways["bfloat16, whisper_at"] = Encoder(model.encoder)
        with torch.no_grad():
            exact = upstream(mel)
            distances = {name: distance(way(mel), exact) for name, way in ways.items()}  # and compiled
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(args.repeat):
                for name, way in ways.items():
                    begun = time.perf_counter()
                    way(mel)
                    seconds[name].append(time.perf_counter() - begun)
        medians = {name: statistics.median(spent) for name, spent in seconds.items()}
        print(f"{size}, {args.batch} windows")
        for name, median in medians.items():
            times = median / medians["float32, openai-whisper"]
            print(f"  {name:25} {times:5.2f} of openai-whisper's float32   features differ by {distances[name]:.1e}")
        found[size] = {"seconds": seconds, "distances": distances}
    if args.json:
        write_results(args.json, args, about, sizes=found)


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
