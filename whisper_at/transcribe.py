"""`transcribe`: encode each window once, decode it, cut it into segments, tag it.

What is decoded, and where the next window starts, follows openai-whisper's `transcribe` token for
token; the rules for segments are in `segments`, those for rows of tags in `tagging.timeline`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tqdm
from torch import Tensor
from whisper.audio import N_FRAMES
from whisper.tokenizer import get_tokenizer
from whisper.utils import get_end

from .audio import Recording, readable
from .batched import transcribe_in_batches
from .decoding import resolve_language
from .fallback import detect_spoken_language, prepare_decoder, use_half
from .mel import LogMel
from .options import TranscribeOptions, warns_of_unused
from .prompt import Prompt
from .segments import Split, clear_if_empty, has_text, print_segment, text_of
from .speech_gate import SpeechGate, begins_next_window
from .tagging.progress import Progress, ProgressReporter
from .tagging.tagger import Tagger, resolve_resolutions
from .window_decoder import WindowDecoder, WindowEncoder
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
    speech_gate: bool | float = False,
    missed_speech: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
    event_rows: bool = False,
    **decode_options: Any,
) -> dict[str, Any]:
    """Transcribe a recording and tag what sounds in it.

    All arguments of ``whisper.transcribe`` mean what they mean there and give the same text and segments, but for
    segments without text, of silence, which are left out. Some take more, and some are new:

    Parameters
    ----------
    audio : str, path, bytes, bytearray, memoryview, binary file, ndarray or Tensor
        A file, or its bytes; or samples at 16 kHz.
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
    speech_gate : bool or float
        Withhold text where the tags hear neither speech nor singing: a window without any is not decoded, and segments
        and timed words apart from all are left out of the text; so is a segment that the decoder doubts where an animal
        or another voice without words explains what is heard. A number is the probability below which nothing is heard;
        True takes `whisper_at.speech_gate.GATE_THRESHOLD`.
    missed_speech : bool
        Decode speech again that the tags hear and the text lacks, in windows of its own.
    on_progress : callable, optional
        Called before each window with a `Progress`: the segments and rows of tags that have become final since the
        last call, and how far the recording is transcribed. The result has the rest. Not for batches.
    event_rows : bool
        Whatever ``at_time_res`` is, keep rows of 0.4 and 1.2 s too, from the same pass: `find_events` places events
        best by these.
    **decode_options
        Of ``DecodingOptions``, as upstream takes them. `whisper_at.languages.language_code` reads ``language``:
        ``en-US`` and ``iw`` too, and ``auto``.

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
        - ``event_rows``: if they are asked for, rows of 0.4 and 1.2 s, in the same shape
        - ``duration``: seconds of audio
        - ``task``: ``transcribe`` or ``translate``, which the language of labels depends on
        - with ``speech_gate``, ``withheld``: a list of ``{"start", "end", "text", "reason", "score"}``, the text being
          None where none was decoded, and the score the highest probability of speech there
        - with ``missed_speech``, ``recovered``: True in segments of speech that the text lacked

        For several resolutions ``at_time_res`` is a list, and ``audio_tag`` and ``audio_tag_coverage`` are dicts by
        resolution.

    Raises
    ------
    ValueError
        If a resolution is not a positive multiple of 0.4 s, or tags are asked of a model without a head; if there is no
        such language, a clip ends before it starts, or a sample is NaN; or if `speech_gate` or `missed_speech` is asked
        for and no head of the model knows speech or singing.
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
        speech_gate=speech_gate,
        missed_speech=missed_speech,
        on_progress=on_progress,
        event_rows=event_rows,
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
    gate = SpeechGate(model, options.speech_gate, options.missed_speech, options.verbose)
    language, task = resolve_language(model, options.decode_options.get("language"), options.task)
    half = use_half(model, options.decode_options.get("fp16", True))
    decode_options = {**options.decode_options, "fp16": half, "task": task}
    dtype = torch.float16 if half else torch.float32

    prepare_decoder(model, dtype)
    # 30 s of silence behind the recording: language detection hears it, windows are cut before it
    mel = LogMel(source, model.dims.n_mels)
    content_frames = mel.content_frames
    clips = clip_frames(options.clip_timestamps, content_frames)
    tagger = Tagger(model, options.at_time_res, content_frames, options.event_rows, needs_states=gate.is_on)

    encode = WindowEncoder(model, mel, dtype, tagger, options.word_timestamps and options.strict_word_timing)
    if language is None:
        # Audio that fills the first window is what that window decodes, so one pass does for both.
        shared = clips[0][0] == 0 and clips[0][1] >= N_FRAMES
        encoded = encode(Window(0)).decoder_inputs if shared and model.is_multilingual else None
        language = detect_spoken_language(model, mel, encoded, dtype, options.verbose)
    decode_options["language"] = language
    tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages, language=language, task=task)
    if options.word_timestamps and task == "translate":
        warnings.warn("Word-level timestamps on translations may not be reliable.")

    decoder = WindowDecoder(model, options, decode_options, tokenizer, dtype)
    prompt = Prompt(tokenizer, options.initial_prompt, options.carry_initial_prompt, model.dims.n_text_ctx)
    segments: list[dict[str, Any]] = []
    last_speech = 0.0
    report_progress = ProgressReporter(options.on_progress, tagger, language, task)

    with mel, tqdm.tqdm(total=content_frames, unit="frames", disable=options.verbose is not False) as progress:
        yield []
        for seek, clip_end in clips:
            while seek < clip_end:
                report_progress(seek, segments, gate.withheld)
                window = Window(seek, min(N_FRAMES, clip_end - seek))
                encoded_window = encode(window)
                tagger.add_window(window, encoded_window.states, settled_before=seek)
                speech = gate.listen(window, encoded_window.states)
                if not gate.has_speech(speech):
                    gate.withhold_window(window, speech)
                    seek = window.end
                    progress.update(window.size)
                    yield []
                    continue

                result = decoder.decode(encoded_window, prompt.tokens())
                if options.thresholds.is_silent(result):
                    split, has_spoken = Split([], window.end, ends_in_silence=True), False
                else:
                    split = decoder.split(result, encoded_window, window, last_speech)
                    split, has_spoken = decoder.drop_hallucinations(split, window, last_speech, content_frames)

                if has_spoken and options.word_timestamps and (last_word_end := get_end(split.segments)) is not None:
                    last_speech = last_word_end
                kept = gate.keep(split.segments, speech, tokenizer)
                found = [(window, encoded_window.states, segment) for segment in kept]
                seek, missed = split.seek, gate.missed_speech(window, split, speech)
                if missed and begins_next_window(missed[-1], window):
                    seek = missed.pop().seek
                for again in missed:
                    encoded_again = encode(again)
                    recovered = decoder.recover(encoded_again, again, prompt.initial, split.segments)
                    found += [(again, encoded_again.states, segment) for segment in recovered]
                if missed:
                    found.sort(key=lambda item: item[2]["start"])

                n_segments = len(segments)
                for source_window, states, segment in found:
                    if not has_text(segment):
                        continue
                    if options.verbose:
                        print_segment(segment)
                    clear_if_empty(segment)
                    segments.append({"id": len(segments), **segment})
                    tagger.add_segment(source_window, states, segment)
                    prompt.extend(segment["tokens"])
                if has_spoken and (not options.condition_on_previous_text or result.temperature > 0.5):
                    prompt.forget()
                progress.update(min(content_frames, seek) - window.seek)
                yield segments[n_segments:]

    transcript = {"text": text_of(prompt.text_tokens, tokenizer), "segments": segments, "language": language}
    return transcript | gate.result() | tagger.result(task, source, segments, list(range(len(segments))))


def __getattr__(name: str) -> Any:
    """Return what else ``whisper.transcribe`` has, the functions of its command line and what it imports."""
    if not name.startswith("__") and hasattr(upstream := import_module("whisper.transcribe"), name):
        return getattr(upstream, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
