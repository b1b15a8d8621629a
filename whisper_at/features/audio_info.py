"""Properties of audio files, and a cache of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.files import size_and_mtime, write_text
from ..data.clips import Clip, Dataset
from ..ffmpeg_process import ffmpeg_binary
from .files import clip_key

CACHE_FILE = "heard.jsonl"
"""Cache of `AudioInfo`, in the folder of the features."""


@dataclass(frozen=True)
class AudioInfo:
    """Properties of the audio of a clip; the field names are those of the cache.

    Attributes
    ----------
    fault : str
        Why the clip cannot be read; empty if it can.
    seconds : float
        Duration.
    rate : int
        Sample rate in Hz; 0 if it is not known.
    peak : float
        Largest magnitude, 1.0 being full scale.
    broken : int
        Number of samples that are NaN or infinite.
    digest : str
        Hash of the samples at 16 bits, equal for the same sound in any lossless format.
    """

    fault: str = ""
    seconds: float = 0.0
    rate: int = 0
    peak: float = 0.0
    broken: int = 0
    digest: str = ""


def probe_audio(clip: Clip) -> AudioInfo:
    """Decode a clip in its own sample rate and in floating point, in which NaN and infinity survive."""
    command = [ffmpeg_binary(), "-nostdin", "-hide_banner", "-loglevel", "info", "-protocol_whitelist", "file,pipe"]
    if clip.start:
        command += ["-ss", f"{clip.start:.6f}"]
    if clip.end is not None:
        command += ["-t", f"{max(0.0, clip.end - clip.start):.6f}"]
    command += ["-i", f"file:{os.fspath(clip.path)}", "-map", "0:a:0", "-ac", "1", "-f", "f32le", "pipe:"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout is not None
        samples, broken, peak, digest, remainder = 0, 0, 0.0, hashlib.sha256(), b""
        try:
            while chunk := process.stdout.read(1 << 20):
                chunk = remainder + chunk
                size = len(chunk) // 4 * 4
                x, remainder = np.frombuffer(chunk[:size], "<f4"), chunk[size:]
                finite = np.isfinite(x)
                broken += int((~finite).sum())
                x = np.where(finite, x, 0)
                samples, peak = samples + len(x), max(peak, float(np.abs(x).max(initial=0)))
                digest.update(np.clip(np.round(x * 32768), -32768, 32767).astype("<i2").tobytes())
        finally:
            process.stdout.close()
            status = process.wait()
        log.seek(0)
        messages = log.read().decode(errors="replace")
    if status or not samples:
        return AudioInfo(fault=_ffmpeg_error(messages) if status else "holds no sound")
    match = re.search(r"Stream #0.*Audio:.*?(\d+) Hz", messages)
    rate = int(match.group(1)) if match else 0
    return AudioInfo("", samples / rate if rate else float("inf"), rate, peak, broken, digest.hexdigest())


def _ffmpeg_error(messages: str) -> str:
    """Return why ffmpeg gave up, in a few words."""
    if "does not contain any stream" in messages or "matches no streams" in messages:
        return "holds no sound"
    last = [line.strip() for line in messages.splitlines() if line.strip()][-1:] or ["ffmpeg failed"]
    reason = re.sub(r"^(\[[^\]]*\]\s*)+", "", last[0])
    return f"cannot be read ({reason.rpartition(': ')[2] or reason})"


def save_cache(folder: Path, dataset: Dataset, audio: Mapping[int, AudioInfo]) -> None:
    """Save the results of `validate` in `folder`, so that unchanged files need not be decoded again."""
    lines = {line["key"]: line for line in _read_cache(folder)}
    for i, info in audio.items():
        if stamp := _stamp(dataset.clips[i].path):
            key = clip_key(dataset.clips[i])
            lines[key] = {"key": key, "stamp": stamp, **asdict(info)}
    write_text(folder / CACHE_FILE, "".join(json.dumps(line) + "\n" for line in lines.values()))


def load_cache(folder: Path, dataset: Dataset) -> dict[int, AudioInfo]:
    """Return what `save_cache` saved of these clips, by index; files that have changed since are left out."""
    lines = {line["key"]: line for line in _read_cache(folder)}
    audio = {}
    for i, clip in enumerate(dataset.clips):
        line = lines.get(clip_key(clip))
        if line is not None and _stamp(clip.path) in (None, line["stamp"]):  # a file that is gone did not change
            audio[i] = AudioInfo(**{name: value for name, value in line.items() if name not in ("key", "stamp")})
    return audio


def _read_cache(folder: Path) -> list[dict[str, Any]]:
    path = folder / CACHE_FILE
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the clips are decoded again") from None


def _stamp(path: Path) -> list[int] | None:
    """Return size and time of change, or None if there is no such file."""
    try:
        return list(size_and_mtime(path))
    except OSError:
        return None
