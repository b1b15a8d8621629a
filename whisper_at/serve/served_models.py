"""Which model a name in a request means."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from whisper.tokenizer import LANGUAGES

from ..model import WhisperAT
from ..tagging.listeners import class_set

OPENAI_NAMES = re.compile(r"whisper-1|gpt-transcribe|gpt-4o(-mini)?-transcribe(-\d{4}-\d\d-\d\d)?")
"""OpenAI's names for what transcribes: they mean the first model that is served, so that programs need not be changed.
Those that tell speakers apart are not among them, as nothing here does."""


class ServedModel(NamedTuple):
    """A model and its name in requests."""

    name: str
    model: WhisperAT


class ServedModels:
    """The models of a server, of which the first is meant where a request names none.

    Parameters
    ----------
    models : mapping of str to WhisperAT
        By their names in requests.
    strict : bool
        Whether `OPENAI_NAMES` mean nothing here.
    """

    def __init__(self, models: Mapping[str, WhisperAT], strict: bool = False) -> None:
        self.models = [ServedModel(name, model) for name, model in models.items()]
        self.strict = strict
        self.started = int(time.time())

    def find(self, name: str) -> ServedModel:
        """Return the model that a request names.

        Raises
        ------
        HTTPException
            404, if there is none of that name.
        """
        for served in self.models:
            if served.name == name:
                return served
        if not name or (not self.strict and OPENAI_NAMES.fullmatch(name)):
            return self.models[0]
        names = " and ".join(repr(served.name) for served in self.models)
        raise HTTPException(404, f"model: {name!r} is not served here; {names} {'is' if len(self) == 1 else 'are'}")

    def describe(self, name: str) -> dict[str, Any]:
        """Return what ``/v1/models/NAME`` tells: OpenAI's keys, the classes of the model's heads, and its languages."""
        made = {"object": "model", "created": self.started, "owned_by": "whisper_at"}
        model = self.find(name).model
        languages = LANGUAGES if model.is_multilingual else {"en": LANGUAGES["en"]}
        return {"id": name, **made, "heads": _class_names(model), "languages": languages}

    def describe_all(self) -> dict[str, Any]:
        """Return what ``/v1/models`` tells."""
        return {"object": "list", "data": [self.describe(served.name) for served in self.models]}

    def __len__(self) -> int:
        return len(self.models)


def _class_names(model: WhisperAT) -> dict[str, list[str]]:
    """Return the classes of each head, by the name of the head in responses."""
    return {name: list(class_set(head).names) for name, head in model.heads.items()}
