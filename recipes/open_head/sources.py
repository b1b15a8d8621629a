"""The recordings that the heads are trained on: where they lie, what they hold, who made them, under which licence."""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from whisper_at.tagging.labels import ancestors, find_class

from .instruments import pieces, render

TABLE = Path(__file__).with_name("recordings.csv")
FOLDERS = {
    "mod-sounds": "git/AntumMT+mod-sounds",
    "blanket": "git/rafaelmardojai+blanket",
    "gui-project": "git/DrunkenToast+gui-project",
    "max-audio": "git/IBM+MAX-Audio-Classifier",
    "marinara": "git/schmich+marinara",
    "soundmonster": "git/jonjonsson+SoundMonster",
    "simplekanban": "git/jarombouts+SimpleKanban",
    "alarm-clock": "git/jtgsystems+modern-alarm-clock",
    "mobs-animal": "git/sfence+mobs_animal",
    "openclonk": "openclonk/Sound.ocg",
    "cc-sounds": "git/Fris0uman+CDDA-Soundpacks",
}
"""Folder of each source of `TABLE`, as `fetch.sh` lays them out."""
SOUNDFONTS = {
    "gm": ["deb/x/fluid-soundfont-gm/usr/share/sounds/sf2/FluidR3_GM.sf2"],
    "gs": ["deb/x/fluid-soundfont-gs/usr/share/sounds/sf2/FluidR3_GS.sf2"],
}
FREE_LICENCES = ("CC0", "CC BY", "OGA BY", "ODbL", "MIT", "BSD", "Apache", "Public domain", "public domain")
"""How the licences begin under which a recording may be used for what ships; ``SA``, ``NC`` and ``ND`` never may."""
ESC10 = {
    "chainsaw": "Chainsaw",
    "clock_tick": "Tick-tock|Clock|Tick",
    "crackling_fire": "Fire|Crackle",
    "crying_baby": "Baby cry, infant cry|Crying, sobbing",
    "dog": "Bark",
    "helicopter": "Helicopter",
    "rain": "Rain",
    "rooster": "Crowing, cock-a-doodle-doo",
    "sea_waves": "Waves, surf|Ocean",
    "sneezing": "Sneeze",
}
SPEAKERS = {"F": "Female speech, woman speaking", "M": "Male speech, man speaking"}
NOTES = 4
"""Phrases of each instrument."""


@dataclass(frozen=True)
class Recording:
    """A recording that may be used.

    Attributes
    ----------
    path : Path
        Audio file.
    source : str
        Collection that it comes from.
    group : str
        Speaker or original recording; recordings of one group are on one side of the split.
    labels : tuple of int
        AudioSet classes that are certainly audible, with the classes that contain them; empty if none is known.
    held_out : bool
        Whether it is kept from training, for calibration.
    """

    path: Path
    source: str
    group: str
    labels: tuple[int, ...]
    held_out: bool = False


def is_free(licence: str) -> bool:
    """Return whether what was trained on a recording of this licence may ship.

    Examples
    --------
    >>> is_free("CC BY 3.0"), is_free("CC BY-SA 4.0"), is_free("CC BY-NC 3.0"), is_free("GPL-2+")
    (True, False, False, False)
    """
    parts = licence.replace("-", " ").split()
    return licence.startswith(FREE_LICENCES) and not {"SA", "NC", "ND"} & set(parts)


def class_indices(names: str) -> tuple[int, ...]:
    """Return the indices of AudioSet classes joined by ``|``, and of all classes that contain them."""
    indices = [find_class(name) for name in names.split("|") if name]
    return tuple(sorted({*indices, *(above for index in indices for above in ancestors(index))}))


def share(text: str) -> float:
    """Return a number from 0 to 1 that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def collected(data: Path) -> Iterator[Recording]:
    """Return the recordings of `TABLE`, from packages and repositories."""
    for row in _rows(TABLE):
        if not is_free(row["licence"]):
            raise ValueError(f"{row['path']} is under {row['licence']!r}, which is not free enough")
        for path in sorted((data / FOLDERS[row["source"]]).glob(row["path"])):
            group = f"{row['source']}/{path.stem.rstrip('0123456789_.')}"
            yield Recording(path, row["source"], group, class_indices(row["labels"]))


def esc10(data: Path, held_out_folds: str = "4") -> Iterator[Recording]:
    """Return the clips of ESC-10; those of the folds `held_out_folds` are held out."""
    for name, labels in ESC10.items():
        for path in sorted((data / "esc10" / name).glob("*.ogg")):
            fold, source = path.stem.split("-")[:2]
            yield Recording(path, "esc10", f"esc10/{source}", class_indices(labels), fold in held_out_folds)


def librispeech(data: Path) -> Iterator[Recording]:
    """Return one utterance of each of 120 speakers; a fifth of the speakers is held out."""
    for row in _rows(data / "librispeech/index.csv"):
        path = data / "librispeech" / row["file"]
        yield Recording(
            path, "librispeech", row["speaker"], class_indices(SPEAKERS[row["sex"]]), share(row["speaker"]) < 0.2
        )


def voices(data: Path) -> Iterator[Recording]:
    """Return speech in other languages, as far as its licence allows."""
    for row in _rows(data / "voices/index.csv"):
        origin, _, licence = row["source"].partition(";")
        licence = licence.split(";")[0].split("(")[0].strip()
        if is_free(licence) and "YouTube" not in row["source"]:
            path = data / "voices" / row["file"]
            yield Recording(path, "voices", f"voices/{origin}", class_indices("Speech"), share(row["file"]) < 0.15)


def sounds(data: Path) -> Iterator[Recording]:
    """Return babies, a piano and Sonic Pi's samples from a table with a licence for each file."""
    for row in _rows(data / "sounds/index.csv"):
        if is_free(row["licence"]):
            held_out = row["set"] != "sonic_pi" and share(row["group"]) < 0.2
            path = data / "sounds" / row["file"]
            yield Recording(path, row["set"], row["group"], class_indices(row["audioset"]), held_out)


def instruments(data: Path, cache: Path, seed: int = 0) -> Iterator[Recording]:
    """Render the instruments and effects of the soundfonts into `cache`; one phrase of four is held out."""
    cache.mkdir(parents=True, exist_ok=True)
    for name, font, labels, events in pieces(random.Random(seed), NOTES):
        path = cache / f"{name}.wav"
        if not path.exists():
            render(events, [data / font_path for font_path in SOUNDFONTS[font]], path)
        take = name.rpartition("-")[2]
        yield Recording(path, "soundfont", f"soundfont/{name}", class_indices(labels), take == "3" or share(name) < 0.1)


def all_recordings(data: Path, cache: Path) -> list[Recording]:
    """Return everything that may be trained on, `data` being laid out as the README says."""
    parts = (esc10(data), librispeech(data), voices(data), sounds(data), collected(data), instruments(data, cache))
    return [recording for part in parts for recording in part]
