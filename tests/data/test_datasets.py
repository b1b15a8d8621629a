"""Readers of published collections on small trees in their layouts, and the divisions of the papers."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from whisper_at.audio import load_audio
from whisper_at.data import datasets, emotion, protocols
from whisper_at.data.clips import Clip, Dataset
from whisper_at.data.datasets import read_public_dataset
from whisper_at.data.protocols import make_splits


def sound(path: Path, rate: int = 16000, seconds: float = 0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (np.sin(np.arange(int(rate * seconds)) / rate * 2764) * 9000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())


def table(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")


def labels(dataset: Dataset) -> list[str]:
    return [clip.labels[0] for clip in dataset.clips]


def assert_decodes(dataset: Dataset) -> None:
    for clip in dataset.clips:
        assert len(load_audio(clip.path)) > 0


def make(**columns: list[str]) -> Dataset:
    """Clips without files: a list per field."""
    n = len(next(iter(columns.values())))
    names = columns.pop("labels", ["a", "b"] * n)[:n]
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    return Dataset(
        tuple(Clip(Path(f"{i}.wav"), (name,), **row) for i, (name, row) in enumerate(zip(names, rows))),
        tuple(sorted(set(names))),
    )


# --- sounds and commands -------------------------------------------------------------------------------------------


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


# --- emotion ------------------------------------------------------------------------------------------------------


def iemocap(root: Path) -> None:
    for session in range(1, 6):
        dialogue = f"Ses0{session}F_impro01"
        turns = [("F000", "neu"), ("M001", "exc"), ("F002", "sad"), ("M003", "ang"), ("M004", "xxx"), ("F005", "hap")]
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for turn, code in turns:
            sound(root / f"Session{session}/sentences/wav/{dialogue}/{dialogue}_{turn}.wav")
            lines.append(f"[6.2901 - 8.2357]\t{dialogue}_{turn}\t{code}\t[2.5000, 2.5000, 2.5000]")
            lines.append("C-E2:\tNeutral;\t()")
        table(root / f"Session{session}/dialog/EmoEvaluation/{dialogue}.txt", *lines)
        (root / f"Session{session}/dialog/EmoEvaluation/._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07")


def test_s4_one_order_of_emotions_in_every_corpus(tmp_path):
    assert emotion.FOUR_EMOTIONS == ("neutral", "angry", "sad", "happy")  # as PEFT-SER's released models number them
    iemocap(tmp_path)
    dataset = read_public_dataset("iemocap", tmp_path)
    assert dataset.classes == emotion.FOUR_EMOTIONS
    assert labels(dataset)[:5] == ["neutral", "sad", "happy", "happy", "angry"]
    for codes in (emotion.IEMOCAP_CODES, emotion.MSP_CODES, emotion.CREMA_D_CODES, emotion.MELD_CODES):
        assert set(emotion.FOUR_EMOTIONS) < set(codes.values()) <= set(emotion.EMOTIONS)


def test_iemocap_knows_who_speaks(tmp_path):
    iemocap(tmp_path)
    dataset = read_public_dataset("IEMOCAP", tmp_path)
    assert [clip.group for clip in dataset.clips[:5]] == ["Ses01F", "Ses01F", "Ses01F", "Ses01M", "Ses01M"]
    assert {clip.fold for clip in dataset.clips} == set("12345")
    assert_decodes(dataset.select(range(3)))
    kept = read_public_dataset("IEMOCAP", tmp_path, classes=("happy", "excited"))
    assert labels(kept)[:2] == ["happy", "excited"]


def test_iemocap_without_its_scripted_dialogues(tmp_path):
    iemocap(tmp_path)
    table(
        tmp_path / "Session3/dialog/EmoEvaluation/Ses03F_script01_1.txt",
        "[0.5 - 1.5]\tSes03F_script01_1_F000\tang\t[2.5, 2.5, 2.5]",
    )
    whole, improvised = (
        read_public_dataset("IEMOCAP", tmp_path),
        read_public_dataset("IEMOCAP", tmp_path, improvised=True),
    )
    assert len(improvised.clips) == len(whole.clips) - 1
    assert all("impro" in clip.path.name for clip in improvised.clips)


def test_msp_improv(tmp_path):
    lines = []
    for name, code in (("S01A-F01-P-FM01", "H"), ("S01A-M01-S-FM02", "X"), ("S02A-M02-R-MF05", "N")):
        _, speaker, kind, _ = name.split("-")
        sound(tmp_path / f"Audio/session{int(speaker[1:])}/{name[:4]}/{kind}/MSP-IMPROV-{name}.wav")
        lines += [f"UTD-IMPROV-{name}.avi; {code}; A:4.5; V:3.0; D:3.5; N:2.0;", "f1; H; ; A:4.0; V:3; D:3; N:2;", ""]
    table(tmp_path / "Evalution.txt", *lines)
    dataset = read_public_dataset("msp-improv", tmp_path)
    assert [(c.labels[0], c.fold, c.group) for c in dataset.clips] == [("happy", "1", "F01"), ("neutral", "2", "M02")]
    assert_decodes(dataset)


@pytest.mark.parametrize("name", ["labels_concensus.csv", "labels_consensus.csv"])
def test_msp_podcast(tmp_path, name):
    rows = {
        "a": ("A", "12", "Female", "Train"),
        "b": ("N", "13", "Male", "Validation"),
        "c": ("S", "14", "Male", "Test1"),
        "d": ("H", "15", "Male", "Test2"),
        "e": ("H", "Unknown", "Unknown", "Train"),
        "f": ("C", "12", "Female", "Train"),
    }
    for file in rows:
        sound(tmp_path / "Audios" / f"MSP_{file}.wav")
    lines = [f"MSP_{file}.wav,{code},4,4,4,{who},{sex},{part}" for file, (code, who, sex, part) in rows.items()]
    lines.append("MSP_gone.wav,N,4,4,4,9,Male,Train")
    table(tmp_path / "Labels" / name, "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set", *lines)
    with pytest.warns(UserWarning, match="1 of 4 recordings are not in"):
        dataset = read_public_dataset("MSP-Podcast", tmp_path)
    found = [(clip.labels[0], clip.split, clip.group) for clip in dataset.clips]
    assert found == [("angry", "train", "12"), ("neutral", "valid", "13"), ("sad", "test", "14")]
    assert_decodes(dataset)


def test_crema_d_takes_the_vote_and_leaves_out_ties(tmp_path):
    names = ["1001_DFA_ANG_XX", "1001_IEO_HAP_HI", "1002_TIE_SAD_LO", "1076_MTI_SAD_XX"]
    for name in names:
        sound(tmp_path / "AudioWAV" / f"{name}.wav")
    votes = ["A", "N", "A:S", "S"]
    lines = [f'"{i}","{name}","N",1,"N",1,"{vote}",70' for i, (name, vote) in enumerate(zip(names, votes))]
    header = '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"'
    table(tmp_path / "processedResults" / "summaryTable.csv", header, *lines)
    dataset = read_public_dataset("crema_d", tmp_path)
    assert [(clip.labels[0], clip.group) for clip in dataset.clips] == [("angry", "1001"), ("neutral", "1001")]
    assert labels(read_public_dataset("crema_d", tmp_path, intended=True)) == ["angry", "happy", "sad"]
    assert_decodes(dataset)


def test_meld(tmp_path):
    places = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    for split, folder in places.items():
        sound(tmp_path / folder / "dia0_utt0.mp4")
        sound(tmp_path / folder / "waves" / "dia0_utt1.wav")
        rows = [
            f'{i},"Oh, no",{who},{what},x,0,{i},1,1,"0","1"' for i, who, what in ((0, "Joey", "joy"), (1, "X", "fear"))
        ]
        table(
            tmp_path / f"{split}_sent_emo.csv", header, *rows, *(['9,a,Y,anger,x,110,7,1,1,"",""'] * (split == "train"))
        )
    with pytest.warns(UserWarning, match="1 of 7 recordings"):
        dataset = read_public_dataset("meld", tmp_path)
    assert labels(dataset) == ["happy", "fear"] * 3
    assert [clip.split for clip in dataset.clips[::2]] == ["train", "valid", "test"]
    assert len(dataset.classes) == 7
    assert_decodes(dataset)


def test_s12_odd_actors_of_ravdess_are_men(tmp_path):
    for name in ("Actor_01/03-01-01-01-01-01-01", "Actor_02/03-01-05-01-02-01-02", "Actor_02/03-02-05-01-02-01-02"):
        sound(tmp_path / f"{name}.wav", 48000)
        sound(tmp_path / "audio_speech_actors_01-24" / f"{name}.wav", 48000)  # the archive holds all files twice
    dataset = read_public_dataset("RAVDESS", tmp_path)
    assert [(clip.labels[0], clip.group) for clip in dataset.clips] == [("neutral", "M01"), ("angry", "F02")]
    assert len(dataset.classes) == 8
    assert_decodes(dataset)


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


# --- wrong data -----------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_said(tmp_path):
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


# --- protocols --------------------------------------------------------------------------------------------------


def folds_of(dataset: Dataset, indices: np.ndarray, what: str = "fold") -> str:
    return " ".join(sorted({getattr(dataset.clips[i], what) for i in indices}, key=lambda n: (len(n), n)))


def test_p10_every_protocol_tests_all_and_mixes_nothing(tmp_path):
    iemocap(tmp_path)
    corpora = {
        "folds": make(fold=list("12345") * 8),
        "sessions": read_public_dataset("iemocap", tmp_path),
        "session_speakers": read_public_dataset("iemocap", tmp_path),
        "speaker_folds": make(group=[str(1001 + i // 2) for i in range(182)]),
        "leave_group_out": make(group=["x", "y", "z", "w"] * 6),
        "random_folds": make(group=[str(i // 2) for i in range(60)], labels=["a", "a", "b", "b"] * 15),
        "splits": make(split=["train"] * 20 + ["test"] * 6),
    }
    assert corpora.keys() == protocols.PROTOCOLS.keys()
    for protocol, dataset in corpora.items():
        divisions = make_splits(dataset, protocol)
        for name, *parts in divisions:
            joined = np.concatenate(parts)
            assert len(set(joined.tolist())) == len(joined), (protocol, name)
            if protocol != "splits":
                assert protocol == "session_speakers" or len(joined) == len(dataset)
        tested = np.concatenate([division.test for division in divisions])
        everything = range(20, 26) if protocol == "splits" else range(len(dataset))
        assert sorted(tested.tolist()) == list(everything), protocol


def test_folds_turn_as_in_petl_ast():
    esc = make(fold=list("12345"))
    found = [tuple(folds_of(esc, part) for part in division[1:]) for division in make_splits(esc, "folds")]
    assert found[:3] == [("1 2 3", "4", "5"), ("2 3 4", "5", "1"), ("3 4 5", "1", "2")]
    us8k = make(fold=[str(i) for i in range(1, 11)])
    first, second, *_ = make_splits(us8k, "folds")
    assert (folds_of(us8k, first.test), folds_of(us8k, second.test)) == ("10", "1")
    assert len(first.valid) == 1  # P10: one of the nine training folds chooses the epoch, not the test


def test_iemocap_divisions_of_both_papers(tmp_path):
    iemocap(tmp_path)
    dataset = read_public_dataset("iemocap", tmp_path)
    found = [tuple(folds_of(dataset, part) for part in division[1:]) for division in make_splits(dataset, "sessions")]
    assert found == [
        ("2 3 4", "5", "1"),
        ("1 3 4", "5", "2"),
        ("1 2 4", "5", "3"),
        ("1 2 3", "5", "4"),
        ("1 2 3", "4", "5"),
    ]
    ten = make_splits(dataset, "session_speakers")
    held = [(folds_of(dataset, d.valid, "group"), folds_of(dataset, d.test, "group")) for d in ten]
    assert held[:3] == [("Ses05F", "Ses05M"), ("Ses05M", "Ses05F"), ("Ses01F", "Ses01M")]
    assert len(held) == 10
    assert folds_of(dataset, ten[0].train) == "1 2 3 4"


def test_crema_d_speakers_are_divided_as_by_an_unshuffled_kfold():
    from sklearn.model_selection import KFold

    dataset = make(group=[str(1001 + i) for i in range(91)])
    divisions = make_splits(dataset, "speaker_folds")
    for division, (rest, test) in zip(divisions, KFold(5).split(np.arange(91))):
        assert division.test.tolist() == test.tolist()
        assert division.valid.tolist() == rest[-15:].tolist()  # the last 15 of 72 or 73


def test_splits_of_the_released_models():
    corpora = {
        "iemocap": make(fold=list("12345"), group=["s"] * 5, labels=["sad"] * 5),
        "mspimprov": make(fold=list("123456"), group=["s"] * 6, labels=["sad"] * 6),
        "msppodcast": make(split=["train", "valid", "test"], labels=["angry"] * 3),
        "cremad": make(group=["1001", "1058", "1059", "1073", "1074", "1091"], labels=["happy"] * 6),
    }
    merged = emotion.peft_ser_release(corpora)
    found = [clip.split[:2] for clip in merged.clips]
    assert " ".join(found) == "tr tr tr va te tr tr tr va te tr tr va te tr tr va va te te"
    assert merged.classes == emotion.FOUR_EMOTIONS
    with pytest.raises(ValueError, match="ravdess"):
        emotion.peft_ser_release({"ravdess": corpora["iemocap"]})


def test_corpora_of_the_released_models_are_read_together(tmp_path):
    iemocap(tmp_path / "iemocap")
    sound(tmp_path / "cremad" / "AudioWAV" / "1080_DFA_SAD_XX.wav")
    table(tmp_path / "cremad" / "processedResults" / "summaryTable.csv", "FileName,MultiModalVote", "1080_DFA_SAD_XX,S")
    merged = read_public_dataset("PEFT-SER release", tmp_path)
    parts = {name: len(merged.split(name)) for name in ("train", "valid", "test")}
    assert parts == {"train": 15, "valid": 5, "test": 6}
    assert merged.classes == emotion.FOUR_EMOTIONS


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("files", {"folds": "x"}, "has no option 'folds': did you mean 'fold'"),
        ("files", {"classes": ["a"]}, "has no option 'classes'"),
        ("emodb", {"klasses": ["happy"]}, "did you mean 'classes'"),
        ("emodb", {"classes": "happy"}, "reader.classes = 'happy' is not a list of str"),
        ("emodb", {"classes": ["neutral", "hapy"]}, "no emotion 'hapy': did you mean 'happy'"),
        ("iemocap", {"classes": ["joy"]}, "no emotion 'joy'"),
        ("iemocap", {"improvised": "yes"}, "reader.improvised = 'yes' is not bool"),
        ("esc50", {"root": "x"}, "has no option 'root'"),
    ],
)
def test_options_that_a_reader_does_not_have_are_named(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        read_public_dataset(name, tmp_path, **options)


def test_options_of_a_table_reach_its_reader(tmp_path):
    sound(tmp_path / "sub" / "a.wav")
    table(tmp_path / "t.csv", "path,label", "a.wav,x")
    assert read_public_dataset("files", tmp_path / "t.csv", root=str(tmp_path / "sub"), classes=["y", "x"]).classes == (
        "y",
        "x",
    )


def test_collections_go_by_the_names_of_their_papers():
    for name, key in (("Fluent Speech Commands", "fsc"), ("BirdCLEF", "birdclef2022"), ("Speech Commands V2", "gsc")):
        assert datasets.canonical_name(name) == key


def test_few_shot_takes_from_training_only():
    dataset = make(split=["train"] * 40 + ["valid"] * 10 + ["test"] * 10)
    whole = make_splits(dataset, "splits")[0]
    first, drawn, again = (protocols.few_shot_split(dataset, whole, 3, seed) for seed in (None, 1, 1))
    assert first.train.tolist() == [0, 1, 2, 3, 4, 5]
    assert labels(dataset.select(drawn.train)).count("a") == 3
    assert drawn.train.tolist() != first.train.tolist()
    assert drawn.train.tolist() == again.train.tolist()
    assert len(drawn.valid) == 10
    assert len(drawn.test) == 10
    with pytest.raises(ValueError, match="few_shot must be at least 1"):
        protocols.few_shot_split(dataset, whole, 0, 1)


def test_wrong_divisions_are_refused():
    with pytest.raises(ValueError, match="did you mean 'folds'"):
        make_splits(make(fold=list("123")), "fold")
    with pytest.raises(ValueError, match="have no speaker"):
        make_splits(make(group=["a", "b", "c", ""]), "leave_group_out")
    with pytest.raises(ValueError, match="nothing is left to validate"):
        make_splits(make(split=["train", "test"]), "splits")
    with pytest.raises(ValueError, match="define no training and test split"):
        make_splits(make(fold=list("123")), "splits")
    lacking = make(fold=list("1234"), labels=["a", "a", "a", "b"])
    with pytest.raises(ValueError, match="fold 4: class 'b' is in test, but not in training"):
        protocols.check_classes(lacking, make_splits(lacking, "folds")[0])
