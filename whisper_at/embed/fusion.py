"""Layer fusion: features of chosen layers of a frozen network, aligned in time and concatenated (Niizumi et al., 2022).

Layers are counted from 0 everywhere, in VGGish as positions in its flat sequence (see `vggish`). The paper's numbers,
which count from 1, appear only in the names of presets (defect F7). Spec section 4.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .cnn14 import CNN14, load_cnn14
from .cnn14 import WEIGHTS_URL as CNN14_WEIGHTS_URL
from .frames import POOLINGS, pad_frames, pool_frames
from .network import LayeredNetwork
from .vggish import WEIGHTS_URL as VGGISH_WEIGHTS_URL
from .vggish import VGGish, load_vggish

Module = TypeVar("Module", bound=nn.Module)

CNNS: dict[str, tuple[type[LayeredNetwork], Callable[[Any], LayeredNetwork], str]] = {
    "vggish": (VGGish, load_vggish, VGGISH_WEIGHTS_URL),
    "cnn14": (CNN14, load_cnn14, CNN14_WEIGHTS_URL),
}
"""Class, loader and URL of the weights of convolutional networks."""

COMPUTE_TYPES = ("float32", "bfloat16", "float16")


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
"""The paper's fused models by its labels for them, which count layers from 1 (defect F7), and Whisper-Fusion: the pair
of layers with the best validation score over four tasks (recipes/fusion/nano.toml)."""


class Fusion(nn.Module):
    """A frozen network whose chosen layers are concatenated to one representation.

    Parameters
    ----------
    network : LayeredNetwork
        `VGGish`, `CNN14` or `tokens.TransformerNetwork`.
    layers : iterable of int
        Some of ``network.layers``. They are concatenated in the network's order; order and duplicates do not matter.
    pooling : {"mean", "mean_plus_max"}, optional
        Pooling from frames to a clip (``mean_plus_max`` is the elementwise sum). By default ``mean_plus_max`` for
        convolutional networks and ``mean`` for transformers.
    compute_type : {"float32", "bfloat16", "float16"}
        Precision of the network's products; what it returns is float32.

    Attributes
    ----------
    width : int
        Width of the representation, computed from the layers (defect F3).
    frame_seconds : float or None
        Time between frames; None if there is one frame per clip.

    Raises
    ------
    ValueError
        If there is no such layer, pooling or precision.

    Examples
    --------
    >>> model = load_fusion("VGGish-Fusion", weights="random")
    >>> log_mel = torch.rand(2, 1, 96, 64)
    >>> model(log_mel).shape, model.encode_frames(log_mel).shape
    (torch.Size([2, 8192]), torch.Size([2, 8192, 6]))
    """

    def __init__(
        self,
        network: LayeredNetwork,
        layers: Iterable[int],
        pooling: str | None = None,
        compute_type: str = "float32",
    ):
        super().__init__()
        if compute_type not in COMPUTE_TYPES:
            raise ValueError(f"embeddings are computed in {', '.join(COMPUTE_TYPES)}, not {compute_type}")
        self.compute_type = compute_type
        self.network = network
        self.layers = tuple(sorted(set(layers)))
        if not self.layers:
            raise ValueError("choose at least one layer")
        if unknown := [layer for layer in self.layers if layer not in network.layers]:
            known = ", ".join(map(str, network.layers))
            raise ValueError(f"{network.name} has no layer {unknown[0]}; counted from 0, it has {known}")
        self.pooling = pooling or network.pooling
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be {' or '.join(POOLINGS)}, not {pooling!r}")
        if self.pooling != "mean" and network.frame_seconds is None:
            raise ValueError(f"{network.name} has one frame per clip and so no maximum; its pooling is 'mean'")
        self.name, self.sample_rate, self.frame_seconds = network.name, network.sample_rate, network.frame_seconds
        self.width = sum(network.layer_width(layer) for layer in self.layers)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Fusion:
        """Stay in evaluation mode: the network is frozen, its BatchNorm and dropout with it."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.parameters()).device

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return `encode_clip`."""
        return self.encode_clip(x, lengths)

    @torch.no_grad()
    def encode_frames(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the frames of a batch, in order of time.

        Parameters
        ----------
        x : Tensor, shape (batch, samples) or (batch, 1, mel_frames, 64)
            Waveforms at ``sample_rate``, or for VGGish and CNN14 log-mel spectrograms.
        lengths : Tensor, shape (batch,), optional
            Samples of each waveform that are not padding; all by default.

        Returns
        -------
        Tensor, shape (batch, width, frames)
            Frames, with zeros where a shorter clip has no more of them.
        """
        if x.ndim == 4:
            with self._autocast():
                layers = self.network.layer_frames(x.to(self.device), self.layers)
            return torch.cat([layer.float() for layer in layers], dim=1)
        return pad_frames(self.encode_waveforms(_without_padding(x, lengths)))

    @torch.no_grad()
    def encode_clip(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return one vector per clip, shape (batch, width); parameters as of `encode_frames`."""
        if x.ndim == 4:
            return pool_frames(self.encode_frames(x), self.pooling)
        return torch.cat(self.encode_layers(_without_padding(x, lengths)), dim=1)

    @torch.no_grad()
    def encode_layers(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Return one vector per clip for each layer, shape (batch, layer_width).

        Concatenated, they are `encode_clip`'s; so one pass over all layers gives the clip-level fusion of any of them.
        """
        pooled = [[pool_frames(frames, self.pooling) for frames in clip] for clip in self._layer_frames(waveforms)]
        return [torch.stack(layer) for layer in zip(*pooled)]

    @torch.no_grad()
    def encode_waveforms(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Return the frames, shape (width, frames), of each recording, shape (samples,), of any lengths."""
        return [torch.cat(layers) for layers in self._layer_frames(waveforms)]

    def _layer_frames(self, waveforms: Sequence[Tensor]) -> list[list[Tensor]]:
        with self._autocast():
            encoded = self.network.encode_waveforms([waveform.to(self.device) for waveform in waveforms], self.layers)
        return [[layer.float() for layer in clip] for clip in encoded]

    def _autocast(self) -> torch.autocast:
        dtype: torch.dtype = getattr(torch, self.compute_type)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)


def _without_padding(x: Tensor, lengths: Tensor | None) -> list[Tensor]:
    if x.ndim != 2:
        raise ValueError(f"give waveforms (batch, samples) or log-mel (batch, 1, frames, 64), not {tuple(x.shape)}")
    return list(x) if lengths is None else [row[: int(n)] for row, n in zip(x, lengths)]


def load_fusion(
    name: str,
    layers: Iterable[int] | str | None = None,
    weights: str | os.PathLike[str] | None = None,
    pooling: str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    compute_type: str = "float32",
) -> Fusion:
    """Load a fused model by the name of its network, or by a preset's.

    Parameters
    ----------
    name : str
        ``vggish``, ``cnn14``, a preset (``VGGish-Fusion`` or ``vggish_10_15`` …), or a name that
        `whisper_at.adapt.load_backbone` knows: a Whisper, ``ast``, a speech model.
    layers : iterable of int or "all", optional
        Layers, from 0. By default those of the preset for this network; for other Whispers the block a third of the
        way, which finds like sounds best (docs/embeddings.md), and for other transformers the blocks at AST-Fusion's
        depth (a third of the way, and the last). ``whisper-at lineareval`` finds the best for your tasks.
    weights : str or path, optional
        A file (of VGGish or CNN14 in their published layouts; for others what `load_backbone` takes), or ``"random"``
        for an untrained network of that size.
    pooling : str, optional
        See `Fusion`.
    device : str or torch.device, optional
        CUDA if there is any, else the CPU.
    seed : int
        Seed of random weights.
    compute_type : str
        See `Fusion`.

    Returns
    -------
    Fusion
        The model, frozen.

    Raises
    ------
    ValueError
        If there is no such network or layer, the weights are another network's, or VGGish or CNN14 is given none.
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
        third = len(network.layers) // 3
        is_whisper = getattr(getattr(network, "backbone", None), "family", None) == "whisper"
        layers = known or ((third,) if is_whisper else (third, network.layers[-1]))
    chosen = network.layers if isinstance(layers, str) and layers == "all" else layers
    if isinstance(chosen, str):
        raise ValueError(f"layers are numbers or 'all', not {layers!r}")
    return Fusion(network, chosen, pooling, compute_type).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_network(name: str, weights: str | os.PathLike[str] | None = None, seed: int = 0) -> LayeredNetwork:
    """Load a network for `Fusion`; see `load_fusion`."""
    if name in CNNS:
        network_class, load, url = CNNS[name]
        if weights is None:
            raise ValueError(f"{name} needs the file of its weights, published at {url}; or weights='random'")
        network = reset_weights(network_class(), seed) if weights == "random" else load(weights)
        return network.requires_grad_(False).eval()
    from ..adapt.backbones import load_backbone, random_backbone
    from ..adapt.backbones.configs import CONFIG_NAMES
    from .tokens import TransformerNetwork

    if weights != "random":
        return TransformerNetwork(load_backbone(name if weights is None else os.fspath(weights), "cpu"))
    sizes = next((known for known in (name, f"whisper-{name}") if known in CONFIG_NAMES), None)
    if sizes is None:
        return TransformerNetwork(reset_weights(load_backbone(name, "cpu"), seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TransformerNetwork(random_backbone(sizes))


@torch.no_grad()
def reset_weights(module: Module, seed: int = 0) -> Module:
    """Reinitialise every layer as PyTorch does, the same for the same seed; return the module.

    Parameters outside of such layers (positions, special tokens) keep their values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for submodule in module.modules():
            if callable(reset := getattr(submodule, "reset_parameters", None)):
                reset()
    return module


def weights_sha256(module: nn.Module) -> str:
    """Compute the SHA-256 of a network's parameters and buffers: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
