"""Published weights of convolutional networks: read as data, checked name by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from ..checkpoints.files import is_state_dict, read_tensors

Model = TypeVar("Model", bound=nn.Module)


def read_state(path: str | os.PathLike[str], what: str, where: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint, whether bare or beside other things under ``model`` or ``state_dict``."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such file of {what}'s weights: {path}; they are published at {where}")
    content, _ = read_tensors(path)
    if isinstance(content, dict):
        content = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), dict)), content)
    if not is_state_dict(content):
        raise ValueError(f"{path} holds no tensors by name, so it is not {what}; its weights are published at {where}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def fill(model: Model, tensors: Mapping[str, Tensor], path: object, what: str, where: str) -> Model:
    """Put tensors into a model after checking every name and shape; frozen, in evaluation mode."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    wrong = sorted(n for n in (wanted.keys() | given.keys()) - optional if wanted.get(n) != given.get(n))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path} is not {what}: {name} is {given.get(name, 'missing')}, expected "
            f"{wanted.get(name, 'none of that name')} ({len(wrong)} such); the weights are published at {where}"
        )
    model.load_state_dict(tensors, strict=False)
    return model
