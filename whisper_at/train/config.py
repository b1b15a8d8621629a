"""Settings of the training of a head: defaults, presets, TOML files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..data.toml import parse_assignment
from ..data.validation import coerce_fields
from ..features.encode import PROTOCOLS
from .fit import PRECISIONS, FitOptions
from .schedules import Schedule, schedule_cosine, schedule_steps


@dataclass(frozen=True)
class Settings:
    """How a head is trained; the names are those of TOML files and of ``--set``.

    Attributes
    ----------
    mode : str
        Mode of the head, see `whisper_at.tagging.heads.make_head`.
    loss : str
        ``bce`` for classes that may sound together, ``ce`` for exactly one class per clip, ``auto`` to decide by the
        data.
    epochs, batch : int
        Number of epochs, clips per batch.
    epoch_share : float
        Share of a pass over the clips that makes an epoch.
    least_steps : int
        Least number of batches per epoch, for small data sets.
    optimizer : str
        ``adam`` (with weight decay as L2 regularisation), ``adamw``, or ``ridge``: mode ``stats_mlp`` fitted in closed
        form, see `whisper_at.train.ridge`, to which no setting of epochs, batches and the like applies.
    rate, betas, weight_decay : float, (float, float), float
        Learning rate and parameters of the optimizer. The rate of mode ``stats_mlp`` is divided by the number of its
        inputs and multiplied by 512.
    warm_up : float
        Epochs of linear warm-up.
    decay : str
        ``steps``, ``cosine`` (down to 0) or ``none``.
    decay_start, decay_every, decay_factor : int, int, float
        Step decay: the rate is multiplied by the factor after `decay_start` epochs and every `decay_every` more.
    average : tuple of int
        First and last epoch (from 1) whose weights are averaged; empty for none.
    select : str
        Score that selects the epoch to keep if none are averaged: ``mAP``, ``accuracy``, ``-valid_loss`` …; empty for
        the last epoch.
    patience : int
        Early stopping after this many epochs without a better `select`; 0 for never.
    balanced : bool
        Sample clips with replacement, those with rare labels more often.
    mixup, mixup_alpha : float
        Share of clips that are mixed with another; λ is drawn from Beta(alpha, alpha).
    time_mask, freq_mask : int
        SpecAugment-like masks are shorter than this many steps, or dimensions; 0 for none.
    most_masked : float
        Time masks are shorter than this share of a row.
    smoothing : float
        ε of label smoothing.
    rows : tuple of int
        Lengths, in steps of 0.4 s, of the rows trained on; each batch draws one of them.
    valid_share : float
        Share of the training clips that is held out to select epochs and to calibrate, unless the data have a
        validation split (defect T2).
    refit : bool
        Train a second time, on the held-out clips too, for all epochs: the head that is written has seen every clip,
        while its scores and calibration are those of clips that the first had not seen. Only where clips are held out
        at random, not where the data have a validation split.
    threshold_precision : float
        Precision that the threshold of each class is to reach on held-out clips.
    false_alarms_per_hour : float
        Events per hour, of all classes together, that thresholds let background make.
    protocol, seconds : str, float
        How clips are encoded, see `whisper_at.features.encode.describe_features`.
    precision : str
        Precision of training: ``float32``, ``bfloat16``, or ``float16``, which needs a GPU. Scores are always computed
        in float32 (defect T6).
    readers : int
        Threads that prefetch batches, for features on slow disks; 0 for none.
    seed : int
        Seed of everything random.
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
    refit: bool = False
    threshold_precision: float = 0.9
    false_alarms_per_hour: float = 1.0
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
        """Return the factor of the learning rate as a function of progress."""
        if self.decay == "cosine":
            return schedule_cosine(self.epochs, self.warm_up)
        factor = self.decay_factor if self.decay == "steps" else 1.0
        return schedule_steps(self.decay_start, self.decay_every, factor, self.warm_up)

    def fit_options(self, validated: bool) -> FitOptions:
        """Return the options of `whisper_at.train.fit.fit`; without held-out clips, the last epoch is kept."""
        select = self.select if validated and self.select and not self.average else None
        return FitOptions(
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
    "optimizer": ("adam", "adamw", "ridge"),
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
    "false_alarms_per_hour": (1e-3, 1e6),
    "seconds": (0, 30),
    "readers": (0, 64),
    "seed": (0, 2**31),
}

