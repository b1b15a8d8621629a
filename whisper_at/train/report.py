"""A report on what a classifier does on labelled clips: Markdown with tables and pictures, and its scores as CSV."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from ..checkpoints.files import atomic_write, write_text
from ..tagging.classes import ClassSet
from . import plots
from .calibration import (
    expected_calibration_error,
    fit_temperature,
    probabilities,
    reliability,
    thresholds_for_precision,
)
from .metrics import (
    average_precision,
    bootstrap_interval,
    confusion,
    d_prime,
    decision_scores,
    one_hot,
    ranking_scores,
    roc_auc,
)

PRECISION = 0.8
"""Where a head has no thresholds of its own, the report shows those that reach this precision on its clips."""
DRAWN = 200_000
"""Intervals are drawn for up to so many scores; for more they would take minutes and be narrow."""


@dataclass(frozen=True)
class Scored:
    """Logits of labelled clips.

    Attributes
    ----------
    name : how they were made, in a few words; also names the pictures' files
    targets : ``(clips, classes)`` of 0 and 1
    logits : ``(clips, classes)``
    """

    name: str
    targets: np.ndarray
    logits: np.ndarray

    def ranks(self, classes: ClassSet) -> np.ndarray:
        """Scores that put clips in the order of their probabilities, ``(clips, classes)``.

        Those are the logits themselves, except where one class is right: a softmax knows only their differences.
        """
        return log_softmax(self.logits, axis=1) if classes.kind == "single_label" else self.logits


def summary(scored: Scored, classes: ClassSet) -> dict[str, float]:
    """Figures of a classifier: ``clips``, those of `ranking_scores`, for one right class those of `decision_scores`,
    and the mean ``gap`` between claimed probability and what came true.

    Raises ValueError where a logit is no number.
    """
    single = classes.kind == "single_label"
    found: dict[str, float] = {"clips": len(scored.targets)}
    found |= ranking_scores(scored.targets, scored.ranks(classes))
    p = probabilities(scored.logits, not single, classes.temperature)
    if single:
        found |= decision_scores(scored.targets.argmax(1), scored.logits.argmax(1))
    found["gap"] = expected_calibration_error(reliability(*_decisions(scored.targets, p, single)))
    return found


def class_rows(scored: Scored, classes: ClassSet) -> list[dict[str, float]]:
    """A row for each class: ``positives``, ``AP``, ``AUC``, ``d_prime``, the ``threshold`` (a probability) and the
    ``precision`` and ``recall`` of deciding by it; NaN where there is nothing to tell from.

    The threshold is the head's own or, where it has none, the one that reaches a precision of 0.8 on these clips. Where
    one class is right, the likeliest is taken, and there is none.
    """
    wanted = one_hot(scored.targets, scored.logits.shape[1])
    ap, auc = average_precision(wanted, scored.ranks(classes)), roc_auc(wanted, scored.ranks(classes))
    thresholds = np.full(len(ap), np.nan)
    if classes.kind == "single_label":
        taken = one_hot(scored.logits.argmax(1), len(ap))
    else:
        p, own = probabilities(scored.logits, True, classes.temperature), classes.thresholds
        thresholds = np.array(own, float) if own is not None else thresholds_for_precision(wanted, p, PRECISION)
        taken = p >= thresholds
    rows = []
    for i in range(wanted.shape[1]):
        right = int((taken[:, i] & wanted[:, i]).sum())
        rows.append(
            {
                "positives": int(wanted[:, i].sum()),
                "AP": ap[i],
                "AUC": auc[i],
                "d_prime": float(d_prime(auc[i])),
                "threshold": thresholds[i],
                "precision": right / taken[:, i].sum() if taken[:, i].any() else math.nan,
                "recall": right / wanted[:, i].sum() if wanted[:, i].any() else math.nan,
            }
        )
    return rows


def write_report(
    folder: str | os.PathLike[str],
    title: str,
    classes: ClassSet,
    scored: Sequence[Scored],
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write ``report.md`` and its pictures to ``folder``; return the path of the former.

    Parameters
    ----------
    classes : names, kind, temperature and thresholds of the head that made the logits
    scored : the same clips scored in one or several ways, each reported by itself
    facts : what else is to be known, by name

    Raises
    ------
    ValueError
        If there are no clips, or a logit is no number.
    """
    if not scored or not all(len(item.targets) for item in scored):
        raise ValueError("there are no clips to report on")
    folder = Path(folder).expanduser()
    figures = [summary(item, classes) for item in scored]  # refuses what cannot be scored before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", ""]
    if facts:
        lines += [*_table(("", ""), [(name, str(value)) for name, value in facts.items()]), ""]
    lines += _overview(scored, figures, classes)
    for item in scored:
        lines += _section(folder, item, classes)
    path = folder / "report.md"
    write_text(path, "\n".join(lines).rstrip() + "\n")
    return path


