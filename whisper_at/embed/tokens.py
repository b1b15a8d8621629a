"""Transformers and their layers: outputs of chosen blocks under the model's final norm (spec section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapt.backbones import Backbone
from .network import LayeredNetwork

CHUNK_SECONDS = 30.0
AST_CHUNK_SECONDS = 10.24  # 1024 frames: what AST's positions were trained for
MIN_SECONDS = 0.2
MAX_BATCH_SECONDS = 480.0


class TransformerNetwork(LayeredNetwork):
    """A transformer backbone as a network of layers; they are its blocks, counted from 0.

    Speech models have a frame every 20 ms. AST has one every 10.24 s, the mean of its two special tokens. Longer
    recordings are read in consecutive chunks (of 30 s for speech models); ones under 0.2 s are padded with silence.

    Parameters
    ----------
    backbone : Backbone
        From `whisper_at.adapt.load_backbone`.
    """

    pooling = "mean"

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self.name, self.sample_rate = backbone.name, backbone.sample_rate
        self.layers = tuple(range(backbone.layers))
        self.frame_seconds = None if backbone.frame_rate is None else 1 / backbone.frame_rate
        self.chunk_seconds = AST_CHUNK_SECONDS if backbone.frame_rate is None else CHUNK_SECONDS

    def layer_width(self, layer: int) -> int:
        """Return the width of the transformer."""
        return self.backbone.width

    def layer_frames(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Raise ValueError: a transformer reads waveforms, since its masks follow from their lengths."""
        raise ValueError(f"{self.name} takes waveforms (batch, samples), not {tuple(x.shape)}")

    def encode_waveforms(self, waveforms: Sequence[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        """Return the frames of recordings; see `LayeredNetwork.encode_waveforms`."""
        size, min_size = round(self.chunk_seconds * self.sample_rate), round(MIN_SECONDS * self.sample_rate)
        chunks = [
            (recording, F.pad(chunk, (0, max(0, min_size - len(chunk)))))
            for recording, waveform in enumerate(waveforms)
            for chunk in _split_chunks(waveform, size, min_size)
        ]
        parts: list[list[list[Tensor]]] = [[] for _ in waveforms]
        batch_size = max(1, int(MAX_BATCH_SECONDS / self.chunk_seconds))
        for first in range(0, len(chunks), batch_size):
            batch = chunks[first : first + batch_size]
            for (recording, _), frames in zip(batch, self._chunk_frames([chunk for _, chunk in batch], layers)):
                parts[recording].append(frames)
        return [[torch.cat(layer, dim=1) for layer in zip(*part)] for part in parts]

    def _chunk_frames(self, chunks: list[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        """Return the frames (width, frames) of each chosen block, for each chunk (samples,)."""
        lengths = torch.tensor([len(chunk) for chunk in chunks], device=chunks[0].device)
        hidden = self.backbone(nn.utils.rnn.pad_sequence(chunks, batch_first=True), lengths)
        states = []
        for layer in sorted(set(layers)):
            state = hidden.states[layer + 1]
            if self.backbone.norm is not None and layer + 1 < self.backbone.layers:  # the last state is normed already
                state = self.backbone.norm(state)
            states.append(state.float())
        if hidden.special:
            return [[state[i, : hidden.special].mean(0)[:, None] for state in states] for i in range(len(chunks))]
        return [[state[i, hidden.mask[i]].T for state in states] for i in range(len(chunks))]


def _split_chunks(waveform: Tensor, size: int, min_size: int) -> list[Tensor]:
    """Split into consecutive chunks of ``size`` samples; a last one of less than ``min_size`` is dropped."""
    chunks = list(waveform.split(size))
    return chunks[:-1] if len(chunks) > 1 and len(chunks[-1]) < min_size else chunks
