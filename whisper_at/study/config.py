"""Configuration of a noise study, read from TOML and validated."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..data.toml import read_toml
from ..data.utterances import Utterance, read_digit_strings, read_librispeech, read_transcripts
from ..data.validation import from_table
from .layer_probes import CLASSIFIERS
from .mixing import SNRS
from .noises import read_noises
from .recognisers import parse_recogniser


@dataclass(frozen=True)
class SpeechConfig:
    """Speech: ``kind`` is ``librispeech``, ``table`` or ``digits``; the other fields are parameters of its reader.

    See `whisper_at.data.utterances`: ``spread`` is for LibriSpeech and tables, ``max_seconds`` for tables (``folder``
    is the CSV); ``takes``, ``digits`` and ``seed`` for digits.
    """

    folder: str
    kind: str = "librispeech"
    count: int = 40
    spread: bool = False
    max_seconds: float | None = None
    takes: tuple[int, ...] = (0, 49)
    digits: tuple[int, ...] = (4, 8)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("librispeech", "table", "digits"):
            raise ValueError(f"speech.kind is librispeech, table or digits, not {self.kind!r}")
        if self.max_seconds is not None and self.kind != "table":
            raise ValueError(f"speech.max_seconds is for tables, not for {self.kind}")
        if self.count < 1:
            raise ValueError(f"speech.count must be at least 1, not {self.count}")
        for name in ("takes", "digits"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
                raise ValueError(f"speech.{name} must be the first and the last, such as [45, 49], not {list(pair)}")

    def read(self, data: Path) -> list[Utterance]:
        """Read the utterances; ``folder`` is relative to ``data``."""
        folder = data / self.folder
        if self.kind == "digits":
            (first, last), (least, most) = self.takes, self.digits
            return read_digit_strings(folder, self.count, (first, last), (least, most), seed=self.seed)
        if self.kind == "table":
            return read_transcripts(folder, self.count, self.spread, self.max_seconds)
        return read_librispeech(folder, self.count, self.spread)


@dataclass(frozen=True)
class NoiseConfig:
    """Noise clips by class; the fields are parameters of `whisper_at.study.noises.read_noises`."""

    folder: str
    only: str | None = None

    def read(self, data: Path) -> Dataset:
        """Read the clips; ``folder`` is relative to ``data``."""
        return read_noises(data / self.folder, self.only)


@dataclass(frozen=True)
class MixConfig:
    """Mixing: signal-to-noise ratios in dB, whether to prevent clipping, and whether to keep mixtures on disk."""

    snrs: tuple[float, ...] = SNRS
    guard: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        if not self.snrs:
            raise ValueError("mix.snrs needs at least one ratio in dB")


@dataclass(frozen=True)
class RobustnessConfig:
    """Comparison by class of noise: increase of word errors between two ratios (dB), and F1 of the last layer.

    An empty ``recogniser`` or ``backbone`` is the first of the study.
    """

    recogniser: str = ""
    backbone: str = ""
    low: float = -10.0
    high: float = 20.0


@dataclass(frozen=True)
class StudyConfig:
    """A study; for the fields see ``recipes/noise_study``."""

    out: str
    speech: SpeechConfig
    noise: NoiseConfig
    recognisers: tuple[str, ...] = ()
    probe: NoiseConfig | None = None
    backbones: tuple[str, ...] = ()
    classifier: str = "published"
    mix: MixConfig = field(default_factory=MixConfig)
    robustness: RobustnessConfig = field(default_factory=RobustnessConfig)

    def __post_init__(self) -> None:
        for name in self.recognisers:
            parse_recogniser(name)
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"classifier is {' or '.join(CLASSIFIERS)}, not {self.classifier!r}")

    @property
    def probe_clips(self) -> NoiseConfig:
        """Clips that layers are probed with: the noises unless ``probe`` names others."""
        return self.probe or self.noise

    def run_settings(self) -> dict[str, Any]:
        """Return what identifies a run of transcriptions, apart from where the data are."""
        speech, noise = asdict(self.speech), asdict(self.noise)
        given = {name: value for name, value in speech.items() if name != "folder" and value is not None}
        return {"speech": given, "noise": noise["only"]}


def read_study(path: str | os.PathLike[str]) -> StudyConfig:
    """Read the TOML of a study.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not TOML, a key is unknown, missing or of another type, a recogniser does not exist, or a ratio of
        ``robustness`` is not in ``mix.snrs``.
    """
    content = read_toml(path)
    try:
        study = from_table(StudyConfig, content)
        for name in ("low", "high"):  # the defaults need not be mixed: then there is no comparison
            snr = getattr(study.robustness, name)
            if name in content.get("robustness", {}) and snr not in study.mix.snrs:
                mixed = ", ".join(f"{other:g}" for other in study.mix.snrs)
                raise ValueError(f"robustness.{name} is {snr:g} dB, but mix.snrs has {mixed}: take one of these")
        return study
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
