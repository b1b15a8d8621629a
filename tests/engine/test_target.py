"""Kernels are made of the instructions that Numba compiles for, which need not be the host's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from whisper_at.engine import simd

PROGRAM = """
import sys, warnings, torch, whisper_at
from whisper_at.engine import cpu_kernels, simd
from whisper_at.engine.compilation import wait_for_kernels
warnings.filterwarnings("ignore", "FP16")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for compute_type in sys.argv[1:]:
        model = whisper_at.load_model("nano.en", "cpu", head=None, compute_type=compute_type)
        audio = torch.sin(torch.arange(16000 * 3) / 5.0) / 10
        for _ in range(2):  # at first by PyTorch, then by kernels
            result = model.transcribe(audio, language="en", fp16=False, temperature=0.0, word_timestamps=True)
            assert wait_for_kernels()
assembly = "".join(code for code in cpu_kernels.decoder_forward.inspect_asm().values())
print(*(f"uses {name}" for name in ("zmm", "ymm", "vcvtph2ps", "extendhfsf2") if name in assembly), sep="\\n")
print(*(warning.message for warning in caught if "compiled" in str(warning.message)), sep="\\n")
"""


def run(tmp_path, settings: dict[str, str], *compute_types: str) -> str:
    removed = {name: "" for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX")}
    env = {name: value for name, value in os.environ.items() if name not in removed}
    env |= {"PYTHONPATH": str(ROOT), "WHISPER_AT_CACHE": str(tmp_path), **settings}
    command = [sys.executable, "-c", PROGRAM, *compute_types]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, ["zmm", "ymm", "vcvtph2ps", "extendhfsf2"]),
        ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+f16c,+fma"}, ["zmm", "extendhfsf2"]),
    ],
)
def test_an_image_for_other_machines(tmp_path, settings, unused):
    """Nothing is used that the target lacks, by any precision; where the host is another, it ran all the same."""
    found = run(tmp_path, settings, "float32", "int8", "bfloat16")
    assert not [name for name in unused if f"uses {name}" in found]


@pytest.mark.skipif(not simd.IS_X86, reason="the names are of x86")
def test_nothing_is_taken_from_the_host(tmp_path):
    """The case that ended the process: ``LLVM ERROR: Symbol not found: __extendhfsf2``."""
    assert run(tmp_path, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, "float32") == "\n\n"


@pytest.mark.slow
def test_it_says_when_it_has_to_compile_again(tmp_path):
    """An image runs on another processor: once, and not on the one that it was built for."""
    generic = {"NUMBA_CPU_NAME": "generic"}
    assert "compiled" not in run(tmp_path, generic, "float32")
    assert "compiled" not in run(tmp_path, generic, "float32")
    found = run(tmp_path, {}, "float32")
    assert "were compiled for another processor (generic)" in found
    assert "compiled" not in run(tmp_path, {}, "float32")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("", set()),
        ("+avx2,-avx512f,+f16c", {"avx2", "f16c"}),
        (" +avx2 , -f16c", {"avx2"}),
        ("avx2", set()),  # neither on nor off
    ],
)
def test_features_of_the_target(monkeypatch, features, expected):
    monkeypatch.setattr("numba.config.CPU_FEATURES", features)
    assert simd.target_features() == expected


def test_the_host_is_the_target_by_default(monkeypatch):
    from llvmlite import binding

    monkeypatch.setattr("numba.config.CPU_FEATURES", None)
    host = {name for name, on in binding.get_host_cpu_features().items() if on}
    assert simd.target_features() <= host
    assert ("avx2" in simd.target_features()) == ("avx2" in host)
