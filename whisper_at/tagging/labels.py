"""Names of the 527 AudioSet classes, how they contain one another, and tag rows turned into named tags.

The classes, their order, MIDs and English names are AudioSet's (Gemmeke et al., "Audio Set: an ontology and
human-labeled dataset for audio events", ICASSP 2017; CC BY 4.0). Which class contains which comes from the
AudioSet ontology (github.com/audioset/ontology; CC BY-SA 4.0).
"""

from __future__ import annotations

import csv
import json
import math
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

from ..suggest import nearest
from .listeners import attached_names, named_tags
from .timeline import seconds_to_steps, steps_to_seconds

ASSETS = Path(__file__).parents[1] / "assets"
N_CLASSES = 527


@dataclass(frozen=True)
class Label:
    """One AudioSet class: output index of a head, machine identifier (``/m/…``), English display name."""

    index: int
    mid: str
    name: str


# --- classes ------------------------------------------------------------------------------------------------


@cache
def audioset_labels() -> tuple[Label, ...]:
    """Return the 527 classes in the order of a head's outputs.

    >>> audioset_labels()[0]
    Label(index=0, mid='/m/09x0r', name='Speech')

    Raises
    ------
    FileNotFoundError
        if neither the installed package nor the source checkout has ``audioset_label.csv``
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
def _index_of() -> dict[str, int]:
    """Every MID, and every English name in lower case, to its class index (no two names clash)."""
    labels = audioset_labels()
    return {key: label.index for label in labels for key in (label.mid, label.name.lower())}


def find_class(query: int | str) -> int:
    """Return the index (0 … 526) of a class given by index, MID or English display name (in any case).

    Numbers of numpy, tensors of one number, and digits as a string ("72", as a command line gives) are
    indices.

    >>> find_class("dog"), find_class("/m/0bt9lr"), find_class(74)
    (74, 74, 74)

    Raises
    ------
    ValueError
        if no class has this index, MID or name; the message offers the nearest names
    TypeError
        if `query` is neither a whole number nor a string (a bool is not a number here)
    """
    value: Any = query.tolist() if hasattr(query, "tolist") else query
    if isinstance(value, str):
        text = value.strip()
        found = _index_of().get(text, _index_of().get(text.lower()))
        if found is not None:
            return found
        if not text.isdecimal():
            raise ValueError(f"no AudioSet class is called {value!r}{_suggestions(text)}")
        value = text
    elif isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(
            f"an AudioSet class is an index, a MID or a name, not {value!r} ({type(value).__name__}); "
            "of a mask of booleans, take numpy.flatnonzero(mask)"
        )
    index = int(value)
    if not 0 <= index < N_CLASSES:
        raise ValueError(f"no AudioSet class has the index {index}; they are 0 to {N_CLASSES - 1}")
    return index


def _suggestions(text: str) -> str:
    """Return "; did you mean …?" with up to three names near `text`, or where to see all the names."""
    names = [label.name for label in audioset_labels()]
    containing = sorted((name for name in names if text and text.lower() in name.lower()), key=len)
    near = list(dict.fromkeys([*nearest(text, names, cutoff=0.75), *containing])) or nearest(text, names, cutoff=0.6)
    if not near:
        return "; print_label_name() lists all 527"
    return "; did you mean " + " or ".join(map(repr, near[:3])) + "?"


def find_classes(queries: Any) -> list[int]:
    """Return the index of every class in `queries`, in its order.

    `queries` is any iterable of what `find_class` takes (list, tuple, set, range, generator, numpy array,
    torch tensor) or one such thing by itself. Raises what `find_class` raises.

    >>> find_classes({"Speech"}), find_classes(range(2)), find_classes("Dog")
    ([0], [0, 1], [74])
    """
    if hasattr(queries, "tolist"):  # arrays and tensors; their members become plain ints, not 0-d tensors
        queries = queries.tolist()
    if isinstance(queries, str) or not isinstance(queries, Iterable):
        queries = [queries]
    return [find_class(query) for query in queries]


# --- ontology -----------------------------------------------------------------------------------------------


@cache
def _parents() -> dict[str, tuple[str, ...]]:
    """MID → MIDs of its parents, for the 527 and for the other nodes of the ontology above them."""
    with open(ASSETS / "audioset_parents.csv", encoding="utf-8", newline="") as file:
        return {row["mid"]: tuple(row["parent_mids"].split()) for row in csv.DictReader(file)}


@cache
def ancestors(index: int) -> tuple[int, ...]:
    """Return the indices, sorted, of the classes that contain class `index` (0 … 526) in the AudioSet
    ontology.

    A path may lead through nodes that are not among the 527 (such as "Human sounds"); those are not returned.
    A class may have several parents. Raises ValueError or TypeError for no such class, as `find_class`.

    >>> [audioset_labels()[i].name for i in ancestors(find_class("Bark"))]
    ['Animal', 'Domestic animals, pets', 'Dog']
    """
    known = _index_of()
    return tuple(sorted(known[mid] for mid in _above(audioset_labels()[find_class(index)].mid) if mid in known))


def _above(mid: str) -> set[str]:
    """MIDs of all nodes of the ontology that contain a node."""
    waiting, seen = list(_parents().get(mid, ())), set[str]()
    while waiting:
        parent = waiting.pop()
        if parent not in seen:
            seen.add(parent)
            waiting.extend(_parents().get(parent, ()))
    return seen


@cache
def descendants(index: int) -> tuple[int, ...]:
    """Return the indices, sorted, of the classes that class `index` (0 … 526) contains, at any depth.

    Raises ValueError or TypeError for no such class, as `find_class`.
    """
    index = find_class(index)
    return tuple(i for i in range(N_CLASSES) if index in ancestors(i))


def within(mids: Iterable[str]) -> frozenset[int]:
    """Indices of the classes that lie in, or are, any of these nodes of the ontology, which need be no classes."""
    nodes = set(mids)
    return frozenset(label.index for label in audioset_labels() if nodes & {label.mid, *_above(label.mid)})


# --- names in the languages of Whisper ----------------------------------------------------------------------


@cache
def _translations() -> dict[str, tuple[str, ...]]:
    """Language code → 527 names, English first; other languages only where the package carries them."""
    names = {"en": tuple(label.name for label in audioset_labels())}
    path = ASSETS / "label_names.json"
    if path.is_file():
        for code, translated in json.loads(path.read_text(encoding="utf-8")).items():
            if len(translated) != N_CLASSES:
                raise ValueError(f"{path}: {code!r} has {len(translated)} names, not {N_CLASSES}")
            names.setdefault(code, tuple(translated))
    return names


def label_names(language: str = "en") -> tuple[str, ...]:
    """Return the 527 class names, in index order, in a language given by code ("de") or name ("German").

    Every language name and alias of Whisper is understood ("Castilian" is "es"). For a language without
    names, English comes back, with a UserWarning. Names other than English ones may repeat: they are for
    showing, and cannot be mapped back to classes.

    >>> label_names("English")[137]
    'Music'
    """
    code = language.strip().lower()
    code = TO_LANGUAGE_CODE.get(code, code)
    names = _translations()
    if code not in names:
        warnings.warn(  # from here, whoever asks: Python shows it once
            f"there are no class names in {language!r}, so they are in English; print_support_language() "
            "lists the languages there are",
            stacklevel=1,
        )
        code = "en"
    return names[code]


def tag_language(result: Mapping[str, Any], language: str | None = "follow_asr") -> str:
    """The language to name a result's tags in: that of its text, or the one asked for."""
    if language is not None and language != "follow_asr":
        return language
    return "en" if result.get("task") == "translate" else result.get("language") or "en"


