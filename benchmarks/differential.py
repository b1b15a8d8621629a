"""Random recordings and options on real Whispers: cases in which ours and openai-whisper's `transcribe` differ.

    python benchmarks/differential.py --seed 0 --cases 60 --model tiny.en base
    python benchmarks/differential.py --seed 0 --cases 60 --model base --only 17

Recordings are cuts of LibriSpeech, of other voices, of sounds and music, in noise, in silence, and joined; options are
any that openai-whisper accepts. Every case is a seed of its own. Of a case that differs, openai-whisper is run again
with other sums (without oneDNN): where it then differs from itself, two tokens were as good as equal.

Needs real weights and the recordings of the tests (WHISPER_AT_DATA).
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from common import HelpFormatter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # how tests compare
sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

from conftest import DATA, real_pair
from same_as_upstream import differences, random_options

import whisper_at

RATE, HOP = 16000, 160
load_audio = cache(whisper_at.load_audio)


@cache
def files(folder: str, column: str = "", value: str = "") -> list[Path]:
    """Return the recordings of a folder of the data, those with a value in a column if one is given."""
    with open(DATA / folder / "index.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not column or row[column] == value]
    return [DATA / folder / row["file"] for row in rows]


def random_recording(rng: random.Random, multilingual: bool) -> tuple[str, np.ndarray]:
    """Return what it is, and the samples."""
    kind = rng.choice(["speech"] * 4 + ["voice"] * (6 if multilingual else 1) + ["sound", "music", "pause", "long"])
    if kind == "sound":
        path = rng.choice(files("esc50"))
        audio = load_audio(str(path))
    elif kind == "music":
        path = rng.choice(files("sounds"))
        audio = load_audio(str(path))[: 20 * RATE]
    elif kind == "voice":
        path = rng.choice(files("voices"))
        audio = load_audio(str(path))[: rng.choice([12, 35]) * RATE]
    else:
        path = rng.choice(files("librispeech"))
        audio = load_audio(str(path))
        if kind == "speech":
            audio = audio[: rng.choice([3, 8, 20]) * RATE]
        while kind == "long" and len(audio) < 62 * RATE:
            audio = np.concatenate([audio, load_audio(str(rng.choice(files("librispeech"))))])
        if kind == "pause":
            audio = np.concatenate([audio[: 6 * RATE], np.zeros(rng.choice([5, 25]) * RATE, np.float32), audio[:RATE]])
    audio = audio[: len(audio) // HOP * HOP].astype(np.float32)  # a clip past the last frame never ends upstream
    if rng.random() < 0.3:
        noise = np.resize(load_audio(str(rng.choice(files("esc50")))), len(audio))
        level = np.sqrt(np.mean(audio**2) / (np.mean(noise**2) + 1e-12)) * 10 ** (rng.choice([10, 0, -10]) / -20)
        audio, kind = (audio + level * noise).astype(np.float32), f"{kind} in noise"
    return f"{kind}, {path.name}", audio


def random_case(seed: int, multilingual: bool) -> tuple[str, np.ndarray, dict[str, Any]]:
    """Return description, samples and options of the case of a seed."""
    rng = random.Random(seed)
    what, audio = random_recording(rng, multilingual)
    options = random_options(rng, len(audio) / RATE)
    if rng.random() < 0.7:
        options.pop("sample_len")
    if options["temperature"] == 0.0 and rng.random() < 0.3:
        options.pop("temperature")
    if multilingual:
        if rng.random() < 0.3:
            options["language"] = rng.choice(["en", "de", "fr", "ja", "hi"])
        if rng.random() < 0.3:
            options["task"] = "translate"
    return what, audio, options


def transcribe_seeded(transcribe: Any, audio: np.ndarray, options: dict[str, Any]) -> Any:
    """Return what `transcribe` returns, or the type of what it raises."""
    torch.manual_seed(0)
    try:
        return transcribe(audio, **options)
    except Exception as error:
        return type(error)


def compare_case(pair: Any, audio: np.ndarray, options: dict[str, Any]) -> list[str]:
    """Return how the case differs, and whether openai-whisper differs from itself as well."""

    def upstream(audio: np.ndarray, **options: Any) -> dict:
        return whisper.transcribe(pair.upstream, audio, **options)

    theirs, ours = (transcribe_seeded(f, audio, options) for f in (upstream, pair.model.transcribe))
    if isinstance(theirs, type) or isinstance(ours, type):
        return [] if theirs is ours else [f"{ours}, not {theirs}"]
    found = differences(theirs, ours)
    if found:
        with torch.backends.mkldnn.flags(enabled=False):
            again = transcribe_seeded(upstream, audio, options)
        spread = differences(theirs, again) if isinstance(again, dict) else [str(again)]
        found += [f"  openai-whisper without oneDNN: {line}" for line in spread] or ["  openai-whisper: no spread"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", nargs="+", default=["tiny.en", "base"], help="real Whispers that are at hand")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each has the next number")
    parser.add_argument("--cases", type=int, default=60, help="number of cases, of each model")
    parser.add_argument("--only", type=int, nargs="+", help="these seeds alone")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in arguments.model:
        pair = real_pair(name)
        seeds = arguments.only or range(arguments.seed, arguments.seed + arguments.cases)
        differing, began = [], time.perf_counter()
        for seed in seeds:
            print(f"{name}, seed {seed}", end="\r", file=sys.stderr, flush=True)
            what, audio, options = random_case(seed, pair.upstream.is_multilingual)
            if found := compare_case(pair, audio, options):
                differing.append(seed)
                print(
                    f"{name}, seed {seed}: {what}, {len(audio) / RATE:.1f} s, {options}", *found, sep="\n  ", flush=True
                )
        minutes = (time.perf_counter() - began) / 60
        print(f"{name}: {len(differing)} of {len(seeds)} cases differ {differing}, {minutes:.1f} min", flush=True)


if __name__ == "__main__":
    main()
