"""The process that compiles kernels for others, see `compilation`: it reads requests from its standard input.

It ends when it has had nothing to do for a while. Of all processes with one cache, one compiles at a time.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

IDLE_SECONDS = 3.0
BUSY = 75
"""Exit status where another process is compiling for the same folder; nothing was compiled."""
PROGRAM = (
    "import pickle, sys\n"
    "sys.path[:] = pickle.load(sys.stdin.buffer)\n"
    "from whisper_at.engine.compile_kernels import main\n"
    "sys.exit(main(sys.stdin.buffer))"
)
"""What runs `main` wherever this package was imported from."""


def compile_kernel(module: str, name: str, signature: bytes) -> None:
    """Compile a kernel for a pickled tuple of types of arguments, into the cache.

    Raises
    ------
    OSError
        If it could not be written there.
    """
    kernel: Any = getattr(import_module(module), name)
    types = pickle.loads(signature)
    kernel.compile(types)
    if kernel._cache.find(types, kernel.targetctx) is None:
        raise OSError(f"{name} cannot be written to {kernel._cache.cache_path}")


def describe(error: Exception) -> str:
    """Return an error in one line; Numba's have many."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def main(requests: BinaryIO) -> int:
    """Compile what is asked for, pickled ``(module, name, signature)`` one after the other; return an exit status."""
    lock = lock_folder(Path(os.environ["WHISPER_AT_CACHE"]))
    if lock is None:
        return BUSY
    with suppress(AttributeError, OSError):
        os.nice(10)  # whoever waits for words comes first
    waiting: queue.SimpleQueue[tuple[str, str, bytes] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, waiting), daemon=True).start()
    status = 0
    with lock, suppress(queue.Empty):
        while (request := waiting.get(timeout=IDLE_SECONDS)) is not None:
            try:
                compile_kernel(*request)
            except Exception as error:
                print(describe(error), file=sys.stderr)
                status = 1
    return status


def _read(requests: BinaryIO, waiting: queue.SimpleQueue[tuple[str, str, bytes] | None]) -> None:
    try:
        while True:
            waiting.put(pickle.load(requests))
    except Exception:  # its end: the process that asked has ended, too
        waiting.put(None)


def lock_folder(folder: Path) -> BinaryIO | None:
    """Return an open file that no other process has while this one has it open, or None where another has it."""
    file = open(folder / "lock", "ab")  # noqa: SIM115 - the caller closes it
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError:  # a file system without locks: at worst, something is compiled twice
        pass
    return file
