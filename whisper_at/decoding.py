"""Decoding of windows under openai-whisper's rules, by the inference of `inference`.

Options, rules, ranking and results are those of the installed `whisper.decoding`: what is here computes the same
choices with less work. A model whose decoder is not openai-whisper's as installed (hooks, replaced layers) is decoded
by openai-whisper's own task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
import whisper.decoding as _upstream
from torch import Tensor
from whisper.decoding import *
from whisper.decoding import BeamSearchDecoder, DecodingOptions, DecodingResult, GreedyDecoder, Inference
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer, get_tokenizer

from .engine.decoder import Heard, Rows
from .engine.speculative import Drafted

if TYPE_CHECKING:
    from .model import WhisperAT


DEFAULTS = DecodingOptions()
ASKED_EVERY = 8
"""Steps after which a GPU is asked whether all texts have ended."""


def decode(
    model: Whisper, mel: Tensor | Heard, options: DecodingOptions = DEFAULTS, **kwargs
) -> DecodingResult | list[DecodingResult]:
    """Decode windows as ``whisper.decode`` does, to the same tokens.

    ``mel`` is ``(n_mels, 3000)`` or a batch of such, features of the encoder ``(1500, width)`` or a batch of such, or
    what `WhisperAT.hear` made of a batch: then nothing of it is computed again. Returns one result, or a list for a
    batch.
    """
    options = replace(options, **kwargs) if kwargs else options
    if isinstance(mel, Heard):
        return FastDecodingTask(cast("WhisperAT", model), options, mel).run(mel.features)
    single = mel.ndim == 2
    mel = mel[None] if single else mel
    task = FastDecodingTask if getattr(model, "is_stock", False) else _upstream.DecodingTask
    results = task(model, options).run(mel)
    return results[0] if single else results


@torch.no_grad()
def detect_language(
    model: Whisper, mel: Tensor | Heard, tokenizer: Tokenizer | None = None
) -> tuple[Tensor, list[dict[str, float]] | dict[str, float]]:
    """Language tokens and probabilities as ``whisper.detect_language`` gives them; ``mel`` as of `decode`."""
    if not isinstance(mel, Heard):
        if not getattr(model, "is_stock", False):
            return _upstream.detect_language(model, mel, tokenizer)
        single = mel.ndim == 2
        heard = cast("WhisperAT", model).hear(_features(cast("WhisperAT", model), mel[None] if single else mel))
        tokens, probabilities = detect_language(model, heard, tokenizer)
        return (tokens[0], cast(list, probabilities)[0]) if single else (tokens, probabilities)
    if tokenizer is None:
        tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages)
    if tokenizer.language is None or tokenizer.language_token not in tokenizer.sot_sequence:
        raise ValueError("This model doesn't have language tokens so it can't perform lang id")
    rows = Rows(cast("WhisperAT", model).fast_decoder(mel.features.dtype), mel, steps=False)
    logits = rows.start(torch.full((len(mel.features), 1), tokenizer.sot))[:, 0]
    languages = torch.tensor(tokenizer.all_language_tokens, device=logits.device)
    probabilities = logits[:, languages].softmax(-1).tolist()
    codes = tokenizer.all_language_codes
    return languages[logits[:, languages].argmax(-1)], [dict(zip(codes, row)) for row in probabilities]


def _features(model: WhisperAT, mel: Tensor) -> Tensor:
    return mel if model.is_encoded(mel) else model.embed_audio(mel)


class FastDecodingTask(_upstream.DecodingTask):
    """openai-whisper's task of decoding a batch of windows with one set of options, on fast inference."""

    def __init__(self, model: WhisperAT, options: DecodingOptions, heard: Heard | None = None) -> None:
        super().__init__(model, options)
        self.heard = heard
        self.inference = _Reorder()
        self.rules = _Rules(self)
        self.asked_every = 1 if model.device.type == "cpu" else ASKED_EVERY
        if options.beam_size is not None:
            self.decoder = _BeamSearch(options.beam_size, self.tokenizer.eot, self.inference, options.patience)
        elif options.temperature == 0:
            self.decoder = _Greedy(options.temperature, self.tokenizer.eot)

    def _get_audio_features(self, mel: Tensor) -> Tensor:
        if self.heard is None:
            model = cast("WhisperAT", self.model)
            if model.compute_type is not None:
                mel = mel.to(torch.float16 if model.compute_type == "float16" else torch.float32)
                features = _features(model, mel)
            elif isinstance(features := super()._get_audio_features(mel), TypeError):
                raise features  # upstream returns it
            self.heard = model.hear(features)
        # `run` takes every n_group-th of what it is given, which goes well only for batches of one
        features = self.heard.features
        several = len(features) > 1 and self.options.task != "lang_id"
        return features.repeat_interleave(self.n_group, 0) if several else features

    def _detect_language(self, audio_features: Tensor, tokens: Tensor):
        languages, probabilities = [self.options.language] * len(tokens), None
        if self.options.language is None or self.options.task == "lang_id":
            found, probabilities = detect_language(self.model, cast(Heard, self.heard), self.tokenizer)
            languages = [max(row, key=row.__getitem__) for row in cast(list[dict[str, float]], probabilities)]
            if self.options.language is None:
                tokens[:, self.sot_index + 1] = found
        return languages, probabilities

    def _main_loop(self, audio_features: Tensor, tokens: Tensor):
        heard = cast(Heard, self.heard)
        model = cast("WhisperAT", self.model)
        decoder = model.fast_decoder(heard.features.dtype)
        self.inference.rows = Rows(decoder, heard, self.n_group)
        rows: Rows | Drafted = self.inference.rows
        greedy = self.options.beam_size is None and self.options.temperature == 0
        if model.draft is not None and greedy and len(tokens) == 1 and decoder.device.type == "cpu":
            rows = Drafted(self.inference.rows, model.draft, self.rules.apply, self.tokenizer.eot)
        sum_logprobs = torch.zeros(len(tokens), device=tokens.device)
        at_sot, logits = rows.start(tokens[:: self.n_group], at=(self.sot_index, -1)).unbind(1)
        no_speech = [float("nan")] * len(tokens)
        if self.tokenizer.no_speech is not None:
            probabilities = at_sot.softmax(-1)[:, self.tokenizer.no_speech]
            no_speech = probabilities.repeat_interleave(self.n_group).tolist()
        logits = logits.repeat_interleave(self.n_group, 0)
        for i in range(self.sample_len):
            if i:
                logits = rows.step(tokens[:, -1])
            self.rules.apply(logits, tokens)
            tokens, completed = self.decoder.update(tokens, logits, sum_logprobs)
            # asking a GPU makes it wait for Python; a step too many adds nothing but ends of text
            ask = (i + 1) % self.asked_every == 0 or not isinstance(completed, Tensor)
            if (ask and completed) or tokens.shape[-1] > self.n_ctx:
                break
        return tokens, sum_logprobs, no_speech


