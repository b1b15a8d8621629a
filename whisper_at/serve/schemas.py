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
from ..languages import language_code
from ..model import WhisperAT
from ..options import TranscribeOptions
from ..speech_gate import SpeechGate
from ..tagging.rows import TagOptions
from ..tagging.tagger import AUTO_RESOLUTION
from ..tagging.timeline import resolutions, steps_to_seconds
from ..writers import CAPTION_FORMATS

TEMPERATURE_STEP = 0.2


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


Granularities = Annotated[list[Literal["word", "segment"]], BeforeValidator(_read_list)]


class TranscriptionRequest(BaseModel):
    """The fields of a request: OpenAI's, and ours by the names and meanings that they have on the command line."""

    model_config = ConfigDict(extra="forbid")

    file: Annotated[UploadFile, Field(description="audio or video of any format that ffmpeg reads")]
    model: Annotated[str, Field(description="the model that is served, or OpenAI's name of one")] = ""
    prompt: Annotated[str, Field(description="text to set the scene")] = ""
    language: Annotated[str, Field(description="language spoken, by name or code; detected if not given")] = ""
    temperature: Annotated[float, Field(ge=0, le=1, description="raised by itself where a text fails")] = 0.0
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    granularities_in_brackets: Annotated[
        Granularities, Field(alias="timestamp_granularities[]", description="of verbose_json; segment by default")
    ] = []
    granularities: Annotated[
        Granularities, Field(alias="timestamp_granularities", description="the same, as some clients name it")
    ] = []
    chunking_strategy: Annotated[str, Field(description="of OpenAI's API; changes nothing here")] = ""
    stream: Annotated[bool, Field(description="must be false: texts come whole")] = False
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

    @property
    def timestamp_granularities(self) -> list[str]:
        """What is timed: ``word``, ``segment`` or both."""
        return [*self.granularities_in_brackets, *self.granularities] or ["segment"]


def transcribe_options(request: TranscriptionRequest, model: WhisperAT, task: str) -> dict[str, Any]:
    """Return the keyword arguments of `transcribe`.

    Raises
    ------
    ValueError
        If the model cannot do what is request.
    """
    if request.stream:
        raise ValueError("stream: texts come whole; leave it out")
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
    if words and request.response_format != "verbose_json":
        raise ValueError("timestamp_granularities: words are told in response_format=verbose_json")
    options = {
        "task": task,
        "language": language,
        "initial_prompt": request.prompt or None,
        "temperature": tuple(np.arange(request.temperature, 1.0 + 1e-6, TEMPERATURE_STEP)),
        "word_timestamps": words or bool(request.captions),
        "at_time_res": _resolution(request, model),
        "audio_track": request.audio_track or None,
        "speech_gate": request.speech_gate,
        "missed_speech": request.missed_speech,
    }
    TranscribeOptions.from_keywords(**options)
    SpeechGate(model, request.speech_gate, request.missed_speech)
    return options


def tag_options(request: TranscriptionRequest) -> TagOptions:
    """Return which tags to tell.

    Raises
    ------
    ValueError
        If there is no such class.
    """
    classes = [name.strip() for name in request.include_classes.split(";") if name.strip()]
    return TagOptions(request.top_k, request.p_threshold, include_classes=classes or None)


def _resolution(request: TranscriptionRequest, model: WhisperAT) -> float | list[float] | None:
    """Seconds per row of tags; none if nothing in the request asks for sounds, as on the command line."""
    captions = request.response_format in CAPTION_FORMATS
    if request.captions and not captions:
        raise ValueError(f"captions: they are srt or vtt, not response_format={request.response_format}")
    try:
        with_sounds = bool(request.captions) and parse_style(request.captions)[1]
    except ValueError as error:
        raise ValueError(f"captions: {error}") from None
    wanted = request.at_time_res or with_sounds or request.p_threshold is not None or request.include_classes
    if not wanted:
        return None
    if not captions and request.response_format != "verbose_json":
        raise ValueError(f"sounds are told in response_format=verbose_json, not {request.response_format}")
    if not model.heads:
        raise ValueError(
            "cannot tag sounds: the model served has no head. Ask for text alone, or have the server started with one "
            "(whisper-at serve --head FILE; `whisper-at train` makes such files)"
        )
    default = CAPTION_RESOLUTION if captions else AUTO_RESOLUTION
    try:
        parts = [float(part) for part in request.at_time_res.split(",")] if request.at_time_res else [default]
        seconds = [steps_to_seconds(steps) for steps in resolutions(parts)]
    except ValueError as error:
        raise ValueError(f"at_time_res: {error}") from None
    return seconds[0] if len(seconds) == 1 else seconds
