"""VGGish (Hershey et al., ICASSP 2017) seen through its layers: plain PyTorch, reading the published weights.

Layers are numbered as positions in the flat sequence of convolutions, ReLUs and pools followed by the fully connected
stack; only the outputs of ReLUs mean anything: 1, 4, 7, 9, 12, 14, 17, 19, 21 (spec section 4.1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .conv_weights import fill, read_state
from .frames import flat_frames, in_time
from .frontends import EXAMPLE_FRAMES, HOP, N_MELS, SAMPLE_RATE, vggish_examples

CHANNELS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool")
ALIGN = {1: 16, 4: 8, 7: 4, 9: 4, 12: 2, 14: 2}
"""Convolutional layers by position of their ReLU, and how many of their columns make a frame."""
DENSE_LAYERS = (17, 19, 21)
AT_ONCE = 64  # examples that pass together
STRIDE = 16  # mel frames per frame of the last pool, to which every map is aligned
WHERE = "https://github.com/harritaylor/torchvggish/releases (vggish-10086976.pth)"


class VGGish(nn.Module):
    """Six convolutions and three fully connected layers over 0.96 s of log-mel.

    Parameters are named as in the port by H. Taylor (``features.0.weight`` …, ``embeddings.0.weight`` …).

    Attributes
    ----------
    name, sample_rate, layers : ``vggish``, 16000, and the numbers of the nine ReLUs
    frame_seconds : time between frames of `layer_frames`, 0.16 s
    """

    name = "vggish"
    sample_rate = SAMPLE_RATE
    layers = (*ALIGN, *DENSE_LAYERS)
    frame_seconds = STRIDE * HOP / SAMPLE_RATE
    pooling = "mean_plus_max"

    def __init__(self) -> None:
        super().__init__()
        stack: list[nn.Module] = []
        width = 1
        for step in CHANNELS:
            if isinstance(step, int):
                stack += [nn.Conv2d(width, step, 3, padding=1), nn.ReLU()]
                width = step
            else:
                stack.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*stack)
        rows, columns = EXAMPLE_FRAMES // STRIDE, N_MELS // STRIDE
        self.embeddings = nn.Sequential(
            *(nn.Linear(width * rows * columns, 4096), nn.ReLU()),
            *(nn.Linear(4096, 4096), nn.ReLU()),
            *(nn.Linear(4096, 128), nn.ReLU()),
        )

    def layer_width(self, layer: int) -> int:
        """Width of a layer's frames: channels times frequencies of a map, or units of a fully connected layer."""
        return 128 if layer == 21 else 4096

    def maps(self, x: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of the chosen ReLUs of log-mel ``(batch, 1, frames, 64)``.

        Maps are ``(batch, channels, frames / s, 64 / s)`` with ``s`` = 1, 2, 4 or 8 by layer; fully connected layers
        are ``(batch, units)`` and need 96 frames. Nothing past the deepest chosen layer is computed (defect F2).
        """
        chosen: dict[int, Tensor] = {}
        modules = list(self.features)
        for index, module in enumerate(modules[: max(layers) + 1]):
            x = module(x)
            if index in layers:
                chosen[index] = x
        if max(layers) < len(modules):
            return chosen
        if x.shape[2:] != (EXAMPLE_FRAMES // STRIDE, N_MELS // STRIDE):
            raise ValueError(f"the fully connected layers of VGGish need {EXAMPLE_FRAMES} frames of {N_MELS} bands")
        x = x.permute(0, 2, 3, 1).flatten(1)  # the published weights expect channels last
        for index, module in enumerate(self.embeddings, len(modules)):
            if index > max(layers):
                break
            x = module(x)
            if index in layers:
                chosen[index] = x
        return chosen

    def layer_frames(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Frames ``(batch, layer width, frames // 16)`` of each chosen layer of log-mel ``(batch, 1, frames, 64)``.

        Maps are flattened with their channels outermost and max-pooled to the last pool's rate; a fully connected
        layer repeats its one vector in every frame of that rate, however many there are (defect F2).
        """
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[3] != N_MELS or x.shape[2] < STRIDE:
            raise ValueError(
                f"VGGish needs log-mel (batch, 1, {STRIDE} frames or more, {N_MELS}), not {tuple(x.shape)}"
            )
        chosen, count = self.maps(x, layers), x.shape[2] // STRIDE
        return [
            flat_frames(chosen[i], ALIGN[i]) if i in ALIGN else _repeated(chosen[i], count) for i in sorted(set(layers))
        ]

    def hear(self, waveforms: Sequence[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        """For each recording ``(samples,)``, the frames ``(layer width, frames)`` of each chosen layer.

        All examples of all recordings pass together; the frames of a recording are those of its examples one after
        the other, in true time order (defect F1).
        """
        examples = [vggish_examples(waveform) for waveform in waveforms]
        counts = [len(e) for e in examples]
        found = [self.layer_frames(some, layers) for some in torch.cat(examples).split(AT_ONCE)]
        per_layer = [[in_time(part) for part in torch.cat(frames).split(counts)] for frames in zip(*found)]
        return [list(one) for one in zip(*per_layer)]


def _repeated(vectors: Tensor, count: int) -> Tensor:
    return vectors[:, :, None].expand(-1, -1, count)


def load_vggish(path: str | os.PathLike[str]) -> VGGish:
    """VGGish with weights in the layout of H. Taylor's port or of the one by "tcvrick" (``fc.*`` for ``embeddings.*``).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RuntimeError
        If it cannot be read as tensors.
    ValueError
        If the tensors are not VGGish's.
    """
    model = VGGish()
    tensors = {
        f"embeddings.{name[3:]}" if name.startswith("fc.") else name: tensor
        for name, tensor in read_state(path, "VGGish", WHERE).items()
        if not name.startswith("pproc.")  # the PCA that AudioSet's own embeddings went through
    }
    return fill(model, tensors, path, "VGGish", WHERE)
