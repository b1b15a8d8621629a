"""One decoder step in shapes that never change, so that a GPU can record it once as a graph and replay it.

A step launches a dozen small kernels a layer, and a GPU computes them faster than Python launches them. Replaying a
graph is one launch. What a graph was recorded with stays where it is in memory, so tokens, position, caches and what is
heard are copied to their places before it runs.
"""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .decoder import Decoder, Heard

LENGTHS = 64
"""A step attends to so many positions, or twice as many …: there is a graph for each multiple that is reached."""
KEPT = 2
"""Steps that are kept for the next window: one try in a beam and one at a temperature use different ones."""


def empty_caches(decoder: Decoder, rows: int) -> tuple[Tensor, Tensor]:
    """Room for the keys and values ``(layers, rows, heads, positions, size)`` of sequences of any length."""
    dims = decoder.dims
    shape = (dims.n_text_layer, rows, dims.n_text_head, dims.n_text_ctx, dims.n_text_state // dims.n_text_head)
    keys, values = (torch.empty(shape, dtype=decoder.dtype, device=decoder.device) for _ in range(2))
    return keys, values


class StaticStep:
    """The step of some rows, ``group`` to a recording; see `claim`.

    Attributes
    ----------
    caches : keys and values of the rows' tokens, as `empty_caches` makes them
    """

    def __init__(self, decoder: Decoder, heard: Heard, group: int) -> None:
        self.decoder, self.group = decoder, group
        rows, device = len(heard.features) * group, decoder.device
        self.caches = empty_caches(decoder, rows)
        for cache in self.caches:
            cache.zero_()  # what is not to be seen is multiplied by 0, which must not meet a NaN
        self.heard = heard._replace(keys=torch.empty_like(heard.keys), values=torch.empty_like(heard.values))
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.ancestors = torch.zeros(rows, decoder.dims.n_text_ctx, dtype=torch.long, device=device)
        self.records = device.type == "cuda"
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    @classmethod
    def claim(cls, owner: object, decoder: Decoder, heard: Heard, group: int) -> StaticStep:
        """A step for what is heard, with the graphs of an earlier one of these shapes if there is any.

        It belongs to ``owner`` alone, and is kept for others when that is gone.
        """
        shapes = (heard.keys.shape, heard.keys.dtype, group)
        step = next((s for s in decoder.steps if (s.heard.keys.shape, s.heard.keys.dtype, s.group) == shapes), None)
        if step is None:
            step = cls(decoder, heard, group)
        else:
            decoder.steps.remove(step)
        step.heard.keys.copy_(heard.keys)
        step.heard.values.copy_(heard.values)
        weakref.finalize(owner, decoder.steps.append, step).atexit = False
        return step

    @torch.no_grad()
    def __call__(self, tokens: Tensor, position: int, ancestors: Tensor) -> Tensor:
        """The next token of every row ``(rows,)`` → float32 logits ``(rows, vocabulary)``, until the next call.

        position : tokens before these
        ancestors : ``(rows, positions)``: whose cache holds a position of a row's past
        """
        self.tokens.copy_(tokens)
        self.position.fill_(position)
        if self.group > 1:
            self.ancestors.copy_(ancestors)
        length = min(-(-(position + 1) // LENGTHS) * LENGTHS, self.decoder.dims.n_text_ctx)
        if self.records and length not in self.graphs:
            try:
                self.graphs[length] = self._record(length)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.records = False
                warnings.warn(f"decoder steps are not recorded as graphs, and slower for it: {error}", stacklevel=2)
        if length not in self.graphs:
            return self._compute(length)
        graph, logits = self.graphs[length]
        graph.replay()
        return logits

    def _compute(self, length: int) -> Tensor:
        d, places = self.decoder, torch.arange(length, device=self.decoder.device)
        past = (places <= self.position)[None]  # what lies behind is of other windows

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = (cache[layer] for cache in self.caches)
            keys.index_copy_(2, self.position, key)
            values.index_copy_(2, self.position, value)
            if self.group > 1:
                lineage = self.ancestors[:, :length], slice(None), places
                keys, values = keys[lineage].transpose(1, 2), values[lineage].transpose(1, 2)
            else:
                keys, values = keys[:, :, :length], values[:, :, :length]
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=past)

        x = d.embedding[self.tokens][:, None] + d.positions[self.position]
        return d.logits(d.run(x, self.heard, attend)[:, 0])

    def _record(self, length: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        stream = torch.cuda.Stream(self.decoder.device)
        stream.wait_stream(torch.cuda.current_stream(self.decoder.device))
        with torch.cuda.stream(stream):  # libraries choose their kernels and workspaces
            for _ in range(2):
                self._compute(length)
        torch.cuda.current_stream(self.decoder.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):  # on this device, which may not be the current one
            logits = self._compute(length)
        return graph, logits
