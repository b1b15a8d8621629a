"""Readers of speech emotion corpora, all with the same names and order of classes.

PEFT-SER numbered the classes of IEMOCAP differently from those of other corpora and of its released models (S4). Here
the codes of every corpus are mapped to the names in `EMOTIONS`, in that order: neutral 0, angry 1, sad 2, happy 3.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .clips import Clip, Dataset
from .files import StrPath, check_file, check_folder, make_dataset, read_rows
from .validation import unknown_name

EMOTIONS = tuple("neutral angry sad happy fear disgust surprise calm bored excited frustrated contempt other".split())
"""Names of all classes, in their order (S4)."""

FOUR_EMOTIONS = EMOTIONS[:4]
"""Classes of PEFT-SER and its released models."""

IEMOCAP_CODES = {
    "neu": "neutral",
    "ang": "angry",
    "sad": "sad",
    "hap": "happy",
    "exc": "excited",
    "fea": "fear",
    "dis": "disgust",
    "sur": "surprise",
    "fru": "frustrated",
    "oth": "other",
}
CREMA_D_CODES = {"N": "neutral", "A": "angry", "S": "sad", "H": "happy", "F": "fear", "D": "disgust"}
MSP_CODES = {**CREMA_D_CODES, "U": "surprise", "C": "contempt", "O": "other"}
MELD_CODES = {
    "neutral": "neutral",
    "anger": "angry",
    "sadness": "sad",
    "joy": "happy",
    "fear": "fear",
    "disgust": "disgust",
    "surprise": "surprise",
}
RAVDESS_CODES = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
EMODB_CODES = {"N": "neutral", "W": "angry", "T": "sad", "F": "happy", "A": "fear", "E": "disgust", "L": "bored"}


def read_iemocap(root: StrPath, classes: Sequence[str] = FOUR_EMOTIONS, improvised: bool = False) -> Dataset:
    """Read IEMOCAP (Busso et al., 2008): ``Session<k>/dialog/EmoEvaluation`` and ``Session<k>/sentences/wav``.

    Excited counts as happy unless it is in ``classes``; ``improvised`` leaves scripted dialogues out. The fold is the
    session, ``1`` to ``5``. The group is the speaker, ``Ses01F``: the letter before the turn number, as the letter in
    the dialogue's name says who wore the motion capture markers.
    """
    root, classes = check_folder(root), _check_emotions(classes)
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
    """Read MSP-IMPROV (Busso et al., 2017): ``Evalution.txt`` (sic) and ``Audio/session<k>/S01A/P/….wav``.

    Lines ``UTD-IMPROV-S01A-F01-P-FM01.avi; N; …`` give the label. The fold is the session, the group the speaker.
    """
    root, classes = check_folder(root), _check_emotions(classes)
    table = check_file(root / "Evalution.txt")
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
    """Read MSP-Podcast (Lotfian and Busso, 2019): ``Labels/labels_consensus.csv`` (or ``…concensus…``) and ``Audios/``.

    Splits are the official ones, with ``Test1`` as the test. Further test sets, unknown speakers and genders, and
    rows whose file is missing are left out (spec section 2.4).
    """
    root, classes = check_folder(root), _check_emotions(classes)
    tables = [root / "Labels" / name for name in ("labels_concensus.csv", "labels_consensus.csv")]
    table = next((path for path in tables if path.is_file()), tables[-1])
    audio = next((root / name for name in ("Audios", "Audio") if (root / name).is_dir()), root / "Audios")
    splits = {"Train": "train", "Validation": "valid", "Development": "valid", "Test1": "test"}
    clips = []
    for row in read_rows(table, "FileName", "EmoClass", "SpkrID", "Gender", "Split_Set"):
        label = MSP_CODES.get(row["EmoClass"], "")
        is_unknown = "known" in row["SpkrID"].lower() or "known" in row["Gender"].lower()
        if label in classes and not is_unknown and row["Split_Set"] in splits:
            clips.append(Clip(audio / row["FileName"], (label,), splits[row["Split_Set"]], group=row["SpkrID"]))
    return make_dataset(_existing(clips, root), root, classes)


def read_crema_d(root: StrPath, classes: Sequence[str] = FOUR_EMOTIONS, intended: bool = False) -> Dataset:
    """Read CREMA-D (Cao et al., 2014): ``AudioWAV/1001_DFA_ANG_XX.wav`` and ``processedResults/summaryTable.csv``.

    The label is the majority vote of the raters on sound and image; ties are left out. If ``intended`` is true, it is
    the emotion that the actor was asked for, from the file name. ``1076_MTI_SAD_XX``, which holds no speech, is left
    out. The group is the speaker.
    """
    root, classes = check_folder(root), _check_emotions(classes)
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
    """Read MELD (Poria et al., 2019): ``{train,dev,test}_sent_emo.csv`` and their folders of utterances.

    Utterances are videos ``dia0_utt0.mp4``, or ``waves/dia0_utt0.wav`` if the sound was extracted. Rows without a file
    (the data set has such) are left out with a warning. The group is the speaker.
    """
    root, classes = check_folder(root), _check_emotions(classes)
    folders = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
    clips = []
    for split, folder in folders.items():
        table = root / f"{split}_sent_emo.csv"
        for row in read_rows(table, "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID"):
            name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            wav, video = root / folder / "waves" / f"{name}.wav", root / folder / f"{name}.mp4"
            label = MELD_CODES.get(row["Emotion"].lower(), "")
            if label in classes:
                path = wav if wav.is_file() else video
                clips.append(Clip(path, (label,), {"dev": "valid"}.get(split, split), group=row["Speaker"]))
    return make_dataset(_existing(clips, root), root, classes)


def read_ravdess(root: StrPath, classes: Sequence[str] = EMOTIONS[:8]) -> Dataset:
    """Read RAVDESS (Livingstone and Russo, 2018): ``Actor_01/03-01-06-01-02-01-12.wav`` at any depth; speech only.

    The group is the actor, ``M01`` or ``F02``: odd numbers are men, even numbers women (S12).
    """
    root, classes = check_folder(root), _check_emotions(classes)
    clips: dict[str, Clip] = {}
    for path in sorted(root.rglob("03-01-*.wav")):
        if match := re.fullmatch(r"03-01-(\d\d)-\d\d-\d\d-\d\d-(\d\d)", path.stem):
            code, actor = match.groups()
            label = RAVDESS_CODES.get(code, "")
            if label in classes:  # some archives hold every file twice, in different folders
                clips.setdefault(path.name, Clip(path, (label,), group=f"{'M' if int(actor) % 2 else 'F'}{actor}"))
    return make_dataset([clips[name] for name in sorted(clips)], root, classes)


def read_emodb(root: StrPath, classes: Sequence[str] | None = None) -> Dataset:
    """Read Emo-DB (Burkhardt et al., 2005): ``<speaker><text><emotion><version>.wav``, in the folder or in ``wav/``.

    Classes are all seven emotions by default; the group is the speaker.
    """
    root = check_folder(root)
    folder = root / "wav" if (root / "wav").is_dir() else root
    seven = [name for name in EMOTIONS if name in EMODB_CODES.values()]
    classes = seven if classes is None else _check_emotions(classes)
    clips = []
    for path in sorted(folder.glob("*.wav")):
        if match := re.fullmatch(r"(\d\d)[a-z]\d\d([A-Z])[a-z]?", path.stem):
            speaker, code = match.groups()
            if EMODB_CODES.get(code) in classes:
                clips.append(Clip(path, (EMODB_CODES[code],), group=speaker))
    return make_dataset(clips, root, classes)


# --- corpora of PEFT-SER's released models --------------------------------------------------------------------

RELEASE_READERS: dict[str, Callable[..., Dataset]] = {
    "iemocap": read_iemocap,
    "mspimprov": read_msp_improv,
    "msppodcast": read_msp_podcast,
    "cremad": read_crema_d,
}


def read_peft_ser_release(root: StrPath) -> Dataset:
    """Read the corpora of PEFT-SER's released models from the folders of ``root`` that have the names above.

    Raises
    ------
    FileNotFoundError
        If there is none of these folders.
    """
    present = [name for name in RELEASE_READERS if (Path(root) / name).is_dir()]
    if not present:
        raise FileNotFoundError(f"{root} has none of the folders {', '.join(RELEASE_READERS)}")
    return peft_ser_release({name: RELEASE_READERS[name](Path(root) / name) for name in present})


def peft_ser_release(corpora: Mapping[str, Dataset]) -> Dataset:
    """Join corpora into one data set, with the splits of PEFT-SER's released models (spec section 2.4).

    Parameters
    ----------
    corpora : mapping of str to Dataset
        Any of ``iemocap``, ``mspimprov``, ``msppodcast`` and ``cremad``. Of the first two, session 4 is for
        validation and 5 for the test; of CREMA-D, speakers 1059 to 1073 and 1074 to 1091.

    Returns
    -------
    Dataset
        Clips of all corpora; groups are prefixed by the name of the corpus.
    """

    def split(name: str, clip: Clip) -> str:
        if name == "msppodcast":
            return clip.split
        if name == "cremad":
            return "test" if clip.group >= "1074" else "valid" if clip.group >= "1059" else "train"
        return {"4": "valid", "5": "test"}.get(clip.fold, "train")

    for name in corpora:
        if name not in RELEASE_READERS:
            raise ValueError(unknown_name("no corpus of the released models", name, RELEASE_READERS))
    clips = [
        replace(clip, split=split(name, clip), group=f"{name} {clip.group}", fold="")
        for name, corpus in corpora.items()
        for clip in corpus.clips
    ]
    return Dataset(tuple(clips), FOUR_EMOTIONS)


# --- checks --------------------------------------------------------------------------------------------------


def _check_emotions(classes: Sequence[str]) -> Sequence[str]:
    """Return the classes; raise ValueError if one is not in `EMOTIONS`."""
    for name in classes:
        if name not in EMOTIONS:
            raise ValueError(unknown_name("no emotion", name, EMOTIONS))
    return classes


def _existing(clips: Sequence[Clip], root: Path) -> list[Clip]:
    """Return the clips whose file exists; warn about the number of missing files."""
    existing = [clip for clip in clips if os.path.isfile(clip.path)]
    if existing and len(existing) < len(clips):
        warnings.warn(f"{len(clips) - len(existing)} of {len(clips)} recordings are not in {root}", stacklevel=3)
    return existing
