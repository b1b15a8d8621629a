"""Fusion of layers: features of chosen layers of a frozen network, lined up in time and joined (Niizumi et al., 2022).

Layers are counted from 0 everywhere, in VGGish as positions in its flat sequence (see `vggish`); what the paper counts
from 1 appears in the names of presets alone (defect F7). Spec section 4.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .cnn14 import CNN14, load_cnn14
from .cnn14 import WHERE as CNN14_WHERE
from .frames import POOLINGS, padded, pool_frames
from .vggish import WHERE as VGGISH_WHERE
from .vggish import VGGish, load_vggish

CONVOLUTIONAL: dict[str, tuple[type, Any, str]] = {
    "vggish": (VGGish, load_vggish, VGGISH_WHERE),
    "cnn14": (CNN14, load_cnn14, CNN14_WHERE),
}


class Preset(NamedTuple):
    """A fused model: its title, network, and layers counted from 0."""

    title: str
    network: str
    layers: tuple[int, ...]


PRESETS = {
    "vggish_10_15": Preset("VGGish-Fusion", "vggish", (9, 14)),
    "cnn14_3_6": Preset("CNN14-Fusion", "cnn14", (2, 5)),
    "ast_5_12": Preset("AST-Fusion", "ast", (4, 11)),
    "whisper_1_3": Preset("Whisper-Fusion", "nano.en", (0, 2)),
}
"""The paper's fused models by the labels it gives them, which count from 1 (defect F7), and one in their manner: the
pair of layers that did best on the validation parts of four tasks (recipes/fusion/nano.toml)."""


class Fusion(nn.Module):
    """A frozen network whose chosen layers are joined to one representation.

    Order and duplicates among ``layers`` do not matter: layers are joined in the network's order.

    Parameters
    ----------
    network : `VGGish`, `CNN14` or `tokens.TokenNetwork`
    layers : which of ``network.layers``, from 0
    pooling : from frames to a clip, ``mean`` or ``mean_plus_max`` (summed elementwise); by default the network's:
        ``mean_plus_max`` of maps, ``mean`` of a transformer's tokens

    Attributes
    ----------
    width : of the representation, computed from the layers (defect F3)
    frame_seconds : time between frames, None where there is one frame a clip

    Raises
    ------
    ValueError
        If there is no such layer or pooling.

    Examples
    --------
    >>> model = load_fusion("VGGish-Fusion", weights="random")
    >>> log_mel = torch.rand(2, 1, 96, 64)
    >>> model(log_mel).shape, model.encode_frames(log_mel).shape
    (torch.Size([2, 8192]), torch.Size([2, 8192, 6]))
    """

    def __init__(self, network: Any, layers: Iterable[int], pooling: str | None = None):
        super().__init__()
        self.network = network
        self.layers = tuple(sorted(set(layers)))
        if not self.layers:
            raise ValueError("choose at least one layer")
        if unknown := [layer for layer in self.layers if layer not in network.layers]:
            there = ", ".join(map(str, network.layers))
            raise ValueError(f"{network.name} has no layer {unknown[0]}; counted from 0, it has {there}")
        self.pooling = pooling or network.pooling
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be {' or '.join(POOLINGS)}, not {pooling!r}")
        if self.pooling != "mean" and network.frame_seconds is None:
            raise ValueError(f"{network.name} has no frames to take the maximum of; its pooling is 'mean'")
        self.name, self.sample_rate, self.frame_seconds = network.name, network.sample_rate, network.frame_seconds
        self.widths = tuple(network.layer_width(layer) for layer in self.layers)
        self.width = sum(self.widths)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Fusion:
        """Stay in evaluation mode: the network is frozen, its BatchNorm and dropout with it."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """`encode_clip`."""
        return self.encode_clip(x, lengths)

    @torch.no_grad()
    def encode_frames(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Frames ``(batch, width, frames)`` in order of time.

        Parameters
        ----------
        x : log-mel ``(batch, 1, frames, 64)`` for VGGish and CNN14, or float32 samples ``(batch, samples)``
        lengths : samples of each that are real, ``(batch,)``; all by default. Zeros stand where one has no more frames.
        """
        if x.ndim == 4:
            return torch.cat(self.network.layer_frames(x.to(self.device), self.layers), dim=1)
        return padded(self.encode_each(_unpadded(x, lengths)))

    @torch.no_grad()
    def encode_clip(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One vector ``(batch, width)`` of each clip; parameters as of `encode_frames`."""
        if x.ndim == 4:
            return pool_frames(self.encode_frames(x), self.pooling)
        return torch.cat(self.encode_layers(_unpadded(x, lengths)), dim=1)

    @torch.no_grad()
    def encode_layers(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """One vector of each clip by each layer, ``(batch, layer width)``; joined, they are `encode_clip`'s.

        So the clip-level fusion of any layers follows from one pass over all of them.
        """
        found = [[pool_frames(frames, self.pooling) for frames in one] for one in self._hear(waveforms)]
        return [torch.stack(layer) for layer in zip(*found)]

    @torch.no_grad()
    def encode_each(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Frames ``(width, frames)`` of each recording ``(samples,)``."""
        return [torch.cat(layers) for layers in self._hear(waveforms)]

    def _hear(self, waveforms: Sequence[Tensor]) -> list[list[Tensor]]:
        return self.network.hear([waveform.to(self.device) for waveform in waveforms], self.layers)


def _unpadded(x: Tensor, lengths: Tensor | None) -> list[Tensor]:
    if x.ndim != 2:
        raise ValueError(f"give samples (batch, samples) or log-mel (batch, 1, frames, 64), not {tuple(x.shape)}")
    return list(x) if lengths is None else [row[: int(n)] for row, n in zip(x, lengths)]


def load_fusion(
    name: str,
    layers: Iterable[int] | str | None = None,
    weights: str | os.PathLike[str] | None = None,
    pooling: str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Fusion:
    """A fused model by the name of its network, or by a preset's.

    Parameters
    ----------
    name : ``vggish``, ``cnn14``, a preset (``VGGish-Fusion`` or ``vggish_10_15`` …), or what
        `backbones.load_backbone` knows: a Whisper, ``ast``, a speech model
    layers : from 0, or ``"all"``; by default a preset's for its network, and for other transformers the blocks at
        AST-Fusion's depth (a third of the way, and the last); `lineareval` finds the best for tasks of one's own
    weights : a file (of VGGish or CNN14 in their published layouts; for others what `load_backbone` takes), or
        ``"random"`` for a network of that size that has learned nothing
    pooling : see `Fusion`
    device : CUDA if there is any, else the CPU
    seed : of random weights

    Raises
    ------
    ValueError
        If there is no such network or layer, the weights are others', or VGGish or CNN14 is given none.
    FileNotFoundError, RuntimeError
        If the weights are not there, or cannot be read.
    """
    preset = PRESETS.get(name) or next((p for p in PRESETS.values() if p.title.lower() == name.lower()), None)
    if preset is not None:
        if layers is not None and tuple(layers) != preset.layers:
            raise ValueError(
                f"{name} fuses layers {preset.layers}; to choose others, name the network: {preset.network}"
            )
        name, layers = preset.network, preset.layers
    network = load_network(name, weights, seed)
    if layers is None:
        known = next((p.layers for p in PRESETS.values() if p.network == name), None)
        layers = known or (len(network.layers) // 3, network.layers[-1])
    chosen = network.layers if isinstance(layers, str) and layers == "all" else layers
    if isinstance(chosen, str):
        raise ValueError(f"layers are numbers or 'all', not {layers!r}")
    return Fusion(network, chosen, pooling).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_network(name: str, weights: str | os.PathLike[str] | None = None, seed: int = 0) -> Any:
    """A network that `Fusion` takes; see `load_fusion`."""
    if name in CONVOLUTIONAL:
        kind, load, where = CONVOLUTIONAL[name]
        if weights is None:
            raise ValueError(f"{name} needs the file of its weights, published at {where}; or weights='random'")
        network = randomise(kind(), seed) if weights == "random" else load(weights)
        return network.requires_grad_(False).eval()
    from ..adapt.backbones import load_backbone, random_backbone
    from ..adapt.configs import RANDOM_NAMES
    from .tokens import TokenNetwork

    if weights != "random":
        return TokenNetwork(load_backbone(name if weights is None else os.fspath(weights), "cpu"))
    sizes = next((known for known in (name, f"whisper-{name}") if known in RANDOM_NAMES), None)
    if sizes is None:
        return TokenNetwork(randomise(load_backbone(name, "cpu"), seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TokenNetwork(random_backbone(sizes))


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> Any:
    """Give every layer the weights that PyTorch starts it with, the same for the same seed; returns the module.

    Tables that no layer made (positions, special tokens) keep their values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in module.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
    return module


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers by name, shape and value: what embeddings depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
