"""Read the published weights of convolutional networks as data, and check them name by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from ..checkpoints.files import is_state_dict, read_tensors
from ..checkpoints.shapes import check_shapes

Model = TypeVar("Model", bound=nn.Module)


def read_state_dict(path: str | os.PathLike[str], name: str, url: str) -> dict[str, Tensor]:
    """Read a checkpoint's tensors, bare or under the key ``model`` or ``state_dict``.

    ``name`` of the network and ``url`` of its weights are for error messages.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such file of {name}'s weights: {path}; they are published at {url}")
    content, _ = read_tensors(path)
    if isinstance(content, dict):
        content = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), dict)), content)
    if not is_state_dict(content):
        raise ValueError(f"{path} holds no tensors by name, so it is not {name}; its weights are published at {url}")
    return {key.removeprefix("module."): tensor for key, tensor in content.items()}


def load_weights(model: Model, tensors: Mapping[str, Tensor], path: object, name: str, url: str) -> Model:
    """Load tensors into a model after checking every name and shape; return the model."""
    optional = {key for key in model.state_dict() if key.endswith("num_batches_tracked")}
    found = {key: tensor for key, tensor in tensors.items() if key not in optional}
    expected = {key: tensor for key, tensor in model.state_dict().items() if key not in optional}
    check_shapes(found, expected, f"{path} is not {name}", f"the weights are published at {url}")
    model.load_state_dict(tensors, strict=False)
    return model
