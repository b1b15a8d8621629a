"""Workers on a Ray cluster: actors that load the model once, by Ray Data, which starts, feeds and replaces them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from .settings import ArchiveSettings
from .store import Shard
from .worker import Report, Worker


class RayWorker:
    """A `Worker` as Ray Data calls it: a row is a shard, and what comes back is what became of it."""

    def __init__(self, settings: ArchiveSettings, description: Mapping[str, Any]) -> None:
        self.worker = Worker(settings, description)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do a shard; the part is written by this worker, and only reports travel."""
        shard: Shard = pickle.loads(row["shard"])
        return {"reports": pickle.dumps(list(self.worker.run([shard])))}


def run_on_ray(
    shards: Sequence[Shard],
    settings: ArchiveSettings,
    description: Mapping[str, Any],
    *,
    workers: int | tuple[int, int] = 1,
    address: str | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> Iterator[Report]:
    """Do shards on a Ray cluster; yield reports as they come.

    The folder of the archive, and recordings that are local files, must be there on every machine under the same path.

    Parameters
    ----------
    workers : int or tuple of int
        Number of actors, or the least and the most of them, between which Ray Data chooses.
    address : str, optional
        Of the cluster; None for one on this machine, or that which the environment names.
    num_cpus, num_gpus : float
        Of each actor.
    """
    import ray
    from ray.data import ActorPoolStrategy

    started_here = not ray.is_initialized()
    if started_here:
        ray.init(address=address, log_to_driver=False)
    try:
        least, most = (workers, workers) if isinstance(workers, int) else workers
        # an actor that dies is started again, and its shard is given out again: a part that is there already stays
        rows = ray.data.from_items(
            [{"shard": pickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards)
        )
        done = rows.map(
            cast(Any, RayWorker),  # Ray's own types know functions alone
            fn_constructor_args=(settings, description),
            compute=ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2),
            num_cpus=num_cpus,
            num_gpus=num_gpus or None,
            max_restarts=-1,
            max_task_retries=-1,
        )
        for row in done.iter_rows():
            yield from pickle.loads(row["reports"])
    finally:
        if started_here:
            ray.shutdown()
