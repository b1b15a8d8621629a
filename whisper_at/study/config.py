"""What a study is made of, read from TOML and refused where it says something that nothing understands."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from ..data.clips import Dataset
from ..data.toml import read_toml
from .mix import SNRS
from .probes import CLASSIFIERS
from .recognisers import check_recogniser
from .sources import Utterance, read_digit_strings, read_librispeech, read_sounds


@dataclass(frozen=True)
class Speech:
    """Sentences: ``kind`` is ``librispeech`` or ``digits``, and the rest as of the readers of `.sources`."""

    folder: str
    kind: str = "librispeech"
    count: int = 40
    spread: bool = False
    takes: tuple = (0, 49)
    digits: tuple = (4, 8)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("librispeech", "digits"):
            raise ValueError(f"speech.kind is librispeech or digits, not {self.kind!r}")
        if self.count < 1:
            raise ValueError(f"speech.count must be at least 1, not {self.count}")
        for name in ("takes", "digits"):
            pair = getattr(self, name)
            if len(pair) != 2 or not all(type(i) is int for i in pair) or not 0 <= pair[0] <= pair[1]:
                raise ValueError(f"speech.{name} is the first and the last, [45, 49], not {list(pair)}")

    def read(self, data: Path) -> list[Utterance]:
        folder = data / self.folder
        if self.kind == "digits":
            return read_digit_strings(folder, self.count, self.takes, self.digits, seed=self.seed)
        return read_librispeech(folder, self.count, self.spread)


@dataclass(frozen=True)
class Sounds:
    """Sounds by class: ESC-50 or a folder of classes' folders; ``only`` is searched at the start of file names."""

    folder: str
    only: str | None = None

    def read(self, data: Path) -> Dataset:
        return read_sounds(data / self.folder, self.only)


@dataclass(frozen=True)
class Mix:
    """Ratios in dB, whether to guard against clipping, and whether to keep the mixtures on disk."""

    snrs: tuple = SNRS
    guard: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        if not self.snrs or not all(isinstance(snr, (int, float)) for snr in self.snrs):
            raise ValueError(f"mix.snrs is a list of ratios in dB, not {list(self.snrs)}")


@dataclass(frozen=True)
class Robustness:
    """What is compared class by class: the rise of a recogniser's errors between two ratios (dB), and the F1 of a
    backbone's last layer. Empty names stand for the first of each.
    """

    recogniser: str = ""
    backbone: str = ""
    low: float = -10.0
    high: float = 20.0


@dataclass(frozen=True)
class Study:
    """A whole study; see ``recipes/noise_study``."""

    out: str
    speech: Speech
    noise: Sounds
    recognisers: tuple = ()
    probe: Sounds | None = None
    backbones: tuple = ()
    classifier: str = "published"
    mix: Mix = field(default_factory=Mix)
    robustness: Robustness = field(default_factory=Robustness)

    def __post_init__(self) -> None:
        for name in self.recognisers:
            check_recogniser(name)
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"classifier is {' or '.join(CLASSIFIERS)}, not {self.classifier!r}")

    @property
    def sounds(self) -> Sounds:
        """What is probed: the noises, unless other sounds are named."""
        return self.probe or self.noise

    def facts(self) -> dict[str, Any]:
        """What defines the transcriptions, wherever the data lie."""
        speech, noise = asdict(self.speech), asdict(self.noise)
        return {"speech": {k: v for k, v in speech.items() if k != "folder"}, "noise": noise["only"]}


def read_study(path: str | os.PathLike[str]) -> Study:
    """Read a study's TOML.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no TOML, a key is unknown, missing or of another type, a recogniser does not exist, or a ratio that is
        to be compared is not mixed.
    """
    content = read_toml(path)
    try:
        study = _build(Study, content, "")
        for name in ("low", "high"):  # without these, the usual two are compared where they are
            snr = getattr(study.robustness, name)
            if name in content.get("robustness", {}) and snr not in study.mix.snrs:
                there = ", ".join(f"{other:g}" for other in study.mix.snrs)
                raise ValueError(f"robustness.{name} is {snr:g} dB, but mix.snrs has {there}: take one of these")
        return study
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


_PARTS: Mapping[str, type] = {
    "speech": Speech,
    "noise": Sounds,
    "probe": Sounds,
    "mix": Mix,
    "robustness": Robustness,
}


def _build(kind: type, content: Mapping[str, Any], place: str) -> Any:
    known = {item.name: item for item in fields(kind)}
    hints = get_type_hints(kind)
    for key in content:
        if key not in known:
            raise ValueError(f"{place}{key} is not known; there is {', '.join(place + name for name in known)}")
    for name, item in known.items():
        if name not in content and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{place}{name} is missing")
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key in _PARTS and kind is Study:
            if not isinstance(value, Mapping):
                raise ValueError(f"{key} must be a table, [{key}]")
            values[key] = _build(_PARTS[key], value, f"{key}.")
        else:
            values[key] = _typed(value, hints[key], place + key)
    return kind(**values)


def _typed(value: Any, hint: Any, place: str) -> Any:
    if hint is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(value)
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (str, bool, int) and type(value) is hint:
        return value
    if hint == (str | None) and isinstance(value, str):
        return value
    wanted = {tuple: "a list", float: "a number", bool: "true or false", int: "a whole number"}.get(hint, "text")
    raise ValueError(f"{place} must be {wanted}, not {value!r}")
