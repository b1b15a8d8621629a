"""Word error rate by class and level of noise, for any number of recognisers (spec sections 4.1 to 4.3)."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..audio import load_audio
from ..checkpoints.files import atomic_write
from ..data.clips import Clip
from ..train.run_manifest import cut_unfinished, refuse_other_run, whole_lines
from .mix import mix
from .recognisers import Recogniser
from .sources import Utterance

CLEAN = "clean"
"""What stands for the class of noise where there is none."""
COLUMNS = ("recogniser", "noise", "snr", "utterance", "clip", "factor", "reference", "hypothesis")


class Row(NamedTuple):
    """One transcription, a line of ``noise.csv``; ``snr`` is infinite where there is no noise."""

    recogniser: str
    noise: str
    snr: float
    utterance: str
    clip: str
    factor: float
    reference: str
    hypothesis: str


class Errors(NamedTuple):
    """Words that are wrong, missing or too many, and words of the reference."""

    errors: int
    words: int

    @property
    def rate(self) -> float:
        return self.errors / self.words if self.words else float("nan")


# --- words and their errors ---------------------------------------------------------------------------------


def plain_words(text: str) -> list[str]:
    """Words as the paper takes them: upper case, punctuation gone, split at spaces.

    Hyphens and apostrophes vanish and join what they stood between; numbers and abbreviations stay as they are
    written, which costs a recogniser that writes ``20`` for ``TWENTY``.
    """
    return "".join(c for c in text.upper() if not unicodedata.category(c).startswith("P")).split()


def whisper_words(text: str) -> list[str]:
    """Words by openai-whisper's English normalizer: the same for numbers, abbreviations and contractions, spelled
    either way. The better choice for sentences; it joins single digits (``three one`` is ``31``).
    """
    return _normalizer()(text).split()


@cache
def _normalizer() -> Callable[[str], str]:
    from whisper.normalizers import EnglishTextNormalizer

    return EnglishTextNormalizer()


RULES: dict[str, Callable[[str], list[str]]] = {"plain": plain_words, "whisper": whisper_words}
"""How texts become words, by name."""


def word_errors(
    references: Sequence[str], hypotheses: Sequence[str], words_of: Callable[[str], list[str]] = plain_words
) -> Errors:
    """Edit distance over all texts, and words of all references; their ratio is the micro-averaged error rate."""
    from jiwer import process_words

    wanted, found = ([" ".join(words_of(text)) for text in texts] for texts in (references, hypotheses))
    if not wanted:
        return Errors(0, 0)
    out = process_words(wanted, found)
    return Errors(out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions)


def error_table(rows: Sequence[Row], rules: str = "plain") -> dict[tuple[str, str, float], Errors]:
    """Errors by recogniser, class of noise and ratio in dB."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.recogniser, row.noise, row.snr), []).append(row)
    return {
        key: word_errors([row.reference for row in group], [row.hypothesis for row in group], RULES[rules])
        for key, group in groups.items()
    }


def by_snr(table: Mapping[tuple[str, str, float], Errors], recogniser: str) -> dict[float, Errors]:
    """Errors of a recogniser at each ratio over all classes of noise, from the lowest ratio up."""
    sums: dict[float, Errors] = {}
    for (name, _, snr), (errors, words) in table.items():
        if name == recogniser:
            before = sums.get(snr, Errors(0, 0))
            sums[snr] = Errors(before.errors + errors, before.words + words)
    return dict(sorted(sums.items()))


# --- the experiment -----------------------------------------------------------------------------------------


