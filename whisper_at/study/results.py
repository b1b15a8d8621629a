"""Figures of a study and ``results.md``, from its CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..checkpoints.files import write_text
from ..train.plots import save_figure
from . import figures
from .config import RobustnessConfig, StudyConfig
from .layer_probes import AVERAGE, INPUT, average_folds, layer_values, read_probes
from .robustness import Correlation, best_layers, correlate, word_error_increase
from .transcriptions import CLEAN, Transcription, error_table, errors_by_snr, read_transcriptions
from .wer import WordErrors

NOISE_CSV, PROBE_CSV = "noise.csv", "probe.csv"


def write_results(study: StudyConfig, out: Path) -> list[Path]:
    """Draw the figures that there are results for, and write their numbers to ``results.md``.

    Parameters
    ----------
    study : StudyConfig
        The study.
    out : Path
        Folder of ``noise.csv`` and ``probe.csv``.

    Returns
    -------
    list of Path
        Written files.

    Raises
    ------
    FileNotFoundError
        If there are no results.
    """
    transcriptions = read_transcriptions(out / NOISE_CSV)
    probes, classes = read_probes(out / PROBE_CSV)
    if not transcriptions and not probes:
        raise FileNotFoundError(f"{out} holds no results; run `whisper-at study noise` and `probe` first")
    lines, written = ["# Results", ""], []
    table = error_table(transcriptions)
    recognisers = list(dict.fromkeys(row.recogniser for row in transcriptions))
    if transcriptions:
        curves = {name: errors_by_snr(table, name) for name in recognisers}
        written.append(save_figure(figures.draw_errors(curves), out / "figure1_upper.png"))
        lines += _word_error_lines(transcriptions, recognisers)
    if probes:
        backbones = list(dict.fromkeys(probe.backbone for probe in probes))
        means = {name: average_folds(probes, name) for name in backbones}
        accuracy = {name: mean[0] for name, mean in means.items()}
        chance = 1 / len(classes)
        written.append(save_figure(figures.draw_layers(accuracy, chance), out / "figure1_lower.png"))
        backbone = study.robustness.backbone or backbones[0]
        if backbone not in means:
            raise ValueError(f"{out / PROBE_CSV} has no probes of {backbone}, which the study compares")
        f1 = layer_values(means[backbone][1])
        best = best_layers(f1)
        written.append(save_figure(figures.draw_best_layers(best, len(f1)), out / "figure3.png"))
        lines += _probe_lines(accuracy, classes, best, backbone, chance)
        if transcriptions:
            recogniser = study.robustness.recogniser or recognisers[0]
            paths, text = _compare_by_class(study.robustness, table, recogniser, dict(zip(classes, f1[-1])), out)
            written += paths
            lines += text
    path = out / "results.md"
    write_text(path, "\n".join(lines).rstrip() + "\n")
    return [*written, path]


def _compare_by_class(
    settings: RobustnessConfig,
    table: Mapping[tuple[str, str, float], WordErrors],
    recogniser: str,
    f1_of: Mapping[str, float],
    out: Path,
) -> tuple[list[Path], list[str]]:
    """Draw the increase of word errors against the F1 of each class; return the written files and lines of text."""
    low, high = settings.low, settings.high
    lines, written = ["## Word errors and recognition of the noise (figure 2)", ""], []
    try:
        increase = word_error_increase(table, recogniser, low, high)
    except ValueError as error:
        return [], [*lines, f"Not drawn: {error}.", ""]
    shared = [name for name in f1_of if name in increase]
    x, y = np.array([f1_of[name] for name in shared]), np.array([increase[name] for name in shared])
    try:
        correlation = correlate(x, y)
    except ValueError as error:  # too few classes, say: the table is still written
        lines += [f"Not drawn: {error}.", ""]
    else:
        figure = figures.draw_robustness(shared, x, y, correlation, low, high)
        written.append(save_figure(figure, out / "figure2.png"))
        lines += _correlation_lines(correlation, low, high)
    if shared:
        lines += ["| class | F1 of the last layer | increase of word errors |", "| --- | ---: | ---: |"]
        lines += [f"| {name} | {100 * a:.1f} % | {100 * b:.1f} points |" for name, a, b in zip(shared, x, y)]
        lines.append("")
    return written, lines


def _word_error_lines(transcriptions: Sequence[Transcription], recognisers: Sequence[str]) -> list[str]:
    """Return the word error rates by ratio with both normalizers, and by class with the plain one, as Markdown."""
    plain, normalised = error_table(transcriptions), error_table(transcriptions, "whisper")
    ratios = sorted({row.snr for row in transcriptions}, reverse=True)
    heads = ["no noise" if np.isinf(snr) else f"{snr:g} dB" for snr in ratios]
    lines = ["## Word error rate (figure 1, upper)", "", "In %, over all classes of noise.", ""]
    lines += [f"| recogniser, rules | {' | '.join(heads)} |", f"| --- | {' | '.join(['---:'] * len(heads))} |"]
    for name in recognisers:
        for rules, table in (("plain", plain), ("Whisper's normalizer", normalised)):
            curve = errors_by_snr(table, name)
            cells = [f"{100 * curve[snr].rate:.1f}" if snr in curve else "–" for snr in ratios]
            lines.append(f"| {name}, {rules} | {' | '.join(cells)} |")
    noisy = [snr for snr in ratios if np.isfinite(snr)]
    for name in recognisers:
        lines += ["", f"By class, {name}, plain rules:", ""]
        lines += [f"| noise | {' | '.join(f'{snr:g} dB' for snr in noisy)} |", f"| --- |{' ---: |' * len(noisy)}"]
        for noise in sorted({row.noise for row in transcriptions if row.recogniser == name} - {CLEAN}):
            found = [plain.get((name, noise, snr)) for snr in noisy]
            lines.append(f"| {noise} | {' | '.join('–' if e is None else f'{100 * e.rate:.1f}' for e in found)} |")
    return [*lines, ""]


def _correlation_lines(correlation: Correlation, low: float, high: float) -> list[str]:
    (least, most), (least_without, most_without) = correlation.interval, correlation.without_one
    text = (
        f"Over all {correlation.n} classes, the increase of word errors from {high:g} to {low:g} dB and the F1 of the "
        f"last layer correlate with r = {correlation.r:.2f} (95 % interval {least:.2f} to {most:.2f}, "
        f"p = {correlation.p:.2g}). With any one class left out, r is between {least_without:.2f} and "
        f"{most_without:.2f}. Line: {100 * correlation.intercept:.1f} points "
        f"{'+' if correlation.slope >= 0 else '−'} {abs(correlation.slope):.2f} for each point of F1."
    )
    return [text, ""]


def _probe_lines(
    accuracy: Mapping[str, Mapping[str, float]], classes: Sequence[str], best: np.ndarray, backbone: str, chance: float
) -> list[str]:
    """Return the accuracy of each backbone and the best layer of each class in one of them, as Markdown."""
    lines = ["## Linear probes (figure 1, lower, and figure 3)", ""]
    lines += [f"Accuracy in %, mean of the folds; chance is {100 * chance:.1f} %.", ""]
    lines += ["| backbone | input | best layer | last layer | average of all |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, rows in accuracy.items():
        layers = layer_values(rows)
        top = int(np.argmax(layers))
        best_cell = f"{100 * layers[top]:.1f} (layer {top + 1} of {len(layers)})"
        cells = (100 * rows[INPUT], best_cell, 100 * layers[-1], 100 * rows[AVERAGE])
        lines.append(f"| {name} | {' | '.join(c if isinstance(c, str) else f'{c:.1f}' for c in cells)} |")
    lines += ["", f"Best layer of each class in {backbone}, by F1: "]
    lines[-1] += ", ".join(f"{name} {layer}" for name, layer in zip(classes, best)) + "."
    return [*lines, ""]
