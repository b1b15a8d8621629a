"""Time warping without a compiler: openai-whisper's paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from whisper import timing

import whisper_at.timing
from whisper_at.engine import alignment, compilation
from whisper_at.engine.dtw import dtw_by_diagonals

sizes = st.tuples(st.integers(1, 7), st.integers(1, 7))
costs = st.one_of(st.integers(-2, 2).map(float), st.floats(allow_nan=True, allow_infinity=True, width=32))


@given(arrays(np.float64, sizes, elements=costs))
@settings(deadline=None, max_examples=300)
def test_paths_are_upstreams(x):
    """Ties, infinities and NaN included."""
    expected = timing.dtw_cpu(x)
    found = dtw_by_diagonals(x)
    assert found.tolist() == expected.tolist()
    assert found.dtype == expected.dtype


def test_paths_of_the_usual_size():
    x = np.random.default_rng(0).random((60, 1500))
    assert dtw_by_diagonals(x).tolist() == timing.dtw_cpu(x).tolist() == alignment._dtw(x).tolist()


@pytest.mark.parametrize("ready", [True, False])
def test_nothing_is_compiled_where_words_are_timed(monkeypatch, ready):
    used = []
    monkeypatch.setattr(compilation, "is_ready", lambda *_: ready)
    monkeypatch.setattr(alignment, "_dtw", lambda x: used.append("kernel") or dtw_by_diagonals(x))
    x = torch.rand(4, 9)
    expected = timing.dtw(x).tolist()
    assert whisper_at.timing.dtw(x).tolist() == expected
    assert used == ["kernel"] * ready
    assert timing.dtw_cpu is alignment.upstream_dtw


def test_a_caller_may_have_replaced_it(monkeypatch):
    monkeypatch.setattr(timing, "dtw_cpu", lambda x: "mine")
    assert whisper_at.timing.dtw(torch.rand(2, 2)) == "mine"
    assert timing.dtw_cpu(0) == "mine"


def test_it_is_put_back_after_an_error():
    with pytest.raises(RuntimeError, match="in the middle"), alignment.cached_dtw():
        raise RuntimeError("in the middle")
    assert timing.dtw_cpu is alignment.upstream_dtw
