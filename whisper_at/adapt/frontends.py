"""From waveforms to the tokens that a backbone's first block reads.

Three front ends, each computed here in batches: Whisper's log-mel and convolutions, AST's Kaldi filter bank and
patches, and the convolutions on raw samples of wav2vec 2.0, HuBERT and WavLM. What lies past the end of a clip has no
part in any number of it: a clip gives the same tokens alone, in a batch, and padded (defects S8 and S9).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.audio import HOP_LENGTH, N_FFT, mel_filters

SAMPLE_RATE = 16000

AST_MEAN, AST_STD = -4.2677393, 4.5689974
"""Mean and standard deviation of AudioSet's filter-bank values, which AST was trained with."""

_WINDOW, _SHIFT, _KALDI_FFT = 400, 160, 512  # 25 ms and 10 ms, and the power of two that Kaldi rounds up to
_FLOOR = 1.1920928955078125e-07  # the least value whose logarithm Kaldi takes: epsilon of float32


class Front(nn.Module):
    """What all front ends share.

    Attributes
    ----------
    special : tokens that stand before those of the sound (2 for AST: CLS and DIST)
    fan_in : numbers that the layer which makes the tokens reads for each
    least, most : number of samples that a clip must have, and may have at most (None: any)
    frame_rate : tokens per second, or None where tokens are no frames

    ``forward(waveforms, lengths)`` takes float32 ``(batch, samples)`` at 16 kHz and int ``(batch,)`` and returns
    tokens ``(batch, tokens, dim)`` and the mask ``(batch, tokens)`` of those that are of the clip.
    """

    special = 0
    fan_in: int
    least: int
    most: int | None = None
    frame_rate: float | None = None

    def train(self, mode: bool = True) -> Front:
        """Stay in eval mode: no dropout, and no statistic moves (spec section 1.1)."""
        return super().train(False)


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Bool ``(batch, size)``: True at the first ``lengths[b]`` places of row b."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


# --- Whisper ------------------------------------------------------------------------------------------------


