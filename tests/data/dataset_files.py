"""Small data sets in the layouts of the public ones, and clips without files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from whisper_at.audio import load_audio
from whisper_at.data import Clip, Dataset


def sound(path: Path, rate: int = 16000, seconds: float = 0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (np.sin(np.arange(int(rate * seconds)) / rate * 2764) * 9000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())


def table(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")


def labels(dataset: Dataset) -> list[str]:
    return [clip.labels[0] for clip in dataset.clips]


def assert_decodes(dataset: Dataset) -> None:
    for clip in dataset.clips:
        assert len(load_audio(clip.path)) > 0


def make(**columns: list[str]) -> Dataset:
    """Clips without files: a list per field."""
    n = len(next(iter(columns.values())))
    names = columns.pop("labels", ["a", "b"] * n)[:n]
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    return Dataset(
        tuple(Clip(Path(f"{i}.wav"), (name,), **row) for i, (name, row) in enumerate(zip(names, rows))),
        tuple(sorted(set(names))),
    )


def iemocap(root: Path) -> None:
    for session in range(1, 6):
        dialogue = f"Ses0{session}F_impro01"
        turns = [("F000", "neu"), ("M001", "exc"), ("F002", "sad"), ("M003", "ang"), ("M004", "xxx"), ("F005", "hap")]
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for turn, code in turns:
            sound(root / f"Session{session}/sentences/wav/{dialogue}/{dialogue}_{turn}.wav")
            lines.append(f"[6.2901 - 8.2357]\t{dialogue}_{turn}\t{code}\t[2.5000, 2.5000, 2.5000]")
            lines.append("C-E2:\tNeutral;\t()")
        table(root / f"Session{session}/dialog/EmoEvaluation/{dialogue}.txt", *lines)
        (root / f"Session{session}/dialog/EmoEvaluation/._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07")


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root
