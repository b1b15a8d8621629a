"""How long the recipes of heads take on the machine at hand: rates are measured, the rest is arithmetic.

    python -m recipes.heads.expected
    python -m recipes.heads.expected --recipes esc50 audioset_small --device cuda --json expected.json

Of each recipe a few clips of noise, as long as the data's, are decoded and encoded by a Whisper of its size with random
weights, and its head is trained on their states for a few batches with the recipe's settings. What these take is
multiplied by the clips and epochs of the recipe, held-out clips and test clips included. Nothing is downloaded. What is
left out: reading states from slow disks, the report, and that a machine may be busier on another day.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import wave
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from whisper.audio import SAMPLE_RATE
from whisper.model import ModelDimensions

from whisper_at.cli import train
from whisper_at.data.clips import Clip
from whisper_at.data.toml import read_toml
from whisper_at.model import WhisperAT
from whisper_at.tagging.heads import make_head
from whisper_at.train.concat_clips import TIMES, join
from whisper_at.train.config import Settings
from whisper_at.train.extract import audible, describe, duration, encode, mel_windows, size
from whisper_at.train.features import Features, FeatureWriter
from whisper_at.train.fit import fit
from whisper_at.train.flops import dims_of
from whisper_at.train.recipe import HeadTask, batches_of_epoch, score
from whisper_at.train.train_head import for_device, optimizer_of

FOLDER = Path(__file__).parent
CLIPS, BATCHES = 16, 6  # timed


class Data(NamedTuple):
    """Published sizes of a data set, and the Whisper that the recipe names."""

    model: str
    train: int
    valid: int
    test: int
    seconds: float
    """of a clip in the mean"""
    classes: int


AUDIOSET, BALANCED, EVALUATION = 1_953_082, 22_160, 20_371
"""Clips of Whisper-AT's training run (spec section 3.5), and of AudioSet's two smaller lists."""
RECIPES = {
    "esc50": Data("small.en", 1600, 0, 400, 5, 50),
    "fsd50k": Data("small.en", 36_796, 4_170, 10_231, 7.6, 200),
    "audioset_balanced": Data("medium.en", BALANCED, 0, EVALUATION, 10, 527),
    **{
        f"audioset_{name.split('-')[0]}": Data(name, AUDIOSET, 0, EVALUATION, 10, 527)
        for name in ("tiny", "base", "small", "medium", "large-v1")
    },
}


class Expected(NamedTuple):
    """What one recipe is expected to take: seconds, and bytes of its states."""

    features: float
    training: float
    space: float


def settings_of(recipe: str, width: int, device: str) -> Settings:
    """As `whisper-at train --config` reads them; half precision is for GPUs."""
    given = read_toml(FOLDER / f"{recipe}.toml")
    settings = train.settings_of(given.pop("preset"), width, given, {}, recipe)
    loss = "ce" if recipe == "esc50" else "bce"
    return for_device(replace(settings, loss=loss), device)


def noises(folder: Path, count: int, seconds: float) -> list[Clip]:
    """Clips of noise, 16 kHz WAV."""
    r = np.random.default_rng(0)
    clips = []
    for i in range(count):
        path = folder / f"{i}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes((3000 * r.standard_normal(round(seconds * SAMPLE_RATE))).astype("<i2").tobytes())
        clips.append(Clip(path, ()))
    return clips


def expected(recipe: str, device: str, folder: Path) -> Expected:
    """Measure the rates of a recipe, and multiply."""
    data = RECIPES[recipe]
    dims = {**dims_of(data.model), "n_text_layer": 1}  # whose decoder nobody asks
    settings = settings_of(recipe, dims["n_audio_state"], device)
    held = data.valid or round(settings.valid_share * data.train)
    train = data.train if data.valid else data.train - held
    clips = noises(folder, CLIPS, data.seconds)

    torch.manual_seed(0)
    model = WhisperAT(ModelDimensions(**dims)).eval().to(device)
    about = describe(data.model, model, settings.protocol, settings.seconds or None)
    start = time.perf_counter()
    sounds = [audible(clip) for clip in clips]
    windows = [window for sound in sounds for window in mel_windows(sound, dims["n_mels"], about.seconds)]
    alone = len(windows)
    if about.hearings > 1:
        windows += TIMES * mel_windows(join(sounds)[0], dims["n_mels"])
    decoding = (time.perf_counter() - start) / CLIPS / (os.cpu_count() or 1)  # by as many processes
    mels, where = zip(*windows)
    encode(model, mels[:2], where[:2])
    start = time.perf_counter()
    states = encode(model, mels, where)
    a_clip = decoding + (time.perf_counter() - start) / CLIPS
    with FeatureWriter(folder / "features", about) as writer:
        each = alone // CLIPS
        for i, clip in enumerate(clips):  # as many steps as there would be, whichever they are
            writer.add(clip, torch.cat(states[i * each : (i + 1) * each] * about.hearings, dim=1))
    del model
    features = Features.open(folder / "features")
    n_bytes = int(features.n_steps.mean()) * about.hearings * about.layers * about.dim * np.dtype(about.dtype).itemsize

    head = make_head(settings.mode, n_layer=about.layers, rep_dim=about.dim, label_dim=data.classes).to(device)
    ends: list[float] = []
    short = replace(settings, epochs=2, epoch_share=1e-9, least_steps=BATCHES, average=())  # the first warms up
    targets = np.eye(data.classes, dtype=np.float32)[np.arange(len(clips)) % data.classes]
    items = np.arange(len(clips))
    task = HeadTask(features, items, targets, short, told=lambda *_: ends.append(time.perf_counter()))
    fit(head, task, optimizer_of(head, short), short.plan(validated=False))
    a_batch = (ends[1] - ends[0]) / BATCHES
    start = time.perf_counter()
    score(head, features, features.hearings(items).ravel(), max(settings.rows))
    a_score = (time.perf_counter() - start) / len(clips)

    clips_in_all = train + held + data.test
    batches = settings.epochs * batches_of_epoch(train, settings)
    scored = (settings.epochs + 1) * held + data.test
    return Expected(a_clip * clips_in_all, a_batch * batches + a_score * scored, float(n_bytes * clips_in_all))


def long(seconds: float) -> str:
    """A time for people, in days where hours are many."""
    return duration(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here")
    found = {}
    print(f"{'recipe':20} {'Whisper':10} {'states':>9} {'training':>9} {'space':>8}")
    for recipe in args.recipes:
        with tempfile.TemporaryDirectory() as folder:
            found[recipe] = each = expected(recipe, args.device, Path(folder))
        name = RECIPES[recipe].model
        print(
            f"{recipe:20} {name:10} {long(each.features):>9} {long(each.training):>9} {size(each.space):>8}", flush=True
        )
    if args.json:
        about = {"device": args.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
        args.json.write_text(json.dumps({**about, **{k: v._asdict() for k, v in found.items()}}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
