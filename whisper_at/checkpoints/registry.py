"""Which Whispers and heads load by name, and where their files are looked for."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import whisper

from ..suggest import did_you_mean

ASSETS = Path(__file__).parents[1] / "assets"
EMBEDDED = "nano.en"  # the model inside this package
MANUAL = "pretrained_models/README.md"  # how to do without a connection

WIDTHS = {"tiny": 384, "base": 512, "small": 768, "medium": 1024, "large": 1280}
"""Encoder width of each size of Whisper."""

# Where Whisper-AT's program and its manual-download page name different links, the program's comes first.
_DROPBOX_LINKS = {
    "tiny.en": ("atq9so6w0qug5ai",),
    "tiny": ("cib4q4iz6g758l0", "06f2h29aki39q9r"),
    "base.en": ("qtzgsbuquoz0afn",),
    "base": ("2odwh42u6e9ger7", "4vn2oatda321y7h"),
    "small.en": ("cyx50ycl1ul7lji",),
    "small.en_low": ("507o66zgl8v6ddd",),
    "small": ("jftj9s0kr4ycvr1", "5zqzs3e47zwhjd3"),
    "small_low": ("a1x0416v58f7wrf", "3lxlmh437tneifl"),
    "medium.en": ("bbvylvmgns8ja4p",),
    "medium.en_low": ("2q5wprr8f9gti5t",),
    "medium": ("65aabayr7o819az", "93zfj4afmv0qfyl"),
    "medium_low": ("0mnfmcasram4n6o", "g66h1vtn1u426dj"),
    "large-v1": ("b8x2en1fdzc8nhk",),
    "large-v1_low": ("5o79h70wyla8jlk",),
    "large-v2": ("3zxpyvdrxy22eq7", "94x7wqw4hscpls0"),
    "large-v2_low": ("jw2rh4uylhqgn85", "wk5dyxustpji06c"),
}


class PublishedHead(NamedTuple):
    """A head that Whisper-AT's authors published.

    Attributes
    ----------
    file : str
        Name of its file.
    width : int
        Width of the encoder that it reads.
    low_compute : bool
        Whether it is TL-TR-512.
    urls : tuple of str
        Where it is downloaded from, tried in order.
    """

    file: str
    width: int
    low_compute: bool
    urls: tuple[str, ...]


def _published_head(name: str) -> PublishedHead:
    low_compute = name.endswith("_low")
    file = f"{name}.pth" if low_compute else f"{name}_ori.pth"
    urls = tuple(f"https://www.dropbox.com/s/{link}/{file}?dl=1" for link in _DROPBOX_LINKS[name])
    return PublishedHead(file, WIDTHS[re.split(r"[.\-_]", name)[0]], low_compute, urls)


HEADS = {name: _published_head(name) for name in _DROPBOX_LINKS}
"""Every official Whisper-AT head by name; those that end in ``_low`` are TL-TR-512."""


OPEN_HEADS = {"open.tiny.en": "tiny.en", "open.base": "base"}
"""Heads that come with this package, and the Whisper of each; what they know is in pretrained_models/open_heads.md."""


def available_models() -> list[str]:
    """Return the Whispers that load by name: openai-whisper's, in its order, then the embedded one."""
    return [*whisper._MODELS, EMBEDDED]


def available_heads() -> list[str]:
    """Return the names of the heads that load by name: the official ones, then those that come with this package."""
    return [*HEADS, *OPEN_HEADS, EMBEDDED]


def head_name(whisper_name: str, low_compute: bool = False) -> str | None:
    """Return the name of the head published for a Whisper, or None where there is none.

    There is none for a file of one's own, nor for large-v3 (= large) and large-v3-turbo (= turbo): what earlier
    releases called the head of "large" was made on large-v2 and fits no other.

    Parameters
    ----------
    whisper_name : str
        One of `available_models`, or anything else.
    low_compute : bool
        Whether to take TL-TR-512.

    Raises
    ------
    ValueError
        If TL-TR-512 is asked of a model whose head exists only at full width.

    Examples
    --------
    >>> head_name("small.en", low_compute=True)
    'small.en_low'
    >>> head_name("turbo")
    """
    name = f"{whisper_name}_low" if low_compute else whisper_name
    if name in available_heads():
        return name
    if low_compute and whisper_name in available_heads():
        models = ", ".join(known.removesuffix("_low") for known, head in HEADS.items() if head.low_compute)
        raise ValueError(
            f"no low-compute head is published for {whisper_name!r} (there is one for {models}); leave out "
            "at_low_compute, its full head is small as it is"
        )
    return None


def download_folder(download_root: str | None = None) -> Path:
    """Return the folder of downloads, by default the one that openai-whisper uses, too."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache, "whisper") if download_root is None else Path(download_root).expanduser()


def asset_path(file: str) -> Path:
    """Return the path of a file that comes with the package; RuntimeError if it is missing."""
    path = ASSETS / file
    if not path.is_file():
        raise RuntimeError(f"{path}, which comes with the package, is missing; reinstall whisper-at")
    return path


def existing_file(name: str, kind: str, known: list[str], error: type[Exception]) -> Path:
    """Return `name` as the path of a file, or raise `error` with the names that are known and the nearest one."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise error(f"{kind} {name!r} is a folder; give a file or one of {known}")
    if not path.is_file():
        raise error(f"{kind} {name!r} not found: it is neither a file nor a known name; {did_you_mean(name, known)}")
    return path
