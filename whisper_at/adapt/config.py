"""One experiment as a TOML file: what is adapted how, on which data, divided and fitted how.

A file is a flat table of the fields of `Config`, with ``method`` (a name, a table ``{name = …, option = …}`` or
several such), ``recipe`` (the fields of `whisper_at.adapt.trainer.Recipe`), ``reader`` (options of the dataset's
reader) and ``reported`` (figures of a paper, which nothing reads but people) as tables.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data import datasets
from ..data.protocols import PROTOCOLS
from ..data.toml import parse_assignment, read_toml
from ..data.validation import coerce, unknown_name
from .backbones import Backbone, load_backbone, random_backbone
from .backbones.configs import CONFIG_NAMES
from .backbones.loading import RANDOM_PREFIX
from .classifier import AudioClassifier
from .pooling import LAYERS, POOLINGS
from .trainer import Recipe
from .waveforms import first_convolution


@dataclass(frozen=True)
class Config:
    """An experiment.

    Attributes
    ----------
    backbone, frames, normalize, method, head, layers, pooling, seconds, pad, windows : as of `AudioClassifier`
    random : take random weights of the backbone's sizes, always the same, to try things out; ``whisper-nano``,
        ``ast-tiny`` …
    classes : their number, for counting without data
    dataset, root, reader : as of `whisper_at.data.read_public_dataset`; root is relative to where the command runs
    protocol, parts, only : how to divide it (`whisper_at.data.protocols`), into how many parts where the protocol
        leaves that open, and which of the divisions to run (from 0; all if None)
    few_shot, few_shot_first : train on so many clips of each class, drawn with the seed or the first ones
    recipe : how to fit
    seeds : one run for each; it stands for the recipe's
    out : folder for everything that is written
    cache : folder of decoded audio; see `whisper_at.adapt.waveforms.Waves`
    device : where to compute; CUDA if there is any, else the CPU
    reported : what a paper reports, for people to compare with
    """

    backbone: str = "nano.en"
    frames: int | None = None
    normalize: bool | None = None
    random: bool = False
    method: tuple[dict[str, Any], ...] = ()
    head: str = "linear"
    layers: str = "last"
    pooling: str = "frames"
    seconds: float | None = None
    pad: bool = False
    windows: bool | None = None
    classes: int | None = None
    dataset: str = ""
    root: str = ""
    reader: dict[str, Any] = field(default_factory=dict)
    protocol: str = "splits"
    parts: int | None = None
    only: tuple[int, ...] | None = None
    few_shot: int | None = None
    few_shot_first: bool = False
    recipe: Recipe = field(default_factory=Recipe)
    seeds: tuple[int, ...] = (0,)
    out: str = "adapted"
    cache: str | None = None
    device: str | None = None
    reported: dict[str, Any] = field(default_factory=dict)


def read_config(paths: str | os.PathLike[str] | Sequence[str] | None, changes: Iterable[str] = ()) -> Config:
    """A `Config` of TOML files and ``key=value`` changes to it; ``recipe.lr=1e-3`` reaches into a table.

    Of several files, a later one stands above an earlier one, key by key also in ``recipe`` and ``reader``: one may say
    what is adapted how, the next on which data.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no TOML, or a key or a value is wrong; the nearest key is named.
    """
    table: dict[str, Any] = {}
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths or ():
        for name, value in read_toml(path).items():
            before = table.get(name)
            if name in ("recipe", "reader") and isinstance(value, dict) and isinstance(before, dict):
                value = {**before, **value}
            table[name] = value
    return make_config(changed(table, changes))


def changed(table: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The table after changes ``key=value``; values are TOML's, or text where they are none."""
    table = {name: dict(value) if isinstance(value, dict) else value for name, value in table.items()}
    for change in changes:
        name, value = parse_assignment(change, "key=value")
        outer, _, inner = name.partition(".")
        if not inner:
            table[outer] = value
            continue
        if outer == "method" and isinstance(table.get(outer), str):
            table[outer] = {"name": table[outer]}
        if not isinstance(table.setdefault(outer, {}), dict):
            raise ValueError(f"{name}: {outer} is no single table here; change it in the file")
        table[outer][inner] = value
    return table


