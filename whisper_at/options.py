"""The options of `transcribe` and `transcribe_many`, as one value that is checked in one place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from whisper.decoding import DecodingOptions

from .fallback import Thresholds
from .tagging.timeline import resolutions

SEQUENTIAL_OPTIONS = (
    "condition_on_previous_text",
    "carry_initial_prompt",
    "hallucination_silence_threshold",
    "strict_word_timing",
)
"""Options that tie a window to the one before it, or to a pass of its own: batches do not take them."""


@dataclass(frozen=True)
class TranscribeOptions:
    """Everything that `transcribe` takes beside model and audio; see there for what each means.

    `decode_options` are those of openai-whisper's ``DecodingOptions``.

    Raises
    ------
    ValueError
        If a value is out of range, or options exclude each other.
    TypeError
        If there is no such option of decoding.
    """

    verbose: bool | None = None
    temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool = True
    initial_prompt: str | None = None
    carry_initial_prompt: bool = False
    word_timestamps: bool = False
    prepend_punctuations: str = "\"'“¿([{-"
    append_punctuations: str = "\"'.。,，!！?？:：”)]}、"
    clip_timestamps: str | list[float] = "0"
    hallucination_silence_threshold: float | None = None
    at_time_res: float | Iterable[float] | str | None = "auto"
    strict_word_timing: bool = True
    batch_size: int | None = None
    decode_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.at_time_res, Iterator):  # read more than once
            object.__setattr__(self, "at_time_res", list(self.at_time_res))
        if self.at_time_res is not None and not (isinstance(self.at_time_res, str) and self.at_time_res == "auto"):
            resolutions(self.at_time_res)  # type: ignore[arg-type]
        if self.batch_size is not None:
            if self.batch_size < 1:
                raise ValueError(f"batch_size must be 1 or more, not {self.batch_size}")
            if self.hallucination_silence_threshold is not None:
                raise ValueError(
                    "hallucination_silence_threshold needs one window after the other: leave out batch_size"
                )
        DecodingOptions(**self.decode_options)

    @classmethod
    def from_keywords(cls, **keywords: Any) -> TranscribeOptions:
        """Return the options given as keyword arguments of `transcribe`."""
        own = {name: keywords.pop(name) for name in _NAMES & keywords.keys()}
        return cls(**own, decode_options=keywords)

    @property
    def task(self) -> str:
        """``transcribe`` or ``translate``."""
        return self.decode_options.get("task", "transcribe")

    @property
    def temperatures(self) -> Sequence[float]:
        """Temperatures to try on a window, one after the other."""
        return [self.temperature] if isinstance(self.temperature, (int, float)) else self.temperature

    @property
    def thresholds(self) -> Thresholds:
        """When a decoded window counts as failed or silent."""
        return Thresholds(self.compression_ratio_threshold, self.logprob_threshold, self.no_speech_threshold)

    @property
    def punctuation(self) -> dict[str, str]:
        """Signs that join the word after or before them, as ``add_word_timestamps`` takes them."""
        return {
            "prepend_punctuations": self.prepend_punctuations,
            "append_punctuations": self.append_punctuations,
        }


_NAMES = {option.name for option in fields(TranscribeOptions)} - {"decode_options"}
