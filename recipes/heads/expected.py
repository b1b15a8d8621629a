"""How long the recipes of heads take on the machine at hand: rates are measured, the rest is arithmetic.

    python -m recipes.heads.expected
    python -m recipes.heads.expected --recipes esc50 audioset_small --device cuda --json expected.json

For each recipe, a few clips of noise, as long as those of the data, are decoded and encoded by a Whisper of its size
with random weights, and its head is trained on their features for a few batches with the recipe's settings. The times
are multiplied by the clips and epochs of the recipe, held-out clips and test clips included. Nothing is downloaded. Not
included: reading features from slow disks, the report, and other work that the machine may have.
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

from whisper_at.checkpoints import model_dims
from whisper_at.data.clips import Clip
from whisper_at.data.toml import read_toml
from whisper_at.features.concat_clips import NUM_ORDERS, concat_sounds
from whisper_at.features.encode import describe_features, encode_windows, load_clip, mel_windows
from whisper_at.features.progress import format_bytes, format_duration
from whisper_at.features.store import Features
from whisper_at.features.writer import FeatureWriter
from whisper_at.model import WhisperAT
from whisper_at.tagging.heads import make_head
from whisper_at.train.config import Settings, resolve_settings
from whisper_at.train.fit import fit
from whisper_at.train.recipe import HeadTask, batches_per_epoch, compute_logits
from whisper_at.train.train_head import make_optimizer, with_supported_precision

FOLDER = Path(__file__).parent
CLIPS, BATCHES = 16, 6  # that are timed


class RecipeData(NamedTuple):
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
    "esc50": RecipeData("small.en", 1600, 0, 400, 5, 50),
    "fsd50k": RecipeData("small.en", 36_796, 4_170, 10_231, 7.6, 200),
    "audioset_balanced": RecipeData("medium.en", BALANCED, 0, EVALUATION, 10, 527),
    **{
        f"audioset_{name.split('-')[0]}": RecipeData(name, AUDIOSET, 0, EVALUATION, 10, 527)
        for name in ("tiny", "base", "small", "medium", "large-v1")
    },
}


class Estimate(NamedTuple):
    """What a recipe takes: seconds for features and training, and bytes of the features."""

    features: float
    training: float
    space: float


def settings_of(recipe: str, width: int, device: str) -> Settings:
    """Return the settings that `whisper-at train --config` would use."""
    given = read_toml(FOLDER / f"{recipe}.toml")
    settings = resolve_settings(given.pop("preset"), width, given, {}, recipe)
    loss = "ce" if recipe == "esc50" else "bce"
    return with_supported_precision(replace(settings, loss=loss), device)


def write_noise_clips(folder: Path, count: int, seconds: float) -> list[Clip]:
    """Write clips of noise, 16 kHz WAV."""
    r = np.random.default_rng(0)
    clips = []
    for i in range(count):
        path = folder / f"{i}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes((3000 * r.standard_normal(round(seconds * SAMPLE_RATE))).astype("<i2").tobytes())
        clips.append(Clip(path, ()))
    return clips


def estimate(recipe: str, device: str, folder: Path) -> Estimate:
    """Measure the rates of a recipe, and multiply."""
    data = RECIPES[recipe]
    dims = {**model_dims(data.model), "n_text_layer": 1}  # the decoder is not used
    settings = settings_of(recipe, dims["n_audio_state"], device)
    held = data.valid or round(settings.valid_share * data.train)
    train = data.train if data.valid else data.train - held
    clips = write_noise_clips(folder, CLIPS, data.seconds)

    torch.manual_seed(0)
    model = WhisperAT(ModelDimensions(**dims)).eval().to(device)
    metadata = describe_features(data.model, model, settings.protocol, settings.seconds or None)
    start = time.perf_counter()
    sounds = [load_clip(clip) for clip in clips]
    windows = [window for sound in sounds for window in mel_windows(sound, dims["n_mels"], metadata.seconds)]
    isolated = len(windows)
    if metadata.views > 1:
        windows += NUM_ORDERS * mel_windows(concat_sounds(sounds)[0], dims["n_mels"])
    decoding = (time.perf_counter() - start) / CLIPS / (os.cpu_count() or 1)  # by as many processes
    mels, where = zip(*windows)
    encode_windows(model, mels[:2], where[:2])
    start = time.perf_counter()
    states = encode_windows(model, mels, where)
    a_clip = decoding + (time.perf_counter() - start) / CLIPS
    with FeatureWriter(folder / "features", metadata) as writer:
        per_clip = isolated // CLIPS  # windows
        for i, clip in enumerate(clips):  # as many steps as there would be, whichever they are
            writer.add(clip, torch.cat(states[i * per_clip : (i + 1) * per_clip] * metadata.views, dim=1))
    del model
    features = Features.open(folder / "features")
    layers, dim = metadata.layers, metadata.dim
    n_bytes = int(features.n_steps.mean()) * metadata.views * layers * dim * np.dtype(metadata.dtype).itemsize

    head = make_head(settings.mode, n_layer=layers, rep_dim=dim, label_dim=data.classes).to(device)
    ends: list[float] = []
    short = replace(settings, epochs=2, epoch_share=1e-9, least_steps=BATCHES, average=())  # the first warms up
    targets = np.eye(data.classes, dtype=np.float32)[np.arange(len(clips)) % data.classes]
    items = np.arange(len(clips))
    task = HeadTask(features, items, targets, short, on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    fit(head, task, make_optimizer(head, short), short.fit_options(validated=False))
    a_batch = (ends[1] - ends[0]) / BATCHES
    start = time.perf_counter()
    compute_logits(head, features, features.view_indices(items).ravel(), max(settings.rows))
    a_score = (time.perf_counter() - start) / len(clips)

    clips_in_all = train + held + data.test
    batches = settings.epochs * batches_per_epoch(train, settings)
    scored = (settings.epochs + 1) * held + data.test
    return Estimate(a_clip * clips_in_all, a_batch * batches + a_score * scored, float(n_bytes * clips_in_all))


def format_long(seconds: float) -> str:
    """Return a duration in a readable unit, in days from two days on."""
    return format_duration(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


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
            found[recipe] = result = estimate(recipe, args.device, Path(folder))
        times = f"{format_long(result.features):>9} {format_long(result.training):>9}"
        print(f"{recipe:20} {RECIPES[recipe].model:10} {times} {format_bytes(result.space):>8}", flush=True)
    if args.json:
        machine = {"device": args.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
        args.json.write_text(json.dumps({**machine, **{k: v._asdict() for k, v in found.items()}}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
