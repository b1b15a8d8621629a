"""The classes of the fusion paper's repository (Niizumi et al., 2022), by their names and with their shapes.

They are `Fusion` with a network that is made at once: `load_fusion` is the other way to the same vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .cnn14 import CNN14, cnn14_tensors
from .fusion import PRESETS, Fusion
from .vggish import VGGish, vggish_tensors


class GeneralPurposeVGGish(Fusion):
    """VGGish-Fusion.

    Parameters
    ----------
    layers : sequence of int
        Positions of ReLUs in VGGish's flat sequence, from 0: some of 1, 4, 7, 9, 12, 14, 17, 19, 21.

    Examples
    --------
    >>> import torch
    >>> model, x = GeneralPurposeVGGish(), torch.rand(2, 1, 96, 64)
    >>> model(x).shape, model.encode_frames(x).shape
    (torch.Size([2, 8192]), torch.Size([2, 8192, 6]))
    """

    def __init__(self, layers: Sequence[int] = PRESETS["vggish_10_15"].layers) -> None:
        super().__init__(VGGish(), layers)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load VGGish's published weights, of either of its ports."""
        return self.network.load_state_dict(vggish_tensors(state_dict), strict, assign)


class GeneralPurposeCnn14(Fusion):
    """CNN14-Fusion.

    Parameters
    ----------
    layers : sequence of int
        Blocks, **counted from 1** as in the repository: some of 1 to 6.

    Examples
    --------
    >>> import torch
    >>> model, x = GeneralPurposeCnn14(layers=[3, 6]), torch.rand(2, 1, 100, 64)
    >>> model(x).shape == (2, model.width)
    True
    """

    def __init__(self, layers: Sequence[int] = (3, 6)) -> None:
        super().__init__(CNN14(), [layer - 1 for layer in layers])

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load CNN14's published weights for 16 kHz."""
        return self.network.load_state_dict(cnn14_tensors(state_dict), strict, assign)
