"""Configuration of a linear evaluation: tasks, networks and how probes are fitted, from a TOML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..data.datasets import CLIP_SECONDS, canonical_name
from ..data.toml import read_toml
from ..data.validation import from_table
from .linear_eval import SEEDS
from .probes import ProbeSettings


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
    for key in ("task", "network"):
        if not isinstance(entries := table.get(key), list) or not entries:
            raise ValueError(f"{path} has no [[{key}]]")
    try:
        config = from_table(EvaluationConfig, table)
        return replace(config, task=_name_tasks(config.task), network=_name_networks(config.network))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _name_tasks(tasks: Sequence[TaskConfig]) -> tuple[TaskConfig, ...]:
    """Give each task its name; ValueError if there is no length for one, or names do not do."""
    datasets = [canonical_name(task.dataset) for task in tasks]
    tasks = tuple(replace(task, name=task.name or dataset) for task, dataset in zip(tasks, datasets))
    _check_names("tasks", [task.name for task in tasks])
    for task, dataset in zip(tasks, datasets):
        if task.seconds is None and dataset not in CLIP_SECONDS:
            raise ValueError(f"task {task.name}: no length is published for it; say seconds = …")
    return tasks


def _name_networks(networks: Sequence[NetworkConfig]) -> tuple[NetworkConfig, ...]:
    """Give each network its name; ValueError if names do not do."""
    networks = tuple(replace(network, name=network.name or network.backbone) for network in networks)
    _check_names("networks", [network.name for network in networks])
    return networks


def _check_names(kind: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two {kind} are called {twice[0]!r}; give each a name")
    if bad := [name for name in names if "/" in name]:
        raise ValueError(f"{bad[0]!r} is used as a file name, so it may hold no '/'; give it a name")
