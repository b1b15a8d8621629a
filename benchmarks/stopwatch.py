"""Time spent in named calls of a run, each second counted once: a call inside another is taken off the outer one."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


class Stopwatch:
    """Seconds by stage.

    Parameters
    ----------
    sync : waits for the device before the clock is read, ``torch.cuda.synchronize`` on a GPU; None on a CPU
    """

    def __init__(self, sync: Callable[[], None] | None = None) -> None:
        self.sync = sync or (lambda: None)
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []  # of the calls that are open: seconds of calls within them

    def timed(self, stage: str, function: Callable) -> Callable:
        """The function, its time counted for a stage."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.sync()
            start = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                self.sync()
                spent = time.perf_counter() - start
                self.seconds[stage] += spent - self._inside.pop()
                if self._inside:
                    self._inside[-1] += spent

        return call


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of a module or class, another for a while."""
    original = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def watching(stopwatch: Stopwatch, calls: list[tuple[str, Any, str]]) -> Iterator[Stopwatch]:
    """Count the time of calls, each (stage, module or class, name), while in here."""
    with ExitStack() as stack:
        for stage, owner, name in calls:
            stack.enter_context(replaced(owner, name, stopwatch.timed(stage, vars(owner)[name])))
        yield stopwatch


def tagging_calls() -> list[tuple[str, Any, str]]:
    """The calls of whisper_at that are there for tags alone."""
    from whisper_at import model
    from whisper_at.tagging import timeline

    rows = [("head", timeline.TagRows, name) for name in ("__init__", "add", "flush", "finish")]
    return [("pooling", model, "pool_steps"), *rows]


def all_calls() -> list[tuple[str, Any, str]]:
    """The calls that a transcription consists of, by stage in the order of a run."""
    from whisper_at import decoding, mel
    from whisper_at.engine import decoder
    from whisper_at.model import WhisperAT

    return [
        ("mel", mel.LogMel, "__init__"),
        ("mel", mel.LogMel, "window"),
        ("encoder", WhisperAT, "_embed"),
        ("cross keys, values", decoder.Decoder, "hear"),
        ("decoder: prompt", decoder.Rows, "start"),
        ("decoder: steps", decoder.Rows, "step"),
        ("decoder: logits", decoder.Decoder, "logits"),
        ("rules, choice", decoding._Rules, "apply"),
        ("rules, choice", decoding._Greedy, "update"),
        ("rules, choice", decoding._upstream.GreedyDecoder, "update"),
        ("rules, choice", decoding._BeamSearch, "update"),
        *(("tagging", owner, name) for _, owner, name in tagging_calls()),
    ]
