"""Methods that add tokens: prompts, a class token, and prefixes of keys and values.

Spec sections 1.2 (shallow, deep_replace, prefix), 2.3 (deep_prepend) and 3.1 (deep_append, class token). New tokens
have no position. Every clip has them next to its own tokens, whatever padding follows, so that a padded clip gives what
it gives alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .backbones import Backbone, Tokens
from .frontends import length_mask
from .tuning import chosen_blocks, require_choice, require_positive

KINDS = ("shallow", "deep_replace", "deep_prepend", "deep_append")


class SequencePatch(nn.Module):
    """What changes the sequence of tokens: once at the start, or before and after every block."""

    def start(self, tokens: Tokens) -> Tokens:
        """The sequence that the encoder works on."""
        return tokens

    def before(self, block: int, tokens: Tokens) -> Tokens:
        """What block ``block`` (from 0) reads."""
        return tokens

    def after(self, block: int, tokens: Tokens) -> Tokens:
        """What goes on after it: as many tokens as before."""
        return tokens


def _insert(tokens: Tokens, new: Tensor, place: int) -> Tokens:
    """The sequence with the tokens ``(P, D)`` inserted at a place, the same in every clip; prompts behind it move."""
    values, mask = tokens.values, tokens.mask
    new = new.to(values.dtype).expand(len(values), -1, -1)
    values = torch.cat([values[:, :place], new, values[:, place:]], dim=1)
    real = torch.ones(new.shape[:2], dtype=torch.bool, device=mask.device)
    mask = torch.cat([mask[:, :place], real, mask[:, place:]], dim=1)
    behind = tokens.prompts is not None and tokens.prompts.start >= place
    return tokens._replace(values=values, mask=mask, prompts=_moved(tokens.prompts, new.shape[1] if behind else 0))


def _moved(prompts: slice | None, by: int) -> slice | None:
    return None if prompts is None else slice(prompts.start + by, prompts.stop + by)


def _without_distillation(tokens: Tokens) -> Tokens:
    """The sequence without AST's second special token, which the prompts take the place of."""
    if tokens.special < 2:
        return tokens
    values, mask = (torch.cat([t[:, :1], t[:, tokens.special :]], dim=1) for t in (tokens.values, tokens.mask))
    return tokens._replace(values=values, mask=mask, special=1)


def _uniform(bound: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def xavier_bound(backbone: Backbone) -> float:
    """Glorot's bound for the layer that makes the backbone's own tokens: sqrt(6 / (inputs + D))."""
    return math.sqrt(6 / (backbone.front.fan_in + backbone.width))


class ShallowPrompt(SequencePatch):
    """P tokens, inserted once behind the first special token (AST's DIST is left out) and carried to the end."""

    def __init__(self, tokens: int, backbone: Backbone):
        super().__init__()
        self.tokens = _uniform(xavier_bound(backbone), tokens, backbone.width)

    def start(self, tokens: Tokens) -> Tokens:
        tokens = _without_distillation(tokens)
        place = tokens.special
        return _insert(tokens, self.tokens, place)._replace(prompts=slice(place, place + len(self.tokens)))


class DeepReplace(SequencePatch):
    """As shallow prompts, but every block after the first has its own P in their place."""

    def __init__(self, tokens: int, backbone: Backbone):
        super().__init__()
        self.tokens = _uniform(xavier_bound(backbone), backbone.layers, tokens, backbone.width)

    def start(self, tokens: Tokens) -> Tokens:
        tokens = _without_distillation(tokens)
        place = tokens.special
        return _insert(tokens, self.tokens[0], place)._replace(prompts=slice(place, place + self.tokens.shape[1]))

    def before(self, block: int, tokens: Tokens) -> Tokens:
        assert tokens.prompts is not None
        if block == 0:
            return tokens
        start, end = tokens.prompts.start, tokens.prompts.stop
        new = self.tokens[block].to(tokens.values.dtype).expand(len(tokens.values), -1, -1)
        return tokens._replace(values=torch.cat([tokens.values[:, :start], new, tokens.values[:, end:]], dim=1))


class DeepPrepend(SequencePatch):
    """P fresh tokens at the start of every block's input, cut off its output."""

    def __init__(self, tokens: int, backbone: Backbone):
        super().__init__()
        bound = math.sqrt(6 / ((tokens + 1) * backbone.width))  # Glorot's for the tensor (1, P, D)
        self.tokens = _uniform(bound, backbone.layers, tokens, backbone.width)

    def before(self, block: int, tokens: Tokens) -> Tokens:
        return _insert(tokens, self.tokens[block], 0)

    def after(self, block: int, tokens: Tokens) -> Tokens:
        count = self.tokens.shape[1]
        prompts = _moved(tokens.prompts, -count)
        return tokens._replace(values=tokens.values[:, count:], mask=tokens.mask[:, count:], prompts=prompts)


class DeepAppend(SequencePatch):
    """P fresh tokens, zero at first, behind the last real token of every block's input, cut off its output."""

    def __init__(self, tokens: int, backbone: Backbone):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(backbone.layers, tokens, backbone.width))

    def before(self, block: int, tokens: Tokens) -> Tokens:
        values, count = tokens.values, self.tokens.shape[1]
        batch, size, width = values.shape
        lengths = tokens.mask.sum(dim=1)
        place = lengths[:, None] + torch.arange(count, device=lengths.device)
        new = self.tokens[block].to(values.dtype).expand(batch, -1, -1)
        values = torch.cat([values, values.new_zeros(batch, count, width)], dim=1)
        values = values.scatter(1, place[..., None].expand(-1, -1, width), new)
        return tokens._replace(values=values, mask=length_mask(lengths + count, size + count))

    def after(self, block: int, tokens: Tokens) -> Tokens:
        size, count = tokens.values.shape[1], self.tokens.shape[1]
        mask = length_mask(tokens.mask.sum(dim=1) - count, size - count)
        return tokens._replace(values=tokens.values[:, : size - count], mask=mask)  # not [:-0] (defect W6)


