"""Readers of speech emotion corpora, with one map of labels for all of them.

PEFT-SER numbered IEMOCAP's classes differently from every other corpus and from its released models (S4). Here a
corpus' codes become the names in `EMOTIONS`, and classes always stand in that order: neutral 0, angry 1, sad 2,
happy 3.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .clips import Clip, Dataset
from .files import StrPath, check_folder, make_dataset, read_rows
from .validation import unknown_name

EMOTIONS = (
    *("neutral", "angry", "sad", "happy", "fear", "disgust", "surprise"),
    *("calm", "bored", "excited", "frustrated", "contempt", "other"),
)
"""Names of classes, in the order in which they always stand (S4)."""

FOUR_EMOTIONS = EMOTIONS[:4]
"""The classes of PEFT-SER and its released models."""

IEMOCAP_CODES = {"neu": "neutral", "ang": "angry", "sad": "sad", "hap": "happy", "exc": "excited"} | {
    "fea": "fear",
    "dis": "disgust",
    "sur": "surprise",
    "fru": "frustrated",
    "oth": "other",
}
MSP_CODES = {"N": "neutral", "A": "angry", "S": "sad", "H": "happy", "F": "fear", "D": "disgust"} | {
    "U": "surprise",
    "C": "contempt",
    "O": "other",
}
CREMA_D_CODES = {"N": "neutral", "A": "angry", "S": "sad", "H": "happy", "F": "fear", "D": "disgust"}
MELD_CODES = {"neutral": "neutral", "anger": "angry", "sadness": "sad", "joy": "happy"} | {
    name: name for name in ("fear", "disgust", "surprise")
}
RAVDESS_CODES = {"01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry"} | {
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
EMODB_CODES = {"N": "neutral", "W": "angry", "T": "sad", "F": "happy", "A": "fear", "E": "disgust", "L": "bored"}


def read_iemocap(root: StrPath, classes: Sequence[str] = FOUR_EMOTIONS, improvised: bool = False) -> Dataset:
    """IEMOCAP (Busso et al., 2008): ``Session<k>/dialog/EmoEvaluation`` and ``Session<k>/sentences/wav``.

    Excited counts as happy unless ``classes`` names it; ``improvised`` leaves the scripted dialogues out. The fold is
    the session, ``1`` to ``5``; the group the speaker, ``Ses01F``, told by the letter before a turn's number (that of
    the dialogue says who wore markers).
    """
    root, classes = check_folder(root), _emotions(classes)
    codes = IEMOCAP_CODES if "excited" in classes else IEMOCAP_CODES | {"exc": "happy"}
    dialogues = "Ses*impro*.txt" if improvised else "Ses*.txt"
    clips = []
    for session in sorted(root.glob("Session[1-5]")):
        wavs = session / "sentences" / "wav"
        for table in sorted((session / "dialog" / "EmoEvaluation").glob(dialogues)):
            found = re.findall(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t", table.read_text("utf-8", "replace"), re.M)
            for name, code in sorted(found):
                if codes.get(code) in classes:
                    dialogue, _, turn = name.rpartition("_")
                    path, speaker = wavs / dialogue / f"{name}.wav", name[:5] + turn[0]
                    clips.append(Clip(path, (codes[code],), fold=session.name[-1], group=speaker))
    return make_dataset(clips, root, classes)


def read_msp_improv(root: StrPath, classes: Sequence[str] = FOUR_EMOTIONS) -> Dataset:
    """MSP-IMPROV (Busso et al., 2017): ``Evalution.txt`` (so spelled) and ``Audio/session<k>/S01A/P/….wav``.

    Lines ``UTD-IMPROV-S01A-F01-P-FM01.avi; N; …`` give the label. The fold is the session, the group the speaker.
    """
    root, classes = check_folder(root), _emotions(classes)
    table = root / "Evalution.txt"
    if not table.is_file():
        raise FileNotFoundError(f"{table} is missing: it holds the labels")
    audio = root / "Audio" if (root / "Audio").is_dir() else root
    found = re.findall(r"^UTD-(\S+)\.avi;\s*(\w)", table.read_text("utf-8", "replace"), re.M)
    clips = []
    for name, code in sorted(dict(found).items()):
        _, scene, speaker, kind, _ = name.split("-")
        session = str(int(speaker[1:]))
        if MSP_CODES.get(code) in classes:
            path = audio / f"session{session}" / scene / kind[-1] / f"MSP-{name}.wav"
            clips.append(Clip(path, (MSP_CODES[code],), fold=session, group=speaker))
    return make_dataset(clips, root, classes)


def read_msp_podcast(root: StrPath, classes: Sequence[str] = FOUR_EMOTIONS) -> Dataset:
    """MSP-Podcast (Lotfian and Busso, 2019): ``Labels/labels_concensus.csv`` (older) or ``labels_consensus.csv``.

    Splits are the official ones, ``Test1`` being the test; further ones are left out, and so are unknown speakers
    and genders, and rows whose file is not there (spec section 2.4).
    """
    root, classes = check_folder(root), _emotions(classes)
    tables = [root / "Labels" / name for name in ("labels_concensus.csv", "labels_consensus.csv")]
    table = next((path for path in tables if path.is_file()), tables[-1])
    audio = next((root / name for name in ("Audios", "Audio") if (root / name).is_dir()), root / "Audios")
    splits = {"Train": "train", "Validation": "valid", "Development": "valid", "Test1": "test"}
    clips = []
    for row in read_rows(table, "FileName", "EmoClass", "SpkrID", "Gender", "Split_Set"):
        label = MSP_CODES.get(row["EmoClass"], "")
        unknown = "known" in row["SpkrID"].lower() or "known" in row["Gender"].lower()
        if label in classes and not unknown and row["Split_Set"] in splits:
            clips.append(Clip(audio / row["FileName"], (label,), splits[row["Split_Set"]], group=row["SpkrID"]))
    return make_dataset(_existing(clips, root), root, classes)


def read_crema_d(root: StrPath, classes: Sequence[str] = FOUR_EMOTIONS, intended: bool = False) -> Dataset:
    """CREMA-D (Cao et al., 2014): ``AudioWAV/1001_DFA_ANG_XX.wav`` and ``processedResults/summaryTable.csv``.

    The label is what most raters heard and saw (a tie is left out) or, with ``intended``, what the actor was asked
    for, as the file's name tells. ``1076_MTI_SAD_XX``, which holds no speech, is skipped. The group is the speaker.
    """
    root, classes = check_folder(root), _emotions(classes)
    votes = {}
    if not intended:
        table = root / "processedResults" / "summaryTable.csv"
        votes = {row["FileName"]: row["MultiModalVote"] for row in read_rows(table, "FileName", "MultiModalVote")}
    clips = []
    for path in sorted((root / "AudioWAV").glob("*.wav")):
        match = re.fullmatch(r"(\d{4})_[A-Z]{3}_([A-Z]{3})_\w+", path.stem)
        if match is None or path.stem == "1076_MTI_SAD_XX":
            continue
        label = CREMA_D_CODES.get(match.group(2)[0] if intended else votes.get(path.stem, ""), "")
        if label in classes:
            clips.append(Clip(path, (label,), group=match.group(1)))
    return make_dataset(clips, root, classes)


def read_meld(root: StrPath, classes: Sequence[str] = EMOTIONS[:7]) -> Dataset:
    """MELD (Poria et al., 2019): ``{train,dev,test}_sent_emo.csv`` and the folders of utterances beside them.

    Utterances are films ``dia0_utt0.mp4``, or ``waves/dia0_utt0.wav`` where their sound has been taken out; rows
    without either are left out with a warning (the collection has such).
    """
    root, classes = check_folder(root), _emotions(classes)
    folders = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
    clips = []
    for split, folder in folders.items():
        table = root / f"{split}_sent_emo.csv"
        for row in read_rows(table, "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID"):
            name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            wav, film = root / folder / "waves" / f"{name}.wav", root / folder / f"{name}.mp4"
            label = MELD_CODES.get(row["Emotion"].lower(), "")
            if label in classes:
                path = wav if wav.is_file() else film
                clips.append(Clip(path, (label,), {"dev": "valid"}.get(split, split), group=row["Speaker"]))
    return make_dataset(_existing(clips, root), root, classes)


def read_ravdess(root: StrPath, classes: Sequence[str] = EMOTIONS[:8]) -> Dataset:
    """RAVDESS (Livingstone and Russo, 2018): ``Actor_01/03-01-06-01-02-01-12.wav`` at any depth; speech only.

    The group is the actor with his or her sex in front, ``M01``, ``F02``: odd numbers are men (S12).
    """
    root, classes = check_folder(root), _emotions(classes)
    clips: dict[str, Clip] = {}
    for path in sorted(root.rglob("03-01-*.wav")):
        if match := re.fullmatch(r"03-01-(\d\d)-\d\d-\d\d-\d\d-(\d\d)", path.stem):
            code, actor = match.groups()
            label = RAVDESS_CODES.get(code, "")
            if label in classes:  # some archives hold every file twice, the second time in a folder of all
                clips.setdefault(path.name, Clip(path, (label,), group=f"{'M' if int(actor) % 2 else 'F'}{actor}"))
    return make_dataset([clips[name] for name in sorted(clips)], root, classes)


def read_emodb(root: StrPath, classes: Sequence[str] | None = None) -> Dataset:
    """Emo-DB (Burkhardt et al., 2005): ``<speaker><text><emotion><version>.wav``, in the folder or in ``wav/``.

    All seven emotions unless ``classes`` names some; the group is the speaker.
    """
    root = check_folder(root)
    folder = root / "wav" if (root / "wav").is_dir() else root
    every = [name for name in EMOTIONS if name in EMODB_CODES.values()]
    classes = every if classes is None else _emotions(classes)
    clips = []
    for path in sorted(folder.glob("*.wav")):
        if match := re.fullmatch(r"(\d\d)[a-z]\d\d([A-Z])[a-z]?", path.stem):
            speaker, code = match.groups()
            if EMODB_CODES.get(code) in classes:
                clips.append(Clip(path, (EMODB_CODES[code],), group=speaker))
    return make_dataset(clips, root, classes)


def _emotions(classes: Sequence[str]) -> Sequence[str]:
    """The classes, if all of them are `EMOTIONS`; else ValueError."""
    for name in classes:
        if name not in EMOTIONS:
            raise ValueError(unknown_name("no class of emotion is called", name, EMOTIONS))
    return classes


def _existing(clips: Iterable[Clip], root: Path) -> list[Clip]:
    """The clips whose file is there; a warning counts the others."""
    clips = list(clips)
    there = [clip for clip in clips if os.path.isfile(clip.path)]
    if there and len(there) < len(clips):
        warnings.warn(f"{len(clips) - len(there)} of {len(clips)} recordings are not in {root}", stacklevel=3)
    return there


RELEASE_READERS: dict[str, Callable[..., Dataset]] = {
    "iemocap": read_iemocap,
    "mspimprov": read_msp_improv,
    "msppodcast": read_msp_podcast,
    "cremad": read_crema_d,
}


def peft_ser_release(corpora: Mapping[str, Dataset]) -> Dataset:
    """Four corpora as one, with the splits that PEFT-SER's released models were trained by (spec section 2.4).

    ``corpora`` has any of ``iemocap``, ``mspimprov``, ``msppodcast`` and ``cremad``. Sessions 4 of the first two
    validate and sessions 5 test; of CREMA-D speakers 1059 to 1073 and 1074 to 1091.
    """

    def split(name: str, clip: Clip) -> str:
        if name == "msppodcast":
            return clip.split
        if name == "cremad":
            return "test" if clip.group >= "1074" else "valid" if clip.group >= "1059" else "train"
        return {"4": "valid", "5": "test"}.get(clip.fold, "train")

    if unknown := sorted(corpora.keys() - RELEASE_READERS.keys()):
        raise ValueError(f"the released models know nothing of {unknown[0]!r}")
    clips = [
        replace(clip, split=split(name, clip), group=f"{name} {clip.group}", fold="")
        for name, corpus in corpora.items()
        for clip in corpus.clips
    ]
    return Dataset(tuple(clips), FOUR_EMOTIONS)


def read_peft_ser_release(root: StrPath) -> Dataset:
    """`peft_ser_release` of those of the folders ``iemocap``, ``mspimprov``, ``msppodcast``, ``cremad`` in ``root``.

    Raises
    ------
    FileNotFoundError
        If there is none of them.
    """
    there = [name for name in RELEASE_READERS if (Path(root) / name).is_dir()]
    if not there:
        raise FileNotFoundError(f"{root} has none of the folders {', '.join(RELEASE_READERS)}")
    return peft_ser_release({name: RELEASE_READERS[name](Path(root) / name) for name in there})
