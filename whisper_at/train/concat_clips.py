"""Clips in each other's company: recordings made of them, one behind the other.

What an encoder makes of a sound depends on what else its window holds. Heads that know short clips amid silence alone
do not know them again in a recording; heads that heard them among others do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_SAMPLES

from ..data.clips import Clip
from ..tagging.timeline import STEP_FRAMES

TIMES = 3
"""How often clips are joined for training, each time in another order."""
LONG_ENOUGH = 8 * N_SAMPLES
"""Samples from which on a recording takes no further clip."""
STEP_SAMPLES = STEP_FRAMES * HOP_LENGTH


def part_of(clip: Clip) -> tuple[str, str]:
    """Split and fold: clips of others do not keep it company, so that what is held apart is not heard in training."""
    return clip.split, clip.fold


def in_random_order(clips: Iterable[Clip]) -> list[Clip]:
    """Each clip once, those of one part together, in an order that depends on nothing but their files' names.

    It must not depend on where they stand in a list: lists go by class, and a head would learn which class follows
    which.
    """
    parts: dict[tuple[str, str], list[Clip]] = {}
    for clip in dict.fromkeys(clips):
        parts.setdefault(part_of(clip), []).append(clip)
    return [clip for part in parts.values() for clip in sorted(part, key=_drawn)]


def _drawn(clip: Clip) -> tuple[bytes, str]:
    name = f"{clip.path.name}{clip.key[len(str(clip.path)) :]}"  # with the part of the file that it is
    return hashlib.sha256(name.encode()).digest(), clip.key


def join(sounds: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """A recording of sounds, float32 ``(samples,)``, and the number of steps of 0.4 s that each takes in it.

    Every sound begins with a step. So that no window has silence behind its end, the recording goes on from its
    beginning until it is a multiple of 30 s long.
    """
    padded = [np.pad(sound, (0, -len(sound) % STEP_SAMPLES)) for sound in sounds]
    whole = np.concatenate(padded)
    return np.resize(whole, -(-len(whole) // N_SAMPLES) * N_SAMPLES), [len(sound) // STEP_SAMPLES for sound in padded]


def recordings_of(heard: Iterable[tuple[Clip, np.ndarray]]) -> Iterator[list[tuple[Clip, np.ndarray]]]:
    """Clips and their samples, in the order of `in_random_order`, as those of one recording after the other."""
    held: list[tuple[Clip, np.ndarray]] = []
    for clip, audio in heard:
        if held and (part_of(clip) != part_of(held[0][0]) or sum(len(other) for _, other in held) >= LONG_ENOUGH):
            yield held
            held = []
        held.append((clip, audio))
    if held:
        yield held


def company_states(
    sounds: Sequence[np.ndarray], hear: Callable[[np.ndarray], Tensor], times: int, alone: Sequence[Tensor] = ()
) -> list[list[Tensor]]:
    """Pooled states of sounds in recordings of all of them, so many times, each in another order.

    Sounds that fill a window are company enough for themselves, and are heard once.

    Parameters
    ----------
    hear : gives the states of a recording
    alone : the states of each sound by itself, where they are known

    Returns
    -------
    for each time, the states ``(layers, steps, dim)`` of each sound
    """
    short = [i for i, sound in enumerate(sounds) if len(sound) < N_SAMPLES]
    own = [None if i in short else alone[i] if alone else hear(sound) for i, sound in enumerate(sounds)]
    found = []
    for again in range(times):
        states = list(own)
        if short:
            order = [short[place] for place in np.random.default_rng(again).permutation(len(short))]
            audio, steps = join([sounds[i] for i in order])
            for i, part in zip(order, hear(audio)[:, : sum(steps)].split(steps, dim=1)):
                states[i] = part
        found.append([part for part in states if part is not None])
    return found
