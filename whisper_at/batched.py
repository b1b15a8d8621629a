"""Many windows at once: a recording is cut where it is quietest, and windows of several recordings share batches.

Windows do not see each other's text. What a window leaves undone, because its last segment ran into the cut, is heard
again as a window of its own.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import tqdm
from torch import Tensor
from whisper.audio import N_FRAMES, pad_or_trim
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.tokenizer import Tokenizer, get_tokenizer
from whisper.utils import format_timestamp, get_end, make_safe

from .engine.alignment import add_word_timestamps, timing_model
from .engine.decoder import Heard
from .fallback import Thresholds, decode_with_fallback, detect_language, hear, select_windows, use_half
from .mel import LogMel
from .segments import split_segments
from .tagging.tagger import Tagger, encode
from .windows import Window, parse_clip_timestamps, quiet_cuts

if TYPE_CHECKING:
    from .model import WhisperAT

Audio = str | os.PathLike[str] | np.ndarray | Tensor

END: Any = object()
"""Behind the last recording; None would be a wrong one."""
SHORTEST_REST = 20
"""Frames behind a window's last segment that are not worth a window of their own."""


class _Recording:
    """A recording of which some windows are still to be heard."""

    def __init__(self, model: WhisperAT, audio: Audio, options: _Options) -> None:
        self.audio = audio
        self.mel = LogMel(audio, model.dims.n_mels)
        try:
            self.clips = parse_clip_timestamps(options.clip_timestamps, self.mel.content_frames)
            self.tagging = Tagger(model, options.at_time_res, self.mel.content_frames, audio)
            self.language = options.decode_options.get("language") or detect_language(
                model, self.mel, None, options.dtype, options.verbose
            )
            self.tokenizer: Tokenizer = get_tokenizer(
                model.is_multilingual, num_languages=model.num_languages, language=self.language, task=options.task
            )
        except BaseException:
            self.mel.close()
            raise
        self.jobs = [
            _Job(self, window, min([window.seek, *(start for start, _ in self.clips[i + 1 :])]))
            for i, clip in enumerate(self.clips)
            for window in quiet_cuts(self.mel, *clip)
        ]
        self.undone = len(self.jobs)
        self.segments: list[dict] = []
        self.last_speech = 0.0

    def result(self, options: _Options) -> dict:
        """What `transcribe` returns; ``verbose`` prints it, since recordings take turns."""
        self.mel.close()
        order = sorted(range(len(self.segments)), key=lambda i: self.segments[i]["start"])
        segments = [self.segments[i] for i in order]
        for segment in segments if options.verbose else []:
            start, end = format_timestamp(segment["start"]), format_timestamp(segment["end"])
            print(make_safe(f"[{start} --> {end}] {segment['text']}"))
        tokens = [token for segment in segments for token in segment["tokens"]]
        numbered = [{"id": i, **segment} for i, segment in enumerate(segments)]
        transcript = {"text": self.tokenizer.decode(tokens), "segments": numbered, "language": self.language}
        return transcript | self.tagging.result(options.task, self.audio, segments, order)


class _Job(NamedTuple):
    """A window to be heard. ``before``: no later window of its recording starts earlier; None for a rest, whose sounds
    are known already. ``last_speech``: where the last word before a rest ends, in seconds.
    """

    recording: _Recording
    window: Window
    before: int | None
    last_speech: float = 0.0


class _Options(NamedTuple):
    """The options of `transcribe` that matter here."""

    temperature: float | Sequence[float]
    thresholds: Thresholds
    clip_timestamps: str | list[float]
    at_time_res: float | Iterable[float] | None
    word_timestamps: bool
    punctuation: dict[str, str]
    verbose: bool | None
    task: str
    decode_options: dict
    dtype: torch.dtype


