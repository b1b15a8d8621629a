"""Checks of data: each problem is found, named with its way out, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, noise

from whisper_at.data.clips import Clip, Dataset
from whisper_at.data.readers import read_folders
from whisper_at.data.splits import hold_out
from whisper_at.features import validate_data
from whisper_at.features.audio_info import load_cache, probe_audio, save_cache
from whisper_at.features.validate_data import (
    Finding,
    audio_digests,
    check_labels,
    check_names,
    group_copies,
    validate,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of three sounds, nothing wrong."""
    for k, name in enumerate(("dog", "rain")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            write(tmp_path / "data" / name / f"{name}{i}.wav", noise(1, 10 * k + i))
    return tmp_path / "data"


def write(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE, subtype: str = "PCM_16") -> None:
    if subtype == "PCM_16":  # the same numbers in every format
        samples = np.round(samples * 32768).astype(np.int16)
    soundfile.write(path, samples, rate, subtype=subtype)


def findings_of(dataset: Dataset | Path, **options) -> list[Finding]:
    dataset = dataset if isinstance(dataset, Dataset) else read_folders(dataset)
    return validate(dataset, **options)[0]


def only(findings: list[Finding], level: str, *words: str) -> Finding:
    (finding,) = findings
    assert finding.level == level
    for word in words:
        assert word in finding.text, finding.text
    return finding


def test_nothing_is_found_in_good_data(folder):
    assert findings_of(folder) == []


def test_files_that_cannot_be_read(folder):
    (folder / "dog" / "a.wav").write_bytes(b"")
    (folder / "dog" / "b.wav").write_text("this is no sound at all")
    findings = findings_of(folder)
    assert [finding.level for finding in findings] == ["error", "error"]
    assert "a.wav: is empty" in findings[0].text
    assert findings[0].clips == (0,)
    assert "b.wav: cannot be read" in findings[1].text
    assert "--skip-bad" in findings[1].text
    only(findings_of(folder, decode=False), "error", "is empty")


def test_files_that_are_missing(tmp_path):
    clips = [Clip(tmp_path / f"{i}.wav", (name,)) for i, name in enumerate("aabb")]
    assert only(findings_of(Dataset(tuple(clips), ("a", "b"))), "error", "4 clips", "not there").clips == (0, 1, 2, 3)
    has_features = np.ones(4, bool)
    assert findings_of(Dataset(tuple(clips), ("a", "b")), has_features=has_features) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(folder, value):
    samples = noise(1, 99)
    samples[77] = value
    write(folder / "dog" / "a.wav", samples, subtype="FLOAT")
    assert only(findings_of(folder), "error", "a.wav", "NaN or infinite").clips == (0,)


def test_silence_and_shortness(folder):
    write(folder / "dog" / "a.wav", np.zeros(SAMPLE_RATE))
    only(findings_of(folder), "warning", "a.wav: silent")
    write(folder / "dog" / "a.wav", noise(1)[:3200])
    only(findings_of(folder), "warning", "a.wav: shorter than 0.4 s")
    write(folder / "dog" / "a.wav", noise(1)[3200:3400])
    only(findings_of(folder), "error", "a.wav: less than 0.02 s")


def test_a_quiet_sound_is_not_silent(folder):
    write(folder / "dog" / "a.wav", 0.01 * noise(1))
    assert findings_of(folder) == []


def test_copies_of_a_sound_whatever_their_format(folder):
    write(folder / "dog" / "a.flac", noise(1, 1))  # dog1.wav
    finding = only(findings_of(folder), "warning", "more than once", "dog1.wav")
    assert finding.clips == (2,)
    write(folder / "rain" / "b.flac", noise(1, 1))
    only(findings_of(folder), "warning", "different labels")


def test_copies_across_splits_are_leaks(tmp_path):
    for split in ("train", "test"):
        for k, name in enumerate(("dog", "rain")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                write(tmp_path / split / name / f"{split}{name}{i}.wav", noise(1, 10 * k + i + 5 * (split == "test")))
    assert findings_of(tmp_path) == []
    write(tmp_path / "test" / "dog" / "copy.wav", noise(1, 0))
    only(findings_of(tmp_path), "error", "both sides of a split")


def test_copies_across_folds_are_warned_of(folder):
    write(folder / "dog" / "dog9.wav", noise(1, 0))
    only(findings_of(read_folders(folder, fold=r"(\d)\.wav")), "warning", "different folds")


def test_copies_are_held_together(folder):
    """A sound and its copy are one group, so that no held-out clip was trained on."""
    for i in range(6):
        write(folder / "dog" / f"copy{i}.flac", noise(1, i % 3))
    dataset = read_folders(folder)
    digests = audio_digests(validate(dataset)[1])
    dataset = group_copies(dataset, digests)
    assert len({clip.group for clip in dataset.clips if clip.labels == ("dog",)}) == 3
    for seed in range(10):
        kept, held = hold_out(dataset, 0.4, seed)
        assert not {digests[i] for i in kept} & {digests[i] for i in held}


def test_groups_that_share_a_sound_become_one():
    clips = tuple(Clip(Path(f"{i}.wav"), ("a",), group=group) for i, group in enumerate("xxyyz"))
    joined = group_copies(Dataset(clips, ("a",)), {0: "1", 1: "2", 2: "2", 3: "3", 4: "4"})
    assert len({joined.clips[i].group for i in range(4)}) == 1
    assert joined.clips[4].group == "z"


def test_groups_are_joined_whatever_the_order_of_their_copies():
    """0 = 2 and 1 = 3, and 2 is of the group of 3: all four are one."""
    clips = tuple(Clip(Path(f"{i}.wav"), ("a",), group=group) for i, group in enumerate("ACBB"))
    joined = group_copies(Dataset(clips, ("a",)), {3: "d2", 1: "d2", 0: "d1", 2: "d1"})
    assert len({clip.group for clip in joined.clips}) == 1


def test_what_was_decoded_is_cached_and_not_decoded_again(folder, monkeypatch):
    write(folder / "dog" / "copy.flac", noise(1, 1))
    dataset = read_folders(folder)
    findings, audio = validate(dataset)
    save_cache(folder, dataset, audio)
    assert load_cache(folder, dataset) == audio
    monkeypatch.setattr(validate_data, "probe_audio", lambda clip: pytest.fail(f"decoded {clip.path}"))
    has_features = np.ones(len(dataset), bool)
    assert validate(dataset, has_features=has_features, cached=load_cache(folder, dataset)) == (findings, audio)
    (folder / "rain" / "rain0.wav").unlink()  # with its states there, it need not be
    assert validate(dataset, has_features=has_features, cached=load_cache(folder, dataset)) == (findings, audio)
    write(folder / "rain" / "rain1.wav", noise(1, 77))
    gone = [i for i, clip in enumerate(dataset.clips) if clip.path.name == "rain1.wav"]
    assert set(audio) - set(load_cache(folder, dataset)) == set(gone)


def labelled(*labels: str, classes: str = "", splits: str = "") -> Dataset:
    clips = [Clip(Path(f"{i}.wav"), tuple(label)) for i, label in enumerate(labels)]
    for i, split in enumerate(splits.split()):
        clips[i] = replace(clips[i], split=split)
    return Dataset(tuple(clips), tuple(classes or sorted(set("".join(labels)))))


def test_classes_that_cannot_be_learned():
    assert list(check_labels(labelled("a", "a", "b", "b"))) == []
    only(list(check_labels(labelled("a", "a", "b"))), "warning", "b: one clip only")
    only(list(check_labels(labelled("a", "a", "b", "b", classes="abc"))), "warning", "c: no clips to train on")
    only(list(check_labels(labelled("a", "a"))), "error", "one class only")
    assert list(check_labels(labelled("a", "", "a"))) == []  # one class, and clips without it
    splits = "train train train train test"
    only(list(check_labels(labelled("a", "a", "b", "b", "a", splits=splits))), "warning", "b: no clips to validate")
    only(list(check_labels(labelled("a", "b", splits="test test"))), "error", "no clip is for training")


def test_a_clip_that_is_listed_twice():
    dataset = labelled("a", "a", "b", "b")
    finding = only(
        list(check_labels(replace(dataset, clips=(*dataset.clips, dataset.clips[1])))),
        "error",
        "1.wav",
        "more than once",
    )
    assert finding.clips == (4,)


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (("Dog bark", "dog_bark"), True),
        (("Siren", "Sirens"), True),
        (("helicopter", "helicoptor"), True),
        (("rain", "train"), False),
        (("cat", "cats"), True),
        (("crying_baby", "crying_man"), False),
        (("1", "11"), False),
    ],
)
def test_class_names_that_look_alike(names, alike):
    assert bool(list(check_names(Dataset((), names)))) == alike


