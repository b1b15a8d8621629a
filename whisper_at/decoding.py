"""Decoding of windows under openai-whisper's rules, by the inference of `engine.decoder`.

Options, rules, ranking and results are those of the installed `whisper.decoding`: what is here computes the same
choices with less work. A model whose decoder is not openai-whisper's as installed (hooks, replaced layers) is decoded
by openai-whisper's own task.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
import whisper.decoding as _upstream
from torch import Tensor
from whisper.decoding import *
from whisper.decoding import BeamSearchDecoder, DecodingOptions, DecodingResult, GreedyDecoder, Inference
from whisper.model import Whisper
from whisper.tokenizer import LANGUAGES, Tokenizer, get_tokenizer

from .engine.isolation import isolated
from .engine.kv_cache import DecoderState, EncodedAudio
from .engine.speculative import SpeculativeDecoder
from .languages import language_code

if TYPE_CHECKING:
    from .model import WhisperAT


DEFAULTS = DecodingOptions()
SYNC_INTERVAL = 8
"""Steps after which a GPU is asked whether all texts have ended."""


def decode(
    model: Whisper, mel: Tensor | EncodedAudio, options: DecodingOptions = DEFAULTS, **kwargs: Any
) -> DecodingResult | list[DecodingResult]:
    """Decode windows as ``whisper.decode`` does, to the same tokens.

    Parameters
    ----------
    model : Whisper
    mel : Tensor, shape (n_mels, 3000) or (batch, n_mels, 3000), or EncodedAudio
        Log-mel spectrograms, or the encoder's features of them, shape (1500, dim) or (batch, 1500, dim). What
        `WhisperAT.precompute_cross_kv` returns of a batch of features may be decoded several times.
    options : DecodingOptions
    **kwargs
        Fields of ``options`` to replace.

    Returns
    -------
    DecodingResult or list of DecodingResult
        A list for a batch.
    """
    options = _resolved(model, replace(options, **kwargs))
    if isinstance(mel, EncodedAudio):
        return FastDecodingTask(cast("WhisperAT", model), options, mel).run(mel.features)
    single = mel.ndim == 2
    mel = mel[None] if single else mel
    if getattr(model, "is_unmodified", False):
        results = FastDecodingTask(cast("WhisperAT", model), options).run(mel)
    else:
        with isolated(model) as own:
            results = _upstream.DecodingTask(own, options).run(mel)
    return results[0] if single else results


def resolve_language(model: Whisper, language: str | None, task: str) -> tuple[str | None, str]:
    """Return Whisper's code of a language, and the task, as a model can do them.

    A model that knows English only takes any other language as English, and translation as transcription, with a
    warning.

    Parameters
    ----------
    model : Whisper
    language : str or None
        As `language_code` reads it.
    task : str
        ``transcribe``, ``translate`` or ``lang_id``.

    Returns
    -------
    language : str or None
        None where a multilingual model is to detect it.
    task : str

    Raises
    ------
    ValueError
        If Whisper, or this one, does not know the language.
    """
    code = language_code(language)
    if model.is_multilingual:
        if code is not None and code not in list(LANGUAGES)[: model.num_languages]:
            raise ValueError(f"this model does not know {LANGUAGES[code].title()} ({code}), which later Whispers do")
        return code, task
    if code not in (None, "en"):
        warnings.warn(f"this model knows English only: language {language!r} is taken as English")
    if task == "translate":
        warnings.warn("this model knows English only: it transcribes, and translates nothing")
        task = "transcribe"
    return "en", task


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of text that a transcript begins with or follows; ``<|endoftext|>`` in it is text, too."""
    return tokenizer.encode(" " + text.strip(), disallowed_special=())


def _resolved(model: Whisper, options: DecodingOptions) -> DecodingOptions:
    """Return options with the language by its code, and prompt and prefix as tokens."""
    changes: dict[str, Any] = {}
    if options.language is not None:
        changes["language"], changes["task"] = resolve_language(model, options.language, options.task)
    for name in ("prompt", "prefix"):
        if isinstance(text := getattr(options, name), str) and text:
            tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages)
            changes[name] = encode_text(tokenizer, text)
    return replace(options, **changes)


