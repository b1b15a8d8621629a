"""Run programs that stand on openai-whisper with whisper_at in whisper's place, and compare what they give.

``make third-party`` installs them (requirements.txt), runs this and writes results.md. The exit status is 1 if any
differs, fails, or is not installed though a package registry has it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import soundfile
import torch
from drive import NOT_IN_REGISTRIES, PROGRAMS

import whisper_at

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDINGS = {"nano.en": "speech.flac", "tiny.en": "reading.ogg"}
"""What each model hears, of the folder ``sample``."""
SECONDS = 32
"""Of a recording at most: two windows."""
TOLERANCE = 0.0201
"""By how much times and other numbers may differ, a frame of the alignment: sums are taken in another order."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", help="by default all: " + ", ".join(PROGRAMS))
    parser.add_argument("--models", nargs="+", choices=list(RECORDINGS), default=list(RECORDINGS))
    help = "folder with a checkout of each program that no package registry has: " + ", ".join(NOT_IN_REGISTRIES)
    parser.add_argument("--checkouts", type=Path, metavar="DIR", help=help)
    parser.add_argument("--table", type=Path, metavar="FILE", help="where to write the results as a table")
    args = parser.parse_args()

    programs = {name: installed_version(name, args.checkouts) for name in args.programs or PROGRAMS}
    results: dict[tuple[str, str], str] = {}
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            try:
                checkpoint, audio = prepare(model, Path(folder))
            except RuntimeError as error:  # the package with its weights is not installed, and nothing can be fetched
                print(f"{model} cannot be had: {str(error).partition(chr(10))[0]}", flush=True)
                failed = True
                continue
            for program, found in programs.items():
                begin = time.perf_counter()
                problem = "not installed"
                if found is not None:
                    problem = compare(program, checkpoint, audio, args.checkouts)
                failed |= problem != "equal" and (found is not None or program not in NOT_IN_REGISTRIES)
                results[program, model] = problem.partition("\n")[0]
                print(f"{program}, {model}: {problem} ({time.perf_counter() - begin:.0f} s)", flush=True)
    if args.table:
        args.table.write_text(table(programs, results), encoding="utf-8")
    return int(failed)


def prepare(model: str, folder: Path) -> tuple[str, str]:
    """Write a model and what it hears in the formats that every program reads, and return their paths."""
    checkpoint, audio = folder / f"{model}.pt", folder / f"{model}.wav"
    dims, state = whisper_at.checkpoints.open_whisper(whisper_at.checkpoints.find_whisper(model))
    torch.save({"dims": dims, "model_state_dict": state}, checkpoint)
    samples = whisper_at.load_audio(ROOT / "sample" / RECORDINGS[model])[: SECONDS * whisper_at.audio.SAMPLE_RATE]
    soundfile.write(audio, samples, whisper_at.audio.SAMPLE_RATE)
    return str(checkpoint), str(audio)


def installed_version(program: str, checkouts: Path | None) -> str | None:
    """Return the version of a program, ``checkout`` for one without, or None if it is not installed."""
    if program in NOT_IN_REGISTRIES:
        return "checkout" if checkouts is not None and (checkouts / program).is_dir() else None
    try:
        return version(program)
    except PackageNotFoundError:
        return None


def compare(program: str, checkpoint: str, audio: str, checkouts: Path | None) -> str:
    """Return "equal", or what differs or failed."""
    try:
        found, expected = (drive(program, name, checkpoint, audio, checkouts) for name in ("whisper_at", "whisper"))
    except RuntimeError as error:
        return str(error)
    return difference(found, expected) or "equal"


def drive(program: str, package: str, model: str, audio: str, checkouts: Path | None) -> Any:
    """Return what a program gives on one of the packages; RuntimeError if it fails."""
    command = [sys.executable, str(HERE / "drive.py"), program, package, model, audio]
    paths = [str(checkouts / program / part) for part in (".", "src")] if checkouts is not None else []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())  # programs take the one on PATH
        env = {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", ""), folder])}
        env["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [env.get("PYTHONPATH")])])
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    result = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not result:
        raise RuntimeError(f"failed with {package}:\n{done.stderr[-3000:]}")
    return json.loads(result[-1].removeprefix("RESULT "))


def table(programs: dict[str, str | None], results: dict[tuple[str, str], str]) -> str:
    """Return the results as a table in Markdown."""
    models = sorted({model for _, model in results}, key=list(RECORDINGS).index)
    lines = [f"| program | version | {' | '.join(models)} |", "|---|---|" + "---|" * len(models)]
    for program, found in programs.items():
        cells = [results[program, model] for model in models]
        lines.append(f"| {program} | {found or '-'} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def difference(found: Any, expected: Any, where: str = "result") -> str | None:
    """Return the first difference in words, or None."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if missing := sorted(expected.keys() - found.keys()):
            return f"{where} lacks {missing}"
        found, expected = [found[key] for key in expected], list(expected.values())
    if isinstance(expected, list) and isinstance(found, list):
        if len(found) != len(expected):
            return f"{where} has {len(found)} items, not {len(expected)}"
        parts = (difference(*pair, f"{where}[{i}]") for i, pair in enumerate(zip(found, expected)))
        return next(filter(None, parts), None)
    if isinstance(expected, float) or isinstance(found, float):
        close = found == expected or math.isclose(found, expected, abs_tol=TOLERANCE)
        close = close or (math.isnan(found) and math.isnan(expected))
        return None if close else f"{where} is {found}, not {expected}"
    return None if found == expected else f"{where} is {found!r}, not {expected!r}"


if __name__ == "__main__":
    sys.exit(main())