class _Reorder(Inference):
    """What openai-whisper's beam search needs of inference."""

    rows: Rows

    def rearrange_kv_cache(self, source_indices: Sequence[int]) -> None:
        self.rows.reorder(source_indices)


class _Rules:
    """openai-whisper's logit filters in one pass: no loop over rows or tokens, nothing read back from the device."""

    def __init__(self, task: FastDecodingTask) -> None:
        tokenizer, options = task.tokenizer, task.options
        never = list(task._get_suppress_tokens()) if options.suppress_tokens else []
        self.timed = not options.without_timestamps
        if self.timed and tokenizer.no_timestamps is not None:
            never.append(tokenizer.no_timestamps)  # what it asks for is an option
        self.never = torch.tensor(never, dtype=torch.long, device=task.model.device)
        blank = [*tokenizer.encode(" "), tokenizer.eot] if options.suppress_blank else []
        self.blank = torch.tensor(blank, dtype=torch.long, device=task.model.device)
        self.sample_begin, self.eot, self.time0 = task.sample_begin, tokenizer.eot, tokenizer.timestamp_begin
        self.last_initial: int | None = None
        if options.max_initial_timestamp:
            precision = _upstream.CHUNK_LENGTH / task.model.dims.n_audio_ctx
            self.last_initial = self.time0 + round(options.max_initial_timestamp / precision)

    def apply(self, logits: Tensor, tokens: Tensor) -> None:
        """Set the logits ``(rows, vocabulary)`` of what may not follow ``tokens`` (rows, n) to −inf, in place."""
        lowest = float("-inf")
        logits.index_fill_(1, self.never, lowest)
        sampled = tokens[:, self.sample_begin :]
        if sampled.shape[1] == 0:
            logits.index_fill_(1, self.blank, lowest)
        if not self.timed:
            return
        text, times = logits[:, : self.time0], logits[:, self.time0 :]
        if sampled.shape[1] == 0:  # a window begins with a time, and an early one
            text.fill_(lowest)
            if self.last_initial is not None:
                logits[:, self.last_initial + 1 :] = lowest
            return
        is_time = sampled >= self.time0
        after_time = is_time[:, -1]
        after_pair = after_time & is_time[:, -2] if sampled.shape[1] > 1 else after_time
        half_pair = after_time & ~after_pair
        # times do not fall, and a segment takes some time
        first = torch.where(is_time, sampled - self.time0, -1).amax(1) + (~half_pair).long()
        ordinal = torch.arange(times.shape[1], device=logits.device)
        times.masked_fill_((ordinal < first[:, None]) | after_pair[:, None], lowest)
        logits[:, : self.eot].masked_fill_(half_pair[:, None], lowest)
        # where a time is likelier than any one text token, a time it is
        text.masked_fill_((times.logsumexp(1) > text.amax(1))[:, None], lowest)


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
