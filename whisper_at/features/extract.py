"""Pooled states of many clips: decode in several processes, encode in batches, write a feature store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..checkpoints.files import size_and_mtime
from ..data.clips import Clip
from ..windows import Window
from .concat_clips import group_into_recordings, read_background, shuffle_clips, states_in_context
from .encode import (
    FRAMES_PER_SECOND,
    JOINED,
    MIN_SAMPLES,
    MelWindow,
    encode_recordings,
    encode_windows,
    load_clip,
    mel_windows,
    num_steps,
)
from .files import FeatureMetadata, clip_key
from .progress import CostEstimator
from .writer import FeatureWriter

if TYPE_CHECKING:
    from ..model import WhisperAT


class UnreadableClip(NamedTuple):
    """A clip without states, and why."""

    clip: Clip
    reason: str


class EncodedClip(NamedTuple):
    """A clip, its states of shape (layers, steps, dim), and whether a shard may end with it."""

    clip: Clip
    states: Tensor
    may_flush: bool = True


def extract_features(
    clips: Sequence[Clip],
    folder: str | Path,
    model: WhisperAT,
    metadata: FeatureMetadata,
    *,
    workers: int = 0,
    batch: int = 16,
    progress: bool = False,
    log: Callable[[str], object] = lambda line: None,
) -> list[UnreadableClip]:
    """Write the pooled states of clips to a store; clips that are already there are skipped.

    Parameters
    ----------
    clips : sequence of Clip
        What to encode.
    folder : path
        The store.
    model : WhisperAT
        The model.
    metadata : FeatureMetadata
        Protocol and precision, see `whisper_at.features.encode.describe_features`.
    workers : int
        Processes that decode and compute spectrograms; 0 for this one.
    batch : int
        Number of windows that are encoded at once.
    progress : bool
        Whether to show a progress bar.
    log : callable
        Takes a line on how much time and space the rest will take.

    Returns
    -------
    list of UnreadableClip
        The clips that could not be read. The store lacks them: nothing stands in their place (defect T4).

    Raises
    ------
    ValueError
        As `FeatureWriter`.
    RuntimeError
        If the disk has no room for the states.
    """
    unreadable: list[UnreadableClip] = []
    with FeatureWriter(folder, metadata) as writer:
        in_context = metadata.protocol in ("30+", JOINED)
        ordered = shuffle_clips(clips) if in_context else dict.fromkeys(clips)
        missing = [clip for clip in ordered if not _is_written(clip, writer)]
        if not missing:
            return unreadable
        with tqdm(total=len(missing), unit="clip", disable=not progress, desc="features") as bar:
            estimator = CostEstimator(len(missing), metadata, writer.folder, log, bar.update)
            if metadata.protocol == "10":  # all clips are of one length
                estimator.check_disk_space(num_steps(Window(0, round(metadata.seconds * FRAMES_PER_SECOND))))
            encoded: Iterator[EncodedClip | UnreadableClip]
            if in_context:
                audio = _load(missing, partial(load_clip, min_samples=MIN_SAMPLES), workers)
                encoded = _encode_in_context(audio, model, batch, estimator)
            else:
                load_windows = partial(_load_windows, n_mels=model.dims.n_mels, seconds=metadata.seconds)
                encoded = _encode_isolated(_load(missing, load_windows, workers), model, batch, estimator)
            for item in encoded:
                if isinstance(item, UnreadableClip):
                    unreadable.append(item)
                    continue
                try:
                    writer.add(*item)
                except ValueError as error:
                    unreadable.append(UnreadableClip(item.clip, str(error)))
    return unreadable


def _is_written(clip: Clip, writer: FeatureWriter) -> bool:
    row = writer.written.get(clip_key(clip))
    return row is not None and clip.path.exists() and size_and_mtime(clip.path) == (row.size, row.mtime)


# --- reading, possibly in other processes ----------------------------------------------------------------------


def _load_windows(clip: Clip, n_mels: int, seconds: float) -> list[MelWindow]:
    return mel_windows(load_clip(clip, min_samples=MIN_SAMPLES), n_mels, seconds)


def _load(clips: Sequence[Clip], load: Callable[[Clip], Any], workers: int) -> Iterable[Any]:
    """Yield each clip with what `load` returns, or as an `UnreadableClip`, in order."""
    return DataLoader(
        _ClipDataset(clips, load),
        batch_size=None,
        num_workers=min(workers, len(clips)),
        prefetch_factor=8 if workers else None,
        collate_fn=_identity,
    )


class _ClipDataset(Dataset[Any]):
    """Errors are returned, not raised, so that the other clips go on."""

    def __init__(self, clips: Sequence[Clip], load: Callable[[Clip], Any]) -> None:
        self.clips, self.load = clips, load

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> tuple[Clip, Any] | UnreadableClip:
        try:
            return self.clips[i], self.load(self.clips[i])
        except (OSError, RuntimeError, ValueError) as error:
            return UnreadableClip(self.clips[i], str(error))


def _identity(item: Any) -> Any:
    return item


# --- encoding --------------------------------------------------------------------------------------------------


def _encode_isolated(
    loaded: Iterable[tuple[Clip, list[MelWindow]] | UnreadableClip],
    model: WhisperAT,
    batch: int,
    estimator: CostEstimator,
) -> Iterator[EncodedClip | UnreadableClip]:
    """Encode every clip by itself; windows of several clips share a batch."""
    pending: list[tuple[Clip, list[MelWindow]]] = []
    for item in loaded:
        if isinstance(item, UnreadableClip):
            yield item
            continue
        pending.append(item)
        if estimator.warming_up or sum(len(windows) for _, windows in pending) >= batch:
            yield from _encode_batch(pending, model, batch, estimator)
            pending = []
    if pending:
        yield from _encode_batch(pending, model, batch, estimator)


def _encode_batch(
    clips: Sequence[tuple[Clip, list[MelWindow]]], model: WhisperAT, batch: int, estimator: CostEstimator
) -> Iterator[EncodedClip]:
    encoded = encode_recordings([windows for _, windows in clips], partial(encode_windows, model), batch)
    for (clip, _), states in zip(clips, encoded):
        yield EncodedClip(clip, states)
        estimator.add_clip(states.shape[1])
    estimator.end_batch()


def _encode_in_context(
    loaded: Iterable[tuple[Clip, np.ndarray] | UnreadableClip], model: WhisperAT, batch: int, estimator: CostEstimator
) -> Iterator[EncodedClip | UnreadableClip]:
    """Encode clips in recordings of several and, under protocol 30+, in isolation before."""
    unreadable: list[UnreadableClip] = []
    background = read_background() if estimator.metadata.protocol == "30+" else None

    def readable() -> Iterator[tuple[Clip, np.ndarray]]:
        for item in loaded:
            if isinstance(item, UnreadableClip):
                unreadable.append(item)
            else:
                yield item

    for recording in group_into_recordings(readable()):
        yield from unreadable
        unreadable.clear()
        yield from _encode_recording(recording, model, batch, estimator, background)
    yield from unreadable


def _encode_recording(
    recording: Sequence[tuple[Clip, np.ndarray]],
    model: WhisperAT,
    batch: int,
    estimator: CostEstimator,
    background: np.ndarray | None,
) -> Iterator[EncodedClip]:
    """Encode the clips of one recording in all their views."""
    metadata, sounds = estimator.metadata, [audio for _, audio in recording]

    def encode(sounds: Sequence[np.ndarray]) -> list[Tensor]:
        windows = [mel_windows(audio, model.dims.n_mels) for audio in sounds]
        return encode_recordings(windows, partial(encode_windows, model), batch)

    isolated: list[Tensor] = []
    while metadata.protocol != JOINED and len(isolated) < len(sounds):
        states = encode(sounds[len(isolated) :][: 1 if estimator.warming_up else batch])
        isolated += states
        for item in states:
            estimator.add_clip(metadata.views * item.shape[1])
        estimator.end_batch()

    views = [isolated] if isolated else []
    num_orders = metadata.views - len(views)
    views += states_in_context(sounds, lambda audio: encode([audio])[0], num_orders, isolated, background)
    for i, (clip, _) in enumerate(recording):
        steps = min(view[i].shape[1] for view in views)
        together = torch.cat([view[i][:, :steps] for view in views], dim=1)
        if not isolated:
            estimator.add_clip(together.shape[1])
        yield EncodedClip(clip, together, may_flush=i + 1 == len(recording))
    if not isolated:
        estimator.end_batch()
