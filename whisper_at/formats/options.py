"""What the files of all formats show."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ..tagging.rows import TagOptions


@dataclass(frozen=True)
class FormatOptions:
    """What files show.

    Attributes
    ----------
    tags : TagOptions
        Which tags, and the language of their names.
    captions : str, optional
        Style of captions, as `whisper_at.captions` takes it.
    audio : str or path, optional
        The recording, for its waveform; none is drawn without it.
    """

    tags: TagOptions = field(default_factory=TagOptions)
    captions: str | None = None
    audio: str | os.PathLike[str] | None = None
