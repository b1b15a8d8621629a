"""Tables of events with times, as DCASE and sed_eval have them."""

from __future__ import annotations

import pytest

from whisper_at.data.events import LabelledEvent, is_event_table, read_event_table

ROWS = [("a.wav", "0.5", "2", "Dog"), ("a.wav", "1.5", "3", "Dog"), ("b.wav", "0", "1", "Rain"), ("c.wav", "", "", "")]


@pytest.mark.parametrize(("suffix", "separator"), [(".tsv", "\t"), (".csv", ","), (".csv", "\t"), (".txt", ";")])
def test_a_table_is_read_whatever_separates_its_columns(tmp_path, suffix, separator):
    path = tmp_path / f"events{suffix}"
    lines = [separator.join(row) for row in [("filename", "onset", "offset", "event_label"), *ROWS]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    assert is_event_table(path)
    assert read_event_table(path) == {
        "a.wav": [LabelledEvent(0.5, 3.0, "Dog")],  # which overlap
        "b.wav": [LabelledEvent(0.0, 1.0, "Rain")],
        "c.wav": [],
    }


def test_tables_of_clips_are_none_of_events(tmp_path):
    (tmp_path / "clips.csv").write_text("filename,category\na.wav,dog\n")
    (tmp_path / "folder.csv").mkdir()
    assert not is_event_table(tmp_path / "clips.csv")
    assert not is_event_table(tmp_path / "folder.csv")
    assert not is_event_table(tmp_path / "missing.tsv")
    with pytest.raises(ValueError, match="has no column onset and no column offset and no column event_label"):
        read_event_table(tmp_path / "clips.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.wav,2,1,Dog", "line 3: onset and offset must be seconds, one after the other; they are 2, 1"),
        ("a.wav,x,1,Dog", "line 3: onset and offset must be seconds"),
        ("a.wav,0,inf,Dog", "line 3: onset and offset must be seconds"),
        ("a.wav,0,1,", "line 3: the event has no event_label"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, message):
    path = tmp_path / "events.csv"
    path.write_text(f"filename,onset,offset,event_label\na.wav,0,1,Dog\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_event_table(path)
    path.write_text("filename,onset,offset,event_label\na.wav,,,\n")
    with pytest.raises(ValueError, match="has no events"):
        read_event_table(path)