def test_files_of_one_name(folder):
    write(folder / "rain" / "dog1.wav", noise(1, 99))
    only(findings_of(folder), "note", "called dog1")


def test_mixed_sample_rates(folder):
    write(folder / "dog" / "a.wav", noise(1, 50), 8000)
    only(findings_of(folder), "note", "sample rates are mixed", "8000 Hz")
    for i in range(3):
        (folder / "dog" / f"dog{i}.wav").unlink()
    write(folder / "dog" / "b.wav", noise(1, 51), 8000)
    only(findings_of(folder), "warning", "may learn the rate")


def test_a_part_of_a_file_is_probed_alone(tmp_path):
    samples = np.concatenate([np.full(8000, 0.25), np.full(8000, 0.5)])
    write(tmp_path / "a.wav", samples)
    whole, part = (probe_audio(Clip(tmp_path / "a.wav", (), end=end)) for end in (None, 0.5))
    assert (whole.seconds, whole.rate, whole.peak) == (1.0, 16000, 0.5)
    assert (part.seconds, part.peak) == (0.5, 0.25)
    assert part.digest != whole.digest


def test_esc10_is_in_order(data):
    findings = validate(read_folders(data / "esc10", fold=r"^(\d)-").select(range(0, 320, 20)))[0]
    assert [finding for finding in findings if finding.level == "error"] == []