def print_label_name(language: str = "en") -> None:
    """Print every class as ``index: i : name``; a language without names as `label_names` treats it."""
    for index, name in enumerate(label_names(language)):
        print(f"index: {index} : {name}")


def print_support_language() -> None:
    """Print every language with class names as ``language code: xx : name``."""
    for code in _translations():
        print(f"language code: {code} : {LANGUAGES.get(code, code)}")


# --- rows → named tags --------------------------------------------------------------------------------------


def parse_at_label(
    result: Mapping[str, Any],
    language: str = "follow_asr",
    top_k: int = 5,
    p_threshold: float | None = -1,
    include_class_list: Iterable[int | str] | int | str | None = None,
    *,
    probabilities: bool = False,
    head: str | None = None,
) -> list[dict[str, Any]] | dict[float, list[dict[str, Any]]]:
    """Turn the tag rows of a `transcribe` result into named tags.

    Of each row, only the wanted classes count; of those, the ones scoring strictly above the threshold; of
    those, the `top_k` highest, in falling order (of equal scores, the lower index first).

    Parameters
    ----------
    result : what `transcribe` returned, or the same with lists in place of tensors. ``result["audio_tag"]``
        holds logits of shape ``(rows, 527)``, ``result["at_time_res"]`` the seconds of a row. For several
        resolutions, ``audio_tag`` is a dict from seconds to rows.
    language : code or name of the language of the tag names; "follow_asr" takes ``result["language"]``, or
        English where the text was translated into it
    top_k : at most so many tags a row, from 1; more than there are classes gives all of them
    p_threshold : a logit, whatever `probabilities` says; -1 is a probability of 0.27, and what None stands for
    include_class_list : the wanted classes as indices, MIDs or English names, in any container; None is all
        527
    probabilities : give the sigmoid of each logit as its score; of a head of one's own, the calibrated probability
    head : the name of an attached head (`WhisperAT.attach`) whose rows to name, rather than AudioSet's. Its classes are
        given by index or name; ``p_threshold`` then stands for the probability that it has as a logit, and None for
        the head's own thresholds (-1 where it has none, or one of its classes alone is right); ``language`` is not used

    Returns
    -------
    One entry a row, in order: ``{'time': {'start': s, 'end': e}, 'audio tags': [(name, score), …]}``, in
    seconds. The last ``end`` is no later than ``result["duration"]`` where that is known. A row that no audio
    covered (all NaN, in JSON null) has no tags. For several resolutions, a dict from seconds to such a list.

    Raises
    ------
    ValueError
        if `result` carries no tags, `top_k` is below 1, a class does not exist, or the rows are not of 527
        classes
    """
    top_k = operator.index(top_k)
    if top_k < 1:
        raise ValueError(f"top_k is the number of tags a row may have, from 1; it is {top_k}")
    if head is not None:
        return _parse_own(result, head, top_k, p_threshold, include_class_list, probabilities)
    if result.get("audio_tag") is None or result.get("at_time_res") is None:
        raise ValueError(
            "this result carries no audio tags: transcribe with at_time_res= (seconds of a row, such as 10) "
            "on a model that has an AudioSet head (load_model(..., head=...))"
        )
    threshold = -1 if p_threshold is None else p_threshold
    if include_class_list is None:
        wanted = np.arange(N_CLASSES)
    else:
        # Rising order of indices, for ties.
        wanted = np.array(sorted(set(find_classes(include_class_list))), dtype=np.intp)
    names = label_names(tag_language(result, language))
    duration = result.get("duration")

    def parse(tags: Any, resolution: float) -> list[dict[str, Any]]:
        logits = row_logits(tags)
        entries = []
        for (start, end), row in zip(row_times(len(logits), resolution, duration), logits):
            scores = row[wanted]
            above = np.flatnonzero(scores > threshold)  # false for NaN
            best = above[np.argsort(-scores[above], kind="stable")[:top_k]]
            score = sigmoid if probabilities else float
            entries.append(
                {
                    "time": {"start": start, "end": end},
                    "audio tags": [(names[wanted[i]], score(scores[i])) for i in best],
                }
            )
        return entries

    tags = result["audio_tag"]
    if isinstance(tags, Mapping):  # JSON has made strings of the keys
        return {float(resolution): parse(rows, float(resolution)) for resolution, rows in tags.items()}
    return parse(tags, result["at_time_res"])


