"""Kernels are made of the instructions that Numba compiles for, which need not be the host's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from whisper_at.engine import simd

PROGRAM = """
import sys, torch, warnings, whisper_at
from whisper_at.engine import cpu_kernels
from whisper_at.engine.compilation import wait_for_kernels

def transcribe(model):
    audio = whisper_at.load_audio("sample/speech.flac")
    return model.transcribe(audio, language="en", fp16=False, temperature=0.0, word_timestamps=True)["text"]

def is_for_kernels(model):
    return model.precompute_cross_kv(torch.zeros(1, 1500, model.dims.n_text_state)).is_for_kernels

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for compute_type in sys.argv[1:]:
        model = whisper_at.load_model("nano.en", "cpu", head=None, compute_type=compute_type)
        text = transcribe(model)  # by PyTorch, then by kernels
        assert wait_for_kernels()
        print(compute_type, text == transcribe(model) != "", is_for_kernels(model))
misses = [sum(kernel._cache_misses.values()) for kernel in (cpu_kernels.decoder_forward, cpu_kernels.matmul)]
print("compiled here:", sum(misses))
assembly = "".join(code for code in cpu_kernels.decoder_forward.inspect_asm().values())
print(*(f"uses {name}" for name in ("zmm", "ymm", "vcvtph2ps", "extendhfsf2") if name in assembly))
print(*(warning.message for warning in caught if "compiled" in str(warning.message)))
"""
SMALL_PROGRAM = """
import warnings, numpy as np, small_kernels
from whisper_at.engine.compilation import is_ready, wait_for_kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    x = np.arange(4.0)
    was_ready = is_ready(small_kernels.double, x)
    assert wait_for_kernels() and is_ready(small_kernels.double, x)
small_kernels.double(x)
print(x.tolist(), was_ready, *(warning.message for warning in caught if "compiled" in str(warning.message)))
"""


def run(tmp_path, settings: dict[str, str], program: str, *arguments: str) -> str:
    removed = {name: "" for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX")}
    env = {name: value for name, value in os.environ.items() if name not in removed}
    places = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    env |= {"PYTHONPATH": places, "WHISPER_AT_CACHE": str(tmp_path), **settings}
    command = [sys.executable, "-c", program, *arguments]
    found = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "unused", "compute_types"),
    [
        (
            {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
            ["zmm", "ymm", "vcvtph2ps", "extendhfsf2"],
            ["float32", "int8", "bfloat16"],
        ),
        ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+f16c,+fma"}, ["zmm", "extendhfsf2"], ["float32"]),
    ],
)
def test_an_image_for_other_machines(tmp_path, settings, unused, compute_types):
    """Nothing is used that the target lacks, by any precision; where the host is another, it ran all the same.

    Another process compiles for the one that transcribes, whose text stays the same. The case that ended the process:
    ``LLVM ERROR: Symbol not found: __extendhfsf2``.
    """
    found = run(tmp_path, settings, PROGRAM, *compute_types)
    *runs, compiled, used, warned = found.removesuffix("\n").split("\n")
    assert runs == [f"{compute_type} True True" for compute_type in compute_types]
    assert compiled == "compiled here: 0"
    assert not [name for name in unused if f"uses {name}" in used]
    assert warned == ""


def test_it_says_when_it_has_to_compile_again(tmp_path):
    """An image runs on another processor: once, and not on the one that it was built for."""
    generic = {"NUMBA_CPU_NAME": "generic"}
    doubled = "[0.0, 2.0, 4.0, 6.0]"
    assert run(tmp_path, generic, SMALL_PROGRAM) == f"{doubled} False\n"
    assert run(tmp_path, generic, SMALL_PROGRAM) == f"{doubled} True\n"
    found = run(tmp_path, {}, SMALL_PROGRAM)
    assert found.startswith(f"{doubled} False ")
    assert "were compiled for another processor (generic)" in found
    assert run(tmp_path, {}, SMALL_PROGRAM) == f"{doubled} True\n"


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
