"""Transcription of noisy speech by any number of recognisers, and its errors by class and level of noise.

See spec sections 4.1 to 4.3. Results are in ``noise.csv``, one transcription per line.
"""

from __future__ import annotations

import csv
import io
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..audio import SAMPLE_RATE, load_audio
from ..checkpoints.files import atomic_write
from ..data import Clip
from ..data.utterances import Utterance
from ..train.run_manifest import check_same_run, complete_lines, truncate_partial_line
from .mixing import Mixture, mix_at_snr
from .recognisers import Recogniser
from .wer import NORMALIZERS, WordErrors, word_errors

CLEAN = "clean"
"""Stands for the class of noise of speech without noise."""
COLUMNS = ("recogniser", "noise", "snr", "utterance", "clip", "factor", "reference", "hypothesis")


class Transcription(NamedTuple):
    """A line of ``noise.csv``; ``snr`` is infinite for speech without noise."""

    recogniser: str
    noise: str
    snr: float
    utterance: str
    clip: str
    factor: float
    reference: str
    hypothesis: str


class Condition(NamedTuple):
    """Speech to transcribe, and the noise clip to add to it, if any."""

    noise: str
    snr: float
    utterance: Utterance
    clip: Clip | None

    @property
    def clip_name(self) -> str:
        """File name of the noise clip, or empty."""
        return "" if self.clip is None else self.clip.path.name


