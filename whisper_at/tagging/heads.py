"""Heads: from pooled states of the frozen encoder, ``(batch, layers, steps, dim)``, to class logits.

TL-TR and its 512-wide variant are Whisper-AT's (Gong et al., Interspeech 2023), with the official
parameter names, so that released weights load; `LayerPoolHead` holds the baselines of the same paper. These
are built of openai-whisper's own attention block. `StatisticsHead` is linear, for small sets of own recordings. All
always compute in float32.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from whisper.model import ResidualAttentionBlock

from ..checkpoints.shapes import check_shapes
from .classes import ClassSet
from .labels import N_CLASSES, audioset_classes, is_audioset

DEFAULT_THRESHOLD = 0.5
"""Probability from which a class of AudioSet's counts, if a head was calibrated on too few clips of it."""
PREFIX = "at_model."
"""Prefix of the parameter names in official checkpoints."""


class Head(nn.Module):
    """What all heads have in common: they classify pooled states ``(batch, layers, steps, dim)``.

    Attributes
    ----------
    label_dim : int
        Number of outputs.
    n_layer, rep_dim : int
        Layers and width of the encoder.
    mode : str
        Architecture, by the name that training scripts use.
    classes : ClassSet, optional
        What the outputs mean; AudioSet's where there are 527, unless a file says otherwise.
    """

    needs_final_norm = False  # the states of the blocks are enough

    def __init__(self, label_dim: int, n_layer: int, rep_dim: int, mode: str) -> None:
        super().__init__()
        self.label_dim, self.n_layer, self.rep_dim, self.mode = label_dim, n_layer, rep_dim, mode
        self.classes: ClassSet | None = audioset_classes() if label_dim == N_CLASSES else None


def _linear(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out))


def _check_attention_heads(mode: str, width: int, *counts: str | None) -> None:
    for count in counts:
        if count is not None and (int(count) < 1 or width % int(count)):
            raise ValueError(f"mode {mode}: {count} attention heads do not divide the width of {width}")


