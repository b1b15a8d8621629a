"""Readers of speech emotion corpora, on small folders in their layouts."""

from __future__ import annotations

import pytest
from dataset_files import assert_decodes, iemocap, labels, make, sound, table

from whisper_at.data import emotion, read_public_dataset


def test_s4_one_order_of_emotions_in_every_corpus(tmp_path):
    assert emotion.FOUR_EMOTIONS == ("neutral", "angry", "sad", "happy")  # as PEFT-SER's released models number them
    iemocap(tmp_path)
    dataset = read_public_dataset("iemocap", tmp_path)
    assert dataset.classes == emotion.FOUR_EMOTIONS
    assert labels(dataset)[:5] == ["neutral", "sad", "happy", "happy", "angry"]
    for codes in (emotion.IEMOCAP_CODES, emotion.MSP_CODES, emotion.CREMA_D_CODES, emotion.MELD_CODES):
        assert set(emotion.FOUR_EMOTIONS) < set(codes.values()) <= set(emotion.EMOTIONS)


def test_groups_of_iemocap_are_speakers(tmp_path):
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
