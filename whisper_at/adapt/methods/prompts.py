"""Methods that add tokens: prompts, a class token, and prefixes of keys and values.

Prompts are those of visual prompt tuning (Jia et al., ECCV 2022, arXiv 2203.12119) and of spec sections 1.2 (shallow,
deep_replace), 2.3 (deep_prepend) and 3.1 (deep_append, class token). The prefix is that of Li and Liang (ACL 2021,
arXiv 2101.00190) and of section 1.2. New tokens have no position. They stand next to a clip's own tokens, before any
padding, so a padded clip gives what it gives alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..backbones import Backbone, TokenPatch, Tokens
from ..backbones.frontends import length_mask
from .options import check_choice, check_positive, select_blocks


def _insert(tokens: Tokens, new: Tensor, position: int) -> Tokens:
    """Insert tokens ``(P, D)`` at a position, the same in every clip; prompts behind it move."""
    values, mask = tokens.values, tokens.mask
    new = new.to(values.dtype).expand(len(values), -1, -1)
    values = torch.cat([values[:, :position], new, values[:, position:]], dim=1)
    real = torch.ones(new.shape[:2], dtype=torch.bool, device=mask.device)
    mask = torch.cat([mask[:, :position], real, mask[:, position:]], dim=1)
    behind = tokens.prompts is not None and tokens.prompts.start >= position
    return tokens._replace(values=values, mask=mask, prompts=_shift(tokens.prompts, new.shape[1] if behind else 0))


def _shift(prompts: slice | None, by: int) -> slice | None:
    return None if prompts is None else slice(prompts.start + by, prompts.stop + by)


def _drop_distillation_token(tokens: Tokens) -> Tokens:
    """Remove AST's second special token, which the prompts replace."""
    if tokens.special < 2:
        return tokens
    values, mask = (torch.cat([t[:, :1], t[:, tokens.special :]], dim=1) for t in (tokens.values, tokens.mask))
    return tokens._replace(values=values, mask=mask, special=1)


def _insert_prompts(tokens: Tokens, prompts: Tensor) -> Tokens:
    """Insert prompts ``(P, D)`` that stay among the tokens, behind the first special token."""
    tokens = _drop_distillation_token(tokens)
    start = tokens.special
    return _insert(tokens, prompts, start)._replace(prompts=slice(start, start + len(prompts)))


def _uniform(bound: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def xavier_bound(backbone: Backbone) -> float:
    """Return Glorot's bound for the layer that makes the backbone's own tokens: sqrt(6 / (inputs + D))."""
    return math.sqrt(6 / (backbone.front.fan_in + backbone.width))


class ShallowPrompt(TokenPatch):
    """P tokens, inserted once behind the first special token and carried to the end; AST's DIST is left out."""

    def __init__(self, tokens: int, backbone: Backbone):
        super().__init__()
        self.tokens = _uniform(xavier_bound(backbone), tokens, backbone.width)

    def prepare(self, tokens: Tokens) -> Tokens:
        """Insert the prompts."""
        return _insert_prompts(tokens, self.tokens)


class DeepReplacePrompt(TokenPatch):
    """Like `ShallowPrompt`, but every block after the first has its own P tokens in their place."""

    def __init__(self, tokens: int, backbone: Backbone):
        super().__init__()
        self.tokens = _uniform(xavier_bound(backbone), backbone.layers, tokens, backbone.width)

    def prepare(self, tokens: Tokens) -> Tokens:
        """Insert the first block's prompts."""
        return _insert_prompts(tokens, self.tokens[0])

    def before_block(self, index: int, tokens: Tokens) -> Tokens:
        """Replace the previous block's prompts."""
        assert tokens.prompts is not None
        if index == 0:
            return tokens
        start, end = tokens.prompts.start, tokens.prompts.stop
        new = self.tokens[index].to(tokens.values.dtype).expand(len(tokens.values), -1, -1)
        return tokens._replace(values=torch.cat([tokens.values[:, :start], new, tokens.values[:, end:]], dim=1))


class DeepPrependPrompt(TokenPatch):
    """P tokens of its own at the start of every block's input, which are cut off its output."""

    def __init__(self, tokens: int, backbone: Backbone):
        super().__init__()
        bound = math.sqrt(6 / ((tokens + 1) * backbone.width))  # Glorot's for the tensor (1, P, D)
        self.tokens = _uniform(bound, backbone.layers, tokens, backbone.width)

    def before_block(self, index: int, tokens: Tokens) -> Tokens:
        """Insert the block's prompts."""
        return _insert(tokens, self.tokens[index], 0)

    def after_block(self, index: int, tokens: Tokens) -> Tokens:
        """Cut the prompts off."""
        count = self.tokens.shape[1]
        prompts = _shift(tokens.prompts, -count)
        return tokens._replace(values=tokens.values[:, count:], mask=tokens.mask[:, count:], prompts=prompts)


class DeepAppendPrompt(TokenPatch):
    """P tokens of its own, initially zero, behind the last real token of every block's input; cut off its output."""

    def __init__(self, tokens: int, backbone: Backbone):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(backbone.layers, tokens, backbone.width))

    def before_block(self, index: int, tokens: Tokens) -> Tokens:
        """Insert the block's prompts between the clip and its padding."""
        values, count = tokens.values, self.tokens.shape[1]
        batch, size, width = values.shape
        lengths = tokens.mask.sum(dim=1)
        position = lengths[:, None] + torch.arange(count, device=lengths.device)
        new = self.tokens[index].to(values.dtype).expand(batch, -1, -1)
        values = torch.cat([values, values.new_zeros(batch, count, width)], dim=1)
        values = values.scatter(1, position[..., None].expand(-1, -1, width), new)
        return tokens._replace(values=values, mask=length_mask(lengths + count, size + count))

    def after_block(self, index: int, tokens: Tokens) -> Tokens:
        """Cut off as many tokens as were inserted."""
        size, count = tokens.values.shape[1], self.tokens.shape[1]
        mask = length_mask(tokens.mask.sum(dim=1) - count, size - count)
        return tokens._replace(values=tokens.values[:, : size - count], mask=mask)  # not [:-0] (defect W6)


