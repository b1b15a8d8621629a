"""Peak memory of a transcription by length of the recording, each length in a process of its own.

    python benchmarks/memory.py 0.1 0.5 1              # hours; a random model of tiny's shape
    python benchmarks/memory.py --layers 1 --width 64 0.05 0.4
    python benchmarks/memory.py --mel-only 1 10        # the front end alone
    python benchmarks/memory.py --peers tiny.en base small --threads 1     # beside openai-whisper and faster-whisper

The recordings are synthetic. A model with random weights decodes two tokens per window, so that what may grow with
length is measured: audio, mel, pooled states, segments, tags. Peak is the maximum resident memory of the process, in MB
of 10^6 bytes, without temporary files on a disk that is itself memory.

With ``--peers`` every library transcribes the same minute of speech, in a process of its own, with the same weights:
those of an official Whisper that is on this machine (``whisper-at models``), else random ones of that size. All decode
greedily, without fallback, at most 100 tokens a window. "loaded" is the peak when the model is there.
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

import numpy as np
from common import (
    SAMPLE_RATE,
    HelpFormatter,
    compile_kernels,
    machine_info,
    peak_memory,
    set_num_threads,
    synthetic_audio,
    write_results,
)

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

HEAD_WIDTH = 64  # of one attention head, as in every Whisper
OPTIONS = ("layers", "width", "n-mels", "at-time-res", "in-memory")
PEERS = (
    ("whisper_at", "float32"),
    ("openai-whisper", "float32"),
    ("faster-whisper", "float32"),
    ("whisper_at", "int8"),
    ("faster-whisper", "int8"),
)
MAX_TOKENS = 100
SPEECH = Path(__file__).parents[1] / "sample" / "speech.flac"


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


def write_layouts(name: str, folder: Path) -> str:
    """Write a Whisper as each library wants it; return whether it is the official one or has random weights."""
    import layouts
    import weights

    from whisper_at.checkpoints.whisper import find_local

    if find_local(name) is not None:
        layouts.write_layouts(name, folder, ["whisper_at", "openai-whisper", "faster-whisper"])
        return "official"
    state = weights.random_state(name)
    weights.write_checkpoint(state, name, folder / "openai.pt")
    weights.write_hugging_face(state, name, folder / "hf")
    weights.write_ctranslate2(folder / "hf", folder / "ct2", "float16")
    return "random"


def run_peer(system: str, compute: str, folder: Path) -> dict[str, float | str]:
    """Load a Whisper and transcribe the speech beside it, in this process."""
    samples = np.load(folder / "speech.npy")
    random = not (folder / "name").exists()  # which `layouts` writes
    common = {"language": "en", "temperature": 0.0, "without_timestamps": random}  # random times give random windows
    if system == "faster-whisper":
        from faster_whisper import WhisperModel

        threads = int(os.environ["OMP_NUM_THREADS"])
        fast = WhisperModel(str(folder / "ct2"), "cpu", compute_type=compute, cpu_threads=threads)
        loaded = peak_memory()
        segments, _ = fast.transcribe(samples, beam_size=1, max_new_tokens=MAX_TOKENS, **common)
        text = "".join(segment.text for segment in segments)
    else:
        if system == "openai-whisper":
            import whisper

            model = whisper.load_model(str(folder / "openai.pt"), "cpu")
        else:
            import whisper_at

            model = whisper_at.load_model(str(folder / "openai.pt"), "cpu", head=None, compute_type=compute)
        loaded = peak_memory()
        text = model.transcribe(samples, sample_len=MAX_TOKENS, fp16=False, **common)["text"]
    return {"system": system, "compute_type": compute, "loaded": loaded, "peak": peak_memory(), "text": text.strip()}


def compare_peers(args: argparse.Namespace) -> None:
    """Print peaks of every library with every model; see the module's text."""
    set_num_threads(args.threads)
    machine = machine_info()
    compile_kernels()
    from whisper_at import load_audio

    results: dict[str, list[dict[str, float | str]]] = {}
    print(f"{'':14} {'':24} {'loaded MB':>9} {'peak MB':>9}")
    for name in args.peers:
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "speech.npy", np.resize(load_audio(str(args.speech)), 60 * SAMPLE_RATE))
            label = f"{name}, {write_layouts(name, Path(folder))}"
            for system, compute in PEERS:
                command = [sys.executable, __file__, "--one", system, compute, folder]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(f"{label:14} {system} did not run: {done.stderr.strip().rpartition(chr(10))[2]}", flush=True)
                    continue
                row = json.loads(done.stdout.strip().rpartition("\n")[2])
                results.setdefault(label, []).append(row)
                print(f"{label:14} {system:15} {compute:8} {row['loaded']:9.0f} {row['peak']:9.0f}", flush=True)
    if args.json:
        args.speech = args.speech.name  # results do not tell folders
        write_results(args.json, args, machine, peaks=results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("hours", type=float, nargs="*", help="lengths of the recordings")
    parser.add_argument("--peers", nargs="+", metavar="MODEL", help="compare libraries with these Whispers instead")
    parser.add_argument("--speech", type=Path, default=SPEECH, help="with --peers: made a minute long")
    parser.add_argument("--threads", type=int, default=1, help="with --peers: of everything")
    parser.add_argument("--json", type=Path, help="with --peers: write all numbers to this file")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # system, precision, folder: in this process
    parser.add_argument("--mel-only", action="store_true", help="compute and read the mel; no model")
    parser.add_argument("--layers", type=int, default=4, help="of encoder and decoder; tiny's by default")
    parser.add_argument("--width", type=int, default=384, help="of both; tiny's by default")
    parser.add_argument("--n-mels", type=int, default=80, choices=(80, 128))
    parser.add_argument("--at-time-res", type=float, default=10.0, help="seconds per row of tags")
    parser.add_argument("--in-memory", type=int, default=128, help="MiB of mel kept off the disk, with --mel-only")
    parser.add_argument("--recording", type=Path, help=argparse.SUPPRESS)  # measure this one in this process
    args = parser.parse_args()

    if args.one:
        system, compute, folder = args.one
        print(json.dumps(run_peer(system, compute, Path(folder))))
        return
    if args.peers:
        compare_peers(args)
        return
    if not args.hours:
        parser.error("give lengths of recordings in hours, or --peers MODEL")
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
