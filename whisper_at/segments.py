"""From the tokens of one decoded window to segments, and to the frame where the next window starts.

The rules are openai-whisper's, as its `transcribe` applies them; here each is a function over
explicit values. Times are seconds from the start of the file, ``seek`` is in mel frames (10 ms).
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
import tqdm
from whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, SAMPLE_RATE
from whisper.decoding import DecodingResult
from whisper.tokenizer import Tokenizer
from whisper.utils import exact_div, format_timestamp, get_end, make_safe

from .windows import Window

PUNCTUATION = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"
"""Marks that do not count as words when a segment is judged."""


class Split(NamedTuple):
    """What a window's tokens say: its segments, where to go on, and whether speech ended before the window."""

    segments: list[dict[str, Any]]
    seek: int
    ends_in_silence: bool


def print_segment(segment: dict[str, Any]) -> None:
    """Print a segment as ``[00:01.000 --> 00:05.900]  text``, as openai-whisper does."""
    start, end = format_timestamp(segment["start"]), format_timestamp(segment["end"])
    print_line(f"[{start} --> {end}] {segment['text']}")


def print_line(text: str) -> None:
    """Print a line of any script, above a progress bar if there is one."""
    if sys.stdout is not None:  # as where a program has no console
        tqdm.tqdm.write(make_safe(text))


def has_text(segment: dict[str, Any]) -> bool:
    """Return whether a segment says anything: of silence, a decoder may write two timestamps and nothing between."""
    return bool(segment["text"].strip())


def text_of(tokens: list[int], tokenizer: Tokenizer) -> str:
    """Return the text of the tokens of segments, without what those leave out: timestamps and special tokens."""
    return tokenizer.decode([token for token in tokens if token < tokenizer.eot])


def clear_if_empty(segment: dict[str, Any]) -> None:
    """Clear a segment that takes no time or has no text, as openai-whisper does."""
    if segment["start"] == segment["end"] or segment["text"].strip() == "":
        segment.update(text="", tokens=[], words=[])


def split_segments(
    result: DecodingResult, window: Window, tokenizer: Tokenizer, n_audio_ctx: int, *, ends_in_pause: bool = False
) -> Split:
    """Cut a window's tokens at its timestamps.

    Two timestamps in a row end one segment and start the next. Where such a pair exists, tokens
    after the last one belong to a segment that the window cut off: they are dropped and the next
    window starts at that timestamp, unless a single timestamp closes the window. In a window that
    ``ends_in_pause``, that segment ends where the window does.
    """
    frames_per_position = exact_div(N_FRAMES, n_audio_ctx)
    seconds_per_position = frames_per_position * HOP_LENGTH / SAMPLE_RATE
    offset = float(window.seek * HOP_LENGTH / SAMPLE_RATE)
    tokens = torch.tensor(result.tokens)
    is_timestamp = tokens.ge(tokenizer.timestamp_begin)
    ends_in_silence = is_timestamp[-2:].tolist() == [False, True]

    def position(token: torch.Tensor) -> int:
        return token.item() - tokenizer.timestamp_begin

    def segment(start: float, end: float, tokens: torch.Tensor) -> dict[str, Any]:
        return {
            "seek": window.seek,
            "start": start,
            "end": end,
            "text": text_of(tokens.tolist(), tokenizer),
            "tokens": tokens.tolist(),
            "temperature": result.temperature,
            "avg_logprob": result.avg_logprob,
            "compression_ratio": result.compression_ratio,
            "no_speech_prob": result.no_speech_prob,
        }

    cuts = (torch.where(is_timestamp[:-1] & is_timestamp[1:])[0] + 1).tolist()
    if cuts:
        if ends_in_silence or ends_in_pause:
            cuts.append(len(tokens))
        segments = []
        for begin, stop in zip([0, *cuts], cuts):
            part = tokens[begin:stop]
            segments.append(
                segment(
                    offset + position(part[0]) * seconds_per_position,
                    offset + position(part[-1]) * seconds_per_position,
                    part,
                )
            )
        if ends_in_pause and not ends_in_silence:
            segments[-1]["end"] = float(window.end * HOP_LENGTH / SAMPLE_RATE)
        if ends_in_silence or ends_in_pause:
            return Split(segments, window.end, ends_in_silence)
        seek = window.seek + position(tokens[cuts[-1] - 1]) * frames_per_position
        return Split(segments, seek, False)

    duration = window.size * HOP_LENGTH / SAMPLE_RATE
    timestamps = tokens[is_timestamp]
    if len(timestamps) > 0 and timestamps[-1].item() != tokenizer.timestamp_begin:
        duration = position(timestamps[-1]) * seconds_per_position
    return Split([segment(offset, offset + duration, tokens)], window.end, ends_in_silence)