def transcribe_many(
    model: WhisperAT,
    recordings: Iterable[Audio],
    *,
    batch_size: int = 8,
    verbose: bool | None = None,
    temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    initial_prompt: str | None = None,
    word_timestamps: bool = False,
    prepend_punctuations: str = "\"'“¿([{-",
    append_punctuations: str = "\"'.。,，!！?？:：”)]}、",
    clip_timestamps: str | list[float] = "0",
    at_time_res: float | Iterable[float] | None = "auto",  # type: ignore[assignment]
    **decode_options,
) -> Iterator[tuple[Audio, dict | Exception]]:
    """Transcribe and tag recordings, ``batch_size`` windows at a time.

    Yields each recording with its result, in the shape of `transcribe`'s, as soon as it is finished. One that cannot be
    read or transcribed comes with its exception, and the others go on. Recordings are opened when their turn comes.

    The options are those of `transcribe` that do not tie a window to the one before it. Every window is given the
    initial prompt, and none the text before it. Words are timed from the features that the text came from.

    Raises
    ------
    ValueError
        If ``batch_size`` is not positive, or tags are asked for that the model cannot give.
    TypeError
        If there is no such option, or ``recordings`` is a single one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    if isinstance(recordings, (str, os.PathLike, np.ndarray, Tensor)):
        raise TypeError("transcribe_many takes several recordings: give a list, or use transcribe(…, batch_size=N)")
    DecodingOptions(**decode_options)  # what does not exist or cannot be tagged is refused before anything is read
    at_time_res = list(at_time_res) if isinstance(at_time_res, Iterator) else at_time_res
    Tagger(model, at_time_res, 0)
    half = use_half(model, decode_options.get("fp16", True))
    options = _Options(
        temperature,
        Thresholds(compression_ratio_threshold, logprob_threshold, no_speech_threshold),
        clip_timestamps,
        at_time_res,
        word_timestamps,
        {"prepend_punctuations": prepend_punctuations, "append_punctuations": append_punctuations},
        verbose,
        decode_options.get("task", "transcribe"),
        {**decode_options, "fp16": half},
        torch.float16 if half else torch.float32,
    )
    if initial_prompt is not None:
        options.decode_options["prompt"] = initial_prompt
    if word_timestamps and options.task == "translate":
        warnings.warn("Word-level timestamps on translations may not be reliable.")
    return _run(model, recordings, batch_size, options)


def _run(
    model: WhisperAT, recordings: Iterable[Audio], batch_size: int, options: _Options
) -> Iterator[tuple[Audio, dict | Exception]]:
    waiting = iter(recordings)
    jobs: deque[_Job] = deque()
    with tqdm.tqdm(total=0, unit="frames", disable=options.verbose is not False) as progress:
        while True:
            while len(jobs) < batch_size and (audio := next(waiting, END)) is not END:
                try:
                    recording = _Recording(model, audio, options)
                except Exception as error:
                    yield audio, error
                    continue
                progress.total += sum(job.window.size for job in recording.jobs)
                jobs.extend(recording.jobs)
                if not recording.jobs:
                    yield audio, _finished(recording, options)
            if not jobs:
                return
            language = jobs[0].recording.language
            batch = [job for job in jobs if job.recording.language == language][:batch_size]
            try:
                rests, failed = _hear_all(model, batch, options)
            except torch.OutOfMemoryError:
                rests = None  # the error holds on to what the batch has computed until this clause ends
            if rests is None:
                batch_size = (len(batch) + 1) // 2
                warnings.warn(f"out of memory: going on with batches of {batch_size} windows")
                _free_memory(model)
                continue
            taken = {id(job) for job in batch}
            jobs = deque(job for job in [*rests, *jobs] if id(job) not in taken and id(job.recording) not in failed)
            for recording, reason in failed.values():
                recording.mel.close()
                yield recording.audio, reason
            for job in rests:
                job.recording.undone += 1
            for job in batch:
                progress.update(0 if job.before is None else job.window.size)
                job.recording.undone -= 1
                if job.recording.undone == 0 and id(job.recording) not in failed:
                    yield job.recording.audio, _finished(job.recording, options)


def _finished(recording: _Recording, options: _Options) -> dict | Exception:
    """A recording's result; or why there is none, for listeners with an encoder of their own read it again."""
    try:
        return recording.result(options)
    except Exception as error:
        return error


class _Listened(NamedTuple):
    """Of the windows of a batch: states for heads, what the decoder hears, and texts."""

    states: Tensor
    heard: Heard | Tensor
    results: list[DecodingResult]


_Failed = dict[int, tuple[_Recording, Exception]]
"""Recordings by their ids, and what went wrong."""


