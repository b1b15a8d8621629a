"""The frame rate of a video."""

from __future__ import annotations

import os
import re
import subprocess

from ..ffmpeg_process import ffmpeg_binary


def frame_rate(path: str | os.PathLike[str] | None) -> float | None:
    """Return the frames a second of the first video stream of a file; None where there is no file, or no video."""
    if path is None or not os.path.isfile(path):
        return None
    command = [ffmpeg_binary(), "-nostdin", "-hide_banner", "-protocol_whitelist", "file"]
    command += ["-i", f"file:{os.fspath(path)}"]  # without an output, ffmpeg describes the input and stops
    described = subprocess.run(command, capture_output=True, check=False).stderr.decode(errors="replace")
    for line in described.splitlines():
        if "Video:" in line and "attached pic" not in line and (found := re.search(r", ([\d.]+) fps", line)):
            rate = float(found[1])
            exact = round(rate) * 1000 / 1001  # ffmpeg shows two decimals: 29.97 is 30000/1001
            return exact if abs(rate - exact) < 0.006 else rate
    return None
