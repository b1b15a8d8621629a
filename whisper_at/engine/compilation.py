"""What is said when kernels have to be compiled again."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any


def warn_if_for_another_processor(kernel: Any) -> None:
    """Warn if Numba's cache holds a kernel that this process has not used yet, but not for what is compiled for now.

    An image that was built on another machine does: it is compiled for the same on both if it was built, and runs,
    with ``NUMBA_CPU_NAME=generic``.
    """
    if getattr(kernel, "overloads", True):
        return
    with suppress(AttributeError, OSError):  # of Numba's cache nothing is public
        targets = {key[1] for key in kernel._cache._cache_file._load_index()}
        own = kernel.targetctx.codegen().magic_tuple()
        if targets and own not in targets:
            others = " and ".join(sorted({name for _, name, _ in targets}))
            same = own[1] in {name for _, name, _ in targets}
            kind = "with other instruction sets" if same else f"for another processor ({others})"
            warnings.warn(
                f"the kernels in Numba's cache were compiled {kind}; they are compiled once more for this one "
                f"({own[1]}), which takes up to half a minute",
                stacklevel=3,
            )
