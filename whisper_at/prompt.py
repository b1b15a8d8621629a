"""The prompt of each window: the text so far, and an initial prompt that may be carried along."""

from __future__ import annotations

from whisper.tokenizer import Tokenizer

from .decoding import encode_text


class Prompt:
    """The text so far, and the part of it that the next window is given as a prompt.

    An initial prompt that is carried along comes first, the last tokens of one that fills the room for prompts, and
    the text so far has the rest of the room.
    """

    def __init__(self, tokenizer: Tokenizer, initial: str | None, carry: bool, n_text_ctx: int) -> None:
        self.initial = encode_text(tokenizer, initial) if initial is not None else []
        self.room = n_text_ctx // 2 - 1  # upstream gives the prompt room that is not there, and loses it
        self.carried = self.initial[-self.room :] if carry else []
        self.carry = carry
        self._tokens = list(self.initial)
        self._start = 0

    @property
    def text_tokens(self) -> list[int]:
        """Every token written, without the initial prompt."""
        return self._tokens[len(self.initial) :]

    def tokens(self) -> list[int]:
        """Return the prompt of the next window."""
        if not self.carry:
            return self._tokens[self._start :]
        history = self._tokens[max(len(self.initial), self._start) :]
        return self.carried + history[max(0, len(history) - self.room + len(self.carried)) :]

    def extend(self, tokens: list[int]) -> None:
        """Add the tokens of a segment."""
        self._tokens.extend(tokens)

    def forget(self) -> None:
        """Leave everything so far out of later prompts."""
        self._start = len(self._tokens)
