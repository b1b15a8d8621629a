"""A frozen pretrained encoder: a front end, L transformer blocks and a final norm."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .blocks import Block, RelativeBias
from .frontends import SAMPLE_RATE, FrontEnd


class Hidden(NamedTuple):
    """Output of a backbone for a batch of clips.

    Attributes
    ----------
    states : tuple of L+1 Tensors, shape (batch, tokens, dim)
        Input of the first block, then the output of every block; the last one is after the encoder's final norm, if
        the family has one.
    mask : bool Tensor, shape (batch, tokens)
        Tokens that are real and not padding.
    special : int
        Number of tokens at the front that do not come from the sound (CLS, DIST).
    prompts : slice or None
        Positions of prompts among the tokens, if a method leaves them there.
    """

    states: tuple[Tensor, ...]
    mask: Tensor
    special: int
    prompts: slice | None = None


class Tokens(NamedTuple):
    """A sequence on its way through the blocks.

    Attributes
    ----------
    values : Tensor, shape (batch, tokens, dim)
        The tokens.
    mask, special, prompts
        As in `Hidden`.
    """

    values: Tensor
    mask: Tensor
    special: int
    prompts: slice | None = None


class TokenPatch(nn.Module):
    """Base class of methods that add tokens: once before the first block, or around every block."""

    def prepare(self, tokens: Tokens) -> Tokens:
        """Return the sequence that goes into the encoder."""
        return tokens

    def before_block(self, index: int, tokens: Tokens) -> Tokens:
        """Return the input of the block with this index (from 0)."""
        return tokens

    def after_block(self, index: int, tokens: Tokens) -> Tokens:
        """Return what is kept of the block's output; it has as many tokens as there were before the block."""
        return tokens


