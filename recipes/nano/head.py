"""The TL-TR head of nano.en, trained on pooled states of the frozen encoder.

Pooled states are the output of every encoder block before `ln_post`, averaged over 20 positions: steps of 0.4 s.
The head sees rows of 1 to 75 steps cut at random, as tagging at any resolution will ask of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
import whisper
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from whisper_at.checkpoints import encoder_sha256, save_safetensors
from whisper_at.data.toml import read_toml
from whisper_at.tagging.heads import PREFIX, TLTR
from whisper_at.tagging.labels import find_class

from .data import SOUNDS, Pools
from .espeak import RATE
from .sounds import NAMES, SILENCE, SPEECH, Scenes, label_table
from .windows import Mixer

if TYPE_CHECKING:
    from .evaluate import Judge

CONFIG = Path(__file__).with_name("head.toml")


@dataclass(frozen=True)
class Settings:
    """How the head is trained; `head.toml` says what each is."""

    scenes: int
    steps: int
    rate: float
    warm_up: int
    betas: list[float]
    weight_decay: float
    average: int
    rows: list[int]
    batch: int
    batch_long: int
    smoothing: float


def read_settings(**given: int | None) -> Settings:
    """The settings in `head.toml`, and instead of them those `given` that are not None.

    Raises ValueError if one is missing or unknown.
    """
    content = read_toml(CONFIG) | {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**content)
    except TypeError as error:  # which names it
        raise ValueError(f"{CONFIG}: {error}") from None


class _SceneStream(IterableDataset):
    def __init__(self, pools: Pools, seed: int) -> None:
        self.pools, self.seed = pools, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        torch.set_num_threads(1)
        scenes = Scenes(Mixer(self.pools, self.seed))
        while True:
            mel, labels, n = scenes.next()
            yield mel, torch.from_numpy(labels), n


@torch.no_grad()
def pooled_states(model: whisper.Whisper, mel: Tensor) -> Tensor:
    """mel (batch, 80, 3000) → float32 (batch, layers, 75, width)."""
    states: list[Tensor] = []
    hooks = [
        b.register_forward_hook(lambda _m, _i, out: states.append(out.float().unflatten(1, (75, 20)).mean(2)))
        for b in model.encoder.blocks
    ]
    try:
        model.encoder(mel)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(states, 1)


def new_head(model: whisper.Whisper) -> TLTR:
    """An untrained head that fits the model's encoder."""
    return TLTR(527, n_layer=model.dims.n_audio_layer, rep_dim=model.dims.n_audio_state, mode="tl_tr_1_8")


def train_head(pools: Pools, checkpoint: Path, path: Path, settings: Settings, seed: int = 0) -> None:
    """Trains a head for the checkpoint on states of scenes, and writes it to `path`."""
    torch.manual_seed(seed)
    model = whisper.load_model(str(checkpoint), device="cpu").eval()
    loader = iter(DataLoader(_SceneStream(pools, seed * 7919 + 1), batch_size=16, num_workers=1, prefetch_factor=4))
    states, labels, lengths = [], [], []
    for i in range(-(-settings.scenes // 16)):
        mel, audible, n = next(loader)
        states.append(pooled_states(model, mel).half())
        labels.append(audible)
        lengths.append(n)
        if i % 50 == 49:
            print(f"{16 * (i + 1)} of {settings.scenes} scenes", flush=True)
    all_states, all_labels, all_lengths = torch.cat(states), torch.cat(labels), torch.cat(lengths)
    del states, loader

    head, table = new_head(model), label_table()
    b1, b2 = settings.betas
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.rate, betas=(b1, b2), weight_decay=settings.weight_decay
    )
    trained = table.sum(0) > 0
    average = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    running = 0.0
    generator = np.random.default_rng(seed)
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, step / settings.warm_up) * (1 - step / settings.steps) + 1e-6
        width = int(generator.choice(settings.rows))
        size = settings.batch if width <= 25 else settings.batch_long
        fitting = torch.nonzero(all_lengths >= width)[:, 0]
        picked = fitting[torch.from_numpy(generator.integers(0, len(fitting), size))]
        start = [int(generator.integers(0, int(all_lengths[i]) - width + 1)) for i in picked]
        rows = torch.stack([all_states[i, :, s : s + width] for i, s in zip(picked, start)]).float()
        audible = torch.stack([all_labels[i, s : s + width] for i, s in zip(picked, start)])
        heard = (audible.sum(1) > 0).float()
        heard[:, SILENCE] = (audible[:, :, SILENCE].mean(1) > 0.8).float()
        target = (heard @ table).clamp(max=1)
        smooth = (1 - settings.smoothing) * target + settings.smoothing / 2
        smooth = torch.where(trained, smooth, torch.zeros_like(target))
        loss = F.binary_cross_entropy_with_logits(head(rows), smooth, reduction="none").sum(1).mean() / 20
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        running += loss.item()
        for name, tensor in head.state_dict().items():
            average[name].lerp_(tensor, 1 / min(step, settings.average))
        if step % 200 == 0:
            print(f"head: step {step} of {settings.steps}, loss {running / 200:.4f}", flush=True)
            running = 0.0
    metadata = {
        "mode": "tl_tr_1_8",
        "n_layer": str(head.n_layer),
        "width": str(head.rep_dim),
        "model": "nano.en",
        "classes": "audioset-527",
        "encoder_sha256": encoder_sha256(model.state_dict()),
    }
    save_safetensors({PREFIX + name: tensor for name, tensor in average.items()}, path, metadata)


