"""Kernels are compiled by another process, once, and found by all that come later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_kernels
from conftest import ROOT

from whisper_at.engine import compilation, compile_kernels, kernel_cache, simd
from whisper_at.engine.compilation import is_ready, wait_for_kernels

TYPES = ("float64", "float32", "int64")


@pytest.fixture(scope="module")
def compiled_before(tmp_path_factory) -> Path:
    """A cache that another process has filled, with a kernel for each of `TYPES`."""
    folder = tmp_path_factory.mktemp("compiled") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHISPER_AT_CACHE", str(folder))
        patch.setattr(compilation, "_COMPILER", compilation._Compiler())
        kernel = new(small_kernels.double)
        assert not any(is_ready(kernel, np.arange(4, dtype=dtype)) for dtype in TYPES)
        assert wait_for_kernels()
    return folder


@pytest.fixture
def filled_cache(compiled_before, tmp_path) -> Path:
    """The cache of a process that has asked for nothing yet, with kernels of an earlier one."""
    return Path(shutil.copytree(compiled_before, tmp_path / "cache"))


@pytest.fixture(autouse=True)
def compiler(monkeypatch, tmp_path):
    """A process that has asked for nothing yet, and an empty cache."""
    monkeypatch.setenv("WHISPER_AT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compilation, "_COMPILER", compilation._Compiler())
    for name in ("double", "broken"):
        monkeypatch.setattr(small_kernels, name, new(getattr(small_kernels, name)))
    return compilation._COMPILER


def new(kernel):
    """The kernel as a new process has it."""
    return simd.compiled()(kernel.py_func)


def numbers(dtype="float64"):
    return np.arange(4, dtype=dtype)


def kernel_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.kernel")]


def messages(caught):
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


def compile_double():
    kernel = small_kernels.double
    assert not is_ready(kernel, numbers())
    assert wait_for_kernels()
    assert is_ready(kernel, numbers())
    return kernel


def assert_it_was_not_compiled_here(kernel, dtype="float64"):
    x = numbers(dtype)
    kernel(x)
    assert x.tolist() == [0, 2, 4, 6]
    assert not kernel._cache_misses


def test_another_process_compiles(tmp_path, compiler):
    kernel = compile_double()
    assert_it_was_not_compiled_here(kernel)
    assert len(kernel_files(tmp_path)) == 1
    assert not compiler.pending
    # other types are another kernel
    assert not is_ready(kernel, np.arange(4))
    assert wait_for_kernels()
    assert is_ready(kernel, np.arange(4))
    assert len(kernel_files(tmp_path)) == 2


@pytest.mark.usefixtures("filled_cache")
def test_a_later_process_finds_it(compiler):
    kernel = small_kernels.double
    assert is_ready(kernel, numbers())
    assert_it_was_not_compiled_here(kernel)
    assert compiler._worker is None


def test_a_program_packed_into_one_file_compiles_in_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    kernel = small_kernels.double
    assert not is_ready(kernel, numbers())
    assert wait_for_kernels()
    assert is_ready(kernel, numbers())
    assert len(kernel_files(tmp_path)) == 1


def test_processes_may_be_forbidden(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    compile_double()


@pytest.mark.parametrize(
    ("kernel", "program", "reason"),
    [
        ("broken", compile_kernels.PROGRAM, "there_is_no_such_attribute"),
        ("double", "raise SystemExit('LLVM is not here')", "LLVM is not here"),
        ("double", "import os; os._exit(0)", "the compiler ended with status 0"),
        ("double", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the compiler ended with status -9"),
    ],
)
def test_a_compiler_that_fails_is_told_of_once(monkeypatch, kernel, program, reason):
    monkeypatch.setattr(compilation, "PROGRAM", program)
    monkeypatch.setattr(compilation, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    kernel = new(getattr(small_kernels, kernel))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not is_ready(kernel, numbers())
        assert not wait_for_kernels()
        assert not is_ready(kernel, numbers())
    (message,) = messages(caught)
    assert reason in message
    assert "PyTorch computes in their place" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert not is_ready(new(small_kernels.double), np.arange(3))


def test_one_process_at_a_time_compiles_for_a_folder(tmp_path, compiler, monkeypatch):
    monkeypatch.setattr(compilation, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    monkeypatch.setattr(compilation, "MAX_ATTEMPTS", 1)
    folder = tmp_path / "cache"
    folder.mkdir()
    kernel = new(small_kernels.double)
    with compile_kernels.lock_folder(folder):
        assert compile_kernels.lock_folder(folder) is None
        assert not is_ready(kernel, numbers())
        for _ in range(compilation.MAX_ATTEMPTS + 1):  # waiting is no failure
            assert compiler._worker._process.wait(60) == compile_kernels.BUSY
            assert not is_ready(kernel, numbers())
        assert kernel_files(tmp_path) == []
    assert wait_for_kernels()
    assert is_ready(kernel, numbers())


class CompilesAtOnce:
    """A process that compiles what it is asked for, and ends."""

    def __init__(self):
        self.requested = set()

    def request(self, request):
        self.requested.add(request)
        compile_kernels.compile_kernel(*request)

    def status(self):
        return 0


def test_processes_that_did_what_was_asked_are_no_failures(compiler, monkeypatch):
    """However often one has to be started again, for other types."""
    monkeypatch.setattr(compilation, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    monkeypatch.setattr(compilation, "_start", CompilesAtOnce)
    types = ("float64", "float32", "int64", "int32", "int16", "int8")
    assert len(types) > 2 * compilation.MAX_ATTEMPTS - 1
    for dtype in types:
        assert not is_ready(new(small_kernels.double), np.arange(4, dtype=dtype))
        assert wait_for_kernels()
    assert compiler.failure is None


PROGRAM = """
import sys
import numpy as np, small_kernels
from whisper_at.engine.compilation import is_ready, wait_for_kernels
x = np.arange(4.0)
sys.stdin.read()  # until all are here
before = is_ready(small_kernels.double, x)
if WAIT:
    assert wait_for_kernels() and is_ready(small_kernels.double, x)
    small_kernels.double(x)
    print(before, x.tolist(), sum(small_kernels.double._cache_misses.values()))
