"""Readers of labelled recordings and their divisions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from whisper_at.data.clips import Clip, Dataset
from whisper_at.data.readers import read_dataset, read_folders
from whisper_at.data.splits import few_shot, folds, hold_out
from whisper_at.train.features import ABOUT
from whisper_at.train.fit import HISTORY, STATE


def files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def data(*rows: tuple[str, str], **fields: list[str]) -> Dataset:
    """Clips of (name, labels between ;) with further fields."""
    clips = [
        Clip(Path(name), tuple(filter(None, labels.split(";"))), **{k: v[i] for k, v in fields.items()})
        for i, (name, labels) in enumerate(rows)
    ]
    return Dataset(tuple(clips), tuple(sorted({label for clip in clips for label in clip.labels})))


# --- reading --------------------------------------------------------------------------------------------------


def test_folders_are_classes(tmp_path):
    files(tmp_path, "dog/b.wav", "dog/deep/a.FLAC", "cat/x.ogg", "cat/.hidden.wav", "cat/notes.txt", ".git/a.wav")
    found = read_dataset(tmp_path)
    assert found.classes == ("cat", "dog")
    assert [(clip.path.relative_to(tmp_path).as_posix(), clip.labels) for clip in found.clips] == [
        ("cat/x.ogg", ("cat",)),
        ("dog/b.wav", ("dog",)),
        ("dog/deep/a.FLAC", ("dog",)),
    ]
    assert not found.multi_label


def test_folders_of_splits_and_classes_that_are_numbers(tmp_path):
    files(tmp_path, "Train/10/a.wav", "Train/2/b.wav", "dev/2/c.wav", "evaluation/10/d.wav", "train.txt")
    found = read_dataset(tmp_path)
    assert found.classes == ("2", "10")  # by value
    assert {name: len(found.split(name)) for name in ("train", "valid", "test")} == {"train": 2, "valid": 1, "test": 1}


def test_folders_beside_those_of_splits(tmp_path):
    files(tmp_path, "train/dog/a.wav", "train/cat/a.wav", "test/dog/a.wav", "meta/list.csv", "valid/notes.txt")
    found = read_dataset(tmp_path)
    assert found.classes == ("cat", "dog")
    assert [clip.split for clip in found.clips] == ["test", "train", "train"]
    files(tmp_path, "extra/b.wav")
    with pytest.raises(ValueError, match=r"holds splits \(test, train\) and also extra; move it away"):
        read_dataset(tmp_path)


def test_a_train_is_also_a_sound(tmp_path):
    files(tmp_path, "train/a.wav", "dog/a.wav", "bird/list.txt")
    assert read_dataset(tmp_path).classes == ("bird", "dog", "train")


def test_what_this_program_wrote_is_no_class(tmp_path):
    files(tmp_path, f"f/{ABOUT}", f"kept/protocol-10/{ABOUT}", f"a/{STATE}", f"b/{HISTORY}", "my.report/report.md")
    files(tmp_path, "my.run/events.out.tfevents.0", "own.run/a.wav", "bird/list.txt", f"dog/{ABOUT}", "dog/a.wav")
    for name in ("none.run", "none.features", "none"):
        (tmp_path / name).mkdir()
    assert read_folders(tmp_path).classes == ("bird", "dog", "none", "own.run")
    parted = files(tmp_path / "parted", "train/dog/a.wav", "train/cat/a.wav", "test/dog/b.wav", f"train/f/{ABOUT}")
    assert read_folders(parted).classes == ("cat", "dog")


def test_folds_and_groups_from_names(tmp_path):
    files(tmp_path, "dog/3-17-a.wav", "dog/12-40-a.wav")
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
def test_wrong_tables_are_told_by_line(tmp_path, text, message):
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


def test_what_is_no_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(ValueError, match="one folder per class"):
        read_dataset(files(tmp_path, "dog/notes.txt"))
    with pytest.raises(ValueError, match="neither a folder of classes, a .csv nor a .json"):
        read_dataset(tmp_path / "dog" / "notes.txt")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_folders(tmp_path / "dog" / "notes.txt")


# --- divisions ------------------------------------------------------------------------------------------------


def test_the_datas_own_folds():
    found = folds(data(("a", "x"), ("b", "y"), ("c", "x"), fold=["2", "1", "2"]))
    assert [(train.tolist(), test.tolist()) for train, test in found] == [([0, 2], [1]), ([1], [0, 2])]


def test_folds_keep_groups_together_and_classes_even():
    rows = [(f"{i}", "xy"[i % 2]) for i in range(120)]
    dataset = data(*rows, group=[f"g{i // 4}" for i in range(120)])
    for seed in (0, 1):
        found = folds(dataset, 4, seed)
        assert sorted(i for _, test in found for i in test) == list(range(120))
        for train, test in found:
            assert not {dataset.clips[i].group for i in train} & {dataset.clips[i].group for i in test}
            shares = dataset.select(test).targets().mean(0)
            assert np.abs(shares - 0.5).max() < 0.05
            assert 24 <= len(test) <= 36
    assert [t.tolist() for _, t in folds(dataset, 4, 0)] == [t.tolist() for _, t in folds(dataset, 4, 0)]
    with pytest.raises(ValueError, match="3 clips or groups cannot be divided into 5 folds"):
        folds(data(("a", "x"), ("b", "x"), ("c", "y")))


def test_holding_out_is_by_class_and_group():
    rows = [(f"{i}", "x" if i < 80 else "y") for i in range(120)]
    dataset = data(*rows, group=[f"g{i // 2}" for i in range(120)])
    kept, held = hold_out(dataset, 0.25, seed=3)
    assert sorted([*kept, *held]) == list(range(120))
    assert dataset.select(held).targets().sum(0).tolist() == [20, 10]
    assert not {dataset.clips[i].group for i in kept} & {dataset.clips[i].group for i in held}
    assert hold_out(dataset, 0.25, seed=3)[1].tolist() == held.tolist()
    assert hold_out(dataset, 0.25, seed=4)[1].tolist() != held.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_every_class_stays_in_training(seed):
    """Classes with one clip or one group, groups that span classes, and classes that are never named first."""
    rows = [("a", "x"), ("b", "y"), ("c", "y"), ("d", "z"), ("e", "z;rare"), ("f", "z"), ("g", "z;w"), ("h", "z;w")]
    dataset = data(*rows, group=["1", "2", "2", "3", "4", "2", "5", "6"])
    kept, held = hold_out(dataset, 0.5, seed)
    assert len(held)
    assert set(dataset.classes) == {label for i in kept for label in dataset.clips[i].labels}


def test_few_shot_takes_as_many_of_each():
    dataset = data(*[(f"{i}", "xyz"[i % 3]) for i in range(30)], ("last", "w"))
    chosen = few_shot(dataset, 4, seed=1)
    assert dataset.select(chosen).targets().sum(0).tolist() == [1, 4, 4, 4]
    assert chosen.tolist() == sorted(chosen) == few_shot(dataset, 4, seed=1).tolist()
    assert chosen.tolist() != few_shot(dataset, 4, seed=2).tolist()
    assert few_shot(dataset, 2, None).tolist() == [0, 1, 2, 3, 4, 5, 30]
