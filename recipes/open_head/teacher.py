"""YAMNet, a tagger trained on AudioSet, as the teacher of classes that recordings have no labels for."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from whisper_at.tagging.labels import N_CLASSES, audioset_labels

PATCH, HOP = 15600, 6400
"""Samples at 16 kHz that YAMNet looks at, 0.975 s, and from one look to the next: a step of 0.4 s."""


class Yamnet:
    """YAMNet by LiteRT, with scores in the order of AudioSet's 527 classes.

    Parameters
    ----------
    folder : Path
        Folder of ``yamnet.tflite`` and ``class_map.csv``.
    """

    def __init__(self, folder: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(folder / "yamnet.tflite"), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        index_of = {label.mid: label.index for label in audioset_labels()}
        with open(folder / "class_map.csv", encoding="utf-8", newline="") as file:
            mids = [row["mid"] for row in csv.DictReader(file)]
        self._pairs = np.array([(i, index_of[mid]) for i, mid in enumerate(mids) if mid in index_of])

    @property
    def classes(self) -> np.ndarray:
        """Indices of the AudioSet classes that it has, sorted."""
        return np.sort(self._pairs[:, 1])

    def scores(self, audio: np.ndarray) -> np.ndarray:
        """Return the scores of every step of 0.4 s, each from the 0.975 s around its middle.

        Parameters
        ----------
        audio : ndarray, shape (samples,)
            float32 audio at 16 kHz.

        Returns
        -------
        ndarray, shape (steps, 527)
            float32, 0 for classes that YAMNet lacks.
        """
        steps = max(1, -(-len(audio) // HOP))
        lead = (PATCH - HOP) // 2
        padded = np.pad(audio.astype(np.float32), (lead, steps * HOP + PATCH - len(audio)))
        if len(audio) >= PATCH:  # looks at the ends lie inside the recording, where it is long enough
            starts = np.clip(np.arange(steps) * HOP, lead, lead + len(audio) - PATCH)
        else:
            starts = np.full(steps, lead)
        out = np.zeros((steps, N_CLASSES), np.float32)
        for step, start in enumerate(starts):
            self._interpreter.set_tensor(self._input, np.ascontiguousarray(padded[start : start + PATCH]))
            self._interpreter.invoke()
            out[step, self._pairs[:, 1]] = self._interpreter.get_tensor(self._output)[0, self._pairs[:, 0]]
        return out
