"""Race real Whispers on real speech: words per second, word error rate and memory, decoding what is really said.

    python benchmarks/real_speech.py --model tiny.en --data LibriSpeech/index.csv
    python benchmarks/real_speech.py --model base --data index.csv --minutes 10 --rounds 3 --json base.json
    python benchmarks/real_speech.py --model base --data index.csv --systems "whisper_at int8" whisper_at --rounds 1
    python benchmarks/real_speech.py --model base --data index.csv --beams 5 --systems whisper_at openai-whisper

The data are a table with the columns ``file`` and ``text`` (paths relative to the table). Utterances are joined, with
half a second between them, to recordings of about ``--seconds``, as real recordings are: timestamps, fallback to
higher temperatures and conditioning on the text before are on, as each system has them by default; decoding is greedy
unless `--beams` says otherwise.
All systems have the same weights (float32 if not said otherwise), of an official Whisper that is on this machine,
and the same number of threads. Each runs in a process of its own, one at a time, in alternation; loading and a first
recording, which is not timed, come before.

"words/s" and "times real" count the seconds of transcription alone. "WER" is over all recordings, by jiwer after
Whisper's normaliser, with a 95 % interval by resampling recordings; "left out" counts the words that are missing
altogether, as where a window ends after its first sentence. Memory is the peak of the process, in MB of 10^6
bytes. CPU seconds are of all threads: with one thread they compare programs on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    SAMPLE_RATE,
    HelpFormatter,
    available_cores,
    compile_kernels,
    machine_info,
    peak_memory,
    set_num_threads,
    write_results,
)
from layouts import write_layouts
from real_systems import SYSTEMS, Decoding

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

PAUSE_SECONDS = 0.5


# --- recordings ---------------------------------------------------------------------------------------------------


def read_recordings(
    table: Path, seconds: float, minutes: float, folder: Path, language: str = "en"
) -> list[dict[str, str]]:
    """Join utterances to recordings of about so many seconds; return paths of samples, and the texts.

    Of a table with a column ``language``, those of one language.
    """
    from whisper_at import load_audio

    with open(table, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("text") and row.get("language", language) == language]
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)
    recordings: list[dict[str, str]] = []
    parts: list[np.ndarray] = []
    texts: list[str] = []
    total = 0.0
    for i, row in enumerate(rows):
        parts += [load_audio(str(table.parent / row["file"])), pause]
        texts.append(row["text"])
        length = sum(map(len, parts)) / SAMPLE_RATE
        if length >= seconds or i == len(rows) - 1 or total + length >= 60 * minutes:
            path = folder / f"{len(recordings):03}.npy"
            np.save(path, np.concatenate(parts))
            recordings.append({"samples": str(path), "text": " ".join(texts)})
            total, parts, texts = total + length, [], []
        if total >= 60 * minutes:
            break
    return recordings


def run_one(system: str, folder: Path, recordings: list[dict[str, str]], decoding: Decoding) -> dict[str, Any]:
    """Transcribe all recordings once in this process, after the first minute of the first as a warm-up."""
    transcribe = SYSTEMS[system](folder, decoding)
    loaded = peak_memory()
    transcribe(np.load(recordings[0]["samples"])[: 60 * SAMPLE_RATE])
    texts, seconds, cpu_seconds = [], [], []
    for recording in recordings:
        samples = np.load(recording["samples"])
        start, cpu_start = time.perf_counter(), time.process_time()
        texts.append(transcribe(samples))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {"texts": texts, "seconds": seconds, "cpu": cpu_seconds, "loaded": loaded, "peak": peak_memory()}


# --- scores -------------------------------------------------------------------------------------------------------


def word_errors(references: list[str], texts: list[str], language: str = "en") -> np.ndarray:
    """Return errors, words left out and reference words ``(recordings, 3)``, as Whisper normalises a language."""
    import jiwer
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    normalize = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    rows = []
    for reference, text in zip(references, texts):
        found = jiwer.process_words(normalize(reference), normalize(text))
        errors = found.substitutions + found.deletions + found.insertions
        rows.append((errors, found.deletions, found.hits + found.substitutions + found.deletions))
    return np.array(rows)


def interval(counts: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the word error rate, by resampling recordings."""
    rng, n = np.random.default_rng(0), len(counts)
    sums = counts[rng.integers(0, n, (draws, n))].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, -1], [0.025, 0.975])
    return float(low), float(high)


