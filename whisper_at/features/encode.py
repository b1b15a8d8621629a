"""From a clip to pooled states: reading, windows of mel, and the encoder, by protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FRAMES, SAMPLE_RATE, pad_or_trim

from ..audio import load_audio, log_mel_spectrogram
from ..checkpoints import encoder_sha256
from ..data.clips import Clip
from ..mel import LogMel
from ..tagging.timeline import POSITION_FRAMES, STEP_POSITIONS, pool_steps
from ..windows import Window
from .files import FeatureMetadata, num_views

if TYPE_CHECKING:
    from ..model import WhisperAT

FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
MIN_SAMPLES = POSITION_FRAMES * HOP_LENGTH
"""A clip must hold one encoder position, 20 ms."""
PROTOCOLS = ("10", "30", "30+")
"""How clips are presented to the encoder, see `describe_features`."""
JOINED = "joined"
"""Another protocol, under which heads are scored, not trained: clips in context only."""

MelWindow = tuple[np.ndarray, Window]
"""Log-mel spectrogram, shape (n_mels, frames), and where it lies in its recording."""
EncodeFunction = Callable[[Sequence[np.ndarray], Sequence[Window]], list[Tensor]]
"""From spectrograms and their windows to pooled states, shape (layers, steps, dim) each."""


def describe_features(
    name: str, model: WhisperAT, protocol: str = "30", seconds: float | None = None, dtype: str = "float16"
) -> FeatureMetadata:
    """Return the metadata of the pooled states that a model and a protocol give.

    Parameters
    ----------
    name : str
        Name of the model.
    model : WhisperAT
        The model.
    protocol : str
        How clips are presented to the encoder.

        ``"10"``
            As Whisper-AT's heads were trained (spec section 3.1): each clip in isolation, its dynamic range clipped
            relative to its own maximum, padded with 0.0 or cut to `seconds`; the encoder sees no more positions.
        ``"30"``
            As in transcription: windows of 30 s, padded with 0.0; only steps that hold audio are kept.
        ``"30+"``
            As ``"30"``, and besides three times in context: concatenated with other clips of the same split and fold to
            recordings of some minutes, each time in another order (see `whisper_at.features.concat_clips`).
        ``"joined"``
            In context only and once, for scoring heads.
    seconds : float, optional
        Length of the clips under protocol ``"10"``, a multiple of 0.02 up to 30; 10 by default.
    dtype : str
        Precision on disk, ``"float16"`` or ``"float32"``.

    Returns
    -------
    FeatureMetadata
        For `whisper_at.features.extract.extract_features`.

    Raises
    ------
    ValueError
        If there is no such protocol or length.
    """
    if protocol not in (known := (*PROTOCOLS, JOINED)):
        raise ValueError(f"protocol must be {' or '.join(known)}, not {protocol!r}")
    if protocol != "10" and seconds:
        raise ValueError(f"seconds is for protocol 10; protocol {protocol} keeps every clip as long as it is")
    seconds = float(seconds or 10.0) if protocol == "10" else 0.0
    frames = round(seconds * FRAMES_PER_SECOND)
    if protocol == "10" and (
        not 0 < frames <= N_FRAMES or frames % POSITION_FRAMES or abs(frames / FRAMES_PER_SECOND - seconds) > 1e-6
    ):
        raise ValueError(f"seconds must be a multiple of 0.02 up to 30, not {seconds:g}")
    dims, sha256 = model.dims, encoder_sha256(model.encoder.state_dict(prefix="encoder."))
    layers, dim = dims.n_audio_layer, dims.n_audio_state
    return FeatureMetadata(name, sha256, protocol, seconds, layers, dim, dtype, num_views(protocol))


def load_clip(clip: Clip, sr: int = SAMPLE_RATE, min_samples: int = 0) -> np.ndarray:
    """Read the samples of a clip: those of its file, or of the part of the file that it is.

    Parameters
    ----------
    clip : Clip
        The clip.
    sr : int
        Sample rate to resample to, in Hz.
    min_samples : int
        A clip with fewer samples is refused.

    Returns
    -------
    ndarray, shape (samples,)
        float32 audio.

    Raises
    ------
    FileNotFoundError, RuntimeError
        As `load_audio`.
    ValueError
        If the clip ends before it starts, starts behind the end of the file, or is too short.
    """
    audio = load_audio(clip.path, sr)
    if clip.start or clip.end is not None:
        first, last = round(clip.start * sr), len(audio) if clip.end is None else round(clip.end * sr)
        if not 0 <= first < last or first >= len(audio):
            part = f"{clip.start:g} to {'the end' if clip.end is None else f'{clip.end:g}'} s"
            raise ValueError(f"{part} is no part of it: it is {len(audio) / sr:.2f} s long")
        audio = audio[first:last]
    if len(audio) < min_samples:
        raise ValueError(f"it holds {len(audio) / sr * 1000:.0f} ms of sound, which is too short")
    return audio


def mel_windows(audio: np.ndarray, n_mels: int, seconds: float = 0.0) -> list[MelWindow]:
    """Return what the encoder is to see of a recording.

    Parameters
    ----------
    audio : ndarray, shape (samples,)
        float32 audio at 16 kHz.
    n_mels : int
        Number of mel bands.
    seconds : float
        Length of the one window of protocol ``"10"``; 0 for the windows of transcription, 30 s each.

    Returns
    -------
    list of (ndarray of shape (n_mels, frames), Window)
        Spectrograms, and where each lies in the recording.
    """
    if seconds:
        frames = round(seconds * FRAMES_PER_SECOND)
        mel = log_mel_spectrogram(audio, n_mels)[:, :frames]
        return [(F.pad(mel, (0, frames - mel.shape[1])).numpy(), Window(0, frames))]
    with LogMel(audio, n_mels) as log_mel:
        content = log_mel.content_frames
        windows = [Window(seek, min(N_FRAMES, content - seek)) for seek in range(0, content, N_FRAMES)]
        windows = [window for window in windows if window.size >= POSITION_FRAMES]
        return [(pad_or_trim(log_mel.window(window.seek, window.end), N_FRAMES).numpy(), window) for window in windows]


@torch.no_grad()
def encode_windows(model: WhisperAT, mels: Sequence[np.ndarray], windows: Sequence[Window]) -> list[Tensor]:
    """Encode windows of equal length.

    Full windows go through the model as in transcription. For shorter ones, the table of positional embeddings is cut
    to their length (spec section 3.1).

    Parameters
    ----------
    model : WhisperAT
        The model.
    mels : sequence of ndarray, shape (n_mels, frames)
        Log-mel spectrograms.
    windows : sequence of Window
        Where they lie in their recordings.

    Returns
    -------
    list of Tensor, shape (layers, steps, dim)
        Pooled states of the steps that hold audio, float32 on the CPU.
    """
    mel = torch.from_numpy(np.stack(mels)).to(model.device)
    mel = mel.half() if mel.is_cuda and model.compute_type in (None, "float16") else mel
    if mel.shape[-1] == N_FRAMES:
        _, states = model.encode(mel, windows)
    else:
        encoder, layers = model.encoder, []
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).permute(0, 2, 1)
        x = (x + encoder.positional_embedding[: x.shape[1]]).to(x.dtype)
        for block in encoder.blocks:
            x = block(x)
            layers.append(pool_steps(x, windows))
        states = torch.stack(layers, dim=1)
    return [item[:, : num_steps(window)].float().cpu() for item, window in zip(states, windows)]


def num_steps(window: Window) -> int:
    """Return the number of steps that hold audio, of a window that begins on a step."""
    return -(-(window.size // POSITION_FRAMES) // STEP_POSITIONS)


def encode_recordings(recordings: Sequence[list[MelWindow]], encode: EncodeFunction, batch: int) -> list[Tensor]:
    """Encode recordings of one or more windows each.

    Parameters
    ----------
    recordings : sequence of list of MelWindow
        The windows of each recording, see `mel_windows`.
    encode : callable
        Encodes windows, see `encode_windows`.
    batch : int
        Number of windows that are encoded at once.

    Returns
    -------
    list of Tensor, shape (layers, steps, dim)
        Pooled states of each recording.
    """
    windows = [window for recording in recordings for window in recording]
    states: list[Tensor] = []
    for first in range(0, len(windows), batch):
        mels, positions = zip(*windows[first : first + batch])
        states += encode(mels, positions)
    remaining = iter(states)
    return [torch.cat([next(remaining) for _ in recording], dim=1) for recording in recordings]
