"""From waveforms to the input of a backbone's first block.

There are three front ends: Whisper's log-mel and convolutions, AST's Kaldi filter bank and patches, and the
convolutions on raw samples of wav2vec 2.0, HuBERT and WavLM. Each works on batches, and samples past the end of a clip
have no effect on it: a clip gives the same tokens alone, in a batch, and padded (defects S8 and S9).
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
"""Mean and standard deviation of the filter-bank values that AST was trained with (AudioSet's)."""

_KALDI_WINDOW, _KALDI_HOP, _KALDI_FFT = 400, 160, 512  # samples: 25 ms, 10 ms, and the next power of two
_KALDI_FLOOR = torch.finfo(torch.float32).eps  # the lowest energy whose logarithm Kaldi takes


class FrontEnd(nn.Module):
    """Base class of front ends.

    ``forward(waveforms, lengths)`` takes float32 ``(batch, samples)`` at 16 kHz and int ``(batch,)``. It returns
    tokens ``(batch, tokens, dim)`` and a bool mask ``(batch, tokens)`` that is True for the tokens of a clip.

    Attributes
    ----------
    special : int
        Number of tokens before those of the sound (2 for AST: CLS and DIST).
    fan_in : int
        Number of inputs of the layer that makes the tokens, for one token.
    min_samples, max_samples : int, int or None
        Shortest and longest clip that can be encoded; None for no limit.
    frame_rate : float or None
        Tokens per second; None where tokens are not frames.
    """

    special = 0
    fan_in: int
    min_samples: int
    max_samples: int | None = None
    frame_rate: float | None = None

    def train(self, mode: bool = True) -> FrontEnd:
        """Stay in eval mode: no dropout, and no statistic moves (spec section 1.1)."""
        return super().train(False)


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return a bool mask ``(batch, size)`` that is True at the first ``lengths[b]`` positions of row b."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


# --- Whisper ------------------------------------------------------------------------------------------------


class WhisperFrontEnd(FrontEnd):
    """Log-mel spectrogram, two convolutions, and as many rows of the positional table as there are tokens.

    A clip of n samples has M = n // 160 mel frames, those of ``whisper.log_mel_spectrogram`` for that clip alone, and
    N = (M - 1) // 2 + 1 tokens. Spec section 2.1.

    Parameters
    ----------
    conv1, conv2 : whisper.model.Conv1d
        The encoder's convolutions.
    positions : Tensor, shape (n_audio_ctx, dim)
        The encoder's positional table, a constant.
    """

    frame_rate = 50.0
    min_samples = N_FFT // 2 + 1  # windows are centred: a clip is mirrored by half of a window at its start and end
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
        self.max_samples = (2 * len(positions) + 1) * HOP_LENGTH - 1

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute tokens and mask; see `FrontEnd`."""
        mel = batched_log_mel(waveforms, lengths, self.filters)
        frames = lengths // HOP_LENGTH
        x = self.tokens(mel, ~length_mask(frames, mel.shape[-1])[:, None])
        return x, length_mask((frames - 1) // 2 + 1, x.shape[1])

    def tokens(self, mel: Tensor, padding: Tensor) -> Tensor:
        """Compute tokens from log-mel spectrograms.

        Parameters
        ----------
        mel : Tensor, shape (batch, n_mels, frames)
            Log-mel spectrograms, 0 at padding.
        padding : bool Tensor, shape (batch, 1, frames)
            Frames past the end of a clip.

        Returns
        -------
        Tensor, shape (batch, tokens, dim)
        """
        x = F.gelu(self.conv1(mel.to(self.conv1.weight.dtype)))
        x = F.gelu(self.conv2(x.masked_fill(padding, 0.0))).transpose(1, 2)  # 0, as the convolution pads by itself
        return (x + self.positional_embedding[: x.shape[1]]).to(x.dtype)


def batched_log_mel(waveforms: Tensor, lengths: Tensor, filters: Tensor) -> Tensor:
    """Compute Whisper's log-mel spectrograms of clips of different lengths.

    Parameters
    ----------
    waveforms : float32 Tensor, shape (batch, samples)
        Clips at 16 kHz.
    lengths : int Tensor, shape (batch,)
        Samples of each clip, more than 200.
    filters : Tensor, shape (n_mels, 201)
        Mel filter bank.

    Returns
    -------
    float32 Tensor, shape (batch, n_mels, samples // 160)
        The first ``lengths[b] // 160`` frames of clip b are those of ``whisper.log_mel_spectrogram(clip)``, whose floor
        is 8 below the clip's own maximum; the others are 0.
    """
    samples = waveforms.shape[1]
    half = N_FFT // 2
    position = torch.arange(-half, samples + half, device=waveforms.device).abs()  # mirrored at the start
    last = lengths[:, None] - 1
    mirrored = torch.where(position > last, 2 * last - position, position).clamp(0, samples - 1)  # … and end
    x = waveforms.float().gather(1, mirrored)
    with torch.autocast(x.device.type, enabled=False):
        window = torch.hann_window(N_FFT, device=x.device)
        power = torch.stft(x, N_FFT, HOP_LENGTH, window=window, center=False, return_complex=True).abs() ** 2
        log = torch.clamp(filters.float() @ power[..., : samples // HOP_LENGTH], min=1e-10).log10()
    inside = length_mask(lengths // HOP_LENGTH, log.shape[-1])[:, None]
    peak = log.masked_fill(~inside, -torch.inf).amax(dim=(1, 2), keepdim=True)
    return ((torch.maximum(log, peak - 8.0) + 4.0) / 4.0).masked_fill(~inside, 0.0)


# --- AST ----------------------------------------------------------------------------------------------------


class ASTFrontEnd(FrontEnd):
    """Kaldi filter bank, patches of 16 x 16, CLS and DIST before them, and positions.

    Every clip is cut or padded to ``frames`` frames of 10 ms *after* the filter bank and before its values are
    normalised, as AST was trained. So padding is a part of the input (with value 0.467), and every token is real. Spec
    sections 0 and 1.4.

    Parameters
    ----------
    embeddings : transformers.ASTEmbeddings
        Embeddings of an ASTModel, whose modules are used.
    frames : int, optional
        Length of the input, by default what the model was trained with; the positional table is cropped or
        interpolated to it (defect P1).
    """

    special = 2
    min_samples = _KALDI_WINDOW
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
        """Compute tokens and mask (all True); see `FrontEnd`."""
        spectrogram = self.spectrogram(waveforms, lengths).to(self.projection.weight.dtype)
        patches = self.projection(spectrogram.transpose(1, 2)[:, None])
        patches = patches.flatten(2).transpose(1, 2)  # frequency-major: row * columns + column
        special = torch.cat([self.cls_token, self.distillation_token], dim=1).expand(len(patches), -1, -1)
        tokens = torch.cat([special.to(patches.dtype), patches], dim=1)
        tokens = (tokens + self.position_embeddings).to(patches.dtype)
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def spectrogram(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Compute normalised filter-bank values ``(batch, frames, mels)`` from waveforms ``(batch, samples)``."""
        fbank = kaldi_fbank(waveforms, self.filters)[:, : self.frames]
        inside = length_mask((lengths - _KALDI_WINDOW) // _KALDI_HOP + 1, fbank.shape[1])
        fbank = fbank.masked_fill(~inside[..., None], 0.0)
        fbank = F.pad(fbank, (0, 0, 0, self.frames - fbank.shape[1]))
        return (fbank - AST_MEAN) / (2 * AST_STD)


def resize_positions(table: Tensor, trained: tuple[int, int], columns: int) -> Tensor:
    """Crop or interpolate AST's positional table to inputs of another length, as YuanGongND/ast does (defect P1).

    Parameters
    ----------
    table : Tensor, shape (1, 2 + rows * trained columns, dim)
        Positions; the first two, of CLS and DIST, are kept.
    trained : tuple of int
        Rows and columns of patches that the table was trained for (12, 101).
    columns : int
        Columns of the new table. Fewer than trained are the middle ones; more are interpolated.

    Returns
    -------
    Tensor, shape (1, 2 + rows * columns, dim)
    """
    rows, trained_columns = trained
    special, grid = table[:, :2], table[:, 2:]
    grid = grid.reshape(1, rows, trained_columns, -1).permute(0, 3, 1, 2)
    if columns < trained_columns:
        start = trained_columns // 2 - columns // 2
        grid = grid[..., start : start + columns]
    elif columns > trained_columns:
        grid = F.interpolate(grid, size=(rows, columns), mode="bilinear")
    return torch.cat([special, grid.flatten(2).transpose(1, 2)], dim=1)


def kaldi_filters(n_mels: int) -> Tensor:
    """Return Kaldi's mel filter bank: float32 ``(257, n_mels)``.

    The triangles are equally wide on the mel scale 1127 ln(1 + f / 700), from 20 Hz to 8 kHz.
    """
    low, high = (1127 * math.log1p(f / 700) for f in (20.0, SAMPLE_RATE / 2))
    step = (high - low) / (n_mels + 1)
    hertz = torch.arange(_KALDI_FFT // 2 + 1, dtype=torch.float64, device="cpu") * SAMPLE_RATE / _KALDI_FFT
    mel = 1127 * torch.log1p(hertz / 700)
    position = (mel[:, None] - low) / step - torch.arange(n_mels, dtype=torch.float64, device="cpu")  # 1 at a peak
    return torch.minimum(position, 2 - position).clamp(min=0).float()


def kaldi_fbank(waveforms: Tensor, filters: Tensor) -> Tensor:
    """Compute Kaldi's log filter bank: Hanning windows of 25 ms every 10 ms, without dither or partial windows.

    Parameters
    ----------
    waveforms : float32 Tensor, shape (batch, samples)
        At least 400 samples at 16 kHz, between -1 and 1.
    filters : Tensor, shape (257, n_mels)
        Filter bank of `kaldi_filters`.

    Returns
    -------
    float32 Tensor, shape (batch, (samples - 400) // 160 + 1, n_mels)
        Natural logarithms.
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        x = waveforms.float().unfold(1, _KALDI_WINDOW, _KALDI_HOP)
        x = x - x.mean(dim=-1, keepdim=True)
        x = x - 0.97 * F.pad(x, (1, 0), mode="replicate")[..., :-1]  # pre-emphasis within the frame
        x = x * torch.hann_window(_KALDI_WINDOW, periodic=False, device=x.device)
        power = torch.fft.rfft(x, _KALDI_FFT).abs() ** 2
        return (power @ filters.float()).clamp(min=_KALDI_FLOOR).log()


# --- wav2vec 2.0, HuBERT, WavLM -----------------------------------------------------------------------------


class Wav2Vec2FrontEnd(FrontEnd):
    """Convolutions on raw samples, a projection, and a convolution in place of positions. Spec section 2.1.

    Parameters
    ----------
    model : transformers.Wav2Vec2Model, HubertModel or WavLMModel
        Model whose modules are used.
    normalize : bool
        Whether each clip is brought to mean 0 and variance 1 over its own samples (defects S9 and S10).
    """

    def __init__(self, model: Any, normalize: bool):
        super().__init__()
        self.normalize = normalize
        self.convolutions = model.feature_extractor.conv_layers
        projection, encoder = model.feature_projection, model.encoder
        self.projection_norm = getattr(projection, "layer_norm", None)  # HuBERT may have none
        self.projection = projection.projection
        self.positions = encoder.pos_conv_embed
        # Models with post-norm blocks have this norm here; the others have it after the last block.
        self.norm = None if model.config.do_stable_layer_norm else encoder.layer_norm
        strides = [layer.conv.stride[0] for layer in self.convolutions]
        receptive_field = 1
        for layer in reversed(list(self.convolutions)):
            receptive_field = (receptive_field - 1) * layer.conv.stride[0] + layer.conv.kernel_size[0]
        self.min_samples = receptive_field
        self.frame_rate = SAMPLE_RATE / math.prod(strides)
        self.fan_in = self.projection.in_features

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute tokens and mask; see `FrontEnd`."""
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
    """Bring each clip ``(batch, samples)`` to mean 0 and variance 1 over its own samples, and to 0 past its end."""
    inside = length_mask(lengths, waveforms.shape[1])
    mean = (waveforms * inside).sum(1, keepdim=True) / lengths[:, None]
    centred = (waveforms - mean) * inside
    variance = centred.square().sum(1, keepdim=True) / lengths[:, None]
    return centred / torch.sqrt(variance + 1e-7)


def masked_channel_norm(x: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Apply a GroupNorm with one channel a group to ``(batch, channels, frames)``, over the frames of each clip."""
    if norm.num_groups != norm.num_channels:
        raise ValueError(f"GroupNorm has {norm.num_groups} groups for {norm.num_channels} channels; expected as many")
    inside = length_mask(lengths, x.shape[-1])[:, None]
    values = x.float()
    count = lengths[:, None, None]
    mean = (values * inside).sum(-1, keepdim=True) / count
    centred = values - mean
    variance = (centred * inside).square().sum(-1, keepdim=True) / count
    y = centred * torch.rsqrt(variance + norm.eps)
    return (y * norm.weight[:, None] + norm.bias[:, None]).to(x.dtype)
