"""Speech recognisers as plain functions from audio to text."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import checkpoints
from ..checkpoints import hub
from ..suggest import did_you_mean

Recogniser = Callable[[np.ndarray], str]
"""Function from audio, float32 ``(samples,)`` at 16 kHz, to text."""
EXAMPLES = ("whisper_at:nano.en", "whisper:tiny.en", "ctc:facebook/wav2vec2-base-960h")


def load_recogniser(name: str, device: str | None = None) -> Recogniser:
    """Load a recogniser.

    Parameters
    ----------
    name : str
        ``whisper_at:MODEL`` for this package's `load_model` or ``whisper:MODEL`` for openai-whisper's, both
        transcribing English with default options; ``ctc:MODEL`` for a CTC model of ``transformers`` (id or folder),
        decoded greedily.
    device : str, optional
        PyTorch device; CUDA if available by default.

    Returns
    -------
    Recogniser

    Raises
    ------
    ValueError
        If there is no such kind of recogniser or no such model.
    RuntimeError
        If the model cannot be loaded.
    """
    kind, model = parse_recogniser(name)
    return LOADERS[kind](model, device or ("cuda" if torch.cuda.is_available() else "cpu"))


def parse_recogniser(name: str) -> tuple[str, str]:
    """Split ``kind:model`` and check both as far as possible without loading the model; raise ValueError if wrong."""
    kind, _, model = name.partition(":")
    if kind not in LOADERS or not model:
        raise ValueError(f"no recogniser {name!r}: give kind:model, such as {', '.join(EXAMPLES)}")
    exists = os.path.exists(os.path.expanduser(model))
    if kind == "ctc":
        if not exists and not hub.is_hub_id(model):
            raise ValueError(f"no recogniser {name!r}: {model!r} is neither a folder nor an id as in {EXAMPLES[2]}")
        return kind, model
    known = [n for n in checkpoints.available_models() if kind == "whisper_at" or n != checkpoints.EMBEDDED]
    if not exists and model not in known and not (kind == "whisper_at" and hub.is_hub_id(model)):
        raise ValueError(f"no recogniser {name!r}: no file or model has that name; {did_you_mean(model, known)}")
    return kind, model


def _load_whisper_at(model: str, device: str) -> Recogniser:
    from ..loading import load_model

    return _whisper_recogniser(load_model(model, device, head=None))


def _load_openai_whisper(model: str, device: str) -> Recogniser:
    import whisper

    return _whisper_recogniser(whisper.load_model(model, device))


def _whisper_recogniser(model: Any) -> Recogniser:
    fp16 = model.device.type == "cuda"
    return lambda audio: model.transcribe(audio, language="en", fp16=fp16)["text"]


def _load_ctc(model: str, device: str) -> Recogniser:
    from transformers import AutoModelForCTC, AutoProcessor

    try:
        processor, network = AutoProcessor.from_pretrained(model), AutoModelForCTC.from_pretrained(model)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise RuntimeError(f"recogniser ctc:{model} does not load: {reason}") from None
    network = network.to(device).eval()

    @torch.no_grad()
    def recognise(audio: np.ndarray) -> str:
        inputs = processor(audio, sampling_rate=16000, return_tensors="pt").to(device)
        return processor.batch_decode(network(**inputs).logits.argmax(-1))[0]

    return recognise


LOADERS: dict[str, Callable[[str, str], Recogniser]] = {
    "whisper_at": _load_whisper_at,
    "whisper": _load_openai_whisper,
    "ctc": _load_ctc,
}
