"""From recordings to pooled states: decode in several processes, encode in batches, write a store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from whisper.audio import HOP_LENGTH, N_FFT, N_FRAMES, SAMPLE_RATE, pad_or_trim

from ..audio import load_audio, log_mel_spectrogram
from ..checkpoints import encoder_sha256
from ..data.clips import Clip
from ..mel import LogMel
from ..model import WhisperAT
from ..tagging.timeline import POSITION_FRAMES, STEP_POSITIONS, pool_steps
from ..windows import Window
from .concat_clips import company_states, in_random_order, recordings_of
from .config import PROTOCOLS
from .features import About, FeatureWriter, hearings_of, key_of, stamp

JOINED = "joined"
"""The protocol of clips in company alone, under which heads are scored and not trained."""
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
ALONE = 2  # clips that go first, one by one: the second tells how long the rest will take
TIMED = 3  # batches after those whose time tells it better
MANY = 100  # clips from which on it is told anew
SPARE = 1.02  # of the space that states need: rows of the index


MelWindow = tuple[np.ndarray, Window]
Hear = Callable[[Sequence[np.ndarray], Sequence[Window]], list[Tensor]]
"""From spectrograms, and where each lies in its recording, to pooled states ``(layers, steps, dim)`` of each."""


class Unreadable(NamedTuple):
    """A clip without states, and why."""

    clip: Clip
    reason: str


class Result(NamedTuple):
    """The states ``(layers, steps, dim)`` of a clip or what is wrong with it, and whether it ends its recording."""

    clip: Clip
    states: Tensor | str
    last: bool = True


def describe(
    name: str, model: WhisperAT, protocol: str = "30", seconds: float | None = None, dtype: str = "float16"
) -> About:
    """What the states of this model and protocol are.

    Parameters
    ----------
    name : of the model
    protocol : ``"10"`` as Whisper-AT's heads were trained: the spectrogram of the clip alone, its dynamic range cut
        below its own maximum, padded with 0.0 or cut to ``seconds``; the encoder sees so many positions and no more
        (spec section 3.1). ``"30"`` as transcription hears: windows of 30 s, padded with 0.0 behind the end, of which
        only steps that hold audio are kept. ``"30+"``: every clip is heard so and, besides, in the company of others:
        in recordings of some minutes that are made of clips of one split and fold, one behind the other, in three
        random orders. What an encoder makes of a sound depends on what else its window holds, and heads that know clips
        amid silence alone do not know them again in a recording. ``"joined"``: in company only, to score heads.
    seconds : length under protocol 10, a multiple of 0.02 up to 30; 10 by default

    Raises
    ------
    ValueError
        If there is no such protocol or length.
    """
    if protocol not in (known := (*PROTOCOLS, JOINED)):
        raise ValueError(f"protocol must be {' or '.join(known)}, not {protocol!r}")
    if protocol != "10" and seconds:
        raise ValueError(f"seconds is for protocol 10; protocol {protocol} keeps every clip as long as it is")
    seconds = float(seconds or 10.0) if protocol == "10" else 0.0
    frames = round(seconds * FRAMES_PER_SECOND)
    if protocol == "10" and (
        not 0 < frames <= N_FRAMES or frames % POSITION_FRAMES or abs(frames / FRAMES_PER_SECOND - seconds) > 1e-6
    ):
        raise ValueError(f"seconds must be a multiple of 0.02 up to 30, not {seconds:g}")
    dims = model.dims
    sha256 = encoder_sha256(model.state_dict())
    return About(name, sha256, protocol, seconds, dims.n_audio_layer, dims.n_audio_state, dtype, hearings_of(protocol))


def load_part(clip: Clip, sr: int = SAMPLE_RATE) -> np.ndarray:
    """Samples of a clip, float32 ``(samples,)``; of a file, or of the part of it that the clip is.

    Raises
    ------
    FileNotFoundError, RuntimeError
        As `load_audio`.
    ValueError
        If it ends before it starts, or starts behind the file's end.
    """
    audio = load_audio(clip.path, sr)
    if clip.start or clip.end is not None:
        first, last = round(clip.start * sr), len(audio) if clip.end is None else round(clip.end * sr)
        if not 0 <= first < last or first >= len(audio):
            part = f"{clip.start:g} to {'the end' if clip.end is None else f'{clip.end:g}'} s"
            raise ValueError(f"{part} is no part of it: it is {len(audio) / sr:.2f} s long")
        audio = audio[first:last]
    return audio


def audible(clip: Clip) -> np.ndarray:
    """The samples of a clip that is long enough to hold an encoder position.

    Raises
    ------
    FileNotFoundError, RuntimeError, ValueError
        As `load_part`; or it is too short (20 ms).
    """
    audio = load_part(clip)
    if len(audio) < max(N_FFT // 2 + 1, POSITION_FRAMES * HOP_LENGTH):
        raise ValueError(f"it holds {len(audio) / SAMPLE_RATE * 1000:.0f} ms of sound, which is too short")
    return audio


def mel_windows(audio: np.ndarray, n_mels: int, seconds: float = 0.0) -> list[MelWindow]:
    """What the encoder is to see of a recording: spectrograms ``(n_mels, frames)``, and where each lies in it.

    Those of transcription or, where ``seconds`` are given, one of that length (protocol 10).
    """
    if seconds:
        frames = round(seconds * FRAMES_PER_SECOND)
        alone = log_mel_spectrogram(audio, n_mels)[:, :frames]
        return [(F.pad(alone, (0, frames - alone.shape[1])).numpy(), Window(0, frames))]
    with LogMel(audio, n_mels) as mel:
        content = mel.content_frames
        windows = [Window(seek, min(N_FRAMES, content - seek)) for seek in range(0, content, N_FRAMES)]
        windows = [window for window in windows if window.size >= POSITION_FRAMES]
        return [(pad_or_trim(mel.window(window.seek, window.end), N_FRAMES).numpy(), window) for window in windows]


@torch.no_grad()
def encode(model: WhisperAT, mels: Sequence[np.ndarray], windows: Sequence[Window]) -> list[Tensor]:
    """Pooled states of windows of one length, ``(layers, steps, dim)`` each; only steps that hold audio.

    Full windows go through the model as in transcription. The encoder sees shorter ones with its table of positions
    cut to their length (spec section 3.1).
    """
    mel = torch.from_numpy(np.stack(mels)).to(model.device)
    mel = mel.half() if mel.is_cuda and model.compute_type in (None, "float16") else mel
    if mel.shape[-1] == N_FRAMES:
        _, states = model.encode(mel, windows)
    else:
        encoder, layers = model.encoder, []
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).permute(0, 2, 1)
        x = (x + encoder.positional_embedding[: x.shape[1]]).to(x.dtype)
        for block in encoder.blocks:
            x = block(x)
            layers.append(pool_steps(x, windows))
        states = torch.stack(layers, dim=1)
    return [item[:, : steps_of(window)].float().cpu() for item, window in zip(states, windows)]


def steps_of(window: Window) -> int:
    """Steps that hold audio, of a window that begins with one."""
    return -(-(window.size // POSITION_FRAMES) // STEP_POSITIONS)


def extract(
    clips: Sequence[Clip],
    folder: str | Path,
    model: WhisperAT,
    about: About,
    *,
    workers: int = 0,
    batch: int = 16,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Unreadable]:
    """Write the states of clips to a store; clips that are there already are passed over.

    Returns the clips that could not be read, which the store then lacks: nothing stands in their place (defect T4).

    Parameters
    ----------
    about : see `describe`
    workers : processes that decode and compute spectrograms; 0 for none beside this one
    batch : windows that the encoder sees at once
    say : is told, after two clips, how much time and space the rest will take, and of many again after some batches

    Raises
    ------
    ValueError
        As `FeatureWriter`.
    RuntimeError
        If the disk has no room for them.
    """
    unreadable: list[Unreadable] = []
    with FeatureWriter(folder, about) as writer:
        company = about.protocol in ("30+", JOINED)
        every = in_random_order(clips) if company else dict.fromkeys(clips)
        todo = [clip for clip in every if not _is_done(clip, writer)]
        if not todo:
            return unreadable
        clock = _Clock(len(todo), about, writer.folder, say)
        if about.protocol == "10":
            clock.refuse_small_disk(-(-round(about.seconds * FRAMES_PER_SECOND / POSITION_FRAMES) // STEP_POSITIONS))
        read = audible if company else partial(_seen, n_mels=model.dims.n_mels, seconds=about.seconds)
        decoded = _decoded(todo, read, workers)
        bar = tqdm(total=len(todo), unit="clip", disable=not progress, desc="features")
        with bar:
            for clip, states, last in (_in_company if company else _encoded)(decoded, todo, model, batch, clock):
                if isinstance(states, str):
                    unreadable.append(Unreadable(clip, states))
                else:
                    try:
                        writer.add(clip, states, last)
                    except ValueError as error:
                        unreadable.append(Unreadable(clip, str(error)))
                bar.update()
    return unreadable


def _is_done(clip: Clip, writer: FeatureWriter) -> bool:
    row = writer.done.get(key_of(clip))
    return row is not None and clip.path.exists() and stamp(clip.path) == (row.size, row.mtime)


def _seen(clip: Clip, n_mels: int, seconds: float) -> list[MelWindow]:
    return mel_windows(audible(clip), n_mels, seconds)


def _decoded(todo: Sequence[Clip], read: Callable[[Clip], Any], workers: int) -> Iterator[Any]:
    """For each clip, in order, what ``read`` gives or, as text, what is wrong with it."""
    loader: DataLoader = DataLoader(
        _Decoding(list(todo), read),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=min(workers, len(todo)),
        prefetch_factor=8 if workers else None,
        collate_fn=_unchanged,
    )
    return iter(loader)


def _unchanged(item: Any) -> Any:
    return item


@dataclass
class _Decoding:
    """Clips by number; what goes wrong is an answer, so that the rest go on."""

    clips: list[Clip]
    read: Callable[[Clip], Any]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> Any:
        try:
            return self.read(self.clips[i])
        except (OSError, RuntimeError, ValueError) as error:
            return str(error)


def _encoded(
    decoded: Iterator[list[MelWindow] | str], todo: Sequence[Clip], model: WhisperAT, batch: int, clock: _Clock
) -> Iterator[Result]:
    """Every clip by itself; windows of several go together."""
    held: list[tuple[Clip, list[MelWindow]]] = []
    for clip, windows in zip(todo, decoded):
        if isinstance(windows, str):
            yield Result(clip, windows)
            continue
        held.append((clip, windows))
        if clock.batches < ALONE or sum(len(windows) for _, windows in held) >= batch:
            yield from _flushed(held, model, batch, clock)
            held = []
    if held:
        yield from _flushed(held, model, batch, clock)


def _flushed(
    held: Sequence[tuple[Clip, list[MelWindow]]], model: WhisperAT, batch: int, clock: _Clock
) -> Iterator[Result]:
    for (clip, _), states in zip(
        held, recording_states([windows for _, windows in held], partial(encode, model), batch)
    ):
        yield Result(clip, states)
        clock.count(states.shape[1])
    clock.batch_done()


def recording_states(recordings: Sequence[list[MelWindow]], hear: Hear, batch: int) -> list[Tensor]:
    """Pooled states ``(layers, steps, dim)`` of each recording, given as windows, of which ``batch`` go at once."""
    together = [window for windows in recordings for window in windows]
    states: list[Tensor] = []
    for first in range(0, len(together), batch):
        part = together[first : first + batch]
        states += hear([mel for mel, _ in part], [window for _, window in part])
    rest = iter(states)
    return [torch.cat([next(rest) for _ in windows], dim=1) for windows in recordings]


def _in_company(
    decoded: Iterator[np.ndarray | str], todo: Sequence[Clip], model: WhisperAT, batch: int, clock: _Clock
) -> Iterator[Result]:
    """Every clip in recordings that are made of several and, under protocol 30+, before that by itself."""
    failed: list[Result] = []

    def readable() -> Iterator[tuple[Clip, np.ndarray]]:
        for clip, audio in zip(todo, decoded):
            if isinstance(audio, str):
                failed.append(Result(clip, audio))
            else:
                yield clip, audio

    for held in recordings_of(readable()):
        yield from failed
        failed.clear()
        yield from _recording(held, model, batch, clock)
    yield from failed


def _recording(
    held: Sequence[tuple[Clip, np.ndarray]], model: WhisperAT, batch: int, clock: _Clock
) -> Iterator[Result]:
    """The clips of one recording, in all their hearings."""
    sounds, hear = [audio for _, audio in held], partial(encode, model)
    alone: list[Tensor] = []
    while clock.about.protocol != JOINED and len(alone) < len(held):
        more = sounds[len(alone) :][: 1 if clock.batches < ALONE else batch]
        alone += recording_states([mel_windows(audio, model.dims.n_mels) for audio in more], hear, batch)
        for states in alone[-len(more) :]:
            clock.count(clock.about.hearings * states.shape[1])
        clock.batch_done()

    def heard(audio: np.ndarray) -> Tensor:
        return recording_states([mel_windows(audio, model.dims.n_mels)], hear, batch)[0]

    found = [alone] if alone else []
    found += company_states(sounds, heard, clock.about.hearings - len(found), alone)
    for i, (clip, _) in enumerate(held):
        least = min(hearing[i].shape[1] for hearing in found)
        together = torch.cat([hearing[i][:, :least] for hearing in found], dim=1)
        if not alone:
            clock.count(together.shape[1])
        yield Result(clip, together, last=i + 1 == len(held))
    if not alone:
        clock.batch_done()


class _Clock:
    """Tells time and space, first from one clip and, where there are many, then from some batches."""

    def __init__(self, n_clips: int, about: About, folder: Path, say: Callable[[str], None]) -> None:
        self.n_clips, self.about, self.folder, self.say = n_clips, about, folder, say
        self.clips = self.steps = self.batches = self.before = 0
        self.first = time.perf_counter()

    def count(self, steps: int) -> None:
        self.clips, self.steps = self.clips + 1, self.steps + steps

    def batch_done(self) -> None:
        self.batches += 1
        now, left = time.perf_counter(), self.n_clips - self.clips
        if self.batches == ALONE or (self.batches == ALONE + TIMED and left >= MANY):
            each = (now - self.first) / (self.clips - self.before)
            needed = self.refuse_small_disk(self.steps / self.clips)
            if left:
                self.say(f"{self.n_clips} clips: about {duration(each * left)} more, and {size(needed)} on disk")
        if self.batches in (ALONE - 1, ALONE):  # the first batch's time is that of starting, too
            self.before, self.first = self.clips, now

    def refuse_small_disk(self, steps: float) -> float:
        """Bytes that all clips take at so many steps a clip; RuntimeError if they do not fit."""
        itemsize = np.dtype(self.about.dtype).itemsize
        needed = SPARE * self.n_clips * steps * self.about.layers * self.about.dim * itemsize
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise RuntimeError(
                f"the features of {self.n_clips} clips take {size(needed)}, but {self.folder} has {size(free)} free; "
                "choose a folder on a larger disk, or a smaller model"
            )
        return needed


def size(n_bytes: float) -> str:
    """Bytes for people: ``"1.5 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.4g} TB"


def duration(seconds: float) -> str:
    """Seconds for people: ``"3 min"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
