"""Time to the first words on a machine where nothing is compiled, against one where everything is.

    python benchmarks/first_words.py                                        # tiny.en and base, float32 and int8
    python benchmarks/first_words.py --models base --compute_types int8 --rounds 5 --json first_words.json

Each run is a process of its own: ``whisper-at RECORDING``, with lines printed as windows are decoded. The first words
are there when the first line with a time is; the clock starts before the process does, so that importing and loading
are counted. "fresh" has an empty folder of kernels, which are compiled in the background; "warm" has one that
``whisper-at warmup`` filled. Both take turns, and with ``--openai`` openai-whisper's own command with them, which reads
its model from ``~/.cache/whisper``. A first run of each, which fills the system's cache of files, is not counted. After
a fresh run, the next one waits until the background has ended. The target is a first line in at most 1.2 times the time
of a warm run.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import HelpFormatter, add_common_arguments, machine_info, set_num_threads, write_results

ROOT = Path(__file__).parents[1]
TARGET = 1.2
LINE = re.compile(r"\[[\d:.]+ --> [\d:.]+\]")


def command(system: str, args: argparse.Namespace, model: str, compute_type: str) -> list[str]:
    """Return the command of a system, which prints a line for every segment as soon as it is decoded."""
    options = ["--model", model, "--language", "en", "--fp16", "False", "--threads", str(args.threads)]
    if system != "openai-whisper":
        options += ["--compute_type", compute_type, "--head", "none"]
    module = "whisper" if system == "openai-whisper" else "whisper_at"
    return [sys.executable, "-u", "-m", module, str(args.recording), *options]


def run(arguments: list[str], cache: Path) -> dict[str, float | str]:
    """Return seconds until the first line and until the end, and the text."""
    env = {**os.environ, "WHISPER_AT_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        with subprocess.Popen(
            [*arguments, "--output_dir", out], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first, lines = 0.0, []
            for line in process.stdout:
                if LINE.match(line):
                    first = first or time.perf_counter() - start
                    lines.append(line.strip())
            errors = process.stderr.read()
        seconds = time.perf_counter() - start
    if process.returncode or not lines:
        raise SystemExit(f"{' '.join(arguments)} printed no line: {errors.strip()[-500:]}")
    return {"first": first, "end": seconds, "text": "\n".join(lines)}


def wait_for_compiler(cache: Path) -> float:
    """Wait until no process compiles for a folder; return the seconds that took."""
    from whisper_at.engine.compile_kernels import lock_folder

    start = time.perf_counter()
    while (lock := lock_folder(cache)) is None:
        time.sleep(0.1)
    lock.close()
    return time.perf_counter() - start


def measure(args: argparse.Namespace, model: str, compute_type: str, warm_cache: Path) -> dict[str, object]:
    systems = ["fresh", "warm"] + (["openai-whisper"] if args.openai and compute_type == "float32" else [])
    runs: dict[str, list[dict[str, float | str]]] = {system: [] for system in systems}
    compiling: list[float] = []
    for turn in range(args.rounds + 1):
        for system in systems[:: 1 if turn % 2 else -1]:
            with tempfile.TemporaryDirectory() as empty:
                cache = Path(empty) if system == "fresh" else warm_cache
                found = run(command(system, args, model, compute_type), cache)
                waited = wait_for_compiler(cache) if system == "fresh" else 0.0
            if turn:  # the first fills the system's cache of files
                runs[system].append(found)
                if system == "fresh":
                    compiling.append(waited)
    texts = {found["text"] for system in ("fresh", "warm") for found in runs[system]}
    medians = {
        system: {key: statistics.median(float(found[key]) for found in each) for key in ("first", "end")}
        for system, each in runs.items()
    }
    return {
        "model": model,
        "compute_type": compute_type,
        "seconds": {s: {key: [found[key] for found in each] for key in ("first", "end")} for s, each in runs.items()},
        "medians": medians,
        "ratio_first": medians["fresh"]["first"] / medians["warm"]["first"],
        "ratio_end": medians["fresh"]["end"] / medians["warm"]["end"],
        "background_after_end": compiling,
        "same_text": len(texts) == 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny.en", "base"], help="Whispers that load by name")
    parser.add_argument("--compute_types", nargs="+", default=["float32", "int8"])
    parser.add_argument("--recording", type=Path, default=ROOT / "sample/reading.ogg")
    parser.add_argument("--rounds", type=int, default=5, help="of every system, after one that is not counted")
    parser.add_argument("--openai", action="store_true", help="openai-whisper's command as well, in float32")
    add_common_arguments(parser)
    args = parser.parse_args()
    machine = machine_info()
    set_num_threads(args.threads)
    sys.path.insert(0, str(ROOT))
    results = []
    with tempfile.TemporaryDirectory() as warm:
        env = {**os.environ, "WHISPER_AT_CACHE": warm, "PYTHONPATH": str(ROOT)}
        warmup = [sys.executable, "-m", "whisper_at", "warmup", "--compute_type", *args.compute_types]
        subprocess.run(warmup, env=env, check=True)
        for model in args.models:
            for compute_type in args.compute_types:
                row = measure(args, model, compute_type, Path(warm))
                results.append(row)
                print_row(row)
    if args.json:
        write_results(args.json, args, machine, runs=results)


def print_row(row: dict[str, object]) -> None:
    medians: dict[str, dict[str, float]] = row["medians"]  # type: ignore[assignment]
    shown = "   ".join(f"{system} {m['first']:.2f} s (end {m['end']:.2f})" for system, m in medians.items())
    verdict = "met" if float(str(row["ratio_first"])) <= TARGET else "missed"
    print(
        f"{row['model']} {row['compute_type']}: {shown}   fresh ÷ warm {row['ratio_first']:.2f} to the first words "
        f"({verdict}), {row['ratio_end']:.2f} to the end; {'same text' if row['same_text'] else 'OTHER TEXT'}",
        flush=True,
    )


if __name__ == "__main__":
    main()
