"""Hints for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_LISTED = 20
"""Of more known names than this, a hint gives only the nearest one, where there is one."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return a hint for a name that is not known: the nearest known one, and which ones there are.

    Parameters
    ----------
    name : object
        What was given; compared as text, whatever its case.
    known : iterable of str
        The names that would do.

    Returns
    -------
    str
        To go after "; " in an error message.

    Examples
    --------
    >>> did_you_mean("smal", ["tiny", "small"])
    "did you mean 'small'? There are tiny, small"
    >>> did_you_mean("huge", ["tiny", "small"])
    'there are tiny, small'
    """
    known = list(known)
    near = nearest(name, known, n=1)
    if not near:
        return f"there are {', '.join(known)}"
    listed = f" There are {', '.join(known)}" if len(known) <= MAX_LISTED else ""
    return f"did you mean {near[0]!r}?{listed}"


def nearest(name: object, known: Iterable[str], n: int = 3, cutoff: float = 0.5) -> list[str]:
    """Return up to `n` of the known names that resemble `name`, whatever its case, best first.

    `cutoff` is the least similarity, from 0 to 1, as of `difflib.get_close_matches`.
    """
    by_lowercase: dict[str, str] = {}
    for candidate in known:
        by_lowercase.setdefault(candidate.lower(), candidate)
    return [by_lowercase[key] for key in difflib.get_close_matches(str(name).lower(), by_lowercase, n, cutoff)]
