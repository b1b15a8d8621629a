"""Hints for unknown names."""

from __future__ import annotations

import pytest

from whisper_at.suggest import MAX_LISTED, did_you_mean, nearest

NAMES = ["Tiny", "small", "large-v3"]


@pytest.mark.parametrize(("name", "expected"), [("smal", "small"), ("TINY", "Tiny"), ("large-v4", "large-v3")])
def test_the_nearest_name_is_offered_whatever_its_case(name, expected):
    assert did_you_mean(name, NAMES) == f"did you mean {expected!r}? There are Tiny, small, large-v3"


def test_all_names_are_listed_where_none_is_near_or_there_are_few():
    assert did_you_mean(7, NAMES) == "there are Tiny, small, large-v3"
    many = [f"class {i:02}" for i in range(MAX_LISTED)]
    assert did_you_mean("clas 07", many).startswith("did you mean 'class 07'? There are class 00, class 01, ")
    assert did_you_mean("clas 07", [*many, "more"]) == "did you mean 'class 07'?"
    assert did_you_mean("xyz", [*many, "more"]).endswith(", class 19, more")


def test_several_near_names_come_best_first():
    assert nearest("small.e", ["base", "small", "small.en"]) == ["small.en", "small"]
    assert nearest("small.e", ["base", "small", "small.en"], n=1) == ["small.en"]
    assert nearest("small.e", ["base", "small", "small.en"], cutoff=0.9) == ["small.en"]
