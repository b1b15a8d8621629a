"""What a request asks for: its fields, and what they mean to `transcribe` and to the writers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import UploadFile
from pydantic import BaseModel, Field
from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

from ..model import WhisperAT
from ..tagging.captions import CAPTION_RESOLUTION
from ..tagging.labels import find_classes
from ..tagging.tagger import AUTO_RESOLUTION, Tagger
from ..tagging.timeline import resolutions, steps_to_seconds

CAPTIONS = ("srt", "vtt")
TEMPERATURE_STEP = 0.2


class Asked(BaseModel):
    """The fields of a request: OpenAI's, and ours by the names and meanings that they have on the command line."""

    file: Annotated[UploadFile, Field(description="audio or video of any format that ffmpeg reads")]
    model: Annotated[str, Field(description="the model that is served, or whisper-1")] = ""
    prompt: Annotated[str, Field(description="text to set the scene")] = ""
    language: Annotated[str, Field(description="language spoken, by name or code; detected if not given")] = ""
    temperature: Annotated[float, Field(ge=0, le=1, description="raised by itself where a text fails")] = 0.0
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    timestamp_granularities: Annotated[
        list[Literal["word", "segment"]], Field(alias="timestamp_granularities[]", description="of verbose_json")
    ] = ["segment"]
    stream: Annotated[bool, Field(description="must be false: texts come whole")] = False
    at_time_res: Annotated[str, Field(description="seconds per row of tags, multiples of 0.4: 2, or 0.4,10")] = ""
    top_k: Annotated[int, Field(ge=1, description="at most so many tags a row")] = 5
    p_threshold: Annotated[float | None, Field(description="only tags above this logit", allow_inf_nan=False)] = None
    include_classes: Annotated[str, Field(description="of AudioSet: indices, MIDs or names, separated by ;")] = ""
    sound_captions: Annotated[bool, Field(description="show sounds in srt and vtt, in brackets")] = False


def transcribe_options(asked: Asked, model: WhisperAT, task: str) -> dict[str, Any]:
    """Keyword arguments of `transcribe`.

    Raises
    ------
    ValueError
        If the model cannot do what is asked.
    """
    if asked.stream:
        raise ValueError("stream: texts come whole; leave it out")
    language = _language(asked.language)
    if not model.is_multilingual:
        if task == "translate":
            raise ValueError("this model knows English only, and does not translate")
        if language not in (None, "en"):
            raise ValueError(f"language: this model knows English only, not {LANGUAGES[language]}")
        language = "en"
    words = "word" in asked.timestamp_granularities
    if words and asked.response_format != "verbose_json":
        raise ValueError("timestamp_granularities[]: words are told in response_format=verbose_json")
    return {
        "task": task,
        "language": language,
        "initial_prompt": asked.prompt or None,
        "temperature": tuple(np.arange(asked.temperature, 1.0 + 1e-6, TEMPERATURE_STEP)),
        "word_timestamps": words,
        "at_time_res": _resolution(asked, model),
    }


def tag_options(asked: Asked) -> dict[str, Any]:
    """Keyword arguments of `whisper_at.writers.tag_rows`.

    Raises
    ------
    ValueError
        If there is no such class.
    """
    classes = [name.strip() for name in asked.include_classes.split(";") if name.strip()]
    return {
        "top_k": asked.top_k,
        "p_threshold": asked.p_threshold,
        "include_classes": find_classes(classes) if classes else None,
    }


def _language(name: str) -> str | None:
    code = TO_LANGUAGE_CODE.get(name.lower(), name.lower())
    if code and code not in LANGUAGES:
        raise ValueError(f"language: Whisper knows no {name!r}; it knows English or en, German or de …")
    return code or None


def _resolution(asked: Asked, model: WhisperAT) -> float | list[float] | None:
    """Seconds per row of tags; none if nothing in the request asks for sounds, as on the command line."""
    captions = asked.response_format in CAPTIONS
    if asked.sound_captions and not captions:
        raise ValueError(f"sound_captions: srt and vtt show them, not response_format={asked.response_format}")
    wanted = asked.at_time_res or asked.sound_captions or asked.p_threshold is not None or asked.include_classes
    if not wanted:
        return None
    if not captions and asked.response_format != "verbose_json":
        raise ValueError(f"sounds are told in response_format=verbose_json, not {asked.response_format}")
    default = CAPTION_RESOLUTION if captions else AUTO_RESOLUTION
    try:
        parts = [float(part) for part in asked.at_time_res.split(",")] if asked.at_time_res else [default]
        seconds = [steps_to_seconds(steps) for steps in resolutions(parts)]
    except ValueError as error:
        raise ValueError(f"at_time_res: {error}") from None
    resolution = seconds[0] if len(seconds) == 1 else seconds
    Tagger(model, resolution, 0)  # a model without heads is refused before anything is heard
    return resolution
