"""``whisper-at study``, on made files and results."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile
from study_data import CLASSES, dataset, states_of

from whisper_at.cli import study
from whisper_at.data.clips import Dataset
from whisper_at.study.layer_probes import (
    probe_layers,
    write_probes,
)
from whisper_at.study.transcriptions import CLEAN, COLUMNS

STUDY = """
out = "{out}"
recognisers = ["whisper_at:nano.en"]
backbones = ["net"]
[speech]
kind = "digits"
folder = "digits"
[noise]
folder = "noise"
"""


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY.format(out=(tmp_path / "out").as_posix()))
    return path


def test_the_whole_study_is_drawn_from_its_files(study_file, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    r = np.random.default_rng(0)
    lines = [",".join(COLUMNS)]
    for name in (CLEAN, *CLASSES):
        for snr in ("inf",) if name == CLEAN else ("20", "-10"):
            for i in range(3):
                said = "1 2 3" if snr != "-10" or r.random() < 0.5 else f"1 {i}"
                lines.append(f"whisper_at:nano.en,{name},{snr},u{i},c{i},1,1 2 3,{said}")
    (out / "noise.csv").write_text("\n".join(lines) + "\n")
    data = dataset()
    write_probes(out / "probe.csv", probe_layers("net", states_of(data), data, "logistic"), CLASSES)
    assert study.main(["figures", "--config", str(study_file)]) == 0
    names = ["figure1_upper.png", "figure1_lower.png", "figure3.png", "figure2.png", "results.md"]
    assert [Path(line).name for line in capsys.readouterr().out.split()] == names
    for name in names[:4]:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    text = (out / "results.md").read_text("utf-8")
    assert "Over all 3 classes" in text
    assert "| whisper_at:nano.en, plain | 0.0 | 0.0 |" in text
    assert "layer 1 of 2" in text
    assert "Whisper's normalizer" in text


def test_with_two_classes_all_results_but_the_correlation_are_written(study_file, tmp_path):
    out, two = tmp_path / "out", CLASSES[:2]
    out.mkdir()
    said = [(name, snr) for name in two for snr in (20, -10)]
    rows = [f"whisper_at:nano.en,{name},{snr},u,c,1,1 2 3,1 2 {max(0, -snr)}" for name, snr in said]
    (out / "noise.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    data = Dataset(tuple(clip for clip in dataset().clips if clip.labels[0] in two), two)
    write_probes(out / "probe.csv", probe_layers("net", states_of(data), data, "logistic"), two)
    assert study.main(["figures", "--config", str(study_file)]) == 0
    text = (out / "results.md").read_text("utf-8")
    assert "Not drawn: a correlation needs at least three classes" in text
    assert not (out / "figure2.png").exists()
    assert "| dog | " in text
    assert (out / "figure3.png").exists()


def test_without_the_compared_ratios_all_other_results_are_written(study_file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    study_file.write_text(study_file.read_text() + "[mix]\nsnrs = [0, 10]\n")
    rows = [f"whisper_at:nano.en,{name},{snr},u,c,1,1 2 3,1 2 {snr}" for name in CLASSES for snr in (10, 0)]
    (out / "noise.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    data = dataset()
    write_probes(out / "probe.csv", probe_layers("net", states_of(data), data, "logistic"), CLASSES)
    assert study.main(["figures", "--config", str(study_file)]) == 0
    text = (out / "results.md").read_text("utf-8")
    assert "Not drawn: whisper_at:nano.en has no transcriptions for dog at -10 dB" in text
    assert "increase of word errors" not in text
    assert (out / "figure3.png").exists()
    assert not (out / "figure2.png").exists()


def test_the_noise_step_as_a_user_runs_it(study_file, tmp_path, capsys, monkeypatch):
    r = np.random.default_rng(0)
    for path in (
        *(f"digits/{d}_ann_{t}.wav" for d in range(3) for t in range(2)),
        "noise/dog/1.wav",
        "noise/rain/1.wav",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(tmp_path / path, 16000, (r.normal(0, 3000, 2000)).astype(np.int16))
    study_file.write_text(study_file.read_text().replace('kind = "digits"', 'kind = "digits"\ncount = 3'))
    monkeypatch.setattr(study, "load_recogniser", lambda name, device: lambda audio: "0 1 2 0 1 2")
    assert study.main(["noise", "--config", str(study_file), "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "no noise  WER" in shown
    assert "-20 dB  WER" in shown
    assert "noise.csv" in shown
    assert len((tmp_path / "out" / "noise.csv").read_text().splitlines()) == 1 + 3 * (1 + 2 * 9)


def test_probes_by_another_classifier_or_of_other_clips_are_another_run(study_file, tmp_path, monkeypatch):
    for name in ("dog", "rain"):
        for i in range(10):
            (tmp_path / "noise" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "noise" / name / f"{name}{i}.wav").write_bytes(b"x")
    states = np.random.default_rng(0).standard_normal((20, 2, 4)).astype(np.float32)
    monkeypatch.setattr(study, "encode_clips", lambda clips, *_, **__: states[: len(clips)])
    call = ["probe", "--config", str(study_file), "--data", str(tmp_path)]
    study_file.write_text('classifier = "logistic"\n' + study_file.read_text())
    assert study.main(call) == 0
    kept = (tmp_path / "out" / "probe.csv").read_bytes()
    assert study.main(call) == 0
    (tmp_path / "noise" / "dog" / "dog3.wav").write_bytes(b"xx")
    with pytest.raises(ValueError, match="holds a run with clips = "):
        study.main(call)
    (tmp_path / "noise" / "dog" / "dog3.wav").write_bytes(b"x")
    study_file.write_text(study_file.read_text().replace("logistic", "published"))
    with pytest.raises(ValueError, match="holds a run with classifier = 'logistic', not 'published'"):
        study.main(call)
    assert (tmp_path / "out" / "probe.csv").read_bytes() == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('kind = "digits"', 'kind = "numbers"'), "speech.kind is librispeech, table or digits, not 'numbers'"),
        (
            ('folder = "noise"', 'folde = "noise"'),
            "no key 'noise.folde': did you mean 'noise.folder'? There are noise.folder, noise.only",
        ),
        (('folder = "noise"', ""), "noise.folder is missing"),
        (('folder = "noise"', "folder = 3"), "noise.folder = 3 is not text"),
        (("whisper_at:nano.en", "whisper_at:nano"), "no recogniser 'whisper_at:nano'"),
        (('kind = "digits"', "takes = [9, 1]"), "speech.takes must be the first and the last"),
        (('kind = "digits"', "count = 0"), "speech.count must be at least 1"),
        (("[noise]", "[mix]\nsnrs = []\n[noise]"), "mix.snrs needs at least one ratio"),
        (("[noise]", "[robustness]\nlow = -12\n[noise]"), "robustness.low is -12 dB, but mix.snrs has -20, -15, -10,"),
        (("[noise]", "[mix]\nsnrs = [0, 10]\n[robustness]\nhigh = 20\n[noise]"), "robustness.high is 20 dB, but mix"),
        (("[noise]", "[noise"), "is not TOML"),
    ],
)
def test_an_invalid_configuration_is_reported_in_one_line(study_file, change, message):
    study_file.write_text(study_file.read_text().replace(*change))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        study.main(["noise", "--config", str(study_file)])
    assert "\n" not in str(error.value)


def test_missing_files_are_named(study_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        study.main(["noise", "--config", str(tmp_path / "nothing.toml")])
    with pytest.raises(FileNotFoundError, match="no such folder: .*digits"):
        study.main(["noise", "--config", str(study_file), "--data", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="no such folder: .*noise"):
        study.main(["probe", "--config", str(study_file), "--data", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="holds no results"):
        study.main(["figures", "--config", str(study_file)])
    with pytest.raises(SystemExit) as stopped:
        study.main(["draw", "--config", str(study_file)])
    assert stopped.value.code == 2
