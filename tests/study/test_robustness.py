"""Correlation of word errors with recognition, by class."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from study_data import CLASSES

from whisper_at.study import figures
from whisper_at.study.robustness import best_layers, bootstrap_line, correlate, word_error_increase
from whisper_at.study.transcriptions import CLEAN
from whisper_at.study.wer import WordErrors


def test_the_increase_of_word_errors_by_class():
    table = {("r", CLEAN, np.inf): WordErrors(0, 9)}
    for i, name in enumerate(CLASSES):
        table |= {("r", name, -10.0): WordErrors(4 + i, 10), ("r", name, 20.0): WordErrors(1, 10)}
    assert word_error_increase(table, "r") == pytest.approx({"dog": 0.3, "rain": 0.4, "wind": 0.5})
    with pytest.raises(ValueError, match="has no transcriptions for dog at -20 dB"):
        word_error_increase(table, "r", low=-20)
    with pytest.raises(ValueError, match="other has no transcriptions with noise"):
        word_error_increase(table, "other")


def test_the_correlation_is_over_all_classes():
    # Spec section 4.5: the paper left out 12 classes after seeing the plot.
    r = np.random.default_rng(0)
    x = r.normal(size=50)
    y = -x + r.normal(size=50)
    y[:12] += 8  # what one would like to leave out
    found = correlate(x, y)
    assert found.n == 50
    assert found.r == pytest.approx(pearsonr(x, y).statistic)
    z, half = np.arctanh(found.r), 1.96 / np.sqrt(47)  # Fisher's
    assert found.interval == pytest.approx((np.tanh(z - half), np.tanh(z + half)), abs=1e-4)
    assert found.without_one[0] <= found.r <= found.without_one[1]
    line = correlate(np.array([1.0, 2, 3]), np.array([5.0, 7, 9.001]))
    assert (line.slope, line.intercept) == (pytest.approx(2, abs=1e-2), pytest.approx(3, abs=1e-2))
    assert np.isnan(line.interval).all()  # three classes have no interval
    with pytest.raises(ValueError, match="at least three classes"):
        correlate(x[:2], y[:2])
    with pytest.raises(ValueError, match="the same for all"):
        correlate(np.ones(5), y[:5])


def test_the_band_holds_the_line_and_narrows_with_more_classes():
    r = np.random.default_rng(1)
    grid = np.linspace(-1, 1, 5)
    widths = []
    for n in (20, 500):
        x = r.uniform(-1, 1, n)
        low, high = bootstrap_line(x, 2 * x + r.normal(size=n), grid, draws=500)
        assert ((low < 2 * grid) & (2 * grid < high)).all()
        widths.append((high - low).mean())
        # In the middle, the standard error of the line is that of a mean.
        assert (high - low)[2] == pytest.approx(2 * 1.96 / np.sqrt(n), rel=0.35)
    assert widths[1] < widths[0] / 3


def test_best_layers_are_counted_from_one():
    # Spec section 4.5, figure 3: the paper's "+ 1" is inside of the argmax, and its layers are one too low.
    f1 = [np.array([0.9, 0.1, 0.2]), np.array([0.5, 0.7, np.nan]), np.array([0.5, 0.7, 0.3])]
    assert best_layers(f1).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="no F1 in any layer"):
        best_layers([np.array([np.nan])])
    axes = figures.draw_best_layers(best_layers(f1), 5).axes[0]
    drawn = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    assert drawn == {1: 1, 2: 1, 3: 1, 4: 0, 5: 0}
