"""Methods that train parameters of the pretrained encoder: all, the last blocks, biases, or LayerNorms.

Spec section 1.2. Other models may share the weights, so a parameter is copied before it trains.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..backbones import Backbone
from .options import check_choice, check_positive, select_blocks

NORMS = ("attn", "ffn", "final")
"""The LayerNorms of an encoder: LN1 and LN2 of every block, and the one after the last block."""


def linear_probe(backbone: Backbone, *, final_norm: bool = True) -> None:
    """Train the encoder's final LayerNorm, if it has one and `final_norm` is True; the rest is the head's.

    PETL_AST's ``linear``, spec section 1.2.
    """
    if final_norm and backbone.norm is not None:
        layer_norm(backbone, sites=["final"])


def full(backbone: Backbone) -> None:
    """Train everything: full fine-tuning, spec section 1.2."""
    unfreeze(backbone)


def last_k(backbone: Backbone, *, k: int = 3) -> None:
    """Train the last k blocks, and the final norm if there is one, as PETL_AST does for wav2vec 2.0 (section 1.2)."""
    check_positive("last_k", k=k)
    for _, block in select_blocks(backbone, range(backbone.layers - k, backbone.layers)):
        unfreeze(block)
    if backbone.norm is not None:
        unfreeze(backbone.norm)


def bitfit(backbone: Backbone) -> None:
    """Train the biases of all linear layers and LayerNorms of the blocks, and of the final norm.

    BitFit (Ben Zaken et al., ACL 2022, arXiv 2106.10199); spec section 1.2.
    """
    for root in [backbone.blocks, *([] if backbone.norm is None else [backbone.norm])]:
        for module in root.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                unfreeze_parameter(module, "bias")


def layer_norm(backbone: Backbone, *, sites: Sequence[str] | None = None, blocks: Sequence[int] | None = None) -> None:
    """Train LayerNorms: of ``attn`` (LN1), ``ffn`` (LN2) and ``final``; by default all that there are.

    Spec sections 1.2 (those beside an adapter) and 3.1 (all). It is LN tuning in peft (Zhao et al., ICLR 2024, arXiv
    2312.11420).
    """
    if sites is None:
        sites = NORMS if backbone.norm is not None else NORMS[:2]
    for site in sites:
        check_choice("layer_norm", "site", site, NORMS)
    if "final" in sites and backbone.norm is None:
        raise ValueError(f"{backbone.name} has no final norm, for its blocks end in one; leave out the site 'final'")
    norms: dict[str, nn.Module | None] = {}
    for i, block in select_blocks(backbone, blocks):
        norms |= {f"blocks.{i}.norm1": block.norm1} if "attn" in sites else {}
        norms |= {f"blocks.{i}.norm2": block.norm2} if "ffn" in sites else {}
    norms |= {"norm": backbone.norm} if "final" in sites else {}
    for path, norm in norms.items():
        for name in ("weight", "bias"):
            if norm is not None and unfreeze_parameter(norm, name):
                backbone.tuned_norms.add(f"{path}.{name}")


def unfreeze(module: nn.Module) -> None:
    """Let every parameter of a module and its sub-modules train."""
    for part in module.modules():
        for name, _ in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            unfreeze_parameter(part, name)


def unfreeze_parameter(module: nn.Module, name: str) -> bool:
    """Put a copy that trains in the place of a frozen parameter; return False if there is no frozen one."""
    parameter = getattr(module, name)
    if parameter is None or parameter.requires_grad:
        return False
    setattr(module, name, nn.Parameter(parameter.detach().clone()))
    return True