def write_scores(path: str | os.PathLike[str], clips: Sequence[str], labels: Sequence[str], items: Sequence[Scored],
                 classes: ClassSet) -> Path:  # fmt: skip
    """Write logits as CSV: a row for each clip and way of scoring, a column for each class; return the path.

    ``clips`` and ``labels`` name each clip and what it is labelled with.
    """
    path = Path(path)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "labels", "scored", *classes.names])
        for item in items:
            for clip, label, row in zip(clips, labels, item.logits):
                writer.writerow([clip, label, item.name, *(f"{value:.5g}" for value in row)])
    return path


# --- parts of the report ------------------------------------------------------------------------------------


def _overview(scored: Sequence[Scored], figures: Sequence[Mapping[str, float]], classes: ClassSet) -> list[str]:
    single = classes.kind == "single_label"
    header = ["scored", "clips", *(["accuracy", "UAR", "F1"] if single else []), "mAP", "AUC", "d′", "calibration gap"]
    rows = []
    for item, found in zip(scored, figures):
        cells = [item.name, str(int(found["clips"]))]
        cells += [_number(found[name]) for name in ("accuracy", "UAR", "F1") if single]
        cells += [_number(found[name]) for name in ("mAP", "AUC", "d_prime", "gap")]
        if (interval := _interval(item, single)) is not None:
            cells[2] += f" ({interval[0]:.3f}–{interval[1]:.3f})"
        rows.append(cells)
    missing = int((scored[0].targets.sum(axis=0) == 0).sum())
    lines = ["## Scores", "", *_table(header, rows), ""]
    lines.append(
        "Means are over classes, each counting alike; mAP, AUC and d′ (of the mean AUC) judge the order of clips only. "
        "The calibration gap is the mean distance between the probability that was claimed and the share that was "
        "right. In brackets: 95 % interval over clips drawn anew."
    )
    if missing:
        lines.append(
            f"No clip has any of {missing} of the {len(classes.names)} classes: means and tables leave them out."
        )
    return [*lines, ""]


def _interval(item: Scored, single: bool) -> tuple[float, float] | None:
    """Bounds of the first figure of the overview, or None where they would take long."""
    if item.logits.size > DRAWN or len(item.targets) < 2:
        return None
    if single:
        truth, decided = item.targets.argmax(1), item.logits.argmax(1)
        return bootstrap_interval(lambda a, b: float(np.mean(a == b)), truth, decided)
    return bootstrap_interval(lambda a, b: ranking_scores(a, b)["mAP"], item.targets, item.logits, draws=200)


def _section(folder: Path, item: Scored, classes: ClassSet) -> list[str]:
    single = classes.kind == "single_label"
    slug = "".join(c if c.isalnum() else "_" for c in item.name.lower()).strip("_")
    ranks = item.ranks(classes)
    drawn = [
        (
            "precision_recall",
            "Precision and recall",
            plots.draw_precision_recall(item.targets, ranks, classes.names, average_precision(item.targets, ranks)),
        )
    ]
    best = fit_temperature(item.targets, item.logits, not single)
    curves = []
    for name, temperature in dict.fromkeys((("as trained", 1.0), ("calibrated", classes.temperature))):
        if name == "as trained" or temperature != 1.0:
            p = probabilities(item.logits, not single, temperature)
            curves.append((f"{name} (T = {temperature:.2f})", reliability(*_decisions(item.targets, p, single))))
    drawn.append(("reliability", "Reliability", plots.draw_reliability(curves)))
    if single:
        table = confusion(item.targets.argmax(1), item.logits.argmax(1), len(classes.names))
        drawn.append(("confusion", "Confusion", plots.draw_confusion(table, classes.names)))
    lines = [f"## {item.name[:1].upper()}{item.name[1:]}", ""]
    for kind, title, figure in drawn:
        file = f"{kind}_{slug}.png"
        plots.save_figure(figure, folder / file)
        lines += [f"![{title}, {item.name}]({file})", ""]
    what = "the highest probability of a clip" if single else "every probability of every clip"
    lines += [
        f"Reliability is of {what}. Logits are divided by a temperature of {classes.temperature:.3g}; the one that "
        f"would fit these clips best is {best:.3g}.",
        "",
    ]
    origin = (
        "the head's own"
        if classes.thresholds is not None
        else f"the lowest that reach a precision of {PRECISION:g} on these very clips (a hint, not a result)"
    )
    text = f"Thresholds are probabilities, {origin}; precision and recall are of deciding by them."
    lines += ["Precision and recall are of taking the likeliest class." if single else text, ""]
    figures = ("AP", "AUC", "d_prime", *(() if single else ("threshold",)), "precision", "recall")
    header = ("class", "clips", *(name.replace("d_prime", "d′") for name in figures))
    rows = [
        (
            name.replace("|", "\\|"),
            str(row["positives"]),
            *(_number(row[name]) for name in figures),
        )
        for name, row in zip(classes.names, class_rows(item, classes))
        if row["positives"]
    ]
    return [*lines, *_table(header, rows), ""]


def _decisions(targets: np.ndarray, p: np.ndarray, single: bool) -> tuple[np.ndarray, np.ndarray]:
    """What is claimed and whether it is so, for `reliability`."""
    if single:
        return p.argmax(1) == targets.argmax(1), p.max(1)
    return targets > 0.5, p


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first column to the left and the others to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(line)} |" for line in (header, rule, *rows)]