def make_config(table: Mapping[str, Any]) -> Config:
    """A `Config` of what a TOML file holds; ValueError names a wrong key, the nearest right one, or a wrong value."""
    values = _checked(Config, table, "")
    if "method" in values:
        values["method"] = _methods(values["method"])
    if not isinstance(values.get("recipe", {}), Mapping):
        raise ValueError(f"recipe = {values['recipe']!r} is not a table; recipe.epochs = 30 sets a part of it")
    if "recipe" in values:
        values["recipe"] = Recipe(**_checked(Recipe, values["recipe"], "recipe."))
    config = Config(**values)
    for name, known in (("layers", LAYERS), ("pooling", POOLINGS), ("protocol", tuple(PROTOCOLS))):
        if getattr(config, name) not in known:
            raise ValueError(unknown_name(f"{name} =", getattr(config, name), known))
    for name in ("seconds", "frames", "classes", "parts", "few_shot"):
        if (number := getattr(config, name)) is not None and not number > 0:
            raise ValueError(f"{name} must be more than 0, not {number!r}; leave it out to do without")
    if config.dataset:
        datasets.canonical_name(config.dataset)
    if not config.seeds:
        raise ValueError("seeds is empty: give at least one")
    return config


def build(config: Config, classes: Sequence[str], seed: int = 0, count_only: bool = False) -> AudioClassifier:
    """The classifier of a configuration; with ``count_only`` it has sizes, but no weights, and needs no files.

    ValueError if a method, the pooling, ``frames``, ``normalize`` or SpecAugment does not suit the backbone.
    """
    backbone: Backbone
    if count_only:
        backbone = sized_backbone(config.backbone, config.frames, config.normalize)
    else:
        name = f"{RANDOM_PREFIX}{config.backbone}" if config.random else config.backbone
        backbone = load_backbone(name, config.device, frames=config.frames, normalize=config.normalize)
    if config.recipe.spec_augment is not None:
        first_convolution(backbone.front)
    return AudioClassifier(
        backbone,
        config.method,
        classes,
        head=config.head,
        layers=config.layers,
        pooling=config.pooling,
        seconds=config.seconds,
        pad=config.pad,
        windows=config.windows,
        seed=seed,
    )


def sized_backbone(name: str, frames: int | None = None, normalize: bool | None = None) -> Backbone:
    """A backbone of the sizes of a published one, without weights where the sizes are known, else loaded."""
    alias = {"wavlm-base": "wavlm-base-plus"}.get(name, name)
    known = next((n for n in (alias, f"whisper-{alias.removesuffix('.en')}") if n in CONFIG_NAMES), None)
    if known is None or name == "nano.en":
        return load_backbone(name, "cpu", frames=frames, normalize=normalize)
    return random_backbone(known, frames=frames, normalize=normalize, device="meta")


# --- checks -----------------------------------------------------------------------------------------------------


def _methods(given: Any) -> tuple[dict[str, Any], ...]:
    several = given if isinstance(given, (list, tuple)) else [given]
    tables = [{"name": one} if isinstance(one, str) else one for one in several]
    for table in tables:
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise ValueError(f'a method is a name or a table with one, {{name = "lora", rank = 8}}; not {table!r}')
    return tuple(dict(table) for table in tables)


def _checked(kind: type, table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The table's values in the types of a dataclass' fields; ValueError for a wrong key or type."""
    fields = {f.name for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    out = {}
    for name, value in table.items():
        if name not in fields:
            raise ValueError(
                unknown_name("there is no key", f"{prefix}{name}", [f"{prefix}{f}" for f in sorted(fields)])
            )
        out[name] = value if name in ("method", "recipe") else coerce(value, hints[name], f"{prefix}{name}")
    return out
