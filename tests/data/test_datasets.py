"""Readers of public data sets of sounds, speech and music, on small folders in their layouts."""

from __future__ import annotations

import json

import pytest
from dataset_files import assert_decodes, labels, sound, table, touch

from whisper_at.data import datasets, emotion, read_public_dataset
from whisper_at.data.datasets import CLIP_SECONDS, READERS, canonical_name
from whisper_at.data.protocols import make_splits


def test_esc50(tmp_path):
    rows = [("1-1-A-0.wav", 1, "dog", True, 1), ("2-7-A-5.wav", 2, "cat", False, 7), ("1-1-B-0.wav", 1, "dog", True, 1)]
    for row in rows:
        sound(tmp_path / "audio" / row[0], 44100)
    lines = [f"{name},{fold},0,{category},{ten},{source},A" for name, fold, category, ten, source in rows]
    table(tmp_path / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take", *lines)
    dataset = read_public_dataset("ESC-50", tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert [(clip.fold, clip.group) for clip in dataset.clips] == [("1", "1"), ("2", "7"), ("1", "1")]
    assert_decodes(dataset)
    assert labels(read_public_dataset("esc10", tmp_path)) == ["dog", "dog"]


def test_urbansound8k_keeps_the_order_of_its_class_numbers(tmp_path):
    sound(tmp_path / "audio" / "fold10" / "9-0-0-1.wav", 48000)
    sound(tmp_path / "audio" / "fold1" / "5-3-0-0.wav", 8000)
    table(
        tmp_path / "metadata" / "UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        "9-0-0-1.wav,9,0,4,1,10,3,dog_bark",
        "5-3-0-0.wav,5,0,4,1,1,0,siren",
    )
    dataset = read_public_dataset("urbansound8k", tmp_path)
    assert dataset.classes == ("siren", "dog_bark")
    assert [clip.fold for clip in dataset.clips] == ["10", "1"]
    assert_decodes(dataset)


def test_fluent_speech_commands(tmp_path):
    for i, split in enumerate(("train", "valid", "test")):
        sound(tmp_path / "wavs" / "speakers" / f"s{i}" / "a.wav")
        table(
            tmp_path / "data" / f"{split}_data.csv",
            ",path,speakerId,transcription,action,object,location",
            f'0,wavs/speakers/s{i}/a.wav,s{i},"Turn on, please",activate,lights,{"none" if i else "kitchen"}',
        )
    dataset = read_public_dataset("FSC", tmp_path)
    assert dataset.classes == ("activate+lights+kitchen", "activate+lights+none")
    assert [(clip.split, clip.group) for clip in dataset.clips] == [("train", "s0"), ("valid", "s1"), ("test", "s2")]
    assert_decodes(dataset)


def test_speech_commands_stand_in_the_order_of_names(tmp_path):
    for name in ("yes/b_nohash_0", "yes/a_nohash_1", "yes/a_nohash_0", "no/c_nohash_0", "_background_noise_/tap"):
        sound(tmp_path / f"{name}.wav")
    table(tmp_path / "validation_list.txt", "yes/b_nohash_0.wav")
    table(tmp_path / "testing_list.txt", "no/c_nohash_0.wav")
    dataset = read_public_dataset("GSC", tmp_path)
    assert dataset.classes == ("no", "yes")
    assert [clip.path.name for clip in dataset.split("train").clips] == ["a_nohash_0.wav", "a_nohash_1.wav"]
    assert [clip.split for clip in dataset.clips] == ["test", "train", "train", "valid"]
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match="testing_list.txt"):
        read_public_dataset("GSC", tmp_path)


def test_birdclef(tmp_path):
    for name in ("afrsil1/XC1", "brant/XC2"):
        sound(tmp_path / "train_audio" / f"{name}.ogg", 32000)  # wav inside: decoders go by content
    table(
        tmp_path / "train_metadata.csv",
        "primary_label,secondary_labels,type,filename",
        "afrsil1,\"['brant', 'nobird']\",['call'],afrsil1/XC1.ogg",
        "brant,[],['song'],brant/XC2.ogg",
    )
    dataset = read_public_dataset("BirdCLEF 2022", tmp_path)
    assert [clip.labels for clip in dataset.clips] == [("afrsil1",), ("brant",)]
    assert not dataset.multi_label
    assert_decodes(dataset)
    both = read_public_dataset("birdclef2022", tmp_path, secondary=True)
    assert both.clips[0].labels == ("afrsil1", "brant")
    assert both.multi_label


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


def test_real_emodb(data):
    dataset = read_public_dataset("Emo-DB", data / "emodb")
    assert len(dataset) == 408
    assert dataset.classes == ("neutral", "angry", "sad", "happy", "fear", "disgust", "bored")
    counts = dict(zip(dataset.classes, dataset.targets().sum(0).tolist()))
    assert counts == {"neutral": 63, "angry": 100, "sad": 49, "happy": 54, "fear": 54, "disgust": 30, "bored": 58}
    divisions = make_splits(dataset, "leave_group_out")
    assert [division.name for division in divisions] == [f"without {s}" for s in "03 08 09 10 11 12 13 14".split()]
    four = read_public_dataset("emodb", data / "emodb", classes=emotion.FOUR_EMOTIONS)
    assert len(four) == 266


def test_real_esc10(data):
    dataset = read_public_dataset("ESC-10", data / "esc10")
    assert len(dataset) == 320
    assert len(dataset.classes) == 10
    for _, train, valid, test in make_splits(dataset, "folds"):
        assert (len(train), len(valid), len(test)) == (160, 80, 80)
        sources = [{dataset.clips[i].group for i in part} for part in (train, valid, test)]
        assert not (sources[0] & sources[1])
        assert not (sources[0] & sources[2])
        assert not (sources[1] & sources[2])


def test_real_fsdd(data):
    digits, speakers = (
        read_public_dataset("fsdd", data / "fsdd"),
        read_public_dataset("fsdd", data / "fsdd", task="speaker"),
    )
    assert digits.classes == tuple("0123456789")
    assert len(digits) == 2700
    assert speakers.classes == ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    assert len(make_splits(digits, "leave_group_out")) == 6
    assert len(make_splits(speakers, "folds")) == 5


def test_missing_data_are_reported(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'esc50'"):
        read_public_dataset("esc5", tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_public_dataset("emodb", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="esc50.csv is missing"):
        read_public_dataset("esc50", tmp_path)
    for name in set(datasets.dataset_names()) - {"files"}:
        with pytest.raises((FileNotFoundError, ValueError), match=str(tmp_path)):
            read_public_dataset(name, tmp_path)
    table(tmp_path / "train_metadata.csv", "primary_label,filename", "a,b.ogg")
    with pytest.raises(ValueError, match="no column 'secondary_labels'"):
        read_public_dataset("birdclef2022", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("files", {"folds": "x"}, "has no option 'folds': did you mean 'fold'"),
        ("files", {"classes": ["a"]}, "has no option 'classes'"),
        ("emodb", {"klasses": ["happy"]}, "did you mean 'classes'"),
        ("emodb", {"classes": "happy"}, "reader.classes = 'happy' is not a list of texts"),
        ("emodb", {"classes": ["neutral", "hapy"]}, "no emotion 'hapy': did you mean 'happy'"),
        ("iemocap", {"classes": ["joy"]}, "no emotion 'joy'"),
        ("iemocap", {"improvised": "yes"}, "reader.improvised = 'yes' is not true or false"),
        ("esc50", {"root": "x"}, "has no option 'root'"),
    ],
)
def test_unknown_options_are_named(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        read_public_dataset(name, tmp_path, **options)


def test_options_of_a_table_reach_its_reader(tmp_path):
    sound(tmp_path / "sub" / "a.wav")
    table(tmp_path / "t.csv", "path,label", "a.wav,x")
    assert read_public_dataset("files", tmp_path / "t.csv", root=str(tmp_path / "sub"), classes=["y", "x"]).classes == (
        "y",
        "x",
    )


def test_datasets_go_by_the_names_of_their_papers():
    for name, key in (("Fluent Speech Commands", "fsc"), ("BirdCLEF", "birdclef2022"), ("Speech Commands V2", "gsc")):
        assert datasets.canonical_name(name) == key
