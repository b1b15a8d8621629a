"""Weights of a Whisper's decoder as inference uses them, and whether modules and weights were changed since."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import (
    AudioEncoder,
    Conv1d,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    ResidualAttentionBlock,
    TextDecoder,
)

from . import onednn, simd
from .cpu_kernels import DecoderWeights, LinearWeights
from .file_pages import FilePages
from .half_parameters import stored_parameters, stored_weight

WHISPER_MODULES = {AudioEncoder, TextDecoder, ResidualAttentionBlock, MultiHeadAttention, Linear, LayerNorm, Conv1d}
UNMODIFIED = WHISPER_MODULES | {onednn.Linear, nn.ModuleList, nn.Sequential, nn.GELU, nn.Embedding}

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

N_SAMPLES = 16
"""Values of every parameter that are compared to see whether it was changed."""
CHUNK_ROWS = 1024
"""Rows of a matrix that are converted at once, so that there is no second whole one."""


def is_cache_hook(hook: Callable[..., object]) -> bool:
    """Return whether a hook is of ``Whisper.install_kv_cache_hooks``, by which a caller decodes token by token."""
    return getattr(hook, "__qualname__", "").startswith("Whisper.install_kv_cache_hooks.")


def is_unmodified(module: nn.Module) -> bool:
    """Return whether an encoder or decoder is openai-whisper's as installed: no hooks, no replaced parts or methods.

    Hooks of ``install_kv_cache_hooks`` do not count: they are for the caller's own calls of the module.
    """
    return all(
        type(part) in UNMODIFIED
        and all(is_cache_hook(hook) for hooks in HOOKS for hook in getattr(part, hooks).values())
        and not {"forward", "qkv_attention"} & vars(part).keys()
        for part in module.modules()
    )


def is_exact_in_half(matrix: Tensor) -> bool:
    """Return whether half precision holds a matrix without loss."""
    chunks = matrix.split(CHUNK_ROWS)
    return matrix.dtype == torch.float16 or all(torch.equal(chunk.half().float(), chunk) for chunk in chunks)


def stored_as(weights: Tensor, *, half: bool) -> Tensor:
    """Return a checkpoint's weights as a model keeps them: in float32 or, where asked for and exact, half precision.

    Those that are in half precision stay where they are, in a file that is mapped, if nothing else has that memory;
    of others there is a copy.
    """
    half = half and is_exact_in_half(weights)
    alone = weights.untyped_storage().nbytes() == weights.nbytes and weights.data_ptr() % weights.itemsize == 0
    if half and weights.dtype == torch.float16 and alone and weights.is_contiguous() and os.name == "posix":
        return weights  # elsewhere, files that are mapped cannot be replaced
    return weights.to(torch.float16 if half else torch.float32, copy=True)


def as_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor's memory as an array, half precision as the ``uint16`` of its bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.float16 else tensor.numpy()


class WeightsVersion:
    """Tells whether a module's weights have changed since.

    Compared are the addresses of its parameters, PyTorch's counts of changes, and, since changes to ``.data`` are not
    counted, a few values of each; of those that are mapped from a file, whether it still is the file's memory.

    Attributes
    ----------
    pages : FilePages
        Memory of the latter, which may be given back when the weights have been read.
    """

    def __init__(self, module: nn.Module) -> None:
        weights = [p.detach() for _, p in stored_parameters(module)]
        self.pages = FilePages(weights)
        in_memory = [weight for weight in weights if weight.data_ptr() not in self.pages.addresses]
        flat = [weights.flatten() for weights in in_memory]
        self.versions = self._versions(module)
        self.samples = [weights[:: len(weights) // N_SAMPLES + 1] for weights in flat]
        self.values = torch.cat(self.samples)

    def matches(self, module: nn.Module) -> bool:
        """Return whether the module has these weights."""
        same = self._versions(module) == self.versions and torch.equal(torch.cat(self.samples), self.values)
        return same and self.pages.are_unchanged()

    @staticmethod
    def _versions(module: nn.Module) -> list[tuple[int, int]]:
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for _, p in stored_parameters(module)]


class Affine(NamedTuple):
    """Weight and bias of a linear layer or of a layer norm."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: nn.Module) -> Affine:
        """Take a module's, detached."""
        weight, bias = stored_weight(module), cast("Tensor | None", module.bias)
        return cls(weight.detach(), None if bias is None else bias.detach())

    def to(self, dtype: torch.dtype) -> Affine:
        """Return it in a precision."""
        return Affine(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))

    def linear(self, x: Tensor) -> Tensor:
        """Map ``(…, in)`` → ``(…, out)``."""
        return onednn.linear(x, self.weight, self.bias)

    def layer_norm(self, x: Tensor) -> Tensor:
        """Compute in float32 → ``x``'s precision, as openai-whisper does."""
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), bias).to(x.dtype)


