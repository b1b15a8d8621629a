"""Pooled states of scenes and of clips by a frozen Whisper, in files that are mapped into memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from whisper_at.features.encode import encode_windows, mel_windows
from whisper_at.model import WhisperAT

from .pool import Pool
from .scenes import SceneMaker


def encode(model: WhisperAT, audio: np.ndarray) -> np.ndarray:
    """Return the states of a recording as transcription sees it, float16 of shape (layers, steps, dim)."""
    windows = mel_windows(audio, model.dims.n_mels)
    parts = [encode_windows(model, [mel], [window])[0] for mel, window in windows]
    return torch.cat(parts, dim=1).half().numpy()


class States:
    """States of many recordings, each with targets of its steps.

    Parameters
    ----------
    folder : Path
        Folder that `write` filled.
    """

    def __init__(self, folder: Path) -> None:
        info = json.loads((folder / "states.json").read_text(encoding="utf-8"))
        self.first = np.concatenate([[0], np.cumsum(info["steps"])])
        self.layers, self.dim = info["layers"], info["dim"]
        shape = (int(self.first[-1]), self.layers, self.dim)
        self._states = np.memmap(folder / "states.f16", np.float16, "r", shape=shape)
        self._targets = np.memmap(folder / "targets.u8", np.uint8, "r", shape=(shape[0], info["classes"]))

    def __len__(self) -> int:
        return len(self.first) - 1

    def steps(self, i: int) -> int:
        """Return the number of steps of a recording."""
        return int(self.first[i + 1] - self.first[i])

    def row(self, i: int, start: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return some steps of a recording: float16 (layers, steps, dim), and targets from 0 to 255."""
        span = slice(self.first[i] + start, self.first[i] + start + steps)
        return self._states[span].transpose(1, 0, 2), self._targets[span]


def write(folder: Path, entries: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write states and targets as they come.

    Parameters
    ----------
    folder : Path
        Where to.
    entries : iterable of (ndarray of shape (layers, steps, dim), ndarray of shape (steps, classes))
        States, and targets from 0 to 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps, shape, classes = [], (0, 0, 0), 0
    with open(folder / "states.f16", "wb") as states_file, open(folder / "targets.u8", "wb") as targets_file:
        for states, targets in entries:
            shape, classes = states.shape, targets.shape[1]
            steps.append(min(shape[1], len(targets)))
            states[:, : steps[-1]].transpose(1, 0, 2).astype(np.float16).tofile(states_file)
            np.rint(targets[: steps[-1]] * 255).astype(np.uint8).tofile(targets_file)
    info = {"steps": steps, "layers": shape[0], "dim": shape[2], "classes": classes}
    (folder / "states.json").write_text(json.dumps(info), encoding="utf-8")


def scenes(
    model: WhisperAT, pool: Pool, count: int, held_out: bool, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode `count` random scenes; return what `write` takes."""
    maker = SceneMaker(pool, held_out, seed)
    for _ in tqdm(range(count), desc="scenes", mininterval=10):
        scene = maker.scene()
        yield encode(model, scene.audio), scene.targets