class Backbone(nn.Module):
    """A frozen encoder, with what `whisper_at.adapt.adapt` added to it.

    It computes the same for a clip alone, in a batch, and padded.

    Parameters
    ----------
    name : str
        Name that it was loaded by.
    family : {"whisper", "ast", "wav2vec2", "hubert", "wavlm"}
        Architecture.
    front : FrontEnd
        From waveforms to tokens.
    blocks : list of Block
        The L transformer blocks.
    norm : nn.LayerNorm or None
        Final norm; None where blocks normalise their own output (wav2vec 2.0 base …).
    relative : RelativeBias, optional
        WavLM's relative bias.

    Attributes
    ----------
    sample_rate : int
        Sample rate of the waveforms, 16000 Hz.
    sequence : nn.ModuleDict of TokenPatch
        Methods that add tokens, in the order in which they were given.
    methods : list of dict
        The methods that `adapt` was given, complete with defaults; empty for the plain encoder.
    tuned_norms : set of str
        Names of pretrained LayerNorm parameters that train because of ``layer_norm`` or ``linear_probe``.
    """

    front: FrontEnd
    blocks: nn.ModuleList
    norm: nn.LayerNorm | None

    def __init__(
        self,
        name: str,
        family: str,
        front: FrontEnd,
        blocks: list[Block],
        norm: nn.LayerNorm | None,
        relative: RelativeBias | None = None,
    ):
        super().__init__()
        self.name, self.family, self.sample_rate = name, family, SAMPLE_RATE
        self.front, self.blocks, self.norm, self.relative = front, nn.ModuleList(blocks), norm, relative
        self.sequence = nn.ModuleDict()
        self.methods: list[dict[str, Any]] = []
        self.tuned_norms: set[str] = set()
        self.requires_grad_(False).eval()
        for module in self.modules():  # statistics of pretrained parts are constants: no checkpoint holds them (S2)
            for key, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(key, buffer, persistent=False)

    @property
    def width(self) -> int:
        """Width of a token (D)."""
        return cast(Block, self.blocks[0]).attn.o.out_features

    @property
    def layers(self) -> int:
        """Number of blocks (L)."""
        return len(self.blocks)

    @property
    def frame_rate(self) -> float | None:
        """Tokens per second; None for AST, whose tokens are patches."""
        return self.front.frame_rate

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Hidden:
        """Compute the hidden states of a batch of clips.

        Parameters
        ----------
        waveforms : float32 Tensor, shape (batch, samples)
            Clips at 16 kHz; samples past the end of a clip do not matter.
        lengths : int Tensor, shape (batch,), optional
            Samples of each clip; by default, all are as long as the batch. Where the padding is meant to be a part of
            the clip (WhisPAr's 30 s), count it.

        Returns
        -------
        Hidden

        Raises
        ------
        ValueError
            If a clip is too short to make a token, longer than Whisper's 30 s, or said to be longer than the batch.
        """
        if waveforms.ndim != 2:
            raise ValueError(f"waveforms must have shape (batch, samples), not {tuple(waveforms.shape)}")
        samples = waveforms.shape[1]
        if lengths is None:
            self._check_lengths(samples, samples, samples)
            sizes = torch.full((len(waveforms),), samples, device=waveforms.device)
        else:
            sizes = lengths.to(waveforms.device)
            if sizes.device.type != "meta":
                self._check_lengths(int(sizes.min()), int(sizes.max()), samples)
        values, mask = self.front(waveforms, sizes)
        return self.encode(values, mask, padded=lengths is not None)

    def _check_lengths(self, shortest: int, longest: int, samples: int) -> None:
        if longest > samples:
            raise ValueError(f"lengths says {longest} samples where waveforms have {samples}; pad them or correct it")
        if shortest < self.front.min_samples:
            raise ValueError(
                f"a clip has {shortest} samples, but {self.name} needs at least {self.front.min_samples} for one "
                "token; leave it out, or pad it and count the padding"
            )
        if self.front.max_samples is not None and longest > self.front.max_samples:
            seconds = (self.front.max_samples + 1) / self.sample_rate
            raise ValueError(f"a clip has {longest} samples, but {self.name} takes at most {seconds:g} s; cut it")

    @property
    def num_frozen_blocks(self) -> int | None:
        """Number of blocks at the front that no training changes, or None if it changes their input, too.

        L + 1 if nothing in the encoder trains, and L if only its final norm does.
        """
        if any(parameter.requires_grad for parameter in self.front.parameters()):
            return None
        if self.sequence or (self.relative is not None and any(p.requires_grad for p in self.relative.parameters())):
            return 0
        parts = [*self.blocks, *([] if self.norm is None else [self.norm])]
        trained = [i for i, part in enumerate(parts) if any(p.requires_grad for p in part.parameters())]
        return trained[0] if trained else self.layers + 1

    def prepare_tokens(self, values: Tensor, mask: Tensor) -> Tokens:
        """Return the input of the first block: the front end's tokens, and those that methods add to them."""
        tokens = Tokens(values, mask, self.front.special)
        for patch in self._token_patches():
            tokens = patch.prepare(tokens)
        return tokens

    def _token_patches(self) -> list[TokenPatch]:
        return cast("list[TokenPatch]", list(self.sequence.values()))

    def encode(self, values: Tensor, mask: Tensor, padded: bool = True) -> Hidden:
        """Compute hidden states from the front end's output.

        Parameters
        ----------
        values : Tensor, shape (batch, tokens, dim)
            Tokens.
        mask : bool Tensor, shape (batch, tokens)
            Tokens that are real and not padding.
        padded : bool
            Whether the mask may be False somewhere; without padding, attention is not masked, which is faster.

        Returns
        -------
        Hidden
        """
        tokens = self.prepare_tokens(values, mask)
        return self._finish([tokens.values, *self._run_blocks(tokens, range(self.layers), padded)], tokens)

    def frozen_states(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what training does not change of the hidden states, for `encode_from`.

        Parameters
        ----------
        waveforms, lengths
            As of `forward`.

        Returns
        -------
        states : Tensor, shape (batch, num_frozen_blocks + 1, tokens, dim)
            The front end's output and those of the frozen blocks.
        mask : bool Tensor, shape (batch, tokens)
            Tokens that are real and not padding.

        Raises
        ------
        ValueError
            If there is no such part, or no other.
        """
        if (count := self.num_frozen_blocks) is None or count > self.layers:
            raise ValueError(f"{'all' if count is None else 'nothing'} of {self.name} is trained")
        values, mask = self.front(waveforms, lengths)
        tokens = Tokens(values, mask, self.front.special)
        return torch.stack([values, *self._run_blocks(tokens, range(count), padded=True)], 1), mask

    def encode_from(self, states: Tensor, mask: Tensor) -> Hidden:
        """Compute hidden states from `frozen_states`, or from the last of them if no earlier ones are needed."""
        tokens = self.prepare_tokens(states[:, -1], mask)
        blocks = range(self.num_frozen_blocks or 0, self.layers)
        return self._finish(
            [*states[:, :-1].unbind(1), tokens.values, *self._run_blocks(tokens, blocks, padded=True)], tokens
        )

    def _run_blocks(self, tokens: Tokens, indices: range, padded: bool) -> list[Tensor]:
        """Return the outputs of consecutive blocks."""
        patches = self._token_patches()
        states: list[Tensor] = []
        bias: Tensor | None = None
        for i in indices:
            inner = tokens
            for patch in patches:
                inner = patch.before_block(i, inner)
            size = inner.values.shape[1]
            if self.relative is not None and (bias is None or bias.shape[-1] != size):
                bias = self.relative(size)
            block = self.blocks[i]
            inner = inner._replace(values=block(inner.values, inner.mask if padded else None, bias))
            for patch in reversed(patches):
                inner = patch.after_block(i, inner)
            tokens = tokens._replace(values=inner.values)
            states.append(tokens.values)
        return states

    def _finish(self, states: list[Tensor], tokens: Tokens) -> Hidden:
        if self.norm is not None:
            states[-1] = self.norm(states[-1])
        return Hidden(tuple(states), tokens.mask, tokens.special, tokens.prompts)
