"""The fields of a request, and what they mean to `transcribe` and to the writers."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from whisper.tokenizer import LANGUAGES

from ..captioning.sounds import CAPTION_RESOLUTION
from ..captioning.styles import parse_style
from ..formats import FORMATS
from ..formats.registry import WHISPER_FORMATS, check_package
from ..languages import language_code
from ..model import WhisperAT
from ..options import TranscribeOptions
from ..speech_gate import SpeechGate
from ..suggest import did_you_mean, nearest
from ..tagging.classes import logit
from ..tagging.labels import label_languages
from ..tagging.rows import TagOptions
from ..tagging.tagger import AUTO_RESOLUTION
from ..tagging.timeline import resolutions, steps_to_seconds
from ..writers import CAPTION_FORMATS

TEMPERATURE_STEP = 0.2
SAFE_DISTANCE = 0.6
"""Likeness from which on an unknown field is taken for a known one that is misspelt."""
OPENAI_FIELDS = {"chunking_strategy", "include", "keywords", "languages", "logprobs", "user"} | {
    "known_speaker_names",
    "known_speaker_references",
}
"""Fields of OpenAI's API that change nothing here."""


def _read_list(values: Any) -> Any:
    """Return the names in a field that may be repeated: ``word``, ``word,segment``, ``["word"]`` or nothing."""
    names = []
    for value in values if isinstance(values, (list, tuple)) else [values]:
        try:
            listed = json.loads(value)
        except (TypeError, ValueError):
            listed = str(value).split(",")
        names += [str(name).strip() for name in (listed if isinstance(listed, list) else [listed])]
    return [name for name in names if name]


OPENAI_FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
FILE_FORMATS = (*WHISPER_FORMATS, *FORMATS)
"""Files of a result, by the names that they have on the command line."""
RESPONSE_FORMATS = tuple(dict.fromkeys([*OPENAI_FORMATS, *FILE_FORMATS]))
"""What an answer may be; ``json`` is OpenAI's."""
STREAMED_FORMATS = ("json", "text", "verbose_json")
CAPTIONED = (*CAPTION_FORMATS, *(name for name in FORMATS if FORMATS[name].is_captions))
"""Those whose text is captions, if they are asked for or in any case."""
WITHOUT_SOUNDS = ("json", "text", "txt", "tsv")
"""Those that do not tell of sounds."""

Granularities = Annotated[list[Literal["word", "segment"]], BeforeValidator(_read_list)]


class TranscriptionRequest(BaseModel):
    """The fields of a request: OpenAI's, and ours by the names and meanings that they have on the command line."""

    model_config = ConfigDict(extra="allow")

    file: Annotated[UploadFile, Field(description="audio or video of any format that ffmpeg reads")]
    model: Annotated[str, Field(description="the model that is served, or OpenAI's name of one")] = ""
    prompt: Annotated[str, Field(description="text to set the scene")] = ""
    language: Annotated[str, Field(description="language spoken, by name or code; detected if not given")] = ""
    temperature: Annotated[float, Field(ge=0, le=1, description="raised by itself where a text fails")] = 0.0
    response_format: Literal[RESPONSE_FORMATS] = "json"  # type: ignore[valid-type]
    granularities_in_brackets: Annotated[
        Granularities, Field(alias="timestamp_granularities[]", description="of verbose_json; segment by default")
    ] = []
    granularities: Annotated[
        Granularities, Field(alias="timestamp_granularities", description="the same, as some clients name it")
    ] = []
    stream: Annotated[bool, Field(description="send text as it is transcribed, as server-sent events")] = False
    audio_track: Annotated[str, Field(description="of a video with several: number, from 1, or language")] = ""
    at_time_res: Annotated[str, Field(description="seconds per row of tags, multiples of 0.4: 2, or 0.4,10")] = ""
    top_k: Annotated[int, Field(ge=1, description="at most so many tags a row")] = 5
    p_threshold: Annotated[float | None, Field(description="only tags above this logit", allow_inf_nan=False)] = None
    include_classes: Annotated[str, Field(description="of AudioSet: indices, MIDs or names, separated by ;")] = ""
    speech_gate: Annotated[
        bool | float, Field(description="withhold text where the tags hear no speech: true, or below which probability")
    ] = False
    missed_speech: Annotated[bool, Field(description="decode speech again that the text lacks by the tags")] = False
    captions: Annotated[
        str, Field(description="srt and vtt that people can read: plain, netflix, bbc; with sounds sdh or sdh,bbc")
    ] = ""
    label_language: Annotated[str, Field(description="of the names of sounds, by name or code; else the text's")] = ""
    keep: Annotated[bool, Field(description="keep the result for other formats: the header X-Result-ID names it")] = (
        False
    )

    @property
    def timestamp_granularities(self) -> list[str]:
        """What is timed: ``word``, ``segment`` or both."""
        return [*self.granularities_in_brackets, *self.granularities] or ["segment"]


