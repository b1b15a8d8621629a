"""`transcribe_archive`: from inputs to a dataset, by one engine or another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..loading import load_model
from .captions import check_formats, write_missing_captions
from .inputs import InputOptions, list_items
from .progress import Progress, Summary
from .settings import ArchiveSettings, describe
from .storage import absolute
from .store import Shard, Store, pending_shards
from .worker import Report, Worker

if TYPE_CHECKING:
    from ..model import WhisperAT

ENGINES = ("local", "ray")
SHARD_SIZE = 64
SHARD_BYTES = 256 << 20
"""Recordings, and bytes of them, in a shard: what is lost at most where a run is killed."""


def transcribe_archive(
    inputs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: WhisperAT | str = "turbo",
    settings: ArchiveSettings | None = None,
    input_options: InputOptions | None = None,
    shard_size: int = SHARD_SIZE,
    shard_bytes: int = SHARD_BYTES,
    engine: str = "local",
    workers: int | tuple[int, int] = 1,
    engine_options: Mapping[str, Any] | None = None,
    redo: bool = False,
    progress: Progress | None = None,
    **transcribe_options: Any,
) -> Summary:
    """Transcribe and tag many recordings into a Parquet dataset; see docs/archives.md for its columns.

    It may be stopped at any moment, by ``kill -9`` too. Called again, it goes on where it was: recordings that have a
    row for the same bytes and options are left alone. What cannot be read or transcribed gets a row that says why.

    Parameters
    ----------
    inputs : iterable of str or path
        Folders, patterns, files, lists, tables, tar files and URLs, see `list_items`.
    output : str or path
        Folder of the dataset, which is made, or the URL of an object store: see `open_storage`.
    model : WhisperAT or str
        A model, or the name of one; for workers in other processes, a name.
    settings : ArchiveSettings, optional
        How recordings are decoded and what is written; its `output` and `transcribe` are those given here.
    input_options : InputOptions, optional
        How inputs are read.
    shard_size, shard_bytes : int
        Recordings, and bytes of them, that one part of the dataset has at most. They count for recordings that are new.
    engine : str
        ``local``, or ``ray`` for a cluster.
    workers : int or tuple of int
        Number of workers, each with a model; on Ray also the least and the most.
    engine_options : dict, optional
        Of `run_on_ray`.
    redo : bool
        Whether rows made with other options or another model are replaced.
    progress : Progress, optional
        What tells of it while it runs.
    **transcribe_options
        Those of `transcribe_many`. Words are timed, and sounds tagged every 2 s, unless these say otherwise.

    Returns
    -------
    Summary
        Counts, and the slowest recordings.

    Raises
    ------
    ValueError
        If an option is wrong, or the dataset was made with other ones and `redo` is False; or if formats are asked for
        that neither the model nor rows that are there can fill.
    FileNotFoundError
        If an input does not exist.
    RuntimeError
        If another run works on the same folder, or the machine cannot go on (a full disk). What is done, stays.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be {' or '.join(ENGINES)}, not {engine!r}")
    if shard_size < 1 or shard_bytes < 1:
        raise ValueError("shard_size and shard_bytes must be 1 or more")
    settings = settings or ArchiveSettings("")
    name = model if isinstance(model, str) else "a model of the caller's"
    load = {"name": name, **settings.load}
    loaded = load_model(**load) if isinstance(model, str) else model
    in_process = engine == "local" and workers == 1
    if not in_process and not isinstance(model, str):
        raise ValueError("workers in other processes load the model themselves: give its name")
    options = {"word_timestamps": True, "at_time_res": 2.0 if loaded.heads else None, **transcribe_options}
    settings = replace(settings, output=absolute(output), load=load, transcribe=options)
    if not in_process and settings.output.startswith("memory://"):
        raise ValueError("memory:// is the memory of one process: workers in other processes write elsewhere")
    check_formats(settings, has_heads=bool(loaded.heads) and options["at_time_res"] is not None)
    description = describe(settings, loaded, name)

    items = list_items(inputs, input_options)
    store = Store(settings.output)
    with store.storage.locked():
        store.clean()
        check_description(store, description, redo)
        plan = store.read_plan()
        store.extend_plan(plan, items, shard_size, shard_bytes)
        shards = pending_shards(plan, items, store.state(), description["options_sha256"], settings.retry_failed)
        progress = progress or Progress()
        progress.start(len(items), sum(len(shard.items) for shard in shards))
        reports: Iterator[Report] = iter(())
        if shards and in_process:
            reports = Worker(settings, description, loaded).run(shards)
        elif shards:
            del loaded
            reports = _run_elsewhere(engine, shards, settings, description, workers, engine_options or {})
        for report in reports:
            progress.add(report)
        if settings.output_format:
            for _ in write_missing_captions(settings, store, items, plan, description):
                progress.summary.captioned += 1
        return progress.finish()


def _run_elsewhere(
    engine: str,
    shards: Sequence[Shard],
    settings: ArchiveSettings,
    description: Mapping[str, Any],
    workers: int | tuple[int, int],
    options: Mapping[str, Any],
) -> Iterator[Report]:
    if engine == "ray":
        from .ray_engine import run_on_ray

        return run_on_ray(shards, settings, description, workers=workers, **options)
    from .processes import run_in_processes

    if not isinstance(workers, int):
        raise ValueError(f"the local engine takes a number of workers, not {workers}")
    return run_in_processes(shards, settings, description, workers)


def check_description(store: Store, description: Mapping[str, Any], redo: bool) -> None:
    """Write what the dataset is made with, or compare it with what it was; ValueError if that differs.

    Rows of another version of the tables are made again without being asked for: no program could read both.
    """
    before = store.description()
    if before is not None and not redo and before.get("schema_version") == description["schema_version"]:
        different = [
            f"{key} was {before.get(key)!r:.200}, and is {description[key]!r:.200}"
            for key in ("model_sha256", "options_sha256")
            if before.get(key) != description[key]
        ]
        if different:
            named = _differences(before, description)
            reason = f"{store.storage.location} was made otherwise ({named or different[0]})"
            raise ValueError(f"{reason}: take another folder, or --redo to replace its rows")
    if before != description:
        store.write_description(description)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return which model, heads or options differ, in words."""
    found = []
    if before.get("model_sha256") != now["model_sha256"]:
        found.append(f"model: {before.get('model')}, now {now['model']}")
    for head in dict.fromkeys([*before.get("heads", {}), *now["heads"]]):
        one, other = before.get("heads", {}).get(head), now["heads"].get(head)
        if (one or {}).get("sha256") != (other or {}).get("sha256"):
            found.append(f"head {head}: {'another one' if one and other else 'none before' if other else 'none now'}")
    one, other = _flat(before.get("options", {})), _flat(now["options"])
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            found.append(f"{name}: {one.get(name)}, now {other.get(name)}")
    return "; ".join(found)


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in options.items() if k != "transcribe"}, **options.get("transcribe", {})}
