"""Probes of layers, robustness by class, figures and the command, on made states and results."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_whisper
from scipy.io import wavfile
from scipy.special import softmax
from scipy.stats import pearsonr

from whisper_at.audio import log_mel_spectrogram
from whisper_at.cli import study
from whisper_at.data.clips import Clip, Dataset
from whisper_at.model import WhisperAT
from whisper_at.study import figures
from whisper_at.study.config import read_study
from whisper_at.study.probes import (
    AVERAGE,
    INPUT,
    Probe,
    average_folds,
    encode_clips,
    layer_values,
    load_encoder,
    probe_layers,
    published_classifier,
    read_probes,
    write_probes,
)
from whisper_at.study.robustness import best_layers, bootstrap_line, correlate, word_error_increase
from whisper_at.study.transcriptions import CLEAN, COLUMNS
from whisper_at.study.wer import WordErrors

CLASSES = ("dog", "rain", "wind")


def dataset(per_fold: int = 12, n_folds: int = 3) -> Dataset:
    clips = [
        Clip(Path(f"{fold}-{i}.wav"), (CLASSES[i % 3],), fold=str(fold))
        for fold in range(1, n_folds + 1)
        for i in range(per_fold)
    ]
    return Dataset(tuple(clips), CLASSES)


def states_of(data: Dataset, seed: int = 0) -> np.ndarray:
    """Input and two layers: noise, all classes, and one class against the rest."""
    r = np.random.default_rng(seed)
    truth = data.targets()
    states = r.normal(0, 0.1, (len(data), 3, 8))
    states[:, 1, : truth.shape[1]] += truth
    states[:, 2, 0] += truth[:, 0]
    return 5 + 3 * states.astype(np.float32)


# --- states -------------------------------------------------------------------------------------------------


def test_whisper_is_seen_before_its_last_norm_with_what_goes_in_first(checkpoint):
    audio = np.random.default_rng(0).normal(0, 0.1, 16000 * 2).astype(np.float32)
    found = load_encoder(str(checkpoint), "cpu")(audio)
    model = random_whisper(WhisperAT, 51864)
    encoder, wanted = model.encoder, []
    with torch.no_grad():
        x = torch.nn.functional.gelu(encoder.conv1(log_mel_spectrogram(audio)[None]))
        x = torch.nn.functional.gelu(encoder.conv2(x)).mT + encoder.positional_embedding[:100]  # 2 s, no padding
        wanted.append(x.mean(1)[0])
        for block in encoder.blocks:
            x = block(x)
            wanted.append(x.mean(1)[0])
    assert found.shape == (3, 64)
    np.testing.assert_allclose(found, torch.stack(wanted), atol=1e-4)


def test_states_are_kept_for_the_same_clips_only(tmp_path):
    clips = []
    for i in range(3):
        wavfile.write(tmp_path / f"{i}.wav", 16000, np.full(1600, 1000 * i, np.int16))
        clips.append(Clip(tmp_path / f"{i}.wav", ("x",)))

    def level():
        return lambda audio: np.full((2, 4), audio.mean())

    path = tmp_path / "kept" / "states.safetensors"
    first = encode_clips(clips[:2], level, path)
    assert first.shape == (2, 2, 4)
    assert first[1, 0, 0] == pytest.approx(1000 / 32768)
    np.testing.assert_array_equal(encode_clips(clips[:2], pytest.fail, path), first)  # nothing is loaded
    assert len(encode_clips(clips, level, path)) == 3
    wavfile.write(tmp_path / "1.wav", 16000, np.full(1600, 3000, np.int16))
    assert encode_clips(clips, level, path)[1, 0, 0] == pytest.approx(3000 / 32768)  # a file that changed
    with pytest.raises(ValueError, match="lost.wav cannot be probed"):
        encode_clips([Clip(tmp_path / "lost.wav", ("x",))], level)


# --- probes -------------------------------------------------------------------------------------------------


def test_a_probe_finds_the_layer_that_knows():
    data = dataset()
    probes = probe_layers("net", states_of(data), data, "logistic")
    assert [(p.fold, p.layer) for p in probes[:4]] == [("1", INPUT), ("1", "1"), ("1", "2"), ("1", AVERAGE)]
    accuracy, f1 = average_folds(probes, "net")
    assert accuracy["1"] == 1
    assert accuracy[INPUT] < 0.7
    assert accuracy["2"] < 0.9
    assert f1["1"].tolist() == [1, 1, 1]
    assert f1["2"][0] == 1
    assert f1["2"][1] < 1
    assert [len(layer_values(rows)) for rows in (accuracy, f1)] == [2, 2]


def test_the_published_classifier_is_a_linear_one():
    # Spec section 4.4: MLPClassifier without hidden layers is multinomial logistic regression.
    r = np.random.default_rng(0)
    truth = np.arange(60) % 3
    x = r.normal(0, 0.5, (60, 3)) + 2 * np.eye(3)[truth]
    model = published_classifier().fit(x, truth)
    assert len(model.coefs_) == 1
    assert model.coefs_[0].shape == (3, 3)
    logits = x @ model.coefs_[0] + model.intercepts_[0]
    np.testing.assert_allclose(model.predict_proba(x), softmax(logits, axis=1), atol=1e-6)
    assert (model.predict(x) == logits.argmax(1)).all()
    assert model.score(x, truth) > 0.9


def test_a_probe_is_tested_on_the_fold_left_out_and_scaled_by_the_others():
    # Labels of the last fold are turned round: a probe that saw them, or was scaled by them, would do otherwise.
    data = dataset()
    states = states_of(data)
    fold = np.array([clip.fold for clip in data.clips])
    shifted = states.copy()
    shifted[fold == "3"] = shifted[fold == "3"][:, :, ::-1] + 100
    probes = {p.fold: p.accuracy for p in probe_layers("net", shifted, data, "logistic") if p.layer == "1"}
    assert probes["3"] < 0.5


def test_the_accuracy_is_that_of_plain_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    data = dataset()
    states = states_of(data, seed=4)
    fold, truth = np.array([clip.fold for clip in data.clips]), data.targets().argmax(1)
    train, x = fold != "2", states[:, 2].astype(float)
    x = (x - x[train].mean(0)) / x[train].std(0)
    decided = LogisticRegression(C=0.1, max_iter=2000).fit(x[train], truth[train]).predict(x[~train])
    probe = next(p for p in probe_layers("net", states, data, "logistic") if (p.fold, p.layer) == ("2", "2"))
    assert probe.accuracy == np.mean(decided == truth[~train])
    for i in range(3):
        hits = np.sum((decided == i) & (truth[~train] == i))
        assert probe.f1[i] == pytest.approx(2 * hits / (np.sum(decided == i) + np.sum(truth[~train] == i)))


def test_the_average_row_is_over_all_rows_and_what_is_known_is_not_done_again(tmp_path):
    data = dataset()
    states = states_of(data)
    results: list[Probe] = []
    probes = probe_layers("net", states, data, "logistic", on_result=results.append)
    assert len(results) == 3 * 4
    average = states.mean(1, keepdims=True)  # a network of that row alone has the same average
    other = probe_layers("other", average, data, "logistic")
    assert [p.accuracy for p in other if p.layer == AVERAGE] == [p.accuracy for p in probes if p.layer == AVERAGE]
    write_probes(tmp_path / "probe.csv", results[:7], CLASSES)
    known, classes = read_probes(tmp_path / "probe.csv")
    assert classes == CLASSES
    assert len(known) == 7
    rest: list[Probe] = []
    again = probe_layers("net", states, data, "logistic", known, rest.append)
    assert len(rest) == 5
    for a, b in zip(again, probes):
        assert a[:5] == b[:5]
        assert a.accuracy == pytest.approx(b.accuracy, rel=1e-5)
    with pytest.raises(ValueError, match="probes of net are not finished"):
        average_folds(known, "net")
    (tmp_path / "other.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="holds no probes"):
        read_probes(tmp_path / "other.csv")
    assert read_probes(tmp_path / "none.csv") == ([], ())


def test_divisions_that_are_not_the_datas_folds_go_by_number():
    data = dataset(per_fold=30, n_folds=1)  # one fold cannot be left out: all is cut into five
    states = states_of(data)
    results: list[Probe] = []
    probes = probe_layers("net", states, data, "logistic", on_result=results.append)
    assert list(dict.fromkeys(p.fold for p in probes)) == ["1", "2", "3", "4", "5"]
    rest: list[Probe] = []
    again = probe_layers("net", states, data, "logistic", results[:6], rest.append)  # stopped in the second of five
    assert len(rest) == 5 * 4 - 6
    assert [p[:6] for p in again] == [p[:6] for p in probes]


def test_what_cannot_be_probed_is_refused():
    data = dataset()
    with pytest.raises(ValueError, match="but there are 36 clips"):
        probe_layers("net", np.zeros((3, 2, 2)), data)
    several = Dataset((Clip(Path("a.wav"), ("dog", "rain")),), CLASSES)
    with pytest.raises(ValueError, match="exactly one label"):
        probe_layers("net", np.zeros((1, 2, 2)), several)


# --- robustness ---------------------------------------------------------------------------------------------


def test_the_rise_of_errors_by_class():
    table = {("r", CLEAN, np.inf): WordErrors(0, 9)}
    for i, name in enumerate(CLASSES):
        table |= {("r", name, -10.0): WordErrors(4 + i, 10), ("r", name, 20.0): WordErrors(1, 10)}
    assert word_error_increase(table, "r") == pytest.approx({"dog": 0.3, "rain": 0.4, "wind": 0.5})
    with pytest.raises(ValueError, match="has no transcriptions for dog at -20 dB"):
        word_error_increase(table, "r", low=-20)
    with pytest.raises(ValueError, match="other has no transcriptions with noise"):
        word_error_increase(table, "other")


def test_the_correlation_is_over_all_classes():
    # Spec section 4.5: the paper left out 12 classes after seeing the plot.
    r = np.random.default_rng(0)
    x = r.normal(size=50)
    y = -x + r.normal(size=50)
    y[:12] += 8  # what one would like to leave out
    found = correlate(x, y)
    assert found.n == 50
    assert found.r == pytest.approx(pearsonr(x, y).statistic)
    z, half = np.arctanh(found.r), 1.96 / np.sqrt(47)  # Fisher's
    assert found.interval == pytest.approx((np.tanh(z - half), np.tanh(z + half)), abs=1e-4)
    assert found.without_one[0] <= found.r <= found.without_one[1]
    line = correlate(np.array([1.0, 2, 3]), np.array([5.0, 7, 9.001]))
    assert (line.slope, line.intercept) == (pytest.approx(2, abs=1e-2), pytest.approx(3, abs=1e-2))
    assert np.isnan(line.interval).all()  # three classes have no interval
    with pytest.raises(ValueError, match="at least three classes"):
        correlate(x[:2], y[:2])
    with pytest.raises(ValueError, match="the same for all"):
        correlate(np.ones(5), y[:5])


def test_the_band_holds_the_line_and_narrows_with_more_classes():
    r = np.random.default_rng(1)
    grid = np.linspace(-1, 1, 5)
    widths = []
    for n in (20, 500):
        x = r.uniform(-1, 1, n)
        low, high = bootstrap_line(x, 2 * x + r.normal(size=n), grid, draws=500)
        assert ((low < 2 * grid) & (2 * grid < high)).all()
        widths.append((high - low).mean())
        # In the middle, the standard error of the line is that of a mean.
        assert (high - low)[2] == pytest.approx(2 * 1.96 / np.sqrt(n), rel=0.35)
    assert widths[1] < widths[0] / 3


def test_best_layers_are_counted_from_one():
    # Spec section 4.5, figure 3: the paper's "+ 1" is inside of the argmax, and its layers are one too low.
    f1 = [np.array([0.9, 0.1, 0.2]), np.array([0.5, 0.7, np.nan]), np.array([0.5, 0.7, 0.3])]
    assert best_layers(f1).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="no F1 in any layer"):
        best_layers([np.array([np.nan])])
    axes = figures.draw_best_layers(best_layers(f1), 5).axes[0]
    drawn = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    assert drawn == {1: 1, 2: 1, 3: 1, 4: 0, 5: 0}


# --- figures and the command --------------------------------------------------------------------------------


def test_errors_are_drawn_against_falling_ratios():
    curves = {
        "a": {-10.0: WordErrors(5, 10), 20.0: WordErrors(1, 10), np.inf: WordErrors(0, 10)},
        "b": {20.0: WordErrors(2, 10)},
    }
    axes = figures.draw_errors(curves).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [20, -10]
    assert axes.lines[0].get_ydata().tolist() == [10, 50]
    left, right = axes.get_xlim()
    assert left > right  # noise grows to the right, as in the paper
    with pytest.raises(ValueError, match="no noisy transcriptions"):
        figures.draw_errors({"a": {np.inf: WordErrors(0, 10)}})


def test_layers_are_drawn_from_one_and_other_rows_beside_them():
    rows = {INPUT: 0.2, "1": 0.5, "2": 0.6, AVERAGE: 0.55}
    axes = figures.draw_layers({"net": rows}, chance=0.1).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 2]
    assert axes.lines[0].get_ydata() == pytest.approx([50, 60])
    assert [line.get_xdata()[0] for line in axes.lines[1:3]] == [0, 3]


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


def test_two_classes_are_too_few_to_correlate_but_have_all_other_results(study_file, tmp_path):
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


def test_ratios_without_those_compared_have_all_other_results(study_file, tmp_path):
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
    assert "rise of word errors" not in text
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
        (('kind = "digits"', 'kind = "numbers"'), "speech.kind is librispeech or digits, not 'numbers'"),
        (
            ('folder = "noise"', 'folde = "noise"'),
            "no key 'noise.folde': did you mean 'noise.folder'? There are noise.folder, noise.only",
        ),
        (('folder = "noise"', ""), "noise.folder is missing"),
        (('folder = "noise"', "folder = 3"), "noise.folder = 3 is not str"),
        (("whisper_at:nano.en", "whisper_at:nano"), "no recogniser 'whisper_at:nano'"),
        (('kind = "digits"', "takes = [9, 1]"), "speech.takes must be the first and the last"),
        (('kind = "digits"', "count = 0"), "speech.count must be at least 1"),
        (("[noise]", "[mix]\nsnrs = []\n[noise]"), "mix.snrs needs at least one ratio"),
        (("[noise]", "[robustness]\nlow = -12\n[noise]"), "robustness.low is -12 dB, but mix.snrs has -20, -15, -10,"),
        (("[noise]", "[mix]\nsnrs = [0, 10]\n[robustness]\nhigh = 20\n[noise]"), "robustness.high is 20 dB, but mix"),
        (("[noise]", "[noise"), "is not TOML"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_in_a_line(study_file, change, message):
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


def test_the_recipes_are_studies():
    for path in sorted((Path(__file__).parents[2] / "recipes" / "noise_study").glob("*.toml")):
        study = read_study(path)
        assert study.backbones
        assert study.recognisers
        assert len(study.mix.snrs) == 9
