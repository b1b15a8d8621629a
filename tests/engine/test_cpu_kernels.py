"""The compiled loops of a decoder step, against float64."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from conftest import ROOT
from numba.core.caching import CacheImpl

from whisper_at.engine import cpu_kernels, simd


@pytest.mark.parametrize("dtype", ["half", "float32", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 21])
@pytest.mark.parametrize("width", [192, 4096])
def test_products(dtype, rows, width):
    """Every block of rows, x within the first cache and beyond, every storage, setting and adding, against float64."""
    r = np.random.default_rng(rows)
    stored = r.normal(size=(70, width)).astype(np.float16)
    scale, bias = np.ones(70, np.float32), r.normal(size=70).astype(np.float32)
    x = r.normal(size=(rows, width)).astype(np.float32)
    if dtype == "int8":
        scale = np.abs(stored.astype(np.float32)).max(1) / 127
        weights = np.round(stored / scale[:, None]).astype(np.int8)
        exact = weights * scale[:, None].astype(np.float64)
    else:
        weights = stored.view(np.uint16) if dtype == "half" else stored.astype(np.float32)
        exact = stored.astype(np.float64)
    expected = x.astype(np.float64) @ exact.T + bias
    y = np.full((rows, 70), 7.0, np.float32)
    cpu_kernels.matmul(weights, scale, bias, x, y, 0.0)
    tolerance = np.full(expected.shape, 1e-4)
    if dtype == "int8":  # half a step of 12-bit activations, times what each meets
        tolerance += np.abs(x).max(1, keepdims=True) / 2047 / 2 * np.abs(exact).sum(1)
    assert (np.abs(y - expected) <= tolerance).all()
    cpu_kernels.matmul(weights, scale, bias, x, y, 1.0)
    assert (np.abs(y - 2 * expected) <= 2 * tolerance).all()


@numba.njit
def exp_of_all(x, out):
    for i in range(len(x)):
        out[i] = simd.exp(x[i])


def test_exp():
    """To 1.3 units in the last place; below −87 it stays at what it is there, so that nothing underflows."""
    x = np.linspace(-87, 0, 100001, dtype=np.float32)
    out = np.empty_like(x)
    exp_of_all(x, out)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(out - exact) <= 1.3 * np.spacing(exact.astype(np.float32))).all()
    low = np.array([-87, -88, -1e9, -np.inf], np.float32)
    exp_of_all(low, out)
    assert (out[:4] == out[0]).all()


def test_gelu():
    x = np.linspace(-90, 15, 40001, dtype=np.float32)[None].copy()
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    cpu_kernels._gelu_in_place(x)
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_loops_compile_where_nothing_can_be_written(monkeypatch):
    """A read-only package and home leave Numba's cache no place; it raises while the module is imported."""
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(abs_difference)
    assert simd.compiled(fastmath=True)(abs_difference)(3, 5) == 2


def abs_difference(a, b):
    return abs(a - b)


@pytest.mark.parametrize("setting", ["OMP_NUM_THREADS", "set_num_threads"])
def test_pytorch_keeps_the_number_of_threads_it_was_given(setting):
    """Numba's threads start at the first call, and would make it one for each core."""
    program = (
        "import numba, torch, whisper_at\n"
        "if SET: torch.set_num_threads(1)\n"
        "model = whisper_at.load_model('nano.en', 'cpu', head=None)\n"
        "model.decode(torch.zeros(80, 3000), language='en', fp16=False, sample_len=3)\n"
        "print(torch.get_num_threads(), numba.get_num_threads())\n"
    )
    env = {**os.environ, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "1" if setting == "OMP_NUM_THREADS" else "2"}
    command = [sys.executable, "-c", program.replace("SET", str(setting == "set_num_threads"))]
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == ["1", "1"]
