"""What the decoder makes of the sound so far: words after those that are final, with times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from whisper.audio import FRAMES_PER_SECOND
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.timing import median_filter
from whisper.tokenizer import get_tokenizer

from ..engine.alignment import AlignmentModel, FastMedianSort, add_word_timestamps
from ..engine.kv_cache import EncodedAudio
from ..fallback import Thresholds
from ..segments import PUNCTUATION
from ..tagging.timeline import POSITION_FRAMES
from ..windows import Window

if TYPE_CHECKING:
    from ..model import WhisperAT

SECONDS_PER_POSITION = POSITION_FRAMES / FRAMES_PER_SECOND
MEDIAN_POSITIONS = 7
"""Width of the median filter over positions, as of openai-whisper's word timing."""
THRESHOLDS = Thresholds(compression_ratio=2.4, logprob=-1.0, no_speech=0.6)
"""When a hypothesis looks bad: openai-whisper's defaults."""
SPARE_TOKENS = 16
TOKENS_PER_SECOND = 8
"""A hypothesis has no more tokens than so many for each second without words yet, and some: a loop ends there."""
MAX_TOKENS = 120
FAST_WORDS = 4
FAST_SECONDS = 0.35
"""So many words take so long at least."""
REWIND_SECONDS = 0.8
"""A word that attends to sound so much before the words before it says again what was said: it is left out."""


class TimedWord(NamedTuple):
    """A word of a hypothesis.

    Attributes
    ----------
    text : str
        With the space before it, and its punctuation.
    tokens : tuple of int
    start, end : float
        Seconds on the stream's clock.
    probability : float
    attends_until : float
        Seconds of the latest position that any of its tokens attends to most.
    """

    text: str
    tokens: tuple[int, ...]
    start: float
    end: float
    probability: float
    attends_until: float

    @property
    def letters(self) -> str:
        """The word without case, space and punctuation."""
        return "".join(filter(str.isalnum, self.text)).lower()

    @property
    def ends_sentence(self) -> bool:
        """Whether a sentence ends with it."""
        return self.text.rstrip("\"'”’)]")[-1:] in tuple(".?!。？！…")


def num_sayable(words: Sequence[TimedWord]) -> int:
    """Return how many words come before those that nobody says so fast: a decoder that repeats itself in a pause."""
    for i in range(len(words) - FAST_WORDS + 1):
        if words[i + FAST_WORDS - 1].end - words[i].start < FAST_SECONDS:
            return i
    return len(words)


