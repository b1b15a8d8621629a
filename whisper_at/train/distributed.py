"""Training in several processes, as ``torchrun`` starts them."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as distributed

T = TypeVar("T")


@contextlib.contextmanager
def process_group() -> Iterator[bool]:
    """Join the other processes of ``torchrun``, if there are any; yield whether this is the first one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=datetime.timedelta(days=7))  # the first one computes all features
    try:
        yield distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


def broadcast(value: T) -> T:
    """Return the first process's value in all processes."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, device=local_device() if torch.cuda.is_available() else None)
    return values[0]


def local_device(name: str | None = None) -> torch.device:
    """Return the device of this process: by default a GPU if there is one, each process its own."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device
