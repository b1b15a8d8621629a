"""openai-whisper's own code beside other threads.

Its word timing and its decoding put hooks on the modules that they are given, its word timing changes a setting of the
class of all attention layers, and runs a kernel that some threading layers of Numba bear from one thread only. So it is
given modules of its own, with the same parameters, and one thread at a time runs it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import numba
import torch
from torch import nn

from .cpu_kernels import KERNEL_LOCK
from .forks import kernels_can_run
from .weights import HOOKS, is_cache_hook

M = TypeVar("M")

LOCK = threading.RLock()
"""Held by the thread that runs openai-whisper's own code."""
if hasattr(os, "register_at_fork"):  # a child must not inherit it held by a thread that it does not have
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


@contextmanager
def isolated(model: M) -> Iterator[M]:
    """Yield a model whose hooks concern this thread alone, while no other thread is within this.

    Its parameters and the caller's hooks are the model's, but for those of ``Whisper.install_kv_cache_hooks``, which
    are for decoding by hand. A model with a replaced method that may refer to its modules is yielded itself; all hooks
    that are new on it are removed.
    """
    with LOCK:
        if not isinstance(model, nn.Module):
            yield model
            return
        if (own := copy_modules(model)) is not None:
            yield own  # type: ignore[misc]
            return
        hooks = [getattr(part, name) for part in model.modules() for name in HOOKS]
        before = [dict(each) for each in hooks]
        try:
            for each in hooks:
                _remove_cache_hooks(each)
            yield model
        finally:
            for each, kept in zip(hooks, before):
                each.clear()
                each.update(kept)


def copy_modules(module: nn.Module) -> nn.Module | None:
    """Return new modules with the parameters, buffers, hooks and settings of another.

    None where a method was replaced by a function that is bound to none of its modules, and may call any.
    """
    copies: dict[int, nn.Module] = {}
    for part in module.modules():
        new = copies[id(part)] = object.__new__(type(part))
        for name, value in vars(part).items():
            vars(new)[name] = value.copy() if name.startswith("_") and isinstance(value, dict) else value
    for new in copies.values():
        for name, value in vars(new).items():
            if isinstance(value, MethodType) and id(value.__self__) in copies:
                vars(new)[name] = MethodType(value.__func__, copies[id(value.__self__)])
            elif _is_replaced_method(new, name, value):
                return None
            elif name in HOOKS:
                _remove_cache_hooks(value)
        for name, child in new._modules.items():
            new._modules[name] = None if child is None else copies[id(child)]
    return copies[id(module)]


def _is_replaced_method(module: nn.Module, name: str, value: object) -> bool:
    return callable(value) and not isinstance(value, nn.Module) and hasattr(type(module), name)


def _remove_cache_hooks(hooks: dict[int, Any]) -> None:
    for key in [key for key, hook in hooks.items() if is_cache_hook(hook)]:
        del hooks[key]


@contextmanager
def one_numba_thread() -> Iterator[None]:
    """Within it, parallel kernels of Numba that this thread calls run on one thread, and no other thread calls any.

    Numba's OpenMP sets the number of PyTorch's threads when it starts, which is set back.
    """
    if not kernels_can_run():
        yield
        return
    threads = torch.get_num_threads()
    before = numba.get_num_threads()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    numba.set_num_threads(1)
    try:
        with KERNEL_LOCK:
            yield
    finally:
        numba.set_num_threads(before)
