"""AudioSet's 527 classes: names, MIDs, how they contain one another, and names in other languages.

The classes, their order, MIDs and English names are AudioSet's (Gemmeke et al., "Audio Set: an ontology and
human-labeled dataset for audio events", ICASSP 2017; CC BY 4.0). Which class contains which comes from the
AudioSet ontology (github.com/audioset/ontology; CC BY-SA 4.0).
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from whisper.tokenizer import LANGUAGES

from ..languages import language_code
from .classes import ClassSet

ASSETS = Path(__file__).parents[1] / "assets"
N_CLASSES = 527


@dataclass(frozen=True)
class Label:
    """One AudioSet class.

    Attributes
    ----------
    index : int
        Output of a head, from 0.
    mid : str
        Identifier in the ontology, ``/m/…`` or ``/t/…``.
    name : str
        English display name.
    """

    index: int
    mid: str
    name: str


# --- classes ------------------------------------------------------------------------------------------------


@cache
def audioset_labels() -> tuple[Label, ...]:
    """Return the 527 classes in the order of a head's outputs.

    Raises
    ------
    FileNotFoundError
        If neither the installed package nor the source checkout has ``audioset_label.csv``.

    Examples
    --------
    >>> audioset_labels()[0]
    Label(index=0, mid='/m/09x0r', name='Speech')
    """
    # One table serves both: a wheel carries it among the assets, a checkout has it at its top level.
    name = "audioset_label.csv"
    places = [ASSETS / name, ASSETS.parent.parent / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{name} is neither at {places[0]} nor at {places[1]}; reinstall whisper-at")
    with open(path, encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["index"]))
    labels = tuple(Label(int(row["index"]), row["mid"], row["display_name"]) for row in rows)
    if [label.index for label in labels] != list(range(N_CLASSES)):
        raise ValueError(f"{path} does not list the classes 0 to {N_CLASSES - 1} once each")
    return labels


@cache
def audioset_classes() -> ClassSet:
    """Return AudioSet's classes as the class set of a head: the English names, each class decided alone."""
    labels = audioset_labels()
    return ClassSet(tuple(label.name for label in labels), mids=tuple(label.mid for label in labels))


def is_audioset(classes: ClassSet | None) -> bool:
    """Return whether classes are AudioSet's 527, whatever their calibration."""
    return classes is not None and classes.names == audioset_classes().names


def find_class(query: int | str) -> int:
    """Return the index (0 … 526) of an AudioSet class given by index, MID or English name (in any case).

    See `ClassSet.index` for what else `query` may be, and what is raised.

    Examples
    --------
    >>> find_class("dog"), find_class("/m/0bt9lr"), find_class(74)
    (74, 74, 74)
    """
    return audioset_classes().index(query)


def find_classes(queries: Any) -> list[int]:
    """Return the index of every AudioSet class in `queries`, in its order; see `ClassSet.indices`.

    Examples
    --------
    >>> find_classes({"Speech"}), find_classes(range(2)), find_classes("Dog")
    ([0], [0, 1], [74])
    """
    return audioset_classes().indices([None] if queries is None else queries)


# --- ontology -----------------------------------------------------------------------------------------------


@cache
def _parents() -> dict[str, tuple[str, ...]]:
    """MID → MIDs of its parents, for the 527 and for the other nodes of the ontology above them."""
    with open(ASSETS / "audioset_parents.csv", encoding="utf-8", newline="") as file:
        return {row["mid"]: tuple(row["parent_mids"].split()) for row in csv.DictReader(file)}


def _nodes_above(mid: str) -> set[str]:
    """MIDs of all nodes of the ontology that contain a node."""
    pending, found = list(_parents().get(mid, ())), set[str]()
    while pending:
        parent = pending.pop()
        if parent not in found:
            found.add(parent)
            pending.extend(_parents().get(parent, ()))
    return found


@cache
def class_ancestors(classes: ClassSet) -> tuple[tuple[int, ...], ...]:
    """Return for each class the indices, sorted, of the classes of the set that contain it in the ontology.

    A path may lead through nodes that are no classes of the set; those are not returned. A class may have several
    parents. Classes without MIDs contain nothing.
    """
    index_of = {mid: index for index, mid in enumerate(classes.mids or ())}
    if not index_of:
        return ((),) * len(classes)
    return tuple(tuple(sorted(index_of[above] for above in _nodes_above(mid) if above in index_of)) for mid in index_of)


