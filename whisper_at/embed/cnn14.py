"""CNN14 of PANNs (Kong et al., TASLP 2020), for 16 kHz, seen through its six blocks; reads the published weights.

Blocks are numbered from 0 here; the papers count them from 1 (defect F7). Spec section 4.2.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv_weights import fill, read_state
from .frames import flat_frames
from .frontends import HOP, N_FFT, N_MELS, SAMPLE_RATE, cnn14_log_mel, slaney_filters

CHANNELS = (64, 128, 256, 512, 1024, 2048)
STRIDE = 32  # mel frames per frame of the last two blocks, to which every map is aligned (defect F4)
PIECE = 2048  # mel frames of a long recording that pass at once
CONTEXT = 128  # mel frames on each side: the twelve convolutions reach 2 * (1 + 2 + 4 + 8 + 16 + 32) = 126
AT_ONCE = 8192  # mel frames that pass together
CLASSES = 527
WHERE = "https://zenodo.org/record/3987831 (Cnn14_16k_mAP=0.438.pth)"
FRONT_END = ("spectrogram_extractor.", "logmel_extractor.")


class _Block(nn.Module):
    """Two 3 x 3 convolutions, each with BatchNorm and ReLU, then an average over ``pool`` x ``pool``."""

    def __init__(self, inputs: int, outputs: int, pool: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pool = pool

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = _hide(F.relu_(self.bn1(self.conv1(x))), lengths)
        x = F.relu_(self.bn2(self.conv2(x)))
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool)
            lengths = None if lengths is None else lengths // self.pool
        return _hide(x, lengths), lengths


class CNN14(nn.Module):
    """Six blocks of convolutions over a log-mel of any length.

    Parameters are named as PANNs' own (``bn0.*``, ``conv_block1.conv1.weight`` …, ``fc1.*``, ``fc_audioset.*``).

    Attributes
    ----------
    name, sample_rate, layers : ``cnn14``, 16000, and blocks 0 … 5
    frame_seconds : time between frames of `layer_frames`, 0.32 s
    """

    name = "cnn14"
    sample_rate = SAMPLE_RATE
    layers = tuple(range(len(CHANNELS)))
    frame_seconds = STRIDE * HOP / SAMPLE_RATE
    pooling = "mean_plus_max"

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(N_MELS)
        for i, (inputs, outputs) in enumerate(zip((1, *CHANNELS), CHANNELS), 1):
            setattr(self, f"conv_block{i}", _Block(inputs, outputs, pool=2 if i < len(CHANNELS) else 1))
        self.fc1 = nn.Linear(CHANNELS[-1], CHANNELS[-1])
        self.fc_audioset = nn.Linear(CHANNELS[-1], CLASSES)

    @property
    def blocks(self) -> list[_Block]:
        """The six blocks in order."""
        return [getattr(self, f"conv_block{i}") for i in range(1, len(CHANNELS) + 1)]

    def layer_width(self, layer: int) -> int:
        """Width of a block's frames: channels times frequencies, 2048 for blocks 0 to 4 and 4096 for block 5."""
        return CHANNELS[layer] * (N_MELS // 2 ** min(layer + 1, 5))

    def maps(self, x: Tensor, layers: Sequence[int], lengths: Tensor | None = None) -> dict[int, Tensor]:
        """Maps ``(batch, channels, frames // s, 64 // s)`` of the chosen blocks of log-mel ``(batch, 1, frames, 64)``.

        With ``lengths`` ``(batch,)``, the frames of each that are real; the others are without effect on the real
        ones, as if each spectrogram ended there. Nothing past the deepest chosen block is computed.
        """
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        x = _hide(x, lengths)
        chosen: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks[: max(layers) + 1]):
            x, lengths = block(x, lengths)
            if index in layers:
                chosen[index] = x
        return chosen

    def layer_frames(self, x: Tensor, layers: Sequence[int], lengths: Tensor | None = None) -> list[Tensor]:
        """Frames ``(batch, layer width, frames // 32)`` of each chosen block of log-mel ``(batch, 1, frames, 64)``.

        Maps are flattened with their channels outermost and max-pooled in time to the rate of the last block,
        whichever blocks are chosen (defect F4). As many frames as the longest has; see `maps` for ``lengths``.
        """
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[3] != N_MELS or x.shape[2] < STRIDE:
            raise ValueError(f"CNN14 needs log-mel (batch, 1, {STRIDE} frames or more, {N_MELS}), not {tuple(x.shape)}")
        chosen = self.maps(x, layers, lengths)
        # every block halves the frames and drops an odd one: nested floors, so runs are 2 ** (4 - index) long
        return [flat_frames(chosen[i], 2 ** max(0, 4 - i)) for i in sorted(set(layers))]

    def published_embedding(self, x: Tensor) -> Tensor:
        """What fusion is compared with, ``(batch, 2048)``: mean over frequency, mean + max over time, ``fc1``, ReLU."""
        last = self.maps(x, self.layers[-1:])[self.layers[-1]].mean(dim=3)
        return F.relu(self.fc1(last.mean(dim=2) + last.amax(dim=2)))

    def tagged(self, x: Tensor) -> Tensor:
        """Logits ``(batch, 527)`` of AudioSet's classes."""
        return self.fc_audioset(self.published_embedding(x))

    def hear(self, waveforms: Sequence[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        """For each recording ``(samples,)``, the frames ``(layer width, frames)`` of each chosen block.

        Recordings of different lengths pass together; long ones pass in pieces that overlap by what the convolutions
        reach, with the result of one pass. One shorter than a frame (0.31 s) is followed by silence.
        """
        least = (STRIDE - 1) * HOP
        mels = [cnn14_log_mel(F.pad(w, (0, max(0, least - len(w))))) for w in waveforms]
        pieces = [piece for i, mel in enumerate(mels) for piece in _pieces(i, len(mel))]
        parts: list[dict[int, list[Tensor]]] = [{} for _ in mels]
        for batch in _batches(pieces):
            cut = [mels[owner][start:end] for owner, start, end, _, _ in batch]
            lengths = torch.tensor([len(c) for c in cut], device=cut[0].device)
            x = nn.utils.rnn.pad_sequence(cut, batch_first=True)[:, None]
            same = bool((lengths == lengths[0]).all())
            found = self.layer_frames(x, layers, None if same else lengths)
            for row, (owner, start, _, drop, count) in enumerate(batch):
                parts[owner][start] = [frames[row, :, drop : drop + count] for frames in found]
        return [[torch.cat(layer, dim=1) for layer in zip(*(one[start] for start in sorted(one)))] for one in parts]


Piece = tuple[int, int, int, int, int]
"""Owner, first and last mel frame, and of the frames that come out: how many to drop in front, and to keep."""


def _pieces(owner: int, n_frames: int) -> list[Piece]:
    total, step = n_frames // STRIDE, PIECE // STRIDE
    out = []
    for first in range(0, total, step):
        start = max(0, first * STRIDE - CONTEXT)
        end = min(n_frames, (first + step) * STRIDE + CONTEXT)
        out.append((owner, start, end, first - start // STRIDE, min(step, total - first)))
    return out


def _batches(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces in groups of like length whose padded sum is bounded."""
    out: list[list[Piece]] = []
    longest = 0
    for piece in sorted(pieces, key=lambda p: p[2] - p[1]):
        longest = piece[2] - piece[1]
        if not out or longest * (len(out[-1]) + 1) > AT_ONCE:
            out.append([])
        out[-1].append(piece)
    return out


def _hide(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Put zeros, which convolutions also find past an end, behind the first ``lengths`` frames."""
    if lengths is None:
        return x
    real = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
    return x * real[:, None, :, None]


def load_cnn14(path: str | os.PathLike[str]) -> CNN14:
    """CNN14 with the published weights for 16 kHz, or a file of ours.

    The transform and filter bank that published files carry are compared with ours, then left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RuntimeError
        If it cannot be read as tensors.
    ValueError
        If the tensors are not CNN14's, or are those for another sample rate.
    """
    tensors = read_state(path, "CNN14", WHERE)
    filters = tensors.get("logmel_extractor.melW")
    expected = slaney_filters()
    if filters is not None:
        if tuple(filters.shape) != expected.shape:
            rate = {513: "32 kHz", 129: "8 kHz"}.get(filters.shape[0], "another sample rate")
            raise ValueError(f"{path} is CNN14 for {rate}: its filter bank is {tuple(filters.shape)}; take {WHERE}")
        if not np.allclose(filters.numpy(), expected, atol=1e-5):
            raise ValueError(f"{path} has another filter bank than CNN14 for 16 kHz; take {WHERE}")
    transform = tensors.get("spectrogram_extractor.stft.conv_real.weight")
    if transform is not None and tuple(transform.shape) != (N_FFT // 2 + 1, 1, N_FFT):
        raise ValueError(f"{path} has a transform of {tuple(transform.shape)}, not of CNN14 for 16 kHz; take {WHERE}")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(FRONT_END)}
    return fill(CNN14(), kept, path, "CNN14", WHERE)
