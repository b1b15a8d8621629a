"""Class names, the ontology, and tag rows turned into named tags."""

from __future__ import annotations

import csv
import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_at.tagging import labels
from whisper_at.tagging.labels import (
    ancestors,
    audioset_labels,
    caption_names,
    descendants,
    find_class,
    find_classes,
    label_names,
    print_label_name,
    print_support_language,
)
from whisper_at.tagging.rows import parse_at_label

ROOT = Path(__file__).parents[2]
NAMES = label_names()


@pytest.fixture
def german(tmp_path, monkeypatch):
    """Names in a second language, one of them twice, as a file of one's own may have."""
    german = [f"Klang {i}" for i in range(527)]
    german[1] = german[0]
    write_names(tmp_path / "de.csv", german)
    (tmp_path / "en.csv").write_bytes((labels.LABELS / "en.csv").read_bytes())
    monkeypatch.setattr(labels, "LABELS", tmp_path)
    labels._read_names.cache_clear()
    yield german
    labels._read_names.cache_clear()


def write_names(path: Path, names: list[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "mid", "name", "caption"])
        for label, name in zip(audioset_labels(), names):
            writer.writerow([label.index, label.mid, name, name.lower()])


def row(**scores: float) -> list[float]:
    """A row of logits at -9 but for some classes, named c<index>."""
    values = [-9.0] * 527
    for name, score in scores.items():
        values[int(name[1:])] = score
    return values


def result(*rows, res=10.0, **more):
    return {"text": "", "language": "en", "at_time_res": res, "audio_tag": torch.tensor(rows), **more}


def tags(parsed):
    return [entry["audio tags"] for entry in parsed]


# --- classes ---


def test_labels_are_audiosets():
    table = audioset_labels()
    assert [label.index for label in table] == list(range(527))
    assert len({label.mid for label in table}) == len({label.name.lower() for label in table}) == 527
    for index, mid, name in [
        (0, "/m/09x0r", "Speech"),
        (1, "/m/05zppz", "Male speech, man speaking"),
        (74, "/m/0bt9lr", "Dog"),
        (137, "/m/04rlf", "Music"),
        (500, "/m/028v0c", "Silence"),
        (526, "/m/07hvw1", "Field recording"),
    ]:
        assert table[index] == labels.Label(index, mid, name)
    assert audioset_labels() is table  # D32: read once


