"""Random training windows: speech and sounds, cut as `transcribe` would cut a file, with all targets.

A window holds ``seconds`` of audio that start ``offset`` seconds into the 30 s of the encoder. Speech is a stream of
utterances and pauses; a window may start before, inside or right at the start of an utterance, and end anywhere.
The targets follow what `transcribe` does with them:

* A segment is a sentence, or up to eight digits without a pause of half a second.
* Of a segment that continues past the end only the start is written: ``… <|t1|><|t2|>``, end of text.
* If no segment is complete, the whole words of the first one are written with their end as the last timestamp, so that
  `transcribe` continues from there instead of skipping 30 s.
* The first timestamp is at most 1.00 s, since `transcribe` forces this.
* Timestamps are multiples of 0.1 s, starts rounded down and ends up. Such targets are unambiguous, which keeps
  ``avg_logprob`` above the threshold for fallback.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from whisper.audio import log_mel_spectrogram

from .data import Pools
from .espeak import RATE
from .mixer import QUIET, Mixer, Word, decibels
from .text import class_name
from .vocabulary import Vocabulary

SEGMENT_PAUSE, MAX_DIGITS, TIMESTAMP_STEP = 0.5, 8, 0.1

Guide = tuple[int, float, float, float]
"""Target of cross-attention: index of the decoder position, start and end of the word to attend to, and end of the
pause after it (0 for none), in seconds."""


@dataclass
class Window:
    """A training example.

    Attributes
    ----------
    mel : Tensor of float32, shape (80, 100 · seconds)
        Log-mel spectrogram.
    offset : float
        Start of the window in the 30 s of the encoder, in seconds.
    timed, plain : list of int
        Tokens with timestamps, after a prompt of ``prompt_length`` tokens, and without timestamps.
    prompt_length : int
        Number of tokens of ``timed`` that are a prompt.
    first : int
        Target of the first token of ``timed``, which may itself be another one.
    timed_guides, plain_guides : list of Guide
        Attention targets of the two sequences.
    plain_is_complete : bool
        Whether the text ends where the speech ends.
    labels : ndarray of int64, shape (50 · seconds,)
        Word class of each encoder frame.
    silent : bool
        Whether there is nothing to write.
    """

    mel: torch.Tensor
    offset: float
    timed: list[int]
    prompt_length: int
    first: int
    timed_guides: list[Guide]
    plain: list[int]
    plain_guides: list[Guide]
    plain_is_complete: bool
    labels: np.ndarray
    silent: bool


class WindowGenerator:
    """Generator of windows; it keeps recent texts for prompts.

    Parameters
    ----------
    pools : Pools
        Recordings and synthetic speech.
    seed : int
        Seed of all random choices.
    """

    def __init__(self, pools: Pools, seed: int) -> None:
        self.mixer = Mixer(pools, seed)
        self.rng = self.mixer.rng
        self.vocabulary = Vocabulary()
        self.recent_texts: list[list[int]] = []

    def window(self, seconds: float, silent_share: float, max_prompt: int = 0) -> Window:
        """Return a random window.

        Parameters
        ----------
        seconds : float
            Length. At inference it is always 30; shorter ones are cheaper and use the same positions.
        silent_share : float
            Probability of a window without speech.
        max_prompt : int
            Maximum number of prompt tokens; four in five windows have a prompt if this is not 0.
        """
        rng = self.rng
        silent = rng.random() < silent_share
        draw = rng.random()
        content = seconds  # length of the audio: the rest is padding, as at the end of a file
        if draw >= 0.6:
            content = rng.uniform(0.4, seconds) if draw < 0.72 else rng.uniform(0.2, min(8.0, seconds))
        utterances: list[list[Word]] = []
        if silent:
            audio = self._background(int(content * RATE))
        else:
            audio, utterances = self.mixer.speech(seconds)
            if content < seconds:
                content, utterances = self._end_of_file(utterances, content, seconds)
            audio = self._with_noise(audio[: int(content * RATE)])
        mel = self._mel(np.clip(audio, -1, 1).astype(np.float32), seconds)
        offset = 0.0
        if seconds < 30:
            offset = round(rng.uniform(0, 30 - seconds) / TIMESTAMP_STEP) * TIMESTAMP_STEP
        return self._targets(mel, utterances, content, offset, max_prompt)

    # --- audio -------------------------------------------------------------------------------------------------

    def _background(self, n: int) -> np.ndarray:
        """Return audio without speech: sounds, tones, noise or silence."""
        rng, mixer = self.rng, self.mixer
        draw = rng.random()
        if draw < 0.7:
            audio = mixer.sounds(n)
            audio = audio + (decibels(rng.uniform(-15, 0)) * mixer.sounds(n) if rng.random() < 0.4 else 0.0)
        elif draw < 0.82:
            audio = mixer.tones(n)
        else:
            audio = mixer.noise(n) if draw < 0.92 else np.zeros(n, np.float32)
        return mixer.vary_spectrum(audio) * decibels(rng.uniform(-60, -14))

    def _with_noise(self, speech: np.ndarray) -> np.ndarray:
        """Scale speech to a random level and, mostly, add sounds or noise."""
        rng, mixer, n = self.rng, self.mixer, len(speech)
        level = decibels(rng.uniform(-38, -14))
        active = speech[np.abs(speech) > QUIET]
        gain = level / (np.sqrt((active**2).mean()) + 1e-9) if len(active) else 0.0
        audio = mixer.vary_spectrum(speech) * gain
        draw = rng.random()
        if draw < 0.55:
            snr = rng.uniform(-4, 25)
            noise = mixer.sounds(n) * level * decibels(-snr)
            if rng.random() < 0.2:
                noise[: rng.randrange(n)] = 0
            audio = audio + mixer.vary_spectrum(noise)
        elif draw < 0.72:
            audio = audio + mixer.noise(n) * level * decibels(-rng.uniform(25, 60))
        return audio

    def _end_of_file(
        self, utterances: list[list[Word]], content: float, seconds: float
    ) -> tuple[float, list[list[Word]]]:
        """Return the length nearest to ``content`` at which a file ends after an utterance, and the utterances."""
        ends = [words[-1].end for words in utterances if words[-1].end < seconds - 0.5]
        if not ends:
            return content, utterances
        end = max((e for e in ends if e <= content), default=ends[0])
        rng = self.rng
        margin = rng.choice([0.0, 0.0, rng.uniform(0, 0.06), rng.uniform(0, 0.5), rng.uniform(0, 0.5)])
        before = [words for words in utterances if words[-1].end <= end]
        after = [words[0].start for words in utterances if words[-1].end > end]
        return max(0.1, min(end + margin, min(after, default=seconds) - 0.05)), before

    def _mel(self, audio: np.ndarray, seconds: float) -> torch.Tensor:
        """Return the log-mel spectrogram, padded to ``seconds``."""
        rng, frames = self.rng, max(1, len(audio) // 160)
        # `transcribe` clips below the loudest frame of the whole file, which may be outside of this window
        mel = log_mel_spectrogram(torch.from_numpy(audio), padding=RATE // 10)[:, :frames]
        top = mel.max() + (rng.uniform(0, 1.5) / 4 if rng.random() < 0.4 else 0.0)
        mel = torch.maximum(mel, top - 2.0)
        total = round(seconds * 100)
        if frames < total:  # `transcribe` pads the spectrogram with 0; audio padded with silence gives the minimum
            padding = 0.0 if rng.random() < 0.8 else max(-1.5, float(top) - 2.0)
            mel = torch.cat([mel, torch.full((80, total - frames), padding)], 1)
        return mel

    # --- targets -----------------------------------------------------------------------------------------------

    def _targets(
        self, mel: torch.Tensor, utterances: list[list[Word]], content: float, offset: float, max_prompt: int
    ) -> Window:
        rng, v = self.rng, self.vocabulary
        segments, cut = split_segments(utterances, content)
        labels = np.full(mel.shape[1] // 2, len(v.classes), np.int64)
        for word in (w for words in utterances for w in words if not w.is_mark):
            labels[max(0, round(word.start * 50)) : max(0, round(word.end * 50))] = v.classes[class_name(word.text)]

        timed = self._prompt(max_prompt)
        prompt_length = len(timed)
        timed.append(v.sot)
        plain = [v.sot, v.no_timestamps]
        timed_guides: list[Guide] = []
        plain_guides: list[Guide] = []
        starts = [s[0].start for s in segments] + ([cut] if cut is not None else [])
        for i, segment in enumerate(segments):
            start, end = segment[0].start, segment[-1].end
            next_start = starts[i + 1] if i + 1 < len(starts) else None
            t_start, t_end = _segment_times(start, end, next_start, offset)
            if i == 0:
                t_start = min(t_start, 1.0)
            timed_guides.append((len(timed) - 1, start, start + 0.3, 0.0))
            timed.append(v.timestamp(t_start))
            for j, word in enumerate(segment):
                low, high = (word.end - 0.05, word.end + 0.2) if word.is_mark else (word.start, word.end)
                pause_end = content if next_start is None else next_start
                if j + 1 < len(segment):
                    pause_end = segment[j + 1].start
                timed_guides.append((len(timed) - 1, low, high, 0.0))
                plain_guides.append((len(plain) - 1, low, high, min(pause_end, high + 2.0)))
                timed.append(v.word(word.text))
                plain.append(v.word(word.text))
            timed_guides.append((len(timed) - 1, end - 0.05, end + 0.3, 0.0))
            timed.append(v.timestamp(t_end))
        if segments:
            end = segments[-1][-1].end
            plain_guides.append((len(plain) - 1, end, end + 0.4, 0.0))
            self.recent_texts = [*self.recent_texts[-60:], timed[prompt_length + 1 :]]
            if cut is not None:
                timed_guides.append((len(timed) - 1, cut, cut + 0.3, 0.0))
                timed.append(max(timed[-1], v.timestamp(_round_down(cut + offset))))
        else:
            timed.append(v.time0)
        timed.append(v.eot)
        plain.append(v.eot)
        first = timed[prompt_length + 1]
        if segments and rng.random() < 0.3:  # decoding may have been forced to start at another time
            timed[prompt_length + 1] = v.timestamp(round(rng.uniform(0, 1) / TIMESTAMP_STEP) * TIMESTAMP_STEP)
        return Window(
            mel=mel,
            offset=offset,
            timed=timed,
            prompt_length=prompt_length,
            first=first,
            timed_guides=timed_guides,
            plain=plain,
            plain_guides=plain_guides,
            plain_is_complete=cut is None,
            labels=labels,
            silent=not segments,
        )

    def _prompt(self, max_prompt: int) -> list[int]:
        """Return the tokens of a prompt from recent texts, or none."""
        rng, v = self.rng, self.vocabulary
        if not (max_prompt and self.recent_texts and rng.random() < 0.8):
            return []
        texts = [rng.choice(self.recent_texts) for _ in range(rng.choice([1, 1, 2, 3, 5]))]
        prompt = [t for text in texts for t in text]
        if rng.random() < 0.1:
            prompt = [t for t in prompt if t < v.other]
        return [v.sot_prev, *prompt[-max_prompt:]]


def split_segments(utterances: list[list[Word]], content: float) -> tuple[list[list[Word]], float | None]:
    """Divide utterances into segments.

    Parameters
    ----------
    utterances : list of list of Word
        Words with times in seconds of the window.
    content : float
        End of the audio in seconds.

    Returns
    -------
    segments : list of list of Word
        Complete segments.
    cut : float or None
        Start of the segment that continues past the end, if any.
    """
    segments: list[list[Word]] = []
    for words in utterances:
        audible = [w for w in words if w.start >= -0.3 * (w.end - w.start) - 1e-6]
        if all(w.is_mark for w in audible):
            continue
        segment: list[Word] = []
        for word in audible:
            digits = word.text.isdigit() and not words[-1].is_mark
            if segment and digits and (word.start - segment[-1].end >= SEGMENT_PAUSE or len(segment) >= MAX_DIGITS):
                segments.append(segment)
                segment = []
            segment.append(word)
        segments.append(segment)
    cut = None
    while segments and segments[-1][-1].end > content + 0.02:
        last = segments.pop()
        cut = last[0].start
        if not segments:
            whole = [w for w in last if w.end <= content - 0.1]
            if whole:
                segments, cut = [whole], whole[-1].end
                break
    if cut is not None and cut > content - 0.15:
        cut = None
    return segments, cut


def _round_down(seconds: float) -> float:
    """Return the last multiple of `TIMESTAMP_STEP` before a time."""
    return int(max(0.0, seconds) / TIMESTAMP_STEP + 1e-6) * TIMESTAMP_STEP


def _segment_times(start: float, end: float, next_start: float | None, offset: float) -> tuple[float, float]:
    """Return the timestamps of a segment."""
    t_start = _round_down(start + offset)
    t_end = -int(-(end + offset) / TIMESTAMP_STEP + 1e-6) * TIMESTAMP_STEP
    if end + offset > t_end:
        t_end += TIMESTAMP_STEP
    if next_start is not None:  # adjacent segments share a timestamp, early enough not to cut the next word
        t_end = min(t_end, _round_down(next_start + offset))
    return t_start, min(30.0, max(t_end, t_start + TIMESTAMP_STEP))
