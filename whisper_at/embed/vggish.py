"""VGGish (Hershey et al., ICASSP 2017) and its layers: plain PyTorch that reads the published weights.

A layer's number is its position in the flat sequence of convolutions, ReLUs and pools followed by the fully connected
stack. Only the outputs of ReLUs can be read: 1, 4, 7, 9, 12, 14, 17, 19, 21 (spec section 4.1).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .conv_weights import load_weights, read_state_dict
from .frames import concat_examples, flatten_maps
from .frontends import EXAMPLE_FRAMES, HOP_LENGTH, N_MELS, SAMPLE_RATE, vggish_examples
from .network import LayeredNetwork

ARCHITECTURE = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M")  # channels of convolutions; M is a max-pool
POOL_SIZES = {1: 16, 4: 8, 7: 4, 9: 4, 12: 2, 14: 2}
"""Columns of the map that make one frame, by convolutional layer."""
FC_LAYERS = (17, 19, 21)
FRAME_STRIDE = 16  # mel frames per frame
MAX_BATCH_EXAMPLES = 64
WEIGHTS_URL = "https://github.com/harritaylor/torchvggish/releases (vggish-10086976.pth)"


class VGGish(LayeredNetwork):
    """Six convolutions and three fully connected layers over examples of 0.96 s.

    Parameters are named as in torchvggish (``features.0.weight`` …, ``embeddings.0.weight`` …).

    Examples
    --------
    >>> model = VGGish()
    >>> [frames.shape for frames in model.layer_frames(torch.rand(2, 1, 96, 64), [9, 21])]
    [torch.Size([2, 4096, 6]), torch.Size([2, 128, 6])]
    """

    name = "vggish"
    sample_rate = SAMPLE_RATE
    layers = (*POOL_SIZES, *FC_LAYERS)
    frame_seconds = FRAME_STRIDE * HOP_LENGTH / SAMPLE_RATE
    chunk_seconds = EXAMPLE_FRAMES * HOP_LENGTH / SAMPLE_RATE
    pooling = "mean_plus_max"

    def __init__(self) -> None:
        super().__init__()
        convolutions: list[nn.Module] = []
        width = 1
        for item in ARCHITECTURE:
            if isinstance(item, int):
                convolutions += [nn.Conv2d(width, item, 3, padding=1), nn.ReLU()]
                width = item
            else:
                convolutions.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*convolutions)
        self.embeddings = nn.Sequential(
            nn.Linear(width * (EXAMPLE_FRAMES // FRAME_STRIDE) * (N_MELS // FRAME_STRIDE), 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, 128),
            nn.ReLU(),
        )

    def layer_width(self, layer: int) -> int:
        """Return a layer's width: channels times frequencies of a map, or units of a fully connected layer."""
        return 128 if layer == 21 else 4096

    def feature_maps(self, x: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Compute the outputs of the chosen ReLUs, and nothing past the deepest of them (defect F2).

        Parameters
        ----------
        x : Tensor, shape (batch, 1, mel_frames, 64)
            Log-mel spectrograms; the fully connected layers need exactly 96 frames.
        layers : sequence of int
            Some of ``layers``.

        Returns
        -------
        dict of int to Tensor
            By layer: maps ``(batch, channels, mel_frames / s, 64 / s)`` with ``s`` of 1, 2, 4 or 8, or the units
            ``(batch, units)`` of a fully connected layer.
        """
        outputs: dict[int, Tensor] = {}
        convolutions = list(self.features)
        for index, module in enumerate(convolutions[: max(layers) + 1]):
            x = module(x)
            if index in layers:
                outputs[index] = x
        if max(layers) < len(convolutions):
            return outputs
        if x.shape[2:] != (EXAMPLE_FRAMES // FRAME_STRIDE, N_MELS // FRAME_STRIDE):
            raise ValueError(f"the fully connected layers of VGGish need {EXAMPLE_FRAMES} frames of {N_MELS} bands")
        x = x.permute(0, 2, 3, 1).flatten(1)  # the published weights expect channels last
        for index, module in enumerate(self.embeddings, len(convolutions)):
            if index > max(layers):
                break
            x = module(x)
            if index in layers:
                outputs[index] = x
        return outputs

    def layer_frames(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return one frame for every 16 mel frames, for each chosen layer; see `LayeredNetwork.layer_frames`.

        Maps are max-pooled in time to the rate of the last pool. The one vector of a fully connected layer is repeated
        in every frame, however many there are (defect F2).
        """
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[3] != N_MELS or x.shape[2] < FRAME_STRIDE:
            raise ValueError(
                f"VGGish needs log-mel (batch, 1, {FRAME_STRIDE} frames or more, {N_MELS}), not {tuple(x.shape)}"
            )
        outputs, count = self.feature_maps(x, layers), x.shape[2] // FRAME_STRIDE
        return [
            flatten_maps(outputs[i], POOL_SIZES[i]) if i in POOL_SIZES else outputs[i][:, :, None].expand(-1, -1, count)
            for i in sorted(set(layers))
        ]

    def encode_waveforms(self, waveforms: Sequence[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        """Return the frames of recordings; see `LayeredNetwork.encode_waveforms`.

        The examples of all recordings are batched together. The frames of a recording are those of its examples, one
        after the other, in order of time (defect F1).
        """
        examples = [vggish_examples(waveform) for waveform in waveforms]
        counts = [len(e) for e in examples]
        batches = [self.layer_frames(batch, layers) for batch in torch.cat(examples).split(MAX_BATCH_EXAMPLES)]
        by_layer = [[concat_examples(part) for part in torch.cat(frames).split(counts)] for frames in zip(*batches)]
        return [list(recording) for recording in zip(*by_layer)]


def vggish_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published tensors by the names of `VGGish`, without the PCA of AudioSet's published embeddings."""
    return {
        f"embeddings.{name[3:]}" if name.startswith("fc.") else name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("pproc.")
    }


def load_vggish(path: str | os.PathLike[str]) -> VGGish:
    """Load VGGish from a file of torchvggish (harritaylor), or of tcvrick's port (``fc.*`` for ``embeddings.*``).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RuntimeError
        If it cannot be read as tensors.
    ValueError
        If the tensors are not VGGish's.
    """
    tensors = vggish_tensors(read_state_dict(path, "VGGish", WEIGHTS_URL))
    return load_weights(VGGish(), tensors, path, "VGGish", WEIGHTS_URL)
