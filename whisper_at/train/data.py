"""Deprecated name of `whisper_at.data`."""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    from .. import data

    if name.startswith("__") or not hasattr(data, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("whisper_at.train.data is deprecated: use whisper_at.data", DeprecationWarning, stacklevel=2)
    return getattr(data, name)
