"""Kernels are compiled by another process while PyTorch computes in their place, so that nobody waits for a compiler.

A process, since Numba's compiler is a Python program: in a thread it would take Python's lock from the transcription,
which gives it up and waits for it at every operation of PyTorch's.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import IO, Any, TypeAlias

import numba
from numba.core.registry import cpu_target

from .compile_kernels import BUSY, PROGRAM, compile_kernel, describe
from .cpu_kernels import use_threads
from .file_pages import release_library
from .forks import kernels_can_run
from .kernel_cache import Signature, cache_folder, writable_folder

Request: TypeAlias = tuple[str, str, bytes]
"""Module and name of a kernel, and the pickled types of its arguments."""
MAX_ATTEMPTS = 3
"""Processes that may end without having written a kernel before it is given up."""
SECONDS_BETWEEN_ATTEMPTS = 1.0
COMPILER_LIBRARY = "libllvmlite"
"""LLVM: 70 MB of it are read to load kernels, and hardly anything after that."""


def is_ready(kernel: Any, *arguments: Any) -> bool:
    """Return whether a kernel can be called, with arguments of these types, without being compiled first.

    If not, it is compiled in the background; ask again. Where kernels cannot run, or cannot be compiled, it is False
    for good, which is warned of once.

    Parameters
    ----------
    kernel : callable
        Made by `simd.compiled`, in a module of this package.
    *arguments
        Their types count, not their sizes.
    """
    if not kernels_can_run() or not hasattr(kernel, "overloads"):
        return False
    signature = tuple(map(numba.typeof, arguments))
    return signature in kernel.overloads or _COMPILER.load_or_request(kernel, signature)


def wait_for_kernels(timeout: float = 600.0) -> bool:
    """Wait until everything that was asked for is compiled; return whether it is."""
    end = time.monotonic() + timeout
    while _COMPILER.advance() and time.monotonic() < end:
        time.sleep(0.05)
    return not _COMPILER.pending and _COMPILER.failure is None


def target_processor() -> str:
    """Return the name of the processor that kernels are compiled for."""
    _, name, _ = cpu_target.target_context.codegen().magic_tuple()
    return str(name)


class _Compiler:
    """What this process has asked for, and the process or thread that compiles it.

    Attributes
    ----------
    pending : dict
        Kernels that are not compiled yet, by name and types of arguments.
    failure : str, optional
        Why nothing can be compiled.
    """

    def __init__(self) -> None:
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """Begin anew, as in a forked child: it has no process that compiles, and no thread that holds the lock."""
        self.lock = threading.RLock()
        self.pending: dict[tuple[str, Signature], Any] = {}
        self.failure: str | None = None
        self._worker: _Process | _Thread | None = None
        self._attempts, self._started = 0, -SECONDS_BETWEEN_ATTEMPTS

    def load_or_request(self, kernel: Any, signature: Signature) -> bool:
        """Make a kernel ready that is on disk; have others compiled."""
        with self.lock:
            if signature in kernel.overloads:
                return True
            if kernel._cache.find(signature, kernel.targetctx) is not None:
                use_threads()  # reading compiled code starts Numba's threads
            if kernel._cache.preload(signature, kernel.targetctx):
                kernel.compile(signature)
                release_library(COMPILER_LIBRARY)
                self.pending.pop((kernel._cache.name, signature), None)
                return True
            if self.failure is None:
                if (kernel._cache.name, signature) not in self.pending:
                    self._warn_if_for_another_processor(kernel)
                    self.pending[kernel._cache.name, signature] = kernel
                self.advance()
            return False

    def advance(self) -> bool:
        """See what has been compiled, and have the rest compiled; return whether there is anything to wait for."""
        with self.lock:
            for (name, signature), kernel in list(self.pending.items()):
                if kernel._cache.find(signature, kernel.targetctx) is not None:
                    del self.pending[name, signature]
            if not self.pending or self.failure is not None:
                return False
            requests = [
                (kernel.__module__, kernel.__name__, pickle.dumps(signature))
                for (_, signature), kernel in self.pending.items()
            ]
            if self._worker is not None and (status := self._worker.status()) is not None:
                ended, self._worker = self._worker, None
                was_asked = any(request in ended.requested for request in requests)
                self._attempts = self._attempts + (status != BUSY) if was_asked else 0
                if was_asked and (self._attempts == MAX_ATTEMPTS or status not in (0, BUSY)):
                    self._give_up(ended.error() or f"the compiler ended with status {status}")
                    return False
            if self._worker is None:
                if time.monotonic() - self._started < SECONDS_BETWEEN_ATTEMPTS:
                    return True
                self._started = time.monotonic()
                self._worker = _start()
            for request in requests:
                self._worker.request(request)
            return True

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        warnings.warn(
            f"kernels could not be compiled ({reason}): PyTorch computes in their place, slower, with the same text",
            stacklevel=5,
        )

    def _warn_if_for_another_processor(self, kernel: Any) -> None:
        """Warn of an image that was built on another machine, and has kernels for that one only."""
        others = kernel._cache.other_targets(kernel.targetctx)
        if others and not self._warned:
            self._warned = True
            own = target_processor()
            kind = "with other instruction sets" if own in others else f"for another processor ({' and '.join(others)})"
            warnings.warn(
                f"the kernels in {cache_folder()} were compiled {kind}; they are compiled once more for this one "
                f"({own}), and until then transcription is slower",
                stacklevel=6,
            )


class _Process:
    """Another Python that compiles. It goes on after this one has ended: short programs need kernels as well."""

    def __init__(self, python: str) -> None:
        folder = writable_folder(cache_folder())
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.requested: set[Request] = set()
        self._process = subprocess.Popen(
            [python, "-c", PROGRAM],
            env={**os.environ, "WHISPER_AT_CACHE": str(folder), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is meant for the transcription
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        if folder != cache_folder():  # one for this process alone
            atexit.register(self._process.kill)
        threading.Thread(target=self._process.wait, daemon=True).start()  # or the system keeps it in its list
        self._send(sys.path)

    def request(self, request: Request) -> None:
        """Have a kernel compiled, once."""
        if request not in self.requested:
            self.requested.add(request)
            self._send(request)

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, as `status` will tell
            self._process.stdin.write(pickle.dumps(message))
            self._process.stdin.flush()

    def status(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.poll()

    def error(self) -> str:
        """Return the last line that it wrote about what went wrong."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class _Thread:
    """Compiles in this process, where there is no Python to start: in programs packed into one file, for example."""

    def __init__(self) -> None:
        self.requested: dict[Request, threading.Thread] = {}
        self._errors: list[str] = []

    def request(self, request: Request) -> None:
        """Have a kernel compiled, once."""
        if request not in self.requested:
            self.requested[request] = threading.Thread(target=self._compile, args=request, daemon=True)
            self.requested[request].start()

    def _compile(self, *request: Any) -> None:
        try:
            compile_kernel(*request)
        except Exception as error:
            self._errors.append(describe(error))

    def status(self) -> int | None:
        """Return 1 if something went wrong, None while it runs."""
        running = any(thread.is_alive() for thread in self.requested.values())
        return None if running else int(bool(self._errors))

    def error(self) -> str:
        """Return what went wrong."""
        return next(iter(self._errors), "")


def _start() -> _Process | _Thread:
    python = sys.executable or ""
    if not getattr(sys, "frozen", False) and "python" in Path(python).name.lower():
        with contextlib.suppress(OSError):  # processes may be forbidden
            return _Process(python)
    return _Thread()


_COMPILER = _Compiler()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_COMPILER.reset)
