"""A linear evaluation of several networks on several tasks, written to a folder; it goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..checkpoints.files import write_text
from ..data.datasets import read_public_dataset
from .config import EvaluationConfig
from .fusion import load_fusion, weights_sha256
from .linear_eval import ProbeResult, evaluate_layers
from .plots import plot_layers, to_markdown, write_scores


def run_experiment(
    config: EvaluationConfig,
    out: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[tuple[str, str], list[ProbeResult]]:
    """Evaluate networks on tasks; write ``scores.csv``, ``scores.md`` and a plot for each task.

    A cell (task and network) that was evaluated with the same settings before is read from the folder.

    Parameters
    ----------
    config : EvaluationConfig
        From `config.read_evaluation_config`.
    out : str or path, optional
        Folder to write to, instead of ``config.out``.
    tasks, networks : sequence of str, optional
        Names of those to evaluate; all by default.
    seeds : sequence of int, optional
        Seeds, instead of ``config.seeds``.

    Returns
    -------
    dict of (str, str) to list of ProbeResult
        Results by task and network.
    """
    out, seeds = Path(out or config.out), seeds or config.seeds
    (out / "cells").mkdir(parents=True, exist_ok=True)
    chosen_tasks = [task for task in config.task if not tasks or task.name in tasks]
    datasets = {task.name: read_public_dataset(task.dataset, task.root, **task.options) for task in chosen_tasks}
    results: dict[tuple[str, str], list[ProbeResult]] = {}
    for network in config.network:
        if networks and network.name not in networks:
            continue
        model = load_fusion(network.backbone, network.layers, network.weights, network.pooling, config.device)
        sha256 = weights_sha256(model.network)
        for task in chosen_tasks:
            start = time.perf_counter()
            dataset = datasets[task.name]
            probe = replace(config.probe, lr=network.lr.get(task.name, task.lr or config.probe.lr))
            facts = {"task": asdict(task), "network": asdict(network), "probe": asdict(probe), "seeds": list(seeds)}
            facts |= {"sha256": sha256, "clips": [clip.key for clip in dataset.clips]}
            key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
            path = out / "cells" / f"{task.name}-{network.name}.json"
            cell = _read_cell(path, key)
            if cell is None:
                cell = evaluate_layers(
                    model,
                    dataset,
                    task.clip_seconds,
                    fusions=network.fusions,
                    seeds=seeds,
                    n_folds=task.folds,
                    settings=probe,
                    cache=config.cache or out / "embeddings",
                    audio_cache=config.audio_cache,
                    progress=sys.stderr.isatty(),
                )
                write_text(path, json.dumps({"key": key, "rows": cell}))
                print(f"{task.name}, {network.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
            results[task.name, network.name] = cell
    order = [task.name for task in config.task]
    results = dict(sorted(results.items(), key=lambda item: order.index(item[0][0])))
    write_scores(results, out / "scores.csv")
    write_text(out / "scores.md", to_markdown(results))
    for task in chosen_tasks:
        of_task = {network: cell for (name, network), cell in results.items() if name == task.name}
        plot_layers(of_task, task.name, out / f"{task.name}.png")
    return results


def _read_cell(path: Path, key: str) -> list[ProbeResult] | None:
    """Return the results of an earlier run, or None if there are none with these settings."""
    try:
        cell = json.loads(path.read_text("utf-8"))
        return [ProbeResult(row[0], tuple(row[1]), *row[2:]) for row in cell["rows"]] if cell["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
