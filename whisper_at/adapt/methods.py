"""Adapt a frozen backbone: freeze first, patch second, initialise after the weights are loaded.

A method is a mapping with a ``name`` and its settings, so that a configuration file can hold it::

    adapt(backbone, {"name": "lora", "sites": ["q", "v"], "rank": 12, "alpha": 8})

All but prompts, prefixes and the class token leave the output as it is until they are trained.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from ..data.validation import coerce
from .adapters import add_adapter, add_post_ffn, add_scaled_parallel
from .backbones import Backbone
from .blocks import Block
from .lora import add_lora
from .lora import merge as merge
from .lora import unmerge as unmerge
from .moa import add_dense_moa, add_soft_moa
from .prompts import add_cls_token, add_prefix, add_prompt
from .tuning import bitfit, full, last_k, layer_norm, linear_probe

METHODS: dict[str, Callable[..., None]] = {
    "linear_probe": linear_probe,
    "full": full,
    "last_k": last_k,
    "bitfit": bitfit,
    "layer_norm": layer_norm,
    "lora": add_lora,
    "adapter": add_adapter,
    "scaled_parallel": add_scaled_parallel,
    "post_ffn": add_post_ffn,
    "dense_moa": add_dense_moa,
    "soft_moa": add_soft_moa,
    "prompt": add_prompt,
    "prefix": add_prefix,
    "cls_token": add_cls_token,
}
"""Every method by name; its keyword arguments are its settings."""

NORM_METHODS = ("layer_norm", "linear_probe")
"""Methods that only let LayerNorms train."""


def adapt(backbone: Backbone, methods: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
    """Freeze a backbone, and put methods into it; then ``backbone(waveforms, lengths)`` gives adapted states.

    What methods add, or let train of the encoder, requires a gradient; nothing else does. `backbone.methods` keeps what
    was given, complete with defaults. In each setting ``blocks`` chooses blocks, counted from 0; None is all of them.

    ``linear_probe``    final_norm=True. Only the final LayerNorm trains, if there is one
    ``full``            everything trains
    ``last_k``          k=3. The last k blocks and the final norm
    ``bitfit``          biases of the linear maps and norms of all blocks, and of the final norm
    ``layer_norm``      sites=None, blocks. LayerNorms: of ``attn``, ``ffn``, ``final``; None is all
    ``lora``            sites=("q", "v") of q k v o up down, rank=8, alpha=8, blocks
    ``adapter``         block=bottleneck|conformer|convpass, dim or reduction, layout=pfeiffer|houlsby,
                        location=ffn|attn (pfeiffer), placement=parallel|before|after, activation=gelu|relu
                        (bottleneck), kernel=31 (conformer), blocks
    ``scaled_parallel`` dim=128, scale=0.1, dropout=0.1, reads=ffn.in|stream, blocks. Beside the FFN (PEFT-SER)
    ``post_ffn``        dim=128, scale=0.1, dropout=0.1, blocks. After the FFN (PEFT-SER)
    ``dense_moa``       experts=7, dim or reduction, block as adapter, layout, location=attn|ffn, kernel, blocks
    ``soft_moa``        experts=7, slots=1, dim or reduction, normalize=False, layout, location=attn|ffn, blocks
    ``prompt``          kind=shallow|deep_replace|deep_prepend|deep_append, tokens=25
    ``prefix``          tokens=24 (even: half keys, half values), blocks
    ``cls_token``       a learned token before those of the sound

    Parameters
    ----------
    backbone : as loaded; it is changed in place
    methods : one mapping with ``name`` and settings, or several, which are combined

    Raises
    ------
    ValueError
        If a method or setting does not exist, has an impossible value, or does not go with this backbone or with
        another method. The backbone is then frozen and plain.
    RuntimeError
        If the backbone is adapted already: give all methods at once.

    Examples
    --------
    WhisPAr, on the embedded Whisper:

    >>> backbone = load_backbone("nano.en", "cpu")
    >>> adapt(backbone, [
    ...     {"name": "cls_token"},
    ...     {"name": "prompt", "kind": "deep_append", "tokens": 2},
    ...     {"name": "adapter", "dim": 16, "layout": "houlsby", "placement": "after", "activation": "relu"},
    ...     {"name": "layer_norm"},
    ... ])
    """
    if backbone.methods:
        names = [method["name"] for method in backbone.methods]
        raise RuntimeError(
            f"{backbone.name} is adapted already, with {names}; load it anew, and give all methods at once"
        )
    wanted = [_complete(method) for method in ([methods] if isinstance(methods, Mapping) else methods)]
    device = next(backbone.parameters()).device
    backbone.requires_grad_(False)
    try:
        # LayerNorms come last, so that those which another method trains count as its own.
        for name, settings in sorted(wanted, key=lambda one: one[0] in NORM_METHODS):
            METHODS[name](backbone, **settings)
    except (ValueError, TypeError) as error:
        strip(backbone)
        raise ValueError(f"{backbone.name} cannot be adapted: {error}") from None
    backbone.methods = [{"name": name, **settings} for name, settings in wanted]
    backbone.to(device).train(backbone.training)


def _complete(method: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of a method, with defaults; ValueError if there are none of that name."""
    settings = dict(method)
    name = settings.pop("name", None)
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}; one of {', '.join(METHODS)}")
    known = {key: p.default for key, p in inspect.signature(METHODS[name]).parameters.items() if key != "backbone"}
    strange = sorted(settings.keys() - known.keys())
    if strange:
        raise ValueError(f"{name} has no setting {strange[0]!r}; it has {', '.join(known) or 'none'}")
    hints = typing.get_type_hints(METHODS[name])
    settings = {key: coerce(value, hints[key], f"{key} of {name}") for key, value in settings.items()}
    if empty := [key for key, value in settings.items() if value == []]:
        raise ValueError(
            f"{name} needs at least one {empty[0].removesuffix('s')}; leave {empty[0]} out for the usual ones"
        )
    settings = {key: settings.get(key, default) for key, default in known.items()}
    return name, {key: list(value) if isinstance(value, (tuple, list)) else value for key, value in settings.items()}


def strip(backbone: Backbone) -> None:
    """Take everything out again that methods have added, and freeze the rest as it is."""
    backbone.methods = []
    backbone.sequence.clear()
    backbone.declared_norms.clear()
    for block in backbone.blocks:
        block = cast(Block, block)
        block.patches.clear()
        block._places.clear()
        block.attn.lora.clear()
        block.ffn.lora.clear()
        block.attn.prefix = None
    backbone.requires_grad_(False)


def count_parameters(backbone: Backbone, head: nn.Module | None = None) -> dict[str, int]:
    """How many parameters there are, in the three counts that papers give (spec section 5, rule 4).

    Returns
    -------
    ``patch``           what methods train in the backbone, without LayerNorms that only ``layer_norm`` or
                        ``linear_probe`` lets train
    ``patch_and_norms`` those as well
    ``trainable``       and what trains of the head
    ``frozen``          the rest of backbone and head
    """
    trained = {name: p.numel() for name, p in backbone.named_parameters() if p.requires_grad}
    every = list(backbone.parameters()) + ([] if head is None else list(head.parameters()))
    of_head = 0 if head is None else sum(p.numel() for p in head.parameters() if p.requires_grad)
    inside = sum(trained.values())
    return {
        "patch": sum(size for name, size in trained.items() if name not in backbone.declared_norms),
        "patch_and_norms": inside,
        "trainable": inside + of_head,
        "frozen": sum(p.numel() for p in every) - inside - of_head,
    }
