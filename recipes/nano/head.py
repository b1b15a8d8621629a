"""The TL-TR head of nano.en, trained on pooled states of the frozen encoder.

Pooled states are the output of every encoder block before `ln_post`, averaged over 20 positions: steps of 0.4 s. The
head is trained on random rows of 1 to 75 steps, so that it works at any time resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import whisper
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from whisper_at.checkpoints import encoder_sha256, save_safetensors
from whisper_at.data.toml import read_toml
from whisper_at.tagging.heads import PREFIX, TLTR

from .data import Pools
from .scenes import SILENCE, SceneGenerator, audioset_targets

CONFIG = Path(__file__).with_name("head.toml")
SCENE_BATCH = 16


@dataclass(frozen=True)
class Settings:
    """Training settings of the head; `head.toml` explains them."""

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


def read_settings(**overrides: int | None) -> Settings:
    """Read `head.toml`; overrides that are not None replace its values.

    Raises
    ------
    ValueError
        If a setting is missing or unknown.
    """
    content = read_toml(CONFIG) | {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**content)
    except TypeError as error:  # its message names the setting
        raise ValueError(f"{CONFIG}: {error}") from None


class _SceneStream(IterableDataset):
    """Endless stream of scenes: mel, labels, number of steps."""

    def __init__(self, pools: Pools, seed: int) -> None:
        self.pools, self.seed = pools, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        torch.set_num_threads(1)
        generator = SceneGenerator(self.pools, self.seed)
        while True:
            mel, labels, n_steps = generator.scene()
            yield mel, torch.from_numpy(labels), n_steps


@torch.no_grad()
def pooled_states(model: whisper.Whisper, mel: Tensor) -> Tensor:
    """Return the pooled states, float32 ``(batch, layers, 75, width)``, of mels ``(batch, 80, 3000)``."""
    states: list[Tensor] = []

    def pool(_module: object, _inputs: object, output: Tensor) -> None:
        states.append(output.float().unflatten(1, (75, 20)).mean(2))

    hooks = [block.register_forward_hook(pool) for block in model.encoder.blocks]
    try:
        model.encoder(mel)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(states, 1)


def new_head(model: whisper.Whisper) -> TLTR:
    """Return an untrained head for the encoder of a model."""
    return TLTR(527, n_layer=model.dims.n_audio_layer, rep_dim=model.dims.n_audio_state, mode="tl_tr_1_8")


def encode_scenes(model: whisper.Whisper, pools: Pools, n_scenes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Generate and encode scenes.

    Returns
    -------
    states : Tensor of float16, shape (scenes, layers, 75, width)
        Pooled states.
    labels : Tensor of float32, shape (scenes, 75, classes)
        Audible classes.
    lengths : Tensor of int, shape (scenes,)
        Number of steps with audio.
    """
    stream = _SceneStream(pools, seed)
    loader = iter(DataLoader(stream, batch_size=SCENE_BATCH, num_workers=1, prefetch_factor=4))
    states, labels, lengths = [], [], []
    for i in range(-(-n_scenes // SCENE_BATCH)):
        mel, batch_labels, n_steps = next(loader)
        states.append(pooled_states(model, mel).half())
        labels.append(batch_labels)
        lengths.append(n_steps)
        if i % 50 == 49:
            print(f"{SCENE_BATCH * (i + 1)} of {n_scenes} scenes", flush=True)
    return torch.cat(states), torch.cat(labels), torch.cat(lengths)


def train_head(pools: Pools, checkpoint: Path, path: Path, settings: Settings, seed: int = 0) -> None:
    """Train a head on scenes encoded by a checkpoint, and write it to ``path``."""
    torch.manual_seed(seed)
    model = whisper.load_model(str(checkpoint), device="cpu").eval()
    states, labels, lengths = encode_scenes(model, pools, settings.scenes, seed * 7919 + 1)

    head, targets = new_head(model), audioset_targets()
    b1, b2 = settings.betas
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.rate, betas=(b1, b2), weight_decay=settings.weight_decay
    )
    is_trained = targets.sum(0) > 0
    average = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    loss_sum = 0.0
    rng = np.random.default_rng(seed)
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, step / settings.warm_up) * (1 - step / settings.steps) + 1e-6
        # 1. draw rows of one width
        width = int(rng.choice(settings.rows))
        size = settings.batch if width <= 25 else settings.batch_long
        long_enough = torch.nonzero(lengths >= width)[:, 0]
        chosen = long_enough[torch.from_numpy(rng.integers(0, len(long_enough), size))]
        starts = [int(rng.integers(0, int(lengths[i]) - width + 1)) for i in chosen]
        rows = torch.stack([states[i, :, s : s + width] for i, s in zip(chosen, starts)]).float()
        audible = torch.stack([labels[i, s : s + width] for i, s in zip(chosen, starts)])
        # 2. a class counts if it is audible in any step, silence if it fills the row
        present = (audible.sum(1) > 0).float()
        present[:, SILENCE] = (audible[:, :, SILENCE].mean(1) > 0.8).float()
        target = (present @ targets).clamp(max=1)
        smooth = (1 - settings.smoothing) * target + settings.smoothing / 2
        smooth = torch.where(is_trained, smooth, torch.zeros_like(target))
        # 3. update the weights and their running average
        loss = F.binary_cross_entropy_with_logits(head(rows), smooth, reduction="none").sum(1).mean() / 20
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        loss_sum += loss.item()
        for name, tensor in head.state_dict().items():
            average[name].lerp_(tensor, 1 / min(step, settings.average))
        if step % 200 == 0:
            print(f"head: step {step} of {settings.steps}, loss {loss_sum / 200:.4f}", flush=True)
            loss_sum = 0.0
    metadata = {
        "mode": "tl_tr_1_8",
        "n_layer": str(head.n_layer),
        "width": str(head.rep_dim),
        "model": "nano.en",
        "classes": "audioset-527",
        "encoder_sha256": encoder_sha256(model.state_dict()),
    }
    save_safetensors({PREFIX + name: tensor for name, tensor in average.items()}, path, metadata)
