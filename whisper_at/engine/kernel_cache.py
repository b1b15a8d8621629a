"""Compiled kernels on disk: a file for each kernel, types of its arguments, and processor.

Numba's own cache has an index for each function, which two processes that write at once can leave pointing at one
another's code; it knows a function by the path and the time of its file, and looks at no other file that it was
compiled from. Here a file is named for all that its code depends on, and appears at once or not at all.
"""

from __future__ import annotations

import atexit
import hashlib
import inspect
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import llvmlite.binding
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

Signature: TypeAlias = tuple[Any, ...]
"""Numba's types of the arguments of a call."""
SHARED_SOURCES = ("simd.py", "cpu_kernels.py")
"""Modules of this folder that kernels of all modules take parts from."""
FORMAT = 2
"""Of the files; those in another are not read."""


def cache_folder() -> Path:
    """Return where compiled kernels are kept: ``WHISPER_AT_CACHE``, or a folder of the user's.

    The latter is ``whisper_at`` in ``NUMBA_CACHE_DIR``, else in ``XDG_CACHE_HOME``, else in ``~/.cache``.
    """
    if folder := os.environ.get("WHISPER_AT_CACHE"):
        return Path(folder).expanduser()
    parent = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(parent).expanduser() / "whisper_at"


@cache
def writable_folder(folder: Path) -> Path:
    """Return a folder, made if need be, or one for this process alone if nothing can be written there."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    own = Path(tempfile.mkdtemp(prefix="whisper_at-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


class KernelCache(_Cache):
    """What Numba asks for the compiled code of one function, in place of its own cache on disk.

    Parameters
    ----------
    function : callable
        As it was before it was compiled.
    *sources : str
        Files of other packages that it is compiled from.
    """

    def __init__(self, function: Callable[..., Any], *sources: str) -> None:
        self.name = f"{function.__module__}.{function.__qualname__}".removeprefix("whisper_at.engine.")
        self._source = _source_hash(function, sources)
        self._loaded: dict[Signature, CompileResult] = {}

    @property
    def cache_path(self) -> str:
        """The folder, as Numba asks for it."""
        return str(writable_folder(cache_folder()))

    def file_name(self, signature: Signature) -> str:
        """Return the name of the file of one list of types of arguments."""
        digest = hashlib.sha256(f"{FORMAT} {self._source} {signature}".encode()).hexdigest()
        return f"{self.name}-{digest[:16]}.kernel"

    def find(self, signature: Signature, target_context: Any) -> Path | None:
        """Return the file of compiled code, or None."""
        inside = Path(versions(), target(target_context), self.file_name(signature))
        for folder in (cache_folder, lambda: writable_folder(cache_folder())):
            if (path := folder() / inside).is_file():
                return path
        return None

    def other_targets(self, target_context: Any) -> list[str]:
        """Return the names of the processors that it was compiled for, if this is none of them."""
        found = {path.parent.name for path in (cache_folder() / versions()).glob(f"*/{self.name}-*.kernel")}
        return [] if target(target_context) in found else sorted({name.rpartition("-")[0] for name in found})

    def preload(self, signature: Signature, target_context: Any) -> bool:
        """Read compiled code, which Numba is going to ask for; False where there is none, or its file is damaged."""
        path = self.find(signature, target_context)
        if path is None:
            return False
        try:
            called, parts = pickle.loads(path.read_bytes())
            with global_compiler_lock:
                _provide(called, target_context)
                self._loaded[signature] = CompileResult._rebuild(target_context, *parts)
        except Exception:
            with suppress(OSError):
                path.unlink()
            return False
        return True

    def load_overload(self, sig: Signature, target_context: Any) -> CompileResult | None:
        """Return compiled code, or None where there is none."""
        return self._loaded.pop(sig, None) or (self._loaded.pop(sig) if self.preload(sig, target_context) else None)

    def save_overload(self, sig: Signature, data: CompileResult) -> None:
        """Write compiled code, if there is a place for it."""
        context = getattr(data, "target_context")  # noqa: B009 - a field that is made at run time
        with suppress(OSError):
            folder = Path(self.cache_path, versions(), target(context))
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(dumps((_called_functions(data), data._reduce())))
                os.chmod(temporary, 0o644)  # for the other users of an image
                os.replace(temporary, folder / self.file_name(sig))
            except BaseException:
                os.unlink(temporary)
                raise

    def enable(self) -> None:
        """Do nothing: it is always on."""

    def disable(self) -> None:
        """Do nothing: it is always on."""

    def flush(self) -> None:
        """Do nothing: whoever wants it empty removes the folder."""


def _called_functions(compiled: CompileResult) -> list[str]:
    """Return the names of what compiled code calls and does not contain."""
    module = llvmlite.binding.parse_assembly(getattr(compiled, "library").get_llvm_str())  # noqa: B009 - as above
    return [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]


def _provide(called: Sequence[str], target_context: Any) -> None:
    """Have Numba tell LLVM where the functions are that compiled code calls: one that is missing ends the process.

    Most are of Numba's runtime. All else that Numba can compile, which takes 20 MB, is made known only where it has to.
    """
    rtsys.initialize(target_context)
    if any(not llvmlite.binding.address_of_symbol(name) for name in called):
        target_context.refresh()


def versions() -> str:
    """Return the name of the folder for this Python and this compiler."""
    return f"{sys.implementation.cache_tag}-numba-{numba.__version__}-llvmlite-{llvmlite.__version__}"


def target(target_context: Any) -> str:
    """Return the name of the folder for the processor and the instruction sets that Numba compiles for."""
    triple, processor, features = target_context.codegen().magic_tuple()
    return f"{processor}-{hashlib.sha256(f'{triple} {features}'.encode()).hexdigest()[:8]}"


def _source_hash(function: Callable[..., Any], more: Sequence[str]) -> str:
    """Return a hash of all source that a function may be compiled from."""
    shared = [str(Path(__file__).with_name(name)) for name in SHARED_SOURCES]
    try:
        return _hash_files(tuple(dict.fromkeys((*shared, inspect.getfile(function), *more))))
    except OSError:  # a program packed into one file
        return hashlib.sha256(function.__code__.co_code).hexdigest()


@cache
def _hash_files(paths: tuple[str, ...]) -> str:
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()
