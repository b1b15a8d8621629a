"""Classifiers that share the encoder pass of the Whisper they are attached to.

A head on the plain encoder of a Whisper can read the states that transcription computes anyway, in windows of 30 s.
Such windows hold other sounds as well, so these classifiers are trained on every clip in isolation and in the context
of other clips (`whisper_at.features.concat_clips`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from whisper.audio import N_FRAMES
from whisper.model import AudioEncoder

from ..data.clips import Clip
from ..features.concat_clips import NUM_ORDERS, group_into_recordings, read_background, shuffle_clips, states_in_context
from ..features.encode import encode_recordings, mel_windows, num_steps
from ..tagging.classes import ClassSet
from ..tagging.listeners import StateClassifier
from ..tagging.timeline import POSITION_FRAMES, pool_steps
from ..windows import Window
from .backbones import Backbone, whisper_backbone
from .backbones.frontends import WhisperFrontEnd
from .pooling import AdaptHead, HeadInput, LinearHead, TLTRHead
from .sources import MultiViewDataset, fits_in_memory
from .waveforms import WaveformDataset

MEAN_POOLINGS = ("all", "frames", "speech", "prompts_speech")
"""Poolings that equal the mean of all frames where there are no special tokens and prompts."""


def can_share_pass(backbone: Backbone, head: nn.Module) -> bool:
    """Return whether a head can read the pooled states of a transcription.

    The encoder must be a Whisper's without methods, and the head must need no more than means over steps of 0.4 s:
    TL-TR, or a linear head on the mean of frames of blocks.
    """
    linear = isinstance(head, LinearHead) and head.layers in ("last", "weighted") and head.pooling in MEAN_POOLINGS
    if (
        not (linear or isinstance(head, TLTRHead))
        or backbone.methods
        or not isinstance(backbone.front, WhisperFrontEnd)
    ):
        return False
    return len(backbone.front.positional_embedding) == N_FRAMES // POSITION_FRAMES


def has_weights_of(backbone: Backbone, encoder: AudioEncoder) -> bool:
    """Return whether a backbone is this encoder, weight for weight."""
    if backbone.family != "whisper":
        return False
    own, other = backbone.state_dict(), whisper_backbone(encoder).state_dict()
    return own.keys() == other.keys() and all(
        tensor.shape == other[name].shape and torch.equal(tensor.to(other[name]), other[name])
        for name, tensor in own.items()
    )


def state_classifier(head: AdaptHead, classes: ClassSet) -> StateClassifier:
    """Return a head as a classifier of the states that a model's own encoder pass leaves."""

    def classify(states: Tensor) -> Tensor:
        values = torch.cat([states[:, :-2], states[:, -1:]], dim=1)  # the last state is the one after the norm
        logits: Tensor = head(*reduce_steps(head, values.to(next(head.parameters()))))
        return logits.to(states.device)

    return StateClassifier(classes, classify)


def reduce_steps(head: AdaptHead, states: Tensor) -> HeadInput:
    """Return what a head keeps of pooled states ``(batch, layers, steps, dim)`` of the blocks, the last after the norm.

    It is what `AdaptHead.reduce` keeps of hidden states, up to rounding.
    """
    if isinstance(head, LinearHead):
        states = states.mean(2, keepdim=True)
        states = states[:, -1:] if head.layers == "last" else states
    return HeadInput(states, torch.ones(len(states), states.shape[2], dtype=torch.bool, device=states.device))


def window_states(backbone: Backbone, recordings: Sequence[np.ndarray], batch_size: int = 8) -> list[Tensor]:
    """Return pooled states ``(layers, steps, dim)`` of recordings, encoded in windows as in transcription."""
    front: Any = backbone.front
    windows = [mel_windows(audio, front.conv1.in_channels) for audio in recordings]
    return encode_recordings(windows, partial(_encode_windows, backbone), batch_size)


@torch.no_grad()
def _encode_windows(backbone: Backbone, mels: Sequence[np.ndarray], windows: Sequence[Window]) -> list[Tensor]:
    front: Any = backbone.front
    mel = torch.from_numpy(np.stack(mels)).to(front.conv1.weight.device)
    tokens = front.tokens(mel, torch.zeros_like(mel[:, :1], dtype=torch.bool))
    hidden = backbone.encode(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), padded=False)
    states = torch.stack([pool_steps(x, windows) for x in hidden.states[1:]], dim=1)
    return [item[:, : num_steps(window)].to(tokens.dtype) for item, window in zip(states, windows)]


def precompute_views(
    backbone: Backbone, head: AdaptHead, waveforms: WaveformDataset, batch_size: int, progress: bool = False
) -> MultiViewDataset | None:
    """Encode all clips once in every view: in isolation, and in recordings made of clips in several random orders.

    Parameters
    ----------
    backbone, head : Backbone, AdaptHead
        Those of a classifier for which `can_share_pass` holds.
    waveforms : WaveformDataset
        The clips; one that occurs twice is encoded once.
    batch_size : int
        Clips that are encoded together.
    progress : bool
        Show a progress bar.

    Returns
    -------
    MultiViewDataset or None
        The states; None, after a warning, if they do not fit into memory.
    """
    index = {clip: i for i, clip in enumerate(waveforms.clips)}
    ordered = shuffle_clips(waveforms.clips)
    views: list[dict[Clip, HeadInput]] = [{} for _ in range(1 + NUM_ORDERS)]
    n_bytes, background = 0, read_background()
    with tqdm(total=len(ordered), desc="encoding", disable=not progress, leave=False) as bar:
        for recording in group_into_recordings((clip, waveforms[index[clip]]) for clip in ordered):
            sounds = [audio for _, audio in recording]
            parts = [sounds[first : first + batch_size] for first in range(0, len(sounds), batch_size)]
            isolated = [states for part in parts for states in window_states(backbone, part, batch_size)]
            in_context = states_in_context(
                sounds, lambda audio: window_states(backbone, [audio], batch_size)[0], NUM_ORDERS, isolated, background
            )
            for view, states_of in zip(views, [isolated, *in_context]):
                for (clip, _), states, alone in zip(recording, states_of, isolated):
                    values, mask = reduce_steps(head, states[None, :, : alone.shape[1]])
                    view[clip] = HeadInput(values.cpu(), mask.cpu())
                    n_bytes += values.nbytes
            bar.update(len(recording))
            if not fits_in_memory(n_bytes, len(views[0]), len(ordered)):
                warnings.warn(
                    "the states of all clips in windows do not fit into memory: this classifier is trained on clips in "
                    "isolation, and will encode recordings in a pass of its own; `whisper-at train` keeps states on "
                    "disk",
                    stacklevel=5,
                )
                return None
    return MultiViewDataset([[view[clip] for clip in waveforms.clips] for view in views])
