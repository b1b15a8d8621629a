"""Readers of the linear evaluation's collections, on small trees in their layouts."""

from __future__ import annotations

import json

import pytest

from whisper_at.data.datasets import CLIP_SECONDS, READERS, canonical_name, read_public_dataset


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def by_split(dataset):
    out: dict[str, list] = {}
    for clip in dataset.clips:
        out.setdefault(clip.split, []).append((clip.path.name, clip.labels))
    return out


def test_gtzan_without_lists_and_with_them(tmp_path):
    names = [f"genres/{genre}/{genre}.0000{i}.au" for genre in ("blues", "jazz") for i in range(3)]
    touch(tmp_path, *names)
    plain = read_public_dataset("GTZAN", tmp_path)
    assert plain.classes == ("blues", "jazz")
    assert len(plain) == 6
    assert {c.split for c in plain.clips} == {""}
    (tmp_path / "train_filtered.txt").write_text("blues/blues.00000.wav\njazz/jazz.00002.wav\n")
    (tmp_path / "valid_filtered.txt").write_text("blues/blues.00001.wav\n")
    with pytest.raises(FileNotFoundError, match="test_filtered.txt is missing"):
        read_public_dataset("gtzan", tmp_path)
    (tmp_path / "test_filtered.txt").write_text("jazz/jazz.00000.wav\n\n")
    assert by_split(read_public_dataset("gtzan", tmp_path)) == {
        "train": [("blues.00000.au", ("blues",)), ("jazz.00002.au", ("jazz",))],
        "valid": [("blues.00001.au", ("blues",))],
        "test": [("jazz.00000.au", ("jazz",))],
    }
    (tmp_path / "test_filtered.txt").write_text("jazz/jazz.00009.wav\n")
    with pytest.raises(FileNotFoundError, match="jazz.00009.wav"):
        read_public_dataset("gtzan", tmp_path)


def test_nsynth_by_family_and_by_pitch(tmp_path):
    for split, notes in (("train", (60, 9)), ("valid", (60,)), ("test", (9,))):
        folder = tmp_path / f"nsynth-{split}"
        folder.mkdir()
        facts = {
            f"{split}_{n}": {"instrument_family_str": "bass" if n == 9 else "organ", "pitch": n, "instrument_str": "i"}
            for n in notes
        }
        (folder / "examples.json").write_text(json.dumps(facts))
    family, pitch = read_public_dataset("nsynth", tmp_path), read_public_dataset("nspitch", tmp_path, label="pitch")
    assert family.classes == ("bass", "organ")
    assert pitch.classes == ("9", "60")
    assert by_split(family)["train"] == [("train_60.wav", ("organ",)), ("train_9.wav", ("bass",))]
    assert family.clips[0].path == tmp_path / "nsynth-train" / "audio" / "train_60.wav"
    with pytest.raises(ValueError, match="family or pitch"):
        read_public_dataset("nsynth", tmp_path, label="velocity")
    (tmp_path / "nsynth-test" / "examples.json").unlink()
    with pytest.raises(FileNotFoundError, match="nsynth-test/examples.json is missing"):
        read_public_dataset("nsynth", tmp_path)


def test_voxforge_keeps_users_together(tmp_path):
    names = ("de/anna-2010-abc/wav/1.wav", "de/anna-2011-xyz/wav/1.wav", "it/anonymous-2010-a/wav/1.wav")
    touch(tmp_path, *names, "it/anonymous-2010-b/wav/1.wav", "it/anonymous-2010-b/etc/README")
    found = read_public_dataset("VoxForge", tmp_path)
    assert found.classes == ("de", "it")
    groups = ["de/anna", "de/anna", "anonymous-2010-a", "anonymous-2010-b"]
    assert [clip.group for clip in found.clips] == groups
    table = tmp_path / "voxforge.csv"
    table.write_text(f"file_name,label,split\n{names[0]},de,train\n{names[2]},it,test\n")
    assert list(by_split(read_public_dataset("voxforge", tmp_path, table=table))) == ["train", "test"]


def test_voxceleb1_identification(tmp_path):
    touch(tmp_path, "wav/id1/vid/1.wav", "dev/wav/id2/vid/1.wav", "test/wav/id1/other/1.wav")
    lines = "1 id1/vid/1.wav\n2 id2/vid/1.wav\n3 id1/other/1.wav\n"
    (tmp_path / "iden_split.txt").write_text(lines)
    found = read_public_dataset("VC1", tmp_path)
    assert [(c.labels[0], c.split, c.group) for c in found.clips] == [
        ("id1", "train", "vid"),
        ("id2", "valid", "vid"),
        ("id1", "test", "other"),
    ]
    (tmp_path / "iden_split.txt").write_text("4 id1/vid/1.wav\n")
    with pytest.raises(ValueError, match="is not a split, 1 to 3"):
        read_public_dataset("voxceleb1", tmp_path)
    (tmp_path / "iden_split.txt").write_text("1 id9/vid/1.wav\n")
    with pytest.raises(FileNotFoundError, match="no such recording"):
        read_public_dataset("voxceleb1", tmp_path)


def test_surge_by_note_with_the_patch_as_group(tmp_path):
    touch(tmp_path, "Bass/Deep/021.ogg", "Bass/Deep/note_108.ogg", "Keys/E 4/60.ogg", "Keys/E 4/readme.ogg")
    found = read_public_dataset("surge", tmp_path)
    assert found.classes == ("21", "60", "108")
    assert [clip.group for clip in found.clips] == ["Bass/Deep", "Bass/Deep", "Keys/E 4"]
    (tmp_path / "surge.csv").write_text("file_name,label,split\nBass/Deep/021.ogg,21,test\n")
    assert read_public_dataset("surge", tmp_path, table=tmp_path / "surge.csv").clips[0].split == "test"


def test_fsd50k_has_several_labels(tmp_path):
    truth = tmp_path / "FSD50K.ground_truth"
    truth.mkdir()
    (truth / "vocabulary.csv").write_text("0,Bark,/m/05tny_\n1,Animal,/m/0jbk\n2,Rain,/m/06mb1\n")
    (truth / "dev.csv").write_text('fname,labels,mids,split\n1,"Bark,Animal",x,train\n2,Rain,x,val\n')
    (truth / "eval.csv").write_text('fname,labels,mids\n3,"Animal",x\n')
    found = read_public_dataset("FSD50K", tmp_path)
    assert found.classes == ("Bark", "Animal", "Rain")
    assert found.multi_label
    assert [clip.split for clip in found.clips] == ["train", "valid", "test"]
    assert found.targets().tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert found.clips[2].path == tmp_path / "FSD50K.eval_audio" / "3.wav"


def test_names_of_the_paper_and_of_other_readers(tmp_path):
    pairs = {"US8K": "urbansound8k", "SPCV2": "gsc", "VC1": "voxceleb1", "VF": "voxforge", "CRM-D": "cremad"}
    assert {name: canonical_name(name) for name in pairs} == pairs
    assert {canonical_name(name) for name in CLIP_SECONDS} == set(CLIP_SECONDS)
    with pytest.raises(ValueError, match="no dataset 'gtzam': did you mean 'gtzan'"):
        canonical_name("gtzam")
    touch(tmp_path, "a/1.wav", "b/2.wav")
    assert len(read_public_dataset("files", tmp_path)) == 2
    for reader in READERS.values():
        with pytest.raises(FileNotFoundError):
            reader(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(
            (ValueError, FileNotFoundError), match="no recordings in|is missing|has none of the folders"
        ):
            reader(tmp_path / "empty")
