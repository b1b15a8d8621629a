"""Front ends of VGGish and CNN14: filter banks against their definitions, spectrograms against NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
from conftest import noise

from whisper_at.embed.frontends import (
    cnn14_log_mel,
    htk_mel_filters,
    slaney_mel_filters,
    vggish_examples,
    vggish_log_mel,
)


def triangle(x: float, left: float, centre: float, right: float) -> float:
    if left < x <= centre:
        return (x - left) / (centre - left)
    return (right - x) / (right - centre) if centre < x < right else 0.0


def test_htk_filters_against_their_definition():
    def mel(hertz):
        return 2595 * math.log10(1 + hertz / 700)  # the same scale in another unit: triangles do not change

    edges = [mel(125) + (mel(7500) - mel(125)) * i / 65 for i in range(66)]
    expected = [[triangle(mel(k * 31.25), *edges[b : b + 3]) for b in range(64)] for k in range(257)]
    np.testing.assert_allclose(htk_mel_filters(), expected, atol=1e-3)  # 2595 / ln(10) is 1126.99, not 1127
    assert not htk_mel_filters()[0].any()


def test_slaney_filters_against_their_definition():
    def mel(hertz):
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)

    def hertz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    edges = [hertz(mel(50) + (mel(8000) - mel(50)) * i / 65) for i in range(66)]
    expected = [
        [triangle(k * 31.25, *edges[b : b + 3]) * 2 / (edges[b + 2] - edges[b]) for b in range(64)] for k in range(257)
    ]
    np.testing.assert_allclose(slaney_mel_filters(), expected, atol=1e-12)


def test_filters_against_transformers():
    audio_utils = pytest.importorskip("transformers.audio_utils")
    sizes = {"num_frequency_bins": 257, "num_mel_filters": 64, "sampling_rate": 16000}
    slaney = audio_utils.mel_filter_bank(
        **sizes, min_frequency=50.0, max_frequency=8000.0, norm="slaney", mel_scale="slaney"
    )
    np.testing.assert_allclose(slaney_mel_filters(), slaney, atol=1e-9)
    htk = audio_utils.mel_filter_bank(
        **sizes, min_frequency=125.0, max_frequency=7500.0, mel_scale="htk", triangularize_in_mel_space=True
    )
    np.testing.assert_allclose(htk_mel_filters(), htk, atol=1e-3)


def test_vggish_front_end_against_numpy():
    samples = noise(1.3)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    count = 1 + (len(samples) - 400) // 160
    expected = np.empty((count, 64))
    for i in range(count):
        frame = samples[i * 160 : i * 160 + 400].astype(float) * window
        expected[i] = np.log(np.abs(np.fft.rfft(frame, 512)) @ htk_mel_filters() + 0.01)
    found = vggish_log_mel(torch.from_numpy(samples))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_cnn14_front_end_against_scipy():
    samples = noise(1.3, 1)
    mirrored = np.pad(samples.astype(float), 256, mode="reflect")
    window = scipy.signal.get_window("hann", 512, fftbins=True)
    count = 1 + len(samples) // 160
    spectra = np.array([np.fft.rfft(mirrored[i * 160 : i * 160 + 512] * window) for i in range(count)])
    power = np.abs(spectra) ** 2 @ slaney_mel_filters()
    found = cnn14_log_mel(torch.from_numpy(samples))
    assert found.shape == (count, 64)
    expected = 10 * np.log10(np.maximum(power, 1e-10))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)  # in dB, of values near -20
    np.testing.assert_allclose(10 ** (found.numpy() / 10), power, rtol=1e-5, atol=1e-5)
    exact = cnn14_log_mel(torch.from_numpy(samples.astype(float)))
    np.testing.assert_allclose(exact.numpy(), expected, atol=1e-5)


def test_silence_is_at_the_floor():
    assert torch.allclose(vggish_log_mel(torch.zeros(1600)), torch.tensor(math.log(0.01)))
    assert torch.allclose(cnn14_log_mel(torch.zeros(1600)), torch.tensor(-100.0))


@pytest.mark.parametrize(
    ("samples", "examples"), [(1, 1), (15600, 1), (15360 + 15599, 1), (15360 + 15600, 2), (80000, 5)]
)
def test_vggish_examples_drop_the_rest(samples, examples):
    waveform = torch.from_numpy(noise(samples / 16000))[:samples]
    found = vggish_examples(waveform)
    assert found.shape == (examples, 1, 96, 64)
    if examples > 1:
        torch.testing.assert_close(found[1, 0], vggish_log_mel(waveform)[96:192])
