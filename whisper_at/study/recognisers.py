"""Speech recognisers behind one small interface: from samples at 16 kHz to text."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import checkpoints
from ..checkpoints import huggingface

Recogniser = Callable[[np.ndarray], str]
"""From float32 ``(samples,)`` at 16 kHz to text."""


def load_recogniser(name: str, device: str | None = None) -> Recogniser:
    """Load a recogniser by ``kind:model``.

    ``whisper_at:nano.en`` is this package's `load_model`, ``whisper:tiny.en`` openai-whisper's, each transcribing
    English with all defaults (greedy, then at higher temperatures); ``ctc:facebook/wav2vec2-base-960h`` is a
    ``transformers`` model with a CTC output, an id or a folder, whose likeliest symbols are taken.

    Raises
    ------
    ValueError
        If there is no such kind or model, see `check_recogniser`.
    RuntimeError
        If the model does not load.
    """
    kind, model = check_recogniser(name)
    return KINDS[kind](model, device or ("cuda" if torch.cuda.is_available() else "cpu"))


def check_recogniser(name: str) -> tuple[str, str]:
    """Kind and model of a recogniser's name; ValueError if there is no such kind, or clearly no such model."""
    kind, colon, model = name.partition(":")
    if kind not in KINDS or not colon or not model:
        raise ValueError(f"no recogniser {name!r}: give kind:model, such as {', '.join(EXAMPLES)}")
    there = os.path.exists(os.path.expanduser(model))
    if kind == "ctc":
        if not there and not huggingface.is_hub_id(model):
            raise ValueError(f"no recogniser {name!r}: {model!r} is neither a folder nor an id as in {EXAMPLES[2]}")
        return kind, model
    known = [n for n in checkpoints.available_models() if kind == "whisper_at" or n != checkpoints.EMBEDDED]
    if not there and model not in known and not (kind == "whisper_at" and huggingface.is_hub_id(model)):
        near = difflib.get_close_matches(model, known, n=3) or known
        raise ValueError(f"no recogniser {name!r}: no file, and no model of that name (there is {', '.join(near)})")
    return kind, model


def _whisper_at(model: str, device: str) -> Recogniser:
    from ..model import load_model

    return _transcribing(load_model(model, device, head=None))


def _openai_whisper(model: str, device: str) -> Recogniser:
    import whisper

    return _transcribing(whisper.load_model(model, device))


def _transcribing(model: Any) -> Recogniser:
    half = model.device.type == "cuda"
    return lambda audio: model.transcribe(audio, language="en", fp16=half)["text"]


def _ctc(model: str, device: str) -> Recogniser:
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


KINDS: dict[str, Callable[[str, str], Recogniser]] = {
    "whisper_at": _whisper_at,
    "whisper": _openai_whisper,
    "ctc": _ctc,
}
EXAMPLES = ("whisper_at:nano.en", "whisper:tiny.en", "ctc:facebook/wav2vec2-base-960h")
