"""Checks of methods' options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from ..backbones import Backbone
from ..backbones.blocks import Block


def check_positive(method: str, **options: float) -> None:
    """Raise ValueError if one of these numbers is not above 0."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name} of {method} must be above 0, not {value!r}; to do without, leave the method out")


def check_choice(method: str, option: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError, with the choices, if a value is none of them."""
    if value not in choices:
        raise ValueError(f"{option} of {method} must be one of {', '.join(choices)}, not {value!r}")


def bottleneck_dim(method: str, width: int, dim: int | None, reduction: float | None) -> int:
    """Return the bottleneck's width b: `dim`, or round(width / reduction); exactly one of the two must be given."""
    if (dim is None) == (reduction is None):
        raise ValueError(f"{method} needs dim, the width of the bottleneck, or reduction (dim = width / reduction)")
    if reduction is not None:
        check_positive(method, reduction=reduction)
        dim = round(width / reduction)
    assert dim is not None
    check_positive(method, dim=dim)
    return dim


def select_blocks(backbone: Backbone, blocks: Sequence[int] | None = None) -> Iterator[tuple[int, Block]]:
    """Yield index (from 0) and block of the chosen blocks, by default all; ValueError if one does not exist."""
    for i in range(backbone.layers) if blocks is None else sorted(set(blocks)):
        if not 0 <= i < backbone.layers:
            raise ValueError(f"{backbone.name} has blocks 0 to {backbone.layers - 1}, not {i}")
        yield i, cast(Block, backbone.blocks[i])
