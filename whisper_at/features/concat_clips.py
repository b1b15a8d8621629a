"""Clips concatenated into recordings, so that each is encoded in the context of others.

What an encoder computes for a sound depends on what else its window holds. Heads that were trained on short clips
followed by silence do not recognise the same sounds in a recording; heads that were trained on clips in context do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_SAMPLES

from ..audio import load_audio
from ..data.background import background_kind, packaged_background
from ..data.clips import Clip
from ..tagging.timeline import STEP_FRAMES

NUM_ORDERS = 3
"""How often clips are concatenated for training, each time in another order."""
MIN_RECORDING_SAMPLES = 8 * N_SAMPLES
"""A recording of this length takes no further clip."""
STEP_SAMPLES = STEP_FRAMES * HOP_LENGTH
BACKGROUND_STRIDE = 3
"""One in so many of the package's clips of speech and music is enough to lie under others."""


def split_and_fold(clip: Clip) -> tuple[str, str]:
    """Return split and fold. Clips that differ in them never share a recording, so that no test clip is trained on."""
    return clip.split, clip.fold


def shuffle_clips(clips: Iterable[Clip]) -> list[Clip]:
    """Return each clip once, grouped by split and fold, in an order that depends only on the file names.

    The order must not depend on positions in a list: lists are sorted by class, and a head would learn which class
    follows which.
    """
    groups: dict[tuple[str, str], list[Clip]] = {}
    for clip in dict.fromkeys(clips):
        groups.setdefault(split_and_fold(clip), []).append(clip)
    return [clip for group in groups.values() for clip in sorted(group, key=_hash_of_name)]


def _hash_of_name(clip: Clip) -> tuple[bytes, str]:
    name = f"{clip.path.name}{clip.key[len(str(clip.path)) :]}"  # with the part of the file, if it is one
    return hashlib.sha256(name.encode()).digest(), clip.key


def concat_sounds(sounds: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Concatenate sounds into a recording in which each starts on a step.

    The recording is continued from its beginning until it is a multiple of 30 s, so that no window ends in silence.

    Parameters
    ----------
    sounds : sequence of ndarray, shape (samples,)
        float32 audio at 16 kHz.

    Returns
    -------
    recording : ndarray, shape (samples,)
        The sounds, each padded to a multiple of 0.4 s.
    steps : list of int
        Number of steps that each sound takes.
    """
    padded = [np.pad(sound, (0, -len(sound) % STEP_SAMPLES)) for sound in sounds]
    recording = np.concatenate(padded)
    full = -(-len(recording) // N_SAMPLES) * N_SAMPLES
    return np.resize(recording, full), [len(sound) // STEP_SAMPLES for sound in padded]


def group_into_recordings(clips: Iterable[tuple[Clip, np.ndarray]]) -> Iterator[list[tuple[Clip, np.ndarray]]]:
    """Split clips with their samples, in the order of `shuffle_clips`, into the members of one recording each."""
    members: list[tuple[Clip, np.ndarray]] = []
    for clip, audio in clips:
        if members:
            full = sum(len(other) for _, other in members) >= MIN_RECORDING_SAMPLES
            if full or split_and_fold(clip) != split_and_fold(members[0][0]):
                yield members
                members = []
        members.append((clip, audio))
    if members:
        yield members


@cache
def read_background() -> np.ndarray:
    """Return speech and music of the package, one recording behind the other, float32 of shape (samples,).

    They are decoded once: a fit needs them for its training part and again for its validation part.
    """
    clips = [clip for clip in packaged_background() if background_kind(clip) in ("speech", "music")]
    background = np.concatenate([load_audio(clip.path) for clip in clips[::BACKGROUND_STRIDE]])
    background.flags.writeable = False
    return background


def mix_with_background(sounds: Sequence[np.ndarray], background: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return each sound over a part of the background that is as loud, or fainter by up to 20 dB.

    Parameters
    ----------
    sounds : sequence of ndarray, shape (samples,)
        float32 audio.
    background : ndarray, shape (samples,)
        float32 audio; repeated where a sound is longer.
    seed : int
        Of where the parts are cut, and of their level.
    """
    rng = np.random.default_rng(seed)
    mixed = []
    for sound in sounds:
        part = np.take(background, rng.integers(len(background)) + np.arange(len(sound)), mode="wrap")
        level = np.sqrt(np.mean(sound**2) / max(1e-12, float(np.mean(part**2)))) * 10 ** (-rng.uniform(0, 20) / 20)
        mixed.append(np.clip(sound + np.float32(level) * part, -1, 1))
    return mixed


def states_in_context(
    sounds: Sequence[np.ndarray],
    encode: Callable[[np.ndarray], Tensor],
    num_orders: int,
    isolated: Sequence[Tensor] = (),
    background: np.ndarray | None = None,
) -> list[list[Tensor]]:
    """Encode sounds in recordings that hold all of them, several times in different orders.

    Sounds that fill a window need no context: they are encoded once, in isolation. In the last recording, sounds may
    lie over speech and music, so that a head finds them there.

    Parameters
    ----------
    sounds : sequence of ndarray, shape (samples,)
        float32 audio at 16 kHz.
    encode : callable
        From the samples of a recording to its pooled states, shape (layers, steps, dim).
    num_orders : int
        How many recordings to make.
    isolated : sequence of Tensor, shape (layers, steps, dim), optional
        The states of each sound in isolation, if they are known.
    background : ndarray, shape (samples,), optional
        What sounds lie over in the last recording.

    Returns
    -------
    list of list of Tensor, shape (layers, steps, dim)
        For each order, the states of each sound.
    """
    short = [i for i, sound in enumerate(sounds) if len(sound) < N_SAMPLES]
    long_states = {
        i: isolated[i] if isolated else encode(sound) for i, sound in enumerate(sounds) if len(sound) >= N_SAMPLES
    }
    orders = []
    for seed in range(num_orders):
        states = dict(long_states)
        if short:
            order = [short[i] for i in np.random.default_rng(seed).permutation(len(short))]
            ordered = [sounds[i] for i in order]
            if background is not None and seed == num_orders - 1:
                ordered = mix_with_background(ordered, background, len(sounds))
            recording, steps = concat_sounds(ordered)
            states |= dict(zip(order, encode(recording)[:, : sum(steps)].split(steps, dim=1)))
        orders.append([states[i] for i in range(len(sounds))])
    return orders
