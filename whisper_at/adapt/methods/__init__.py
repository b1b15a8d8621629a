"""Adapt a frozen backbone: freeze first, add methods second, initialise after the weights are loaded.

A method is a mapping of ``name`` and options, so that a configuration file can hold it::

    adapt(backbone, {"name": "lora", "sites": ["q", "v"], "rank": 12, "alpha": 8})

All but prompts, prefixes and the class token leave the output as it is until they are trained.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ...data.validation import coerce
from ..backbones import Backbone
from .adapters import add_adapter, add_post_ffn, add_scaled_parallel
from .lora import add_lora
from .lora import merge as merge
from .lora import unmerge as unmerge
from .lora import unmerged as unmerged
from .moa import add_dense_moa, add_soft_moa
from .options import select_blocks
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
"""Every method by name; its keyword arguments are its options."""

NORM_METHODS = ("layer_norm", "linear_probe")
"""Methods that only train LayerNorms."""


def method_tables(method: Any) -> list[dict[str, Any]]:
    """Return one or several methods as tables with a ``name``; ValueError if one is neither a name nor a table."""
    several = method if isinstance(method, Sequence) and not isinstance(method, str) else [method]
    tables = [{"name": one} if isinstance(one, str) else one for one in several]
    for table in tables:
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise ValueError(f'a method is a name or a table with one, {{name = "lora", rank = 8}}; not {table!r}')
    return [dict(table) for table in tables]


def adapt(backbone: Backbone, methods: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
    """Freeze a backbone and add methods to it; ``backbone(waveforms, lengths)`` then gives adapted states.

    Parameters that methods add or unfreeze require a gradient; all others do not. `backbone.methods` keeps the methods,
    complete with defaults. The option ``blocks`` chooses blocks, counted from 0; None is all of them.

    ``linear_probe``    final_norm=True. Only the final LayerNorm trains, if there is one
    ``full``            everything trains
    ``last_k``          k=3. The last k blocks and the final norm train
    ``bitfit``          biases of linear layers and norms of all blocks, and of the final norm, train
    ``layer_norm``      sites=None, blocks. LayerNorms train: of ``attn``, ``ffn``, ``final``; None is all
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
    backbone : Backbone
        As loaded; it is changed in place.
    methods : mapping or sequence of mappings
        One method, with ``name`` and options, or several, which are combined.

    Raises
    ------
    ValueError
        If a method or option does not exist, has an impossible value, or does not go with this backbone or with another
        method. The backbone is then frozen and plain.
    RuntimeError
        If the backbone is adapted already.

    Examples
    --------
    WhisPAr on the Whisper that the package contains:

    >>> from whisper_at.adapt import adapt, load_backbone
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
            f"{backbone.name} is adapted already, with {names}; load it again, and give all methods at once"
        )
    complete = [_with_defaults(method) for method in ([methods] if isinstance(methods, Mapping) else methods)]
    device = next(backbone.parameters()).device
    backbone.requires_grad_(False)
    try:
        # LayerNorms come last, so that those which another method trains count as its own.
        for name, options in sorted(complete, key=lambda method: method[0] in NORM_METHODS):
            METHODS[name](backbone, **options)
    except (ValueError, TypeError) as error:
        remove_methods(backbone)
        raise ValueError(f"{backbone.name} cannot be adapted: {error}") from None
    backbone.methods = [{"name": name, **options} for name, options in complete]
    backbone.to(device).train(backbone.training)


def _with_defaults(method: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and options of a method, checked and complete with defaults; ValueError if one is wrong."""
    options = dict(method)
    name = options.pop("name", None)
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}; one of {', '.join(METHODS)}")
    parameters = inspect.signature(METHODS[name]).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items() if key != "backbone"}
    if unknown := sorted(options.keys() - defaults.keys()):
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has {', '.join(defaults) or 'none'}")
    hints = typing.get_type_hints(METHODS[name])
    options = {key: coerce(value, hints[key], f"{key} of {name}") for key, value in options.items()}
    if empty := [key for key, value in options.items() if value == []]:
        raise ValueError(
            f"{name} needs at least one {empty[0].removesuffix('s')}; leave {empty[0]} out for the default"
        )
    options = {key: options.get(key, default) for key, default in defaults.items()}
    return name, {key: list(value) if isinstance(value, (tuple, list)) else value for key, value in options.items()}


def remove_methods(backbone: Backbone) -> None:
    """Remove what methods have added, and freeze the rest as it is."""
    backbone.methods = []
    backbone.sequence.clear()
    backbone.tuned_norms.clear()
    for _, block in select_blocks(backbone):
        block.remove_patches()
    backbone.requires_grad_(False)


def count_parameters(backbone: Backbone, head: nn.Module | None = None) -> dict[str, int]:
    """Count parameters in the three ways of the papers (spec section 5, rule 4).

    Returns
    -------
    dict of str to int
        ``patch``, the parameters that train in the backbone, without LayerNorms that only ``layer_norm`` or
        ``linear_probe`` trains; ``patch_and_norms``, with those; ``trainable``, with those of the head that train; and
        ``frozen``, the rest of backbone and head.
    """
    trained = {name: p.numel() for name, p in backbone.named_parameters() if p.requires_grad}
    in_backbone = sum(trained.values())
    head_parameters = [] if head is None else list(head.parameters())
    trainable = in_backbone + sum(p.numel() for p in head_parameters if p.requires_grad)
    return {
        "patch": sum(size for name, size in trained.items() if name not in backbone.tuned_norms),
        "patch_and_norms": in_backbone,
        "trainable": trainable,
        "frozen": sum(p.numel() for p in [*backbone.parameters(), *head_parameters]) - trainable,
    }
