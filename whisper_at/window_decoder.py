"""One window of a recording: encoded once, decoded with fallback, cut into segments with timed words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from whisper.audio import FRAMES_PER_SECOND, N_FRAMES, pad_or_trim
from whisper.decoding import DecodingResult
from whisper.tokenizer import Tokenizer

from .engine.alignment import add_word_timestamps, alignment_model
from .engine.encoder import can_attend_unfused
from .engine.kv_cache import EncodedAudio
from .fallback import decode_with_fallback, decoder_inputs
from .mel import LogMel
from .options import TranscribeOptions
from .segments import Split, drop_hallucinations, seek_past_leading_silence, seek_with_words, split_segments
from .speech_gate import mark_recovered
from .tagging.tagger import Tagger, encode_windows
from .windows import Window

if TYPE_CHECKING:
    from .model import WhisperAT


@dataclass
class EncodedWindow:
    """A window as the encoder gives it."""

    model: WhisperAT
    mel: Tensor  # (n_mels, 3000)
    features: Tensor  # (1500, dim)
    states: Tensor  # (layers, steps, dim), or empty if nothing is to read them

    @cached_property
    def decoder_inputs(self) -> EncodedAudio | Tensor:
        """A batch of one, shared by all temperatures; what is not decoded does not need it."""
        return decoder_inputs(self.model, self.features[None])

    def forget_decoder_inputs(self) -> None:
        """Free their memory; they are computed again if they are asked for."""
        vars(self).pop("decoder_inputs", None)


class WindowEncoder:
    """Encodes a window the first time it is asked for; keeps the latest one only."""

    def __init__(
        self, model: WhisperAT, mel: LogMel, dtype: torch.dtype, tagger: Tagger, unfused_attention: bool
    ) -> None:
        self.model, self.mel, self.dtype, self.tagger = model, mel, dtype, tagger
        self.unfused_attention = unfused_attention
        self.latest: tuple[Window, EncodedWindow] | None = None

    def __call__(self, window: Window) -> EncodedWindow:
        """Encode a window, or return it if it is the latest."""
        if self.latest is None or self.latest[0] != window:
            if self.latest is not None:
                self.latest[1].forget_decoder_inputs()  # or there would be those of two windows
            mel = pad_or_trim(self.mel.window(window.seek, window.end), N_FRAMES)
            mel = mel.to(self.model.device).to(self.dtype)
            features, states = encode_windows(self.model, mel[None], [window], [self.tagger], self.unfused_attention)
            self.latest = window, EncodedWindow(self.model, mel, features[0], states[0])
        return self.latest[1]


class WindowDecoder:
    """Decodes encoded windows, and cuts them into segments with timed words, by the options of a transcription."""

    def __init__(
        self,
        model: WhisperAT,
        options: TranscribeOptions,
        decode_options: dict[str, Any],
        tokenizer: Tokenizer,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.options, self.decode_options, self.tokenizer = model, options, decode_options, tokenizer
        self.reuse = not options.strict_word_timing or model.compute_type in ("bfloat16", "int8")
        self.reuse = self.reuse or can_attend_unfused(model.encoder, dtype)

    def decode(self, encoded: EncodedWindow, prompt: list[int]) -> DecodingResult:
        """Decode a window, with fallback."""
        decode_options = {**self.decode_options, "prompt": prompt}
        (result,) = decode_with_fallback(
            self.model, encoded.decoder_inputs, decode_options, self.options.temperatures, self.options.thresholds
        )
        return result

    def split(self, result: DecodingResult, encoded: EncodedWindow, window: Window, last_speech: float) -> Split:
        """Return the segments of a decoded window, and where the next one starts."""
        split = split_segments(result, window, self.tokenizer, self.model.dims.n_audio_ctx)
        if not self.options.word_timestamps:
            return split
        add_word_timestamps(
            segments=split.segments,
            model=alignment_model(self.model, encoded.decoder_inputs if self.reuse else None),
            tokenizer=self.tokenizer,
            mel=encoded.features if self.reuse else encoded.mel,
            num_frames=window.size,
            last_speech_timestamp=last_speech,
            **self.options.punctuation,
        )
        return split._replace(seek=seek_with_words(split, window, self.options.hallucination_silence_threshold))

    def drop_hallucinations(
        self, split: Split, window: Window, last_speech: float, content_frames: int
    ) -> tuple[Split, bool]:
        """Return what `hallucination_silence_threshold` leaves, and False if the window starts again after silence."""
        threshold = self.options.hallucination_silence_threshold
        if threshold is None or not self.options.word_timestamps:
            return split, True
        after_silence = seek_past_leading_silence(split, window, threshold)
        if after_silence is not None:
            return Split([], after_silence, split.ends_in_silence), False
        return drop_hallucinations(split, window, threshold, last_speech, content_frames), True

    def recover(
        self, encoded: EncodedWindow, window: Window, prompt: list[int], segments: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return the text of a window that the tags hear speech in and `segments` lack; none if it looks bad.

        It does not see the text before it, which may be why the speech was missed.
        """
        result = self.decode(encoded, prompt)
        if self.options.thresholds.is_doubtful(result):
            return []
        return mark_recovered(self.split(result, encoded, window, window.seek / FRAMES_PER_SECOND).segments, segments)