def ancestors(index: int) -> tuple[int, ...]:
    """Return the indices, sorted, of the AudioSet classes that contain class `index` (0 … 526).

    Raises ValueError or TypeError for no such class, as `find_class`.

    Examples
    --------
    >>> [audioset_labels()[i].name for i in ancestors(find_class("Bark"))]
    ['Animal', 'Domestic animals, pets', 'Dog']
    """
    return class_ancestors(audioset_classes())[find_class(index)]


def descendants(index: int) -> tuple[int, ...]:
    """Return the indices, sorted, of the AudioSet classes that class `index` (0 … 526) contains, at any depth.

    Raises ValueError or TypeError for no such class, as `find_class`.
    """
    index = find_class(index)
    return tuple(i for i, above in enumerate(class_ancestors(audioset_classes())) if index in above)


def class_nodes(mid: str) -> frozenset[str]:
    """Return the MID of a class and those of all nodes of the ontology that contain it."""
    return frozenset({mid, *_nodes_above(mid)})


def classes_under(mids: Iterable[str]) -> frozenset[int]:
    """Return the indices of the AudioSet classes that are, or lie below, any of these nodes of the ontology."""
    nodes = set(mids)
    return frozenset(label.index for label in audioset_labels() if nodes & class_nodes(label.mid))


# --- names in the languages of Whisper ----------------------------------------------------------------------


LABELS = ASSETS / "labels"
"""One table for each language, ``<code>.csv``: index, MID, name, and what stands in the brackets of a caption."""


def label_languages() -> tuple[str, ...]:
    """Return the codes of the languages that the classes have names in, in alphabetical order."""
    return tuple(sorted(path.stem for path in LABELS.glob("*.csv")))


def label_names(language: str = "en") -> tuple[str, ...]:
    """Return the 527 class names, in index order, in a language or of a file.

    Names are read when they are first asked for.

    Parameters
    ----------
    language : str
        Code ("de") or name ("German"): whatever `language_code` reads ("Castilian" and "es-MX" are "es"). For a
        language without names, English comes back, with a UserWarning. Or the path of a ``.csv`` with names of one's
        own: columns ``mid`` or ``index``, ``name`` and, for captions, ``caption``; others stay English.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a file has no such columns, or lines of classes that there are not.

    Examples
    --------
    >>> label_names("English")[137]
    'Music'
    """
    return _names(language)[0]


def caption_names(language: str = "en") -> tuple[str, ...]:
    """Return what captions put in brackets for each of the 527 classes; see `label_names`.

    Examples
    --------
    >>> caption_names("en")[75]
    'dog barking'
    """
    return _names(language)[1]


def _names(language: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and caption forms in a language or of a file."""
    if language.lower().endswith(".csv"):
        return _read_names(Path(language).expanduser())
    try:
        code = language_code(language)
    except ValueError:  # a language that Whisper does not know may have names
        code = language.strip().lower()
    if code not in label_languages():
        languages = ", ".join(label_languages())
        warnings.warn(  # always from this line, so that Python shows it once
            f"there are no class names in {language!r}, so they are in English; there are some in {languages}",
            stacklevel=1,
        )
        code = "en"
    return _read_names(LABELS / f"{code}.csv")


@cache
def _read_names(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = [label.name for label in audioset_labels()]
    english = LABELS / "en.csv"
    captions = list(names if path == english else _read_names(english)[1])  # of classes that the file lacks
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        if "name" not in columns or not columns & {"mid", "index"}:
            raise ValueError(f"{path} has no columns 'mid' (or 'index') and 'name'; it has {sorted(columns)}")
        for row in reader:
            try:
                index = find_class(row["mid"] if row.get("mid") else int(row["index"]))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
            names[index] = (row["name"] or "").strip() or names[index]
            captions[index] = (row.get("caption") or "").strip() or names[index]
    return tuple(names), tuple(captions)


def tag_language(result: Mapping[str, Any], language: str | None = "follow_asr") -> str:
    """Return the language to name a result's tags in: that of its text, or the one asked for."""
    if language is not None and language != "follow_asr":
        return language
    return "en" if result.get("task") == "translate" else result.get("language") or "en"


def print_label_name(language: str = "en") -> None:
    """Print every class as ``index: i : name``; a language without names as `label_names` treats it."""
    for index, name in enumerate(label_names(language)):
        print(f"index: {index} : {name}")


def print_support_language() -> None:
    """Print every language with class names as ``language code: xx : name``."""
    for code in label_languages():
        print(f"language code: {code} : {LANGUAGES.get(code, code)}")


def display_names(classes: ClassSet, language: str = "en") -> tuple[str, ...]:
    """Return the names of a head's classes in a language: AudioSet's are translated, others have only one name."""
    return label_names(language) if is_audioset(classes) else classes.names
