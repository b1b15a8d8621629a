"""Many windows at once: a recording is cut where it is quietest, and windows of several recordings share batches.

Windows do not see each other's text. As each ends in a pause, its text is made to reach the last sound before it, and
its last segment ends there: nothing is encoded twice. What is left over where a text outgrew the decoder's room, or
where a decoder that was changed breaks off, is decoded again as a window of its own.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import tqdm
from torch import Tensor
from whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, SAMPLE_RATE, pad_or_trim
from whisper.decoding import DecodingResult
from whisper.tokenizer import Tokenizer, get_tokenizer
from whisper.utils import get_end

from .audio import Bytes, Recording, readable
from .decoding import resolve_language
from .engine.alignment import add_word_timestamps, alignment_model
from .engine.kv_cache import EncodedAudio
from .fallback import (
    decode_with_fallback,
    decoder_inputs,
    detect_spoken_language,
    prepare_decoder,
    select_windows,
    use_half,
)
from .mel import LogMel
from .options import SEQUENTIAL_OPTIONS, TranscribeOptions
from .segments import Split, clear_if_empty, has_text, print_segment, split_segments, text_of
from .speech_gate import SpeechGate, mark_recovered, print_withheld
from .speech_tagger import SpeechProbabilities
from .tagging.tagger import Tagger, encode_windows, resolve_resolutions
from .windows import Window, clip_frames, quiet_cuts, sound_end

if TYPE_CHECKING:
    from .model import WhisperAT


@dataclass(frozen=True)
class PreparedRecording:
    """A recording whose spectrogram was computed ahead of its turn, in another thread say.

    Attributes
    ----------
    source : str, path, ndarray or Tensor
        What classifiers of waveforms read.
    mel : LogMel
        Its spectrogram, which is closed when the recording is done.
    """

    source: Any
    mel: LogMel


Audio = Recording | np.ndarray | Tensor | PreparedRecording

_OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
MIN_REMAINDER = 20
"""Frames of sound that are worth to be decoded behind a segment."""


def transcribe_many(
    model: WhisperAT, recordings: Iterable[Audio], *, batch_size: int = 8, **options: Any
) -> Iterator[tuple[Audio, dict[str, Any] | Exception]]:
    """Transcribe and tag recordings, `batch_size` windows at a time.

    Yields each recording with its result, in the shape of `transcribe`'s, as soon as it is finished. One that cannot be
    read or transcribed comes with its exception, and the others go on. Recordings are opened when their turn comes.

    Parameters
    ----------
    model : WhisperAT
        The model.
    recordings : iterable of str, path, bytes, binary file, ndarray or Tensor
        What `transcribe` takes as audio.
    batch_size : int
        Number of windows that are encoded and decoded together.
    **options
        Those of `transcribe` that do not tie a window to the one before it. Every window is given the initial prompt,
        and none the text before it. Words are timed from the features that the text came from.

    Raises
    ------
    ValueError
        If `batch_size` is not positive, or tags are asked for that the model cannot give.
    TypeError
        If there is no such option, or `recordings` is a single one.
    """
    for name in SEQUENTIAL_OPTIONS:
        if name in options:
            raise TypeError(f"transcribe_many takes no {name}: windows of a batch do not depend on one another")
    if isinstance(recordings, (str, os.PathLike, Bytes, np.ndarray, Tensor)) or hasattr(recordings, "read"):
        raise TypeError("transcribe_many takes several recordings: give a list, or use transcribe(…, batch_size=N)")
    return transcribe_in_batches(model, recordings, TranscribeOptions.from_keywords(batch_size=batch_size, **options))


def transcribe_in_batches(
    model: WhisperAT, recordings: Iterable[Audio], options: TranscribeOptions
) -> Iterator[tuple[Audio, dict[str, Any] | Exception]]:
    """Transcribe recordings as `transcribe_many` does; errors that concern all of them are raised at once."""
    return batch_decoder(model, options).run(recordings)


def batch_decoder(model: WhisperAT, options: TranscribeOptions) -> BatchDecoder:
    """Return what decodes windows of recordings with these options; errors that concern all of them are raised."""
    resolve_resolutions(model, options.at_time_res)  # what cannot be tagged is refused before anything is read
    SpeechGate(model, options.speech_gate, options.missed_speech)
    language, task = resolve_language(model, options.decode_options.get("language"), options.task)
    half = use_half(model, options.decode_options.get("fp16", True))
    decode_options = {**options.decode_options, "fp16": half, "language": language, "task": task}
    if options.initial_prompt is not None:
        decode_options["prompt"] = options.initial_prompt
    if options.word_timestamps and task == "translate":
        warnings.warn("Word-level timestamps on translations may not be reliable.")
    dtype = torch.float16 if half else torch.float32
    prepare_decoder(model, dtype)
    return BatchDecoder(model, replace(options, decode_options=decode_options), dtype)


class OpenRecording:
    """A recording of which some windows are still to be decoded."""

    def __init__(self, model: WhisperAT, audio: Audio, options: TranscribeOptions, dtype: torch.dtype) -> None:
        self.audio = audio
        prepared = audio if isinstance(audio, PreparedRecording) else None
        self.source = prepared.source if prepared else readable(audio, options.audio_track)
        if prepared is None:
            resolve_resolutions(model, options.at_time_res, self.source)
        self.mel = prepared.mel if prepared else LogMel(self.source, model.dims.n_mels)
        try:
            if prepared is not None:
                resolve_resolutions(model, options.at_time_res, self.source)
            clips = clip_frames(options.clip_timestamps, self.mel.content_frames)
            self.gate = SpeechGate(model, options.speech_gate, options.missed_speech)
            self.tagger = Tagger(
                model, options.at_time_res, self.mel.content_frames, options.event_rows, needs_states=self.gate.is_on
            )
            self.language = options.decode_options.get("language") or detect_spoken_language(
                model, self.mel, None, dtype, options.verbose
            )
            self.tokenizer: Tokenizer = get_tokenizer(
                model.is_multilingual, num_languages=model.num_languages, language=self.language, task=options.task
            )
        except BaseException:
            self.mel.close()
            raise
        windows = [window for clip in clips for window in quiet_cuts(self.mel, *clip)]
        self.jobs = [WindowJob(self, window, window.seek) for window in windows]
        self.n_pending = len(self.jobs)
        self.segments: list[dict[str, Any]] = []
        self.last_speech = 0.0

    def result(self, options: TranscribeOptions) -> dict[str, Any]:
        """Return what `transcribe` returns; ``verbose`` prints it, since recordings take turns."""
        self.mel.close()
        order = sorted(range(len(self.segments)), key=lambda i: self.segments[i]["start"])
        segments = [self.segments[i] for i in order]
        if options.verbose:
            for part in sorted([*segments, *self.gate.withheld], key=lambda part: part["start"]):
                print_withheld(part) if "reason" in part else print_segment(part)
        tokens = [token for segment in segments for token in segment["tokens"]]
        numbered = [{"id": i, **segment} for i, segment in enumerate(segments)]
        transcript = {"text": text_of(tokens, self.tokenizer), "segments": numbered, "language": self.language}
        return transcript | self.gate.result() | self.tagger.result(options.task, self.source, segments, order)


class WindowJob(NamedTuple):
    """A window to be decoded.

    ``settled_before`` : no later window of its recording starts before this frame; None for a remainder, which has
    been tagged already. ``last_speech`` : seconds at which the last word before a remainder ends. ``is_missed`` : the
    tags hear speech in it that the text lacks.
    """

    recording: OpenRecording
    window: Window
    settled_before: int | None
    last_speech: float = 0.0
    is_missed: bool = False


class _DecodedBatch(NamedTuple):
    """States for heads and where they hear speech, what the decoder was given, and texts, of the windows of a batch.

    The decoder was given those in `decoded` alone, by their places in the batch.
    """

    states: Tensor
    speech: list[SpeechProbabilities]
    decoded: list[int]
    decoder_inputs: EncodedAudio | Tensor | None
    results: list[DecodingResult]


_Failures = dict[int, tuple[OpenRecording, Exception]]
"""Recordings by their ids, and what went wrong."""


@dataclass
class BatchDecoder:
    """Decodes windows of any number of recordings in batches."""

    model: WhisperAT
    options: TranscribeOptions
    dtype: torch.dtype

    def run(self, recordings: Iterable[Audio]) -> Iterator[tuple[Audio, dict[str, Any] | Exception]]:
        """Yield every recording with its result, or with what went wrong."""
        remaining, more_recordings = iter(recordings), True
        batch_size = self.options.batch_size or 1
        jobs: deque[WindowJob] = deque()
        with tqdm.tqdm(total=0, unit="frames", disable=self.options.verbose is not False) as progress:
            while True:
                while more_recordings and len(jobs) < batch_size:
                    try:
                        audio = next(remaining)
                    except StopIteration:
                        more_recordings = False
                        break
                    try:
                        recording = OpenRecording(self.model, audio, self.options, self.dtype)
                    except Exception as error:
                        yield audio, error
                        continue
                    progress.total += sum(job.window.size for job in recording.jobs)
                    jobs.extend(recording.jobs)
                    if not recording.jobs:
                        yield audio, self.finish(recording)
                if not jobs:
                    return
                language = jobs[0].recording.language
                batch = [job for job in jobs if job.recording.language == language][:batch_size]
                try:
                    remainders, failures = self.process_batch(batch)
                except _OUT_OF_MEMORY:
                    remainders = None  # the error holds on to what the batch has computed until this clause ends
                if remainders is None:
                    batch_size = (len(batch) + 1) // 2
                    warnings.warn(f"out of memory: going on with batches of {batch_size} windows")
                    self.free_memory()
                    continue
                done = {id(job) for job in batch}
                jobs = deque(
                    job for job in [*remainders, *jobs] if id(job) not in done and id(job.recording) not in failures
                )
                for recording, reason in failures.values():
                    recording.mel.close()
                    yield recording.audio, reason
                for job in remainders:
                    job.recording.n_pending += 1
                for job in batch:
                    progress.update(0 if job.settled_before is None else job.window.size)
                    job.recording.n_pending -= 1
                    if job.recording.n_pending == 0 and id(job.recording) not in failures:
                        yield job.recording.audio, self.finish(job.recording)

    def finish(self, recording: OpenRecording) -> dict[str, Any] | Exception:
        """Return a recording's result, or why there is none: classifiers of waveforms read it again."""
        try:
            return recording.result(self.options)
        except Exception as error:
            return error

    def process_batch(self, batch: list[WindowJob]) -> tuple[list[WindowJob], _Failures]:
        """Decode windows, add them to their recordings; return the remainders they leave, and what failed.

        Raises
        ------
        torch.OutOfMemoryError, MemoryError
            If a batch of several windows is too much; nothing has been added then.
        """
        remainders: list[WindowJob] = []
        failures: _Failures = {}
        for part, decoded in self._decode_separately_on_error(batch):
            if isinstance(decoded, Exception):
                failures |= {id(job.recording): (job.recording, decoded) for job in part}
                continue
            for i, job in enumerate(part):
                if id(job.recording) in failures:
                    continue
                try:
                    if job.settled_before is not None:
                        job.recording.tagger.add_window(job.window, decoded.states[i], job.settled_before)
                    if i in decoded.decoded:
                        remainders += self._add_segments(job, decoded, i)
                    else:
                        job.recording.gate.withhold_window(job.window, decoded.speech[i])
                except Exception as error:
                    failures[id(job.recording)] = (job.recording, error)
        return remainders, failures

    def _decode_separately_on_error(
        self, batch: list[WindowJob]
    ) -> list[tuple[list[WindowJob], _DecodedBatch | Exception]]:
        """Decode windows together; where that fails, each recording's by themselves."""
        try:
            return [(batch, self._decode_batch(batch))]
        except _OUT_OF_MEMORY as error:
            if len(batch) > 1:
                raise
            return [(batch, error.with_traceback(None))]  # whose frames hold what was computed
        except Exception as error:
            recordings = list({id(job.recording): job.recording for job in batch}.values())
            if len(recordings) == 1:
                return [(batch, error)]
        parts = [[job for job in batch if job.recording is recording] for recording in recordings]
        return [decoded for part in parts for decoded in self._decode_separately_on_error(part)]

    def _decode_batch(self, batch: list[WindowJob]) -> _DecodedBatch:
        """Encode and decode windows of one language; MemoryError where a CPU has none left, as Python calls that."""
        try:
            return self._encode_and_decode(batch)
        except RuntimeError as error:
            if "DefaultCPUAllocator" not in str(error):
                raise
        raise MemoryError("not enough memory for a batch of windows")

    def _encode_and_decode(self, batch: list[WindowJob]) -> _DecodedBatch:
        windows = [job.window for job in batch]
        mels = [job.recording.mel.window(job.window.seek, job.window.end) for job in batch]
        mel = torch.stack([pad_or_trim(each, N_FRAMES) for each in mels]).to(self.model.device).to(self.dtype)
        features, states = encode_windows(self.model, mel, windows, [job.recording.tagger for job in batch])
        speech = [job.recording.gate.listen(job.window, each) for job, each in zip(batch, states)]
        spoken = [i for i, job in enumerate(batch) if job.recording.gate.has_speech(speech[i])]
        if not spoken:
            return _DecodedBatch(states, speech, [], None, [])
        inputs = decoder_inputs(self.model, features if len(spoken) == len(batch) else features[spoken])
        if isinstance(inputs, EncodedAudio):
            frames_per_position = N_FRAMES // self.model.dims.n_audio_ctx
            ends = [(sound_end(mels[i]) - MIN_REMAINDER) // frames_per_position for i in spoken]
            inputs = inputs._replace(sound_ends=torch.tensor(ends, device=self.model.device))
        decode_options = {**self.options.decode_options, "language": batch[0].recording.language}
        results = decode_with_fallback(
            self.model, inputs, decode_options, self.options.temperatures, self.options.thresholds
        )
        return _DecodedBatch(states, speech, spoken, inputs, results)

    def _add_segments(self, job: WindowJob, decoded: _DecodedBatch, i: int) -> list[WindowJob]:
        """Add the segments of a batch's window i to its recording; return what is still to be decoded of it."""
        recording, window = job.recording, job.window
        place = decoded.decoded.index(i)
        result, thresholds = decoded.results[place], self.options.thresholds
        if job.is_missed and thresholds.is_doubtful(result):
            return []
        if thresholds.is_silent(result) and not job.is_missed:
            return self._missed(job, Split([], window.end, ends_in_silence=True), decoded.speech[i])
        dims = self.model.dims
        room = min(self.options.decode_options.get("sample_len") or dims.n_text_ctx, dims.n_text_ctx // 2 - 4)
        complete = isinstance(decoded.decoder_inputs, EncodedAudio) and len(result.tokens) < room
        split = split_segments(result, window, recording.tokenizer, dims.n_audio_ctx, ends_in_pause=complete)
        for segment in split.segments:  # a decoder may count silence behind the window's end, which is not there
            if segment["start"] < (end := window.end * HOP_LENGTH / SAMPLE_RATE):
                segment["end"] = min(segment["end"], end)
        last_speech = job.last_speech if job.settled_before is None else recording.last_speech
        if self.options.word_timestamps and decoded.decoder_inputs is not None:
            inputs = select_windows(decoded.decoder_inputs, [place])
            add_word_timestamps(
                segments=split.segments,
                model=alignment_model(self.model, inputs),
                tokenizer=recording.tokenizer,
                mel=inputs.features[0] if isinstance(inputs, EncodedAudio) else inputs[0],
                num_frames=window.size,
                last_speech_timestamp=last_speech,
                **self.options.punctuation,
            )
            if (last_word_end := get_end(split.segments)) is not None:
                last_speech = last_word_end
            if job.settled_before is not None:  # when remainders are decoded depends on the batch
                recording.last_speech = last_speech
        kept = recording.gate.keep(split.segments, decoded.speech[i], recording.tokenizer)
        if job.is_missed:
            near = (window.seek - N_FRAMES) / FRAMES_PER_SECOND, (window.end + N_FRAMES) / FRAMES_PER_SECOND
            kept = mark_recovered(kept, [s for s in recording.segments if near[0] < s["start"] < near[1]])
        for segment in filter(has_text, kept):
            clear_if_empty(segment)
            recording.segments.append(segment)
            recording.tagger.add_segment(window, decoded.states[i], segment)
        if job.is_missed:
            return []
        remainders = self._missed(job, split, decoded.speech[i])
        if window.seek < split.seek < window.end - MIN_REMAINDER:
            remainders.append(WindowJob(recording, Window(split.seek, window.end - split.seek), None, last_speech))
        return remainders

    def _missed(self, job: WindowJob, split: Split, speech: SpeechProbabilities) -> list[WindowJob]:
        """Return what is to be decoded again of a window, because the tags hear speech there that it has no text of."""
        windows = job.recording.gate.missed_speech(job.window, split, speech)
        return [WindowJob(job.recording, window, None, window.seek / FRAMES_PER_SECOND, True) for window in windows]

    def free_memory(self) -> None:
        """Forget what is kept for the next batch, which will have another shape."""
        gc.collect()  # decoding leaves cycles
        if self.model._decoder is not None:
            self.model._decoder.cached_steps.clear()
        torch.cuda.empty_cache()
