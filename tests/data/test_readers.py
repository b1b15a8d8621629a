"""Readers of folders, tables and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from dataset_files import touch

from whisper_at.data import Clip, read_dataset, read_folders
from whisper_at.features.files import METADATA_FILE
from whisper_at.train.fit import HISTORY_FILE, STATE_FILE


def test_folders_are_classes(tmp_path):
    touch(tmp_path, "dog/b.wav", "dog/deep/a.FLAC", "cat/x.ogg", "cat/.hidden.wav", "cat/notes.txt", ".git/a.wav")
    found = read_dataset(tmp_path)
    assert found.classes == ("cat", "dog")
    assert [(clip.path.relative_to(tmp_path).as_posix(), clip.labels) for clip in found.clips] == [
        ("cat/x.ogg", ("cat",)),
        ("dog/b.wav", ("dog",)),
        ("dog/deep/a.FLAC", ("dog",)),
    ]
    assert not found.multi_label


def test_folders_of_splits_and_classes_that_are_numbers(tmp_path):
    touch(tmp_path, "Train/10/a.wav", "Train/2/b.wav", "dev/2/c.wav", "evaluation/10/d.wav", "train.txt")
    found = read_dataset(tmp_path)
    assert found.classes == ("2", "10")  # by value
    assert {name: len(found.split(name)) for name in ("train", "valid", "test")} == {"train": 2, "valid": 1, "test": 1}


def test_folders_beside_those_of_splits(tmp_path):
    touch(tmp_path, "train/dog/a.wav", "train/cat/a.wav", "test/dog/a.wav", "meta/list.csv", "valid/notes.txt")
    found = read_dataset(tmp_path)
    assert found.classes == ("cat", "dog")
    assert [clip.split for clip in found.clips] == ["test", "train", "train"]
    touch(tmp_path, "extra/b.wav")
    with pytest.raises(ValueError, match=r"holds splits \(test, train\) and also extra; move it away"):
        read_dataset(tmp_path)


def test_a_train_is_also_a_sound(tmp_path):
    touch(tmp_path, "train/a.wav", "dog/a.wav", "bird/list.txt")
    assert read_dataset(tmp_path).classes == ("bird", "dog", "train")


def test_output_folders_are_not_classes(tmp_path):
    touch(
        tmp_path,
        f"f/{METADATA_FILE}",
        f"kept/protocol-10/{METADATA_FILE}",
        f"a/{STATE_FILE}",
        f"b/{HISTORY_FILE}",
        "my.report/report.md",
    )
    touch(
        tmp_path, "my.run/events.out.tfevents.0", "own.run/a.wav", "bird/list.txt", f"dog/{METADATA_FILE}", "dog/a.wav"
    )
    for name in ("none.run", "none.features", "none"):
        (tmp_path / name).mkdir()
    assert read_folders(tmp_path).classes == ("bird", "dog", "none", "own.run")
    parted = touch(
        tmp_path / "parted", "train/dog/a.wav", "train/cat/a.wav", "test/dog/b.wav", f"train/f/{METADATA_FILE}"
    )
    assert read_folders(parted).classes == ("cat", "dog")


def test_folds_and_groups_from_names(tmp_path):
    touch(tmp_path, "dog/3-17-a.wav", "dog/12-40-a.wav")
    found = read_folders(tmp_path, fold=r"^(\d+)-", group=re.compile(r"\d+-\d+"))
    assert [(clip.fold, clip.group) for clip in found.clips] == [("12", "12-40"), ("3", "3-17")]
    with pytest.raises(ValueError, match=r"12-40-a.wav does not match '\^x'"):
        read_folders(tmp_path, fold="^x")


def test_tables(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "\ufeffFilename, Category ,subset,speaker,onset,offset,remark\n"
        "a.wav,dog; cat;dog,Training,ann,,,x\n"
        "deep/b.wav,,dev,,0.5,2,\n",
        "utf-8",
    )
    first, second = read_dataset(table).clips
    assert first == Clip(tmp_path / "a.wav", ("dog", "cat"), "train", group="ann")
    assert second == Clip(tmp_path / "deep" / "b.wav", (), "valid", start=0.5, end=2.0)
    assert (first.key, second.key) == (str(first.path), f"{second.path}#0.5-2.0")
    ordered = read_dataset(table, root="/elsewhere", classes=["dog", "bird", "cat"])
    assert ordered.clips[0].path == Path("/elsewhere/a.wav")
    assert ordered.targets().tolist() == [[1, 0, 1], [0, 0, 0]]
    assert ordered.multi_label
    tabs = tmp_path / "table.tsv"
    tabs.write_text("path\tlabel\na,b.wav\tdog\n")
    assert read_dataset(tabs).clips == (Clip(tmp_path / "a,b.wav", ("dog",)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,name\na.wav,x\n", "no column labels or label or .*; it has path, name"),
        ("label\ndog\n", "no column path"),
        ("path,label\n", "has no rows"),
        ("", "no column path"),
        ("path,label\na.wav,dog\n,dog\n", "line 3: the file name is missing"),
        ("path,label,start\na.wav,dog,soon\n", "line 2: start is 'soon', not a number of seconds"),
        ("path,label,split\na.wav,dog,half\n", "line 2: split is 'half'; it may be train,"),
    ],
)
def test_errors_in_tables_name_the_line(tmp_path, text, message):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=f"table.csv.*{message}"):
        read_dataset(tmp_path / "table.csv")


def test_labels_outside_the_class_list(tmp_path):
    (tmp_path / "table.csv").write_text("path,label\na.wav,dog\nb.wav,cow\nc.wav,hen\n")
    with pytest.raises(ValueError, match=r"'cow' is not among the 1 classes \(2 such\)"):
        read_dataset(tmp_path / "table.csv", classes=["dog"])


def test_json_of_earlier_recipes(tmp_path):
    """Spec section 3.2: labels are MIDs between commas, classes stand in a CSV, in its order."""
    labels = tmp_path / "labels.csv"
    labels.write_text('index,mid,display_name\n0,/m/b,"Hum, buzz"\n1,/m/a,Dog\n')
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"data": [{"wav": "/x/a.wav", "labels": "/m/a,/m/b"}, {"wav": "b.wav", "labels": ""}]}))
    found = read_dataset(path, labels)
    assert found.classes == ("Hum, buzz", "Dog")
    assert found.clips == (Clip(Path("/x/a.wav"), ("Dog", "Hum, buzz")), Clip(tmp_path / "b.wav", ()))
    with pytest.raises(ValueError, match="needs its list of classes"):
        read_dataset(path)
    path.write_text(json.dumps({"data": [{"wav": "a.wav", "labels": "/m/z"}]}))
    with pytest.raises(ValueError, match="label /m/z is not in"):
        read_dataset(path, labels)
    for text in ("{", "[]", '{"data": [{"wav": "a.wav"}]}', '{"data": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"data.json is not \{"):
            read_dataset(path, labels)
    labels.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a list of classes"):
        read_dataset(path, labels)


def test_paths_without_a_dataset_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(ValueError, match="one folder per class"):
        read_dataset(touch(tmp_path, "dog/notes.txt"))
    with pytest.raises(ValueError, match="neither a folder of classes, a .csv nor a .json"):
        read_dataset(tmp_path / "dog" / "notes.txt")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_folders(tmp_path / "dog" / "notes.txt")
