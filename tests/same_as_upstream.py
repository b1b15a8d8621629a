"""Differential tests: the installed `whisper.transcribe` and ours on the same recording, compared to the token."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch
import whisper

FLOATS = ("avg_logprob", "no_speech_prob", "compression_ratio")


def as_wanted(theirs: dict) -> dict:
    """Return upstream's result without what is known to be wrong in it.

    Special tokens stand in its text, though not in its segments; silence may be a segment without text.
    """
    said = [segment for segment in theirs["segments"] if segment["text"].strip() or segment["start"] == segment["end"]]
    return {
        **theirs,
        "text": re.sub(r"<\|[a-z]+\|>", "", theirs["text"]),
        "segments": [{**segment, "id": i} for i, segment in enumerate(said)],
    }


def differences(theirs: dict, ours: dict) -> list[str]:
    """Say where results differ: tokens, texts and times exactly, scores to float rounding, as upstream's own do."""
    theirs = as_wanted(theirs)
    found = [f"{key}: {ours[key]!r}, not {theirs[key]!r}" for key in ("text", "language") if ours[key] != theirs[key]]
    if len(ours["segments"]) != len(theirs["segments"]):
        found.append(f"{len(ours['segments'])} segments, not {len(theirs['segments'])}")
    for number, (mine, other) in enumerate(zip(ours["segments"], theirs["segments"])):
        if list(mine) != list(other):
            found.append(f"segment {number} has {list(mine)}, not {list(other)}")
        for key, value in other.items():
            if not _equal(key, value, mine.get(key)):
                found.append(f"segment {number}, {key}: {mine.get(key)}, not {value}")
    return found


def _equal(key: str, theirs: Any, ours: Any) -> bool:
    if key == "words" and ours is not None:
        return _without_probability(ours) == _without_probability(theirs) and all(
            mine["probability"] == pytest.approx(other["probability"], rel=1e-2, abs=1e-5, nan_ok=True)
            for mine, other in zip(ours, theirs)
        )
    return ours == (pytest.approx(theirs, rel=1e-3, abs=1e-5, nan_ok=True) if key in FLOATS else theirs)


def _without_probability(words: list[dict]) -> list[dict]:
    return [{key: value for key, value in word.items() if key != "probability"} for word in words]


def assert_same(theirs: dict, ours: dict) -> None:
    found = differences(theirs, ours)
    assert not found, "\n".join(found)


def both(upstream, model, audio, at_time_res=10, seed=0, **options) -> dict:
    """Run the installed `whisper.transcribe` and ours with the same seed; return ours after comparing."""
    torch.manual_seed(seed)
    theirs = whisper.transcribe(upstream, audio, **options)
    torch.manual_seed(seed)
    ours = model.transcribe(audio, at_time_res=at_time_res, **options)
    assert_same(theirs, ours)
    return ours


def random_options(rng: random.Random, seconds: float) -> dict:
    """Any combination of upstream's options that upstream accepts."""
    options: dict = {"sample_len": rng.choice([4, 10, 24])}
    if rng.random() < 0.5:
        options["temperature"] = rng.choice([0.0, (0.0, 0.6), (0.0, 0.4, 1.0), 0.7])
    else:
        options["temperature"] = 0.0
    if rng.random() < 0.3:
        options["beam_size"] = rng.choice([1, 2, 4])
        if rng.random() < 0.4:
            options["patience"] = rng.choice([0.5, 1.0, 2.0] if options["beam_size"] > 1 else [1.0, 2.0])
    if options["temperature"] != 0.0 and rng.random() < 0.3:
        options["best_of"] = rng.choice([1, 2, 3])
    chance = {
        "length_penalty": lambda: rng.choice([0.0, 0.5, 1.0]),
        "compression_ratio_threshold": lambda: rng.choice([None, 1.0, 1.5]),
        "logprob_threshold": lambda: rng.choice([None, -5.0, -0.5]),
        "no_speech_threshold": lambda: rng.choice([None, 0.0, 1e-6, 0.1]),
        "condition_on_previous_text": lambda: False,
        "initial_prompt": lambda: rng.choice(["", "Seven eight.", "a " * 300]),
        "carry_initial_prompt": lambda: True,
        "prefix": lambda: "It was",
        "word_timestamps": lambda: True,
        "without_timestamps": lambda: True,
        "suppress_blank": lambda: False,
        "max_initial_timestamp": lambda: rng.choice([None, 0.2, 20.0]),
        # inside the audio: past its end, upstream may never return
        "clip_timestamps": lambda: rng.choice(
            [
                "",
                f"{seconds / 3}",
                [seconds / 4, seconds / 2],
                [0, seconds / 3, seconds / 2],
                [0, 0.2, seconds / 2, seconds],
            ]
        ),
    }
    for name, value in chance.items():
        if rng.random() < 0.2:
            options[name] = value()
    if options.get("word_timestamps") and rng.random() < 0.5:
        options["hallucination_silence_threshold"] = rng.choice([0.1, 1.0, 3.0])
    return options
