"""From recordings to heads: ``python -m recipes.open_head --data DIR --out DIR --model tiny.en`` (see README.md)."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import whisper_at
from whisper_at.tagging.heads import Head

from . import evaluate
from .head import Settings, save, train
from .pool import Pool, build
from .states import States, scenes, write
from .teacher import Yamnet

SCENES, HELD_OUT_SCENES = 1000, 90


def prepare(data: Path, out: Path, name: str, count: int, held_out: int, compute_type: str) -> None:
    """Make what is missing: the pool of recordings, and the states of scenes and of unseen clips."""
    if not (out / "pool/pool.json").exists():
        build(data, out / "pool")
    jobs = {"train": (count, False), "valid": (held_out, True), "unseen": (0, False)}
    jobs = {job: what for job, what in jobs.items() if not (out / name / job / "states.json").exists()}
    if not jobs:
        return
    model = whisper_at.load_model(name, head=None, compute_type=compute_type)
    pool = Pool(out / "pool")
    for job, (number, is_held_out) in jobs.items():
        if job == "unseen":
            write(out / name / job, evaluate.encode_clips(evaluate.all_clips(data), model))
        else:
            write(out / name / job, scenes(model, pool, number, is_held_out, seed=int(is_held_out)))


def measure(data: Path, out: Path, name: str, head: Head) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return figures of each class on unseen recordings, and of the whole head and its teacher."""
    clips = evaluate.all_clips(data)
    states = States(out / name / "unseen")
    logits, targets = evaluate.scores(head, states)
    table = evaluate.class_figures(clips, logits, targets)
    known = set(evaluate.claim(table))
    for row in table:
        row["claimed"] = row["index"] in known
    claimed = [row for row in table if row["claimed"]]
    yamnet = Yamnet(data / "yamnet")
    if not (out / "unseen_teacher.npy").exists():
        np.save(out / "unseen_teacher.npy", evaluate.teacher_scores(clips, yamnet))
    teacher = evaluate.class_figures(clips, np.load(out / "unseen_teacher.npy"), targets[: len(clips)])
    shared = known & set(yamnet.classes.tolist())

    def mean(rows: list[dict[str, Any]], key: str) -> float:
        return round(float(np.nanmean([row[key] for row in rows])), 4)

    return table, {
        "known": len(known),
        "mAP": mean(claimed, "report"),
        "mAP_alone": mean(claimed, "alone"),
        "mAP_all": mean(table, "report"),
        "teacher": mean([row for row in teacher if row["index"] in shared], "report"),
        "head_of_teacher": mean([row for row in claimed if row["index"] in shared], "report"),
    }


def main() -> None:
    """Run all steps for one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made; steps that are done are kept")
    parser.add_argument("--model", default="tiny.en", help="the Whisper (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--held_out_scenes", type=int, default=HELD_OUT_SCENES)
    parser.add_argument("--mode", default=Settings.mode, help="architecture of the head (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--compute_type", default="float32", help="of the encoder; bfloat16 takes half of the time")
    parser.add_argument("--prepare_only", action="store_true", help="stop before the training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare(args.data, args.out, args.model, args.scenes, args.held_out_scenes, args.compute_type)
    if args.prepare_only:
        return
    settings = replace(Settings(), mode=args.mode, epochs=args.epochs)
    folder = args.out / args.model
    head, temperature, thresholds = train(States(folder / "train"), States(folder / "valid"), settings, folder / "run")
    table, figures = measure(args.data, args.out, args.model, head)
    known = [row["index"] for row in table if row["claimed"]]
    print(figures)
    (folder / "figures.json").write_text(json.dumps({**figures, "classes": table}, indent=1), encoding="utf-8")
    model = whisper_at.load_model(args.model, head=None)
    path = args.out / f"open.{args.model}.head.safetensors"
    save(head, path, model, args.model, temperature, thresholds, known, settings, {"unseen": figures})
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