class WordDecoder:
    """Decodes a pass after a prompt and the words that are final, and times what follows them.

    Parameters
    ----------
    model : WhisperAT
        Its decoder is openai-whisper's as installed.
    language : str
        Code of the language that is spoken.
    task : {"transcribe", "translate"}
    options : dict
        Of ``DecodingOptions``: beams, suppressed tokens.
    """

    def __init__(self, model: WhisperAT, language: str, task: str, options: dict[str, Any]) -> None:
        self.model = model
        self.tokenizer = get_tokenizer(
            model.is_multilingual, num_languages=model.num_languages, language=language, task=task
        )
        # openai-whisper divides by the number of new tokens, which may be none, unless it is given a penalty
        own = {"language": language, "task": task, "without_timestamps": True}
        self.options = {"length_penalty": 1.0, **options, **own}

    def __call__(
        self, audio: EncodedAudio, window: Window, prompt: Sequence[int], finals: Sequence[TimedWord], last_end: float
    ) -> list[TimedWord]:
        """Return the words that follow `finals`; none if they look made up.

        Parameters
        ----------
        audio : EncodedAudio
            The pass.
        window : Window
            Where it lies.
        prompt : sequence of int
            Tokens of the text before it.
        finals : sequence of TimedWord
            Words of the pass that are final.
        last_end : float
            Where the last final word ends, also of one before the pass, in seconds.
        """
        prefix = [token for word in finals for token in word.tokens]
        without_words = window.end / FRAMES_PER_SECOND - max(last_end, window.seek / FRAMES_PER_SECOND)
        room = min(MAX_TOKENS, SPARE_TOKENS + round(TOKENS_PER_SECOND * without_words))
        for before in (list(prompt), []) if prompt else ([],):
            result = self._decode(audio, before, prefix, room)
            if not THRESHOLDS.failed(result):  # a prompt may make it repeat itself
                break
        else:
            return []
        tokens = [token for token in result.tokens if token < self.tokenizer.eot]
        if not tokens or THRESHOLDS.is_silent(result):
            return []
        words = self._timed(audio, window, prefix, tokens, last_end)
        return words[:-1] if len(result.tokens) >= room else words  # that one may have been cut off

    def _decode(self, audio: EncodedAudio, prompt: list[int], prefix: list[int], room: int) -> DecodingResult:
        options = DecodingOptions(
            **self.options,
            prompt=prompt or None,
            prefix=prefix or None,
            suppress_blank=not prefix,  # nothing may follow them
            sample_len=room,
        )
        (result,) = cast(list[DecodingResult], self.model.decode(audio, options))
        return result

    def _timed(
        self, audio: EncodedAudio, window: Window, prefix: list[int], tokens: list[int], last_end: float
    ) -> list[TimedWord]:
        offset, end = window.seek / FRAMES_PER_SECOND, window.end / FRAMES_PER_SECOND
        text_tokens = [*prefix, *tokens]
        model = AlignmentModel(self.model, audio, logits_from=len(self.tokenizer.sot_sequence) + len(prefix))
        segment: dict[str, Any] = {"seek": window.seek, "start": offset, "end": end, "tokens": text_tokens}
        add_word_timestamps(
            segments=[segment],
            model=model,
            tokenizer=self.tokenizer,
            mel=audio.features[0],
            num_frames=window.size,
            last_speech_timestamp=last_end,
        )
        attended = self._attended(model.scores, window)
        pieces, piece_tokens = self.tokenizer.split_to_word_tokens(text_tokens)
        words: list[TimedWord] = []
        furthest = last_end
        piece = position = 0
        for word in segment["words"]:
            text, begin = "", position
            while text != word["word"] and piece < len(pieces):  # punctuation is a piece of its own
                text += pieces[piece]
                position += len(piece_tokens[piece])
                piece += 1
            first = max(begin, len(prefix))
            own = tuple(text_tokens[first:position])
            text = self.tokenizer.decode(list(own)) if begin < len(prefix) else word["word"]
            if not own or (begin < len(prefix) and not text.strip(PUNCTUATION + " ")):
                continue  # a final word, or its punctuation, which came too late
            latest = offset + max(attended[i] for i in self._lettered(text_tokens, first, position))
            if latest < furthest - REWIND_SECONDS:
                break
            furthest = max(furthest, latest)
            start, stop = (float(max(word[name], last_end)) for name in ("start", "end"))
            words.append(TimedWord(text, own, start, max(start, stop), float(word["probability"]), latest))
        return words[: num_sayable(words)]

    def _lettered(self, tokens: list[int], first: int, end: int) -> Sequence[int]:
        """Return the places of a word's tokens but for its punctuation, which attends to the pause behind it."""
        lettered = [i for i in range(first, end) if self.tokenizer.decode([tokens[i]]).strip(PUNCTUATION + " ")]
        return lettered or range(first, end)

    def _attended(self, scores: list[Tensor], window: Window) -> list[float]:
        """Return the seconds from the window's start that each text token attends to most.

        As to time words, what all tokens attend to alike does not count, and single positions do not either.
        """
        heads = self.model.alignment_heads.indices().T.tolist()
        weights = torch.stack([scores[layer][0, head] for layer, head in heads])
        weights = weights[:, :, : window.size // POSITION_FRAMES].softmax(-1)
        std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
        with FastMedianSort():
            positions = median_filter((weights - mean) / std, MEDIAN_POSITIONS).mean(0).argmax(-1)
        return (positions[len(self.tokenizer.sot_sequence) : -1] * SECONDS_PER_POSITION).tolist()
