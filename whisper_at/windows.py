"""What happens to a window whether windows come one after the other or in batches: heard, decoded, tagged."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, SAMPLE_RATE
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.tokenizer import LANGUAGES

from .engine.decoder import Heard
from .mel import LogMel
from .tagging.heads import TLTR, Head, LayerPoolHead
from .tagging.listeners import Classes, Listener, Reader, listen, require_rate, row_spans, span_logits
from .tagging.timeline import (
    STEP_SECONDS,
    Classifier,
    TagRows,
    Window,
    is_single,
    pool_steps,
    resolutions,
    steps_to_seconds,
)

if TYPE_CHECKING:
    from .model import WhisperAT

AUTO_RESOLUTION = 10.0
"""Seconds per tag row when none is asked for: the length of the clips that AudioSet is labelled by."""


class Tagging:
    """The tag rows of one recording at all resolutions asked for, of the AudioSet head and of attached ones.

    Raises ValueError if a resolution is not a positive multiple of 0.4 s, the model has no head for them, or one that
    listens by itself cannot hear such ``audio``.
    """

    def __init__(
        self,
        model: WhisperAT,
        at_time_res: float | Iterable[float] | None,
        content_frames: int,
        audio: str | os.PathLike[str] | np.ndarray | Tensor = "",
    ) -> None:
        if isinstance(at_time_res, str) and at_time_res == "auto":
            at_time_res = None if model.head is None and not model.attached else AUTO_RESOLUTION
        self.row_steps = [] if at_time_res is None else resolutions(at_time_res)
        if self.row_steps and model.head is None and not model.attached:
            raise ValueError(f"cannot tag sounds: {model.head_missing}")
        self.several = not is_single(at_time_res)
        self.seconds = content_frames * HOP_LENGTH / SAMPLE_RATE
        attached = model.attached if self.row_steps else {}
        heads = (TLTR, LayerPoolHead)
        self.own = {name: head for name, head in attached.items() if isinstance(head, (*heads, Reader))}
        self.listeners = {name: cast(Listener, head) for name, head in attached.items() if name not in self.own}
        for listener in self.listeners.values():
            require_rate(audio, listener.sample_rate)
        self.needs_features = any(isinstance(head, Reader) for head in self.own.values())
        self.classifiers: dict[str, tuple[Classifier, int]] = {}
        for name, head in (self.own if model.head is None else {"audio_tag": model.head, **self.own}).items():
            # readers see one state more than heads
            plain = isinstance(head, Reader) or not self.needs_features
            self.classifiers[name] = head if plain else _Without(head), head.label_dim  # type: ignore[assignment, arg-type]
        self.rows = {
            name: {steps: TagRows(steps, content_frames, *classifier) for steps in self.row_steps}
            for name, classifier in self.classifiers.items()
            if self.row_steps
        }
        self.segments: dict[str, list[Tensor]] = {name: [] for name in self.own}

    def add(self, window: Window, states: Tensor, before: int) -> None:
        """Take a window's states; no window to come starts before the frame ``before``."""
        for by_steps in self.rows.values():
            for rows in by_steps.values():
                rows.flush(before)
                rows.add(window, states)

    def add_segment(self, window: Window, states: Tensor, segment: dict) -> None:
        """Take the next segment of the transcript, and the window that it was heard in."""
        for name, found in self.segments.items():
            found.append(span_logits(*self.classifiers[name], window, states, segment["start"], segment["end"]))

    def result(
        self, task: str, audio: str | os.PathLike[str] | np.ndarray | Tensor, segments: list[dict], order: list[int]
    ) -> dict:
        """What `transcribe` returns beside the transcript; nothing if no tags were asked for.

        ``order`` says which of the segments given to `add_segment` each of ``segments`` was.
        """
        if not self.row_steps:
            return {}
        seconds = [steps_to_seconds(steps) for steps in self.row_steps]

        def by_resolution(found: list) -> Any:
            return dict(zip(seconds, found)) if self.several else found[0]

        out: dict[str, Any] = {"at_time_res": seconds if self.several else seconds[0]}
        finished = {name: [rows.finish() for rows in by_steps.values()] for name, by_steps in self.rows.items()}
        if "audio_tag" in finished:
            out["audio_tag"] = by_resolution([logits for logits, _ in finished["audio_tag"]])
        for found in list(finished.values())[:1]:  # all heads heard the same
            out["audio_tag_coverage"] = by_resolution([coverage for _, coverage in found])
        out |= {"duration": self.seconds, "task": task}
        for name, head in self.own.items():
            spoken = [self.segments[name][i] for i in order]
            out[name] = _described(head.classes) | {
                "logits": by_resolution([logits for logits, _ in finished[name]]),
                "segments": torch.stack(spoken) if spoken else torch.zeros(0, head.label_dim),
            }
        for name, listener in self.listeners.items():
            total = math.ceil(round(self.seconds / STEP_SECONDS, 6))
            spans = [row_spans(-(-total // steps), steps, self.seconds) for steps in self.row_steps]
            spans.append([(segment["start"], segment["end"]) for segment in segments])
            heard = listen(listener, audio, [span for part in spans for span in part])
            *tag_rows, of_segments = heard.split(list(map(len, spans)))
            classes = Classes(tuple(listener.classes), listener.kind)
            out[name] = _described(classes) | {"logits": by_resolution(tag_rows), "segments": of_segments}
        return out


class _Without:
    """A head that is handed one state more than it reads."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def __call__(self, states: Tensor) -> Tensor:
        return self.head(states[:, :-1])


def encode(
    model: WhisperAT, mel: Tensor, windows: Sequence[Window], tagging: Sequence[Tagging]
) -> tuple[Tensor, Tensor]:
    """Features ``(batch, 1500, dim)`` of windows, and the states that their recordings' heads and readers are to see.

    No states are made where nobody is to see them.
    """
    if not any(each.rows for each in tagging):
        with torch.no_grad():
            return model.embed_audio(mel), torch.empty(len(mel), 0)
    features, states = model.encode(mel, windows)
    if any(each.needs_features for each in tagging):
        states = torch.cat([states, pool_steps(features, windows)[:, None]], dim=1)
    return features, states


def _described(classes: Classes | None) -> dict[str, Any]:
    assert classes is not None  # `attach` sees to it
    return {
        "classes": list(classes.names),
        "kind": classes.kind,
        "temperature": classes.temperature,
        "thresholds": None if classes.thresholds is None else list(classes.thresholds),
    }


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
        part = picked(heard, open_windows) if results else heard
        found = model.decode(part, DecodingOptions(**kwargs, temperature=t))
        results |= zip(open_windows, found)
        open_windows = [i for i in open_windows if thresholds.failed(results[i])]
        if not open_windows:
            break
    return [results[i] for i in sorted(results)]


def picked(heard: Heard | Tensor, windows: list[int]) -> Heard | Tensor:
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


def clips_of(clip_timestamps: str | Sequence[float], content_frames: int) -> list[tuple[int, int]]:
    """The clips to listen to, as pairs of frames, in the order given and none past the end.

    Raises ValueError for a time before the beginning, where upstream hears nothing but padding.
    """
    if isinstance(clip_timestamps, str):
        clip_timestamps = [float(seconds) for seconds in clip_timestamps.split(",") if clip_timestamps]
    if any(seconds < 0 for seconds in clip_timestamps):
        raise ValueError(f"clip_timestamps must not be negative: {list(clip_timestamps)}")
    points = [round(seconds * FRAMES_PER_SECOND) for seconds in clip_timestamps] or [0]
    if len(points) % 2:
        points.append(content_frames)
    return [(start, min(end, content_frames)) for start, end in zip(points[::2], points[1::2])]


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