class ResultQuery(BaseModel):
    """What of a kept result is told; as in a `TranscriptionRequest`."""

    top_k: Annotated[int, Field(ge=1, description="at most so many tags a row")] = 5
    p_threshold: Annotated[float | None, Field(description="only tags above this logit", allow_inf_nan=False)] = None
    include_classes: Annotated[str, Field(description="of AudioSet: indices, MIDs or names, separated by ;")] = ""
    label_language: Annotated[str, Field(description="of the names of sounds, by name or code; else the text's")] = ""


class FileQuery(ResultQuery):
    """A file of a kept result."""

    format: Annotated[
        Literal[FILE_FORMATS],  # type: ignore[valid-type]
        Field(description="as -f of the command"),
    ]
    captions: Annotated[
        str, Field(description="srt and vtt that people can read: plain, netflix, bbc; with sounds sdh or sdh,bbc")
    ] = ""


class ClassificationRequest(BaseModel):
    """The fields of a request for sounds alone: LocalAI's, and ours."""

    model_config = ConfigDict(extra="allow")

    file: Annotated[UploadFile, Field(description="audio or video of any format that ffmpeg reads")]
    model: Annotated[str, Field(description="the model that is served, or OpenAI's name of one")] = ""
    top_k: Annotated[int, Field(ge=0, description="at most so many detections; 0 is all")] = 0
    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="only what is so probable; by default the head's own thresholds")
    ] = None
    at_time_res: Annotated[
        float, Field(gt=0, description="of heads that read the waveform, seconds per row, a multiple of 0.4")
    ] = 2.0
    include_classes: Annotated[str, Field(description="of AudioSet: indices, MIDs or names, separated by ;")] = ""
    audio_track: Annotated[str, Field(description="of a video with several: number, from 1, or language")] = ""


def ignored_fields(request: BaseModel) -> list[str]:
    """Return the fields of a request that mean nothing here.

    Raises
    ------
    ValueError
        If one is so near to a known one that it is misspelt.
    """
    known = [option.alias or name for name, option in type(request).model_fields.items()]
    ignored = list(request.model_extra or ())
    for name in ignored:
        near = nearest(name, known, n=1, cutoff=SAFE_DISTANCE)
        if near and name.split("[")[0] not in OPENAI_FIELDS:
            raise ValueError(f"{name}: there is no such field; {did_you_mean(name, known)}")
    return ignored


def transcribe_options(request: TranscriptionRequest, model: WhisperAT, task: str) -> dict[str, Any]:
    """Return the keyword arguments of `transcribe`.

    Raises
    ------
    ValueError
        If the model cannot do what is asked.
    """
    if request.response_format in FORMATS:
        check_package(request.response_format)
    if request.stream and request.response_format not in STREAMED_FORMATS:
        raise ValueError(f"stream: events are JSON, not response_format={request.response_format}")
    try:
        language = language_code(request.language)
    except ValueError as error:
        raise ValueError(f"language: {error}") from None
    if not model.is_multilingual:
        if task == "translate":
            raise ValueError("this model knows English only, and does not translate")
        if language not in (None, "en"):
            raise ValueError(f"language: this model knows English only, not {LANGUAGES[language]}")
        language = "en"
    words = "word" in request.timestamp_granularities
    if words and request.response_format in WITHOUT_SOUNDS and not request.stream:
        raise ValueError("timestamp_granularities: words are told in response_format=verbose_json")
    is_captions = request.response_format in FORMATS and FORMATS[request.response_format].is_captions
    at_time_res = _resolution(request, model)
    options = {
        "task": task,
        "language": language,
        "initial_prompt": request.prompt or None,
        "temperature": tuple(np.arange(request.temperature, 1.0 + 1e-6, TEMPERATURE_STEP)),
        "word_timestamps": words or bool(request.captions) or is_captions,
        "at_time_res": at_time_res,
        "event_rows": at_time_res is not None,
        "audio_track": request.audio_track or None,
        "speech_gate": request.speech_gate,
        "missed_speech": request.missed_speech,
    }
    TranscribeOptions.from_keywords(**options)
    SpeechGate(model, request.speech_gate, request.missed_speech)
    return options


