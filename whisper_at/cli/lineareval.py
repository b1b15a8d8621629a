"""``whisper-at lineareval``: which layers of which networks know what, by linear evaluation."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..checkpoints.files import write_text
from ..data.datasets import CLIP_SECONDS, canonical_name, read_public_dataset
from ..data.toml import tomllib
from ..embed.fusion import fingerprint, load_fusion
from ..embed.linear_eval import SEEDS, Row, evaluate_layers
from ..embed.plots import as_markdown, draw_curves, write_scores
from ..embed.probes import ProbeSettings


@dataclass(frozen=True)
class TaskConfig:
    """A task.

    dataset, root, options : as of `read_public_dataset`; ``root`` is relative to where the command runs
    name : what it is called in tables; the dataset by default
    seconds : length that clips are brought to; the published one by default
    folds : how many, where the data bring neither splits nor folds
    lr : instead of that of ``probe``
    """

    dataset: str
    root: str
    name: str = ""
    seconds: float | None = None
    folds: int | None = None
    lr: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkConfig:
    """A network.

    backbone, weights, layers, pooling : as of `load_fusion`; ``layers`` are those to evaluate, all by default
    name : what it is called in tables
    fusions : sets of layers to show beside the pair that does best on validation
    lr : learning rates by name of the task, before any other
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
    """A file of ``[[task]]``, ``[[network]]``, ``[probe]`` (fields of `ProbeSettings`), and these."""

    task: tuple[TaskConfig, ...]
    network: tuple[NetworkConfig, ...]
    out: str = "lineareval"
    seeds: tuple[int, ...] = SEEDS
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    cache: str | None = None
    audio_cache: str | None = None
    device: str | None = None


def main(argv: Sequence[str]) -> int:
    """Evaluate every network on every task, and write ``scores.csv``, ``scores.md`` and a picture for each task.

    A cell (task and network) that was evaluated in the same way before is not evaluated again.
    """
    parser = argparse.ArgumentParser(prog="whisper-at lineareval", description=__doc__)
    parser.add_argument("--config", required=True, help="a .toml, see recipes/fusion")
    parser.add_argument("--out", help="folder for what is written, instead of the file's")
    parser.add_argument("--task", nargs="+", help="these tasks only")
    parser.add_argument("--network", nargs="+", help="these networks only")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the file's")
    args = parser.parse_args(argv)
    if not Path(args.config).is_file():
        parser.error(f"no such file: {args.config}")
    try:
        config = read_evaluation(args.config)
    except ValueError as error:
        parser.error(str(error))
    for what, asked, there in (("task", args.task, config.task), ("network", args.network, config.network)):
        if unknown := sorted(set(asked or ()) - {one.name for one in there}):
            parser.error(f"{args.config} has no {what} {unknown[0]!r}; it has {', '.join(one.name for one in there)}")
    run(config, args.out or config.out, args.task, args.network, args.seeds or config.seeds)
    return 0


def run(
    config: EvaluationConfig,
    out: str | os.PathLike[str],
    tasks: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
) -> dict[tuple[str, str], list[Row]]:
    """Evaluate, cell by cell; see `main`. Returns the rows of each task and network."""
    out = Path(out)
    (out / "cells").mkdir(parents=True, exist_ok=True)
    cells: dict[tuple[str, str], list[Row]] = {}
    chosen_tasks = [task for task in config.task if not tasks or task.name in tasks]
    data = {task.name: read_public_dataset(task.dataset, task.root, **task.options) for task in chosen_tasks}
    for network in config.network:
        if networks and network.name not in networks:
            continue
        model = load_fusion(network.backbone, network.layers, network.weights, network.pooling, config.device)
        for task in chosen_tasks:
            begun = time.perf_counter()
            rate = network.lr.get(task.name, task.lr or config.probe.lr)
            settings = ProbeSettings(**(asdict(config.probe) | {"lr": rate}))
            facts = {"task": asdict(task), "network": asdict(network), "probe": asdict(settings), "seeds": list(seeds)}
            facts |= {"sha256": fingerprint(model.network), "clips": [clip.key for clip in data[task.name].clips]}
            key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
            kept = out / "cells" / f"{task.name}-{network.name}.json"
            rows = _kept_rows(kept, key)
            if rows is None:
                rows = evaluate_layers(
                    model,
                    data[task.name],
                    task.seconds or CLIP_SECONDS[canonical_name(task.dataset)],
                    fusions=network.fusions,
                    seeds=seeds,
                    n_folds=task.folds,
                    settings=settings,
                    cache=config.cache or out / "embeddings",
                    audio_cache=config.audio_cache,
                    progress=sys.stderr.isatty(),
                )
                write_text(kept, json.dumps({"key": key, "rows": rows}))
                print(f"{task.name}, {network.name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
            cells[task.name, network.name] = rows
    cells = dict(sorted(cells.items(), key=lambda item: [task.name for task in config.task].index(item[0][0])))
    write_scores(cells, out / "scores.csv")
    write_text(out / "scores.md", as_markdown(cells))
    for task in chosen_tasks:
        of_task = {network: rows for (name, network), rows in cells.items() if name == task.name}
        draw_curves(of_task, task.name, out / f"{task.name}.png")
    print(as_markdown(cells), end="")
    return cells


def _kept_rows(path: Path, key: str) -> list[Row] | None:
    try:
        kept = json.loads(path.read_text("utf-8"))
        return [Row(row[0], tuple(row[1]), *row[2:]) for row in kept["rows"]] if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_evaluation(path: str | os.PathLike[str]) -> EvaluationConfig:
    """Read and check a configuration.

    Raises
    ------
    ValueError
        If it is not TOML, a field is unknown or missing, or names are not unique.
    """
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    tasks = [_made(TaskConfig, one, f"{path}, task") for one in _several(table.pop("task", None), path, "task")]
    nets = [
        _made(NetworkConfig, one, f"{path}, network") for one in _several(table.pop("network", None), path, "network")
    ]
    probe = _made(ProbeSettings, table.pop("probe", {}), f"{path}, probe")
    tasks = [_named(task, canonical_name(task.dataset)) for task in tasks]
    nets = [_named(net, net.backbone) for net in nets]
    for what, found in (("tasks", tasks), ("networks", nets)):
        names = [one.name for one in found]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{path}: two {what} are called {twice[0]!r}; give each a name")
        if bad := [name for name in names if "/" in name]:
            raise ValueError(f"{path}: {bad[0]!r} names files, so it may hold no '/'; give it a name")
    for task in tasks:
        if task.seconds is None and canonical_name(task.dataset) not in CLIP_SECONDS:
            raise ValueError(f"{path}, task {task.name}: no length is published for it; say seconds = …")
    return _made(EvaluationConfig, table | {"task": tasks, "network": nets, "probe": probe}, str(path))


def _several(found: Any, path: object, what: str) -> list[Mapping[str, Any]]:
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{path} has no [[{what}]]")
    return found


Made = TypeVar("Made")


def _made(kind: type[Made], table: Mapping[str, Any], place: str) -> Made:
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(table) - known):
        raise ValueError(f"{place}: there is no {unknown[0]!r}; there are {', '.join(sorted(known))}")
    try:
        return kind(**{name: _tuples(value) for name, value in table.items()})
    except TypeError as error:
        raise ValueError(f"{place}: {str(error).partition(') ')[2] or error}") from None


def _named(one: Made, default: str) -> Made:
    return one if one.name else type(one)(**(vars(one) | {"name": default}))  # type: ignore[attr-defined]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
