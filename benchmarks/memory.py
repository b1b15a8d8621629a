"""Peak memory of a transcription by length of the recording, each length in a process of its own.

    python benchmarks/memory.py 0.1 0.5 1              # hours; a random model of tiny's shape
    python benchmarks/memory.py --layers 1 --width 64 0.05 0.4
    python benchmarks/memory.py --mel-only 1 10        # the front end alone

The recordings are synthetic. A model with random weights decodes two tokens per window, so that what may grow with
length is measured: audio, mel, pooled states, segments, tags. Peak is the maximum resident memory of the process, in MB
of 10^6 bytes, without temporary files on a disk that is itself memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

from common import SAMPLE_RATE, HelpFormatter, compile_kernels, peak_memory, synthetic_audio

HEAD_WIDTH = 64  # of one attention head, as in every Whisper
OPTIONS = ("layers", "width", "n-mels", "at-time-res", "in-memory")


def write_recording(path: Path, hours: float) -> None:
    """Write a mono 16-bit WAV that repeats a minute of synthetic audio, minute by minute."""
    data = (synthetic_audio(60) * 32767).clip(-32768, 32767).astype("<i2").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        remaining = 2 * round(hours * 3600 * SAMPLE_RATE)
        while remaining > 0:
            file.writeframesraw(data[:remaining])
            remaining -= len(data)


def compute_mel(recording: Path, n_mels: int, in_memory: int) -> int:
    """Compute the mel and read every window of it; return the frames read."""
    from whisper.audio import N_FRAMES

    from whisper_at.mel import LogMel

    with LogMel(recording, n_mels, in_memory=in_memory) as mel:
        return sum(mel.window(seek, seek + N_FRAMES).shape[1] for seek in range(0, mel.content_frames, N_FRAMES))


def transcribe(recording: Path, layers: int, width: int, n_mels: int, at_time_res: float) -> int:
    """Transcribe and tag with a random model; return the number of rows of tags."""
    import torch
    from whisper.model import ModelDimensions

    from whisper_at.model import WhisperAT
    from whisper_at.tagging.heads import make_head

    torch.manual_seed(0)
    heads = max(1, width // HEAD_WIDTH)
    model = WhisperAT(ModelDimensions(n_mels, 1500, width, heads, layers, 51864, 448, width, heads, layers)).eval()
    model.head = make_head("tl_tr_1_8", n_layer=layers, rep_dim=width)
    options = dict(temperature=0.0, sample_len=2, without_timestamps=True, fp16=False)
    return len(model.transcribe(str(recording), at_time_res=at_time_res, **options)["audio_tag"])


def measure(hours: float, arguments: list[str]) -> dict[str, float]:
    """Run this script for one length in a new process; return its results."""
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "recording.wav"
        write_recording(recording, hours)
        command = [sys.executable, __file__, "--recording", str(recording), *arguments, str(hours)]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": path})
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("hours", type=float, nargs="+", help="lengths of the recordings")
    parser.add_argument("--mel-only", action="store_true", help="compute and read the mel; no model")
    parser.add_argument("--layers", type=int, default=4, help="of encoder and decoder; tiny's by default")
    parser.add_argument("--width", type=int, default=384, help="of both; tiny's by default")
    parser.add_argument("--n-mels", type=int, default=80, choices=(80, 128))
    parser.add_argument("--at-time-res", type=float, default=10.0, help="seconds per row of tags")
    parser.add_argument("--in-memory", type=int, default=128, help="MiB of mel kept off the disk, with --mel-only")
    parser.add_argument("--recording", type=Path, help=argparse.SUPPRESS)  # measure this one in this process
    args = parser.parse_args()

    if args.recording is None:
        if not args.mel_only:
            compile_kernels()
        options = [f"--{name}={getattr(args, name.replace('-', '_'))}" for name in OPTIONS]
        options += ["--mel-only"] * args.mel_only
        print(f"{'hours':>8} {'peak MB':>9} {'seconds':>9}")
        for hours in args.hours:
            result = measure(hours, options)
            print(f"{hours:8g} {result['peak']:9.0f} {result['seconds']:9.1f}", flush=True)
        return

    start = time.perf_counter()
    if args.mel_only:
        compute_mel(args.recording, args.n_mels, args.in_memory << 20)
    else:
        transcribe(args.recording, args.layers, args.width, args.n_mels, args.at_time_res)
    json.dump({"peak": peak_memory(), "seconds": time.perf_counter() - start}, sys.stdout)


if __name__ == "__main__":
    main()
