"""Random training windows: a mix of speech and sounds as `transcribe` would cut it, with all its targets.

A window sees `seconds` of sound that starts `offset` seconds into the 30 s of the encoder. Speech is a stream of
utterances and pauses; a window may begin before, inside or right at the start of an utterance and end anywhere. What
`transcribe` needs then:

* a segment is a sentence, or a burst of digits without a pause of half a second, at most eight long;
* a segment that continues past the end is announced by its start only: `… <|t1|><|t2|>`, end of text;
* where nothing else is complete, the whole words of the cut segment are written and closed by twice their end, so
  that `transcribe` seeks to there instead of skipping 30 s;
* the first timestamp never exceeds 1.00 s, since `transcribe` forces it there;
* timestamps lie on a grid of 0.1 s, starts rounded down and ends up: sharp targets keep `avg_logprob` far from the
  fallback threshold.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.signal import lfilter
from whisper.audio import log_mel_spectrogram

from .data import Pools, Take
from .espeak import RATE, Utterance
from .text import frame_classes, normal, text_tokens, token, tokenizer

SPLIT_PAUSE, MAX_DIGITS, GRID = 0.5, 8, 0.1


class Vocabulary:
    """The tokens in use under compact numbers: text, five special ones, "any other", then 1,501 timestamps."""

    def __init__(self) -> None:
        t = tokenizer()
        special = [t.eot, t.sot, t.sot_prev, t.no_speech, t.no_timestamps]
        self.ids = [*text_tokens(), *special]
        number = {id_: i for i, id_ in enumerate(self.ids)}
        self.eot, self.sot, self.sot_prev, self.no_speech, self.no_timestamps = (number[s] for s in special)
        self.other = len(self.ids)
        self.time0 = self.other + 1
        self.size = self.time0 + 1501
        self.n_other = t.timestamp_begin - len(self.ids)
        self.timestamp_begin = t.timestamp_begin
        self._number = number
        self.classes = frame_classes()

    def word(self, written: str) -> int:
        """Compact number of a written word."""
        return self._number[token(written)]

    def time(self, seconds: float) -> int:
        """Compact number of the timestamp nearest to `seconds`."""
        return self.time0 + min(1500, max(0, round(seconds * 50)))


@dataclass
class Word:
    """A written word (or final sign) between two times in seconds of the window."""

    text: str
    start: float
    end: float


@dataclass
class Window:
    """One training example before batching.

    mel: float32 (80, 100·seconds). timed, plain: token sequences with and without timestamps; those of `timed` before
    `timed_from` are a prompt. first: the right first token of `timed`, which may show another one. plain_ends: whether
    the end of `plain` is the end of the speech. guides: (row, start, end, gap end) in seconds: where a decoder row has
    to look. labels: int64 (50·seconds) word class of each encoder frame. silent: nothing to write.
    """

    mel: torch.Tensor
    offset: float
    timed: list[int]
    timed_from: int
    first: int
    timed_guides: list[tuple[int, float, float, float]]
    plain: list[int]
    plain_guides: list[tuple[int, float, float, float]]
    plain_ends: bool
    labels: np.ndarray
    silent: bool


@dataclass
class Mixer:
    """Makes windows from pools. Keep one per process: it remembers recent texts for use as prompts."""

    pools: Pools
    seed: int
    recent: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.r = random.Random(self.seed)
        self.n = np.random.default_rng(self.seed)
        self.vocabulary = Vocabulary()
        self._noise = [self._coloured(power) for power in (0.0, 1.0, 2.0)]
        self._by_sound: dict[str, list] = {}
        for clip in self.pools.clips:
            self._by_sound.setdefault(clip.sound, []).append(clip)

    def _coloured(self, power: float, seconds: int = 60) -> np.ndarray:
        spectrum = np.fft.rfft(self.n.standard_normal(seconds * RATE))
        spectrum /= np.maximum(np.arange(len(spectrum)), 20 * seconds) ** (power / 2)
        noise = np.fft.irfft(spectrum)
        return (noise / noise.std()).astype(np.float32)

    def coloured(self, n: int) -> np.ndarray:
        """`n` samples (at most 60 s) of white, pink or brown noise at an RMS of 1."""
        noise = self.r.choice(self._noise)
        at = self.r.randrange(0, len(noise) - n + 1)
        return noise[at : at + n]

    # ---- speech ----

    def _burst(self, n_digits: int, mixed: bool, gap: float) -> Utterance:
        """Digits of FSDD in a row with pauses up to `gap` seconds."""
        r = self.r
        by_speaker = r.choice(self.pools.takes)
        speaker = r.choice(list(by_speaker))
        level = r.random() < 0.6
        pieces, spans, at = [], [], 0
        words = []
        repeat = r.random() < 0.06  # now and then one digit over and over
        take: Take | None = None
        for i in range(n_digits):
            if mixed:
                by_speaker = r.choice(self.pools.takes)
                speaker = r.choice(list(by_speaker))
            take = take if repeat and take is not None and r.random() < 0.7 else r.choice(by_speaker[speaker])
            margin = r.choice([160, 480, 960, 8000])
            low, high = max(0, take.first - margin), min(len(take.audio), take.last + margin)
            audio = take.audio[low:high].astype(np.float32)
            if level:
                audio *= 2500 / (np.sqrt((audio**2).mean()) + 1) * 10 ** (r.uniform(-3, 3) / 20)
            pieces.append(audio)
            spans.append((at + take.first - low, at + take.last - low))
            words.append(str(take.digit))
            at += len(audio)
            if i + 1 < n_digits:
                silence = int(r.uniform(0, gap) * RATE)
                pieces.append(np.zeros(silence, np.float32))
                at += silence
        return Utterance(np.concatenate(pieces), words, spans, speaker)

    def stream(self, seconds: float) -> tuple[np.ndarray, list[list[Word]]]:
        """Speech for `seconds` and its utterances; the first may have begun before 0, the last may end later."""
        r = self.r
        audio = np.zeros(int(seconds * RATE), np.float32)
        utterances: list[list[Word]] = []
        kind = r.choices(["bursts", "strings", "sentences", "mixed", "running"], [38, 14, 28, 12, 8])[0]
        low, high = r.choice([(0.55, 0.9), (0.55, 1.6), (0.6, 2.5), (0.6, 2.5), (0.8, 4.0), (1.0, 6.5)])
        gap = r.choice([0.03, 0.1, 0.2, 0.3, 0.4])
        longest = r.choice([1, 2, 4, 6, 8, 8])
        one_speaker_mixed = r.random() < 0.25
        swing = r.choice([0.0, 2.0, 6.0])
        start = r.random()
        at = r.uniform(0, 0.12) if start < 0.25 else r.uniform(0, high) if start < 0.85 else r.uniform(0, 0.8 * seconds)
        inside = 0.85 <= start < 0.93
        while at < seconds:
            choice = kind if kind != "mixed" else r.choice(["bursts", "strings", "sentences"])
            if choice == "sentences":
                said = r.choice(self.pools.sentences)
            elif choice == "strings":
                said = r.choice(self.pools.digits)
            else:
                count = r.randrange(9, 40) if choice == "running" else r.randint(1, longest)
                said = self._burst(count, one_speaker_mixed, gap)
            if inside:
                at, inside = -r.uniform(0, len(said.audio) / RATE), False
            gain = 10 ** (r.uniform(-swing, swing) / 20)
            first = int(at * RATE)
            piece = said.audio[max(0, -first) : len(audio) - first].astype(np.float32)
            audio[max(0, first) : max(0, first) + len(piece)] += gain * piece
            words = [Word(w, at + a / RATE, at + b / RATE) for w, (a, b) in zip(said.words, said.spans)]
            utterances.append(words)
            at = max(words[-1].end, at + len(said.audio) / RATE) + r.uniform(low, high)
        return audio, utterances

    # ---- sounds ----

    def sounds(self, n: int) -> np.ndarray:
        """`n` samples of environmental sounds in a row, or of coloured noise, at an RMS of about 1."""
        r = self.r
        if r.random() < 0.22:
            noise = r.choice(self._noise)
            at = r.randrange(0, len(noise) - n) if n < len(noise) else 0
            return noise[at : at + n].copy()
        out, at = np.zeros(n, np.float32), 0
        sound = r.choice(list(self._by_sound))
        while at < n:
            if r.random() < 0.4:
                sound = r.choice(list(self._by_sound))
            audio = r.choice(self._by_sound[sound]).audio
            loud = np.flatnonzero(np.abs(audio) > 30)
            if len(loud) > RATE // 4:
                audio = audio[loud[0] : loud[-1]]
            low = r.randrange(0, max(1, len(audio) // 2)) if r.random() < 0.3 else 0
            piece = audio[low:].astype(np.float32)
            if r.random() < 0.6:  # few clips, heard often: another speed makes another one of them
                places = np.arange(0, len(piece) - 1, r.uniform(0.75, 1.3))
                piece = np.interp(places, np.arange(len(piece)), piece).astype(np.float32)
            piece = piece[: n - at]
            piece /= np.sqrt((piece**2).mean()) + 1
            if r.random() < 0.5:
                piece *= 10 ** (r.uniform(-6, 6) / 20)
            out[at : at + len(piece)] = piece
            at += len(piece) + (int(r.uniform(0, 2) * RATE) if r.random() < 0.3 else 0)
        return out

    def _tones(self, n: int) -> np.ndarray:
        """Notes, chords, sweeps and clicks."""
        r, out, at = self.r, np.zeros(n, np.float32), 0
        base, sweep = r.uniform(80, 900), r.random() < 0.2
        while at < n:
            length = min(n - at, int(r.uniform(0.08, 1.5) * RATE))
            t = np.arange(length, dtype=np.float32) / RATE
            note = np.zeros(length, np.float32)
            for ratio in r.choice([(1,), (1, 2, 3), (1, 1.25, 1.5), (1, 2, 3, 4, 5, 6)]):
                f = base * ratio * 2 ** (r.randrange(0, 13) / 12 if ratio == 1 else 0)
                note += np.sin(6.2832 * (f * t + (r.uniform(-300, 300) * t * t if sweep else 0))) / ratio
            out[at : at + length] = note * np.exp(-t * r.choice([0.0, 2.0, 8.0, 40.0]))
            at += length + (int(r.uniform(0, 0.6) * RATE) if r.random() < 0.3 else 0)
        return out

    def _tilt(self, audio: np.ndarray) -> np.ndarray:
        return (
            lfilter([1.0, -self.r.uniform(-0.6, 0.85)], [1.0], audio).astype(np.float32)
            if self.r.random() < 0.4
            else audio
        )

    # ---- a window ----

    def window(self, seconds: float, silent_share: float, prompt: int = 0) -> Window:
        """A window of `seconds`; 30 is what the model will meet, less is cheaper and true to the 30 s positions.

        Four in five get a prompt of at most `prompt` tokens, if that is not 0.
        """
        r = self.r
        silent = r.random() < silent_share
        draw = r.random()
        content = (
            seconds if draw < 0.6 else r.uniform(0.4, seconds) if draw < 0.72 else r.uniform(0.2, min(8.0, seconds))
        )
        n = int(content * RATE)
        utterances: list[list[Word]] = []
        if silent:
            what = r.random()
            audio = (
                self.sounds(n) + (10 ** (r.uniform(-15, 0) / 20) * self.sounds(n) if r.random() < 0.4 else 0.0)
                if what < 0.7
                else self._tones(n)
                if what < 0.82
                else r.choice(self._noise)[:n]
                if what < 0.92
                else np.zeros(n, np.float32)
            )
            audio = self._tilt(audio) * 10 ** (r.uniform(-60, -14) / 20)
        else:
            audio, utterances = self.stream(seconds if content < seconds else content)
            if content < seconds:  # a file ends after its last word, often at once; nothing is cut there
                content, utterances = self._whole(utterances, content, seconds)
                n = int(content * RATE)
                audio = audio[:n]
            level = 10 ** (r.uniform(-38, -14) / 20)
            active = audio[np.abs(audio) > 30]
            audio = self._tilt(audio) * (level / (np.sqrt((active**2).mean()) + 1e-9) if len(active) else 0.0)
            kind = r.random()
            if kind < 0.55:
                snr = r.uniform(-4, 25)
                noise = self.sounds(n) * level * 10 ** (-snr / 20)
                if r.random() < 0.2:
                    noise[: r.randrange(n)] = 0
                audio = audio + self._tilt(noise)
            elif kind < 0.72:
                audio = audio + r.choice(self._noise)[:n] * level * 10 ** (-r.uniform(25, 60) / 20)
        audio = np.clip(audio, -1, 1).astype(np.float32)
        frames = max(1, n // 160)
        # `transcribe` takes the floor from the loudest moment of the whole file, which may lie outside of this window
        mel = log_mel_spectrogram(torch.from_numpy(audio), padding=RATE // 10)[:, :frames]
        top = mel.max() + (r.uniform(0, 1.5) / 4 if r.random() < 0.4 else 0.0)
        mel = torch.maximum(mel, top - 2.0)
        total = round(seconds * 100)
        if frames < total:  # `transcribe` pads the mel with 0; sound padded with silence gives the floor instead
            padding = 0.0 if r.random() < 0.8 else max(-1.5, float(top) - 2.0)
            mel = torch.cat([mel, torch.full((80, total - frames), padding)], 1)
        offset = 0.0 if seconds >= 30 else round(r.uniform(0, 30 - seconds) / GRID) * GRID
        return self._targets(mel, utterances, content, offset, prompt)

    def _whole(self, utterances: list[list[Word]], content: float, seconds: float) -> tuple[float, list[list[Word]]]:
        """The length nearest `content` (seconds) at which a file ends behind an utterance, and its utterances."""
        ends = [words[-1].end for words in utterances if words[-1].end < seconds - 0.5]
        if not ends:
            return content, utterances
        end = max((e for e in ends if e <= content), default=ends[0])
        margin = self.r.choice([0.0, 0.0, self.r.uniform(0, 0.06), self.r.uniform(0, 0.5), self.r.uniform(0, 0.5)])
        kept = [words for words in utterances if words[-1].end <= end]
        following = [words[0].start for words in utterances if words[-1].end > end]
        return max(0.1, min(end + margin, min(following, default=seconds) - 0.05)), kept

    def _segments(self, utterances: list[list[Word]], content: float) -> tuple[list[list[Word]], float | None]:
        """Complete segments, and the time at which a cut one starts (None if the last is complete)."""
        segments: list[list[Word]] = []
        for words in utterances:
            heard = [w for w in words if w.start >= -0.3 * (w.end - w.start) - 1e-6]
            if not any(w.text not in ".?" for w in heard):
                continue
            segment: list[Word] = []
            for word in heard:
                digits = word.text.isdigit() and words[-1].text not in ".?"
                if segment and digits and (word.start - segment[-1].end >= SPLIT_PAUSE or len(segment) >= MAX_DIGITS):
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

    def _targets(
        self, mel: torch.Tensor, utterances: list[list[Word]], content: float, offset: float, prompt_size: int
    ) -> Window:
        r, v = self.r, self.vocabulary
        segments, cut = self._segments(utterances, content)
        labels = np.full(mel.shape[1] // 2, len(v.classes), np.int64)
        for word in (w for words in utterances for w in words if w.text not in ".?"):
            labels[max(0, round(word.start * 50)) : max(0, round(word.end * 50))] = v.classes[normal(word.text)]

        timed: list[int] = []
        if prompt_size and self.recent and r.random() < 0.8:
            texts = [r.choice(self.recent) for _ in range(r.choice([1, 1, 2, 3, 5]))]
            prompt = [t for text in texts for t in text]
            if r.random() < 0.1:
                prompt = [t for t in prompt if t < v.other]
            timed = [v.sot_prev, *prompt[-prompt_size:]]
        timed_from = len(timed)
        timed.append(v.sot)
        guides: list[tuple[int, float, float, float]] = []
        plain, plain_guides = [v.sot, v.no_timestamps], []
        starts = [s[0].start for s in segments] + ([cut] if cut is not None else [])
        for i, segment in enumerate(segments):
            start, end = segment[0].start, segment[-1].end
            t_start = int(max(0.0, start + offset) / GRID + 1e-6) * GRID
            t_end = -int(-(end + offset) / GRID + 1e-6) * GRID
            if end + offset > t_end:
                t_end += GRID
            if i + 1 < len(starts):  # words that touch share one timestamp, early enough not to cut the next word
                t_end = min(t_end, int(max(0.0, starts[i + 1] + offset) / GRID + 1e-6) * GRID)
            t_end = min(30.0, max(t_end, t_start + GRID))
            if i == 0:
                t_start = min(t_start, 1.0)
            guides.append((len(timed) - 1, start, start + 0.3, 0.0))
            timed.append(v.time(t_start))
            for j, word in enumerate(segment):
                low, high = (word.start, word.end) if word.text not in ".?" else (word.end - 0.05, word.end + 0.2)
                after = (
                    segment[j + 1].start
                    if j + 1 < len(segment)
                    else (starts[i + 1] if i + 1 < len(starts) else content)
                )
                guides.append((len(timed) - 1, low, high, 0.0))
                plain_guides.append((len(plain) - 1, low, high, min(after, high + 2.0)))
                timed.append(v.word(word.text))
                plain.append(v.word(word.text))
            guides.append((len(timed) - 1, end - 0.05, end + 0.3, 0.0))
            timed.append(v.time(t_end))
        if segments:
            plain_guides.append((len(plain) - 1, segments[-1][-1].end, segments[-1][-1].end + 0.4, 0.0))
            self.recent = [*self.recent[-60:], timed[timed_from + 1 :]]
            if cut is not None:
                guides.append((len(timed) - 1, cut, cut + 0.3, 0.0))
                timed.append(max(timed[-1], v.time(int((cut + offset) / GRID + 1e-6) * GRID)))
        else:
            timed.append(v.time0)
        timed.append(v.eot)
        plain.append(v.eot)
        first = timed[timed_from + 1]
        if segments and r.random() < 0.3:  # decoding may have been forced to begin at another time
            timed[timed_from + 1] = v.time(round(r.uniform(0, 1) / GRID) * GRID)
        return Window(
            mel, offset, timed, timed_from, first, guides, plain, plain_guides, cut is None, labels, not segments
        )
