"""Groups of classes, and their events."""

from __future__ import annotations

import pytest
from test_events import SILENT, heard, own, spans

from whisper_at import find_events
from whisper_at.formats.spans import sound_spans, timeline
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.groups import DOMESTIC_SOUNDS, EVENT_GROUPS, HUMAN_VOICE, group_classes, group_name
from whisper_at.tagging.labels import ancestors, audioset_classes, find_class, label_languages
from whisper_at.tagging.named_rows import result_events
from whisper_at.tagging.rows import TagOptions

BARNYARD = {"Bark": [2, SILENT, SILENT, 3], "Cluck": [SILENT, 1, SILENT, SILENT], "Clapping": [SILENT, SILENT, 4, 4]}


def test_every_class_belongs_to_one_group_at_most():
    groups = group_classes(audioset_classes())
    members = [index for group in groups for index in group.members]
    assert len(members) == len(set(members)) > 300
    assert [group.mid for group in groups] == list(EVENT_GROUPS)
    by_mid = {group.mid: group for group in groups}
    assert by_mid[HUMAN_VOICE].index is None
    assert {find_class("Speech"), find_class("Singing")} <= set(by_mid[HUMAN_VOICE].members)
    assert find_class("Church bell") in by_mid["/m/0395lw"].members
    assert find_class("Police car (siren)") in by_mid["/m/07pp_mv"].members
    for group in groups:
        assert group.index is None or all(group.index in (i, *ancestors(i)) for i in group.members)
    assert group_classes(audioset_classes(), False) == group_classes(ClassSet(("wren", "owl"))) == []


def test_a_group_is_one_event_of_all_that_belongs_to_it():
    events = find_events(heard(4, **BARNYARD), groups=True)
    assert spans(events) == [("Animal", 0.0, 4.0), ("Clapping", 4.0, 8.0), ("Animal", 6.0, 8.0)]
    first = events[0]
    assert first["index"] == find_class("Animal")
    assert first["classes"] == ["Bark", "Cluck"]
    assert first["indices"] == [find_class("Bark"), find_class("Cluck")]
    assert first["probability"] == pytest.approx(0.8808, abs=1e-4)
    assert spans(find_events(heard(4, **BARNYARD), groups=True, gap=2)) == [
        ("Animal", 0.0, 8.0),
        ("Clapping", 4.0, 8.0),
    ]


def test_groups_can_be_chosen():
    barnyard = heard(4, **BARNYARD)
    assert spans(find_events(barnyard, groups=["Dog", "Fowl"])) == [
        ("Dog", 0.0, 2.0), ("Fowl", 2.0, 4.0), ("Clapping", 4.0, 8.0), ("Dog", 6.0, 8.0),
    ]  # fmt: skip
    assert spans(find_events(barnyard, groups="Animal", include_class_list=["Cluck"])) == [("Animal", 2.0, 4.0)]
    (event,) = find_events(heard(1, Laughter=[2.0]), groups="human voice")
    assert "index" not in event
    assert (event["name"], event["mid"]) == ("Human voice", HUMAN_VOICE)
    with pytest.raises(ValueError, match="did you mean 'Dog'"):
        find_events(barnyard, groups=["Dgo"])


def test_heads_of_ones_own_have_no_groups():
    events = find_events(own([[3.0, -9.0]]), groups=True)
    assert spans(events) == [("wren", 0.0, 2.0)]


def test_names_of_groups_in_every_language():
    for mid, english in ((HUMAN_VOICE, "Human voice"), (DOMESTIC_SOUNDS, "Domestic sounds")):
        names = {code: group_name(mid, code) for code in label_languages()}
        assert [code for code, name in names.items() if name == english] == ["en"]
    assert spans(find_events(heard(1, Speech=[2.0]), groups=True, language="de")) == [("Menschliche Stimme", 0.0, 2.0)]
    assert spans(find_events(heard(1, Bark=[2.0]), groups=True, language="German")) == [("Tierlaute", 0.0, 2.0)]


def test_files_have_events_of_the_kind_asked_for():
    result = heard(2, Animal=[2, 2], Bark=[2, 2], Speech=[3, SILENT])
    result |= {"text": " Hi.", "segments": [{"start": 0.0, "end": 2.0, "text": " Hi."}]}
    names = {kind: [e["name"] for e in result_events(result, TagOptions(events=kind))] for kind in
             ("specific", "all", "groups")}  # fmt: skip
    assert names["specific"] == ["Speech", "Bark"]
    assert sorted(names["groups"]) == ["Animal", "Human voice"]
    assert sorted(names["all"]) == ["Animal", "Bark", "Speech"]
    assert [span.text for span in sound_spans(result, TagOptions(events="groups"))] == ["[Human voice]", "[Animal]"]
    assert [span.text for span in timeline(result, TagOptions(events="groups"))] == ["Hi.", "[Animal]"]
    with pytest.raises(ValueError, match="specific, all or groups"):
        TagOptions(events="some")