def round_to_int12(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round every row of ``x`` (…, in) to whole numbers of at most 12 bits, as kernels do → them and their scale."""
    top = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    return (x * (2047.0 / top) + 0.5).floor_(), top / 2047.0


class Int8Affine(NamedTuple):
    """A linear layer with int8 weights ``(out, in)``, which may be kept in float32, and the scale of each row."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def to(self, dtype: torch.dtype) -> Int8Affine:
        """Return it with weights that are kept in a precision."""
        return self._replace(weight=self.weight.to(dtype))

    def linear(self, x: Tensor) -> Tensor:
        """Map ``(…, in)`` → ``(…, out)``, with the rounding of the kernels."""
        numbers, steps = round_to_int12(x)
        out = onednn.linear(numbers, self.weight.to(x.dtype)) * (self.scale * steps)
        return out if self.bias is None else out.add_(self.bias)


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """The weights of a decoder layer; norms stay float32, as openai-whisper's do.

    ``qkv`` are self-attention's queries, keys (whose bias is 0) and values; as one if fused.
    """

    attn_ln: Affine
    cross_attn_ln: Affine
    mlp_ln: Affine
    qkv: tuple[Affine | Int8Affine, ...]
    attn_out: Affine | Int8Affine
    cross_query: Affine | Int8Affine
    cross_key: Affine
    cross_value: Affine
    cross_out: Affine | Int8Affine
    mlp_up: Affine | Int8Affine
    mlp_down: Affine | Int8Affine

    @classmethod
    def of(cls, block: ResidualAttentionBlock, *, fuse: bool) -> LayerWeights:
        """Take a layer's; ``fuse`` copies queries, keys and values to one matrix."""
        attn, cross = block.attn, cast(MultiHeadAttention, block.cross_attn)
        key = Affine(stored_weight(attn.key).detach(), torch.zeros_like(attn.query.bias))
        qkv: tuple[Affine, ...] = (Affine.of(attn.query), key, Affine.of(attn.value))
        if fuse:
            weights, biases = [part.weight for part in qkv], [cast(Tensor, part.bias) for part in qkv]
            qkv = (Affine(torch.cat(weights), torch.cat(biases)),)
        return cls(
            attn_ln=Affine.of(block.attn_ln),
            cross_attn_ln=Affine.of(cast(LayerNorm, block.cross_attn_ln)),
            mlp_ln=Affine.of(block.mlp_ln),
            qkv=qkv,
            attn_out=Affine.of(attn.out),
            cross_query=Affine.of(cross.query),
            cross_key=Affine.of(cross.key),
            cross_value=Affine.of(cross.value),
            cross_out=Affine.of(cross.out),
            mlp_up=Affine.of(block.mlp[0]),
            mlp_down=Affine.of(block.mlp[2]),
        )

    @property
    def norms(self) -> list[Affine]:
        """The layer norms in order."""
        return [self.attn_ln, self.cross_attn_ln, self.mlp_ln]

    @property
    def matrices(self) -> dict[str, Affine | Int8Affine]:
        """All that is not ``qkv`` and no norm, by name."""
        return {name: part for name, part in vars(self).items() if name != "qkv" and not name.endswith("_ln")}

    def rounded_as(self, packed: DecoderWeights, layer: int) -> LayerWeights:
        """Return them with the int8 weights of the kernels, which have no part in cross-attention's keys and values."""

        def view(weights: LinearWeights) -> Int8Affine:
            return Int8Affine(*(torch.from_numpy(array[layer]) for array in weights))

        return replace(
            self,
            qkv=(view(packed.qkv),),
            attn_out=view(packed.attn_out),
            cross_query=view(packed.cross_query),
            cross_out=view(packed.cross_out),
            mlp_up=view(packed.mlp_up),
            mlp_down=view(packed.mlp_down),
        )

    def to(self, dtype: torch.dtype) -> LayerWeights:
        """Return them in a precision, but for the norms."""
        parts: dict[str, Any] = {name: part.to(dtype) for name, part in self.matrices.items()}
        return replace(self, qkv=tuple(part.to(dtype) for part in self.qkv), **parts)

    def nbytes(self) -> int:
        """Return the bytes of all matrices and their biases."""
        return sum(t.nbytes for part in (*self.qkv, *self.matrices.values()) for t in part if t is not None)


def _joined(matrices: Sequence[Tensor]) -> Tensor | None:
    """Return matrices ``(…, width)`` that follow one another in memory as one, or None if they do not."""
    end, first = matrices[0].data_ptr(), matrices[0]
    for matrix in matrices:
        same = (matrix.dtype, matrix.untyped_storage().data_ptr()) == (first.dtype, first.untyped_storage().data_ptr())
        if not same or matrix.data_ptr() != end or not matrix.is_contiguous():
            return None
        end += matrix.nbytes
    return first.as_strided((sum(map(len, matrices)), first.shape[1]), (first.shape[1], 1))


def pack_for_kernels(
    layers: Sequence[LayerWeights], last_norm: Affine, embedding: Tensor, pages: FilePages, *, int8: bool
) -> DecoderWeights:
    """Return a decoder's weights as `cpu_kernels` reads them: int8, or else half precision where that is exact.

    ``pages`` are given back as soon as they have been read.
    """

    def pack(matrices: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Put matrices one below the other → ``(rows, width)`` and the scale of each row."""
        rows, width = sum(len(matrix) for matrix in matrices), matrices[0].shape[1]
        half = not int8 and simd.HAS_FP16_LOADS and all(map(is_exact_in_half, matrices))
        dtype, scale = torch.int8 if int8 else torch.float16 if half else torch.float32, torch.ones(rows)
        if matrices[0].dtype == dtype and (together := _joined(matrices)) is not None:
            return as_numpy(together), scale.numpy()
        out, row = torch.empty(rows, width, dtype=dtype), 0
        for chunk in (chunk for matrix in matrices for chunk in matrix.split(CHUNK_ROWS)):
            place = slice(row, row := row + len(chunk))
            if int8:
                chunk = chunk.float()
                scale[place] = chunk.abs().amax(-1).clamp(min=1e-12) / 127
                chunk = (chunk / scale[place, None]).round_()
            out[place] = chunk
        pages.release()
        return as_numpy(out), scale.numpy()

    def stack(parts: Sequence[Sequence[Affine | Int8Affine]]) -> LinearWeights:
        """Put one linear map of every layer, given in parts, into one array."""
        matrix, scale = pack([part.weight for layer in parts for part in layer])
        biases = [torch.cat([cast(Tensor, part.bias) for part in layer]) for layer in parts]
        n = len(parts)
        return LinearWeights(matrix.reshape(n, -1, matrix.shape[1]), scale.reshape(n, -1), torch.stack(biases).numpy())

    def stack_norms(norms: Sequence[Affine]) -> Tensor:
        return torch.stack([cast(Tensor, part) for norm in norms for part in norm])

    packed_embedding = LinearWeights(*pack([embedding]), np.zeros(len(embedding), np.float32))  # the largest first
    return DecoderWeights(
        qkv=stack([layer.qkv for layer in layers]),
        attn_out=stack([[layer.attn_out] for layer in layers]),
        cross_query=stack([[layer.cross_query] for layer in layers]),
        cross_out=stack([[layer.cross_out] for layer in layers]),
        mlp_up=stack([[layer.mlp_up] for layer in layers]),
        mlp_down=stack([[layer.mlp_down] for layer in layers]),
        norms=torch.stack([stack_norms(layer.norms) for layer in layers]).float().numpy(),
        last_norm=stack_norms([last_norm]).numpy(),
        embedding=packed_embedding,
    )
