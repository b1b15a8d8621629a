"""Configuration of a linear evaluation: tasks, networks and how probes are fitted, from a TOML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..data.datasets import CLIP_SECONDS, canonical_name
from ..data.toml import read_toml
from ..data.validation import unknown_name
from .linear_eval import SEEDS
from .probes import ProbeSettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)


@dataclass(frozen=True)
class TaskConfig:
    """A dataset to classify.

    Attributes
    ----------
    dataset, root, options : str, str, dict
        As of `whisper_at.data.datasets.read_public_dataset`; ``root`` is relative to the working directory.
    name : str
        Its name in tables; by default the dataset's.
    seconds : float, optional
        Length to which clips are cut or padded; by default the published one.
    folds : int, optional
        Number of folds for data that have neither splits nor folds.
    lr : float, optional
        Learning rate, instead of that of ``[probe]``.
    """

    dataset: str
    root: str
    name: str = ""
    seconds: float | None = None
    folds: int | None = None
    lr: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def clip_seconds(self) -> float:
        """Length to which clips are cut or padded."""
        return self.seconds or CLIP_SECONDS[canonical_name(self.dataset)]


@dataclass(frozen=True)
class NetworkConfig:
    """A network to evaluate.

    Attributes
    ----------
    backbone, weights, layers, pooling : str, str, tuple of int or "all", str
        As of `load_fusion`; ``layers`` are those to evaluate, by default all.
    name : str
        Its name in tables; by default the backbone's.
    fusions : tuple of tuple of int
        Sets of layers to show beside the best pair.
    lr : dict of str to float
        Learning rates by the name of the task, instead of all others.
    """

    backbone: str
    name: str = ""
    weights: str | None = None
    layers: tuple[int, ...] | str = "all"
    pooling: str | None = None
    fusions: tuple[tuple[int, ...], ...] = ()
    lr: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationConfig:
    """A file of ``[[task]]``, ``[[network]]``, ``[probe]`` (fields of `ProbeSettings`), and these fields."""

    task: tuple[TaskConfig, ...]
    network: tuple[NetworkConfig, ...]
    out: str = "lineareval"
    seeds: tuple[int, ...] = SEEDS
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    cache: str | None = None
    audio_cache: str | None = None
    device: str | None = None


def read_evaluation_config(path: str | os.PathLike[str]) -> EvaluationConfig:
    """Read and check a configuration.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not TOML, a field is unknown or missing, or names are not unique.
    """
    table = read_toml(path)
    tasks = [_build(TaskConfig, entry, f"{path}, task") for entry in _pop_entries(table, "task", path)]
    networks = [_build(NetworkConfig, entry, f"{path}, network") for entry in _pop_entries(table, "network", path)]
    datasets = [canonical_name(task.dataset) for task in tasks]
    tasks = [replace(task, name=task.name or dataset) for task, dataset in zip(tasks, datasets)]
    networks = [replace(network, name=network.name or network.backbone) for network in networks]
    for kind, names in (("tasks", [task.name for task in tasks]), ("networks", [net.name for net in networks])):
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{path}: two {kind} are called {twice[0]!r}; give each a name")
        if bad := [name for name in names if "/" in name]:
            raise ValueError(f"{path}: {bad[0]!r} is used as a file name, so it may hold no '/'; give it a name")
    for task, dataset in zip(tasks, datasets):
        if task.seconds is None and dataset not in CLIP_SECONDS:
            raise ValueError(f"{path}, task {task.name}: no length is published for it; say seconds = …")
    probe = _build(ProbeSettings, table.pop("probe", {}), f"{path}, probe")
    return _build(EvaluationConfig, table | {"task": tasks, "network": networks, "probe": probe}, str(path))


def _pop_entries(table: dict[str, Any], key: str, path: object) -> list[Mapping[str, Any]]:
    """Take an array of tables, ``[[key]]``, out of a TOML table."""
    entries = table.pop(key, None)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} has no [[{key}]]")
    return entries


def _build(kind: type[Config], table: Mapping[str, Any], place: str) -> Config:
    known = sorted(item.name for item in fields(kind))
    if unknown := sorted(set(table) - set(known)):
        raise ValueError(unknown_name(f"{place}: there is no", unknown[0], known))
    try:
        return kind(**{name: _to_tuple(value) for name, value in table.items()})
    except TypeError as error:
        raise ValueError(f"{place}: {str(error).partition(') ')[2] or error}") from None


def _to_tuple(value: Any) -> Any:
    return tuple(map(_to_tuple, value)) if isinstance(value, list) else value