def _hear_all(model: WhisperAT, batch: list[_Job], options: _Options) -> tuple[list[_Job], _Failed]:
    """Add the windows of a batch to their recordings → the rests that they leave, and recordings that failed.

    Raises
    ------
    torch.OutOfMemoryError
        If a batch of several windows is too much; nothing has been added then.
    """
    rests: list[_Job] = []
    failed: _Failed = {}
    for part, listened in _listen_to_all(model, batch, options):
        if isinstance(listened, Exception):
            failed |= {id(job.recording): (job.recording, listened) for job in part}
            continue
        for i, (job, result) in enumerate(zip(part, listened.results)):
            if id(job.recording) in failed:
                continue
            try:
                if job.before is not None:
                    job.recording.tagging.add(job.window, listened.states[i], job.before)
                timed = select_windows(listened.heard, [i]) if options.word_timestamps else None
                if (rest := _write(model, job, listened.states[i], result, timed, options)) is not None:
                    rests.append(rest)
            except Exception as error:
                failed[id(job.recording)] = (job.recording, error)
    return rests, failed


def _listen_to_all(
    model: WhisperAT, batch: list[_Job], options: _Options
) -> list[tuple[list[_Job], _Listened | Exception]]:
    """The windows of a batch together; or, where that fails, each recording's by themselves."""
    try:
        return [(batch, _listen(model, batch, options))]
    except torch.OutOfMemoryError as error:
        if len(batch) > 1:
            raise
        return [(batch, error.with_traceback(None))]  # whose frames hold what was computed
    except Exception as error:
        recordings = list({id(job.recording): job.recording for job in batch}.values())
        if len(recordings) == 1:
            return [(batch, error)]
    parts = [[job for job in batch if job.recording is recording] for recording in recordings]
    return [listened for part in parts for listened in _listen_to_all(model, part, options)]


def _free_memory(model: WhisperAT) -> None:
    """Forget what is kept for the next batch, which will have another shape."""
    gc.collect()  # decoding leaves cycles
    if model._decoder is not None:
        model._decoder.steps.clear()
    torch.cuda.empty_cache()


def _listen(model: WhisperAT, batch: list[_Job], options: _Options) -> _Listened:
    """Encode and decode windows of one language."""
    windows = [job.window for job in batch]
    mel = torch.stack(
        [pad_or_trim(job.recording.mel.window(job.window.seek, job.window.end), N_FRAMES) for job in batch]
    )
    mel = mel.to(model.device).to(options.dtype)
    features, states = encode(model, mel, windows, [job.recording.tagging for job in batch])
    heard = hear(model, features)
    decode_options = {**options.decode_options, "language": batch[0].recording.language}
    results = decode_with_fallback(model, heard, decode_options, options.temperature, options.thresholds)
    return _Listened(states, heard, results)


def _write(
    model: WhisperAT, job: _Job, states: Tensor, result: DecodingResult, heard: Heard | Tensor | None, options: _Options
) -> _Job | None:
    """Add a window's segments to its recording; returns what is left of the window, if its last segment was cut."""
    recording, window = job.recording, job.window
    if options.thresholds.is_silent(result):
        return None
    split = split_segments(result, window, recording.tokenizer, model.dims.n_audio_ctx)
    last_speech = job.last_speech if job.before is None else recording.last_speech
    if heard is not None:
        add_word_timestamps(
            segments=split.segments,
            model=timing_model(model, heard),
            tokenizer=recording.tokenizer,
            mel=heard.features[0] if isinstance(heard, Heard) else heard[0],
            num_frames=window.size,
            last_speech_timestamp=last_speech,
            **options.punctuation,
        )
        if (last_word_end := get_end(split.segments)) is not None:
            last_speech = last_word_end
        if job.before is not None:  # when rests are heard depends on the batch
            recording.last_speech = last_speech
    for segment in split.segments:
        if segment["start"] == segment["end"] or segment["text"].strip() == "":
            segment.update(text="", tokens=[], words=[])
        recording.segments.append(segment)
        recording.tagging.add_segment(window, states, segment)
    if window.seek < split.seek < window.end - SHORTEST_REST:
        return _Job(recording, Window(split.seek, window.end - split.seek), None, last_speech)
    return None
