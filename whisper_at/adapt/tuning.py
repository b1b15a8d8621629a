"""Methods that train parameters which the encoder has already, and what all methods share.

Nothing that another model shares is touched: a parameter is copied before it is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch import nn

from .backbones import Backbone
from .blocks import Block

NORMS = ("attn", "ffn", "final")
"""The LayerNorms of an encoder: LN1 and LN2 of every block, and the one after the last block."""


# --- what methods share -------------------------------------------------------------------------------------


def chosen_blocks(backbone: Backbone, blocks: Sequence[int] | None) -> Iterator[tuple[int, Block]]:
    """Index and block of those chosen, counted from 0; of all for None. ValueError if one does not exist."""
    for i in range(backbone.layers) if blocks is None else sorted(set(blocks)):
        if not 0 <= i < backbone.layers:
            raise ValueError(f"{backbone.name} has blocks 0 to {backbone.layers - 1}, not {i}")
        yield i, cast(Block, backbone.blocks[i])


def require_positive(method: str, **values: float) -> None:
    """Raise ValueError if one of these numbers is not above 0."""
    for key, value in values.items():
        if not value > 0:
            raise ValueError(f"{key} of {method} must be above 0, not {value!r}; to do without, leave the method out")


def require_choice(method: str, key: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError, naming the choices, if this is none of them."""
    if value not in choices:
        raise ValueError(f"{key} of {method} must be one of {', '.join(choices)}, not {value!r}")


def bottleneck_width(method: str, width: int, dim: int | None, reduction: float | None) -> int:
    """b, given as such or as round(D / reduction), of which exactly one is set."""
    if (dim is None) == (reduction is None):
        raise ValueError(f"{method} needs dim, the width of the bottleneck, or reduction (dim = width / reduction)")
    if dim is None:
        assert reduction is not None
        require_positive(method, reduction=reduction)
        dim = round(width / reduction)
    require_positive(method, dim=dim)
    return dim


# --- methods ------------------------------------------------------------------------------------------------


def train_parameter(module: nn.Module, name: str) -> None:
    """Let a pretrained parameter train, on a copy of its own."""
    parameter = module._parameters[name]
    if parameter is not None and not parameter.requires_grad:
        module._parameters[name] = nn.Parameter(parameter.detach().clone())


def train_all(module: nn.Module) -> None:
    """Let every parameter below a module train."""
    for part in module.modules():
        for name in list(part._parameters):
            train_parameter(part, name)


def linear_probe(backbone: Backbone, *, final_norm: bool = True) -> None:
    """Train the encoder's final LayerNorm, if it has one and ``final_norm`` is set; all else is the head's."""
    if final_norm and backbone.norm is not None:
        layer_norm(backbone, sites=["final"])


def full(backbone: Backbone) -> None:
    """Train everything."""
    train_all(backbone)


def last_k(backbone: Backbone, *, k: int = 3) -> None:
    """Train the last k blocks, and the final norm if there is one."""
    require_positive("last_k", k=k)
    for _, block in chosen_blocks(backbone, range(backbone.layers - k, backbone.layers)):
        train_all(block)
    if backbone.norm is not None:
        train_all(backbone.norm)


def bitfit(backbone: Backbone) -> None:
    """Train the biases of every linear map and LayerNorm of the blocks, and of the final norm (11 D a block of AST)."""
    for root in [backbone.blocks, *([] if backbone.norm is None else [backbone.norm])]:
        for module in root.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                train_parameter(module, "bias")


def layer_norm(backbone: Backbone, *, sites: Sequence[str] | None = None, blocks: Sequence[int] | None = None) -> None:
    """Train LayerNorms: of ``attn`` (LN1), ``ffn`` (LN2) and ``final``; by default all that there are."""
    if sites is None:
        sites = NORMS if backbone.norm is not None else NORMS[:2]
    for site in sites:
        require_choice("layer_norm", "site", site, NORMS)
    if "final" in sites and backbone.norm is None:
        raise ValueError(f"{backbone.name} has no final norm, for its blocks end in one; leave out the site 'final'")
    chosen = {
        f"blocks.{i}.norm{n}" for i, _ in chosen_blocks(backbone, blocks) for n in (1, 2) if NORMS[n - 1] in sites
    }
    chosen |= {"norm"} if "final" in sites else set()
    for path in chosen:
        module = backbone.get_submodule(path)
        for name in ("weight", "bias"):
            parameter = module._parameters[name]
            if parameter is not None and not parameter.requires_grad:
                train_parameter(module, name)
                backbone.declared_norms.add(f"{path}.{name}")
