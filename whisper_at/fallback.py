"""Decoding of windows at rising temperatures while a result looks bad, and the language that is spoken."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from whisper.audio import N_FRAMES
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.tokenizer import LANGUAGES

from .engine.decoder import Heard
from .mel import LogMel

if TYPE_CHECKING:
    from .model import WhisperAT


class Thresholds(NamedTuple):
    """When a decoded window counts as failed, and when as silence; None switches a test off."""

    compression_ratio: float | None
    logprob: float | None
    no_speech: float | None

    def failed(self, result: DecodingResult) -> bool:
        """Whether another temperature should be tried."""
        repetitive = self.compression_ratio is not None and result.compression_ratio > self.compression_ratio
        improbable = self.logprob is not None and result.avg_logprob < self.logprob
        silent = self.no_speech is not None and result.no_speech_prob > self.no_speech
        return not (silent and improbable) and (repetitive or improbable)

    def is_silent(self, result: DecodingResult) -> bool:
        """Whether a window holds no speech: improbable text where the model expected none."""
        if self.no_speech is None or not result.no_speech_prob > self.no_speech:
            return False
        return self.logprob is None or not result.avg_logprob > self.logprob


def hear(model: WhisperAT, features: Tensor) -> Heard | Tensor:
    """What the decoder takes of windows' features ``(batch, 1500, dim)``: computed once for all tries."""
    return model.hear(features) if model.is_stock else features


def decode_with_fallback(
    model: WhisperAT,
    heard: Heard | Tensor,
    options: dict,
    temperature: float | Sequence[float],
    thresholds: Thresholds,
) -> list[DecodingResult]:
    """Decode a batch of windows; each at the next temperature while its result looks bad."""
    temperatures = [temperature] if isinstance(temperature, (int, float)) else temperature
    results: dict[int, DecodingResult] = {}
    open_windows = list(range(len(heard.features if isinstance(heard, Heard) else heard)))
    for t in temperatures:
        # beams are for temperature 0 and samples for the rest
        unused = ("beam_size", "patience") if t > 0 else ("best_of",)
        kwargs = {name: value for name, value in options.items() if name not in unused}
        part = select_windows(heard, open_windows) if results else heard
        found = model.decode(part, DecodingOptions(**kwargs, temperature=t))
        results |= zip(open_windows, found)
        open_windows = [i for i in open_windows if thresholds.failed(results[i])]
        if not open_windows:
            break
    return [results[i] for i in sorted(results)]


def select_windows(heard: Heard | Tensor, windows: list[int]) -> Heard | Tensor:
    """Some windows of a batch."""
    if isinstance(heard, Tensor):
        return heard[windows]
    if len(windows) == len(heard.features):
        return heard
    return Heard(heard.features[windows], heard.keys[:, windows], heard.values[:, windows])


def use_half(model: WhisperAT, fp16: bool) -> bool:
    """Whether to compute in float16; upstream's warnings where a CPU cannot, or a GPU stands idle."""
    half = fp16 if model.compute_type is None else model.compute_type == "float16"
    if model.device == torch.device("cpu"):
        if torch.cuda.is_available():
            warnings.warn("Performing inference on CPU when CUDA is available")
        if half:
            warnings.warn("FP16 is not supported on CPU; using FP32 instead")
            half = False
    return half


def detect_language(
    model: WhisperAT, mel: LogMel, heard: Heard | Tensor | None, dtype: torch.dtype, verbose: bool | None
) -> str:
    """Code of the language spoken in the first 30 s; English, unheard, if the model knows no other."""
    if not model.is_multilingual:
        return "en"
    if verbose:
        print("Detecting language using up to the first 30 seconds. Use `--language` to specify the language")
    if heard is None:
        with torch.no_grad():
            heard = hear(model, model.embed_audio(mel.window(0, N_FRAMES).to(model.device).to(dtype)[None]))
    _, found = model.detect_language(heard)
    probabilities = cast(list[dict[str, float]], found)[0]
    language = max(probabilities, key=probabilities.__getitem__)
    if verbose is not None:
        print(f"Detected language: {LANGUAGES[language].title()}")
    return language
