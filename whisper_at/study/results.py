"""From files of results to the figures, and a page of the numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..checkpoints.files import write_text
from ..train.plots import save_figure
from . import figures
from .config import Study
from .probes import fold_means, layers_only, read_probes
from .robustness import Correlation, best_layers, correlate, rises
from .wer import CLEAN, Row, by_snr, error_table, read_rows

NOISE, PROBE = "noise.csv", "probe.csv"


def write_results(study: Study, out: Path) -> list[Path]:
    """Draw what there are results for, with ``results.md`` of their figures; the files written.

    Raises
    ------
    FileNotFoundError
        If there are no results.
    """
    rows = read_rows(out / NOISE)
    probes, classes = read_probes(out / PROBE)
    if not rows and not probes:
        raise FileNotFoundError(f"{out} holds no results; run `whisper-at study noise` and `probe` first")
    lines, written = ["# Results", ""], []
    table = error_table(rows)
    names = list(dict.fromkeys(row.recogniser for row in rows))
    if rows:
        curves = {name: by_snr(table, name) for name in names}
        written.append(save_figure(figures.draw_errors(curves), out / "figure1_upper.png"))
        lines += _noise_lines(rows, names)
    backbones = list(dict.fromkeys(probe.backbone for probe in probes))
    if probes:
        means = {name: fold_means(probes, name) for name in backbones}
        accuracy = {name: mean[0] for name, mean in means.items()}
        chance = 1 / len(classes)
        written.append(save_figure(figures.draw_layers(accuracy, chance), out / "figure1_lower.png"))
        chosen = study.robustness.backbone or backbones[0]
        if chosen not in means:
            raise ValueError(f"{out / PROBE} has no probes of {chosen}, which the study compares")
        f1 = layers_only(means[chosen][1])
        best = best_layers(f1)
        written.append(save_figure(figures.draw_best_layers(best, len(f1)), out / "figure3.png"))
        lines += _probe_lines(accuracy, classes, best, chosen, chance)
        if rows:
            low, high = study.robustness.low, study.robustness.high
            shared: list[str] = []
            x = y = np.zeros(0)
            lines += ["## Recognised and withstood (figure 2)", ""]
            try:
                rise = rises(table, study.robustness.recogniser or names[0], low, high)
                shared = [name for name in classes if name in rise]
                y = np.array([rise[name] for name in shared])
                x = np.array([f1[-1][classes.index(name)] for name in shared])
                found = correlate(x, y)
            except ValueError as error:  # other ratios or too few classes, say: the rest stands
                lines += [f"Not drawn: {error}.", ""]
            else:
                figure = figures.draw_robustness(shared, x, y, found, low, high)
                written.append(save_figure(figure, out / "figure2.png"))
                lines += _correlation_lines(found, low, high)
            if shared:
                lines += [
                    "| class | F1 of the last layer | rise of word errors |",
                    "| --- | ---: | ---: |",
                    *(f"| {name} | {100 * a:.1f} % | {100 * b:.1f} points |" for name, a, b in zip(shared, x, y)),
                    "",
                ]
    path = out / "results.md"
    write_text(path, "\n".join(lines).rstrip() + "\n")
    return [*written, path]


def _noise_lines(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Word error rates by ratio under both rules, and by class under the plain one."""
    plain, normalised = error_table(rows), error_table(rows, "whisper")
    ratios = sorted({row.snr for row in rows}, reverse=True)
    heads = ["no noise" if np.isinf(snr) else f"{snr:g} dB" for snr in ratios]
    lines = ["## Word error rate (figure 1, upper)", "", "In %, over all classes of noise.", ""]
    lines += [f"| recogniser, rules | {' | '.join(heads)} |", f"| --- | {' | '.join(['---:'] * len(heads))} |"]
    for name in names:
        for rules, table in (("plain", plain), ("Whisper's normalizer", normalised)):
            curve = by_snr(table, name)
            cells = [f"{100 * curve[snr].rate:.1f}" if snr in curve else "–" for snr in ratios]
            lines.append(f"| {name}, {rules} | {' | '.join(cells)} |")
    noisy = [snr for snr in ratios if np.isfinite(snr)]
    for name in names:
        lines += ["", f"By class, {name}, plain rules:", ""]
        lines += [f"| noise | {' | '.join(f'{snr:g} dB' for snr in noisy)} |", f"| --- |{' ---: |' * len(noisy)}"]
        for noise in sorted({row.noise for row in rows if row.recogniser == name} - {CLEAN}):
            found = [plain.get((name, noise, snr)) for snr in noisy]
            lines.append(f"| {noise} | {' | '.join('–' if e is None else f'{100 * e.rate:.1f}' for e in found)} |")
    return [*lines, ""]


def _correlation_lines(found: Correlation, low: float, high: float) -> list[str]:
    text = (
        f"Over all {found.n} classes, the rise of word errors from {high:g} to {low:g} dB and the F1 of the last layer "
        f"correlate with r = {found.r:.2f} (95 % interval {found.interval[0]:.2f} to {found.interval[1]:.2f}, "
        f"p = {found.p:.2g}). With any one class left out, r is between {found.without_one[0]:.2f} and "
        f"{found.without_one[1]:.2f}. Line: {100 * found.intercept:.1f} points {'+' if found.slope >= 0 else '−'} "
        f"{abs(found.slope):.2f} for each point of F1."
    )
    return [text, ""]


def _probe_lines(accuracy: dict, classes: Sequence[str], best: np.ndarray, chosen: str, chance: float) -> list[str]:
    lines = ["## Linear probes (figure 1, lower, and figure 3)", ""]
    lines += [f"Accuracy in %, mean of the folds; chance is {100 * chance:.1f} %.", ""]
    lines += ["| backbone | input | best layer | last layer | average of all |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, rows in accuracy.items():
        layers = layers_only(rows)
        top = int(np.argmax(layers))
        best_cell = f"{100 * layers[top]:.1f} (layer {top + 1} of {len(layers)})"
        cells = (100 * rows["input"], best_cell, 100 * layers[-1], 100 * rows["average"])
        lines.append(f"| {name} | {' | '.join(c if isinstance(c, str) else f'{c:.1f}' for c in cells)} |")
    lines += ["", f"Best layer of each class in {chosen}, by F1: "]
    lines[-1] += ", ".join(f"{name} {layer}" for name, layer in zip(classes, best)) + "."
    return [*lines, ""]
