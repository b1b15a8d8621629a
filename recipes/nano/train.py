"""Training of encoder and decoder for a number of steps, over which the learning rate falls to zero."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import LISTENING, Batches
from .data import Pools
from .model import GUIDED, Nano, guide_target
from .windows import Vocabulary

PEAK_RATE, MUON_RATE, WARM_UP, DECAY = 1.5e-3, 6e-3, 150, 0.03
NO_SPEECH = 0.93  # the rest of a silent window's start goes to <|0.00|>, which decoding forces next
NOTHING = 4.0  # weight of a silent window's two tokens, beside the forty of one with speech
NO_WORD = 0.4  # weight of frames without a word, which are half of all
WEIGHTS = {"timed": 1.0, "plain": 0.5, "guide": 0.8, "frames": 0.7}


def losses(model: Nano, batch: dict[str, Tensor], listening: bool) -> dict[str, Tensor]:
    """The losses of a batch, each a mean: frame labels and, unless `listening`, tokens with and without timestamps
    and guided attention.
    """
    v = model.vocabulary
    with torch.set_grad_enabled(not batch["frozen"]):
        features = model.encode(batch["mel"], batch["offset"])
    classes = model.frame_head(features).float().flatten(0, 1)
    weight = torch.ones(classes.shape[1])
    weight[-1] = NO_WORD
    labels = batch["labels"].flatten()
    out = {"frames": F.cross_entropy(classes, labels, weight)}
    words = labels < classes.shape[1] - 1
    out["frames right"] = (classes.argmax(1) == labels)[words].float().mean() if words.any() else torch.tensor(0.0)
    if listening:
        return out
    modes = ("timed", "plain")
    rows, targets = zip(*(guide_target(batch[f"{mode}_guides"], features.shape[1]) for mode in modes))
    counts = [batch[f"{mode}_out"] >= 0 for mode in modes]
    logits, attention = model.decode([batch[f"{mode}_in"] for mode in modes], features, counts, list(rows))
    for mode, count, guess in zip(modes, counts, logits):
        wanted = batch[f"{mode}_out"][count]
        nll = F.cross_entropy(guess, wanted, reduction="none")
        if mode == "timed":
            zero = guess.logsumexp(-1) - guess[:, v.time0]
            nll = torch.where(wanted == v.no_speech, NO_SPEECH * nll + (1 - NO_SPEECH) * zero, nll)
        weights = torch.where(batch["silent"][:, None], NOTHING, 1.0).expand(count.shape)[count]
        out[mode] = (nll * weights).sum() / weights.sum()
        out[f"{mode} right"] = (guess.argmax(-1) == wanted).float().mean()
    real = torch.cat([batch[f"{mode}_guides"][..., :1] >= 0 for mode in modes], 1)
    for i, (log_a, back) in enumerate(zip(attention, GUIDED.values())):
        shifted = [torch.cat([torch.zeros_like(t[:, :back]), t[:, : t.shape[1] - back]], 1) for t in targets]
        target = torch.cat(shifted, 1) * real
        out[f"guide {i}"] = -(log_a * target[:, None]).sum() / (target.sum().clamp(min=1) * log_a.shape[1])
    out["guide"] = sum(out[f"guide {i}"] for i in range(len(attention))) / len(attention)
    return out


def make_optimizers(model: Nano) -> list[torch.optim.Optimizer]:
    """Muon for the square and fourfold matrices of the blocks, AdamW for everything else."""
    matrices = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98)),
    ]


def save(model: Nano, optimizers: list[torch.optim.Optimizer], step: int, path: Path) -> None:
    """State to resume from."""
    temporary = path.with_suffix(".part")
    state = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
    torch.save(state | {"step": step}, temporary)
    temporary.rename(path)


def train(pools: Pools, out: Path, steps: int, seed: int = 0) -> Path:
    """Trains for `steps` (over all resumed runs) and returns the exported checkpoint's path.

    Every 250 steps the state is saved and `out/nano.en.pt` renewed. A finished run that is given more steps goes on
    with the learning rate that belongs to its place among them.
    """
    torch.manual_seed(seed)
    vocabulary = Vocabulary()
    model = Nano(vocabulary)
    optimizers = make_optimizers(model)
    state, checkpoint = out / "state.pt", out / "nano.en.pt"
    step = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, kept in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(kept)
        step = saved["step"]
    progress = multiprocessing.Value("d", step / steps)
    loader = Batches(pools, seed * 100003 + step, progress).loader()
    windows, sums, since = 0, {}, time.time()
    while step < steps:
        batch = next(loader)
        share = min(1.0, (step + 1) / WARM_UP, max(0.01, 1.5 * (1 - step / steps)))
        for optimizer, peak in zip(optimizers, (MUON_RATE, PEAK_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
        with torch.autocast("cpu", torch.bfloat16):
            parts = losses(model, batch, progress.value < LISTENING)
        loss = sum(WEIGHTS[name] * parts[name] for name in WEIGHTS if name in parts)
        model.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            for optimizer in optimizers:
                optimizer.step()
        step, windows = step + 1, windows + len(batch["mel"])
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        progress.value = step / steps
        if step % 50 == 0:
            line = {
                "step": step,
                "rate": round(PEAK_RATE * share, 6),
                "windows/s": round(windows / (time.time() - since), 1),
            }
            line |= {name: round(value / 50, 4) for name, value in sums.items()}
            print(json.dumps(line), flush=True)
            with open(out / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            windows, sums, since = 0, {}, time.time()
        if step % 250 == 0 or step == steps:
            save(model, optimizers, step, state)
            model.export(checkpoint)
    return checkpoint
