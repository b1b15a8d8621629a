"""Heads and classifiers from files, checked against the encoder of a model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from .. import checkpoints
from .heads import Head, build_head
from .listeners import WaveformClassifier, open_classifier

if TYPE_CHECKING:
    from ..model import WhisperAT


def load_head(
    source: str | Path, model: WhisperAT, download_root: str | None = None, model_name: str = "this model"
) -> Head:
    """Return the head of that name or file, checked against a model's encoder; arguments as of `load_model`.

    Raises
    ------
    ValueError
        If it does not fit the encoder.
    FileNotFoundError, RuntimeError
        If there is no such head, or it cannot be read.
    """
    tensors, metadata = checkpoints.open_head(checkpoints.find_head(str(source), download_root))
    sizes = {"n_layer": model.dims.n_audio_layer, "rep_dim": model.dims.n_audio_state}
    try:
        head = build_head(tensors, metadata, **sizes)
    except ValueError as error:
        raise ValueError(f"head {source} does not fit {model_name}: {error}") from None
    trained_on = metadata.get("encoder_sha256")  # hashing takes time: only where there is something to compare
    published = str(source).removesuffix("_low")
    if trained_on is None and published in checkpoints.HEADS and published != model_name:
        trained_on = checkpoints.published_encoder_sha256(published, download_root)
        if trained_on is None:
            message = f"head {source} is right for {model_name} only if that has the encoder of {published}, which is "
            warnings.warn(f"{message}not here to compare with: load_model({published!r}) fetches it", stacklevel=4)
    if trained_on and trained_on != checkpoints.encoder_sha256(model.encoder.state_dict(prefix="encoder.")):
        message = f"head {source} was trained on another encoder than that of {model_name}: its tags may be wrong"
        warnings.warn(message, stacklevel=4)  # of load_model or attach
    return head


def load_head_or_classifier(
    source: str | Path, model: WhisperAT, download_root: str | None = None, model_name: str = "this model"
) -> Head | WaveformClassifier:
    """Return what `load_head` does, or the adapted classifier that a file holds instead."""
    path = checkpoints.find_head(str(source), download_root)
    if path.suffix == ".safetensors":
        metadata = checkpoints.open_head(path)[1]
        classifier = open_classifier(path, metadata, device=model.device, download_root=download_root)
        if classifier is not None:
            return classifier
    return load_head(source, model, download_root, model_name)