"""


def start(wait: bool) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent)))}
    command = [sys.executable, "-c", PROGRAM.replace("WAIT", str(wait))]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once(tmp_path):
    processes = [start(wait=True) for _ in range(2)]
    for process in processes:
        process.stdin.close()
    assert [process.stdout.read() for process in processes] == ["False [0.0, 2.0, 4.0, 6.0] 0\n"] * 2
    assert [process.wait() for process in processes] == [0, 0]
    assert len(kernel_files(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_it_is_compiled_though_whoever_asked_has_ended(tmp_path):
    """Programs that are over before their kernels are ready would never have any."""
    process = start(wait=False)
    process.communicate("", timeout=120)
    assert process.returncode == 0
    end = time.monotonic() + 120
    while not kernel_files(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert len(kernel_files(tmp_path)) == 1


def test_where_nothing_can_be_written(monkeypatch):
    """A read-only file system without kernels: they are kept as long as the process."""
    monkeypatch.setenv("WHISPER_AT_CACHE", "/dev/null/cache")
    assert_it_was_not_compiled_here(compile_double())


def test_a_cache_that_was_filled_and_is_read_only_now(filled_cache, monkeypatch):
    files = sorted(filled_cache.rglob("*"))

    def refuse(*_, **__):
        raise OSError("read-only file system")

    kernel_cache.writable_folder.cache_clear()
    for name in ("TemporaryFile", "mkstemp"):
        monkeypatch.setattr(f"tempfile.{name}", refuse)
    kernel = small_kernels.double
    assert is_ready(kernel, numbers())
    assert_it_was_not_compiled_here(kernel)
    assert sorted(filled_cache.rglob("*")) == files


@pytest.mark.parametrize(
    ("folder", "message"),
    [("haswell-01234567", "for another processor (haswell)"), ("OWN-01234567", "with other instruction sets")],
)
def test_a_cache_of_another_processor(filled_cache, folder, message):
    (own,) = {path.parent for path in filled_cache.rglob("*.kernel")}
    own.rename(own.with_name(folder.replace("OWN", compilation.target_processor())))
    kernel = small_kernels.double
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not is_ready(kernel, numbers())
        assert not is_ready(kernel, np.arange(4))
    (found,) = messages(caught)
    assert f"were compiled {message}; they are compiled once more" in found
    assert wait_for_kernels()
    assert is_ready(kernel, numbers())


def test_a_damaged_file_is_made_again(filled_cache):
    """Empty, something else, and cut off in the middle."""
    paths = list(filled_cache.rglob("*.kernel"))
    half = paths[2].read_bytes()[: paths[2].stat().st_size // 2]
    for path, content in zip(paths, (b"", b"\\x80\\x04.", half), strict=True):
        path.write_bytes(content)
    kernel = small_kernels.double
    for dtype in TYPES:
        assert not is_ready(kernel, numbers(dtype))
    assert wait_for_kernels()
    for dtype in TYPES:
        assert is_ready(kernel, numbers(dtype))
        assert_it_was_not_compiled_here(kernel, dtype)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_process_has_none_that_compiles(compiler):
    assert not is_ready(small_kernels.double, numbers())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns where there are threads
        child = os.fork()
    if child == 0:
        # only the real one is registered to be reset
        compiler.reset()
        os._exit(0 if compiler._worker is None and not compiler.pending and compiler.lock.acquire(timeout=5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert wait_for_kernels()


# --- the cache -----------------------------------------------------------------------------------------------


def kernel_name(path: Path) -> str:
    """The file name of a kernel in a module of its own."""
    space: dict = {"__name__": "kernel_module"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return kernel_cache.KernelCache(space["twice"]).file_name(("float64",))


def test_names_tell_all_that_code_depends_on(tmp_path, monkeypatch):
    source = "def twice(x):\n    return 2 * x\n"
    names = {}
    for place, text in {"a": source, "b": source, "c": source + "CONSTANT = 3\n"}.items():
        (tmp_path / place).mkdir()
        (tmp_path / place / "kernel_module.py").write_text(text)
        names[place] = kernel_name(tmp_path / place / "kernel_module.py")
    assert names["a"] == names["b"] != names["c"]  # neither place nor time, but what is written there
    kernel_cache._hash_files.cache_clear()
    monkeypatch.setattr(kernel_cache, "SHARED_SOURCES", ("simd.py",))
    assert kernel_name(tmp_path / "a" / "kernel_module.py") != names["a"]


def test_what_numba_can_compile_is_not_loaded_for_what_is_compiled(filled_cache):
    """It is 20 MB of Python; what is compiled later has it all the same."""
    program = (
        "import sys, numba, numpy as np, small_kernels\n"
        "from whisper_at.engine.compilation import is_ready\n"
        "numbers = np.arange(4.0)\n"
        "assert is_ready(small_kernels.double, numbers)\n"
        "small_kernels.double(numbers)\n"
        "assert numbers.tolist() == [0, 2, 4, 6]\n"
        "assert 'numba.np.linalg' not in sys.modules\n"
        "assert numba.njit(lambda x: np.sort(x)[-1])(numbers) == 6\n"
    )
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    env = {**os.environ, "WHISPER_AT_CACHE": str(filled_cache), "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program], env=env, check=True)


@pytest.mark.parametrize(("called", "expected"), [("NRT_MemInfo_call_dtor", []), ("no_such_function", ["refresh"])])
def test_all_of_numba_is_loaded_where_a_function_is_missing(called, expected):
    """LLVM ends the process that calls what it does not find."""
    done = []
    kernel_cache._provide([called], SimpleNamespace(refresh=lambda: done.append("refresh")))
    assert done == expected


def test_files_of_another_format_are_not_read(filled_cache, monkeypatch):
    monkeypatch.setattr(kernel_cache, "FORMAT", kernel_cache.FORMAT + 1)
    assert not is_ready(small_kernels.double, numbers())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"WHISPER_AT_CACHE": "/a", "NUMBA_CACHE_DIR": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        ({"NUMBA_CACHE_DIR": "/b", "XDG_CACHE_HOME": "/c"}, "/b/whisper_at"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/whisper_at"),
        ({}, "~/.cache/whisper_at"),
        ({"WHISPER_AT_CACHE": "~/kernels"}, "~/kernels"),
    ],
)
def test_folders(monkeypatch, settings, expected):
    for name in ("WHISPER_AT_CACHE", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert kernel_cache.cache_folder() == Path(expected).expanduser()
