"""Rate at which `whisper-at embed` embeds files, decoding and table included, against the network alone.

    python benchmarks/embed_rate.py                                    # VGGish-Fusion, 1,000 synthetic WAVs of 5 s
    python benchmarks/embed_rate.py --backbone tiny --weights random
    python benchmarks/embed_rate.py --folder recordings --clips 1000   # your files, repeated as needed

The network alone gets decoded samples, in the same batches of the same clips, front end and pooling included. The two
alternate in rounds, so that a machine that slows down slows both. With random weights nothing is downloaded; time does
not depend on the values of weights. Synthetic WAVs are 16 kHz, 16 bit, and need no conversion; other files cost a start
of ffmpeg each, which --folder shows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

from whisper_at.embed.embedding import Failure, embed, find_recordings, load_waveform
from whisper_at.embed.frames import pool_frames
from whisper_at.embed.fusion import Fusion, load_fusion
from whisper_at.embed.search import embedding_config
from whisper_at.embed.store import EmbeddingWriter

SAMPLE_RATE = 16000


def make_clips(folder: Path, clips: int, seconds: float) -> list[Path]:
    """Write WAVs of noise that swells, each different."""
    n = round(seconds * SAMPLE_RATE)
    envelope = np.sin(np.arange(n) / SAMPLE_RATE * 0.7) ** 2
    noise = np.random.default_rng(0).standard_normal(n + 100 * clips)
    paths = []
    for i in range(clips):
        samples = noise[100 * i : 100 * i + n] * envelope * 3000
        paths.append(folder / f"{i:05d}.wav")
        with wave.open(str(paths[-1]), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())
    return paths


def time_network(model: Fusion, samples: list[np.ndarray], batch: int) -> float:
    """Return the seconds that samples in memory take."""
    start = time.perf_counter()
    for first in range(0, len(samples), batch):
        encoded = model.encode_waveforms([torch.from_numpy(clip) for clip in samples[first : first + batch]])
        _ = [pool_frames(frames, model.pooling).cpu().numpy() for frames in encoded]
    return time.perf_counter() - start


def time_files(model: Fusion, paths: list[Path], batch: int, workers: int | None, out: Path) -> float:
    """Return the seconds from files to a table."""
    start = time.perf_counter()
    with EmbeddingWriter(out, model.width, {}) as writer:
        for result in embed(paths, model, batch=batch, workers=workers):
            if isinstance(result, Failure):
                raise RuntimeError(result.reason)
            writer.write(result)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="VGGish-Fusion")
    parser.add_argument("--layers", help="1,3 or all; the backbone's own by default")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of synthetic clips")
    parser.add_argument("--folder", help="use these recordings instead")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--device")
    parser.add_argument("--npz", action="store_true", help="write .npz instead of Parquet")
    parser.add_argument("--json", help="also write the numbers here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    layers = args.layers if args.layers in (None, "all") else [int(part) for part in args.layers.split(",")]
    model = load_fusion(args.backbone, layers, args.weights, device=args.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.folder:
            paths = list(itertools.islice(itertools.cycle(find_recordings([args.folder])), args.clips))
        else:
            paths = make_clips(folder, args.clips, args.seconds)
        out = folder / ("table.npz" if args.npz else "table.parquet")
        time_files(model, paths[: args.batch], args.batch, args.workers, out)  # warm-up
        size = -(-len(paths) // args.rounds)
        seconds = {"bare": 0.0, "whole": 0.0}
        length = 0
        for first in range(0, len(paths), size):
            chunk = paths[first : first + size]
            samples = [load_waveform(path, model.sample_rate) for path in chunk]
            length += sum(map(len, samples))
            seconds["bare"] += time_network(model, samples, args.batch)
            seconds["whole"] += time_files(model, chunk, args.batch, args.workers, out)
    rates = {name: len(paths) / spent for name, spent in seconds.items()}
    facts = embedding_config(model, args.weights, "clip")
    print(f"{facts['backbone']}, layers {facts['layers']}, width {facts['width']}, on {model.device}")
    print(f"{len(paths)} clips, {length / model.sample_rate:.0f} s of audio, {torch.get_num_threads()} threads")
    print(f"network alone  {seconds['bare']:8.1f} s  {rates['bare']:7.2f} clips/s")
    print(f"files to table {seconds['whole']:8.1f} s  {rates['whole']:7.2f} clips/s")
    print(f"{rates['whole'] / rates['bare']:.3f} of the network's rate")
    if args.json:
        found = {"seconds": seconds, "clips": len(paths), "audio_seconds": length / model.sample_rate}
        Path(args.json).write_text(json.dumps(facts | found), "utf-8")


if __name__ == "__main__":
    main()
