"""Report on how well a classifier does on labelled clips: Markdown with tables and plots, and its scores as CSV."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoints.files import atomic_write, write_text
from ..tagging.classes import ClassSet
from . import plots
from .calibration import (
    expected_calibration_error,
    fit_temperature,
    probabilities,
    reliability_curve,
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

DEFAULT_PRECISION = 0.8
"""For a head without thresholds, the report shows those that reach this precision on the clips at hand."""
MAX_BOOTSTRAP_SCORES = 200_000
"""Above this number of scores there are no confidence intervals: they would take minutes, and be narrow."""


@dataclass(frozen=True)
class ScoredClips:
    """Logits of labelled clips.

    Attributes
    ----------
    name : str
        How they were computed, in a few words; also part of the names of the plots.
    targets : ndarray, shape (clips, classes)
        0 and 1.
    logits : ndarray, shape (clips, classes)
        Outputs of the head.
    """

    name: str
    targets: np.ndarray
    logits: np.ndarray

    def ranking(self, classes: ClassSet) -> np.ndarray:
        """Return scores that order clips by their probabilities, shape (clips, classes).

        With one right class these are log probabilities, as a softmax depends on differences of logits only.
        """
        from scipy.special import log_softmax

        return log_softmax(self.logits, axis=1) if classes.kind == "single_label" else self.logits


def summarize(scored: ScoredClips, classes: ClassSet) -> dict[str, float]:
    """Return the scores of a classifier.

    Returns
    -------
    dict of str to float
        ``clips``, those of `ranking_scores`, with one right class those of `decision_scores`, and ``gap``, the expected
        calibration error.

    Raises
    ------
    ValueError
        If a logit is NaN or infinite.
    """
    single = classes.kind == "single_label"
    scores: dict[str, float] = {"clips": len(scored.targets)}
    scores |= ranking_scores(scored.targets, scored.ranking(classes))
    p = probabilities(scored.logits, not single, classes.temperature)
    if single:
        scores |= decision_scores(scored.targets.argmax(1), scored.logits.argmax(1))
    scores["gap"] = expected_calibration_error(reliability_curve(*_decisions(scored.targets, p, single)))
    return scores


def per_class_scores(scored: ScoredClips, classes: ClassSet) -> list[dict[str, float]]:
    """Return the scores of each class.

    Returns
    -------
    list of dict
        ``positives``, ``AP``, ``AUC``, ``d_prime``, the ``threshold`` (a probability), and ``precision`` and ``recall``
        of deciding by it; NaN if undefined. The threshold is that of the head or, if it has none, the one that reaches
        a precision of 0.8 on these clips. With one right class, the most likely one is decided, without threshold.
    """
    wanted = one_hot(scored.targets, scored.logits.shape[1])
    ap, auc = average_precision(wanted, scored.ranking(classes)), roc_auc(wanted, scored.ranking(classes))
    thresholds = np.full(len(ap), np.nan)
    if classes.kind == "single_label":
        decided = one_hot(scored.logits.argmax(1), len(ap))
    else:
        p, fixed = probabilities(scored.logits, True, classes.temperature), classes.thresholds
        thresholds = (
            np.array(fixed, float) if fixed is not None else thresholds_for_precision(wanted, p, DEFAULT_PRECISION)
        )
        decided = p >= thresholds
    rows = []
    for i in range(wanted.shape[1]):
        right = int((decided[:, i] & wanted[:, i]).sum())
        rows.append(
            {
                "positives": int(wanted[:, i].sum()),
                "AP": ap[i],
                "AUC": auc[i],
                "d_prime": float(d_prime(auc[i])),
                "threshold": thresholds[i],
                "precision": right / decided[:, i].sum() if decided[:, i].any() else math.nan,
                "recall": right / wanted[:, i].sum() if wanted[:, i].any() else math.nan,
            }
        )
    return rows


def write_report(
    folder: str | os.PathLike[str],
    title: str,
    classes: ClassSet,
    scored: Sequence[ScoredClips],
    details: Mapping[str, str] | None = None,
) -> Path:
    """Write ``report.md`` and its plots to a folder; return the path of the former.

    Parameters
    ----------
    folder : path
        Where to write; created if necessary.
    title : str
        Heading.
    classes : Classes
        Names, kind, temperature and thresholds of the head.
    scored : sequence of ScoredClips
        The same clips scored in one or several ways, each of which gets a section.
    details : mapping of str to str, optional
        What else the report is to say, by name.

    Raises
    ------
    ValueError
        If there are no clips, or a logit is NaN or infinite.
    """
    if not scored or not all(len(item.targets) for item in scored):
        raise ValueError("there are no clips to report on")
    folder = Path(folder).expanduser()
    scores = [summarize(item, classes) for item in scored]  # raises before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", ""]
    if details:
        lines += [*_markdown_table(("", ""), [(name, str(value)) for name, value in details.items()]), ""]
    lines += _overview(scored, scores, classes)
    for item in scored:
        lines += _section(folder, item, classes)
    path = folder / "report.md"
    write_text(path, "\n".join(lines).rstrip() + "\n")
    return path


def write_scores(
    path: str | os.PathLike[str],
    clips: Sequence[str],
    labels: Sequence[str],
    scored: Sequence[ScoredClips],
    classes: ClassSet,
) -> Path:
    """Write logits as CSV and return the path.

    Parameters
    ----------
    path : path
        The file: a row for each clip and way of scoring, a column for each class.
    clips, labels : sequence of str
        Name and labels of each clip.
    scored : sequence of ScoredClips
        The clips, scored in one or several ways.
    classes : Classes
        Names of the classes.
    """
    path = Path(path)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "labels", "scored", *classes.names])
        for item in scored:
            for clip, label, row in zip(clips, labels, item.logits):
                writer.writerow([clip, label, item.name, *(f"{value:.5g}" for value in row)])
    return path


# --- parts of the report ------------------------------------------------------------------------------------


def _overview(scored: Sequence[ScoredClips], scores: Sequence[Mapping[str, float]], classes: ClassSet) -> list[str]:
    """Return the section with a row for each way of scoring."""
    single = classes.kind == "single_label"
    header = ["scored", "clips", *(["accuracy", "UAR", "F1"] if single else []), "mAP", "AUC", "d′", "calibration gap"]
    rows = []
    for item, found in zip(scored, scores):
        cells = [item.name, str(int(found["clips"]))]
        cells += [_format_score(found[name]) for name in ("accuracy", "UAR", "F1") if single]
        cells += [_format_score(found[name]) for name in ("mAP", "AUC", "d_prime", "gap")]
        if (interval := _confidence_interval(item, single)) is not None:
            cells[2] += f" ({interval[0]:.3f}–{interval[1]:.3f})"
        rows.append(cells)
    missing = int((scored[0].targets.sum(axis=0) == 0).sum())
    lines = ["## Scores", "", *_markdown_table(header, rows), ""]
    lines.append(
        "Means are over classes, each counting alike; mAP, AUC and d′ (of the mean AUC) judge the order of clips only. "
        "The calibration gap is the mean distance between predicted probabilities and the share that was right. "
        "In brackets: 95 % interval over resampled clips."
    )
    if missing:
        lines.append(
            f"No clip has any of {missing} of the {len(classes.names)} classes: means and tables leave them out."
        )
    return [*lines, ""]


def _confidence_interval(item: ScoredClips, single: bool) -> tuple[float, float] | None:
    """Return the bounds of the first score of the overview, or None if they would take long."""
    if item.logits.size > MAX_BOOTSTRAP_SCORES or len(item.targets) < 2:
        return None
    if single:
        truth, decided = item.targets.argmax(1), item.logits.argmax(1)
        return bootstrap_interval(lambda a, b: float(np.mean(a == b)), truth, decided)
    return bootstrap_interval(lambda a, b: ranking_scores(a, b)["mAP"], item.targets, item.logits, draws=200)


def _section(folder: Path, item: ScoredClips, classes: ClassSet) -> list[str]:
    """Draw the plots of one way of scoring, and return its section."""
    single = classes.kind == "single_label"
    slug = "".join(c if c.isalnum() else "_" for c in item.name.lower()).strip("_")
    ranking = item.ranking(classes)
    figures = [
        (
            "precision_recall",
            "Precision and recall",
            plots.draw_precision_recall(item.targets, ranking, classes.names, average_precision(item.targets, ranking)),
        )
    ]
    best = fit_temperature(item.targets, item.logits, not single)
    curves = []
    for name, temperature in dict.fromkeys((("as trained", 1.0), ("calibrated", classes.temperature))):
        if name == "as trained" or temperature != 1.0:
            p = probabilities(item.logits, not single, temperature)
            curves.append((f"{name} (T = {temperature:.2f})", reliability_curve(*_decisions(item.targets, p, single))))
    figures.append(("reliability", "Reliability", plots.draw_reliability(curves)))
    if single:
        table = confusion(item.targets.argmax(1), item.logits.argmax(1), len(classes.names))
        figures.append(("confusion", "Confusion", plots.draw_confusion(table, classes.names)))
    lines = [f"## {item.name[:1].upper()}{item.name[1:]}", ""]
    for kind, title, figure in figures:
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
        else f"the lowest that reach a precision of {DEFAULT_PRECISION:g} on these very clips (a hint, not a result)"
    )
    text = f"Thresholds are probabilities, {origin}; precision and recall are of deciding by them."
    lines += ["Precision and recall are of taking the likeliest class." if single else text, ""]
    columns = ("AP", "AUC", "d_prime", *(() if single else ("threshold",)), "precision", "recall")
    header = ("class", "clips", *(name.replace("d_prime", "d′") for name in columns))
    rows = [
        (
            name.replace("|", "\\|"),
            str(row["positives"]),
            *(_format_score(row[name]) for name in columns),
        )
        for name, row in zip(classes.names, per_class_scores(item, classes))
        if row["positives"]
    ]
    return [*lines, *_markdown_table(header, rows), ""]


def _decisions(targets: np.ndarray, p: np.ndarray, single: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and probabilities for `reliability_curve`."""
    if single:
        return p.argmax(1) == targets.argmax(1), p.max(1)
    return targets > 0.5, p


def _format_score(value: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3f}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, the first column aligned to the left and the others to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(line)} |" for line in (header, rule, *rows)]
