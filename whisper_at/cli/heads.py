"""Whether tags can be had from the model of a command: known before any recording is read."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..suggest import did_you_mean
from .arguments import Parser
from .reporting import one_line

NO_HEAD = "none"
"""``--head none``: the model is to have no head, so that none is looked for, fetched or read."""


def is_no_head(parser: Parser, heads: Sequence[str] | None, low_compute: bool) -> bool:
    """Return whether ``--head none`` is given; exit with status 2 where another head is, too."""
    if NO_HEAD not in (heads or ()):
        return False
    if set(heads or ()) != {NO_HEAD} or low_compute:
        parser.error(f"--head {NO_HEAD} is for no head at all: leave it out, or the others and --at_low_compute")
    return True


def check_heads(parser: Parser, model: str, heads: Sequence[str], low_compute: bool, otherwise: str) -> None:
    """Exit with status 2 where tags cannot be had, as far as that is known without loading or fetching anything.

    Parameters
    ----------
    parser : Parser
        The command's.
    model : str
        Its ``--model``.
    heads : sequence of str
        Its ``--head``, one or several.
    low_compute : bool
        Its ``--at_low_compute``.
    otherwise : str
        How to go on without tags.
    """
    from .. import checkpoints

    if low_compute and "auto" not in heads:
        parser.error("--at_low_compute chooses among published heads; leave it out where --head is given")
    for head in heads:
        if head == "auto":
            try:
                published = checkpoints.head_name(model, low_compute)
            except ValueError as error:
                parser.error(one_line(error))
            if published is None and model in checkpoints.available_models():
                parser.error(no_head(model, otherwise))
        elif head not in checkpoints.available_heads() and not os.path.isfile(os.path.expanduser(head)):
            hint = did_you_mean(head, checkpoints.available_heads())
            parser.error(f"argument --head: {head!r} is neither a file nor a known name; {hint}")


def no_head(model: str, otherwise: str) -> str:
    """Return what to say of a model without a head, and how to go on."""
    return (
        f"no tagging head is published for {model}: take another --model, or train a head with `whisper-at train` and "
        f"give it as --head FILE; {otherwise}"
    )
