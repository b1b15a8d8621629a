"""Registry of the readers of public data sets: each turns a downloaded folder into labelled clips.

How the papers divide these data sets into training, validation and test is in `protocols`.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import emotion, music, sounds, speech
from .clips import Dataset
from .files import StrPath
from .readers import read_csv, read_dataset, read_folders
from .validation import coerce, unknown_name

READERS: dict[str, Callable[..., Dataset]] = {
    "files": read_dataset,
    "esc50": sounds.read_esc50,
    "esc10": sounds.read_esc10,
    "urbansound8k": sounds.read_urbansound8k,
    "birdclef2022": sounds.read_birdclef,
    "fsd50k": sounds.read_fsd50k,
    "fsc": speech.read_fluent_speech_commands,
    "gsc": speech.read_speech_commands,
    "fsdd": speech.read_fsdd,
    "voxforge": speech.read_voxforge,
    "voxceleb1": speech.read_voxceleb1,
    "gtzan": music.read_gtzan,
    "nsynth": music.read_nsynth,
    "surge": music.read_surge,
    "iemocap": emotion.read_iemocap,
    "mspimprov": emotion.read_msp_improv,
    "msppodcast": emotion.read_msp_podcast,
    "cremad": emotion.read_crema_d,
    "meld": emotion.read_meld,
    "ravdess": emotion.read_ravdess,
    "emodb": emotion.read_emodb,
    "peftserrelease": emotion.read_peft_ser_release,
}
"""Readers by canonical name: lower case, without spaces, hyphens and underscores."""

ALIASES = {
    "us8k": "urbansound8k",
    "birdclef": "birdclef2022",
    "fluentspeechcommands": "fsc",
    "googlespeechcommands": "gsc",
    "googlespeechcommandsv2": "gsc",
    "speechcommands": "gsc",
    "speechcommandsv2": "gsc",
    "spcv2": "gsc",
    "vc1": "voxceleb1",
    "vf": "voxforge",
    "nspitch": "nsynth",
    "crmd": "cremad",
}
"""Other names of data sets, in the papers or in common use."""

CLIP_SECONDS = {
    "urbansound8k": 4.0,
    "esc50": 5.0,
    "esc10": 5.0,
    "gsc": 1.0,
    "voxceleb1": 8.2,
    "voxforge": 5.8,
    "cremad": 2.5,
    "gtzan": 30.0,
    "nsynth": 4.0,
    "surge": 4.0,
    "fsd50k": 7.6358,
}
"""Length in seconds to which linear evaluation brings the clips of a data set (spec section 4.4)."""


def read_public_dataset(name: str, root: StrPath, /, **options: Any) -> Dataset:
    """Read a public data set from the folder that it was unpacked to.

    Parameters
    ----------
    name : str
        One of `dataset_names` or `ALIASES`; case, spaces and hyphens are ignored (``ESC-50``). ``files`` is a folder
        of classes, a ``.csv`` or a ``.json`` of your own (`whisper_at.data.read_dataset`).
    root : path
        Folder, or file for ``files``.
    **options
        Options of the reader, such as ``classes`` of the emotion corpora.

    Returns
    -------
    Dataset

    Raises
    ------
    FileNotFoundError
        If ``root``, or a file that the layout needs, is missing.
    ValueError
        If the name or an option is unknown, or the data are not in the expected layout.
    """
    reader = READERS[canonical_name(name)]
    known = _reader_options(reader, Path(root).expanduser())
    for key in options:
        if key not in known:
            raise ValueError(unknown_name(f"the reader of {name} ({root}) has no option", key, known))
    return reader(root, **{key: coerce(value, known[key], f"reader.{key}") for key, value in options.items()})


def _reader_options(reader: Callable[..., Dataset], root: Path) -> dict[str, Any]:
    """Return the names and type hints of a reader's parameters after the first."""
    if reader is read_dataset and not (root.is_file() and root.suffix.lower() == ".json"):
        reader = read_folders if root.is_dir() else read_csv
    hints = typing.get_type_hints(reader)
    _, *others = inspect.signature(reader).parameters.values()
    return {one.name: hints[one.name] for one in others if one.kind is not one.VAR_KEYWORD}


def canonical_name(name: str) -> str:
    """Return the key of a data set in `READERS`.

    Raises
    ------
    ValueError
        If there is no such data set; the message suggests the nearest name.

    Examples
    --------
    >>> canonical_name("ESC-50"), canonical_name("Speech Commands V2")
    ('esc50', 'gsc')
    """
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    key = ALIASES.get(key, key)
    if key not in READERS:
        raise ValueError(unknown_name("no dataset", key, dataset_names()))
    return key


def dataset_names() -> list[str]:
    """Return the canonical names of all data sets, sorted."""
    return sorted(READERS)