def tag_options(request: TranscriptionRequest | ResultQuery) -> TagOptions:
    """Return which tags to tell.

    Raises
    ------
    ValueError
        If there is no such class, or the classes have no names in such a language.
    """
    language, include = label_language(request.label_language), class_names(request.include_classes)
    return TagOptions(request.top_k, request.p_threshold, language, include)


def label_language(name: str) -> str:
    """Return the code of a language that the classes have names in; ``follow_asr`` for none.

    A client may not name a file on the server, as the command may.
    """
    if not name:
        return "follow_asr"
    try:
        code = language_code(name)
    except ValueError:
        code = name.strip().lower()
    if code not in label_languages():
        raise ValueError(f"label_language: {name!r} is none of {', '.join(label_languages())}")
    return code


def _resolution(request: TranscriptionRequest, model: WhisperAT) -> float | list[float] | None:
    """Seconds per row of tags; none if nothing in the request asks for sounds, as on the command line."""
    name = request.response_format
    if request.captions and name not in CAPTIONED:
        raise ValueError(f"captions: they are srt or vtt, not response_format={name}")
    try:
        with_sounds = bool(request.captions) and parse_style(request.captions)[1]
    except ValueError as error:
        raise ValueError(f"captions: {error}") from None
    of_format = FORMATS[name].at_time_res if name in FORMATS else None
    wanted = request.at_time_res or with_sounds or request.p_threshold is not None or request.include_classes
    if not wanted and of_format is None:
        return None
    if name in WITHOUT_SOUNDS and not request.stream:
        raise ValueError(f"sounds are told in response_format=verbose_json, not {name}")
    _check_heads(model, "Ask for text alone, or have")
    default = CAPTION_RESOLUTION if name in CAPTIONED else of_format or AUTO_RESOLUTION
    try:
        parts = [float(part) for part in request.at_time_res.split(",")] if request.at_time_res else [default]
        seconds = [steps_to_seconds(steps) for steps in resolutions(parts)]
    except ValueError as error:
        raise ValueError(f"at_time_res: {error}") from None
    return seconds[0] if len(seconds) == 1 else seconds


def _check_heads(model: WhisperAT, way_out: str) -> None:
    if not model.heads:
        raise ValueError(
            f"cannot tag sounds: the model served has no head. {way_out} the server started with one "
            "(whisper-at serve --head FILE; `whisper-at train` makes such files)"
        )


def classification_options(request: ClassificationRequest, model: WhisperAT) -> dict[str, Any]:
    """Return the keyword arguments of `tag`.

    Raises
    ------
    ValueError
        If the model cannot do what is asked.
    """
    _check_heads(model, "Have")
    try:
        resolutions(request.at_time_res)
    except ValueError as error:
        raise ValueError(f"at_time_res: {error}") from None
    return {"at_time_res": request.at_time_res, "event_rows": True, "audio_track": request.audio_track or None}


def detection_options(request: ClassificationRequest) -> TagOptions:
    """Return which events to tell.

    Raises
    ------
    ValueError
        If there is no such class.
    """
    threshold = None if request.threshold is None else float(logit(np.array(request.threshold)))
    return TagOptions(p_threshold=threshold, include_classes=class_names(request.include_classes))


def class_names(field: str) -> list[str] | None:
    """Return the names in a field, separated by ``;``; None for all classes."""
    return [name.strip() for name in field.split(";") if name.strip()] or None