def test_find_class_by_index_mid_and_name():
    for label in audioset_labels():
        assert find_class(label.index) == label.index
        assert find_class(label.mid) == label.index
        assert find_class(label.name) == find_class(label.name.upper()) == label.index
    assert find_class("74") == find_class(np.int64(74)) == find_class(torch.tensor(74)) == 74
    assert type(find_class(np.int64(74))) is int


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("Dgo", "did you mean 'Dog'"),
        ("laugh", "'Laughter'"),
        ("SPECH", "'Speech'"),
        ("xqzxqz", "lists all 527"),
        ("/m/nothing", "'/m/nothing'"),
        ("", "''"),
        (527, "527"),
        (-1, "-1"),
        ("527", "527"),
        (np.int64(1000), "1000"),
    ],
)
def test_an_unknown_class_is_named(query, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        find_class(query)


@pytest.mark.parametrize("query", [True, np.True_, torch.tensor(False), 1.0, None, np.float32(3), [1]])
def test_what_is_no_class_is_refused(query):
    with pytest.raises(TypeError, match="index, a MID or a name"):
        find_class(query)


def test_find_classes_takes_any_container_D30():
    for container in (
        [3, 1],
        (3, 1),
        np.array([3, 1]),
        torch.tensor([3, 1]),
        iter([3, 1]),
        (i for i in (3, 1)),
        dict.fromkeys([3, 1]),
        ["Child speech, kid speaking", "/m/05zppz"],
        [np.int16(3), torch.tensor(1)],
    ):
        assert find_classes(container) == [3, 1]
    assert sorted(find_classes({3, 1})) == [1, 3]
    assert find_classes(range(527)) == list(range(527))
    for single in ("Speech", 0, torch.tensor(0), np.int8(0)):
        assert find_classes(single) == [0]
    assert find_classes([]) == []
    with pytest.raises(TypeError, match="flatnonzero"):
        find_classes(np.array([True, False]))


# --- ontology ---


def names_of(indices):
    return [NAMES[i] for i in indices]


def test_ancestors():
    assert names_of(ancestors(find_class("Bark"))) == ["Animal", "Domestic animals, pets", "Dog"]
    assert ancestors(find_class("Speech")) == ()  # only nodes outside the 527 lie above it
    # several parents
    above = names_of(ancestors(find_class("Ambulance (siren)")))
    assert {"Siren", "Alarm", "Emergency vehicle", "Vehicle"} <= set(above)
    # a node outside the 527 is passed through
    table = {}
    with open(labels.ASSETS / "audioset_parents.csv", newline="") as file:
        for line in csv.DictReader(file):
            table[line["mid"]] = line["parent_mids"].split()
    inside = {label.mid for label in audioset_labels()}
    through = [
        (child, top)
        for child in inside
        for middle in table.get(child, [])
        if middle not in inside
        for top in table.get(middle, [])
        if top in inside
    ]
    assert through
    for child, top in through:
        assert find_class(top) in ancestors(find_class(child))


def test_descendants_are_the_inverse_of_ancestors():
    for i in range(527):
        assert i not in ancestors(i)
        assert list(ancestors(i)) == sorted(set(ancestors(i)))
        assert all(i in descendants(a) for a in ancestors(i))
        assert all(i in ancestors(d) for d in descendants(i))
        assert all(set(ancestors(a)) <= set(ancestors(i)) for a in ancestors(i))
    assert len(descendants(find_class("Music"))) > 100
    assert descendants(find_class("Silence")) == ()
    with pytest.raises(ValueError, match="527"):
        descendants(527)
    with pytest.raises(TypeError):
        ancestors(True)


# --- languages ---


def test_names_in_other_languages(german):
    assert label_names("de") == label_names("German") == label_names(" DE ") == tuple(german)
    assert label_names("en") == label_names("English") == NAMES


@pytest.mark.parametrize("language", ["zz", "klingon", "castilian"])
def test_a_language_without_names_is_english_with_one_warning(german, language):
    with pytest.warns(UserWarning, match=language) as caught:
        assert label_names(language) == NAMES
    assert len(caught) == 1


def test_aliases_of_whisper_are_understood_D31(german, tmp_path):
    write_names(tmp_path / "es.csv", ["s"] * 527)
    write_names(tmp_path / "zh.csv", ["c"] * 527)
    assert label_names("Castilian")[0] == "s"
    assert label_names("Mandarin")[0] == label_names("Chinese")[0] == "c"


def test_names_of_ones_own_come_from_a_file(tmp_path):
    path = tmp_path / "my names.csv"
    path.write_text("mid,name,caption\n/m/0bt9lr,Hund (Haus),Hund\n/m/09x0r,Rede,\n", encoding="utf-8")
    assert label_names(str(path))[74] == "Hund (Haus)"
    assert (caption_names(str(path))[74], caption_names(str(path))[0]) == ("Hund", "Rede")
    assert label_names(str(path))[137] == "Music"
    assert caption_names(str(path))[75] == "dog barking"
    (tmp_path / "short.csv").write_text("index,name\n74,Hund\n")
    assert label_names(str(tmp_path / "short.csv"))[74] == caption_names(str(tmp_path / "short.csv"))[74] == "Hund"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "columns"),
        ("index,name\n527,x\n", "line 2"),
        ("mid,name\n/m/none,x\n", "line 2"),
        ("", "columns"),
    ],
)
def test_a_file_that_is_none_of_names_is_refused(tmp_path, content, message):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        label_names(str(tmp_path / "x.csv"))
    with pytest.raises(FileNotFoundError):
        label_names(str(tmp_path / "none.csv"))


def test_printing(german, capsys):
    print_label_name()
    assert capsys.readouterr().out.splitlines() == [f"index: {i} : {name}" for i, name in enumerate(NAMES)]
    print_label_name("de")
    assert capsys.readouterr().out.splitlines()[526] == "index: 526 : Klang 526"
    print_support_language()
    assert capsys.readouterr().out == "language code: de : german\nlanguage code: en : english\n"


# --- parsing ---


