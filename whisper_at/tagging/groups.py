"""Groups of AudioSet's classes: nodes of the ontology that stand for all the classes below them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from ..languages import language_code
from .classes import ClassSet
from .labels import ASSETS, audioset_labels, class_nodes, find_class, label_names

HUMAN_VOICE, DOMESTIC_SOUNDS = "/m/09l8g", "/t/dd00071"
"""Nodes of the ontology that are no classes themselves."""
EVENT_GROUPS = (
    HUMAN_VOICE,
    "/m/0jbk",  # Animal
    "/m/07pp_mv",  # Alarm: before Vehicle, which has sirens and horns
    "/m/07yv9",  # Vehicle
    "/m/02mk9",  # Engine
    "/m/0395lw",  # Bell: before Music, to whose instruments bells belong
    "/m/04rlf",  # Music
    DOMESTIC_SOUNDS,
    "/t/dd00077",  # Mechanisms
    "/m/07k1x",  # Tools
    "/m/014zdl",  # Explosion
    "/m/03m9d0z",  # Wind
    "/m/0jb2l",  # Thunderstorm
    "/m/0838f",  # Water
    "/m/04k94",  # Liquid
    "/m/02_41",  # Fire
    "/m/083vt",  # Wood
    "/m/039jq",  # Glass
)
"""MIDs of the groups, if no others are asked for. A class belongs to the first that contains it."""


@dataclass(frozen=True)
class Group:
    """A group.

    Attributes
    ----------
    mid : str
        Of its node in the ontology.
    index : int, optional
        Of its class, if it is one.
    members : tuple of int
        Indices of the classes that belong to it, itself included.
    """

    mid: str
    index: int | None
    members: tuple[int, ...]


def group_classes(classes: ClassSet, groups: bool | Iterable[int | str] | int | str = True) -> list[Group]:
    """Divide classes among groups, each to the first that contains it.

    Parameters
    ----------
    classes : ClassSet
        Of a head. Those that do not lie in AudioSet's ontology belong to no group.
    groups : bool, int, str or iterable of int or str
        True for `EVENT_GROUPS`, False for none; or AudioSet classes by index, MID or English name, ``"Human voice"``
        and ``"Domestic sounds"``.

    Raises
    ------
    ValueError
        If there is no such class.

    Examples
    --------
    >>> from whisper_at.tagging.labels import audioset_classes
    >>> [len(group.members) for group in group_classes(audioset_classes(), ["Dog", "Animal"])]
    [7, 58]
    """
    if isinstance(groups, bool):
        mids = list(EVENT_GROUPS) if groups else []
    else:
        queries = [groups] if isinstance(groups, (int, str)) else groups
        mids = list(dict.fromkeys(map(_group_mid, queries)))
    index_of = {mid: index for index, mid in enumerate(classes.mids or ())}
    members: dict[str, list[int]] = {mid: [] for mid in mids}
    for mid, index in index_of.items():
        if (first := next((group for group in mids if group in class_nodes(mid)), None)) is not None:
            members[first].append(index)
    return [Group(mid, index_of.get(mid), tuple(found)) for mid, found in members.items() if found]


def _group_mid(query: int | str) -> str:
    for mid in (HUMAN_VOICE, DOMESTIC_SOUNDS):
        if isinstance(query, str) and query.strip().lower() in (mid, group_name(mid).lower()):
            return mid
    return audioset_labels()[find_class(query)].mid


def group_name(mid: str, language: str = "en") -> str:
    """Return the name of a group in a language, or of a file of names, as of `label_names`; else in English.

    Examples
    --------
    >>> group_name("/m/09l8g"), group_name("/m/09l8g", "German"), group_name("/m/0jbk", "fr")
    ('Human voice', 'Menschliche Stimme', 'Animal')
    """
    names = _names_of_nodes()
    if (mid, "en") not in names:
        return label_names(language)[find_class(mid)]
    try:
        code = language_code(language) or "en"
    except ValueError:
        code = language.strip().lower()
    return names.get((mid, code), names[mid, "en"])


@cache
def _names_of_nodes() -> dict[tuple[str, str], str]:
    """MID and language → name, of groups that are no classes."""
    with open(ASSETS / "group_names.csv", encoding="utf-8", newline="") as file:
        return {(row["mid"], row["language"]): row["name"] for row in csv.DictReader(file)}
