"""Greedy decoding with guesses: a small decoder says what comes next, the large one checks several tokens in one pass.

A pass of the decoder takes the time of reading its weights, whether it is given one token or five. So a distilled model
of two layers, which has its teacher's encoder, guesses a few tokens, and the teacher reads them all at once. Kept is
what the teacher itself chooses at each place under the same rules; behind its first other choice the guesses are
forgotten. The text is the teacher's whatever the guesses are; only time depends on them (Leviathan et al., 2023; of
Whisper, Gandhi et al., 2023).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from whisper.model import ModelDimensions, TextDecoder

from .decoder import Decoder, Rows, is_exact_in_half

MOST = 4
"""Tokens guessed at once: a pass of five is what the compiled loops do best."""
FIVE, FIVE_INT8 = 2.0, 2.5
"""What it takes, as a multiple of a pass of one token; weights in int8 are read faster, but not multiplied faster."""
LEARNT = 0.05
"""By how much an outcome moves the share of guesses that is expected to be right."""
TRY_AGAIN = 32
"""Tokens after which guesses are made again where they have not been worth it."""


class Draft:
    """The decoder that guesses, in int8: what it says is checked anyway.

    Attributes
    ----------
    decoder : of a Whisper with the vocabulary and the encoder of the one that checks
    trust : the share of its guesses that is expected to be right, as far as one came to check them
    alone : passes without guesses since there were any
    """

    def __init__(self, dims: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """From the dimensions and state dict of a Whisper; its encoder is not looked at."""
        self.dims = ModelDimensions(**dims)
        d = self.dims
        with torch.device("meta"):
            self.decoder = TextDecoder(d.n_vocab, d.n_text_ctx, d.n_text_state, d.n_text_head, d.n_text_layer)
        own = {key.removeprefix("decoder."): t for key, t in state.items() if key.startswith("decoder.")}
        for key, tensor in own.items():  # biases and norms are to be float32; matrices are copied to int8 anyway
            half = key.endswith("weight") and tensor.ndim == 2 and is_exact_in_half(tensor)
            own[key] = tensor.to(torch.float16 if half else torch.float32, copy=True)
        self.decoder.load_state_dict(own, assign=True)
        self.decoder.eval().requires_grad_(False)
        self._fast: Decoder | None = None
        self.trust, self.alone = 0.8, 0

    def fast_decoder(self) -> Decoder:
        """For inference; made when it is first asked for."""
        if self._fast is None:
            self._fast = Decoder(self, torch.float32, "int8")  # type: ignore[arg-type]
        return self._fast

    def learn(self, right: bool) -> None:
        """Note whether a guess was right."""
        self.trust += LEARNT * (right - self.trust)

    def refuse_unlike(self, dims: ModelDimensions) -> None:
        """Raise ValueError if this cannot guess for a Whisper of these dimensions."""
        for name in ("n_vocab", "n_mels", "n_audio_ctx", "n_audio_state", "n_text_ctx"):
            if getattr(self.dims, name) != getattr(dims, name):
                raise ValueError(
                    f"its {name} is {getattr(self.dims, name)}, not {getattr(dims, name)}: only a model that was "
                    "distilled from this one, with its encoder, can guess what it will say"
                )
        if self.dims.n_text_state != dims.n_audio_state:
            raise ValueError(f"its decoder is {self.dims.n_text_state} wide, the encoder {dims.n_audio_state}")


def is_worth_it(right: float, cost: float, five: float) -> bool:
    """Whether guesses give more tokens in a unit of time than a token at a time.

    right : probability that a guess is right, if those before it were
    cost, five : of a guess, and of checking all, as multiples of a pass of one token
    """
    return sum(right**k for k in range(MOST + 1)) > MOST * cost + five


class Drafted:
    """A sequence being decoded, as `Rows` of one, by a decoder that another guesses for."""

    def __init__(self, rows: Rows, draft: Draft, forbid: Callable[[Tensor, Tensor], None], end: int) -> None:
        """``forbid(logits, tokens)`` sets to −inf what may not follow; no guess goes past the token ``end``."""
        self.rows, self.draft, self.forbid, self.end = rows, draft, forbid, end
        self.guessing: Rows | None = None  # made when it is first asked, since it has to hear the window
        self.cost = bytes_read(draft.fast_decoder()) / bytes_read(rows.decoder)
        self.five = FIVE_INT8 if rows.decoder.reduced == "int8" else FIVE
        self.tokens = self.seen = torch.zeros(1, 0, dtype=torch.long)  # so far; and what `guessing` was given
        self.checked: deque[tuple[int, Tensor]] = deque()  # tokens that may come next, and the logits behind each

    def start(self, tokens: Tensor, *, at: Sequence[int] = (-1,)) -> Tensor:
        """The first tokens ``(1, n)`` → logits ``(1, len(at), vocabulary)`` behind those places."""
        self.tokens = tokens
        return self.rows.start(tokens, at=at)

    def step(self, tokens: Tensor) -> Tensor:
        """One more token ``(1,)`` → logits ``(1, vocabulary)`` behind it."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], 1)
        right = bool(self.checked) and self.checked[0][0] == int(tokens)
        if self.checked:
            self.draft.learn(right)
        if not right:
            self.checked = self._check()
        return self.checked.popleft()[1][None]

    def _check(self) -> deque[tuple[int, Tensor]]:
        """The last token and guesses behind it, each with the logits behind it."""
        known = self.tokens.shape[1]
        self.rows.position = known - 1  # what was checked in vain is written over
        guesses = self.tokens[:, :0]
        self.draft.alone += 1
        if self.draft.alone > TRY_AGAIN or is_worth_it(self.draft.trust, self.cost, self.five):
            guesses = self._guess(min(MOST, self.rows.decoder.dims.n_text_ctx - known))
            self.draft.alone = 0
        ahead = torch.cat([self.tokens[:, -1:], guesses], 1)
        return deque(zip(ahead[0].tolist(), self.rows.extend(ahead)[0]))

    def _guess(self, most: int) -> Tensor:
        """Up to so many tokens ``(1, n)`` that may come next."""
        if self.guessing is None:
            decoder = self.draft.fast_decoder()
            self.guessing = Rows(decoder, decoder.hear(self.rows.heard.features))
        guesses = self.tokens[:, :0]
        shared = min(self.seen.shape[1], self.tokens.shape[1] - 1)
        same = (self.seen[0, :shared] == self.tokens[0, :shared]).long().cumprod(0)
        self.guessing.position = int(same.sum())
        while guesses.shape[1] < most:
            self.seen = torch.cat([self.tokens, guesses], 1)
            logits = self.guessing.extend(self.seen[:, self.guessing.position :], at=slice(-1, None))[:, 0]
            self.forbid(logits, self.seen)
            guesses = torch.cat([guesses, logits.argmax(-1, keepdim=True)], 1)
            if guesses[0, -1] == self.end:
                break
        return guesses


def bytes_read(decoder: Decoder) -> int:
    """Of its weights, by a step."""
    if decoder.weights is not None:
        return sum(part.nbytes for part in decoder.weights)
    parts = (part for _, inward, biases, *others in decoder.blocks for part in (*inward, *biases, *others))
    return decoder.projection.nbytes + sum(part.nbytes for part in parts)
