"""CNN14 of PANNs (Kong et al., TASLP 2020) for 16 kHz, and its six blocks; reads the published weights.

Blocks are numbered from 0; the papers count them from 1 (defect F7). Spec section 4.2.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv_weights import load_weights, read_state_dict
from .frames import flatten_maps
from .frontends import HOP_LENGTH, N_FFT, N_MELS, SAMPLE_RATE, cnn14_log_mel, slaney_mel_filters
from .network import LayeredNetwork

CHANNELS = (64, 128, 256, 512, 1024, 2048)
FRAME_STRIDE = 32  # mel frames per frame: the rate of the last two blocks, to which all are aligned (defect F4)
CHUNK_FRAMES = 2048  # mel frames of a long recording that are read in one pass
CONTEXT_FRAMES = 128  # mel frames added on each side; the twelve convolutions reach 2 * (1+2+4+8+16+32) = 126
MAX_BATCH_FRAMES = 8192  # mel frames in a batch
NUM_CLASSES = 527
WEIGHTS_URL = "https://zenodo.org/record/3987831 (Cnn14_16k_mAP=0.438.pth)"
FRONT_END_PREFIXES = ("spectrogram_extractor.", "logmel_extractor.")


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions, each with BatchNorm and ReLU, then an average over ``pool_size`` x ``pool_size``."""

    def __init__(self, in_channels: int, out_channels: int, pool_size: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.pool_size = pool_size

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the block's maps, and the lengths after its pooling."""
        x = _zero_padding(F.relu_(self.bn1(self.conv1(x))), lengths)
        x = F.relu_(self.bn2(self.conv2(x)))
        if self.pool_size > 1:
            x = F.avg_pool2d(x, self.pool_size)
            lengths = None if lengths is None else lengths // self.pool_size
        return _zero_padding(x, lengths), lengths


class CNN14(LayeredNetwork):
    """Six blocks of convolutions over a log-mel spectrogram of any length.

    Parameters are named as in PANNs (``bn0.*``, ``conv_block1.conv1.weight`` …, ``fc1.*``, ``fc_audioset.*``).

    Examples
    --------
    >>> model = CNN14().eval()
    >>> [frames.shape for frames in model.layer_frames(torch.rand(1, 1, 154, 64), [2, 5])]
    [torch.Size([1, 2048, 4]), torch.Size([1, 4096, 4])]
    """

    name = "cnn14"
    sample_rate = SAMPLE_RATE
    layers = tuple(range(len(CHANNELS)))
    frame_seconds = FRAME_STRIDE * HOP_LENGTH / SAMPLE_RATE
    chunk_seconds = CHUNK_FRAMES * HOP_LENGTH / SAMPLE_RATE
    pooling = "mean_plus_max"

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(N_MELS)
        for i, (inputs, outputs) in enumerate(zip((1, *CHANNELS), CHANNELS), 1):
            setattr(self, f"conv_block{i}", ConvBlock(inputs, outputs, pool_size=2 if i < len(CHANNELS) else 1))
        self.fc1 = nn.Linear(CHANNELS[-1], CHANNELS[-1])
        self.fc_audioset = nn.Linear(CHANNELS[-1], NUM_CLASSES)

    @property
    def blocks(self) -> list[ConvBlock]:
        """The six blocks in order."""
        return [getattr(self, f"conv_block{i}") for i in range(1, len(CHANNELS) + 1)]

    def layer_width(self, layer: int) -> int:
        """Return a block's width, channels times frequencies: 2048 for blocks 0 to 4 and 4096 for block 5."""
        return CHANNELS[layer] * (N_MELS // 2 ** min(layer + 1, 5))

    def feature_maps(self, x: Tensor, layers: Sequence[int], lengths: Tensor | None = None) -> dict[int, Tensor]:
        """Compute the maps of the chosen blocks, and nothing past the deepest of them.

        Parameters
        ----------
        x : Tensor, shape (batch, 1, mel_frames, 64)
            Log-mel spectrograms.
        layers : sequence of int
            Blocks, from 0.
        lengths : Tensor, shape (batch,), optional
            Mel frames of each spectrogram that are not padding. Maps are then as if each spectrogram ended there.

        Returns
        -------
        dict of int to Tensor, shape (batch, channels, mel_frames // s, 64 // s)
            Maps by block.
        """
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        x = _zero_padding(x, lengths)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks[: max(layers) + 1]):
            x, lengths = block(x, lengths)
            if index in layers:
                outputs[index] = x
        return outputs

    def layer_frames(self, x: Tensor, layers: Sequence[int], lengths: Tensor | None = None) -> list[Tensor]:
        """Return one frame for every 32 mel frames, for each chosen block; see `LayeredNetwork.layer_frames`.

        Maps are max-pooled in time to the rate of the last block, whichever blocks are chosen (defect F4).
        ``lengths`` are those of `feature_maps`.
        """
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[3] != N_MELS or x.shape[2] < FRAME_STRIDE:
            raise ValueError(
                f"CNN14 needs log-mel (batch, 1, {FRAME_STRIDE} frames or more, {N_MELS}), not {tuple(x.shape)}"
            )
        maps = self.feature_maps(x, layers, lengths)
        # a block halves the frames and drops an odd one, so 2 ** (4 - block) columns make a frame for any length
        return [flatten_maps(maps[i], 2 ** max(0, 4 - i)) for i in sorted(set(layers))]

    def embedding(self, x: Tensor) -> Tensor:
        """Compute PANNs' embedding (batch, 2048) of log-mel spectrograms (batch, 1, mel_frames, 64).

        Mean over frequency, mean + maximum over time, ``fc1`` and a ReLU: what layer fusion is compared with.
        """
        last = self.feature_maps(x, self.layers[-1:])[self.layers[-1]].mean(dim=3)
        return F.relu(self.fc1(last.mean(dim=2) + last.amax(dim=2)))

    def clipwise_logits(self, x: Tensor) -> Tensor:
        """Compute logits (batch, 527) of AudioSet's classes for log-mel spectrograms (batch, 1, mel_frames, 64)."""
        return self.fc_audioset(self.embedding(x))

    def encode_waveforms(self, waveforms: Sequence[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        """Return the frames of recordings; see `LayeredNetwork.encode_waveforms`.

        Recordings of different lengths are batched together. Long ones are read in chunks, overlapping by the reach of
        the convolutions, which gives the result of a single pass. One shorter than a frame (0.31 s) is padded with
        silence.
        """
        min_samples = (FRAME_STRIDE - 1) * HOP_LENGTH
        mels = [cnn14_log_mel(F.pad(w, (0, max(0, min_samples - len(w))))) for w in waveforms]
        chunks = [chunk for i, mel in enumerate(mels) for chunk in _split_chunks(i, len(mel))]
        parts: list[dict[int, list[Tensor]]] = [{} for _ in mels]
        for batch in _batch_chunks(chunks):
            inputs = [mels[chunk.recording][chunk.start : chunk.end] for chunk in batch]
            lengths = torch.tensor([len(mel) for mel in inputs], device=inputs[0].device)
            x = nn.utils.rnn.pad_sequence(inputs, batch_first=True)[:, None]
            all_equal = bool((lengths == lengths[0]).all())
            by_layer = self.layer_frames(x, layers, None if all_equal else lengths)
            for row, chunk in enumerate(batch):
                kept = slice(chunk.skip, chunk.skip + chunk.keep)
                parts[chunk.recording][chunk.start] = [frames[row, :, kept] for frames in by_layer]
        return [[torch.cat(layer, dim=1) for layer in zip(*(part[k] for k in sorted(part)))] for part in parts]


class _Chunk(NamedTuple):
    """Mel frames ``start`` to ``end`` of a recording, and of its output frames how many to skip and then to keep."""

    recording: int
    start: int
    end: int
    skip: int
    keep: int


def _split_chunks(recording: int, mel_frames: int) -> list[_Chunk]:
    total, step = mel_frames // FRAME_STRIDE, CHUNK_FRAMES // FRAME_STRIDE
    chunks = []
    for first in range(0, total, step):
        start = max(0, first * FRAME_STRIDE - CONTEXT_FRAMES)
        end = min(mel_frames, (first + step) * FRAME_STRIDE + CONTEXT_FRAMES)
        chunks.append(_Chunk(recording, start, end, first - start // FRAME_STRIDE, min(step, total - first)))
    return chunks


def _batch_chunks(chunks: list[_Chunk]) -> list[list[_Chunk]]:
    """Group chunks of similar length, so that a batch holds at most `MAX_BATCH_FRAMES` with its padding."""
    batches: list[list[_Chunk]] = []
    for chunk in sorted(chunks, key=lambda c: c.end - c.start):
        if not batches or (chunk.end - chunk.start) * (len(batches[-1]) + 1) > MAX_BATCH_FRAMES:
            batches.append([])
        batches[-1].append(chunk)
    return batches


def _zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Set frames past ``lengths`` to zero, which is what convolutions see past the end of a spectrogram."""
    if lengths is None:
        return x
    real = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
    return x * real[:, None, :, None]


def cnn14_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published tensors without those of the front end, which `CNN14` does not have."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(FRONT_END_PREFIXES)}


def load_cnn14(path: str | os.PathLike[str]) -> CNN14:
    """Load CNN14 from the published weights for 16 kHz, or from a state dict of `CNN14`.

    Published files carry a transform and a filter bank; they are compared with ours and left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RuntimeError
        If it cannot be read as tensors.
    ValueError
        If the tensors are not CNN14's, or are those for another sample rate.
    """
    tensors = read_state_dict(path, "CNN14", WEIGHTS_URL)
    filters = tensors.get("logmel_extractor.melW")
    expected = slaney_mel_filters()
    if filters is not None:
        if tuple(filters.shape) != expected.shape:
            rate = {513: "32 kHz", 129: "8 kHz"}.get(filters.shape[0], "another sample rate")
            raise ValueError(
                f"{path} is CNN14 for {rate}: its filter bank is {tuple(filters.shape)}; use {WEIGHTS_URL}"
            )
        if not np.allclose(filters.numpy(), expected, atol=1e-5):
            raise ValueError(f"{path} has another filter bank than CNN14 for 16 kHz; use {WEIGHTS_URL}")
    transform = tensors.get("spectrogram_extractor.stft.conv_real.weight")
    if transform is not None and tuple(transform.shape) != (N_FFT // 2 + 1, 1, N_FFT):
        raise ValueError(
            f"{path} has a transform of {tuple(transform.shape)}, not that of CNN14 for 16 kHz; use {WEIGHTS_URL}"
        )
    return load_weights(CNN14(), cnn14_tensors(tensors), path, "CNN14", WEIGHTS_URL)
