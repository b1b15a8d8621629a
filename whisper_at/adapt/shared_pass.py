"""Classifiers that need no pass of their own: those on the plain encoder of the Whisper that they are attached to.

They hear sounds where transcription does, in windows of 30 s that hold other things as well, and so they are trained:
on every clip in a window by itself, and in recordings that are made of clips (`whisper_at.train.concat_clips`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from whisper.audio import N_FRAMES

from ..data.clips import Clip
from ..tagging.classes import ClassSet
from ..tagging.listeners import StateClassifier
from ..tagging.timeline import POSITION_FRAMES, pool_steps
from ..train.concat_clips import NUM_ORDERS, group_into_recordings, shuffle_clips, states_in_context
from ..train.encode import encode_recordings, mel_windows, num_steps
from ..windows import Window
from .backbones import Backbone, whisper_backbone
from .backbones.frontends import WhisperFrontEnd
from .pooling import AdaptHead, HeadInput, LinearHead, TLTRHead, concat_inputs

if TYPE_CHECKING:
    from ..model import WhisperAT
    from .classifier import AudioClassifier
    from .waveforms import Waves

MEANS = ("all", "frames", "speech", "prompts_speech")
"""Poolings that, without special tokens and prompts, are the mean of all frames: then means of steps do as well."""
KEPT_BYTES = 4 << 30
"""Hidden states of a frozen encoder are kept in memory if they take no more than this."""


def can_read(backbone: Backbone, head: nn.Module) -> bool:
    """Whether a head may do with what a Whisper leaves of a window: no method has changed the encoder, and the head
    takes no more of the states than their means over steps of 0.4 s, as TL-TR, or a linear head on means of frames of
    blocks.
    """
    linear = isinstance(head, LinearHead) and head.layers in ("last", "weighted") and head.pooling in MEANS
    if (
        not (linear or isinstance(head, TLTRHead))
        or backbone.methods
        or not isinstance(backbone.front, WhisperFrontEnd)
    ):
        return False
    return len(backbone.front.positional_embedding) == N_FRAMES // POSITION_FRAMES


def reader_of(classifier: AudioClassifier, model: WhisperAT) -> StateClassifier | None:
    """The classifier as a reader of a model's states, or None if it needs a pass of its own.

    It can read them if it was trained to hear in windows, and the model's encoder has the same weights as its own.
    """
    head = classifier.head
    if not classifier.windows or not is_plain(classifier.backbone, model):
        return None

    def classify(states: Tensor) -> Tensor:
        values = torch.cat([states[:, :-2], states[:, -1:]], dim=1)  # the last state is that after the norm
        logits: Tensor = head(*read(head, values.to(next(head.parameters()))))
        return logits.to(states.device)

    return StateClassifier(ClassSet(tuple(classifier.classes), classifier.kind), classify)


def is_plain(backbone: Backbone, model: WhisperAT) -> bool:
    """Whether a backbone is a model's own encoder, weight for weight."""
    if backbone.family != "whisper":
        return False
    own, theirs = backbone.state_dict(), whisper_backbone(model.encoder).state_dict()
    return own.keys() == theirs.keys() and all(
        tensor.shape == theirs[name].shape and torch.equal(tensor.to(theirs[name]), theirs[name])
        for name, tensor in own.items()
    )


def read(head: AdaptHead, states: Tensor) -> HeadInput:
    """What a head keeps of pooled states ``(batch, layers, steps, dim)`` of the blocks, the last after the norm."""
    if isinstance(head, LinearHead):
        states = states.mean(2, keepdim=True)
        states = states[:, -1:] if head.layers == "last" else states
    return HeadInput(states, torch.ones(len(states), states.shape[2], dtype=torch.bool, device=states.device))


def window_states(backbone: Backbone, recordings: Sequence[np.ndarray], batch: int = 8) -> list[Tensor]:
    """Pooled states ``(layers, steps, dim)`` of recordings, heard in windows as transcription hears them."""
    front: Any = backbone.front
    windows = [mel_windows(audio, front.conv1.in_channels) for audio in recordings]
    return encode_recordings(windows, partial(_hear, backbone), batch)


def _recording_states(backbone: Backbone, batch: int, audio: np.ndarray) -> Tensor:
    return window_states(backbone, [audio], batch)[0]


@torch.no_grad()
def _hear(backbone: Backbone, mels: Sequence[np.ndarray], windows: Sequence[Window]) -> list[Tensor]:
    front: Any = backbone.front
    mel = torch.from_numpy(np.stack(mels)).to(front.conv1.weight.device)
    tokens = front.tokens(mel, torch.zeros_like(mel[:, :1], dtype=torch.bool))
    hidden = backbone.encode(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), padded=False)
    states = torch.stack([pool_steps(x, windows) for x in hidden.states[1:]], dim=1)
    return [item[:, : num_steps(window)].to(tokens.dtype) for item, window in zip(states, windows)]


class HeardSource:
    """Batches of what a head keeps of clips that were heard by themselves and in company.

    Attributes
    ----------
    hearings : what was kept, of every hearing and clip; the first is that by itself
    """

    def __init__(self, hearings: list[list[HeadInput]]) -> None:
        self.hearings = hearings
        self.lengths = [one.values.shape[2] for one in hearings[0]]

    def batch(self, indices: Sequence[int], random: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The clips at ``indices``, each by itself; with a generator, then all again, in any of their companies."""
        wanted = [(0, int(i)) for i in indices]
        if random is not None:
            which = random.integers(1, len(self.hearings), len(indices)).tolist()
            wanted += [(hearing, int(i)) for hearing, i in zip(which, indices)]
        return concat_inputs([self.hearings[hearing][i] for hearing, i in wanted])


def heard(model: AudioClassifier, waves: Waves, batch: int, progress: bool = False) -> HeardSource | None:
    """Clips in all their hearings, computed once; None, with a warning, where memory does not suffice."""
    place = {clip: i for i, clip in enumerate(waves.clips)}
    ordered = shuffle_clips(waves.clips)
    kept: list[dict[Clip, HeadInput]] = [{} for _ in range(1 + NUM_ORDERS)]
    used = 0
    with tqdm(total=len(ordered), desc="encoding", disable=not progress, leave=False) as bar:
        for recording in group_into_recordings((clip, waves[place[clip]]) for clip in ordered):
            sounds = [audio for _, audio in recording]
            parts = [sounds[first : first + batch] for first in range(0, len(sounds), batch)]
            alone = [states for part in parts for states in window_states(model.backbone, part, batch)]
            hear = partial(_recording_states, model.backbone, batch)
            company = states_in_context(sounds, hear, NUM_ORDERS, alone)
            for found, states in zip(kept, [alone, *company]):
                for (clip, _), own, by_itself in zip(recording, states, alone):
                    values, mask = read(model.head, own[None, :, : by_itself.shape[1]])
                    found[clip] = HeadInput(values.cpu(), mask.cpu())
                    used += values.nbytes
            bar.update(len(recording))
            if used / len(kept[0]) * len(ordered) > KEPT_BYTES:
                warnings.warn(
                    "the states of all clips in windows do not fit into memory: this classifier is trained on clips by "
                    "themselves, and will hear in a pass of its own; `whisper-at train` keeps states on disk",
                    stacklevel=4,
                )
                return None
    return HeardSource([[found[clip] for clip in waves.clips] for found in kept])