class ClsToken(TokenPatch):
    """A learned token at the front, initially zero."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, backbone.width))

    def prepare(self, tokens: Tokens) -> Tokens:
        """Insert the token."""
        return _insert(tokens, self.token, 0)._replace(special=tokens.special + 1)


class Prefix(nn.Module):
    """Keys and values, P / 2 of each, that every query of a block may attend to."""

    def __init__(self, tokens: int, backbone: Backbone):
        super().__init__()
        bound = xavier_bound(backbone)
        self.keys, self.values = (_uniform(bound, tokens // 2, backbone.width) for _ in range(2))

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the prefix before projected keys and values ``(batch, tokens, D)``."""
        keys, values = (p.to(k.dtype).expand(len(k), -1, -1) for p in (self.keys, self.values))
        return torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)


PROMPTS: dict[str, Callable[[int, Backbone], TokenPatch]] = {
    "shallow": ShallowPrompt,
    "deep_replace": DeepReplacePrompt,
    "deep_prepend": DeepPrependPrompt,
    "deep_append": DeepAppendPrompt,
}


def add_prompt(backbone: Backbone, *, kind: str = "deep_replace", tokens: int = 25) -> None:
    """Add P prompt tokens: ``shallow``, ``deep_replace``, ``deep_prepend`` or ``deep_append``.

    The first two stay among the tokens (`Hidden.prompts`) and replace AST's DIST (spec section 1.2); the others are cut
    off after every block (sections 2.3 and 3.1).
    """
    check_choice("prompt", "kind", kind, tuple(PROMPTS))
    check_positive("prompt", tokens=tokens)
    staying = ("prompt_shallow", "prompt_deep_replace")
    if f"prompt_{kind}" in staying and any(name in backbone.sequence for name in staying):
        raise ValueError("two methods add prompts that stay among the tokens; leave one out")
    if f"prompt_{kind}" in backbone.sequence:
        raise ValueError(f"two methods add {kind} prompts; leave one out, or give one more tokens")
    backbone.sequence[f"prompt_{kind}"] = PROMPTS[kind](tokens, backbone)


def add_cls_token(backbone: Backbone) -> None:
    """Put a learned class token before the tokens of the sound, for pooling ``cls`` (WhisPAr, spec section 3.1)."""
    if backbone.front.special:
        raise ValueError(f"{backbone.name} has a class token of its own; leave cls_token out")
    if "cls_token" in backbone.sequence:
        raise ValueError("cls_token is given twice; leave one out")
    others = dict(backbone.sequence.items())
    backbone.sequence.clear()
    backbone.sequence["cls_token"] = ClsToken(backbone)  # the first, so that prompts stand behind it
    backbone.sequence.update(others)


def add_prefix(backbone: Backbone, *, tokens: int = 24, blocks: Sequence[int] | None = None) -> None:
    """Put P / 2 learned keys and values before those of the tokens in every block (spec section 1.2)."""
    check_positive("prefix", tokens=tokens)
    if tokens % 2:
        raise ValueError(f"tokens of prefix must be even, half of them keys and half values, not {tokens}")
    for _, block in select_blocks(backbone, blocks):
        if block.attn.prefix is not None:
            raise ValueError("prefix is given twice; leave one out")
        block.attn.prefix = Prefix(tokens, backbone)
