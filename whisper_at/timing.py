"""`whisper.timing` of the installed openai-whisper, under this package's name, for any number of threads."""

from functools import wraps
from typing import Any

from whisper import timing as _timing
from whisper.timing import *

from .engine.alignment import cached_dtw
from .engine.isolation import isolated, one_numba_thread


@wraps(_timing.find_alignment)
def find_alignment(model: Any, *args: Any, **options: Any) -> Any:  # noqa: D103 - as upstream's
    with isolated(model) as own, one_numba_thread(), cached_dtw():
        return _timing.find_alignment(own, *args, **options)


@wraps(_timing.add_word_timestamps)
def add_word_timestamps(*, model: Any, **options: Any) -> Any:  # noqa: D103 - as upstream's
    with isolated(model) as own, one_numba_thread(), cached_dtw():
        return _timing.add_word_timestamps(model=own, **options)


@wraps(_timing.dtw)
def dtw(x: Any) -> Any:  # noqa: D103 - as upstream's
    with isolated(x), one_numba_thread(), cached_dtw():
        return _timing.dtw(x)
