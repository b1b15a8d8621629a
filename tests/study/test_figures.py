"""Figures of the study."""

from __future__ import annotations

import numpy as np
import pytest

from whisper_at.study import figures
from whisper_at.study.layer_probes import (
    AVERAGE,
    INPUT,
)
from whisper_at.study.wer import WordErrors


def test_errors_are_drawn_against_decreasing_ratios():
    curves = {
        "a": {-10.0: WordErrors(5, 10), 20.0: WordErrors(1, 10), np.inf: WordErrors(0, 10)},
        "b": {20.0: WordErrors(2, 10)},
    }
    axes = figures.draw_errors(curves).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [20, -10]
    assert axes.lines[0].get_ydata().tolist() == [10, 50]
    left, right = axes.get_xlim()
    assert left > right  # noise grows to the right, as in the paper
    with pytest.raises(ValueError, match="no noisy transcriptions"):
        figures.draw_errors({"a": {np.inf: WordErrors(0, 10)}})


def test_layers_are_drawn_from_1_with_input_and_average_at_the_sides():
    rows = {INPUT: 0.2, "1": 0.5, "2": 0.6, AVERAGE: 0.55}
    axes = figures.draw_layers({"net": rows}, chance=0.1).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 2]
    assert axes.lines[0].get_ydata() == pytest.approx([50, 60])
    assert [line.get_xdata()[0] for line in axes.lines[1:3]] == [0, 3]