def transcribe_noisy(
    path: str | os.PathLike[str],
    recognisers: Mapping[str, Callable[[], Recogniser]],
    speech: Sequence[Utterance],
    noises: Mapping[str, Sequence[Clip]],
    snrs: Sequence[float],
    *,
    prevent_clipping: bool = False,
    settings: Mapping[str, Any] | None = None,
    mixture_folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[Transcription]:
    """Transcribe every utterance by every recogniser, with noise of every class at every ratio and without noise.

    Utterance ``i`` is mixed with clip ``i`` of each class, modulo their number, so that all classes see the same
    speech. Each result is appended to the CSV at once, and existing results are kept. The random generator of
    Whisper's sampling is seeded by the condition, so that an interrupted run gives the same results.

    Parameters
    ----------
    path : path
        The CSV.
    recognisers : mapping of str to callable
        Functions that load a recogniser, by name; called only if results are missing.
    speech : sequence of Utterance
        Speech with transcripts.
    noises : mapping of str to sequence of Clip
        Noise clips by class (`whisper_at.study.noises.clips_by_class`).
    snrs : sequence of float
        Signal-to-noise ratios in dB.
    prevent_clipping : bool
        Scale mixtures to stay within −1 … 1.
    settings : mapping, optional
        What else identifies the run; stored in a ``.json`` next to ``path``.
    mixture_folder : path, optional
        Folder to store mixtures in as float ``.wav``.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of Transcription
        All results in a fixed order.

    Raises
    ------
    ValueError
        If ``path`` holds a run with other settings or recordings, or there is nothing to transcribe.
    """
    path = Path(path).expanduser()
    inputs = {"recogniser": recognisers, "speech": speech, "noise": noises, "snr": snrs}
    if missing := [name for name, values in inputs.items() if not values]:
        raise ValueError(f"there is no {missing[0]} to work with")
    finished = {(row.recogniser, row.noise, row.snr, row.utterance): row for row in read_transcriptions(path)}
    _check_same_run(path, {**(settings or {}), "guard": prevent_clipping}, _recording_checksums(speech, noises))
    truncate_partial_line(path)
    conditions = [Condition(CLEAN, float("inf"), utterance, None) for utterance in speech]
    conditions += [
        Condition(noise, float(snr), utterance, clips[i % len(clips)])
        for noise, clips in noises.items()
        for snr in snrs
        for i, utterance in enumerate(speech)
    ]
    for name, condition in product(recognisers, conditions):
        row = finished.get((name, condition.noise, condition.snr, condition.utterance.name))
        wanted = (condition.clip_name, condition.utterance.text)
        if row is not None and (row.clip, row.reference) != wanted:
            raise ValueError(
                f"{path} holds {row.utterance} ({row.reference}) with {row.clip or 'no noise'}, not ({wanted[1]}) "
                f"with {wanted[0] or 'no noise'}: choose another folder, or delete it to begin anew"
            )
    bar = tqdm(total=len(recognisers) * len(conditions), unit="text", disable=not progress)
    load_clip = cache(load_audio)  # the clips of a class are used at every ratio
    results = []
    with open(path, "a", newline="", encoding="utf-8") as file, bar:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(COLUMNS)
        for name, load in recognisers.items():
            bar.set_description(name)
            recognise: Recogniser | None = None
            for condition in conditions:
                noise, snr, utterance, _ = condition
                row = finished.get((name, noise, snr, utterance.name))
                if row is None:
                    recognise = recognise or load()
                    mixture = _mix(condition, load_clip, prevent_clipping, mixture_folder)
                    torch.manual_seed(zlib.crc32(f"{noise} {snr:g} {utterance.name}".encode()))
                    text = " ".join(recognise(mixture.audio).split())  # on one line
                    row = Transcription(
                        name, noise, snr, utterance.name, condition.clip_name, mixture.factor, utterance.text, text
                    )
                    writer.writerow([*row[:2], f"{snr:g}", *row[3:5], f"{row.factor:.6g}", *row[6:]])
                    file.flush()
                results.append(row)
                bar.update()
    return results


def _mix(
    condition: Condition,
    load_clip: Callable[[Path], np.ndarray],
    prevent_clipping: bool,
    folder: str | os.PathLike[str] | None,
) -> Mixture:
    """Return the audio of a condition; store it in ``folder``, unscaled, unless it is there."""
    noise, snr, utterance, clip = condition
    speech = utterance.load()
    if clip is None:
        return Mixture(speech, 1.0)
    if folder is not None:
        from scipy.io import wavfile

        path = Path(folder).expanduser() / f"{snr:g}_{noise}_{utterance.name}_mix_{clip.path.stem}.wav"
        audio = mix_at_snr(speech, load_clip(clip.path), snr).audio
        if not path.exists() or not np.array_equal(wavfile.read(path)[1], audio):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                wavfile.write(temporary, SAMPLE_RATE, audio)
    return mix_at_snr(speech, load_clip(clip.path), snr, prevent_clipping)


def read_transcriptions(path: str | os.PathLike[str]) -> list[Transcription]:
    """Read a ``noise.csv``; the result is empty if there is no such file. An unfinished last line is ignored.

    Raises
    ------
    ValueError
        If it is another kind of file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        return []
    lines = csv.reader(io.StringIO(complete_lines(path).decode("utf-8"), newline=""))
    if (header := next(lines, None)) is None:
        return []
    try:
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(header)}")
        return [Transcription(a, b, float(snr), c, d, float(factor), e, f) for a, b, snr, c, d, factor, e, f in lines]
    except ValueError as error:
        raise ValueError(f"{path} holds no results of this study ({error}); choose another folder") from None


def error_table(
    transcriptions: Sequence[Transcription], normalizer: str = "plain"
) -> dict[tuple[str, str, float], WordErrors]:
    """Return the word errors by recogniser, class of noise and ratio in dB; ``normalizer`` is one of `NORMALIZERS`."""
    groups: dict[tuple[str, str, float], list[Transcription]] = {}
    for row in transcriptions:
        groups.setdefault((row.recogniser, row.noise, row.snr), []).append(row)
    return {
        key: word_errors([row.reference for row in group], [row.hypothesis for row in group], NORMALIZERS[normalizer])
        for key, group in groups.items()
    }


def errors_by_snr(table: Mapping[tuple[str, str, float], WordErrors], recogniser: str) -> dict[float, WordErrors]:
    """Return the word errors of a recogniser by ratio, ascending, summed over all classes of noise."""
    sums: dict[float, WordErrors] = {}
    for (name, _, snr), (errors, words) in table.items():
        if name == recogniser:
            total = sums.get(snr, WordErrors(0, 0))
            sums[snr] = WordErrors(total.errors + errors, total.words + words)
    return dict(sorted(sums.items()))


def _recording_checksums(speech: Sequence[Utterance], noises: Mapping[str, Sequence[Clip]]) -> dict[str, int]:
    """Return a checksum of each utterance and of each noise clip that is used."""
    checksums = {utterance.name: zlib.crc32(utterance.load().tobytes()) for utterance in speech}
    used = [(noise, clip) for noise, clips in noises.items() for clip in clips[: len(speech)]]
    return checksums | {f"{noise}/{clip.path.name}": zlib.crc32(clip.path.read_bytes()) for noise, clip in used}


def _check_same_run(path: Path, settings: Mapping[str, Any], checksums: Mapping[str, int]) -> None:
    """Check that the CSV is of a run with these settings and recordings, to which recordings may be added."""
    manifest = path.with_suffix(".json")
    known: dict[str, int] = {}
    if path.exists() and manifest.exists():
        known = json.loads(manifest.read_text("utf-8")).get("recordings", {})
    if changed := sorted(name for name in known.keys() & checksums.keys() if known[name] != checksums[name]):
        raise ValueError(
            f"{path} holds a run with another recording of {changed[0]}: choose another folder, or delete it to begin "
            "anew"
        )
    check_same_run(path, {**settings, "recordings": {**known, **checksums}}, growing=("recordings",))
