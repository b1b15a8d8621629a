"""Transformers seen through their layers: outputs of chosen blocks under the model's final norm (spec section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapt.backbones import Backbone

PIECE_SECONDS = 30.0
AST_SECONDS = 10.24  # 1024 frames: what AST's positions were trained for
LEAST_SECONDS = 0.2
AT_ONCE = 480.0  # seconds of audio that pass together


class TokenNetwork(nn.Module):
    """A transformer backbone as a network of layers that `Fusion` can choose among.

    A frame of AST is the mean of its two special tokens, one for every 10.24 s; speech models have a frame every 20 ms.
    Longer recordings pass in consecutive pieces (of 30 s for speech models); ones under 0.2 s get silence behind.

    Attributes
    ----------
    name, sample_rate : the backbone's
    layers : its blocks, from 0
    frame_seconds : time between frames, None for AST
    """

    pooling = "mean"

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self.name, self.sample_rate = backbone.name, backbone.sample_rate
        self.layers = tuple(range(backbone.layers))
        self.frame_seconds = None if backbone.frame_rate is None else 1 / backbone.frame_rate
        self.piece_seconds = AST_SECONDS if backbone.frame_rate is None else PIECE_SECONDS

    def layer_width(self, layer: int) -> int:
        """Width of the transformer."""
        return self.backbone.width

    def layer_frames(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Refused: a transformer takes samples, since its masks follow from their lengths."""
        raise ValueError(f"{self.name} takes waveforms (batch, samples), not {tuple(x.shape)}")

    def hear(self, waveforms: Sequence[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        """For each recording ``(samples,)``, the frames ``(width, frames)`` of each chosen block."""
        size, least = round(self.piece_seconds * self.sample_rate), round(LEAST_SECONDS * self.sample_rate)
        pieces = [
            (owner, F.pad(piece, (0, max(0, least - len(piece)))))
            for owner, waveform in enumerate(waveforms)
            for piece in _pieces(waveform, size, least)
        ]
        parts: list[list[list[Tensor]]] = [[] for _ in waveforms]
        each = max(1, int(AT_ONCE / self.piece_seconds))
        for first in range(0, len(pieces), each):
            batch = pieces[first : first + each]
            for (owner, _), frames in zip(batch, self._frames([piece for _, piece in batch], layers)):
                parts[owner].append(frames)
        return [[torch.cat(layer, dim=1) for layer in zip(*one)] for one in parts]

    def _frames(self, pieces: list[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        lengths = torch.tensor([len(piece) for piece in pieces], device=pieces[0].device)
        hidden = self.backbone(nn.utils.rnn.pad_sequence(pieces, batch_first=True), lengths)
        found = []
        for layer in sorted(set(layers)):
            state = hidden.states[layer + 1]
            if self.backbone.norm is not None and layer + 1 < self.backbone.layers:  # the last has been through it
                state = self.backbone.norm(state)
            found.append(state.float())
        if hidden.special:
            return [[state[i, : hidden.special].mean(0)[:, None] for state in found] for i in range(len(pieces))]
        return [[state[i, hidden.mask[i]].T for state in found] for i in range(len(pieces))]


def _pieces(waveform: Tensor, size: int, least: int) -> list[Tensor]:
    """Consecutive pieces of ``size`` samples; a last one of less than ``least`` beside others is dropped."""
    pieces = list(waveform.split(size))
    return pieces[:-1] if len(pieces) > 1 and len(pieces[-1]) < least else pieces
