"""The text of a stream: what is final, what is not yet, and where the next pass may start."""

from __future__ import annotations

from collections.abc import Sequence

from whisper.audio import FRAMES_PER_SECOND

from .hypothesis import TimedWord
from .messages import Final, Message, Partial, Word
from .policies import num_agreed, num_attended

PROMPT_TOKENS = 48
"""So many of the latest tokens before a pass are its prompt."""
SHORT_SECONDS = 8.0
"""A pass that is shorter is not cut."""
LONG_SECONDS = 15.0
"""A pass that is longer is cut behind a final word, if no sentence has ended in it."""
CONTEXT_SECONDS = 3.0
"""So much of a pass the next one hears again at least: with less, the words after a cut are guessed."""
STUCK_SECONDS = 2.0
"""Where nothing follows the final words for so long, the next pass starts behind them: decoders like to end at a full
stop, whatever is said after it."""
LAST_WORD_SECONDS = 0.6
"""A word that none follows has to have ended so much longer ago."""
CUT_SECONDS = 0.3
"""Times of words are no better than this: so far from them, a quiet place to cut at is looked for."""


class TextTracker:
    """Decides which words are final.

    Parameters
    ----------
    policy : {"align_att", "local_agreement"}
        See `whisper_at.live.policies`.
    edge : float
        With AlignAtt, words that attend to so many last seconds are not final.
    prompt : sequence of int
        Tokens of the text before.
    position : float
        Where the stream starts, in seconds.

    Attributes
    ----------
    prompt : list of int
        Tokens of the text before the pass.
    finals, partial : list of TimedWord
        Words of the pass.
    last_end : float
        End of the last final word, in seconds.
    """

    def __init__(self, policy: str, edge: float, prompt: Sequence[int], position: float) -> None:
        self.policy, self.edge = policy, edge
        self.prompt = list(prompt)[-PROMPT_TOKENS:]
        self.finals: list[TimedWord] = []
        self.partial: list[TimedWord] = []
        self.last_end = position

    def update(self, words: Sequence[TimedWord], heard_until: float) -> list[Message]:
        """Take what a pass, which ends at `heard_until` seconds, makes of the sound behind the final words."""
        if self.policy == "local_agreement":
            count = num_agreed(self.partial, words)
        else:
            count = num_attended(words, heard_until - self.edge, heard_until - self.edge - LAST_WORD_SECONDS)
        return self._settle(words, count)

    def finish(self) -> list[Message]:
        """Let all partial words be final, at the end of the stream."""
        return self._settle(self.partial, len(self.partial))

    def forget_partial(self) -> list[Message]:
        """Drop partial words where there is nobody to say them."""
        return self._settle((), 0)

    def cut(self, start: int, end: int) -> tuple[int, int] | None:
        """Return between which frames the pass after the one from `start` to `end` may start; None for the same start.

        Words before that go to the prompt.
        """
        if self.finals and not self.partial and end / FRAMES_PER_SECOND - self.last_end > STUCK_SECONDS:
            return self._cut_behind(len(self.finals) - 1)
        seconds = (end - start) / FRAMES_PER_SECOND
        if seconds < SHORT_SECONDS:
            return None
        latest = end / FRAMES_PER_SECOND - CONTEXT_SECONDS
        settled = [i for i, word in enumerate(self.finals) if word.end <= latest]
        sentences = [i for i in settled if self.finals[i].ends_sentence]
        if sentences:
            return self._cut_behind(sentences[-1])
        if seconds > LONG_SECONDS and settled:
            return self._cut_behind(settled[-1])
        return None

    def cut_all(self) -> None:
        """Let the pass that comes next start behind all that is final."""
        self._to_prompt(len(self.finals))

    def _cut_behind(self, index: int) -> tuple[int, int]:
        """Return where there may be quiet between a final word and the next."""
        word, following = self.finals[index], [*self.finals[index + 1 :], *self.partial][:1]
        first = max(word.end - CUT_SECONDS, (word.start + word.end) / 2)
        last = word.end + CUT_SECONDS
        for after in following:
            last = max(word.end, min(after.start + CUT_SECONDS, (after.start + after.end) / 2))
        self._to_prompt(index + 1)
        return round(first * FRAMES_PER_SECOND), round(last * FRAMES_PER_SECOND)

    def _to_prompt(self, count: int) -> None:
        tokens = [token for word in self.finals[:count] for token in word.tokens]
        self.prompt = [*self.prompt, *tokens][-PROMPT_TOKENS:]
        self.finals = self.finals[count:]

    def _settle(self, words: Sequence[TimedWord], count: int) -> list[Message]:
        final, partial = list(words[:count]), list(words[count:])
        messages: list[Message] = []
        if final:
            messages.append(Final(_as_words(final)))
            self.finals += final
            self.last_end = final[-1].end
        if _as_words(partial) != _as_words(self.partial):
            messages.append(Partial(_as_words(partial)))
        self.partial = partial
        return messages


def even(frame: int) -> int:
    """Return the start of the encoder position, of two frames, that a frame is in."""
    return frame - frame % 2


def _as_words(words: Sequence[TimedWord]) -> tuple[Word, ...]:
    return tuple(Word(word.text, word.start, word.end, word.probability, word.tokens) for word in words)