def judge_tags(judge: Judge, path: Path) -> None:
    """Average precision of the ten sounds alone and under speech, of Speech and of Silence, on held-out material."""
    from sklearn.metrics import average_precision_score

    from .evaluate import random_string, with_noise

    head = new_head(judge.model)
    head.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in load_file(path).items()})
    head.eval()
    index = [find_class(SOUNDS.get(name, [name])[0]) for name in NAMES]

    @torch.no_grad()
    def scores(sounds: list[np.ndarray]) -> np.ndarray:
        out = []
        for audio in sounds:
            mel = whisper.pad_or_trim(
                whisper.log_mel_spectrogram(torch.from_numpy(audio), padding=30 * RATE)[:, : len(audio) // 160], 3000
            )
            states = pooled_states(judge.model, mel[None])[:, :, : max(1, round(len(audio) / RATE / 0.4))]
            out.append(head(states)[0, index].numpy())
        return np.stack(out)

    clips, r = judge.pools.test_clips, random.Random(5)
    truth = np.array([[c.sound == s for s in SOUNDS] for c in clips])

    def under(louder: float) -> list[np.ndarray]:
        mixed = []
        for clip in clips:
            speech = np.concatenate([random_string(r, judge.pools, 3, 8).audio for _ in range(4)])[: len(clip.audio)]
            speech = np.pad(speech, (0, len(clip.audio) - len(speech)))
            mixed.append(with_noise(r, judge.pools, speech, -louder, sound=clip.audio).astype(np.float32))
        return mixed

    alone = [c.audio.astype(np.float32) / 32768 for c in clips]
    speech = [with_noise(r, judge.pools, random_string(r, judge.pools).audio, None) for _ in clips]
    quiet = [np.zeros(RATE * s, np.float32) for s in range(1, 11)] + [
        (1e-4 * np.random.default_rng(s).standard_normal(RATE * 5)).astype(np.float32) for s in range(5)
    ]
    found_alone = scores(alone)
    for name, found in (
        ("alone", found_alone),
        ("under speech, 0 dB", scores(under(0))),
        ("under 10 dB louder speech", scores(under(-10))),
    ):
        per = [average_precision_score(truth[:, i], found[:, i]) for i in range(len(SOUNDS))]
        judge.report(
            f"sounds {name}: mean average precision",
            np.mean(per),
            " ".join(f"{s}:{p:.2f}" for s, p in zip(SOUNDS, per)),
        )
    found_speech, found_quiet = scores(speech), scores(quiet)
    for name, column, positive, negative in (
        ("Speech", SPEECH, found_speech, [found_alone, found_quiet]),
        ("Silence", SILENCE, found_quiet, [found_alone, found_speech]),
    ):
        marks = np.concatenate([positive[:, column], *(f[:, column] for f in negative)])
        wanted = np.arange(len(marks)) < len(positive)
        judge.report(f"{name}: average precision", average_precision_score(wanted, marks))
