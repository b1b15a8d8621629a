"""Run programs that stand on openai-whisper with whisper_at in whisper's place, and compare what they give.

``make third-party`` installs them (requirements.txt) and runs this. The exit status is 1 if any differs, fails, or is
not installed.
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
from pathlib import Path
from typing import Any

import imageio_ffmpeg
from drive import PROGRAMS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOLERANCE = 0.0201
"""By how much times and other numbers may differ, a frame of the alignment: sums are taken in another order."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", help="by default all: " + ", ".join(PROGRAMS))
    parser.add_argument("--model", default=str(ROOT / "whisper_at/assets/nano.en.pt"), help="path of a checkpoint")
    parser.add_argument("--audio", default=str(ROOT / "sample/speech.flac"))
    args = parser.parse_args()
    failed = 0
    for program in args.programs or PROGRAMS:
        begin = time.perf_counter()
        try:
            expected, found = (drive(program, package, args.model, args.audio) for package in ("whisper", "whisper_at"))
            problem = difference(found, expected)
        except RuntimeError as error:
            problem = str(error)
        failed += problem is not None
        print(f"{program}: {problem or 'equal'} ({time.perf_counter() - begin:.0f} s)", flush=True)
    return min(failed, 1)


def drive(program: str, package: str, model: str, audio: str) -> Any:
    """Return what a program gives on one of the packages; RuntimeError if it fails."""
    command = [sys.executable, str(HERE / "drive.py"), program, package, model, audio]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())  # programs take the one on PATH
        env = {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", ""), folder])}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    result = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not result:
        raise RuntimeError(f"failed with {package}:\n{done.stderr[-3000:]}")
    return json.loads(result[-1].removeprefix("RESULT "))


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
