"""Decoding of windows at rising temperatures while a result looks bad, and the language that is spoken."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from whisper.audio import N_FRAMES
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.tokenizer import LANGUAGES

from .engine.kv_cache import EncodedAudio
from .mel import LogMel

if TYPE_CHECKING:
    from .model import WhisperAT


class Thresholds(NamedTuple):
    """When a decoded window counts as failed, and when as silence; None switches a test off.

    The rules are those of openai-whisper's `transcribe`.
    """

    compression_ratio: float | None
    logprob: float | None
    no_speech: float | None

    def failed(self, result: DecodingResult) -> bool:
        """Return whether another temperature should be tried."""
        silent = self.no_speech is not None and result.no_speech_prob > self.no_speech
        return not (silent and self._is_improbable(result)) and self.is_doubtful(result)

    def is_doubtful(self, result: DecodingResult) -> bool:
        """Return whether a text repeats itself or is improbable, be it that there is speech or not."""
        repetitive = self.compression_ratio is not None and result.compression_ratio > self.compression_ratio
        return repetitive or self._is_improbable(result)

    def _is_improbable(self, result: DecodingResult) -> bool:
        return self.logprob is not None and result.avg_logprob < self.logprob

    def is_silent(self, result: DecodingResult) -> bool:
        """Return whether a window holds no speech: improbable text where the model expected none."""
        if self.no_speech is None or not result.no_speech_prob > self.no_speech:
            return False
        return self.logprob is None or not result.avg_logprob > self.logprob


def decoder_inputs(model: WhisperAT, features: Tensor) -> EncodedAudio | Tensor:
    """Return what the decoder takes of features ``(batch, 1500, dim)``: computed once for all temperatures.

    A decoder that was changed takes the features themselves.
    """
    return model.precompute_cross_kv(features) if model.is_unmodified else features


def prepare_decoder(model: WhisperAT, dtype: torch.dtype) -> None:
    """Load kernels for `decoder_inputs`, or have them compiled, before there is audio that takes memory as well."""
    if model.is_unmodified:
        model.fast_decoder(dtype).kernels_are_ready()


def decode_with_fallback(
    model: WhisperAT,
    encoded: EncodedAudio | Tensor,
    decode_options: Mapping[str, Any],
    temperatures: Sequence[float],
    thresholds: Thresholds,
) -> list[DecodingResult]:
    """Decode a batch of windows, each at the next temperature while its result looks bad.

    Parameters
    ----------
    model : WhisperAT
        The model.
    encoded : EncodedAudio or Tensor
        The windows, as `decoder_inputs` gives them.
    decode_options : dict
        Options of ``DecodingOptions`` but the temperature.
    temperatures : sequence of float
        Tried one after the other; the last result stands, however it looks.
    thresholds : Thresholds
        When a result looks bad.
    """
    results: dict[int, DecodingResult] = {}
    pending = list(range(len(encoded.features if isinstance(encoded, EncodedAudio) else encoded)))
    for temperature in temperatures:
        # beams are for temperature 0 and samples for the rest
        unused = ("beam_size", "patience") if temperature > 0 else ("best_of",)
        kwargs = {name: value for name, value in decode_options.items() if name not in unused}
        part = select_windows(encoded, pending) if results else encoded
        found = model.decode(part, DecodingOptions(**kwargs, temperature=temperature))
        results |= zip(pending, found)
        pending = [i for i in pending if thresholds.failed(results[i])]
        if not pending:
            break
    return [results[i] for i in sorted(results)]


def select_windows(encoded: EncodedAudio | Tensor, windows: list[int]) -> EncodedAudio | Tensor:
    """Return some windows of a batch."""
    if isinstance(encoded, Tensor):
        return encoded[windows]
    if len(windows) == len(encoded.features):
        return encoded
    return encoded.select(windows)


def use_half(model: WhisperAT, fp16: bool) -> bool:
    """Return whether to compute in float16, with upstream's warnings where a CPU cannot, or a GPU stands idle."""
    half = fp16 if model.compute_type is None else model.compute_type == "float16"
    if model.device == torch.device("cpu"):
        if torch.cuda.is_available():
            warnings.warn("Performing inference on CPU when CUDA is available")
        if half:
            warnings.warn("FP16 is not supported on CPU; using FP32 instead")
            half = False
    return half


def detect_spoken_language(
    model: WhisperAT, mel: LogMel, encoded: EncodedAudio | Tensor | None, dtype: torch.dtype, verbose: bool | None
) -> str:
    """Return the code of the language spoken in the first 30 s, or English if the model knows no other.

    `encoded` is that part of the recording if it has been encoded already.
    """
    if not model.is_multilingual:
        return "en"
    if verbose:
        print("Detecting language using up to the first 30 seconds. Use `--language` to specify the language")
    if encoded is None:
        with torch.no_grad():
            features = model.embed_audio(mel.window(0, N_FRAMES).to(model.device).to(dtype)[None])
        encoded = decoder_inputs(model, features)
    _, found = model.detect_language(encoded)
    probabilities = cast(list[dict[str, float]], found)[0]
    language = max(probabilities, key=probabilities.__getitem__)
    if verbose is not None:
        print(f"Detected language: {LANGUAGES[language].title()}")
    return language
