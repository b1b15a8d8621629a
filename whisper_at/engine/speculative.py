"""Speculative greedy decoding: a small decoder drafts tokens, the large one verifies several of them in one pass.

A pass of the decoder takes the time of reading its weights, whether it is given one token or five. So a distilled model
of two layers, which has its teacher's encoder, drafts a few tokens, and the teacher reads them all at once. A token is
accepted if it is what the teacher itself chooses at its place under the same rules; behind the first other choice the
draft is dropped. The text is the teacher's whatever is drafted; only time depends on it (Leviathan et al., 2023; of
Whisper, Gandhi et al., 2023).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from whisper.model import ModelDimensions, TextDecoder

from .decoder import Decoder
from .kv_cache import DecoderState
from .weights import stored_as

NUM_DRAFT_TOKENS = 4
"""Tokens drafted at once: a pass of five is what the compiled kernels do best."""
VERIFY_COST, VERIFY_COST_INT8 = 2.0, 2.5
"""Time of verifying them, in passes of one token: weights in int8 are read faster, but not multiplied faster."""
EMA_RATE = 0.05
"""By how much an outcome moves the acceptance rate."""
MAX_STEPS_WITHOUT_DRAFT = 32
"""Steps after which tokens are drafted again where it has not been worth it."""


class DraftModel:
    """The decoder that drafts, in int8: its tokens are verified anyway.

    Parameters
    ----------
    dims : mapping
        Dimensions of a Whisper with the vocabulary and the encoder of the model that verifies.
    state : mapping of Tensor
        Its state dict; the encoder is not looked at.

    Attributes
    ----------
    acceptance_rate : float
        Running mean of the share of its tokens that were accepted, of those that were reached.
    steps_without_draft : int
        Steps since it last drafted.
    """

    def __init__(self, dims: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        d = self.dims = ModelDimensions(**dims)
        with torch.device("meta"):
            self.decoder = TextDecoder(d.n_vocab, d.n_text_ctx, d.n_text_state, d.n_text_head, d.n_text_layer)
        own = {key.removeprefix("decoder."): t for key, t in state.items() if key.startswith("decoder.")}
        for key, tensor in own.items():  # biases and norms are to be float32; matrices are copied to int8 anyway
            own[key] = stored_as(tensor, half=key.endswith("weight") and tensor.ndim == 2)
        self.decoder.load_state_dict(own, assign=True)
        self.decoder.eval().requires_grad_(False)
        self._fast: Decoder | None = None
        self.acceptance_rate, self.steps_without_draft = 0.8, 0

    def fast_decoder(self) -> Decoder:
        """Return it for inference; made when it is first asked for."""
        if self._fast is None:
            self._fast = Decoder(self, torch.float32, "int8")
        return self._fast

    def update_acceptance_rate(self, accepted: bool) -> None:
        """Count whether a drafted token was accepted."""
        self.acceptance_rate += EMA_RATE * (accepted - self.acceptance_rate)

    def check_compatible(self, dims: ModelDimensions) -> None:
        """Raise ValueError if it cannot draft for a Whisper of these dimensions."""
        for name in ("n_vocab", "n_mels", "n_audio_ctx", "n_audio_state", "n_text_ctx"):
            if getattr(self.dims, name) != getattr(dims, name):
                raise ValueError(
                    f"its {name} is {getattr(self.dims, name)}, not {getattr(dims, name)}: only a model that was "
                    "distilled from this one, with its encoder, can draft for it"
                )
        if self.dims.n_text_state != dims.n_audio_state:
            raise ValueError(f"its decoder is {self.dims.n_text_state} wide, the encoder {dims.n_audio_state}")


def is_worth_it(acceptance_rate: float, draft_cost: float, verify_cost: float) -> bool:
    """Return whether drafting gives more tokens per time than a token at a time.

    Parameters
    ----------
    acceptance_rate : float
        Probability that a token is accepted, if those before it were.
    draft_cost, verify_cost : float
        Time of drafting one token, and of verifying all, in passes of one token.

    Examples
    --------
    >>> [is_worth_it(rate, draft_cost=0.1, verify_cost=2.0) for rate in (0.5, 0.7)]
    [False, True]
    """
    expected_tokens = sum(acceptance_rate**k for k in range(NUM_DRAFT_TOKENS + 1))
    return expected_tokens > NUM_DRAFT_TOKENS * draft_cost + verify_cost


class SpeculativeDecoder:
    """One sequence being decoded, to be used as a `DecoderState`, with a draft model.

    Parameters
    ----------
    target : DecoderState
        Of the model whose text it is.
    draft_model : DraftModel
    apply_rules : callable
        ``apply_rules(logits, tokens)`` sets the logits of what may not follow to −inf.
    eot : int
        Token that ends a text; nothing is drafted behind it.
    """

    def __init__(
        self, target: DecoderState, draft_model: DraftModel, apply_rules: Callable[[Tensor, Tensor], None], eot: int
    ) -> None:
        self.target, self.draft_model, self.apply_rules, self.eot = target, draft_model, apply_rules, eot
        self.draft: DecoderState | None = None  # made when it is first used, since it has to encode the window
        self.draft_tokens = torch.zeros(1, 0, dtype=torch.long)  # all that `draft` was given
        self.draft_cost = draft_model.fast_decoder().weight_bytes() / target.decoder.weight_bytes()
        self.verify_cost = VERIFY_COST_INT8 if target.decoder.compute_type == "int8" else VERIFY_COST
        self.tokens = torch.zeros(1, 0, dtype=torch.long)
        self.verified: deque[tuple[int, Tensor]] = deque()  # tokens that may come next, and the logits behind each

    def prefill(self, tokens: Tensor, *, logits_at: Sequence[int] = (-1,)) -> Tensor:
        """Take the first tokens ``(1, n)`` → logits ``(1, len(logits_at), vocabulary)`` there."""
        self.tokens = tokens
        return self.target.prefill(tokens, logits_at=logits_at)

    def step(self, token: Tensor) -> Tensor:
        """Take one more token ``(1,)`` → logits ``(1, vocabulary)`` of the next."""
        self.tokens = torch.cat([self.tokens, token[:, None]], 1)

        # 1. Accepted: the token was drafted, so the logits behind it are known.
        accepted = bool(self.verified) and self.verified[0][0] == int(token)
        if self.verified:
            self.draft_model.update_acceptance_rate(accepted)
        if accepted:
            return self.verified.popleft()[1][None]

        # 2. Draft the tokens that may follow it, if that is likely to save time.
        known = self.tokens.shape[1]
        drafted = self.tokens[:, :0]
        self.draft_model.steps_without_draft += 1
        if self.draft_model.steps_without_draft > MAX_STEPS_WITHOUT_DRAFT or is_worth_it(
            self.draft_model.acceptance_rate, self.draft_cost, self.verify_cost
        ):
            drafted = self._draft(min(NUM_DRAFT_TOKENS, self.target.decoder.dims.n_text_ctx - known))
            self.draft_model.steps_without_draft = 0

        # 3. Verify all in one pass of the target, over what it was given of rejected tokens.
        self.target.position = known - 1
        new = torch.cat([token[:, None], drafted], 1)
        self.verified = deque(zip(new[0].tolist(), self.target.extend(new)[0]))
        return self.verified.popleft()[1][None]

    def _draft(self, n: int) -> Tensor:
        """Draft up to ``n`` tokens → ``(1, n)``."""
        if self.draft is None:
            decoder = self.draft_model.fast_decoder()
            self.draft = DecoderState(decoder, decoder.precompute_cross_kv(self.target.audio.features))
        shared = min(self.draft_tokens.shape[1], self.tokens.shape[1] - 1)
        same = self.draft_tokens[0, :shared] == self.tokens[0, :shared]
        self.draft.position = int(same.long().cumprod(0).sum())
        drafted = self.tokens[:, :0]
        while drafted.shape[1] < n and not (drafted.shape[1] and drafted[0, -1] == self.eot):
            self.draft_tokens = torch.cat([self.tokens, drafted], 1)
            new = self.draft_tokens[:, self.draft.position :]
            logits = self.draft.extend(new, logits_at=slice(-1, None))[:, 0]
            self.apply_rules(logits, self.draft_tokens)
            drafted = torch.cat([drafted, logits.argmax(-1, keepdim=True)], 1)
        return drafted