def transcribe_noisy(
    path: str | os.PathLike[str],
    recognisers: Mapping[str, Callable[[], Recogniser]],
    speech: Sequence[Utterance],
    noises: Mapping[str, Sequence[Clip]],
    snrs: Sequence[float],
    *,
    guard: bool = False,
    facts: Mapping[str, Any] | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[Row]:
    """Let every recogniser hear every sentence in every class of noise at every ratio, and once alone.

    Sentence ``i`` meets clip ``i`` of each class (counting round), so that all classes see the same sentences. Each
    result is added to the CSV at ``path`` as it comes; what is there already is not done again. Chance (Whisper's
    higher temperatures) is seeded by what is heard, so that it does not hang on where a run was stopped.

    Parameters
    ----------
    recognisers : by name, each loaded when its turn comes
    noises : see `whisper_at.study.sources.noises_of`
    snrs : dB
    guard : see `whisper_at.study.mix.mix`
    facts : what else defines the run; kept in a ``.json`` beside ``path``, and a run with others is refused
    cache_folder : where mixtures are written as float ``.wav``, to be listened to; None for nowhere

    Returns
    -------
    all rows of this run, in a fixed order

    Raises
    ------
    ValueError
        If ``path`` holds another run, with other settings, recordings or pairs of them, or there is nothing to do.
    """
    path = Path(path).expanduser()
    if not (recognisers and speech and noises and snrs):
        what = {"recogniser": recognisers, "speech": speech, "noise": noises, "snr": snrs}
        raise ValueError(f"there is no {next(name for name, there in what.items() if not there)} to work with")
    ratios = [float(snr) for snr in snrs]
    done = {_key(row): row for row in read_rows(path)}
    _refuse_other_run(path, dict(facts or {}) | {"guard": guard}, _digests(speech, noises))
    cut_unfinished(path)
    cells: list[tuple[str, float, int, Clip | None]] = [(CLEAN, float("inf"), i, None) for i in range(len(speech))]
    cells += [
        (noise, snr, i, clips[i % len(clips)])
        for noise, clips in noises.items()
        for snr in ratios
        for i in range(len(speech))
    ]
    for name, (noise, snr, i, clip) in product(recognisers, cells):
        row = done.get((name, noise, snr, speech[i].name))
        if row is not None and (row.clip, row.reference) != (_name(clip), speech[i].text):
            raise ValueError(
                f"{path} holds {row.utterance} ({row.reference}) with {row.clip or 'no noise'}, not ({speech[i].text}) "
                f"with {_name(clip) or 'no noise'}: choose another folder, or delete it to begin anew"
            )
    bar = tqdm(total=len(recognisers) * len(cells), unit="text", disable=not progress)
    with open(path, "a", newline="", encoding="utf-8") as file, bar:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(COLUMNS)
        loaded = cache(load_audio)  # a class's clips are heard at every ratio
        out = []
        for name, load in recognisers.items():
            bar.set_description(name)
            recognise: Recogniser | None = None
            for noise, snr, i, clip in cells:
                row = done.get((name, noise, snr, speech[i].name))
                if row is None:
                    recognise = recognise or load()
                    mixed = _mixed(speech[i], clip, snr, guard, loaded, cache_folder, noise)
                    torch.manual_seed(zlib.crc32(f"{noise} {snr:g} {speech[i].name}".encode()))
                    text = " ".join(recognise(mixed[0]).split())  # a row is a line
                    row = Row(name, noise, snr, speech[i].name, _name(clip), mixed[1], speech[i].text, text)
                    writer.writerow([*row[:2], f"{snr:g}", *row[3:5], f"{row.factor:.6g}", *row[6:]])
                    file.flush()
                out.append(row)
                bar.update()
    return out


def _mixed(
    utterance: Utterance,
    clip: Clip | None,
    snr: float,
    guard: bool,
    loaded: Callable[[Path], np.ndarray],
    folder: str | os.PathLike[str] | None,
    noise: str,
) -> tuple[np.ndarray, float]:
    """Samples and factor of a mixture, which is written to ``folder`` unless it is there."""
    speech = utterance.load()
    if clip is None:
        return speech, 1.0
    if folder is None:
        return mix(speech, loaded(clip.path), snr, guard)
    from scipy.io import wavfile

    path = Path(folder).expanduser() / f"{snr:g}_{noise}_{utterance.name}_mix_{clip.path.stem}.wav"
    audio = mix(speech, loaded(clip.path), snr, guard=False).audio
    if not path.exists() or not np.array_equal(wavfile.read(path)[1], audio):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            wavfile.write(temporary, 16000, audio)
    factor = min(1.0, 1.0 / max(float(np.abs(audio).max()), 1e-12)) if guard else 1.0
    return audio * np.float32(factor), factor


def _name(clip: Clip | None) -> str:
    return "" if clip is None else clip.path.name


def _digests(speech: Sequence[Utterance], noises: Mapping[str, Sequence[Clip]]) -> dict[str, int]:
    """What tells apart recordings of one name: a number for each sentence and each clip that is mixed with one."""
    found = {utterance.name: zlib.crc32(utterance.load().tobytes()) for utterance in speech}
    used = [(noise, clip) for noise, clips in noises.items() for clip in clips[: len(speech)]]
    return found | {f"{noise}/{clip.path.name}": zlib.crc32(clip.path.read_bytes()) for noise, clip in used}


def _key(row: Row) -> tuple[str, str, float, str]:
    return row.recogniser, row.noise, row.snr, row.utterance


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a ``noise.csv``, none if there is no such file; a line that is not finished does not count.

    Raises
    ------
    ValueError
        If it is another kind of file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        return []
    lines = csv.reader(io.StringIO(whole_lines(path).decode("utf-8"), newline=""))
    if (header := next(lines, None)) is None:
        return []
    try:
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(header)}")
        return [Row(a, b, float(snr), c, d, float(factor), e, f) for a, b, snr, c, d, factor, e, f in lines]
    except ValueError as error:
        raise ValueError(f"{path} holds no results of this study ({error}); choose another folder") from None


def _refuse_other_run(path: Path, facts: Mapping[str, Any], recordings: Mapping[str, int]) -> None:
    """As `refuse_other_run`, but that recordings may be added to those which a run has."""
    beside = path.with_suffix(".json")
    known: dict[str, int] = {}
    if path.exists() and beside.exists():
        known = json.loads(beside.read_text("utf-8")).get("recordings", {})
    if changed := sorted(name for name in known.keys() & recordings.keys() if known[name] != recordings[name]):
        raise ValueError(
            f"{path} holds a run with another recording of {changed[0]}: choose another folder, or delete it to begin "
            "anew"
        )
    refuse_other_run(path, {**facts, "recordings": {**known, **recordings}}, growing=("recordings",))
