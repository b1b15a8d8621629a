"""One decoder step in shapes that never change, so that a GPU can record it once as a graph and replay it.

A step launches a dozen small kernels a layer, and a GPU computes them faster than Python launches them. Replaying a
graph is one launch. What a graph was recorded with stays where it is in memory, so tokens, position, caches and the
encoded audio are copied to their places before it runs.
"""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .decoder import Decoder
    from .kv_cache import EncodedAudio

LENGTH_BUCKET = 64
"""A step attends to a multiple of so many positions: there is a graph for each multiple that is reached."""
MAX_CACHED = 2
"""Steps that are kept for the next window: one try in a beam and one at a temperature use different ones."""


class StaticStep:
    """The step of ``n_group`` sequences of each recording; see `acquire`.

    Attributes
    ----------
    cache : tuple of Tensor
        Keys and values of the sequences' tokens, as `Decoder.empty_cache` makes them.
    """

    def __init__(self, decoder: Decoder, audio: EncodedAudio, n_group: int) -> None:
        self.decoder, self.n_group = decoder, n_group
        rows, device = len(audio.features) * n_group, decoder.device
        self.cache = decoder.empty_cache(rows)
        for part in self.cache:
            part.zero_()  # what is masked is multiplied by 0, which must not meet a NaN
        self.audio = audio._replace(keys=torch.empty_like(audio.keys), values=torch.empty_like(audio.values))
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.cache_indices = torch.zeros(rows, decoder.dims.n_text_ctx, dtype=torch.long, device=device)
        self.records = device.type == "cuda"
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    @classmethod
    def acquire(cls, owner: object, decoder: Decoder, audio: EncodedAudio, n_group: int) -> StaticStep:
        """Return a step for this audio, with the graphs of an earlier one of these shapes if there is any.

        It belongs to ``owner`` alone, and is kept for others when that is gone.
        """
        shapes = (audio.keys.shape, audio.keys.dtype, n_group)
        cached = decoder.cached_steps
        step = None
        for _ in range(len(cached)):  # each is taken out before it is looked at: other threads take and add some
            try:
                found = cached.popleft()
            except IndexError:
                break
            if (found.audio.keys.shape, found.audio.keys.dtype, found.n_group) == shapes:
                step = found
                break
            cached.append(found)
        step = step or cls(decoder, audio, n_group)
        step.audio.keys.copy_(audio.keys)
        step.audio.values.copy_(audio.values)
        weakref.finalize(owner, cached.append, step).atexit = False
        return step

    @torch.no_grad()
    def __call__(self, tokens: Tensor, position: int, cache_indices: Tensor) -> Tensor:
        """Take the next token of every row → logits, which the next call writes over.

        Parameters
        ----------
        tokens : Tensor, shape (rows,)
        position : int
            Number of tokens before these.
        cache_indices : Tensor, shape (rows, positions)
            Which row's cache holds a position of a row's past.

        Returns
        -------
        float32 Tensor, shape (rows, vocabulary)
        """
        self.tokens.copy_(tokens)
        self.position.fill_(position)
        if self.n_group > 1:
            self.cache_indices.copy_(cache_indices)
        length = min(-(-(position + 1) // LENGTH_BUCKET) * LENGTH_BUCKET, self.decoder.dims.n_text_ctx)
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
        mask = (places <= self.position)[None]  # what lies behind is of other windows

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = (part[layer] for part in self.cache)
            keys.index_copy_(2, self.position, key)
            values.index_copy_(2, self.position, value)
            if self.n_group > 1:
                lineage = self.cache_indices[:, :length], slice(None), places
                keys, values = keys[lineage].transpose(1, 2), values[lineage].transpose(1, 2)
            else:
                keys, values = keys[:, :, :length], values[:, :, :length]
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

        x = d.embedding[self.tokens][:, None] + d.positions[self.position]
        return d.logits(d.forward(x, self.audio, attend)[:, 0], self.audio)

    def _record(self, length: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        stream = torch.cuda.Stream(self.decoder.device)
        stream.wait_stream(torch.cuda.current_stream(self.decoder.device))
        with torch.cuda.stream(stream):  # libraries choose their kernels and workspaces
            for _ in range(2):
                self._compute(length)
        torch.cuda.current_stream(self.decoder.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # on this device, which may not be the current one; what other threads ask of it meanwhile does not matter
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            logits = self._compute(length)
        return graph, logits
