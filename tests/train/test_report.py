"""Reports: figures and tables by hand; pictures hold what was measured."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest

from whisper_at.tagging.classes import ClassSet
from whisper_at.train.calibration import probabilities, reliability_curve
from whisper_at.train.metrics import average_precision
from whisper_at.train.plots import draw_confusion, draw_precision_recall, draw_reliability, save_figure
from whisper_at.train.report import ScoredClips, per_class_scores, summarize, write_report, write_scores

NAMES = ("rain", "dog | bark", "sneeze")


def single(n: int = 60, seed: int = 0) -> ScoredClips:
    r = np.random.default_rng(seed)
    targets = np.eye(3)[r.integers(0, 3, n)]
    return ScoredClips("10 s, clips alone", targets, 2 * targets + r.normal(size=(n, 3)))


def test_figures_of_one_right_class_do_not_depend_on_what_a_softmax_ignores():
    classes = ClassSet(NAMES, "single_label")
    scored = single()
    shifted = ScoredClips(scored.name, scored.targets, scored.logits + np.random.default_rng(1).normal(0, 9, (60, 1)))
    assert summarize(shifted, classes) == pytest.approx(summarize(scored, classes))
    assert summarize(scored, classes)["accuracy"] == np.mean(scored.logits.argmax(1) == scored.targets.argmax(1))
    assert "accuracy" not in summarize(scored, ClassSet(NAMES))  # classes decided one by one


def test_rows_of_classes_by_hand():
    targets = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])
    logits = np.array([[2.0, 0], [0, 0], [1, 0], [-1, 0]])
    own = ClassSet(("a", "b"), "multi_label", temperature=2.0, thresholds=(0.55, 0.5))
    a, b = per_class_scores(ScoredClips("x", targets, logits), own)
    assert (a["positives"], a["AP"], a["AUC"]) == (2, pytest.approx((1 + 2 / 3) / 2), 3 / 4)
    # sigmoid(2 / 2) and sigmoid(1 / 2) are above 0.55: one of the two is right, of two that there are
    assert (a["threshold"], a["precision"], a["recall"]) == (0.55, 0.5, 0.5)
    assert b["positives"] == 0
    assert np.isnan([b["AP"], b["recall"]]).all()
    assert b["precision"] == 0
    a, b = per_class_scores(ScoredClips("x", targets, logits), ClassSet(("a", "b")))
    assert 0.731 < a["threshold"] < 0.881
    assert (a["precision"], a["recall"]) == (1.0, 0.5)
    assert np.isnan(b["threshold"])
    assert np.isnan(b["precision"])
    a, b = per_class_scores(
        ScoredClips("x", targets, logits), ClassSet(("a", "b"), "single_label", thresholds=(0.99, 0.99))
    )
    assert np.isnan(a["threshold"])
    assert (a["precision"], a["recall"]) == (2 / 3, 1.0)
    assert b["precision"] == 0


def test_a_report_holds_every_way_of_scoring_by_itself(tmp_path):
    # Defect D8: clips of 10 s alone and windows of 30 s are two results, not one.
    first, second = single(), ScoredClips("30 s windows", single().targets, single(seed=5).logits)
    path = write_report(
        tmp_path / "out", "A head", ClassSet(NAMES, "single_label", 1.5), [first, second], {"data": "x"}
    )
    text = path.read_text("utf-8")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) == len(set(pictures)) == 6
    assert {p.name for p in path.parent.iterdir()} == {"report.md", *pictures}  # no temporary file is left
    for name in pictures:
        assert (path.parent / name).read_bytes().startswith(b"\x89PNG")
    for item in (first, second):
        found = summarize(item, ClassSet(NAMES, "single_label", 1.5))
        row = next(line for line in text.splitlines() if line.startswith(f"| {item.name} |"))
        assert f" {found['accuracy']:.3f} (" in row
        assert f" {found['mAP']:.3f} |" in row
    assert text.count("| dog \\| bark |") == 2  # a bar in a name does not break the table


def test_classes_without_clips_are_counted_and_left_out(tmp_path):
    targets = np.array([[1, 0, 0], [0, 1, 0]])
    text = write_report(tmp_path, "A head", ClassSet(NAMES), [ScoredClips("x", targets, 3.0 * targets)]).read_text(
        "utf-8"
    )
    assert "No clip has any of 1 of the 3 classes" in text
    assert "| rain | 1 |" in text
    assert "| sneeze |" not in text


def test_what_cannot_be_scored_is_refused_before_anything_is_written(tmp_path):
    scored = single()
    scored.logits[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 clips have scores that are no numbers"):
        write_report(tmp_path / "out", "A head", ClassSet(NAMES), [scored])
    with pytest.raises(ValueError, match="no clips"):
        write_report(
            tmp_path / "out", "A head", ClassSet(NAMES), [ScoredClips("x", np.zeros((0, 3)), np.zeros((0, 3)))]
        )
    assert not (tmp_path / "out").exists()


def test_scores_come_back_from_the_csv(tmp_path):
    scored = single(n=2)
    path = write_scores(tmp_path / "scores.csv", ["a.wav", "b.wav"], ["rain", ""], [scored], ClassSet(NAMES))
    rows = list(csv.DictReader(path.open(newline="")))
    assert [(row["clip"], row["labels"]) for row in rows] == [("a.wav", "rain"), ("b.wav", "")]
    found = [[float(row[name]) for name in NAMES] for row in rows]
    np.testing.assert_allclose(found, scored.logits, rtol=1e-4)


def test_the_area_under_a_drawn_curve_is_the_average_precision():
    scored = single()
    ap = average_precision(scored.targets, scored.logits)
    (axes,) = draw_precision_recall(scored.targets, scored.logits, NAMES, ap).axes
    areas = []
    for line in axes.lines:
        load_cache, precision = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        areas.append(np.sum(np.diff(load_cache) * precision[1:]))  # steps are drawn to the left of each point
    assert areas == pytest.approx(sorted(ap, reverse=True))
    many = np.tile(scored.targets, 6), np.tile(scored.logits, 6)
    (axes,) = draw_precision_recall(*many, [str(i) for i in range(18)], np.tile(ap, 6)).axes
    assert len(axes.lines) == 1  # their mean, and bands


def test_the_reliability_drawn_is_the_one_measured(tmp_path):
    scored = single()
    result = reliability_curve(scored.targets, probabilities(scored.logits, True), 5)
    figure = draw_reliability([("x", result)])
    drawn = figure.axes[0].lines[1]
    np.testing.assert_array_equal(drawn.get_ydata(), result.observed[result.counts > 0])
    assert [bar.get_height() for bar in figure.axes[1].patches] == result.counts.tolist()
    assert save_figure(figure, tmp_path / "x.png").stat().st_size > 1000
    with pytest.raises(FileNotFoundError):
        save_figure(figure, tmp_path / "missing" / "x.png")


def test_a_confusion_shows_its_clips():
    table = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 2]])
    axes = draw_confusion(table, NAMES).axes[0]
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {((0, 0), "3"), ((1, 0), "1"), ((2, 2), "2")}
    np.testing.assert_allclose(axes.images[0].get_array()[0], [0.75, 0.25, 0])
