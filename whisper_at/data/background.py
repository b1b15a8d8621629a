"""The package's own recordings of what is none of a head's classes: speech, music, noise, silence."""

from __future__ import annotations

from pathlib import Path

from .clips import Clip

PACKAGED = Path(__file__).parents[1] / "assets" / "background"
"""A folder for each kind."""


def packaged_background() -> tuple[Clip, ...]:
    """Return the clips of the package, without labels.

    Raises
    ------
    FileNotFoundError
        If the package was installed without them.
    """
    paths = sorted(PACKAGED.glob("*/*.opus"))
    if not paths:
        raise FileNotFoundError(f"{PACKAGED} holds no recordings: the package was installed without its data")
    return tuple(Clip(path, ()) for path in paths)


def background_kind(clip: Clip) -> str:
    """Return the kind of a clip of the package; ``own`` for others."""
    return clip.path.parent.name if clip.path.parent.parent == PACKAGED else "own"