def _parse_own(
    result: Mapping[str, Any],
    head: str,
    top_k: int,
    p_threshold: float | None,
    include_class_list: Iterable[int | str] | int | str | None,
    probabilities: bool,
) -> list[dict[str, Any]] | dict[float, list[dict[str, Any]]]:
    """`parse_at_label` for an attached head."""
    if head not in attached_names(result):
        there = ", ".join(attached_names(result)) or "none"
        raise ValueError(f"this result has no head {head!r}; attached were: {there}")
    found, score = result[head], "probability" if probabilities else "logit"

    def parse(logits: Any, resolution: float) -> list[dict[str, Any]]:
        tagged = named_tags(found, logits, top_k, p_threshold, include_class_list)
        times = row_times(len(tagged), resolution, result.get("duration"))
        return [
            {"time": {"start": start, "end": end}, "audio tags": [(tag["name"], tag[score]) for tag in tags]}
            for (start, end), tags in zip(times, tagged)
        ]

    if isinstance(found["logits"], Mapping):
        return {float(resolution): parse(rows, float(resolution)) for resolution, rows in found["logits"].items()}
    return parse(found["logits"], result["at_time_res"])


def row_logits(tags: Any) -> np.ndarray:
    """Return AudioSet tag rows, as tensor, array or lists (where None is NaN), as an array of shape (rows, 527).

    In double precision: numpy would round the threshold to the precision of the scores.
    """
    if isinstance(tags, torch.Tensor):
        rows = tags.detach().cpu().double().numpy()
    elif isinstance(tags, np.ndarray):
        rows = tags.astype(np.float64)
    else:
        # A whole row may be None; the type turns each None within a row into NaN.
        full = [[None] * N_CLASSES if row is None else row for row in tags]
        rows = np.array(full, dtype=np.float64).reshape(len(full), -1 if full else N_CLASSES)
    if rows.ndim != 2 or rows.shape[1] != N_CLASSES:
        raise ValueError(f"tag rows must be of shape (rows, {N_CLASSES}), not {tuple(rows.shape)}")
    return rows


def row_times(n_rows: int, resolution: float, duration: float | None) -> Iterator[tuple[float, float]]:
    """Yield start and end (seconds) of each row of `resolution` seconds, a multiple of 0.4."""
    steps = seconds_to_steps(resolution)
    for row in range(n_rows):
        start, end = steps_to_seconds(row * steps), steps_to_seconds((row + 1) * steps)
        if duration is not None and row == n_rows - 1:
            end = max(start, min(end, float(duration)))
        yield start, end


def sigmoid(logit: float) -> float:
    """The probability of a logit, however large that is."""
    x = float(logit)
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))  # exp(-x) would overflow