@torch.no_grad()
def detect_language(
    model: Whisper, mel: Tensor | EncodedAudio, tokenizer: Tokenizer | None = None
) -> tuple[Tensor, list[dict[str, float]] | dict[str, float]]:
    """Detect languages as ``whisper.detect_language`` does.

    Parameters
    ----------
    model : Whisper
    mel : Tensor or EncodedAudio
        As of `decode`.
    tokenizer : Tokenizer, optional
        The model's by default.

    Returns
    -------
    language_tokens : Tensor, shape () or (batch,)
    probabilities : dict or list of dict
        By language code.

    Raises
    ------
    ValueError
        If the model knows no languages but English.
    """
    if not isinstance(mel, EncodedAudio):
        if not getattr(model, "is_unmodified", False):
            with isolated(model) as own:
                return _upstream.detect_language(own, mel, tokenizer)
        single = mel.ndim == 2
        ours = cast("WhisperAT", model)
        audio = ours.precompute_cross_kv(_encoded(ours, mel[None] if single else mel))
        tokens, probabilities = detect_language(model, audio, tokenizer)
        return (tokens[0], cast("list[dict[str, float]]", probabilities)[0]) if single else (tokens, probabilities)
    if tokenizer is None:
        tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages)
    if tokenizer.language is None or tokenizer.language_token not in tokenizer.sot_sequence:
        raise ValueError("This model doesn't have language tokens so it can't perform lang id")
    state = DecoderState(cast("WhisperAT", model).fast_decoder(mel.features.dtype), mel, use_graphs=False)
    logits = state.prefill(torch.full((len(mel.features), 1), tokenizer.sot))[:, 0]
    languages = torch.tensor(tokenizer.all_language_tokens, device=logits.device)
    probabilities = logits[:, languages].softmax(-1).tolist()
    codes = tokenizer.all_language_codes
    return languages[logits[:, languages].argmax(-1)], [dict(zip(codes, row)) for row in probabilities]


def _encoded(model: WhisperAT, mel: Tensor) -> Tensor:
    """Return features, of a mel or as they were given."""
    return mel if model.is_encoded(mel) else model.embed_audio(mel)