PRESETS = ("own", "audioset")
USED_BY_RIDGE = frozenset(
    "mode optimizer loss rows valid_share threshold_precision false_alarms_per_hour protocol seconds seed".split()
)
"""Settings that matter where a head is fitted in closed form."""


def preset_settings(name: str, width: int, mode: str | None = None, optimizer: str | None = None) -> Settings:
    """Return a complete recipe by name.

    ``own`` is for tens of clips per class on a laptop; its head is ``stats_mlp``, fitted in closed form unless another
    optimizer is given. Another mode has the settings of heads with attention. ``audioset`` is that of Whisper-AT (spec
    section 3.5): encoders of width 1024 and more (medium, large) train for 30 pseudo-epochs of 10 %, their full-width
    head at half the rate; smaller ones for 50.

    Parameters
    ----------
    name : str
        Name of the preset.
    width : int
        Width of the encoder.
    mode, optimizer : str, optional
        Mode of the head, and optimizer, if others are wanted.

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    if name == "own":
        if mode in (None, "stats_mlp") and optimizer in (None, "ridge"):
            return Settings(mode="stats_mlp", optimizer="ridge", valid_share=0.0)
        if mode in (None, "stats_mlp"):  # a mask would be the minimum or maximum of a row
            return Settings(mode="stats_mlp", time_mask=0, refit=True)
        return Settings(mode=mode)
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


def by_gradient_descent(settings: Settings) -> Settings:
    """Return settings for more clips than can be fitted in closed form."""
    kept = {name: getattr(settings, name) for name in USED_BY_RIDGE - {"optimizer", "valid_share"}}
    return replace(preset_settings("own", 0, settings.mode, "adamw"), **kept)


def resolve_settings(
    name: str, width: int, config: Mapping[str, Any], overrides: Mapping[str, Any], source: str | None
) -> Settings:
    """Return a preset, changed by a configuration file, changed by the command line.

    Parameters
    ----------
    name, width : str, int
        Preset and width of the encoder, see `preset_settings`.
    config, overrides : mapping
        Settings of the file and of the command line.
    source : str or None
        Name of the file, for error messages.

    Raises
    ------
    ValueError
        As `preset_settings` and `update_settings`, or if a given setting would have no effect.
    """
    given = {**config, **overrides}
    mode, optimizer = (value if isinstance(value := given.get(key), str) else None for key in ("mode", "optimizer"))
    settings = preset_settings(name, width, mode, optimizer)
    settings = update_settings(update_settings(settings, config, source or ""), overrides, "--set")
    if settings.optimizer == "ridge":
        if not settings.mode.startswith("stats_"):
            raise ValueError(f"optimizer=ridge is for mode stats_mlp, not {settings.mode}: leave one of them out")
        if useless := sorted(given.keys() - USED_BY_RIDGE):
            raise ValueError(
                f"{useless[0]} does nothing to a head that is fitted in closed form: give optimizer=adamw too"
            )
    if given.get("seconds") and settings.protocol != "10":
        raise ValueError(f"seconds is for protocol 10, not {settings.protocol}: give protocol=10 too, or seconds=0")
    for setting in ("select", "patience"):
        if given.get(setting) and settings.average:
            raise ValueError(f"{setting} does nothing where epochs are averaged: leave it out, or give average=[] too")
    if given.get("patience") and not settings.select:
        raise ValueError("patience does nothing without select: leave it out, or give select too, as select=mAP")
    return settings


def update_settings(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    """Return settings with other values; `source` names their origin in error messages.

    Raises
    ------
    ValueError
        If a name is unknown, or a value is of the wrong type or out of bounds.
    """
    if isinstance(number := values.get("protocol"), int):
        values = {**values, "protocol": str(number)}
    try:
        return replace(settings, **coerce_fields(Settings, values))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def parse_assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``name=value`` pairs; a value that is not TOML is text.

    Raises
    ------
    ValueError
        If a pair has no ``=``.

    Examples
    --------
    >>> parse_assignments(["rate=1e-4", "rows=[25]", "mode=mean_mlp"])
    {'rate': 0.0001, 'rows': [25], 'mode': 'mean_mlp'}
    """
    return dict(map(parse_assignment, pairs))


def settings_dict(settings: Settings) -> dict[str, Any]:
    """Return settings as a dict for JSON, with lists instead of tuples."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