def _block_mean(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Return ``block(x).mean(dim=1)``; the last product comes after the mean, which saves a third of the work."""
    x = x + block.attn(block.attn_ln(x))[0]
    wide = block.mlp[1](block.mlp[0](block.mlp_ln(x)))
    return x.mean(dim=1) + block.mlp[2](wide.mean(dim=1))


class TLTR(Head):
    """Time- and layer-wise transformer: attention over steps in each layer, then over layers.

    On pooled states: an optional projection to a smaller width; one attention block over the steps of each layer,
    shared by all layers; mean over steps; one block over the layers; mean over layers; LayerNorm and a linear map.
    There is no positional term, so any number of steps will do. Gong et al., Interspeech 2023, section 3.

    Parameters
    ----------
    label_dim : int
        Number of classes.
    n_layer, rep_dim : int
        Layers and width of the encoder; no parameter depends on the former.
    mode : str
        ``tl_tr_<time heads>_<layer heads>`` or ``tl_down_tr_<width>_<time heads>_<layer heads>``; ``lw_`` for ``tl_``
        as in training scripts.
    """

    def __init__(self, label_dim: int = N_CLASSES, *, n_layer: int, rep_dim: int, mode: str = "tl_tr_1_8"):
        super().__init__(label_dim, n_layer, rep_dim, mode)
        match = re.fullmatch(r"(?:tl|lw)_(?:down_tr_(\d+)|tr)_(\d+)_(\d+)", mode)
        if match is None:
            raise ValueError(f"not a TL-TR mode: {mode!r}; for example tl_tr_1_8 or tl_down_tr_512_1_8")
        down, time_heads, layer_heads = match.groups()
        width = int(down) if down else rep_dim
        _check_attention_heads(mode, width, time_heads, layer_heads)
        if down:
            self.down_layer = _linear(rep_dim, width)
        self.time_tr = ResidualAttentionBlock(width, int(time_heads))
        self.layer_tr = ResidualAttentionBlock(width, int(layer_heads))
        self.mlp_layer = _linear(width, label_dim)

    def forward(self, states: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of pooled states ``(batch, layers, steps, dim)``."""
        batch, layers = states.shape[:2]
        x = states.float().flatten(0, 1)
        if hasattr(self, "down_layer"):
            x = self.down_layer(x)
        x = _block_mean(self.time_tr, x).view(batch, layers, -1)
        return self.mlp_layer(_block_mean(self.layer_tr, x))


class LayerPoolHead(Head):
    """The paper's baselines: pool the layers first, then a linear map or one attention block over time.

    ``mean_*``, ``last_*`` and ``wa_*`` take the mean of the layers, the last one, or their learned
    weighted average ``sum(u * x) / sum(u)`` with ``u`` starting at ``1 / layers``; ``*_mlp`` averages
    time and classifies, ``*_tr_<heads>`` puts an attention block before that average, and
    ``*_down_tr_<width>_<heads>`` a projection before the block. Parameters are those of `TLTR`.
    """

    def __init__(self, label_dim: int = N_CLASSES, *, n_layer: int, rep_dim: int, mode: str):
        super().__init__(label_dim, n_layer, rep_dim, mode)
        match = re.fullmatch(r"(mean|last|wa)_(?:mlp|(?:down_tr_(\d+)|tr)_(\d+))", mode)
        if match is None:
            raise ValueError(f"not a baseline's mode: {mode!r}; for example mean_mlp, last_tr_8, wa_down_tr_512_8")
        self.pooling, down, heads = match.groups()
        width = int(down) if down else rep_dim
        _check_attention_heads(mode, width, heads)
        if self.pooling == "wa":
            self.layer_weight = nn.Parameter(torch.full((n_layer,), 1 / n_layer))
        if down:
            self.down_layer = _linear(rep_dim, width)
        if heads:
            self.time_tr = ResidualAttentionBlock(width, int(heads))
        self.mlp_layer = _linear(width, label_dim)

    def forward(self, states: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of pooled states ``(batch, layers, steps, dim)``."""
        x = states.float()
        if self.pooling == "mean":
            x = x.mean(dim=1)
        elif self.pooling == "last":
            x = x[:, -1]
        else:
            x = torch.einsum("blsd,l->bsd", x, self.layer_weight) / self.layer_weight.sum()
        if hasattr(self, "down_layer"):
            x = self.down_layer(x)
        if hasattr(self, "time_tr"):
            return self.mlp_layer(_block_mean(self.time_tr, x))
        return self.mlp_layer(x.mean(dim=1))


class Standardize(nn.Module):
    """Subtract a mean and divide by a standard deviation, both fixed: buffers, not parameters."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return standardised vectors ``(…, width)``."""
        return (x - self.mean) / self.std


class StatisticsHead(Head):
    """Statistics over time of every layer, each standardised, and a linear map: ``stats_mlp``.

    The mean says what sounds throughout a row, the maximum and minimum what sounds for a moment. An encoder's states
    have a few dimensions of far greater variance than the others, which a LayerNorm would follow, so each statistic is
    scaled by its standard deviation on the clips to train on. With nothing but a linear map to learn, tens of clips per
    class suffice.

    Parameters
    ----------
    label_dim : int
        Number of classes.
    n_layer, rep_dim : int
        Layers and width of the encoder.
    mode : str
        ``stats_mlp``.

    Attributes
    ----------
    inputs : int
        Number of statistics, 3 · layers · width.
    """

    STATISTICS = 3  # mean, maximum, minimum

    def __init__(self, label_dim: int = N_CLASSES, *, n_layer: int, rep_dim: int, mode: str = "stats_mlp") -> None:
        super().__init__(label_dim, n_layer, rep_dim, mode)
        if mode != "stats_mlp":
            raise ValueError(f"not a mode of statistics: {mode!r}; there is stats_mlp")
        self.inputs = self.STATISTICS * n_layer * rep_dim
        linear = nn.Linear(self.inputs, label_dim)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.mlp_layer = nn.Sequential(Standardize(self.inputs), linear)

    @property
    def scale(self) -> Standardize:
        """What the statistics are standardised by."""
        return cast(Standardize, self.mlp_layer[0])

    @property
    def linear(self) -> nn.Linear:
        """From standardised statistics to logits."""
        return cast(nn.Linear, self.mlp_layer[1])

    def statistics(self, states: Tensor) -> Tensor:
        """Return what is classified, ``(batch, inputs)``, of pooled states ``(batch, layers, steps, dim)``."""
        x = states.float()
        return torch.cat([x.mean(dim=2).flatten(1), x.amax(dim=2).flatten(1), x.amin(dim=2).flatten(1)], dim=1)

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        """Measure mean and standard deviation of the statistics on the clips to train on, before training.

        Parameters
        ----------
        batches : iterable of Tensor, shape (batch, layers, steps, dim)
            Their pooled states; the number of steps may differ between batches.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for states in batches:
            x = self.statistics(states).double()  # a variance is a small difference of large sums
            count, total, squares = count + len(x), total + x.sum(0), squares + x.square().sum(0)
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        self.scale.mean.copy_(mean)
        self.scale.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))  # what never varies tells nothing

    def forward(self, states: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of pooled states ``(batch, layers, steps, dim)``."""
        logits: Tensor = self.mlp_layer(self.statistics(states))
        return logits


def classes_from_metadata(metadata: Mapping[str, str], label_dim: int) -> ClassSet | None:
    """Return what the outputs of a head mean: AudioSet's classes where its file does not say and there are 527.

    Parameters
    ----------
    metadata : mapping of str to str
        Metadata of the head's file. A head of AudioSet's classes may have a temperature, thresholds and known classes,
        too.
    label_dim : int
        Number of outputs.

    Raises
    ------
    ValueError
        If the metadata are damaged, or name another number of classes.
    """
    names = metadata.get("classes", "")
    if not names.startswith("[") and label_dim == N_CLASSES:
        names = json.dumps(audioset_classes().names)
    classes = ClassSet.from_metadata({**metadata, "classes": names})
    if classes is not None and len(classes) != label_dim:
        raise ValueError(f"this head has {label_dim} outputs, but its metadata name {len(classes)} classes")
    if classes is None or not is_audioset(classes):
        return classes
    thresholds = classes.thresholds and tuple(t if math.isfinite(t) else DEFAULT_THRESHOLD for t in classes.thresholds)
    return replace(classes, mids=audioset_classes().mids, thresholds=thresholds)


def make_head(mode: str, *, n_layer: int, rep_dim: int, label_dim: int = N_CLASSES) -> Head:
    """Return a freshly initialised head by the name of its mode.

    Raises
    ------
    ValueError
        If no head has that mode, or its head count does not divide its width.
    """
    kind: type[TLTR | LayerPoolHead | StatisticsHead]
    kind = TLTR if mode.startswith(("tl_", "lw_")) else StatisticsHead if mode.startswith("stats_") else LayerPoolHead
    return kind(label_dim, n_layer=n_layer, rep_dim=rep_dim, mode=mode)


def infer_mode(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Return the mode of a head, from its metadata or, for official files, from its parameter names and shapes.

    Raises
    ------
    ValueError
        If the parameters are not those of a head.
    """
    if metadata and "mode" in metadata:
        return metadata["mode"]
    if not {"time_tr.attn.query.weight", "layer_tr.attn.query.weight", "mlp_layer.1.weight"} <= tensors.keys():
        raise ValueError(
            f"these {len(tensors)} parameters are not a TL-TR head's (34 named {PREFIX}time_tr.*, "
            f"{PREFIX}layer_tr.*, {PREFIX}mlp_layer.*, or 38 with {PREFIX}down_layer.*)"
        )
    if "down_layer.1.weight" in tensors:
        return f"tl_down_tr_{tensors['down_layer.1.weight'].shape[0]}_1_8"
    return "tl_tr_1_8"


def encoder_width(tensors: dict[str, Tensor], mode: str, n_layer: int) -> int:
    """Return the width of the encoder that a head was made for, by the shapes of its parameters.

    Raises
    ------
    ValueError
        If the parameters are not a head's.
    """
    names = ("down_layer.0.weight", "mlp_layer.0.mean", "mlp_layer.0.weight")
    first = next((tensors[name] for name in names if name in tensors), None)
    if first is None or "mlp_layer.1.weight" not in tensors:
        raise ValueError("these parameters are not a head's: mlp_layer is missing")
    if mode.startswith("stats_"):
        return first.shape[0] // (StatisticsHead.STATISTICS * n_layer)
    return first.shape[0]


def build_head(tensors: dict[str, Tensor], metadata: dict[str, str] | None, *, n_layer: int, rep_dim: int) -> Head:
    """Return the head whose parameters these are, checked against an encoder of ``n_layer`` x ``rep_dim``.

    Sizes and mode come from the parameters themselves (spec section 1.3), what the outputs mean from the metadata.

    Raises
    ------
    ValueError
        If they are not a head's, are incomplete, or belong to an encoder of another width or depth.
    """
    mode = infer_mode(tensors, metadata)
    trained_layers = len(tensors["layer_weight"]) if "layer_weight" in tensors else None
    trained_layers = int((metadata or {}).get("n_layer", trained_layers or n_layer))
    width = encoder_width(tensors, mode, trained_layers)
    if width != rep_dim:
        raise ValueError(f"this head was made for encoders of width {width}, but this Whisper's has width {rep_dim}")
    if trained_layers != n_layer:
        raise ValueError(
            f"this head was made for encoders of {trained_layers} layers, but this Whisper's has {n_layer}"
        )
    label_dim = tensors["mlp_layer.1.weight"].shape[0]
    head = make_head(mode, n_layer=n_layer, rep_dim=rep_dim, label_dim=label_dim)
    check_shapes(tensors, head.state_dict(), f"not a {mode} head of width {rep_dim}")
    head.load_state_dict(tensors)
    head.classes = classes_from_metadata(metadata or {}, head.label_dim)
    return head.float().eval().requires_grad_(False)