class FastDecodingTask(_upstream.DecodingTask):
    """openai-whisper's task of decoding a batch of windows with one set of options, on fast inference."""

    def __init__(self, model: WhisperAT, options: DecodingOptions, audio: EncodedAudio | None = None) -> None:
        super().__init__(model, options)
        if self.sample_begin >= self.n_ctx:
            raise ValueError(
                f"prefix and prompt have {self.sample_begin} tokens, and the decoder room for {self.n_ctx}, the text "
                "included: shorten the prefix"
            )
        self.audio = audio
        self.inference = _StateInference()
        sound_ends = None if audio is None else audio.sound_ends
        self.rules = _LogitRules(self, None if sound_ends is None else sound_ends.repeat_interleave(self.n_group))
        self.sync_interval = 1 if model.device.type == "cpu" else SYNC_INTERVAL
        if options.beam_size is not None:
            self.decoder = _BeamSearch(options.beam_size, self.tokenizer.eot, self.inference, options.patience)
        elif options.temperature == 0:
            self.decoder = _Greedy(options.temperature, self.tokenizer.eot)

    def _get_audio_features(self, mel: Tensor) -> Tensor:
        if self.audio is None:
            model = cast("WhisperAT", self.model)
            if model.compute_type is not None:
                mel = mel.to(torch.float16 if model.compute_type == "float16" else torch.float32)
                features = _encoded(model, mel)
            elif isinstance(features := super()._get_audio_features(mel), TypeError):
                raise features  # upstream returns it
            self.audio = model.precompute_cross_kv(features)
        # `run` takes every n_group-th of what it is given, which goes well only for batches of one
        features = self.audio.features
        several = len(features) > 1 and self.options.task != "lang_id"
        return features.repeat_interleave(self.n_group, 0) if several else features

    def _detect_language(
        self, audio_features: Tensor, tokens: Tensor
    ) -> tuple[list[str | None], list[dict[str, float]] | None]:
        languages, probabilities = [self.options.language] * len(tokens), None
        if self.options.language is None or self.options.task == "lang_id":
            found, by_code = detect_language(self.model, cast(EncodedAudio, self.audio), self.tokenizer)
            probabilities = cast("list[dict[str, float]]", by_code)
            languages = [max(row, key=row.__getitem__) for row in probabilities]
            if self.options.language is None:
                tokens[:, self.sot_index + 1] = found
        return languages, probabilities

    def _main_loop(self, audio_features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, list[float]]:
        audio, model = cast(EncodedAudio, self.audio), cast("WhisperAT", self.model)
        decoder = model.fast_decoder(audio.features.dtype)
        self.inference.state = DecoderState(decoder, audio, self.n_group)
        state: DecoderState | SpeculativeDecoder = self.inference.state
        greedy = self.options.beam_size is None and self.options.temperature == 0
        if model.draft is not None and greedy and len(tokens) == 1 and decoder.device.type == "cpu":
            state = SpeculativeDecoder(self.inference.state, model.draft, self.rules.apply, self.tokenizer.eot)
        sum_logprobs = torch.zeros(len(tokens), device=tokens.device)
        sot_logits, logits = state.prefill(tokens[:: self.n_group], logits_at=(self.sot_index, -1)).unbind(1)
        no_speech = [float("nan")] * len(tokens)
        if self.tokenizer.no_speech is not None:
            probabilities = sot_logits.softmax(-1)[:, self.tokenizer.no_speech]
            no_speech = probabilities.repeat_interleave(self.n_group).tolist()
        logits = logits.repeat_interleave(self.n_group, 0)
        if greedy and isinstance(state, DecoderState) and state.can_drop_rows:
            return *self._decode_greedily(state, tokens, logits), no_speech
        for i in range(self.sample_len):
            if i:
                logits = state.step(tokens[:, -1])
            self.rules.apply(logits, tokens)
            tokens, completed = self.decoder.update(tokens, logits, sum_logprobs)
            # asking a GPU makes it wait for Python; a step too many adds nothing but ends of text
            ask = (i + 1) % self.sync_interval == 0 or not isinstance(completed, Tensor)
            if (ask and completed) or tokens.shape[-1] > self.n_ctx:
                break
        return tokens, sum_logprobs, no_speech

    def _decode_greedily(self, state: DecoderState, tokens: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Go on from the first logits, without rows whose text has ended → all tokens, and their log probability."""
        sum_logprobs = torch.zeros(len(tokens))
        rows = torch.arange(len(tokens))
        for i in range(self.sample_len):
            if i:
                logits = state.step(tokens[rows, -1], rows)
            self.rules.apply(logits, tokens[rows], rows)
            sums = sum_logprobs[rows]
            going_on, _ = self.decoder.update(tokens[rows], logits, sums)
            tokens = F.pad(tokens, (0, 1), value=self.tokenizer.eot)
            tokens[rows], sum_logprobs[rows] = going_on, sums
            rows = rows[going_on[:, -1] != self.tokenizer.eot]
            if not len(rows) or tokens.shape[-1] > self.n_ctx:
                break
        return tokens, sum_logprobs


class _StateInference(Inference):
    """What openai-whisper's beam search needs of inference."""

    state: DecoderState

    def rearrange_kv_cache(self, source_indices: Sequence[int]) -> None:
        self.state.reorder(source_indices)


class _LogitRules:
    """openai-whisper's logit filters in one pass: no loop over rows or tokens, nothing read back from the device.

    ``sound_ends`` : for each row, the position (20 ms) before which a text does not end between two segments.
    """

    def __init__(self, task: FastDecodingTask, sound_ends: Tensor | None = None) -> None:
        self.sound_ends = sound_ends
        tokenizer, options = task.tokenizer, task.options
        suppressed = list(task._get_suppress_tokens()) if options.suppress_tokens else []
        self.with_timestamps = not options.without_timestamps
        if self.with_timestamps and tokenizer.no_timestamps is not None:
            suppressed.append(tokenizer.no_timestamps)  # what it asks for is an option
        self.suppressed = torch.tensor(suppressed, dtype=torch.long, device=task.model.device)
        blank = [*tokenizer.encode(" "), tokenizer.eot] if options.suppress_blank else []
        self.blank = torch.tensor(blank, dtype=torch.long, device=task.model.device)
        self.sample_begin, self.eot = task.sample_begin, tokenizer.eot
        self.timestamp_begin = tokenizer.timestamp_begin
        self.last_initial: int | None = None
        if options.max_initial_timestamp:
            precision = _upstream.CHUNK_LENGTH / task.model.dims.n_audio_ctx
            self.last_initial = self.timestamp_begin + round(options.max_initial_timestamp / precision)

    def apply(self, logits: Tensor, tokens: Tensor, rows: Tensor | None = None) -> None:
        """Set the logits ``(rows, vocabulary)`` of what may not follow ``tokens`` (rows, n) to −inf, in place.

        ``rows`` tells which of the batch's they are, if not all.
        """
        minus_inf = float("-inf")
        logits.index_fill_(1, self.suppressed, minus_inf)
        sampled = tokens[:, self.sample_begin :]
        if sampled.shape[1] == 0:
            logits.index_fill_(1, self.blank, minus_inf)
        if not self.with_timestamps:
            return
        text, timestamps = logits[:, : self.timestamp_begin], logits[:, self.timestamp_begin :]
        if sampled.shape[1] == 0:  # a window begins with a timestamp, and an early one
            text.fill_(minus_inf)
            if self.last_initial is not None:
                logits[:, self.last_initial + 1 :] = minus_inf
            return
        is_timestamp = sampled >= self.timestamp_begin
        after_timestamp = is_timestamp[:, -1]
        after_pair = after_timestamp & is_timestamp[:, -2] if sampled.shape[1] > 1 else after_timestamp
        within_pair = after_timestamp & ~after_pair
        # timestamps do not decrease, and a segment has some length
        first = torch.where(is_timestamp, sampled - self.timestamp_begin, -1).amax(1) + (~within_pair).long()
        ordinal = torch.arange(timestamps.shape[1], device=logits.device)
        timestamps.masked_fill_((ordinal < first[:, None]) | after_pair[:, None], minus_inf)
        logits[:, : self.eot].masked_fill_(within_pair[:, None], minus_inf)
        if self.sound_ends is not None and sampled.shape[1] > 1:
            sound_ends = self.sound_ends if rows is None else self.sound_ends[rows]
            goes_on = after_pair & (sampled[:, -1] - self.timestamp_begin < sound_ends)
            logits[:, self.eot].masked_fill_(goes_on, minus_inf)
        # a timestamp has to follow where all together are likelier than any one text token
        text.masked_fill_((timestamps.logsumexp(1) > text.amax(1))[:, None], minus_inf)


class _Greedy(GreedyDecoder):
    """openai-whisper's greedy choice, with nothing read back from the device."""

    def update(self, tokens: Tensor, logits: Tensor, sum_logprobs: Tensor) -> tuple[Tensor, Tensor]:
        ended = tokens[:, -1] == self.eot
        chosen = logits.argmax(-1, keepdim=True)
        logprobs = F.log_softmax(logits.float(), dim=-1).gather(1, chosen)[:, 0]
        sum_logprobs += logprobs.masked_fill(ended, 0.0)
        following = chosen[:, 0].masked_fill(ended, self.eot)
        return torch.cat([tokens, following[:, None]], dim=-1), (following == self.eot).all()


class _BeamSearch(BeamSearchDecoder):
    """openai-whisper's beam search, with one look at the logits for all beams."""

    finished_sequences: list[dict[tuple[int, ...], float]] | None

    def update(self, tokens: Tensor, logits: Tensor, sum_logprobs: Tensor) -> tuple[Tensor, bool]:
        rows, n = tokens.shape[0], self.beam_size
        if rows % n != 0:
            raise ValueError(f"{tokens.shape}[0] % {n} != 0")
        if self.finished_sequences is None:
            self.finished_sequences = [{} for _ in range(rows // n)]
        best, ids = F.log_softmax(logits.float(), dim=-1).topk(n + 1)
        totals = (sum_logprobs[:, None] + best).tolist()
        following, prefixes = ids.tolist(), [tuple(row) for row in tokens.tolist()]

        chosen: list[tuple[int, ...]] = []
        sources: list[int] = []
        scores: list[float] = []
        for recording, finished in enumerate(self.finished_sequences):
            # the same sequence may come from several beams: they all begin alike
            candidates = {
                (*prefixes[row], token): (total, row)
                for row in range(recording * n, (recording + 1) * n)
                for token, total in zip(following[row], totals[row])
            }
            kept = 0
            ended: dict[tuple[int, ...], float] = {}
            for sequence in sorted(candidates, key=lambda s: candidates[s][0], reverse=True):
                total, row = candidates[sequence]
                if sequence[-1] == self.eot:
                    ended[sequence] = total
                    continue
                chosen.append(sequence)
                sources.append(row)
                scores.append(total)
                kept += 1
                if kept == n:
                    break
            for sequence, total in ended.items():  # best first
                if len(finished) >= self.max_candidates:
                    break
                finished[sequence] = total
        sum_logprobs.copy_(torch.tensor(scores))
        self.inference.rearrange_kv_cache(sources)
        completed = all(len(finished) >= self.max_candidates for finished in self.finished_sequences)
        return torch.tensor(chosen, device=tokens.device), completed
