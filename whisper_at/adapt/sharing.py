"""Classifiers that need no pass of their own: those on the plain encoder of the Whisper that they are attached to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..attached import Classes, Reader
from .backbones import Backbone, whisper_backbone
from .pooling import LinearHead, TLTRHead

if TYPE_CHECKING:
    from ..model import WhisperAT
    from .classifier import AudioClassifier

MEANS = ("all", "frames", "speech", "prompts_speech")
"""Poolings that, without special tokens and prompts, are the mean of all frames: then means of steps do as well."""


def reader_of(classifier: AudioClassifier, model: WhisperAT) -> Reader | None:
    """The classifier as a reader of a model's states, or None if it needs a pass of its own.

    It can read them if no method has changed the encoder, both have the same weights, and its head takes no more of the
    states than their means over steps of 0.4 s: TL-TR, or a linear head on means of frames of blocks. It was trained on
    clips alone, and then hears them inside of a window of 30 s.
    """
    head = classifier.head
    linear = isinstance(head, LinearHead) and head.layers in ("last", "weighted") and head.pooling in MEANS
    if not (linear or isinstance(head, TLTRHead)) or not is_plain(classifier.backbone, model):
        return None

    def classify(states: Tensor) -> Tensor:
        values = torch.cat([states[:, :-2], states[:, -1:]], dim=1)  # the last state is that after the norm
        values = values.to(next(head.parameters()))
        if isinstance(head, LinearHead):
            values = values.mean(2, keepdim=True)
            values = values[:, -1:] if head.layers == "last" else values
        logits: Tensor = head(values, values.new_ones(len(values), values.shape[2], dtype=torch.bool))
        return logits.to(states.device)

    return Reader(Classes(tuple(classifier.classes), classifier.kind), classify)


def is_plain(backbone: Backbone, model: WhisperAT) -> bool:
    """Whether a backbone is a model's own encoder, weight for weight."""
    if backbone.family != "whisper":
        return False
    own, theirs = backbone.state_dict(), whisper_backbone(model.encoder).state_dict()
    return own.keys() == theirs.keys() and all(
        tensor.shape == theirs[name].shape and torch.equal(tensor.to(theirs[name]), theirs[name])
        for name, tensor in own.items()
    )