def test_entries_are_those_of_the_reference():
    parsed = parse_at_label(result(row(c0=2.0, c137=3.0, c5=-0.5), row(c0=0.5, c1=-1.0)))
    assert parsed == [
        {
            "time": {"start": 0.0, "end": 10.0},
            "audio tags": [(NAMES[137], 3.0), (NAMES[0], 2.0), (NAMES[5], -0.5)],
        },
        {"time": {"start": 10.0, "end": 20.0}, "audio tags": [(NAMES[0], 0.5)]},  # the threshold is strict
    ]
    assert all(type(score) is float for entry in parsed for _, score in entry["audio tags"])


@pytest.mark.parametrize("wanted", [["Cough"], {47}, "cough", 47, range(47, 48), np.array([47]), torch.tensor([47])])
def test_classes_are_restricted_before_the_top_k_D29_D30(wanted):
    assert NAMES[47] == "Cough"
    cough_is_sixth = row(c0=9.0, c1=8.0, c2=7.0, c3=6.0, c4=5.0, c47=1.0)
    assert tags(parse_at_label(result(cough_is_sixth), include_class_list=wanted)) == [[("Cough", 1.0)]]


def test_no_classes_give_no_tags():
    assert tags(parse_at_label(result(row(c0=1.0)), include_class_list=[])) == [[]]


def test_all_527_as_a_list_is_the_default():
    one = result(row(c0=1.0, c9=2.0))
    assert parse_at_label(one, include_class_list=list(range(527))) == parse_at_label(one)


def test_equal_scores_come_in_order_of_index():
    parsed = parse_at_label(result(row(c9=1.0, c3=1.0, c7=1.0)), top_k=2, include_class_list=[9, 7, 3])
    assert tags(parsed) == [[(NAMES[3], 1.0), (NAMES[7], 1.0)]]
    values = [float(i % 3) for i in range(527)]
    expected = sorted(range(527), key=lambda i: (-values[i], i))
    assert [name for name, _ in tags(parse_at_label(result(values), top_k=527))[0]] == [NAMES[i] for i in expected]


def test_any_large_top_k_gives_all_D32():
    assert len(tags(parse_at_label(result([0.0] * 527), top_k=10_000))[0]) == 527
    assert len(tags(parse_at_label(result([0.0] * 527), top_k=5, include_class_list=[1, 2]))[0]) == 2


@pytest.mark.parametrize("top_k", [0, -3])
def test_top_k_below_one_is_refused(top_k):
    with pytest.raises(ValueError, match="top_k"):
        parse_at_label(result(row()), top_k=top_k)


def test_rows_never_heard_have_no_tags_D2():
    parsed = parse_at_label(result(row(c0=1.0), [math.nan] * 527, row(c0=1.0)), p_threshold=-math.inf)
    assert [len(found) for found in tags(parsed)] == [5, 0, 5]
    assert parsed[1]["time"] == {"start": 10.0, "end": 20.0}


def test_the_last_row_ends_with_the_audio_D6():
    parsed = parse_at_label(result(*[row()] * 10, duration=90.05))
    assert [entry["time"]["end"] for entry in parsed] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 90.05]
    assert parse_at_label(result(row(), duration=30.0))[0]["time"]["end"] == 10.0


@pytest.mark.parametrize("n", [1, 3, 6, 11, 25, 49, 75])
def test_times_are_the_nearest_numbers_D32(n):
    parsed = parse_at_label(result(*[row()] * 40, res=n * 0.4))
    for i, entry in enumerate(parsed):
        assert entry["time"]["start"] == float(f"{i * n * 4}e-1")
        assert entry["time"]["end"] == float(f"{(i + 1) * n * 4}e-1")
    assert n != 3 or str(parsed[1]["time"]["start"]) == "1.2"


@pytest.mark.parametrize("res", [0, -10, 0.5, 10.1])
def test_impossible_resolutions_are_refused_D3(res):
    with pytest.raises(ValueError, match="at_time_res"):
        parse_at_label(result(row(), res=res))


def test_probabilities_are_sigmoids_and_thresholds_stay_logits_D32():
    parsed = parse_at_label(result(row(c0=0.0, c1=-0.9, c2=-1.1)), probabilities=True)
    assert tags(parsed) == [[(NAMES[0], 0.5), (NAMES[1], pytest.approx(0.28905, abs=1e-5))]]
    both_ends = result([-1e30] * 526 + [1e30])
    extreme = parse_at_label(both_ends, probabilities=True, p_threshold=-math.inf, top_k=2)
    assert [score for _, score in tags(extreme)[0]] == [1.0, 0.0]


