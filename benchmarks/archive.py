"""Archives of real recordings: killed and resumed runs against an unbroken one, cost per file, memory.

    python benchmarks/archive.py DATA --files 2000 --broken 20 --kills 10
    python benchmarks/archive.py DATA --files 200 --model tiny.en --steps unbroken loop many

DATA is a folder of recordings, of which `--files` are drawn, with `--broken` files among them that are none. A step
goes on where it was if it is called again with the same `--work`:

unbroken    one run of ``whisper-at archive``: rows, errors, processor time, memory in each tenth of its time
killed      the same, killed with SIGKILL at random moments and started again: are the tables equal?
workers     the same by two processes, one of which is killed halfway
ray         the same on Ray with two actors, one of which is killed halfway
long        one recording of `--hours`, and one of a tenth of that: the same
loop        ``model.transcribe`` file by file with the same options: processor time
many        ``transcribe_many`` over the files: processor time

Processor time is that of a process and its children, so that other programs matter little; there is no wall-clock time.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import HelpFormatter

ROOT = Path(__file__).parents[1]
STEPS = ("unbroken", "killed", "workers", "ray", "long", "loop", "many")
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
LOOP = """
import glob, json, os, resource, sys, warnings
import whisper_at
warnings.simplefilter("ignore")
how, folder, model, n, batch = sys.argv[1:]
files = sorted(glob.glob(os.path.join(folder, "*")))[: int(n)]
model = whisper_at.load_model(model, "cpu")
options = dict(language="en", word_timestamps=True, at_time_res=2.0, condition_on_previous_text=False)
list(model.transcribe_many(files[:1], language="en", word_timestamps=True, at_time_res=2.0))
def cpu():
    return sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in (0, -1))
before, seconds, failed = cpu(), 0.0, 0
if how == "many":
    del options["condition_on_previous_text"]
    for _, result in model.transcribe_many(files, batch_size=int(batch), **options):
        failed += isinstance(result, Exception)
        seconds += 0 if isinstance(result, Exception) else result["duration"]
else:
    for file in files:
        try:
            seconds += model.transcribe(file, **options)["duration"]
        except Exception:
            failed += 1
numbers = {"audio_s": round(seconds, 1), "cpu_s": round(cpu() - before, 1)}
print(json.dumps({"files": len(files), "failed": failed, **numbers}))
"""


def draw_files(data: Sequence[Path], folder: Path, n_files: int, n_broken: int, seed: int) -> None:
    """Fill a folder with links to recordings, and with files that are none."""
    if folder.exists():
        return
    draw = random.Random(seed)
    paths = sorted(path for place in data for path in place.rglob("*") if path.suffix in SUFFIXES)
    paths = draw.sample(paths, n_files - n_broken)
    temporary = folder.with_name(folder.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    order = list(range(n_files))
    draw.shuffle(order)
    for i, path in zip(order, paths):
        (temporary / f"{i:05d}{path.suffix}").symlink_to(path.resolve())
    whole = paths[0].read_bytes()
    for i in order[len(paths) :]:
        content = (b"", b"no recording", draw.randbytes(5000), whole[:20], b"\0" * 3000)[i % 5]
        (temporary / f"{i:05d}.wav").write_bytes(content)
    temporary.rename(folder)


def write_long_recording(data: Sequence[Path], path: Path, hours: float, seed: int) -> None:
    """Write recordings one after the other as one of so many hours, in FLAC."""
    import numpy as np
    import soundfile

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    paths = sorted(path for place in data for path in place.rglob("*") if path.suffix in SUFFIXES)
    left, temporary = round(hours * 3600 * 16000), path.with_name(f".{path.name}")
    with soundfile.SoundFile(temporary, "w", 16000, 1, format="FLAC") as file:
        while left > 0:
            samples, rate = soundfile.read(draw.choice(paths), dtype="int16", always_2d=True)
            places = np.arange(0, len(samples), rate / 16000).astype(int)  # resampled roughly: no text is compared
            block = samples[places[:left], 0]
            file.write(block)
            left -= len(block)
    temporary.rename(path)


def command(args: argparse.Namespace, output: Path, *more: str, source: str = "in") -> list[str]:
    """Return the command that makes the dataset."""
    options = ["--model", args.model, "--language", "en", "--device", "cpu", "--batch_size", str(args.batch_size)]
    options += ["--shard_size", str(args.shard_size), "--quiet", *more]
    program = [sys.executable, "-m", "whisper_at.cli.archive"]
    return [*program, str(args.work / source), "-o", str(output), *options]


def environment() -> dict[str, str]:
    """Return the environment of the programs that are measured."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """Run a program to its end; return its status, the processor time of it and its children, and its memory."""
    samples = []
    with open(log, "ab") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file, env=environment())
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            samples.append(resident_mb(process.pid))
            time.sleep(0.2)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    bounds = [i * len(samples) // 10 for i in range(11)]
    return {
        "exit_status": process.returncode,
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6),
        "mb_in_each_tenth": [max(samples[start:end], default=0) for start, end in itertools.pairwise(bounds)],
    }


def resident_mb(pid: int) -> int:
    """Return the memory that a process has, 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def digest(output: Path) -> dict[str, str]:
    """Return the hash of every table of a dataset."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in ("files", "events")
        for path in sorted((output / table).glob("*.parquet"))
    }


def rows(output: Path) -> dict[str, Any]:
    """Return counts of a dataset."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(output / "files", columns=["id", "path", "duration", "error_type"])
    failed = table.filter(pc.is_valid(table["error_type"]))
    return {
        "rows": table.num_rows,
        "ids": len(set(table["id"].to_pylist())),
        "errors": failed.num_rows,
        "audio_s": round(pc.sum(table["duration"]).as_py() or 0, 1),
    }


