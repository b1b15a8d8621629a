"""Griffe extension: examples that stand outside of an Examples section are shown as code, too."""

from __future__ import annotations

import re

import griffe

EXAMPLE = re.compile(r"^([ \t]*)>>> .*(?:\n(?![ \t]*\n).+)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fence the examples of docstrings, up to the section in which griffe finds them itself."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            head, *examples = re.split(r"(?=^Examples?\n-+\n)", obj.docstring.value, maxsplit=1, flags=re.MULTILINE)
            obj.docstring.value = "".join([EXAMPLE.sub(r"```pycon\n\g<0>\n```", head), *examples])
