"""The formats by name, and what each of them needs.

Nothing here imports PyTorch before a file is made, so that ``--help``, which lists the formats, comes at once.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..suggest import did_you_mean

if TYPE_CHECKING:
    from .options import FormatOptions

WHISPER_FORMATS = ("txt", "vtt", "srt", "tsv", "json")
"""The formats of openai-whisper, which ``all`` stands for."""


@dataclass(frozen=True)
class Format:
    """A format of result files.

    Attributes
    ----------
    module, function : str
        What makes the content: ``function(result, filename, options)`` of a module here, which returns text, or bytes.
    extension : str, optional
        Of its files, if it is not the format's name. No two formats share one.
    at_time_res : float, optional
        It is made of tags: seconds of a row that suit it.
    is_captions : bool
        Its text is captions.
    package : str, optional
        It needs this package, which the extra ``formats`` brings.
    """

    module: str
    function: str
    extension: str | None = None
    at_time_res: float | None = None
    is_captions: bool = False
    package: str | None = None


FORMATS: dict[str, Format] = {
    "labels": Format("editors", "audacity_labels", "labels.txt"),
    "markers": Format("editors", "reaper_markers", "markers.csv"),
    "premiere": Format("editors", "premiere_markers", "premiere.csv"),
    "lrc": Format("subtitles", "lrc", is_captions=True),
    "ass": Format("subtitles", "ass", is_captions=True),
    "metadata.vtt": Format("subtitles", "metadata_vtt", at_time_res=2.0),
    "sed": Format("annotations", "sed_tsv", "sed.tsv", at_time_res=2.0),
    "rttm": Format("annotations", "rttm"),
    "rows.csv": Format("tables", "rows_csv", at_time_res=10.0),
    "parquet": Format("tables", "parquet", at_time_res=10.0, package="pyarrow"),
    "png": Format("picture", "png", package="matplotlib"),
    "svg": Format("picture", "svg", package="matplotlib"),
    "pdf": Format("picture", "pdf", package="matplotlib"),
}
"""Formats by name."""


def extension(name: str) -> str:
    """Return what the files of a format end in, without the first dot."""
    return (FORMATS[name].extension if name in FORMATS else None) or name


def is_available(name: str) -> bool:
    """Return whether the package that a format needs, if any, is installed."""
    package = FORMATS[name].package if name in FORMATS else None
    return package is None or importlib.util.find_spec(package) is not None


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the formats that a text such as ``"srt,labels"`` names, in its order, each once.

    Raises
    ------
    KeyError
        If there is no such format, as from openai-whisper.

    Examples
    --------
    >>> parse_formats("labels, all")
    ('labels', 'txt', 'vtt', 'srt', 'tsv', 'json')
    """
    names: dict[str, None] = {}
    for name in text.split(","):
        name = name.strip().lower()
        if name != "all" and name not in WHISPER_FORMATS and name not in FORMATS:
            known = [*WHISPER_FORMATS, "all", *FORMATS]
            raise KeyError(f"there is no format {name!r}; {did_you_mean(name, known)}")
        names |= dict.fromkeys(WHISPER_FORMATS if name == "all" else [name])
    return tuple(names)


def check_package(name: str) -> None:
    """Raise ImportError, which says what to install, if a format needs a package that is not here."""
    if not is_available(name):
        package = FORMATS[name].package
        raise ImportError(f'-f {name} needs {package}: pip install {package}, or pip install ".[formats]"')


def format_bytes(name: str, result: Mapping[str, Any], filename: str, options: FormatOptions | None = None) -> bytes:
    """Return the content of a file in one of the `FORMATS`.

    Parameters
    ----------
    name : str
        Of the format.
    result : dict
        What `transcribe` or `tag` returned.
    filename : str
        Name of the recording, which some formats contain.
    options : FormatOptions, optional

    Raises
    ------
    ImportError
        If the format needs a package that is not installed.
    ValueError
        If the format is made of tags, and the result has none.
    """
    from .options import FormatOptions

    check_package(name)
    module = importlib.import_module(f".{FORMATS[name].module}", __package__)
    content = getattr(module, FORMATS[name].function)(result, filename, options or FormatOptions())
    return content if isinstance(content, bytes) else content.encode("utf-8")
