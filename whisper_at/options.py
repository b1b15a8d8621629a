"""The options of `transcribe` and `transcribe_many`, as one value that is checked in one place."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ParamSpec, TypeVar

from whisper.decoding import DecodingOptions

from .fallback import Thresholds
from .tagging.progress import Progress
from .tagging.timeline import resolutions
from .windows import parse_clip_timestamps

SEQUENTIAL_OPTIONS = (
    "condition_on_previous_text",
    "carry_initial_prompt",
    "hallucination_silence_threshold",
    "strict_word_timing",
    "on_progress",
)
"""Options that tie a window to the one before it, or to a pass of its own: batches do not take them."""

P = ParamSpec("P")
T = TypeVar("T")


def warn_of_unused(options: Mapping[str, Any]) -> None:
    """Warn of options, by the names that `transcribe` has for them, that batches of windows cannot respect."""
    if options.get("batch_size") is None:
        return
    if options.get("condition_on_previous_text"):
        warnings.warn(
            "condition_on_previous_text has no effect with batch_size: windows of a batch do not see one another's text"
        )
    if options.get("carry_initial_prompt") is False and options.get("initial_prompt"):
        warnings.warn("carry_initial_prompt=False has no effect with batch_size: every window gets the initial prompt")
    if options.get("strict_word_timing") and options.get("word_timestamps"):
        warnings.warn("strict_word_timing has no effect with batch_size: words are timed from what text came from")


def warns_of_unused(transcribe: Callable[P, T]) -> Callable[P, T]:
    """Make a function call `warn_of_unused` on what it is given, which defaults are not."""

    @functools.wraps(transcribe)
    def checked(*args: P.args, **options: P.kwargs) -> T:
        warn_of_unused(options)
        return transcribe(*args, **options)

    return checked


@dataclass(frozen=True)
class TranscribeOptions:
    """Everything that `transcribe` takes beside model and audio; see there for what each means.

    `decode_options` are those of openai-whisper's ``DecodingOptions``. `clip_timestamps` are as `parse_clip_timestamps`
    returns them.

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
    clip_timestamps: Any = "0"
    hallucination_silence_threshold: float | None = None
    at_time_res: float | Iterable[float] | str | None = "auto"
    strict_word_timing: bool = True
    batch_size: int | None = None
    audio_track: int | str | None = None
    speech_gate: bool | float = False
    missed_speech: bool = False
    on_progress: Callable[[Progress], object] | None = None
    event_rows: bool = False
    decode_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.at_time_res, Iterator):  # read more than once
            object.__setattr__(self, "at_time_res", list(self.at_time_res))
        if self.at_time_res is not None and not (isinstance(self.at_time_res, str) and self.at_time_res == "auto"):
            resolutions(self.at_time_res)  # type: ignore[arg-type]
        if self.batch_size is not None:
            if self.batch_size < 1:
                raise ValueError(f"batch_size must be 1 or more, not {self.batch_size}")
            for name in ("hallucination_silence_threshold", "on_progress"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs one window after the other: leave out batch_size")
        if self.initial_prompt is not None and not isinstance(self.initial_prompt, str):
            raise ValueError(f"initial_prompt must be text, not {self.initial_prompt!r:.60}")
        if not 0 <= self.speech_gate <= 1:
            raise ValueError(f"speech_gate must be True, False or a probability, 0 to 1, not {self.speech_gate!r}")
        DecodingOptions(**self.decode_options)
        object.__setattr__(self, "clip_timestamps", parse_clip_timestamps(self.clip_timestamps))

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
