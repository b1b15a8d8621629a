"""Pooling of a backbone's hidden states, and heads from them to class logits.

A head has two halves. `reduce` needs no parameters: it selects layers and, where that gives the same result, averages
tokens, so that its output can be stored instead of the hidden states. `forward` maps that output to logits. Softmax is
not a part of a head: losses take logits (W1).
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


class HeadInput(NamedTuple):
    """The part of the hidden states that a head needs.

    Attributes
    ----------
    values : Tensor, shape (batch, layers, tokens, dim)
        States of the selected layers.
    mask : bool Tensor, shape (batch, tokens)
        Tokens that count.
    """

    values: Tensor
    mask: Tensor


def token_mask(pooling: str, hidden: Hidden) -> Tensor:
    """Return a bool mask ``(batch, tokens)`` of the tokens that a pooling averages.

    ``all`` averages all real tokens; ``frames`` (PETL_AST: ``speech``) and ``mean_max`` those that are neither special
    tokens nor prompts; ``cls`` the first token; ``cls_dist`` all special tokens; ``prompts`` the prompts;
    ``prompts_speech`` all but the special tokens. Spec sections 1.1 and 4.

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
    position = torch.arange(hidden.mask.shape[1], device=hidden.mask.device)
    special = position < hidden.special
    prompts = torch.zeros_like(special)
    if hidden.prompts is not None:
        prompts[hidden.prompts] = True
    chosen = {
        "all": torch.ones_like(special),
        "cls": position < 1,
        "cls_dist": special,
        "prompts": prompts,
        "prompts_speech": ~special,
    }.get(pooling, ~special & ~prompts)
    return hidden.mask & chosen


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average ``(batch, …, tokens, dim)`` over the tokens of a mask ``(batch, tokens)``, to ``(batch, …, dim)``."""
    weight = mask.to(x.dtype).view(len(mask), *[1] * (x.dim() - 3), mask.shape[1], 1)
    return (x * weight).sum(-2) / weight.sum(-2).clamp(min=1)


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Return the maximum of ``(batch, tokens, dim)`` over the tokens of a mask: ``(batch, dim)``."""
    return x.masked_fill(~mask[..., None], -torch.inf).amax(1)


class LayerAverage(nn.Module):
    """Learned average of layers, from ``(batch, layers, …)`` to ``(batch, …)``; initially all weigh the same."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Average with the softmax of the weights."""
        return torch.tensordot(self.weight.softmax(0).to(x.dtype), x, dims=([0], [1]))


class LinearHead(nn.Module):
    """One linear layer on pooled states (PETL_AST and WhisPAr, spec sections 1.1 and 3.1).

    Parameters
    ----------
    width, depth : int
        Width D and number of blocks L of the backbone.
    classes : int
        Number of classes.
    layers : {"last", "weighted", "weighted_conv"}
        The last state; a learned average of the L block outputs; or one of all L + 1 states, with the input of block 1.
    pooling : str
        See `token_mask`; ``mean_max`` adds the maximum over frames to their mean (spec section 4).
    """

    def __init__(self, width: int, depth: int, classes: int, layers: str = "last", pooling: str = "frames") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.layers, self.pooling = layers, pooling
        self.average = _layer_average(layers, depth)
        self.linear = nn.Linear(width, classes)

    def reduce(self, hidden: Hidden) -> HeadInput:
        """Average the tokens of each selected layer; for ``mean_max`` of several layers, keep the tokens."""
        values = _select_layers(hidden.states, self.layers)
        mask = token_mask(self.pooling, hidden)
        if self.pooling != "mean_max":
            pooled = masked_mean(values, mask)
        elif self.average is None:
            pooled = (masked_mean(values[:, 0], mask) + masked_max(values[:, 0], mask))[:, None]
        else:
            return HeadInput(values, mask)
        return HeadInput(pooled[:, :, None], mask.new_ones(len(mask), 1))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return logits ``(batch, classes)``."""
        x = values[:, 0] if self.average is None else self.average(values)
        has_tokens = self.pooling == "mean_max" and self.average is not None  # `reduce` kept them
        return self.linear(masked_mean(x, mask) + masked_max(x, mask) if has_tokens else x[:, 0])


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

    def reduce(self, hidden: Hidden) -> HeadInput:
        """Select layers; every token is kept, with special tokens and prompts masked."""
        return HeadInput(_select_layers(hidden.states, self.layers), token_mask("frames", hidden))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return logits ``(batch, classes)``."""
        x = values[:, 0] if self.average is None else self.average(values)
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.mlp(masked_mean(x, mask))


class TLTRHead(nn.Module):
    """Whisper-AT's TL-TR on any backbone with a frame rate: states 1 to L, averaged over steps of 0.4 s.

    Unlike in Whisper-AT, the last state is the one after the encoder's final norm. Clips of a batch are grouped by
    their number of steps, so that none attends to padding.
    """

    def __init__(self, width: int, depth: int, classes: int, frame_rate: float, mode: str = "tl_tr_1_8") -> None:
        super().__init__()
        self.step = round(STEP_SECONDS * frame_rate)
        self.tltr = TLTR(classes, n_layer=depth, rep_dim=width, mode=mode)

    def reduce(self, hidden: Hidden) -> HeadInput:
        """Average the real frames of each step, to ``(batch, layers, steps, dim)``; empty steps are masked."""
        frames = token_mask("frames", hidden._replace(mask=torch.ones_like(hidden.mask)))[0]
        values, mask = torch.stack(hidden.states[1:], 1)[:, :, frames], hidden.mask[:, frames]
        pad = -values.shape[2] % self.step
        mask = F.pad(mask, (0, pad)).unflatten(1, (-1, self.step))
        weight = mask.to(values.dtype)[:, None, ..., None]
        steps = (F.pad(values, (0, 0, 0, pad)).unflatten(2, (-1, self.step)) * weight).sum(3)
        return HeadInput(steps / weight.sum(3).clamp(min=1), mask.any(2))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return logits ``(batch, classes)``."""
        counts = mask.sum(1).tolist()
        rows: list[Tensor | None] = [None] * len(values)
        for count in sorted(set(counts)):
            group = [i for i, n in enumerate(counts) if n == count]
            for i, row in zip(group, self.tltr(values[group, :, : max(1, count)])):
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
    """Make a head by name: ``linear``, ``conv`` (PEFT-SER's), ``tl_tr`` or a mode of TL-TR (``tl_tr_1_8`` …).

    Raises
    ------
    ValueError
        If there is no such head, or it cannot read the backbone's output.
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


def concat_inputs(inputs: Sequence[HeadInput]) -> HeadInput:
    """Join the inputs of several batches, padded to the longest."""
    longest = max(part.values.shape[2] for part in inputs)
    values = [F.pad(part.values, (0, 0, 0, longest - part.values.shape[2])) for part in inputs]
    masks = [F.pad(part.mask, (0, longest - part.mask.shape[1])) for part in inputs]
    return HeadInput(torch.cat(values), torch.cat(masks))


def _layer_average(layers: str, depth: int) -> LayerAverage | None:
    if layers not in LAYERS:
        raise ValueError(f"layers must be one of {', '.join(LAYERS)}, not {layers!r}")
    return None if layers == "last" else LayerAverage(depth + (layers == "weighted_conv"))


def _select_layers(states: Sequence[Tensor], layers: str) -> Tensor:
    if layers == "last":
        return states[-1][:, None]
    return torch.stack(tuple(states if layers == "weighted_conv" else states[1:]), 1)