class WhisperFront(Front):
    """Log-mel, two convolutions, and as many rows of the positional table as there are tokens.

    Of a clip of n samples there are M = n // 160 mel frames, made as ``whisper.log_mel_spectrogram`` makes them of that
    clip alone, and N = (M - 1) // 2 + 1 tokens. Spec section 2.1.

    Parameters
    ----------
    conv1, conv2 : openai-whisper's convolutions
    positions : ``(n_audio_ctx, dim)``, a constant
    """

    frame_rate = 50.0
    least = N_FFT // 2 + 1  # the analysis windows are centred, and mirror that much of a clip's start and end
    positional_embedding: Tensor
    filters: Tensor

    def __init__(self, conv1: nn.Conv1d, conv2: nn.Conv1d, positions: Tensor):
        super().__init__()
        self.conv1, self.conv2 = conv1, conv2
        # A constant that follows the device and is not saved (defect W5).
        self.register_buffer("positional_embedding", positions, persistent=False)
        filters = mel_filters(positions.device, conv1.in_channels)
        self.register_buffer("filters", filters, persistent=False)
        self.fan_in = conv2.in_channels * conv2.kernel_size[0]
        self.most = (2 * len(positions) + 1) * HOP_LENGTH - 1

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and mask of waveforms; see `Front`."""
        mel = batched_log_mel(waveforms, lengths, self.filters)
        frames = lengths // HOP_LENGTH
        x = self.tokens(mel, ~length_mask(frames, mel.shape[-1])[:, None])
        return x, length_mask((frames - 1) // 2 + 1, x.shape[1])

    def tokens(self, mel: Tensor, outside: Tensor) -> Tensor:
        """Tokens of log-mel spectrograms ``(batch, n_mels, frames)``; padding ``(batch, 1, frames)`` is ``outside``."""
        x = F.gelu(self.conv1(mel.to(self.conv1.weight.dtype)))  # padding is 0, as the convolution's own is
        x = F.gelu(self.conv2(x.masked_fill(outside, 0.0))).transpose(1, 2)
        return (x + self.positional_embedding[: x.shape[1]]).to(x.dtype)


def batched_log_mel(waveforms: Tensor, lengths: Tensor, filters: Tensor) -> Tensor:
    """Whisper's log-mel spectrograms of clips of different lengths, each cut off below its own loudest frame.

    Parameters
    ----------
    waveforms : float32 ``(batch, samples)`` at 16 kHz
    lengths : int ``(batch,)``, samples of each clip, more than 200
    filters : ``(n_mels, 201)``

    Returns
    -------
    float32 ``(batch, n_mels, samples // 160)``; the first ``lengths[b] // 160`` frames of clip b are those of
    ``whisper.log_mel_spectrogram(clip)``, the others 0
    """
    samples = waveforms.shape[1]
    half = N_FFT // 2
    place = torch.arange(-half, samples + half, device=waveforms.device).abs()  # mirrored at the start
    end = lengths[:, None] - 1
    mirrored = torch.where(place > end, 2 * end - place, place).clamp(0, samples - 1)  # and at each clip's end
    x = waveforms.float().gather(1, mirrored)
    with torch.autocast(x.device.type, enabled=False):
        window = torch.hann_window(N_FFT, device=x.device)
        power = torch.stft(x, N_FFT, HOP_LENGTH, window=window, center=False, return_complex=True).abs() ** 2
        log = torch.clamp(filters.float() @ power[..., : samples // HOP_LENGTH], min=1e-10).log10()
    inside = length_mask(lengths // HOP_LENGTH, log.shape[-1])[:, None]
    loudest = log.masked_fill(~inside, -torch.inf).amax(dim=(1, 2), keepdim=True)
    return ((torch.maximum(log, loudest - 8.0) + 4.0) / 4.0).masked_fill(~inside, 0.0)


# --- AST ----------------------------------------------------------------------------------------------------


class ASTFront(Front):
    """Kaldi filter bank, patches of 16 x 16, CLS and DIST before them, and positions.

    Every clip is cut or padded to ``frames`` frames of 10 ms *after* the filter bank and before its values are
    normalised, as AST was trained; so padding is a part of the input (0.467), and every token is real. Spec sections
    0 and 1.4.

    Parameters
    ----------
    embeddings : ``embeddings`` of transformers' ASTModel
    frames : length of the input; the positional table is cropped or interpolated to it (defect P1)
    """

    special = 2
    least = _WINDOW
    filters: Tensor

    def __init__(self, embeddings: Any, frames: int | None = None):
        super().__init__()
        config = embeddings.config
        trained = embeddings.get_shape(config)
        self.frames = frames or config.max_length
        self.projection = embeddings.patch_embeddings.projection
        kernel, stride = self.projection.kernel_size, self.projection.stride
        if self.frames < kernel[1]:
            raise ValueError(f"AST reads at least {kernel[1]} frames of 10 ms, not {self.frames}")
        self.columns = (self.frames - kernel[1]) // stride[1] + 1
        self.cls_token, self.distillation_token = embeddings.cls_token, embeddings.distillation_token
        table = resize_positions(embeddings.position_embeddings.detach(), trained, self.columns)
        self.position_embeddings = nn.Parameter(table)
        filters = kaldi_filters(config.num_mel_bins).to(table.device)
        self.register_buffer("filters", filters, persistent=False)
        self.fan_in = kernel[0] * kernel[1]

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and mask (all True) of waveforms; see `Front`."""
        spectrogram = self.spectrogram(waveforms, lengths).to(self.projection.weight.dtype)
        patches = self.projection(spectrogram.transpose(1, 2)[:, None])
        patches = patches.flatten(2).transpose(1, 2)  # frequency-major: row * columns + column
        special = torch.cat([self.cls_token, self.distillation_token], dim=1).expand(len(patches), -1, -1)
        tokens = torch.cat([special.to(patches.dtype), patches], dim=1)
        tokens = (tokens + self.position_embeddings).to(patches.dtype)
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def spectrogram(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Normalised filter-bank values ``(batch, frames, mels)`` of waveforms ``(batch, samples)``."""
        bank = kaldi_fbank(waveforms, self.filters)[:, : self.frames]
        inside = length_mask((lengths - _WINDOW) // _SHIFT + 1, bank.shape[1])
        bank = bank.masked_fill(~inside[..., None], 0.0)
        bank = F.pad(bank, (0, 0, 0, self.frames - bank.shape[1]))
        return (bank - AST_MEAN) / (2 * AST_STD)


def resize_positions(table: Tensor, trained: tuple[int, int], columns: int) -> Tensor:
    """AST's positional table for inputs of another length: its middle columns, or interpolated ones.

    Parameters
    ----------
    table : ``(1, 2 + rows * trained columns, dim)``; the first two rows, of CLS and DIST, are kept
    trained : rows and columns of patches that the table is of (12, 101)
    columns : of the table to make

    Returns
    -------
    ``(1, 2 + rows * columns, dim)``. As in YuanGongND/ast; never made anew (defect P1).
    """
    rows, old = trained
    special, grid = table[:, :2], table[:, 2:]
    grid = grid.reshape(1, rows, old, -1).permute(0, 3, 1, 2)
    if columns < old:
        start = old // 2 - columns // 2
        grid = grid[..., start : start + columns]
    elif columns > old:
        grid = F.interpolate(grid, size=(rows, columns), mode="bilinear")
    return torch.cat([special, grid.flatten(2).transpose(1, 2)], dim=1)


def kaldi_filters(n_mels: int) -> Tensor:
    """Kaldi's triangles, equal in mel (1127 ln(1 + f / 700)) from 20 Hz to 8 kHz: float32 ``(257, n_mels)``."""
    low, high = (1127 * math.log1p(f / 700) for f in (20.0, SAMPLE_RATE / 2))
    step = (high - low) / (n_mels + 1)
    hertz = torch.arange(_KALDI_FFT // 2 + 1, dtype=torch.float64, device="cpu") * SAMPLE_RATE / _KALDI_FFT
    mel = 1127 * torch.log1p(hertz / 700)
    place = (mel[:, None] - low) / step - torch.arange(n_mels, dtype=torch.float64, device="cpu")
    return torch.minimum(place, 2 - place).clamp(min=0).float()


def kaldi_fbank(waveforms: Tensor, filters: Tensor) -> Tensor:
    """Kaldi's log filter bank: Hanning windows of 25 ms every 10 ms, no dither, none over the end.

    Parameters
    ----------
    waveforms : float32 ``(batch, samples)`` at 16 kHz between -1 and 1 (not scaled), 400 samples or more
    filters : ``(257, n_mels)``

    Returns
    -------
    float32 ``(batch, (samples - 400) // 160 + 1, n_mels)``, natural logarithms
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        x = waveforms.float().unfold(1, _WINDOW, _SHIFT)
        x = x - x.mean(dim=-1, keepdim=True)
        x = x - 0.97 * F.pad(x, (1, 0), mode="replicate")[..., :-1]  # pre-emphasis within the frame
        x = x * torch.hann_window(_WINDOW, periodic=False, device=x.device)
        power = torch.fft.rfft(x, _KALDI_FFT).abs() ** 2
        return (power @ filters.float()).clamp(min=_FLOOR).log()


# --- wav2vec 2.0, HuBERT, WavLM -----------------------------------------------------------------------------


class SpeechFront(Front):
    """Convolutions on raw samples, projection, and the convolution that stands for positions.

    Parameters
    ----------
    model : transformers' Wav2Vec2Model, HubertModel or WavLMModel, whose modules are taken
    normalize : whether each clip is brought to mean 0 and variance 1, over its own samples (defects S9 and S10)
    """

    def __init__(self, model: Any, normalize: bool):
        super().__init__()
        self.normalize = normalize
        self.convolutions = model.feature_extractor.conv_layers
        projection, encoder = model.feature_projection, model.encoder
        # HuBERT's may go without; the projection's dropout stays out.
        self.projection_norm = getattr(projection, "layer_norm", None)
        self.projection = projection.projection
        self.positions = encoder.pos_conv_embed
        # Before blocks that normalise their outputs; others have it after the last block.
        self.norm = None if model.config.do_stable_layer_norm else encoder.layer_norm
        strides = [layer.conv.stride[0] for layer in self.convolutions]
        field = 1
        for layer in reversed(list(self.convolutions)):
            field = (field - 1) * layer.conv.stride[0] + layer.conv.kernel_size[0]
        self.least = field
        self.frame_rate = SAMPLE_RATE / math.prod(strides)
        self.fan_in = self.projection.in_features

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and mask of waveforms; see `Front`."""
        x = waveforms.float()
        x = (normalize_clips(x, lengths) if self.normalize else x)[:, None].to(self.projection.weight.dtype)
        for layer in self.convolutions:
            x = layer.conv(x.masked_fill(~length_mask(lengths, x.shape[-1])[:, None], 0.0))
            lengths = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                x = masked_channel_norm(x, lengths, norm)
            elif norm is not None:
                x = norm(x.transpose(1, 2)).transpose(1, 2)
            x = layer.activation(x)
        x = x.transpose(1, 2)
        x = self.projection(x if self.projection_norm is None else self.projection_norm(x))
        mask = length_mask(lengths, x.shape[1])
        x = x.masked_fill(~mask[..., None], 0.0)
        x = x + self.positions(x)
        return x if self.norm is None else self.norm(x), mask


def normalize_clips(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Each clip with mean 0 and variance 1 over its own samples, and 0 past its end; ``(batch, samples)``."""
    inside = length_mask(lengths, waveforms.shape[1])
    mean = (waveforms * inside).sum(1, keepdim=True) / lengths[:, None]
    centred = (waveforms - mean) * inside
    variance = centred.square().sum(1, keepdim=True) / lengths[:, None]
    return centred / torch.sqrt(variance + 1e-7)


def masked_channel_norm(x: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """GroupNorm of one channel a group, ``(batch, channels, frames)``, over the frames of each clip alone."""
    if norm.num_groups != norm.num_channels:
        raise ValueError(f"GroupNorm of {norm.num_groups} groups of {norm.num_channels} channels: expected one each")
    inside = length_mask(lengths, x.shape[-1])[:, None]
    values = x.float()
    count = lengths[:, None, None]
    mean = (values * inside).sum(-1, keepdim=True) / count
    centred = values - mean
    variance = (centred * inside).square().sum(-1, keepdim=True) / count
    y = centred * torch.rsqrt(variance + norm.eps)
    return (y * norm.weight[:, None] + norm.bias[:, None]).to(x.dtype)
