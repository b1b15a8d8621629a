"""Processor time of decoding short recordings, ffmpeg's included, beside openai-whisper's.

    python benchmarks/load_audio.py                        # 5 s of synthetic sound in ogg, wav, mp3 and m4a
    python benchmarks/load_audio.py clips/*.ogg            # your files

openai-whisper starts one ffmpeg per recording; so does whisper_at, but where a second look is needed: at quiet stereo.
Calls alternate, and the ffmpeg of both is the one on PATH. Its start dominates short recordings, and takes more in some
builds than in others. The sound has pauses, as speech has. Samples are compared.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import SAMPLE_RATE, HelpFormatter, machine_info, synthetic_audio, write_results

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

import whisper.audio

from whisper_at.audio import ffmpeg_binary, load_audio

KINDS = (("ogg", 1), ("wav", 1), ("mp3", 1), ("m4a", 1), ("wav", 2), ("mp3", 2), ("m4a", 2))
LOADERS: dict[str, Callable[[str], np.ndarray]] = {"whisper_at": load_audio, "openai-whisper": whisper.audio.load_audio}


def write_recordings(folder: Path, seconds: float) -> list[Path]:
    """Write the same sound in every format, of one and of two channels."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    samples = (synthetic_audio(seconds) * (np.sin(2 * np.pi * t) > -0.5) * 32767).astype("<i2")
    paths = []
    for suffix, channels in KINDS:
        source = folder / f"source-{channels}.wav"
        with wave.open(str(source), "wb") as file:
            file.setparams((channels, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes(np.repeat(samples, channels).tobytes())
        paths.append(folder / f"{'stereo' if channels == 2 else 'mono'}.{suffix}")
        codec = ["-c:a", "libvorbis"] if suffix == "ogg" else []
        command = [ffmpeg_binary(), "-nostdin", "-v", "error", "-y", "-i", str(source), *codec, str(paths[-1])]
        subprocess.run(command, check=True)
    return paths


def cpu_seconds() -> tuple[float, float]:
    """Return the processor time of this process and of processes that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own, children = (usage.ru_utime + usage.ru_stime for usage in used)
    return own, children


def measure(path: str, rounds: int) -> dict[str, Any]:
    """Decode a file by both in turns; return medians of seconds, and whether samples are equal."""
    own: dict[str, list[float]] = {name: [] for name in LOADERS}
    children: dict[str, list[float]] = {name: [] for name in LOADERS}
    samples = {}
    for turn in range(rounds):
        for name in list(LOADERS)[:: 1 if turn % 2 else -1]:
            before = cpu_seconds()
            samples[name] = LOADERS[name](path)
            after = cpu_seconds()
            own[name].append(after[0] - before[0])
            children[name].append(after[1] - before[1])
    return {
        "file": Path(path).name,
        "seconds": len(samples["whisper_at"]) / SAMPLE_RATE,
        "equal": bool(np.array_equal(*samples.values())),
        "own": {name: statistics.median(values) for name, values in own.items()},
        "ffmpeg": {name: statistics.median(values) for name, values in children.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("files", nargs="*", help="recordings; synthetic ones by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of synthetic recordings")
    parser.add_argument("--rounds", type=int, default=20, help="of both, in alternation")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args()
    machine = machine_info()
    print(f"{'':24} {'whisper_at, ms':>20} {'openai-whisper, ms':>20} {'ratio':>12} {'samples':>8}")
    print(f"{'':24} {'ffmpeg':>10} {'own':>9} {'ffmpeg':>10} {'own':>9} {'ffmpeg':>6} {'all':>5}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in args.files or map(str, write_recordings(Path(folder), args.seconds)):
            row = measure(path, args.rounds)
            rows.append(row)
            (ours, theirs), (own, their_own) = row["ffmpeg"].values(), row["own"].values()
            times = f"{1000 * ours:10.0f} {1000 * own:9.1f} {1000 * theirs:10.0f} {1000 * their_own:9.1f}"
            ratios = f"{ours / theirs:6.2f} {(ours + own) / (theirs + their_own):5.2f}"
            print(f"{row['file'][-24:]:24} {times} {ratios} {'equal' if row['equal'] else 'differ':>8}", flush=True)
    if args.json:
        write_results(args.json, args, machine, files=rows)


if __name__ == "__main__":
    main()