def kill_at_random_moments(args: argparse.Namespace, output: Path, log: Path) -> list[int]:
    """Start a run and kill it, several times; return the parts that were there each time."""
    draw = random.Random(args.seed)
    total = len(digest(args.work / "unbroken")) // 2
    parts = []
    for _ in range(args.kills):
        with open(log, "ab") as file:
            process = subprocess.Popen(command(args, output), stdout=file, stderr=file, env=environment())
            goal = len(list((output / "files").glob("part-*"))) + draw.randrange(-(-total // args.kills) + 1)
            while process.poll() is None and len(list((output / "files").glob("part-*"))) < goal:
                time.sleep(0.02)
            time.sleep(draw.random() * args.longest_wait)
            process.send_signal(signal.SIGKILL)
            process.wait()
        parts.append(len(list((output / "files").glob("part-*"))))
    return parts


def kill_a_worker(arguments: Sequence[str], output: Path, log: Path, name: bytes, at: int) -> dict[str, Any]:
    """Run a program; when it has written some parts, kill one of its workers, whose command line has `name`."""
    with open(log, "ab") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file, env=environment())
        killed = None
        while process.poll() is None:
            if killed is None and len(list((output / "files").glob("part-*"))) >= at:
                children = [pid for pid in descendants(process.pid) if name in command_line(pid)]
                if children:
                    killed = children[-1]
                    os.kill(killed, signal.SIGKILL)
            time.sleep(0.1)
    return {"exit_status": process.returncode, "a_worker_was_killed": killed is not None}


def descendants(pid: int) -> list[int]:
    """Return the processes below one, by /proc."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def command_line(pid: int) -> bytes:
    """Return the command line of a process, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def main() -> int:
    """Run the steps, and print what they found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="folders of recordings")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--broken", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest-wait", type=float, default=3.0, help="seconds, at most, between a part and a kill")
    parser.add_argument("--model", default="nano.en")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--hours", type=float, default=10.0, help="of the step long")
    parser.add_argument("--loop-files", type=int, default=200, help="files of the steps loop and many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "whisper-at-archive")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=["unbroken", "killed", "loop", "many"])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    draw_files(args.data, args.work / "in", args.files, args.broken, args.seed)
    log, found = args.work / "log", {}
    for step in args.steps:
        output = args.work / step
        if step == "unbroken":
            found[step] = run(command(args, output), log) | rows(output)
        elif step == "killed":
            parts = kill_at_random_moments(args, output, log)
            found[step] = {"parts_when_killed": parts, **run(command(args, output), log), **rows(output)}
        elif step in ("workers", "ray"):
            more = ["--workers", "2", *(["--engine", "ray"] if step == "ray" else [])]
            half = len(digest(args.work / "unbroken")) // 4
            name = b"RayWorker" if step == "ray" else b"multiprocessing"
            found[step] = kill_a_worker(command(args, output, *more), output, log, name, half) | rows(output)
        elif step == "long":
            found[step] = {}
            for hours in (args.hours / 10, args.hours):
                source, output = f"{hours:g} h/long.flac", args.work / f"long {hours:g} h"
                write_long_recording(args.data, args.work / source, hours, args.seed)
                found[step][f"{hours:g} h"] = run(command(args, output, source=source), log) | rows(output)
        else:
            arguments = [step, str(args.work / "in"), args.model, str(args.loop_files), str(args.batch_size)]
            printed = subprocess.run(
                [sys.executable, "-c", LOOP, *arguments], env=environment(), check=True, capture_output=True, text=True
            )
            found[step] = json.loads(printed.stdout.splitlines()[-1])
        if step in ("killed", "workers", "ray"):
            found[step]["equal_to_unbroken"] = digest(output) == digest(args.work / "unbroken")
        print(json.dumps({step: found[step]}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
