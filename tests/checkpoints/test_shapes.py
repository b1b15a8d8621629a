"""Names and shapes of parameters: those of real models, and how others are refused."""

from __future__ import annotations

import math

import pytest
import torch
import whisper
from whisper.model import ModelDimensions

from whisper_at.checkpoints import WIDTHS, check_shapes, head_shapes, whisper_shapes


@pytest.mark.parametrize(
    ("size", "low", "n_keys", "n_parameters"),
    [
        ("tiny", False, 34, 3_751_823),
        ("base", False, 34, 6_575_119),
        ("small", False, 34, 14_581_007),
        ("medium", False, 34, 25_732_623),
        ("large", False, 34, 40_029_967),
        ("small", True, 38, 6_970_383),
        ("medium", True, 38, 7_101_967),
        ("large", True, 38, 7_233_551),
    ],
)
def test_head_shapes_are_the_published_ones(size, low, n_keys, n_parameters):
    d = WIDTHS[size]
    shapes = head_shapes(d, low)
    total = sum(math.prod(shape) for shape in shapes.values())
    width = 512 if low else d
    assert len(shapes) == n_keys
    assert total == n_parameters == 24 * width**2 + 553 * width + 527 + low * (2 * d + 512 * d + 512)
    assert shapes["time_tr.attn.key.weight"] == (width, width)
    assert "time_tr.attn.key.bias" not in shapes


@pytest.mark.parametrize("dims", [(80, 1500, 8, 2, 1, 51864, 448, 8, 2, 3), (128, 20, 12, 2, 3, 51866, 9, 12, 2, 1)])
def test_the_shapes_of_a_whisper(dims):
    state = whisper.Whisper(ModelDimensions(*dims)).state_dict()
    assert whisper_shapes(vars(ModelDimensions(*dims))) == {key: tuple(tensor.shape) for key, tensor in state.items()}


def test_parameters_are_compared_by_name_and_shape():
    expected = {"a": torch.ones(2, 3), "b": (4,)}
    check_shapes({"b": torch.ones(4), "a": (2, 3)}, expected, "x")
    for found, problem in (
        ({"a": (2, 3), "b": (5,)}, r"b is \(5,\), expected \(4,\) \(1 such\)"),
        ({"a": (2, 3)}, r"b is missing, expected \(4,\) \(1 such\)"),
        ({**expected, "c": ()}, r"c is \(\), expected none of that name \(1 such\)"),
        ({}, r"a is missing, expected \(2, 3\) \(2 such\)"),
    ):
        with pytest.raises(RuntimeError, match=f"^x is none: {problem}; take y$"):
            check_shapes(found, expected, "x is none", "take y", RuntimeError)
