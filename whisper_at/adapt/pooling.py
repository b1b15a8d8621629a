"""Pooling of a backbone's hidden states, and heads from them to class logits.

A head has two halves. `reduce` is what needs no parameter: it picks layers and, where that commutes with the rest,
averages tokens, so that its result can be kept instead of the hidden states. `forward` goes from there to logits.
Softmax is no part of a head: losses are taken of logits (W1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tagging.heads import TLTR
from .backbones import Hidden

POOLINGS = ("all", "frames", "cls", "cls_dist", "prompts", "prompts_speech", "speech", "mean_max")
LAYERS = ("last", "weighted", "weighted_conv")
STEP_SECONDS = 0.4


class Reduced(NamedTuple):
    """What a head keeps of hidden states: ``(batch, layers, tokens, dim)``, and bool ``(batch, tokens)``."""

    values: Tensor
    mask: Tensor


def chosen_tokens(pooling: str, hidden: Hidden) -> Tensor:
    """Which tokens a pooling averages, bool ``(batch, tokens)``.

    ``all`` real tokens; ``frames`` (or ``speech``, as PETL_AST calls it) without special tokens and prompts, and
    ``mean_max`` the same; ``cls`` the first token; ``cls_dist`` all special ones; ``prompts``; ``prompts_speech`` all
    but the special ones.

    Raises
    ------
    ValueError
        If there is no such pooling, or no token for it.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    if pooling in ("cls", "cls_dist") and hidden.special < (2 if pooling == "cls_dist" else 1):
        raise ValueError(f"pooling {pooling!r}: this backbone has {hidden.special} special tokens; take 'frames'")
    if pooling == "prompts" and hidden.prompts is None:
        raise ValueError("pooling 'prompts': the output has no prompts; take 'frames', or a method whose prompts stay")
    place = torch.arange(hidden.mask.shape[1], device=hidden.mask.device)
    special = place < hidden.special
    prompts = torch.zeros_like(special)
    if hidden.prompts is not None:
        prompts[hidden.prompts] = True
    chosen = {
        "all": special | ~special,
        "cls": place < 1,
        "cls_dist": special,
        "prompts": prompts,
        "prompts_speech": ~special,
    }.get(pooling, ~special & ~prompts)
    return hidden.mask & chosen


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(batch, …, tokens, dim)`` over the real tokens of ``(batch, tokens)``: ``(batch, …, dim)``."""
    weight = mask.to(x.dtype).view(len(mask), *[1] * (x.dim() - 3), mask.shape[1], 1)
    return (x * weight).sum(-2) / weight.sum(-2).clamp(min=1)


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Maximum of ``(batch, tokens, dim)`` over real tokens: ``(batch, dim)``."""
    return x.masked_fill(~mask[..., None], -torch.inf).amax(1)


class LayerAverage(nn.Module):
    """Average of layers, weighted by a softmax that begins uniform: ``(batch, layers, …)`` to ``(batch, …)``."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensordot(self.weight.softmax(0).to(x.dtype), x, dims=([0], [1]))


class LinearHead(nn.Module):
    """One linear map of pooled states.

    Parameters
    ----------
    width, depth : of the backbone: D and the number of blocks L
    classes : number of them
    layers : ``last``; ``weighted`` for a learned average of the L block outputs; ``weighted_conv`` for one of all
        L + 1 states, the first being what goes into block 1
    pooling : see `chosen_tokens`; ``mean_max`` adds the maximum over frames to their mean (spec section 4)
    """

    def __init__(self, width: int, depth: int, classes: int, layers: str = "last", pooling: str = "frames") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.layers, self.pooling = layers, pooling
        self.average = _layer_average(layers, depth)
        self.linear = nn.Linear(width, classes)

    def reduce(self, hidden: Hidden) -> Reduced:
        """Of each layer that counts, the mean of the chosen tokens; for ``mean_max`` of several, the tokens."""
        values = _picked(hidden.states, self.layers)
        mask = chosen_tokens(self.pooling, hidden)
        if self.pooling != "mean_max":
            pooled = masked_mean(values, mask)
        elif self.average is None:
            pooled = (masked_mean(values[:, 0], mask) + masked_max(values[:, 0], mask))[:, None]
        else:
            return Reduced(values, mask)
        return Reduced(pooled[:, :, None], mask.new_ones(len(mask), 1))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        x = values[:, 0] if self.average is None else self.average(values)
        whole = self.pooling == "mean_max" and self.average is not None  # then `reduce` left the tokens
        return self.linear(masked_mean(x, mask) + masked_max(x, mask) if whole else x[:, 0])


class ConvHead(nn.Module):
    """PEFT-SER's head: layer average, three pointwise convolutions, masked mean, two linear maps (spec section 2.2)."""

    def __init__(self, width: int, depth: int, classes: int, layers: str = "weighted", hidden: int = 256) -> None:
        super().__init__()
        self.layers = layers
        self.average = _layer_average(layers, depth)
        self.conv = nn.Sequential(
            nn.Conv1d(width, hidden, 1),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv1d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv1d(hidden, hidden, 1),
        )
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def reduce(self, hidden: Hidden) -> Reduced:
        """The layers that count, with every token; special tokens and prompts are masked."""
        return Reduced(_picked(hidden.states, self.layers), chosen_tokens("frames", hidden))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        x = values[:, 0] if self.average is None else self.average(values)
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.mlp(masked_mean(x, mask))


