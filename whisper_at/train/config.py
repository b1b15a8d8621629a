"""What can be set about the training of a head: values, presets of whole recipes, TOML files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..data.toml import parse_assignment
from ..suggest import did_you_mean
from .fit import PRECISIONS, Plan, Schedule, schedule_cosine, schedule_steps

PROTOCOLS = ("10", "30", "30+")
"""Ways to hear a clip, see `whisper_at.train.extract.describe`."""


@dataclass(frozen=True)
class Settings:
    """How a head is trained.

    Attributes
    ----------
    mode : of the head, see `whisper_at.tagging.heads.make_head`
    loss : ``bce`` for classes that sound together, ``ce`` where one of them is right, ``auto`` by the data
    epochs, batch, epoch_share : an epoch is that share of a pass over the clips
    least_steps : batches of an epoch where a pass has fewer, as with a handful of clips
    optimizer, rate, betas, weight_decay : ``adam`` (weight decay as L2) or ``adamw``
    warm_up : epochs of a rate that rises in a line
    decay : ``steps`` (times ``decay_factor`` after ``decay_start`` epochs and every ``decay_every`` more), ``cosine``
        (down to 0) or ``none``
    average : first and last epoch whose weights are averaged; empty for none
    select : the score that chooses the epoch that is kept, where none are averaged: ``mAP``, ``accuracy``,
        ``-valid_loss`` …; empty for the last epoch
    patience : epochs without a better ``select`` after which training stops, where none are averaged; 0 for never
    balanced : draw clips by how rare their labels are, with replacement
    mixup, mixup_alpha : share of clips that are mixed with another; λ is drawn from Beta(alpha, alpha)
    time_mask, freq_mask : masked spans are shorter than so many steps, or dimensions; 0 for none
    most_masked : share of a row's steps below which time masks are
    smoothing : ε of label smoothing
    rows : lengths in steps (0.4 s) of the rows trained on; each batch draws one, at most the longest clip's
    valid_share : part of the training clips that is held out to choose epochs and to calibrate, unless the data
        have a part for that (defect T2)
    threshold_precision : precision that each class's threshold is to reach on held-out clips
    protocol, seconds : of the states, see `whisper_at.train.extract.describe`
    precision : ``float32``, ``bfloat16`` or ``float16`` in training (the last is for GPUs: `whisper-at train` takes
        float32 without one); scores are always of float32 (defect T6)
    readers : threads that read batches ahead, for states that lie on slow disks; 0 for none
    seed : of everything random
    """

    mode: str = "tl_tr_1_8"
    loss: str = "auto"
    epochs: int = 100
    batch: int = 32
    epoch_share: float = 1.0
    least_steps: int = 10
    optimizer: str = "adamw"
    rate: float = 2e-3
    betas: tuple[float, ...] = (0.9, 0.98)
    weight_decay: float = 0.1
    warm_up: float = 2.0
    decay: str = "cosine"
    decay_start: int = 15
    decay_every: int = 5
    decay_factor: float = 0.75
    average: tuple[int, ...] = ()
    select: str = "mAP"
    patience: int = 0
    balanced: bool = True
    mixup: float = 0.5
    mixup_alpha: float = 10.0
    time_mask: int = 10
    freq_mask: int = 0
    most_masked: float = 0.4
    smoothing: float = 0.1
    rows: tuple[int, ...] = (3, 8, 13, 25, 75)
    valid_share: float = 0.2
    threshold_precision: float = 0.9
    protocol: str = "30+"
    seconds: float = 0.0
    precision: str = "float32"
    readers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie between {least:g} and {most:g}, not {getattr(self, name)!r}")
        if not self.rows or min(self.rows) < 1:
            raise ValueError(f"rows must be numbers of steps, at least one, not {list(self.rows)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, not {list(self.betas)}")
        if self.average and not (len(self.average) == 2 and 1 <= self.average[0] <= self.average[1] <= self.epochs):
            raise ValueError(f"average must be a first and a last epoch of {self.epochs}, not {list(self.average)}")

    def schedule(self) -> Schedule:
        """Factor of the rate by epochs done."""
        if self.decay == "cosine":
            return schedule_cosine(self.epochs, self.warm_up)
        factor = self.decay_factor if self.decay == "steps" else 1.0
        return schedule_steps(self.decay_start, self.decay_every, factor, self.warm_up)

    def plan(self, validated: bool) -> Plan:
        """For `whisper_at.train.fit.fit`; without held-out clips, the last epoch is kept."""
        select = self.select if validated and self.select and not self.average else None
        return Plan(
            self.epochs,
            self.schedule(),
            select,
            (self.average[0], self.average[1]) if self.average else None,
            self.patience or None if select else None,
            self.precision,
            save_steps=500,
            seed=self.seed,
        )


CHOICES = {
    "loss": ("auto", "bce", "ce"),
    "optimizer": ("adam", "adamw"),
    "decay": ("steps", "cosine", "none"),
    "protocol": PROTOCOLS,
    "precision": tuple(PRECISIONS),
}
BOUNDS = {
    "epochs": (1, 1e6),
    "batch": (1, 1e6),
    "epoch_share": (1e-9, 1),
    "least_steps": (1, 1e6),
    "rate": (0, 1e3),
    "weight_decay": (0, 1e3),
    "warm_up": (0, 1e6),
    "decay_start": (1, 1e6),
    "decay_every": (1, 1e6),
    "decay_factor": (0, 1),
    "patience": (0, 1e6),
    "mixup": (0, 1),
    "mixup_alpha": (1e-6, 1e6),
    "time_mask": (0, 1e6),
    "freq_mask": (0, 1e6),
    "most_masked": (0, 1),
    "smoothing": (0, 0.999),
    "valid_share": (0, 0.9),
    "threshold_precision": (1e-6, 1),
    "seconds": (0, 30),
    "readers": (0, 64),
    "seed": (0, 2**31),
}

PRESETS = ("own", "audioset")


def preset(name: str, width: int, mode: str | None = None) -> Settings:
    """A whole recipe by name.

    ``own`` is for tens of clips a class on a laptop. ``audioset`` is Whisper-AT's, by the table of spec section 3.5:
    encoders of width 1024 and more (medium, large) train for 30 pseudo-epochs of 10 %, the rate of their full-width
    head being half of the others'; smaller ones for 50.

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    if name == "own":
        return Settings() if mode is None else Settings(mode=mode)
    if name != "audioset":
        raise ValueError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    mode = mode or Settings.mode
    large = width >= 1024
    return Settings(
        mode=mode,
        loss="bce",
        epochs=30 if large else 50,
        batch=48,
        epoch_share=0.1,
        least_steps=1,
        optimizer="adam",
        rate=5e-5 if large and "down" not in mode else 1e-4,
        betas=(0.95, 0.999),
        weight_decay=5e-7,
        warm_up=0.0,
        decay="steps",
        average=(16, 30) if large else (21, 50),
        select="",
        rows=(25,),
        valid_share=0.01,
        protocol="10",
        seconds=10.0,
        readers=4,
    )


