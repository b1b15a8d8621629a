"""Mixtures have the requested signal-to-noise ratio."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_at.study.mixing import SNRS, mix_at_snr, power


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SNRS), st.integers(1, 3000), st.integers(0, 5))
def test_the_ratio_is_as_requested_over_whole_clips(snr, length, seed):
    r = np.random.default_rng(seed)
    speech = r.normal(0, 0.1, 1000)
    noise = np.concatenate([r.normal(0, 0.3, length), np.zeros(length)])  # half silence counts (spec section 4.1)
    mixed, factor = mix_at_snr(speech, noise, snr)
    assert mixed.dtype == np.float32
    assert len(mixed) == 1000
    assert factor == 1
    added = mixed.astype(np.float64) - speech
    repeated = np.tile(noise, -(-1000 // len(noise)))[:1000]
    scale = np.sqrt(np.mean(speech**2) / np.mean(noise**2) / 10 ** (snr / 10))
    np.testing.assert_allclose(added, scale * repeated, atol=2e-6 * (1 + scale))
    assert 10 * np.log10(power(speech) / (power(noise) * scale**2)) == pytest.approx(snr)


def test_mixtures_by_hand():
    speech, noise = np.array([1.0, -1, 1, -1]), np.array([2.0, 0])  # powers 1 and 2
    assert mix_at_snr(speech, noise, 0.0).audio == pytest.approx(speech + np.array([2, 0, 2, 0]) / np.sqrt(2))
    assert mix_at_snr(speech, noise, np.inf).audio == pytest.approx(speech)
    guarded = mix_at_snr(speech, noise, 0.0, prevent_clipping=True)
    assert np.abs(guarded.audio).max() == pytest.approx(1)
    assert guarded.factor == pytest.approx(1 / (1 + np.sqrt(2)))
    assert guarded.audio == pytest.approx(mix_at_snr(speech, noise, 0.0).audio * guarded.factor)
    assert mix_at_snr(speech * 0.1, noise, 20.0, prevent_clipping=True).factor == 1  # nothing clips
    assert mix_at_snr(speech, np.zeros(3), 0.0).audio == pytest.approx(speech)  # silence has no level to bring up
    with pytest.raises(ValueError, match="the noise has no samples"):
        mix_at_snr(speech, np.zeros(0), 0.0)
