"""`Stream`: words and sounds while they happen.

A pass of the encoder and decoder is made over the last seconds at every interval of the stream's own clock, whatever
the pieces are that it is fed in. What is final, of words and of tags, is told once; what is partial is replaced by the
next pass.

The sound of a pass starts behind the last sentence that is final, so that it is some seconds long and not thirty; the
text before is the prompt, and final words of the same pass are what its decoder goes on from. Where no voice is heard,
passes become rare until it gets louder.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, N_FFT, N_FRAMES, SAMPLE_RATE, pad_or_trim
from whisper.tokenizer import get_tokenizer

from ..audio import check_finite
from ..decoding import encode_text, resolve_language
from ..engine.kv_cache import EncodedAudio
from ..tagging.rows import TagOptions
from ..tagging.timeline import steps_to_seconds
from ..windows import Window
from .hypothesis import WordDecoder
from .messages import Message
from .policies import POLICIES
from .sounds import SoundTracker
from .spectrogram import StreamingLogMel
from .text import TextTracker, even

if TYPE_CHECKING:
    from ..model import WhisperAT

INTERVAL = 0.8
"""Seconds from one pass to the next while somebody speaks."""
EDGE = 0.4
"""With AlignAtt, words that attend to so many of the last seconds may go on."""
PADDING_FRAMES = 300
"""Silence behind the sound of a pass: with less than two seconds, a decoder that knows thirty goes on and on."""
MIN_FRAMES = 600
REST_FRAMES = 500
"""Where no voice is heard, there is a pass every five seconds …"""
WAKE = 0.4
"""… unless a block is so much louder than what was heard last, in powers of ten (4 dB) …"""
AWAKE_FRAMES = 240
"""… or was so long ago at most: what has just begun is not known by its first moment."""
CONTEXT_FRAMES = 100
"""Sound before the end of a pass without a voice that the next one hears again."""
VOICE_FRAMES = 200
"""A voice is looked for in the last two seconds at least …"""
MAX_VOICE_FRAMES = 400
"""… and four at most."""
MIN_VOICE = 0.1
"""Probability of a voice below which nothing is decoded."""
MAX_FRAMES = 2400
"""A pass that is longer, and is cut nowhere else, is cut all the same …"""
KEPT_FRAMES = 500
"""… and so much of it is left."""
MAX_BLOCK_FRAMES = 240
"""Who lags behind has so much heard in a pass: of five seconds, a decoder that ends too early loses twice as much."""


class StreamState(NamedTuple):
    """Where a stream can be taken up again: ``Stream(model, **state._asdict())``.

    Attributes
    ----------
    position : float
        Seconds from which the sound is to be fed again: the end of the last final word, or of silence.
    prompt : str
        The text before.
    language : str or None
        Its code.
    """

    position: float
    prompt: str
    language: str | None


class Stream:
    """A transcription that is fed sound as it comes in, and tells words, tags and events as soon as they are settled.

    Parameters
    ----------
    model : WhisperAT
        Any Whisper; tags are found by its heads. Its decoder must be openai-whisper's as installed.
    language : str, optional
        As of `transcribe`; where it is not given, it is detected until the first word is final.
    task : {"transcribe", "translate", "tag"}
        ``tag`` tells sounds alone.
    at_time_res : float, iterable of float, "auto" or None
        Seconds per row of tags, as of `transcribe`, up to 30; events are found in the finest rows.
    policy : {"align_att", "local_agreement"}
        How it is decided which words are final, see `whisper_at.live.policies`.
    interval : float, optional
        Seconds from one pass to the next, a multiple of 0.02: shorter ones cost more and tell earlier.
        By default 0.8, and for ``tag`` the length of a row.
    position : float
        Where the stream starts, in seconds: what times count from, and the grid of rows.
    prompt : str
        Text before it, as ``initial_prompt`` of `transcribe`.
    tag_options : TagOptions, optional
        Which tags rows name, and in which language.
    **decode_options
        Of ``DecodingOptions``, such as ``beam_size``.

    Raises
    ------
    ValueError
        If an option is out of range, the decoder was changed, or tags are asked of a model without a head.

    Examples
    --------
    >>> import whisper_at
    >>> from whisper_at.live import Final, Stream
    >>> stream = Stream(whisper_at.load_model("nano.en"))
    >>> audio = whisper_at.load_audio("sample/speech.flac")
    >>> messages = [message for i in range(0, len(audio), 1600) for message in stream.feed(audio[i : i + 1600])]
    >>> messages += stream.finish()
    >>> any(isinstance(message, Final) for message in messages)
    True
    """

    def __init__(
        self,
        model: WhisperAT,
        language: str | None = None,
        *,
        task: str = "transcribe",
        at_time_res: float | Iterable[float] | str | None = "auto",
        policy: str = POLICIES[0],
        interval: float | None = None,
        position: float = 0.0,
        prompt: str = "",
        tag_options: TagOptions | None = None,
        **decode_options: Any,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy must be {' or '.join(POLICIES)}, not {policy!r}")
        if task not in ("transcribe", "translate", "tag"):
            raise ValueError(f"task must be transcribe, translate or tag, not {task!r}")
        if not 0 <= position < 1e9:
            raise ValueError(f"position is a number of seconds from 0, not {position}")
        if not model.is_unmodified:
            raise ValueError("streams need a decoder as openai-whisper has it: this one was changed")
        self.model = model
        self.writes_text = task != "tag"
        written = "transcribe" if task == "tag" else task
        self._fixed_language, self.task = resolve_language(model, language, written)
        self.language = self._fixed_language
        self._decode_options = decode_options
        options = tag_options or TagOptions()
        names = options.label_language
        names = (self.language or "en") if names == "follow_asr" else names
        self.first_frame = even(round(position * FRAMES_PER_SECOND))
        self.sounds = SoundTracker(model, at_time_res, self.first_frame, options, names)
        if task == "tag" and not self.sounds.row_steps:
            raise ValueError("task='tag' needs at_time_res, and a model with a head")
        if interval is None:
            interval = INTERVAL if self.writes_text else min(5.0, steps_to_seconds(min(self.sounds.row_steps)))
        if not 0.02 <= interval <= 5 or abs(round(interval * 50) - interval * 50) > 1e-6:
            raise ValueError(f"interval must be a multiple of 0.02 s from 0.02 to 5, not {interval}")
        self.interval = interval
        tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages)
        tokens = encode_text(tokenizer, prompt) if prompt.strip() else []
        self._text = TextTracker(policy, EDGE, tokens, self.first_frame / FRAMES_PER_SECOND)
        self._mel = StreamingLogMel(model.dims.n_mels, self.first_frame)
        self._half = model.device.type == "cuda" and model.compute_type in (None, "float16")
        self._pending = np.zeros(0, np.float32)  # samples of the next block
        self._samples = 0
        self._start = self.first_frame  # of the next pass
        self._heard_until = self.first_frame
        self._is_resting, self._background = False, 0.0
        self._awake_until = self.first_frame
        self._is_finished = False

    @property
    def position(self) -> float:
        """Seconds of the stream that were fed, the position that it started at included."""
        return self.first_frame / FRAMES_PER_SECOND + self._samples / SAMPLE_RATE

    def feed(self, samples: np.ndarray | bytes | bytearray | memoryview, *, catch_up: bool = False) -> list[Message]:
        """Take the next sound, and return what has become known.

        Parameters
        ----------
        samples : ndarray, shape (samples,), or bytes
            One channel at 16 kHz: float32 between -1 and 1, or int16; bytes are of int16, little-endian.
        catch_up : bool
            Make one pass over all of it (or all of 2.4 s) instead of one at each interval: for whoever lags behind.

        Raises
        ------
        ValueError
            If the samples are of another type or shape, or not finite; or the stream is finished.
        """
        if self._is_finished:
            raise ValueError("this stream is finished: make another, from its state()")
        samples = as_float(samples)
        self._samples += len(samples)
        self._pending = np.concatenate([self._pending, samples])
        size = round(self.interval * SAMPLE_RATE)
        messages: list[Message] = []
        while len(self._pending) >= size:
            blocks = min(len(self._pending), MAX_BLOCK_FRAMES * HOP_LENGTH) // size if catch_up else 1
            block, self._pending = np.split(self._pending, [max(blocks, 1) * size])
            messages += self._hear(block)
        return messages

    def finish(self) -> list[Message]:
        """Return what is left: the sound since the last pass, and words and events that were open."""
        if self._is_finished:
            return []
        self._is_finished = True
        end = self.first_frame + self._samples // HOP_LENGTH
        self._mel.append(np.concatenate([self._pending, np.zeros(N_FFT, np.float32)]))
        messages = self._listen(end) if end - self._start > 1 else []
        return [*messages, *self._text.finish(), *self.sounds.finish(end)]

    def state(self) -> StreamState:
        """Return where to go on after a break."""
        tokenizer = get_tokenizer(self.model.is_multilingual, num_languages=self.model.num_languages)
        finals = [token for word in self._text.finals for token in word.tokens]
        position = max(self._start / FRAMES_PER_SECOND, self._text.last_end)
        return StreamState(position, tokenizer.decode([*self._text.prompt, *finals]).strip(), self.language)

    # --- passes ---

    def _hear(self, block: np.ndarray) -> list[Message]:
        """Take a block, and make a pass unless it can wait."""
        before = self._mel.end
        self._mel.append(block)
        end = even(self._mel.end)
        is_early = self._is_resting and end - self._heard_until < REST_FRAMES
        if is_early and self._mel.loudness(before, end) > self._background + WAKE:
            self._awake_until = end + AWAKE_FRAMES
        can_wait = is_early and end > self._awake_until
        return [] if can_wait or end <= self._start else self._listen(end)

    def _listen(self, end: int) -> list[Message]:
        """Make a pass over the sound up to a frame."""
        window = Window(self._start, end - self._start)
        features, states = self._encode(window)
        messages = self.sounds.add_window(window, states, features)
        if self.writes_text and self._has_voice(window):
            messages += self._decode(window, features)
            self._is_resting = self._nothing_is_said(end)
        else:
            messages += self._text.forget_partial()
            self._is_resting = True
        if self._is_resting:
            self._background = self._mel.loudness(max(self._start, self._heard_until - CONTEXT_FRAMES), end)
            self._text.cut_all()
            if end >= self._awake_until:
                self._start = max(self._start, even(end - CONTEXT_FRAMES))
        elif (place := self._text.cut(self._start, end)) is not None:
            self._start = max(self._start, even(self._mel.quietest(*place)))
        if end - self._start > MAX_FRAMES:
            self._text.cut_all()
            self._start = even(end - KEPT_FRAMES)
        self._heard_until = end
        self._mel.drop_before(self._start)
        self.sounds.drop_before(min(self._start, end - MAX_VOICE_FRAMES))
        return messages

    @torch.no_grad()
    def _encode(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features ``(positions, dim)`` and pooled states ``(layers, steps, dim)`` of a pass."""
        frames = -(-(window.size + PADDING_FRAMES) // 100) * 100
        mel = pad_or_trim(self._mel.window(window.seek, window.end), min(max(frames, MIN_FRAMES), N_FRAMES))
        mel = mel.to(self.model.device, torch.float16 if self._half else torch.float32)
        features, states = self.model.encode(mel[None], [window], partial=True)
        return features[0], states[0]

    def _has_voice(self, window: Window) -> bool:
        """Return whether there may be a voice in the sound that has no final words yet, or none that tells."""
        without_words = max(self._text.last_end, (window.end - MAX_VOICE_FRAMES) / FRAMES_PER_SECOND)
        start = max(window.seek, min(round(without_words * FRAMES_PER_SECOND), window.end - VOICE_FRAMES))
        probability = self.sounds.voice_probability(start, window.end)
        return probability is None or probability >= MIN_VOICE

    def _nothing_is_said(self, end: int) -> bool:
        """Return whether, where no head tells voices, no words have come for a while."""
        since = end / FRAMES_PER_SECOND - max(self._text.last_end, self._start / FRAMES_PER_SECOND)
        return self.sounds.voices is None and not self._text.partial and since > VOICE_FRAMES / FRAMES_PER_SECOND

    def _decode(self, window: Window, features: torch.Tensor) -> list[Message]:
        audio = self.model.precompute_cross_kv(features[None])
        self.model.fast_decoder(features.dtype).keep_layers_converted()
        if self._fixed_language is None:
            self.language = self._detect_language(audio)
        decoder = WordDecoder(self.model, self.language or "en", self.task, self._decode_options)
        words = decoder(audio, window, self._text.prompt, self._text.finals, self._text.last_end)
        messages = self._text.update(words, window.end / FRAMES_PER_SECOND)
        if self._text.finals:
            self._fixed_language = self.language
        return messages

    def _detect_language(self, audio: EncodedAudio) -> str:
        _, found = self.model.detect_language(audio)
        probabilities = cast(list[dict[str, float]], found)[0]
        return max(probabilities, key=probabilities.__getitem__)


def as_float(samples: np.ndarray | bytes | bytearray | memoryview) -> np.ndarray:
    """Return samples, or bytes of them, as float32 ``(samples,)``.

    Raises
    ------
    ValueError
        If they are of another type or shape, or not finite.
    """
    if isinstance(samples, (bytes, bytearray, memoryview)):
        if len(samples) % 2:
            raise ValueError(f"bytes of a stream are int16 samples, two bytes each, not {len(samples)} in all")
        samples = np.frombuffer(samples, "<i2")
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype not in (np.float32, np.int16):
        shape = f"{samples.dtype} of shape {samples.shape}"
        raise ValueError(f"a stream takes one channel at 16 kHz, float32 or int16 of shape (samples,), not {shape}")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768.0
    check_finite(torch.from_numpy(samples))
    return samples
