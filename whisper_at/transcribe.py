"""`transcribe`: encode each window once, decode it, cut it into segments, tag it.

What is decoded, and where the next window starts, follows openai-whisper's `transcribe` token for
token; the rules for segments are in `segments`, those for rows of tags in `tagging.timeline`.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import tqdm
from torch import Tensor
from whisper.audio import N_FRAMES, pad_or_trim
from whisper.tokenizer import Tokenizer, get_tokenizer
from whisper.utils import get_end

from .audio import Recording, readable
from .batched import transcribe_in_batches
from .decoding import encode_text, resolve_language
from .engine.alignment import add_word_timestamps, alignment_model
from .engine.encoder import has_unfused_attention
from .engine.kv_cache import EncodedAudio
from .fallback import decode_with_fallback, decoder_inputs, detect_spoken_language, use_half
from .mel import LogMel
from .options import TranscribeOptions, warns_of_unused
from .segments import (
    clear_if_empty,
    drop_hallucinations,
    has_text,
    print_segment,
    seek_past_leading_silence,
    seek_with_words,
    split_segments,
    text_of,
)
from .tagging.tagger import Tagger, encode_windows, resolve_resolutions
from .windows import Window, clip_frames, run_to_end

if TYPE_CHECKING:
    from .model import WhisperAT


@warns_of_unused
def transcribe(
    model: WhisperAT,
    audio: Recording | np.ndarray | Tensor,
    *,
    verbose: bool | None = None,
    temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    condition_on_previous_text: bool = True,
    initial_prompt: str | None = None,
    carry_initial_prompt: bool = False,
    word_timestamps: bool = False,
    prepend_punctuations: str = "\"'“¿([{-",
    append_punctuations: str = "\"'.。,，!！?？:：”)]}、",
    clip_timestamps: Any = "0",
    hallucination_silence_threshold: float | None = None,
    at_time_res: float | Iterable[float] | str | None = "auto",
    strict_word_timing: bool = True,
    batch_size: int | None = None,
    audio_track: int | str | None = None,
    **decode_options: Any,
) -> dict[str, Any]:
    """Transcribe a recording and tag what sounds in it.

    All arguments of ``whisper.transcribe`` mean what they mean there and give the same text and segments, but for
    segments without text, of silence, which are left out. Some take more, and some are new:

    Parameters
    ----------
    audio : str, path, bytes, bytearray, memoryview, binary file, ndarray or Tensor
        A file, or its bytes; or samples at 16 kHz.
    language : str, optional
        As `whisper_at.languages.language_code` reads it: ``en-US`` and ``iw`` too, and ``auto``.
    clip_timestamps : str, number, or sequence of numbers, pairs or mappings
        As `whisper_at.windows.parse_clip_timestamps` reads it: also ``[(0, 10), (25, 30)]`` and
        ``[{"start": 0, "end": 10}]``. Clips are transcribed in order of time, overlapping ones as one.
    at_time_res : float, iterable of float, "auto" or None
        Seconds per row of tags, any multiple of 0.4; or several, all from the same pass; or None for no tags.
        ``"auto"`` is 10 where the model has a head, else None.
    strict_word_timing : bool
        With ``word_timestamps``, time words as openai-whisper does, from features that come from attention without
        fused kernels: on a CPU in float32 from the one pass that the text comes from, else from a second one. False
        reuses what was decoded from: faster, and a word may move by a frame. Batches always reuse it.
    batch_size : int, optional
        Cut the recording where it is quiet and decode so many windows at once, none of which sees the text before it;
        see `transcribe_many`, which does so for many recordings. ``hallucination_silence_threshold`` is not for
        batches, and ``condition_on_previous_text`` has no effect on them.
    audio_track : int or str, optional
        Which of a video's audio tracks, as of `whisper_at.load_audio`: its number, from 1, or its language. Times are
        those of the container, as a player shows them.

    Returns
    -------
    dict
        ``text``, ``segments``, ``language`` (its code) as upstream and, with tags, also

        - ``audio_tag``: float32 CPU tensor ``(rows, 527)`` of logits, row ``i`` over the seconds
          ``[i, i + 1) * at_time_res``; NaN where there was no audio (clips leave gaps)
        - ``audio_tag_coverage``: ``(rows,)``, the share of each row that held audio, 0…1
        - ``at_time_res``: the resolution in seconds
        - by the name of each attached head or classifier (`WhisperAT.attach`): a dict of its ``classes``, ``kind``,
          ``temperature``, ``thresholds``, and ``logits``, rows as above, ``segments``, ``(segments, classes)``
        - ``audio_tag_calibration``: ``temperature``, ``thresholds``, indices of ``known`` classes, if AudioSet's head
          has them; logits of classes that it does not know are NaN
        - ``duration``: seconds of audio
        - ``task``: ``transcribe`` or ``translate``, which the language of labels depends on

        For several resolutions ``at_time_res`` is a list, and ``audio_tag`` and ``audio_tag_coverage`` are dicts by
        resolution.

    Raises
    ------
    ValueError
        If a resolution is not a positive multiple of 0.4 s, or tags are asked of a model without a head; if there is no
        such language, a clip ends before it starts, or a sample is NaN.
    TypeError
        If the model is openai-whisper's own class.
    """
    options = TranscribeOptions(
        verbose=verbose,
        temperature=temperature,
        compression_ratio_threshold=compression_ratio_threshold,
        logprob_threshold=logprob_threshold,
        no_speech_threshold=no_speech_threshold,
        condition_on_previous_text=condition_on_previous_text,
        initial_prompt=initial_prompt,
        carry_initial_prompt=carry_initial_prompt,
        word_timestamps=word_timestamps,
        prepend_punctuations=prepend_punctuations,
        append_punctuations=append_punctuations,
        clip_timestamps=clip_timestamps,
        hallucination_silence_threshold=hallucination_silence_threshold,
        at_time_res=at_time_res,
        strict_word_timing=strict_word_timing,
        batch_size=batch_size,
        audio_track=audio_track,
        decode_options=decode_options,
    )
    if not hasattr(model, "encode"):
        raise TypeError("this is a plain Whisper: load it with whisper_at.load_model, or use its own transcribe()")
    if options.batch_size is None:
        return run_to_end(transcribe_in_order(model, audio, options))
    ((_, result),) = transcribe_in_batches(model, [audio], options)
    if isinstance(result, Exception):
        raise result
    return result


def transcribe_in_order(
    model: WhisperAT, audio: Recording | np.ndarray | Tensor, options: TranscribeOptions
) -> Generator[list[dict[str, Any]], None, dict[str, Any]]:
    """Transcribe a recording window by window, each with the text before it as a prompt, as `transcribe` does.

    Yields the segments of each window as soon as they stand, before the first one an empty list, and returns the
    result.
    """
    source = readable(audio, options.audio_track)
    resolve_resolutions(model, options.at_time_res, source)  # what cannot be tagged is refused before anything is read
    language, task = resolve_language(model, options.decode_options.get("language"), options.task)
    half = use_half(model, options.decode_options.get("fp16", True))
    decode_options = {**options.decode_options, "fp16": half, "task": task}
    dtype = torch.float16 if half else torch.float32

    # 30 s of silence behind the recording: language detection hears it, windows are cut before it
    mel = LogMel(source, model.dims.n_mels)
    content_frames = mel.content_frames
    clips = clip_frames(options.clip_timestamps, content_frames)
    tagger = Tagger(model, options.at_time_res, content_frames)

    reuse = not options.strict_word_timing or model.compute_type in ("bfloat16", "int8")
    reuse = reuse or has_unfused_attention(model.encoder, dtype)
    encode_once = _EncodeOnce(model, mel, dtype, tagger)
    if language is None:
        # Audio that fills the first window is what that window decodes, so one pass does for both.
        shared = clips[0][0] == 0 and clips[0][1] >= N_FRAMES
        encoded = encode_once(Window(0)).decoder_inputs if shared and model.is_multilingual else None
        language = detect_spoken_language(model, mel, encoded, dtype, options.verbose)
    decode_options["language"] = language
    tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages, language=language, task=task)
    if options.word_timestamps and task == "translate":
        warnings.warn("Word-level timestamps on translations may not be reliable.")

    prompt = _Prompt(tokenizer, options.initial_prompt, options.carry_initial_prompt, model.dims.n_text_ctx)
    segments: list[dict[str, Any]] = []
    last_speech = 0.0

    with mel, tqdm.tqdm(total=content_frames, unit="frames", disable=options.verbose is not False) as progress:
        yield []
        for seek, clip_end in clips:
            while seek < clip_end:
                window = Window(seek, min(N_FRAMES, clip_end - seek))
                encoded_window = encode_once(window)
                tagger.add_window(window, encoded_window.states, settled_before=seek)

                (result,) = decode_with_fallback(
                    model,
                    encoded_window.decoder_inputs,
                    {**decode_options, "prompt": prompt.tokens()},
                    options.temperatures,
                    options.thresholds,
                )
                if options.thresholds.is_silent(result):
                    seek = window.end
                    yield []
                    continue

                split = split_segments(result, window, tokenizer, model.dims.n_audio_ctx)
                if options.word_timestamps:
                    add_word_timestamps(
                        segments=split.segments,
                        model=alignment_model(model, encoded_window.decoder_inputs if reuse else None),
                        tokenizer=tokenizer,
                        mel=encoded_window.features if reuse else encoded_window.mel,
                        num_frames=window.size,
                        last_speech_timestamp=last_speech,
                        **options.punctuation,
                    )
                    threshold = options.hallucination_silence_threshold
                    split = split._replace(seek=seek_with_words(split, window, threshold))
                    if threshold is not None:
                        after_silence = seek_past_leading_silence(split, window, threshold)
                        if after_silence is not None:
                            seek = after_silence
                            continue
                        split = drop_hallucinations(split, window, threshold, last_speech, content_frames)
                    if (last_word_end := get_end(split.segments)) is not None:
                        last_speech = last_word_end

                n_segments = len(segments)
                for segment in filter(has_text, split.segments):
                    if options.verbose:
                        print_segment(segment)
                    clear_if_empty(segment)
                    segments.append({"id": len(segments), **segment})
                    tagger.add_segment(window, encoded_window.states, segment)
                    prompt.extend(segment["tokens"])
                if not options.condition_on_previous_text or result.temperature > 0.5:
                    prompt.forget()

                seek = split.seek
                progress.update(min(content_frames, seek) - window.seek)
                yield segments[n_segments:]

    transcript = {"text": text_of(prompt.text_tokens, tokenizer), "segments": segments, "language": language}
    return transcript | tagger.result(task, source, segments, list(range(len(segments))))


class _EncodedWindow(NamedTuple):
    mel: Tensor  # (n_mels, 3000)
    features: Tensor  # (1500, dim)
    decoder_inputs: EncodedAudio | Tensor  # a batch of one, shared by all temperatures
    states: Tensor  # (layers, steps, dim), or empty if no head is to read them


class _EncodeOnce:
    """Encodes a window the first time it is asked for; keeps the latest one only."""

    def __init__(self, model: WhisperAT, mel: LogMel, dtype: torch.dtype, tagger: Tagger) -> None:
        self.model, self.mel, self.dtype, self.tagger = model, mel, dtype, tagger
        self.latest: tuple[Window, _EncodedWindow] | None = None

    def __call__(self, window: Window) -> _EncodedWindow:
        if self.latest is None or self.latest[0] != window:
            mel = pad_or_trim(self.mel.window(window.seek, window.end), N_FRAMES)
            mel = mel.to(self.model.device).to(self.dtype)
            features, states = encode_windows(self.model, mel[None], [window], [self.tagger])
            self.latest = window, _EncodedWindow(mel, features[0], decoder_inputs(self.model, features), states[0])
        return self.latest[1]


class _Prompt:
    """The text so far, and the part of it that the next window is given as a prompt.

    An initial prompt that is carried along comes first, the last tokens of one that fills the room for prompts, and
    the text so far has the rest of the room.
    """

    def __init__(self, tokenizer: Tokenizer, initial: str | None, carry: bool, n_text_ctx: int) -> None:
        self.initial = encode_text(tokenizer, initial) if initial is not None else []
        self.room = n_text_ctx // 2 - 1  # upstream gives the prompt room that is not there, and loses it
        self.carried = self.initial[-self.room :] if carry else []
        self.carry = carry
        self._tokens = list(self.initial)
        self._start = 0

    @property
    def text_tokens(self) -> list[int]:
        """Every token written, without the initial prompt."""
        return self._tokens[len(self.initial) :]

    def tokens(self) -> list[int]:
        """Return the prompt of the next window."""
        if not self.carry:
            return self._tokens[self._start :]
        history = self._tokens[max(len(self.initial), self._start) :]
        return self.carried + history[max(0, len(history) - self.room + len(self.carried)) :]

    def extend(self, tokens: list[int]) -> None:
        """Add the tokens of a segment."""
        self._tokens.extend(tokens)

    def forget(self) -> None:
        """Leave everything so far out of later prompts."""
        self._start = len(self._tokens)


def __getattr__(name: str) -> Any:
    """Return what else ``whisper.transcribe`` has, the functions of its command line and what it imports."""
    if not name.startswith("__") and hasattr(upstream := import_module("whisper.transcribe"), name):
        return getattr(upstream, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
