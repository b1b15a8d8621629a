"""Training of the encoder and decoder of nano.en."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import ENCODER_ONLY, BatchStream
from .data import Pools
from .model import GUIDED_LAYERS, NanoWhisper, attention_targets
from .vocabulary import Vocabulary

ADAMW_LR, MUON_LR, WARMUP_STEPS, WEIGHT_DECAY = 1.5e-3, 6e-3, 150, 0.03
NO_SPEECH_PROBABILITY = 0.93  # target in windows without speech; the rest is for <|0.00|>, which decoding forces next
SILENT_WEIGHT = 4.0  # of the two tokens of a window without speech, as windows with speech have about forty
NO_WORD_WEIGHT = 0.4  # of frames without a word, which are half of all
LOSS_WEIGHTS = {"timed": 1.0, "plain": 0.5, "guide": 0.8, "frames": 0.7}


def compute_losses(model: NanoWhisper, batch: dict[str, Tensor], encoder_only: bool) -> dict[str, Tensor]:
    """Return the mean losses and accuracies of a batch.

    These are for frame labels and, unless ``encoder_only``, for tokens with timestamps (``timed``), tokens without
    (``plain``) and guided attention.
    """
    v = model.vocabulary
    with torch.set_grad_enabled(not batch["frozen"]):
        features = model.encode(batch["mel"], batch["offset"])
    frame_logits = model.frame_head(features).float().flatten(0, 1)
    weight = torch.ones(frame_logits.shape[1])
    weight[-1] = NO_WORD_WEIGHT
    labels = batch["labels"].flatten()
    out = {"frames": F.cross_entropy(frame_logits, labels, weight)}
    is_word = labels < frame_logits.shape[1] - 1
    is_right = (frame_logits.argmax(1) == labels)[is_word]
    out["frames right"] = is_right.float().mean() if is_word.any() else torch.tensor(0.0)
    if encoder_only:
        return out
    modes = ("timed", "plain")
    positions, targets = zip(*(attention_targets(batch[f"{mode}_guides"], features.shape[1]) for mode in modes))
    has_loss = [batch[f"{mode}_out"] >= 0 for mode in modes]
    logits, attention = model.decode([batch[f"{mode}_in"] for mode in modes], features, has_loss, list(positions))
    for mode, mask, mode_logits in zip(modes, has_loss, logits):
        target_ids = batch[f"{mode}_out"][mask]
        nll = F.cross_entropy(mode_logits, target_ids, reduction="none")
        if mode == "timed":
            p, nll_zero = NO_SPEECH_PROBABILITY, mode_logits.logsumexp(-1) - mode_logits[:, v.time0]
            nll = torch.where(target_ids == v.no_speech, p * nll + (1 - p) * nll_zero, nll)
        weights = torch.where(batch["silent"][:, None], SILENT_WEIGHT, 1.0).expand(mask.shape)[mask]
        out[mode] = (nll * weights).sum() / weights.sum()
        out[f"{mode} right"] = (mode_logits.argmax(-1) == target_ids).float().mean()
    is_guide = torch.cat([batch[f"{mode}_guides"][..., :1] >= 0 for mode in modes], 1)
    for i, (log_attention, words_back) in enumerate(zip(attention, GUIDED_LAYERS.values())):
        shifted = [F.pad(t, (0, 0, words_back, 0))[:, : t.shape[1]] for t in targets]
        target = torch.cat(shifted, 1) * is_guide
        total = target.sum().clamp(min=1) * log_attention.shape[1]
        out[f"guide {i}"] = -(log_attention * target[:, None]).sum() / total
    out["guide"] = sum(out[f"guide {i}"] for i in range(len(attention))) / len(attention)
    return out


def make_optimizers(model: NanoWhisper) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for all other parameters."""
    matrices = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
    in_muon = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_muon]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=ADAMW_LR, betas=(0.9, 0.98)),
    ]


def save_state(model: NanoWhisper, optimizers: list[torch.optim.Optimizer], step: int, path: Path) -> None:
    """Write what is needed to resume, atomically."""
    temporary = path.with_suffix(".part")
    state = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
    torch.save(state | {"step": step}, temporary)
    temporary.rename(path)


def train(pools: Pools, out: Path, steps: int, seed: int = 0) -> Path:
    """Train for a number of steps, those before an interruption included.

    The learning rate falls to zero over ``steps``. Every 250 steps the state and the checkpoint are written. A finished
    run can be continued with more steps.

    Parameters
    ----------
    pools : Pools
        Training data.
    out : Path
        Folder for ``state.pt``, ``nano.en.pt`` and ``log.jsonl``.
    steps : int
        Total number of steps.
    seed : int
        Seed of weights and data.

    Returns
    -------
    Path
        The checkpoint.
    """
    torch.manual_seed(seed)
    vocabulary = Vocabulary()
    model = NanoWhisper(vocabulary)
    optimizers = make_optimizers(model)
    state_file, checkpoint = out / "state.pt", out / "nano.en.pt"
    step = 0
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, optimizer_state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(optimizer_state)
        step = saved["step"]
    progress = multiprocessing.Value("d", step / steps)
    loader = BatchStream(pools, seed * 100003 + step, progress).loader()
    n_windows, sums, since = 0, {}, time.time()
    while step < steps:
        batch = next(loader)
        schedule = min(1.0, (step + 1) / WARMUP_STEPS, max(0.01, 1.5 * (1 - step / steps)))
        for optimizer, peak in zip(optimizers, (MUON_LR, ADAMW_LR)):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule
        with torch.autocast("cpu", torch.bfloat16):
            metrics = compute_losses(model, batch, progress.value < ENCODER_ONLY)
        loss = sum(LOSS_WEIGHTS[name] * metrics[name] for name in LOSS_WEIGHTS if name in metrics)
        model.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            for optimizer in optimizers:
                optimizer.step()
        step, n_windows = step + 1, n_windows + len(batch["mel"])
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        progress.value = step / steps
        if step % 50 == 0:
            line = {
                "step": step,
                "rate": round(ADAMW_LR * schedule, 6),
                "windows/s": round(n_windows / (time.time() - since), 1),
            }
            line |= {name: round(value / 50, 4) for name, value in sums.items()}
            print(json.dumps(line), flush=True)
            with open(out / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            n_windows, sums, since = 0, {}, time.time()
        if step % 250 == 0 or step == steps:
            save_state(model, optimizers, step, state_file)
            model.export(checkpoint)
    return checkpoint
