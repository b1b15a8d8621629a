"""Ways not to write what nobody said: openai-whisper's own, the gate by tags, and a voice activity detector."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from whisper_at.model import WhisperAT

COMMON = {"language": "en", "fp16": False, "at_time_res": None}
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "hallucination_silence_threshold=2": {"word_timestamps": True, "hallucination_silence_threshold": 2.0},
    "silero-vad": {},
    "speech_gate": {"speech_gate": True},
    "speech_gate, words": {"speech_gate": True, "word_timestamps": True},
    "speech_gate, missed_speech": {"speech_gate": True, "missed_speech": True},
}
"""Options of `transcribe`; ``no_speech_threshold`` is at its default of 0.6 in all."""
MERGE_MS, PAD_MS = 2000, 400
"""Pauses that silero-vad bridges, and what it adds around speech, in ms, as faster-whisper's ``vad_filter`` has it."""


@cache
def _silero() -> tuple[Any, Callable[..., list[dict[str, int]]]]:
    from silero_vad import get_speech_timestamps, load_silero_vad

    return load_silero_vad(), get_speech_timestamps


def silero_clips(audio: np.ndarray) -> list[tuple[float, float]]:
    """Return where silero-vad hears speech, in seconds."""
    model, get_speech_timestamps = _silero()
    found = get_speech_timestamps(
        torch.from_numpy(audio), model, min_silence_duration_ms=MERGE_MS, speech_pad_ms=PAD_MS, return_seconds=True
    )
    return [(float(span["start"]), float(span["end"])) for span in found]


def run(model: WhisperAT, method: str, audio: np.ndarray) -> dict[str, Any]:
    """Return text, number of segments, what was withheld or recovered, and seconds of CPU."""
    start = time.process_time()
    options = {**COMMON, **METHODS[method]}
    if method == "silero-vad":
        options["clip_timestamps"] = silero_clips(audio)
    if options.get("clip_timestamps") == []:
        result: dict[str, Any] = {"text": "", "segments": []}
    else:
        torch.manual_seed(0)  # temperatures above 0 draw
        result = model.transcribe(audio, **options)
    seconds = time.process_time() - start
    return {
        "text": result["text"],
        "segments": [[segment["start"], segment["end"]] for segment in result["segments"]],
        "withheld": result.get("withheld", []),
        "recovered": [s["text"] for s in result["segments"] if s.get("recovered")],
        "cpu": seconds,
    }
