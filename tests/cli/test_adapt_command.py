"""``whisper-at adapt``: configurations and what is wrong with them, fitting from a file, and comparisons."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import warnings
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from whisper_at.adapt import AudioClassifier
from whisper_at.adapt.compare import limit_warnings, markdown_table, plot_tradeoff, read_comparison, run_comparison
from whisper_at.adapt.config import build_classifier, make_config, read_config
from whisper_at.adapt.experiment import (
    ActivationMemory,
    folder_name,
    load_data,
    read_result,
    run_experiment,
    summarize,
    training_megabytes,
    write_json,
)
from whisper_at.cli import adapt

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """Two classes in three parts."""
    root, r = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for split, n in (("train", 6), ("valid", 3), ("test", 3)):
        for label, hertz in (("high", 2500), ("low", 300)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                samples = 0.3 * np.sin(2 * np.pi * hertz * r.uniform(0.8, 1.2) * np.arange(4000) / 16000)
                with wave.open(str(folder / f"{i}.wav"), "wb") as file:
                    file.setparams((1, 2, 16000, 4000, "NONE", ""))
                    file.writeframes((samples * 32767).astype("<i2").tobytes())
    return root


@pytest.fixture
def settings(sounds, tmp_path) -> dict:
    return {
        "dataset": "files",
        "root": str(sounds),
        "cache": str(tmp_path / "cache"),
        "out": str(tmp_path / "out"),
        "device": "cpu",
        "recipe": {"epochs": 4, "batch_size": 4, "lr": 0.02},
    }


def flags(settings: dict) -> list[str]:
    out = []
    for name, value in settings.items():
        for key, one in [(f"{name}.{k}", v) for k, v in value.items()] if isinstance(value, dict) else [(name, value)]:
            out += ["--set", f"{key}={json.dumps(one)}"]
    return out


# --- configurations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"backbon": "base"}, "there is no key 'backbon': did you mean 'backbone'"),
        ({"recipe": {"learning_rate": 1}}, "there is no key 'recipe.learning_rate'"),
        ({"recipe": {"epoch": 1}}, "did you mean 'recipe.epochs'"),
        ({"recipe": {"lr": "fast"}}, "recipe.lr = 'fast' is not a number"),
        ({"recipe": {"betas": [0.9]}}, "recipe.betas"),
        ({"frames": 1.5}, "frames = 1.5 is not a whole number or none"),
        ({"pad": 1}, "pad = 1 is not true or false"),
        ({"seeds": [1, "a"]}, "seeds = 'a' is not a whole number"),
        ({"pooling": "frame"}, "did you mean 'frames'"),
        ({"protocol": "session"}, "did you mean 'sessions'"),
        ({"dataset": "iemocapp"}, "did you mean 'iemocap'"),
        ({"method": {"rank": 8}}, "a method is a name or a table with one"),
        ({"seeds": []}, "seeds is empty"),
        ({"recipe": "fast"}, "recipe = 'fast' is not a table"),
        ({"reader": 5}, "reader = 5 is not a table"),
        ({"method": 5}, "a method is a name or a table with one"),
        ({"method": [["lora"]]}, "a method is a name or a table with one"),
        ({"seconds": -1.0}, "seconds must be more than 0, not -1.0"),
        ({"few_shot": 0}, "few_shot must be more than 0"),
        ({"parts": 0}, "parts must be more than 0"),
        ({"classes": 0}, "classes must be more than 0"),
    ],
)
def test_wrong_settings_are_named(table, message):
    with pytest.raises(ValueError, match=message):
        make_config(table)


def test_files_and_changes(tmp_path):
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('method = "lora"\n[recipe]\nlr = 1\nepochs = 3\n')
    two.write_text("frames = 100\n[recipe]\nepochs = 5\n")
    config = read_config([str(one), str(two)], ["method.rank=4", "recipe.select=none", "out=somewhere", "seeds=[1, 2]"])
    assert config.method == ({"name": "lora", "rank": 4},)
    assert (config.recipe.lr, config.recipe.epochs, config.recipe.select) == (1.0, 5, None)
    assert (config.frames, config.out, config.seeds) == (100, "somewhere", (1, 2))
    with pytest.raises(ValueError, match="key=value"):
        read_config(str(one), ["rank"])
    two.write_text("frames = ")
    with pytest.raises(ValueError, match=r"two.toml is not TOML"):
        read_config(str(two))
    with pytest.raises(FileNotFoundError, match="three.toml"):
        read_config("three.toml")


def test_p4_p12_values_have_types():
    """P4, P12: flags of the reference were text, so ``False`` was true and a number never equalled a count."""
    config = read_config(None, ["pad=false", "few_shot=8", "seeds=[10]", "few_shot_first=true"])
    assert config.pad is False
    assert config.few_shot == 8
    assert config.seeds == (10,)
    assert config.few_shot_first is True


def test_count_needs_no_weights(capsys):
    args = ["count", "--config", str(RECIPES / "petl_ast" / "lora.toml"), "--set", "classes=31", "--set", "frames=400"]
    assert adapt.main(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trainable"] == 467_743
    assert found["patch"] == 12 * 4 * 768 * 12
    with pytest.raises(ValueError, match="how many classes"):
        adapt.main(args[:3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "wav2vec2", "frames": 400}, "frames is for AST"),
        ({"backbone": "base", "frames": 400}, "frames is for AST"),
        ({"backbone": "base", "normalize": True}, "normalize is for wav2vec 2.0"),
        ({"backbone": "ast", "normalize": False}, "normalize is for wav2vec 2.0"),
        ({"backbone": "wav2vec2", "recipe": {"spec_augment": [24, 80]}}, "this backbone reads samples"),
        ({"backbone": "base", "pooling": "cls"}, "0 special tokens"),
        ({"backbone": "base", "pooling": "prompts"}, "no prompts"),
        ({"backbone": "ast", "pooling": "cls_dist", "method": {"name": "prompt"}}, "1 special tokens"),
    ],
)
def test_options_that_do_not_suit_a_backbone_are_refused_without_its_weights(settings, message):
    with pytest.raises(ValueError, match=message):
        build_classifier(make_config(settings), ["a", "b"], without_weights=True)


def test_tokens_that_methods_add_can_be_pooled_without_weights():
    for settings in (
        {"backbone": "base", "pooling": "cls", "method": "cls_token"},
        {"backbone": "base", "pooling": "prompts", "method": {"name": "prompt", "tokens": 2}},
        {"backbone": "ast", "pooling": "cls_dist"},
    ):
        assert build_classifier(make_config(settings), ["a", "b"], without_weights=True).count()["trainable"]


# --- runs -----------------------------------------------------------------------------------------------------------


def test_fit_evaluate_and_predict(settings, sounds, tmp_path, capsys):
    method = ["--set", 'method={name="lora", rank=2, alpha=2}', "--set", "seeds=[0, 1]"]
    assert adapt.main(["fit", "--quiet", *flags(settings), *method]) == 0
    assert "accuracy: 100.00 ± 0.00 %" in capsys.readouterr().out
    out = Path(settings["out"])
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert rows[0]["patch"] == str(4 * 2 * 4 * 128)
    assert json.loads((out / "summary.json").read_text())["accuracy"] == {"mean": 1.0, "std": 0.0}
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")

    model = str(out / "splits-seed0" / "classifier.safetensors")
    data = ["--set", "dataset=files", "--set", f"root={sounds}", "--set", "device=cpu", "--set", f"cache={tmp_path}"]
    assert adapt.main(["evaluate", "--model", model, "--split", "test", "--out", str(tmp_path / "e"), *data]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
    assert json.loads((tmp_path / "e" / "scores.json").read_text())["clips"] == 6
    file = str(sounds / "test" / "low" / "0.wav")
    assert adapt.main(["predict", "--model", model, file]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header == "file,label,probability"
    assert line.startswith(f"{file},low,")
    assert adapt.main(["predict", "--all", "--model", model, file]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header == "file,high,low"
    assert sum(map(float, line.split(",")[1:])) == pytest.approx(1, abs=1e-3)


def test_finished_runs_are_not_run_again(settings, monkeypatch):
    settings |= {"windows": False}
    config = make_config(settings)
    first = run_experiment(config)
    monkeypatch.setattr(AudioClassifier, "fit", None)
    assert run_experiment(config) == first
    with pytest.raises(ValueError, match="a run with other settings"):
        run_experiment(make_config(settings | {"pooling": "all"}))


def test_a_run_with_other_clips_to_test_is_another_run(settings, sounds, tmp_path):
    root = Path(shutil.copytree(sounds, tmp_path / "copied"))
    settings |= {"root": str(root), "windows": False, "recipe": settings["recipe"] | {"epochs": 1}}
    config = make_config(settings)
    run_experiment(config)
    (root / "test" / "low" / "0.wav").rename(root / "test" / "high" / "9.wav")
    with pytest.raises(ValueError, match="a run with other settings"):
        run_experiment(config)


def test_settings_that_identify_a_run(settings, sounds):
    config = make_config(settings | {"windows": False, "recipe": settings["recipe"] | {"epochs": 1}})
    run_experiment(config)
    dataset, (split,) = load_data(config)
    lines = [f"{part} {dataset.clips[i].key}" for part in ("train", "valid", "test") for i in getattr(split, part)]
    known = json.loads((Path(settings["out"]) / "splits-seed0" / "result.json").read_text())["settings"]
    assert known["clips"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert known.keys() == {"config", "seed", "division", "clips"}


def test_names_of_folders():
    assert folder_name("without 03 08") == "without-03-08"
    assert folder_name("a" * 80) == "a" * 80
    long = [folder_name("without " + " ".join(f"speaker{i}" for i in range(n))) for n in (20, 21)]
    assert long[0] != long[1]
    assert all(len(name) == 89 and name.startswith("without-speaker0-") for name in long)


def test_several_labels_are_decided_by_the_whole_data(settings, tmp_path, sounds, capsys):
    """Folds whose clips happen to have one label each are scored as the others are."""
    rows = ["path,labels,fold"]
    for i, path in enumerate(sorted((sounds / "train").rglob("*.wav"))):
        rows.append(f"{path},{'high;low' if i in (0, 6) else path.parent.name},{i % 3 + 1}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    settings |= {"root": str(table), "protocol": "folds", "windows": False}
    settings["recipe"] = {"epochs": 1, "select": "mAP"}
    assert adapt.main(["fit", "--quiet", *flags(settings)]) == 0
    assert "mAP: " in capsys.readouterr().out
    kinds = {AudioClassifier.load(path, device="cpu").kind for path in Path(settings["out"]).rglob("*.safetensors")}
    assert kinds == {"multi_label"}
    with pytest.raises(ValueError, match="select = 'accuracy': these clips have several labels"):
        load_data(make_config(settings | {"recipe": {"select": "accuracy"}}))


def test_random_weights_are_the_same_again(settings, sounds, capsys):
    settings |= {"random": True, "backbone": "whisper-nano", "windows": False, "recipe": {"epochs": 1}}
    run_experiment(make_config(settings))
    model = Path(settings["out"]) / "splits-seed0" / "classifier.safetensors"
    file = str(sounds / "test" / "low" / "0.wav")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adapt.main(["predict", "--model", str(model), "--device", "cpu", file]) == 0
    first = capsys.readouterr().out
    args = ["predict", "--model", str(model), "--backbone", "random:whisper-nano", "--device", "cpu", file]
    assert adapt.main(args) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(ValueError, match="does not fit random:whisper-tiny"):
        adapt.main([*args[:4], "random:whisper-tiny", *args[5:]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ""}, "a dataset and its root are needed"),
        ({"root": "nowhere"}, "no such data: nowhere"),
        ({"protocol": "leave_group_out"}, "have no speaker"),
        ({"only": [1]}, "splits 0 to 0"),
        ({"method": "lorra"}, "no method is called 'lorra'"),
        ({"method": {"name": "lora", "sites": ["value"]}}, "site of lora must be one of"),
        ({"method": {"name": "lora", "ranks": 3}}, "lora has no option 'ranks'"),
        ({"pooling": "cls_dist"}, "0 special tokens"),
        ({"head": "mlp"}, "head must be one of"),
        ({"frames": 400}, "frames is for AST"),
        ({"recipe": {"select": "mAP"}}, "select = 'mAP': these clips have one label each"),
        ({"reader": {"folds": "x"}}, "has no option 'folds': did you mean 'fold'"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(settings, changes, message):
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError), match=message):
        run_experiment(make_config(settings | changes))
    assert not Path(settings["out"]).exists()


def test_broken_data_are_refused_before_any_work(settings, sounds, tmp_path):
    root = Path(shutil.copytree(sounds, tmp_path / "copied"))
    config = make_config(settings | {"root": str(root)})
    (root / "test" / "low" / "0.wav").write_text("no audio")
    with pytest.raises(RuntimeError, match=r"0\.wav"):
        run_experiment(config)
    assert not Path(settings["out"]).exists()
    shutil.rmtree(root / "test" / "low")
    with pytest.warns(UserWarning, match="splits: class 'low' is not in the test"):
        load_data(config)
    shutil.move(root / "valid" / "low", tmp_path / "low")
    with pytest.warns(UserWarning, match="splits: class 'low' is not in validation or in the test"):
        load_data(config)
    shutil.move(tmp_path / "low", root / "valid" / "low")
    shutil.rmtree(root / "train" / "low")
    with pytest.raises(ValueError, match="class 'low' is in validation, but not in training"):
        load_data(config)


# --- comparisons ------------------------------------------------------------------------------------------------------


def write_comparison(tmp_path: Path, settings: dict) -> str:
    path = tmp_path / "compare.toml"
    path.write_text(
        f"""
