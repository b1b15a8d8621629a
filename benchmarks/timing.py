"""Time spent in named calls of a run; a call inside another counts for the inner one only."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple


class TimedCall(NamedTuple):
    """A function to time: its stage, and the module or class that it is an attribute of."""

    stage: str
    owner: Any
    name: str


class StageTimer:
    """Seconds by stage.

    Parameters
    ----------
    sync : callable, optional
        Waits for the device before the clock is read: ``torch.cuda.synchronize`` on a GPU.
    """

    def __init__(self, sync: Callable[[], None] | None = None) -> None:
        self.sync = sync or (lambda: None)
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner_seconds: list[float] = []  # for each call in progress, the seconds of calls within it

    def wrap(self, stage: str, function: Callable) -> Callable:
        """Return a function whose time counts for a stage."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.sync()
            start = time.perf_counter()
            self._inner_seconds.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                self.sync()
                seconds = time.perf_counter() - start
                self.seconds[stage] += seconds - self._inner_seconds.pop()
                if self._inner_seconds:
                    self._inner_seconds[-1] += seconds

        return timed


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a module or class within a ``with`` block."""
    original = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def time_calls(timer: StageTimer, calls: list[TimedCall]) -> Iterator[StageTimer]:
    """Time calls within a ``with`` block."""
    with ExitStack() as stack:
        for stage, owner, name in calls:
            stack.enter_context(patched(owner, name, timer.wrap(stage, vars(owner)[name])))
        yield timer


def tagging_calls() -> list[TimedCall]:
    """Return the calls of whisper_at that are made only for tags."""
    from whisper_at import model
    from whisper_at.tagging import timeline

    rows = [TimedCall("head", timeline.TagRows, name) for name in ("__init__", "add_window", "flush", "finish")]
    return [TimedCall("pooling", model, "pool_steps"), *rows]


def all_calls() -> list[TimedCall]:
    """Return the calls that make up a transcription, by stage in the order of a run."""
    from whisper_at import decoding, mel
    from whisper_at.engine import decoder, kv_cache
    from whisper_at.model import WhisperAT

    return [
        TimedCall("mel", mel.LogMel, "__init__"),
        TimedCall("mel", mel.LogMel, "window"),
        TimedCall("encoder", WhisperAT, "_embed"),
        TimedCall("cross keys, values", decoder.Decoder, "precompute_cross_kv"),
        TimedCall("decoder: prompt", kv_cache.DecoderState, "prefill"),
        TimedCall("decoder: steps", kv_cache.DecoderState, "step"),
        TimedCall("decoder: logits", decoder.Decoder, "logits"),
        TimedCall("rules, choice", decoding._LogitRules, "apply"),
        TimedCall("rules, choice", decoding._Greedy, "update"),
        TimedCall("rules, choice", decoding._upstream.GreedyDecoder, "update"),
        TimedCall("rules, choice", decoding._BeamSearch, "update"),
        *(call._replace(stage="tagging") for call in tagging_calls()),
    ]