def changed(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    """Settings with other values; ``source`` says in errors where they come from.

    Raises
    ------
    ValueError
        If a name is unknown (the nearest one is told) or a value is of the wrong kind or out of bounds.
    """
    names = [field.name for field in fields(Settings)]
    new: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"{source}: no setting is called {name!r}; {did_you_mean(name, names)}")
        new[name] = _as_kind(name, value, getattr(settings, name), source)
    try:
        return replace(settings, **new)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _as_kind(name: str, value: Any, like: Any, source: str) -> Any:
    number = (int, float)
    if isinstance(like, tuple):
        kinds = number if name == "betas" else (int,)
        if isinstance(value, (list, tuple)) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in value):
            return tuple(value)
        raise ValueError(f"{source}: {name} must be a list of numbers, as [3, 5], not {value!r}")
    if isinstance(like, bool):
        if isinstance(value, bool):
            return value
    elif isinstance(like, str):
        if isinstance(value, str):
            return value
        if name == "protocol" and isinstance(value, int):
            return str(value)
    elif isinstance(value, number) and not isinstance(value, bool):
        if isinstance(like, float) or float(value).is_integer():
            return type(like)(value)
    kind = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[type(like)]
    raise ValueError(f"{source}: {name} must be {kind}, not {value!r}")


def parse_assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """``["rate=1e-4", "rows=[25]", "mode=mean_mlp"]`` as names and values; what is no TOML value is text.

    Raises
    ------
    ValueError
        If there is no ``=`` in one.
    """
    return dict(map(parse_assignment, pairs))


def as_dict(settings: Settings) -> dict[str, Any]:
    """Names and values, lists for tuples."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