out = {json.dumps(str(tmp_path / "table"))}
seeds = [0, 1]
[base]
cache = {json.dumps(settings["cache"])}
device = "cpu"
windows = false
[base.recipe]
epochs = 2
batch_size = 4
[[dataset]]
label = "tones"
dataset = "files"
root = {json.dumps(settings["root"])}
score = "UAR"
[[method]]
label = "head only"
method = []
recipe = {{ lr = 0.02 }}
[[method]]
label = "LoRA"
method = {{ name = "lora", rank = 2, alpha = 2 }}
recipe = {{ lr = 0.01, epochs = 1 }}
"""
    )
    return str(path)


def test_compare(settings, tmp_path, capsys, monkeypatch):
    path = write_comparison(tmp_path, settings)
    comparison = read_comparison(path)
    cells = comparison.cells
    assert [(c.dataset, c.method, c.score) for c in cells] == [("tones", "head only", "UAR"), ("tones", "LoRA", "UAR")]
    assert [(c.config.recipe.epochs, c.config.recipe.lr) for c in cells] == [(2, 0.02), (1, 0.01)]
    assert adapt.main(["compare", "--quiet", "--config", path]) == 0
    out = tmp_path / "table"
    with open(out / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["runs"] for row in rows] == ["2", "2"]
    assert [(row["stopped"], row["epochs_max"], row["epoch_limit"]) for row in rows] == [
        ("0", "2", "2"),
        ("0", "1", "1"),
    ]
    assert [row["groups"] for row in rows] == ["6", "6"]  # without speakers, each clip is a group
    assert rows[0]["gain"] == ""
    assert float(rows[1]["gain"]) == pytest.approx(float(rows[1]["mean"]) - float(rows[0]["mean"]), abs=0.02)
    assert (
        "tones: 2 of 2 runs were still improving at the last epoch (2): figures of head only are a lower bound"
        in (out / "table.md").read_text()
    )
    assert int(rows[1]["trainable"]) - int(rows[0]["trainable"]) == int(rows[1]["patch"]) == 4096
    assert (out / "table.md").read_text() in capsys.readouterr().out
    assert (out / "table.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(AudioClassifier, "fit", None)  # nothing is left to do
    assert len(run_comparison(comparison)) == 2


def test_an_infinite_d_prime_is_written_as_valid_json(tmp_path):
    """Of a perfect ranking."""

    def strange(constant):
        raise AssertionError(f"{constant} is not JSON")

    scores = {"AUC": 1.0, "d_prime": math.inf}
    write_json(tmp_path / "result.json", {"seed": 0, **scores, "settings": {"lr": 1.0}})
    assert json.loads((tmp_path / "result.json").read_text(), parse_constant=strange)["d_prime"] is None
    row, settings = read_result(tmp_path)
    assert row.keys() == {"seed", "AUC", "d_prime"}
    assert math.isnan(row["d_prime"])
    assert settings == {"lr": 1.0}
    write_json(tmp_path / "summary.json", summarize([row, row]))
    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=strange)
    assert found == {"AUC": {"mean": 1.0, "std": 0.0}, "d_prime": {"mean": None, "std": None}}


def comparison_row(dataset: str, method: str, mean: float, **changed) -> dict:
    row = {"dataset": dataset, "method": method, "score": "UAR", "mean": mean, "std": 1.0, "runs": 2, "frozen": 9}
    row |= {"stopped": 2, "epochs_min": 20, "epochs_max": 31, "epoch_limit": 100, "patience": 10}
    return row | {"patch": 0, "trainable": 10, "seconds_per_run": 3.0, "memory_mb": 1} | changed


def test_table_of_a_comparison():
    rows = [
        comparison_row("a", "x", 50.0),
        comparison_row("a", "y", 60.0, patch=5, trainable=15, groups=8, low=52.0, high=68.04)
        | {"gain": 10.2, "gain_low": -0.5, "gain_high": 20.9},
        comparison_row("b", "y", 70.0, patch=5, trainable=2015, seconds_per_run=5.0, memory_mb=9, epochs_max=60),
    ]
    assert markdown_table(rows) == [
        "| method | patch | trainable | a, UAR % | gain over x | b, UAR % | gain over x | epochs | s a run | MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        "| x | 0 | 10 | 50.0 ± 1.0 |  |  |  | 20–31 | 3.0 | 1 |",
        "| y | 5 | 15–2,015 | **60.0 (52.0–68.0)** | +10.2 (-0.5 to +20.9) | **70.0 ± 1.0** |  | 20–60 | 4.0 | 9 |",
    ]
    figure = plot_tradeoff(rows)
    assert len(figure.axes) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1  x, 20–31 epochs", "2  y, 20–60 epochs"]
    lines = [bar.lines[0] for axes in figure.axes for bar in axes.containers]
    assert {line.get_fillstyle() for line in lines} == {"full"}


def test_a_comparison_says_whose_figures_are_lower_bounds():
    """Emo-DB on Whisper base: a linear probe has 35.5 % after 8 epochs and 70.0 % after 60, LoRA 72.2 % after 8."""
    rows = [
        comparison_row("Emo-DB", "head only", 35.5, stopped=0, epochs_min=8, epochs_max=8, epoch_limit=8),
        comparison_row("Emo-DB", "LoRA", 72.2, stopped=1),
        comparison_row("Emo-DB", "BitFit", 60.0),
        comparison_row("Emo-DB", "published", 60.0, stopped=0, patience=None, epoch_limit=30),
    ]
    warnings = [
        "head only, Emo-DB: 2 of 2 runs were still improving at the last epoch (8): figures of head only are a lower "
        "bound",
        "LoRA, Emo-DB: 1 of 2 runs was still improving at the last epoch (100): figures of LoRA are a lower bound",
        "published, Emo-DB: 2 of 2 runs were ended by the fixed number of epochs (30), not by validation: figures of "
        "published are a lower bound",
    ]
    assert limit_warnings(rows) == warnings
    table = markdown_table(rows)
    assert table[-4:] == ["", *(f"- {warning}" for warning in warnings)]
    assert [line.split(" | ")[3] for line in table[2:6]] == [
        "≥ 35.5 ± 1.0",
        "**≥ 72.2 ± 1.0**",
        "60.0 ± 1.0",
        "≥ 60.0 ± 1.0",
    ]
    bars = {bar.lines[0].get_ydata()[0]: bar.lines[0].get_fillstyle() for bar in plot_tradeoff(rows).axes[0].containers}
    assert (bars[35.5], bars[72.2]) == ("none", "none")


def test_fit_says_how_long_it_was_and_warns_at_the_limit(settings, capsys):
    settings |= {"windows": False, "recipe": settings["recipe"] | {"epochs": 2}}
    assert adapt.main(["fit", "--quiet", *flags(settings)]) == 0
    printed = capsys.readouterr()
    assert "of 2, not stopped by validation)" in printed.out
    assert "1 of 1 runs were still improving at the last epoch (2)" in printed.err
    # an accuracy of 100 % gets no better
    recipe = {"batch_size": 4, "lr": 0.02, "select": "accuracy", "patience": 2}
    settings |= {"out": settings["out"] + "2", "recipe": recipe}
    assert adapt.main(["fit", "--quiet", *flags(settings)]) == 0
    printed = capsys.readouterr()
    assert "not stopped" not in printed.out
    assert "still improving" not in printed.err


def test_memory_of_training_is_counted():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Sigmoid())
    with ActivationMemory(model) as memory:
        for batch in (5, 1000, 7):
            model(torch.randn(batch, 4)).sum().backward()
        with torch.no_grad():
            model(torch.randn(5000, 4))
    assert (
        memory.peak_bytes == 1000 * (4 + 8) * 4
    )  # what came in and what the sigmoid gave; the weights are not counted
    large = torch.nn.Linear(1000, 1000, bias=False)
    assert training_megabytes(large, 10**6) == 4 * 4.0 + 1.0
    assert training_megabytes(large.requires_grad_(False), 10**6) == 4.0 + 1.0


def test_wrong_comparisons_are_refused(settings, tmp_path):
    path = Path(write_comparison(tmp_path, settings))
    text = path.read_text()
    for changed, message in (
        (text.replace('score = "UAR"', 'score = "uar"'), "score 'uar' of tones"),
        (text.replace('"LoRA"', '"head only"'), "the same labels"),
        (text.replace("[base]", "[all]").replace("[base.", "[all."), "no key 'all'"),
        (text.replace("epochs = 1", "epoch = 1"), "did you mean 'recipe.epochs'"),
        (text[: text.index("[[method]]")], r"needs at least one \[\[method\]\]"),
    ):
        path.write_text(changed)
        with pytest.raises(ValueError, match=message):
            read_comparison(str(path))


def test_wrong_arguments_exit_with_2(capsys):
    for argv in ([], ["fitt"], ["compare"], ["predict", "a.wav"]):
        with pytest.raises(SystemExit) as error:
            adapt.main(argv)
        assert error.value.code == 2