def seek_with_words(split: Split, window: Window, silence_threshold: float | None) -> int:
    """Where to go on when words are timed and speech ran into the window's end: behind the last word.

    With a silence threshold (seconds), only if more than that much of the window is left.
    """
    last_word_end = get_end(split.segments)
    offset = float(window.seek * HOP_LENGTH / SAMPLE_RATE)
    if split.ends_in_silence or last_word_end is None or last_word_end <= offset:
        return split.seek
    if silence_threshold is not None and _window_end(window) - last_word_end <= silence_threshold:
        return window.end
    return round(last_word_end * FRAMES_PER_SECOND)


def seek_past_leading_silence(split: Split, window: Window, threshold: float) -> int | None:
    """Where to start again if the window begins with silence and what follows looks invented, else None."""
    first = _next_with_words(split.segments)
    if first is None or not _is_anomalous(first):
        return None
    gap = first["start"] - float(window.seek * HOP_LENGTH / SAMPLE_RATE)
    return window.seek + round(gap * FRAMES_PER_SECOND) if gap > threshold else None


def drop_hallucinations(
    split: Split, window: Window, threshold: float, last_speech: float, content_frames: int
) -> Split:
    """Cut the segments at the first one that looks invented and has silence or the like on both sides.

    ``threshold`` is the silence in seconds, ``last_speech`` the end of the last word before the window.
    """
    offset = float(window.seek * HOP_LENGTH / SAMPLE_RATE)
    window_end = _window_end(window)
    previous_end = last_speech
    for i, segment in enumerate(split.segments):
        if not segment["words"]:
            continue
        if _is_anomalous(segment):
            following = _next_with_words(split.segments[i + 1 :])
            if following is not None:
                next_start = following["words"][0]["start"]
            else:
                next_start = offset + window.size * HOP_LENGTH / SAMPLE_RATE
            silence_before = (
                segment["start"] - previous_end > threshold
                or segment["start"] < threshold
                or segment["start"] - offset < 2.0
            )
            silence_after = (
                next_start - segment["end"] > threshold or _is_anomalous(following) or window_end - segment["end"] < 2.0
            )
            if silence_before and silence_after:
                seek = round(max(offset + 1, segment["start"]) * FRAMES_PER_SECOND)
                if float(content_frames * HOP_LENGTH / SAMPLE_RATE) - segment["end"] < threshold:
                    seek = content_frames
                return split._replace(segments=split.segments[:i], seek=seek)
        previous_end = segment["end"]
    return split


def _window_end(window: Window) -> float:
    """End of the 30 s that the encoder saw, padding included, in seconds."""
    return float((window.seek + N_FRAMES) * HOP_LENGTH / SAMPLE_RATE)


def _next_with_words(segments: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((s for s in segments if s["words"]), None)


def _is_anomalous(segment: dict[str, Any] | None) -> bool:
    """Whether a segment's first words are too improbable, too short or too long to be speech."""
    if segment is None or not segment["words"]:
        return False
    words = [w for w in segment["words"] if w["word"] not in PUNCTUATION][:8]
    score = sum(_anomaly(word) for word in words)
    return score >= 3 or score + 0.01 >= len(words)


def _anomaly(word: dict[str, Any]) -> float:
    duration = word["end"] - word["start"]
    score = 1.0 if word.get("probability", 0.0) < 0.15 else 0.0
    if duration < 0.133:
        score += (0.133 - duration) * 15
    if duration > 2.0:
        score += duration - 2.0
    return score