def test_follow_asr_D31(german):
    one = row(c2=1.0)
    for language in ("de", "German", "german"):
        assert tags(parse_at_label(result(one, language=language))) == [[("Klang 2", 1.0)]]
    assert tags(parse_at_label(result(one, language="de", task="translate"))) == [[(NAMES[2], 1.0)]]
    assert tags(parse_at_label(result(one, language="de", task="transcribe"))) == [[("Klang 2", 1.0)]]
    assert tags(parse_at_label(result(one, language="en"), language="de")) == [[("Klang 2", 1.0)]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tags(parse_at_label(result(one, language="English"))) == [[(NAMES[2], 1.0)]]
        assert tags(parse_at_label(result(one, language=None))) == [[(NAMES[2], 1.0)]]


def test_equal_names_stay_apart(german):
    parsed = parse_at_label(result(row(c0=2.0, c1=1.0)), "de", include_class_list=[1])
    assert tags(parsed) == [[("Klang 0", 1.0)]]


def test_several_resolutions():
    rows = {10.0: torch.tensor([row(c0=1.0)]), 1.2: torch.tensor([row(c0=1.0), row(c1=1.0)])}
    both = {"language": "en", "at_time_res": [10.0, 1.2], "audio_tag": rows, "duration": 2.0}
    parsed = parse_at_label(both)
    assert list(parsed) == [10.0, 1.2]
    assert parsed[10.0] == [{"time": {"start": 0.0, "end": 2.0}, "audio tags": [(NAMES[0], 1.0)]}]
    times = [tuple(entry["time"].values()) for entry in parsed[1.2]]
    assert times == [(0.0, 1.2), (1.2, 2.0)]
    again = json.loads(json.dumps({**both, "audio_tag": {res: tag.tolist() for res, tag in rows.items()}}))
    assert parse_at_label(again) == parsed


@pytest.mark.parametrize("nothing", [[math.nan] * 527, [None] * 527, None])
def test_a_result_read_from_json(nothing):
    tensors = result(row(c0=1.5), [math.nan] * 527)
    lists = json.loads(json.dumps({**tensors, "audio_tag": [row(c0=1.5), nothing]}))
    assert parse_at_label(lists) == parse_at_label(tensors)


def test_empty_and_reduced_precision_rows():
    for empty in ([], torch.zeros(0, 527), np.zeros((0, 527))):
        assert parse_at_label({"at_time_res": 10, "audio_tag": empty}) == []
    half = torch.tensor([row(c0=1.5)], dtype=torch.bfloat16, requires_grad=True)
    assert tags(parse_at_label({"at_time_res": 10, "audio_tag": half})) == [[(NAMES[0], 1.5)]]


@pytest.mark.parametrize("bad", [{"text": ""}, {"audio_tag": None, "at_time_res": 10}, {"audio_tag": [[0.0] * 527]}])
def test_a_result_without_tags_says_how_to_get_them(bad):
    with pytest.raises(ValueError, match="at_time_res="):
        parse_at_label(bad)


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 50\)"):
        parse_at_label({"at_time_res": 10, "audio_tag": torch.zeros(1, 50)})


score = st.one_of(st.integers(-3, 3).map(float), st.floats(-20, 20, width=32), st.just(math.nan))


@settings(max_examples=40, deadline=None)
@given(
    data=st.dictionaries(st.integers(0, 526), score, max_size=30),
    top_k=st.integers(1, 600),
    threshold=st.floats(-4, 4),
    wanted=st.none() | st.sets(st.integers(0, 526), max_size=40),
)
def test_parsing_equals_its_definition(data, top_k, threshold, wanted):
    values = [data.get(i, -9.0) for i in range(527)]
    expected = [(-value, i) for i, value in enumerate(values) if wanted is None or i in wanted]
    expected = sorted(pair for pair in expected if -pair[0] > threshold)[:top_k]
    parsed = parse_at_label(result(values), top_k=top_k, p_threshold=threshold, include_class_list=wanted)
    assert tags(parsed) == [[(NAMES[i], -negative) for negative, i in expected]]