class TLTRHead(nn.Module):
    """Whisper-AT's TL-TR on any backbone with a frame rate: states 1 to L, averaged over steps of 0.4 s.

    Other than in Whisper-AT, the last state is that after the encoder's final norm.
    Clips of a batch are grouped by their number of steps, so that none attends to the padding of another.
    """

    def __init__(self, width: int, depth: int, classes: int, frame_rate: float, mode: str = "tl_tr_1_8") -> None:
        super().__init__()
        self.step = round(STEP_SECONDS * frame_rate)
        self.tltr = TLTR(classes, n_layer=depth, rep_dim=width, mode=mode)

    def reduce(self, hidden: Hidden) -> Reduced:
        """``(batch, layers, steps, dim)``: the mean of the real frames of each step; a step without any is masked."""
        everything = chosen_tokens("frames", hidden._replace(mask=torch.ones_like(hidden.mask)))[0]
        values, mask = torch.stack(hidden.states[1:], 1)[:, :, everything], hidden.mask[:, everything]
        pad = -values.shape[2] % self.step
        mask = F.pad(mask, (0, pad)).unflatten(1, (-1, self.step))
        weight = mask.to(values.dtype)[:, None, ..., None]
        steps = (F.pad(values, (0, 0, 0, pad)).unflatten(2, (-1, self.step)) * weight).sum(3)
        return Reduced(steps / weight.sum(3).clamp(min=1), mask.any(2))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        counts = mask.sum(1).tolist()
        rows: list[Tensor | None] = [None] * len(values)
        for count in sorted(set(counts)):
            of = [i for i, n in enumerate(counts) if n == count]
            for i, row in zip(of, self.tltr(values[of, :, : max(1, count)])):
                rows[i] = row
        return torch.stack([row for row in rows if row is not None])


AdaptHead = LinearHead | ConvHead | TLTRHead
HEADS = ("linear", "conv", "tl_tr")


def make_adapt_head(
    head: str,
    *,
    width: int,
    depth: int,
    classes: int,
    layers: str = "last",
    pooling: str = "frames",
    frame_rate: float | None = None,
) -> AdaptHead:
    """A fresh head by name: ``linear``, ``conv`` (PEFT-SER's), or ``tl_tr…`` in the spelling of TL-TR's modes.

    Raises
    ------
    ValueError
        If there is no such head, or the backbone's output does not suit it.
    """
    if head == "linear":
        return LinearHead(width, depth, classes, layers, pooling)
    if head == "conv":
        return ConvHead(width, depth, classes, layers)
    if head.startswith("tl_"):
        if frame_rate is None:
            raise ValueError(f"head {head!r} needs a backbone with frames in time; take 'linear'")
        return TLTRHead(width, depth, classes, frame_rate, "tl_tr_1_8" if head == "tl_tr" else head)
    raise ValueError(f"head must be one of {', '.join(HEADS)}, not {head!r}")


def concatenate(reduced: Sequence[Reduced]) -> Reduced:
    """Reduced states of several batches as one, padded to the longest."""
    longest = max(part.values.shape[2] for part in reduced)
    values = [F.pad(part.values, (0, 0, 0, longest - part.values.shape[2])) for part in reduced]
    masks = [F.pad(part.mask, (0, longest - part.mask.shape[1])) for part in reduced]
    return Reduced(torch.cat(values), torch.cat(masks))


def _layer_average(layers: str, depth: int) -> LayerAverage | None:
    if layers not in LAYERS:
        raise ValueError(f"layers must be one of {', '.join(LAYERS)}, not {layers!r}")
    return None if layers == "last" else LayerAverage(depth + (layers == "weighted_conv"))


def _picked(states: Sequence[Tensor], layers: str) -> Tensor:
    if layers == "last":
        return states[-1][:, None]
    return torch.stack(tuple(states if layers == "weighted_conv" else states[1:]), 1)
