"""Read the published weights of convolutional networks as data, and check them name by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from ..checkpoints.files import is_state_dict, read_tensors

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
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    wrong = sorted(k for k in (expected.keys() | found.keys()) - optional if expected.get(k) != found.get(k))
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{path} is not {name}: {key} is {found.get(key, 'missing')}, expected "
            f"{expected.get(key, 'no such name')} ({len(wrong)} such); the weights are published at {url}"
        )
    model.load_state_dict(tensors, strict=False)
    return model
