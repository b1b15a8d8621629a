"""Forked processes: what of compiled kernels and of PyTorch's threads does not survive a fork.

Numba's threads are GNU OpenMP's, which end a process that was forked from one that has used them. PyTorch's are too,
and would be waited for without end. So a child computes by PyTorch's operations, on one thread.
"""

from __future__ import annotations

import os

import torch
from numba.np.ufunc import parallel
from whisper import timing

from .dtw import dtw_by_diagonals


class _Process:
    """What is known of this process: whether it was forked from one that had started Numba's threads."""

    forked_with_threads = False


def kernels_can_run() -> bool:
    """Return whether kernels on several threads may be called in this process."""
    return not _Process.forked_with_threads


def _after_fork_in_child() -> None:
    torch.set_num_threads(1)
    if not getattr(parallel, "_is_initialized", True):
        return
    _Process.forked_with_threads = True
    timing.dtw_cpu = dtw_by_diagonals


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
