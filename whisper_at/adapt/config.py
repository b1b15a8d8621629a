"""One experiment as a TOML file: what is adapted how, on which data, divided and fitted how.

A file is a flat table of the fields of `Config`, with ``method`` (a name, a table ``{name = …, option = …}`` or
several of these), ``blocks`` (a list, for all methods that add to blocks), ``recipe`` (the fields of
`whisper_at.adapt.trainer.Recipe`), ``reader`` (options of the dataset's reader) and ``reported`` (figures of a paper,
which the program does not use) as tables.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data import datasets
from ..data.protocols import PROTOCOLS
from ..data.toml import parse_assignment, read_toml
from ..data.validation import from_table, unknown_name
from .backbones import Backbone, load_backbone, random_backbone
from .backbones.configs import CONFIG_NAMES
from .backbones.loading import RANDOM_PREFIX
from .classifier import AudioClassifier
from .methods import METHODS, NORM_METHODS, method_tables
from .pooling import LAYERS, POOLINGS
from .trainer import Recipe
from .waveforms import spectrogram_conv


@dataclass(frozen=True)
class Config:
    """An experiment.

    Attributes
    ----------
    backbone, frames, normalize, method, head, layers, pooling, seconds, pad, windows
        As of `AudioClassifier`.
    random : bool
        Take random weights in the backbone's sizes, always the same, to try things out.
    classes : int, optional
        Number of classes, for counting parameters without data.
    dataset, root, reader : str, str, dict
        As of `whisper_at.data.read_public_dataset`; ``root`` is relative to the working directory.
    protocol, parts, only : str, int, tuple of int
        How to divide the data (`whisper_at.data.protocols`), into how many parts if the protocol leaves that open, and
        which of the splits to run (from 0; all by default).
    few_shot, few_shot_first : int, bool
        Train on so many clips of each class, drawn by the seed, or the first ones.
    recipe : Recipe
        How to fit.
    seeds : tuple of int
        One run for each; stands for the recipe's seed.
    out : str
        Folder for all results.
    cache : str, optional
        Folder of decoded audio; see `whisper_at.adapt.waveforms.WaveformDataset`.
    device : str, optional
        Where to compute; CUDA if there is any, else the CPU.
    reported : dict
        Figures of a paper, for people to compare with.
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
    """Read a `Config` from TOML files and ``key=value`` changes; ``recipe.lr=1e-3`` reaches into a table.

    Of several files, a later one overrides an earlier one, key by key also in ``recipe`` and ``reader``: one may say
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
    return make_config(apply_changes(table, changes))


def apply_changes(table: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """Return the table after changes ``key=value``; values are TOML, or text if they are not."""
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
    """Return the `Config` of a table; ValueError names a wrong value, or a wrong key and the nearest right one.

    Examples
    --------
    >>> make_config({"method": "lora", "recipe": {"epochs": 3}}).recipe.epochs
    3
    """
    if "method" in table:
        table = {**table, "method": method_tables(table["method"])}
    if "blocks" in table:
        table = dict(table)
        table["method"] = _in_blocks(table.get("method", ()), table.pop("blocks"))
    config = from_table(Config, table)
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


def _in_blocks(methods: Sequence[dict[str, Any]], blocks: object) -> list[dict[str, Any]]:
    """Return methods of which those that add to blocks do so in these alone: WhisPAr's ``adapt_list``.

    LayerNorms that are trained beside them stay as they are; they have the option ``blocks`` of their own.
    """
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        raise ValueError(f"blocks must be a list of numbers from 0, such as [0, 1, 2], not {blocks!r}")
    adding = [
        method["name"]
        for method in methods
        if method["name"] not in NORM_METHODS
        and "blocks" in inspect.signature(METHODS.get(method["name"], dict)).parameters
    ]
    if not adding:
        raise ValueError("blocks is for methods that add to blocks: adapter, lora, prefix …; there is none here")
    return [{**method, "blocks": blocks} if method["name"] in adding else method for method in methods]


def build_classifier(
    config: Config, classes: Sequence[str], seed: int = 0, without_weights: bool = False
) -> AudioClassifier:
    """Build the classifier of a configuration.

    Parameters
    ----------
    config : Config
        The configuration.
    classes : sequence of str
        Names of the classes.
    seed : int
        Seed of the initial values of new parameters.
    without_weights : bool
        Build it on the ``meta`` device, where it has sizes but no weights, and needs no files.

    Raises
    ------
    ValueError
        If a method, the pooling, ``frames``, ``normalize`` or SpecAugment does not suit the backbone.
    """
    backbone: Backbone
    if without_weights:
        backbone = meta_backbone(config.backbone, config.frames, config.normalize)
    else:
        name = f"{RANDOM_PREFIX}{config.backbone}" if config.random else config.backbone
        backbone = load_backbone(name, config.device, frames=config.frames, normalize=config.normalize)
    if config.recipe.spec_augment is not None:
        spectrogram_conv(backbone.front)
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


def parameter_counts(config: Config) -> dict[str, int]:
    """Count the parameters of a configuration, without weights and data; ValueError if ``classes`` is not given."""
    if (n_classes := config.classes) is None:
        raise ValueError("how many classes? --set classes=N")
    if not hasattr(meta_backbone(config.backbone).front, "frames"):
        config = dataclasses.replace(config, frames=None)  # they change the count of AST only
    names = [str(i) for i in range(n_classes)]
    return build_classifier(config, names, without_weights=True).count()


def meta_backbone(name: str, frames: int | None = None, normalize: bool | None = None) -> Backbone:
    """Return a backbone on the ``meta`` device, without weights, if its sizes are known; else load it."""
    alias = {"wavlm-base": "wavlm-base-plus"}.get(name, name)
    known = next((n for n in (alias, f"whisper-{alias.removesuffix('.en')}") if n in CONFIG_NAMES), None)
    if known is None or name == "nano.en":
        return load_backbone(name, "cpu", frames=frames, normalize=normalize)
    return random_backbone(known, frames=frames, normalize=normalize, device="meta")