class ClsToken(SequencePatch):
    """A learned token at the front, zero at first."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, backbone.width))

    def start(self, tokens: Tokens) -> Tokens:
        return _insert(tokens, self.token, 0)._replace(special=tokens.special + 1)


class Prefix(nn.Module):
    """Keys and values, P / 2 of each, that every query of a block may attend to."""

    def __init__(self, tokens: int, backbone: Backbone):
        super().__init__()
        bound = xavier_bound(backbone)
        self.keys, self.values = (_uniform(bound, tokens // 2, backbone.width) for _ in range(2))

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Projected keys and values ``(batch, tokens, D)`` with these before them."""
        keys, values = (p.to(k.dtype).expand(len(k), -1, -1) for p in (self.keys, self.values))
        return torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)


def add_prompt(backbone: Backbone, *, kind: str = "deep_replace", tokens: int = 25) -> None:
    """Add P prompt tokens: ``shallow``, ``deep_replace``, ``deep_prepend`` or ``deep_append``.

    The first two stay among the tokens (`Hidden.prompts`) and take the place of AST's DIST; the others are gone after
    every block.
    """
    require_choice("prompt", "kind", kind, KINDS)
    require_positive("prompt", tokens=tokens)
    stay = ("prompt_shallow", "prompt_deep_replace")
    if f"prompt_{kind}" in stay and any(name in backbone.sequence for name in stay):
        raise ValueError("two methods want prompts among the tokens; leave one out")
    if f"prompt_{kind}" in backbone.sequence:
        raise ValueError(f"two methods want {kind} prompts; leave one out, or give one more tokens")
    classes = dict(zip(KINDS, (ShallowPrompt, DeepReplace, DeepPrepend, DeepAppend)))
    backbone.sequence[f"prompt_{kind}"] = classes[kind](tokens, backbone)


def add_cls_token(backbone: Backbone) -> None:
    """Put a learned class token before the tokens of the sound; pooling ``cls`` reads it."""
    if backbone.front.special:
        raise ValueError(f"{backbone.name} has a class token of its own; leave cls_token out")
    if "cls_token" in backbone.sequence:
        raise ValueError("cls_token is given twice; leave one out")
    others = dict(backbone.sequence.items())
    backbone.sequence.clear()
    backbone.sequence["cls_token"] = ClsToken(backbone)  # the first, so that prompts stand behind it
    backbone.sequence.update(others)


def add_prefix(backbone: Backbone, *, tokens: int = 24, blocks: Sequence[int] | None = None) -> None:
    """Prefix-tuning: P / 2 keys and P / 2 values before those of the tokens, in every block."""
    require_positive("prefix", tokens=tokens)
    if tokens % 2:
        raise ValueError(f"tokens of prefix must be even, half of them keys and half values, not {tokens}")
    for _, block in chosen_blocks(backbone, blocks):
        if block.attn.prefix is not None:
            raise ValueError("prefix is given twice; leave one out")
        block.attn.prefix = Prefix(tokens, backbone)
