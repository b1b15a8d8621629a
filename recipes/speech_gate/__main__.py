r"""Text that nobody said, with the gate by tags and without: ``python -m recipes.speech_gate``.

    python -m recipes.speech_gate --data data --out runs/gate --models tiny.en base

Transcribes every recording by every method, one after the other, and prints the tables of `README.md`. What is done is
kept in ``--out`` and not done again; after ``--minutes`` it stops and tells what is left.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import whisper_at
from recipes.open_head.sources import share

from .methods import METHODS, run
from .recordings import Recording, all_recordings
from .report import tables


def measure(
    model_name: str, recordings: Sequence[Recording], methods: Sequence[str], path: Path, until: float
) -> tuple[list[dict[str, Any]], int]:
    """Run methods on recordings, which is appended to a file; return all there is, and how many runs are left."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    done = {(row["method"], row["name"]) for row in rows}
    left = [(method, one) for one in recordings for method in methods if (method, one.name) not in done]
    if not left or time.monotonic() >= until:
        return rows, len(left)
    model = whisper_at.load_model(model_name, head=f"open.{model_name}")
    model.transcribe(recordings[0].audio, language="en", fp16=False)  # kernels are compiled by then
    with path.open("a", encoding="utf-8") as file:
        while left and time.monotonic() < until:
            method, one = left.pop(0)
            rows.append({"method": method, "name": one.name, "kind": one.kind, **run(model, method, one.audio)})
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    return rows, len(left)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder that README.md describes")
    add("--out", type=Path, required=True, help="folder of results")
    add("--models", nargs="+", default=["tiny.en", "base"], help="Whispers with an open head")
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD", help="some of the methods")
    add("--kinds", nargs="+", help="some of the kinds of recordings")
    add("--part", default="report", choices=["tune", "report"], help="which part of the data")
    add("--per_class", type=int, default=2, help="clips of each class of ESC-50")
    add("--utterances", type=int, default=32, help="utterances of LibriSpeech")
    add("--minutes", type=float, default=600, help="stop after so many")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * args.minutes
    recordings = all_recordings(args.data, args.part, args.per_class, args.utterances)
    recordings.sort(key=lambda one: share(one.name))  # what is done when time is up is a random part
    chosen = [one for one in recordings if args.kinds is None or one.kind in args.kinds]
    for name in args.models:
        path = args.out / f"{args.part}.{name}.jsonl"
        rows, left = measure(name, chosen, args.methods, path, until)
        print(f"\n{name}: {len(rows)} runs, {left} left\n")
        print("\n".join(tables(rows, recordings)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