def summarize(system: str, runs: list[dict[str, Any]], references: list[str], audio_seconds: float) -> dict[str, Any]:
    counts = word_errors(references, runs[0]["texts"])
    times = [sum(run["seconds"]) for run in runs]
    low, high = interval(counts)
    words = int(counts[:, -1].sum())
    return {
        "system": system,
        "seconds": times,
        "cpu_seconds": [sum(run["cpu"]) for run in runs],
        "words_per_second": words / statistics.median(times),
        "times_real": audio_seconds / statistics.median(times),
        "wer": float(counts[:, 0].sum() / words),
        "wer_interval": [low, high],
        "words": words,
        "loaded_mb": runs[0]["loaded"],
        "peak_mb": runs[0]["peak"],
        "errors": counts[:, 0].tolist(),
        "left_out": counts[:, 1].tolist(),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    header = f"{'':26} {'words/s':>8} {'times real':>10} {'WER':>6} {'95 %':>13} {'left out':>8} {'MB':>6}"
    print(f"{header}   seconds (and CPU seconds) of each round")
    for row in rows:
        low, high = row["wer_interval"]
        seconds = " ".join(f"{s:.1f} ({cpu:.1f})" for s, cpu in zip(row["seconds"], row["cpu_seconds"]))
        print(
            f"{row['system']:26} {row['words_per_second']:8.1f} {row['times_real']:10.1f} {100 * row['wer']:5.2f}% "
            f"{100 * low:5.2f} – {100 * high:5.2f} {sum(row['left_out']):8} {row['peak_mb']:6.0f}   {seconds}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--model", default="tiny.en", help="an official Whisper that is on this machine")
    add("--data", type=Path, required=True, help="table of utterances, with the columns file and text")
    add("--seconds", type=float, default=300, help="of a recording")
    add("--minutes", type=float, default=60, help="of speech at most")
    add("--rounds", type=int, default=3, help="how often each system runs")
    add("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), metavar="NAME", help=", ".join(SYSTEMS))
    add("--beams", type=int, default=1, help="of the first temperature; 1 is greedy")
    add("--words", action="store_true", help="with the times of words")
    add("--threads", type=int, default=available_cores(), help="of everything")
    add("--json", type=Path, help="write all numbers to this file")
    add("--one", nargs=2, help=argparse.SUPPRESS)  # system and folder: what a process of its own runs
    args = parser.parse_args()
    if args.one:
        folder = Path(args.one[1])
        recordings = json.loads((folder / "recordings.json").read_text())
        result = run_one(args.one[0], folder, recordings, Decoding(args.beams, args.words))
        (folder / "result.json").write_text(json.dumps(result))
        return
    set_num_threads(args.threads)
    machine = machine_info()
    compile_kernels()
    folder = Path(tempfile.mkdtemp(prefix="real-speech-"))
    try:
        write_layouts(args.model, folder, args.systems)
        recordings = read_recordings(args.data, args.seconds, args.minutes, folder)
        (folder / "recordings.json").write_text(json.dumps(recordings))
        audio_seconds = sum(len(np.load(r["samples"], mmap_mode="r")) for r in recordings) / SAMPLE_RATE
        print(f"{args.model}, {len(recordings)} recordings, {audio_seconds / 60:.1f} minutes, {args.threads} threads")
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(args.rounds):
            for system in args.systems:
                command = [sys.executable, __file__, "--data", str(args.data), "--one", system, str(folder)]
                command += ["--beams", str(args.beams), *(["--words"] if args.words else [])]
                finished = subprocess.run(command, capture_output=True, text=True, check=False)
                if finished.returncode:
                    reason = finished.stderr.strip().rpartition("\n")[2]
                    print(f"{system} did not run: {reason}", flush=True)
                    continue
                runs.setdefault(system, []).append(json.loads((folder / "result.json").read_text()))
        references = [recording["text"] for recording in recordings]
        rows = [summarize(system, found, references, audio_seconds) for system, found in runs.items()]
        print_table(rows)
        if args.json:
            args.data = Path(args.data.name)  # results do not tell folders
            write_results(args.json, args, machine, systems=rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
