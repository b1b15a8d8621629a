"""Linear probes of layers, on made states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_whisper
from scipy.io import wavfile
from scipy.special import softmax
from study_data import CLASSES, dataset, states_of

from whisper_at.audio import log_mel_spectrogram
from whisper_at.data.clips import Clip, Dataset
from whisper_at.model import WhisperAT
from whisper_at.study.layer_probes import (
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


def test_layers_of_whisper_are_the_input_and_each_block_before_the_final_norm(checkpoint):
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


def test_cached_states_are_used_for_the_same_files_only(tmp_path):
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


def test_a_probe_finds_the_layer_that_has_the_classes():
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


def test_the_average_is_over_all_layers_and_finished_probes_are_kept(tmp_path):
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


def test_folds_that_are_not_the_datasets_own_are_numbered():
    data = dataset(per_fold=30, n_folds=1)  # one fold cannot be left out: all is cut into five
    states = states_of(data)
    results: list[Probe] = []
    probes = probe_layers("net", states, data, "logistic", on_result=results.append)
    assert list(dict.fromkeys(p.fold for p in probes)) == ["1", "2", "3", "4", "5"]
    rest: list[Probe] = []
    again = probe_layers("net", states, data, "logistic", results[:6], rest.append)  # stopped in the second of five
    assert len(rest) == 5 * 4 - 6
    assert [p[:6] for p in again] == [p[:6] for p in probes]


def test_invalid_states_and_labels_are_rejected():
    data = dataset()
    with pytest.raises(ValueError, match="but there are 36 clips"):
        probe_layers("net", np.zeros((3, 2, 2)), data)
    several = Dataset((Clip(Path("a.wav"), ("dog", "rain")),), CLASSES)
    with pytest.raises(ValueError, match="exactly one label"):
        probe_layers("net", np.zeros((1, 2, 2)), several)
