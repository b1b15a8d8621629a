"""Matrices of a decoder that are kept in half precision until somebody asks for them in float32.

Official checkpoints have their weights in half precision, and `cpu_kernels` computes with such copies. The same numbers
in float32, which openai-whisper's modules have, would take twice that memory once more, for who reads, trains or runs
the modules themselves; a transcription does not. So they are made when a parameter is first read, and kept from then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from whisper.model import MultiHeadAttention, ResidualAttentionBlock, TextDecoder

from .file_pages import FilePages

if TYPE_CHECKING:
    from _collections_abc import dict_items, dict_values

Value: TypeAlias = "Parameter | None"

_LOCK = threading.RLock()
"""Held while parameters are made: threads that ask for one at once get the same."""
if hasattr(os, "register_at_fork"):  # a child must not inherit it held by a thread that it does not have
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class HalfParameters(dict[str, Value]):
    """A module's parameters by name; those in half precision become float32 for good when they are read.

    It stands in for the dict that `torch.nn.Module` keeps them in, through which every access to them goes.

    Parameters
    ----------
    parameters : dict of str to Parameter or None
    """

    def __init__(self, parameters: dict[str, Value]) -> None:
        super().__init__(parameters)
        self._halves = {key: p for key, p in parameters.items() if p is not None and p.dtype == torch.float16}

    def stored(self) -> dict_items[str, Value]:
        """Return names and parameters as they are kept."""
        return super().items()

    def _widen(self, *names: str) -> None:
        with _LOCK, torch.inference_mode(False), torch.no_grad():
            for name in names:
                half = self._halves.get(name)
                if half is not None and super().get(name) is half:  # else it was replaced
                    self[name] = Parameter(half.float(), half.requires_grad)
                self._halves.pop(name, None)  # from now on, others do not wait for it

    def __getitem__(self, name: str) -> Value:
        if name in self._halves:
            self._widen(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a parameter in float32."""
        self._widen(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # where it is defined, `dict(self)` calls `__getitem__`

    def items(self) -> dict_items[str, Value]:
        """Return names and parameters in float32."""
        self._widen(*list(self._halves))
        return super().items()

    def values(self) -> dict_values[str, Value]:
        """Return parameters in float32."""
        self._widen(*list(self._halves))
        return super().values()

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a parameter, and return it in float32."""
        self._widen(name)
        return super().pop(name, *default)

    def copy(self) -> dict[str, Value]:
        """Return a dict of parameters in float32."""
        return dict(self.items())

    def __reduce__(self) -> tuple[type[dict[str, Value]], tuple[dict[str, Value]]]:
        """Let copies and saved modules be usual ones."""
        return dict, (self.copy(),)


def keep_in_half(decoder: TextDecoder) -> None:
    """Move what a decoder has in half precision into memory of its own, and let it be float32 once it is read.

    A kind of matrix lies together over all layers, as `weights.pack_for_kernels` has it.
    """
    blocks = cast(list[ResidualAttentionBlock], decoder.blocks)
    crosses = [cast(MultiHeadAttention, block.cross_attn) for block in blocks]
    _move([decoder.token_embedding])
    _move([part for block in blocks for part in (block.attn.query, block.attn.key, block.attn.value)])
    for name in ("query", "key", "value", "out"):
        _move([getattr(cross, name) for cross in crosses])
    _move([block.attn.out for block in blocks])
    for i in (0, 2):
        _move([block.mlp[i] for block in blocks])


def _move(modules: Sequence[nn.Module]) -> None:
    weights = [cast(Parameter, module.weight) for module in modules]
    if any(weight.dtype != torch.float16 for weight in weights):
        return
    pages = FilePages(weight.detach() for weight in weights)
    moved = torch.cat([weight.detach() for weight in weights]).split([len(weight) for weight in weights])
    for module, weight, own in zip(modules, weights, moved):
        module._parameters["weight"] = Parameter(own, weight.requires_grad)
        module._parameters = HalfParameters(module._parameters)
    pages.release()


def stored_weight(module: nn.Module) -> Tensor:
    """Return a module's weight as it is kept."""
    parameters = module._parameters
    if isinstance(parameters, HalfParameters):
        return cast(Tensor, dict(parameters.stored())["weight"])
    return cast(Tensor, module.weight)


def stored_parameters(module: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """Yield names and parameters of a module and of all within it as they are kept."""
    for prefix, part in module.named_modules():
        parameters = part._parameters
        items = parameters.stored() if isinstance(parameters, HalfParameters) else parameters.items()
        for name, parameter in items:
            if parameter is not None:
                yield f"{prefix}.{name}" if prefix else name, parameter


def make_float32(module: nn.Module) -> None:
    """Let all parameters be float32 now, as if they were read."""
    for part in module.modules():
        part._parameters.values()
