"""Compare the encoder of whisper_at and openai-whisper in float32 and bfloat16: time, and difference of features.

    python benchmarks/encoder.py --sizes tiny small

Weights are random; the runs alternate. whisper_at multiplies float32 matrices with oneDNN and bfloat16 with its own
kernels; openai-whisper, as PyTorch does, with MKL and oneDNN. Differences are those from openai-whisper's features in
float32, relative to their norm.
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

from common import compile_kernels, machine_info, write_results
from weights import SIZES, dimensions
from whisper.model import ModelDimensions, Whisper

from whisper_at.engine.encoder_bf16 import EncoderBF16
from whisper_at.model import WhisperAT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["tiny", "small"])
    parser.add_argument("--batch", type=int, default=1, help="windows at once (1)")
    parser.add_argument("--repeat", type=int, default=7, help="runs of each (7)")
    parser.add_argument("--threads", type=int, default=2, help="of everything (2)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args()
    machine = machine_info()
    compile_kernels()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    for size in args.sizes:
        torch.manual_seed(0)
        model = WhisperAT(ModelDimensions(**dimensions(size))).eval()
        upstream = Whisper(model.dims).eval().encoder
        upstream.load_state_dict(model.encoder.state_dict())
        mel = torch.randn(args.batch, model.dims.n_mels, 3000)
        encoders: dict[str, Callable[[Tensor], Tensor]] = {
            "float32, whisper_at": model.embed_audio,
            "float32, openai-whisper": upstream,
            "bfloat16, openai-whisper": lambda mel, upstream=upstream: upstream(mel.bfloat16()).float(),
        }
        if EncoderBF16.fits(model.encoder):  # else there are no kernels for this processor
            encoders["bfloat16, whisper_at"] = EncoderBF16(model.encoder)
        with torch.no_grad():
            exact = upstream(mel)
            differences = {  # a warm-up as well: kernels are compiled
                name: float((encode(mel) - exact).norm() / exact.norm()) for name, encode in encoders.items()
            }
            seconds: dict[str, list[float]] = {name: [] for name in encoders}
            for _ in range(args.repeat):
                for name, encode in encoders.items():
                    start = time.perf_counter()
                    encode(mel)
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(f"{size}, {args.batch} windows")
        for name, median in medians.items():
            times = median / medians["float32, openai-whisper"]
            print(f"  {name:25} {times:5.2f} of openai-whisper's float32   features differ by {differences[name]:.1e}")
        results[size] = {"seconds": seconds, "distances": differences}
    if args.json:
        write_results(args.json, args, machine, sizes=results)


if __name__ == "__main__":
    main()
