r"""How much of a teacher's head a student keeps, by hours of unlabelled sound.

    python -m recipes.open_head.students --data data --out runs/open --work runs/students --compute_type bfloat16

The recordings are those that the teacher was trained on, and those of ESC-50 and of the table of sounds that are of the
half by which its classes were selected; their labels are not looked at. One after another they make recordings of a
minute. `whisper-at train --teacher` trains the student on more and more of them, and both are measured on the half of
the unseen recordings that neither was trained on, as the open heads are. OUT is the folder of `recipes.open_head`, with
its pool and the states of unseen clips of both models.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile

import whisper_at
from whisper_at.audio import load_audio
from whisper_at.cli.train import main as train
from whisper_at.tagging.heads import Head

from .evaluate import all_clips, class_figures, scores
from .pool import RATE, Pool
from .sources import share
from .states import States

HOURS = (0.25, 0.5, 1.0, 2.0, 4.0)
MINUTE = 60 * RATE
"""Samples of a recording."""


def unlabelled(data: Path, pool: Pool) -> Iterator[np.ndarray]:
    """Return what the student may hear, float32 at a peak of 0.9: nothing of a group that is measured on."""
    measured = {_name(clip.group) for clip in all_clips(data) if not clip.selects}
    seen = {item.path for item in pool.items}
    for item in pool.items:
        if not item.held_out and _name(item.group) not in measured:
            yield pool.audio(item)
    for folder in ("esc50", "sounds"):
        with open(data / folder / "index.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                group = f"{row['set']}/{row['group']}" if folder == "sounds" else f"esc50/{row['file'].split('-')[1]}"
                if row["file"] not in seen and _name(group) not in measured and share(group + "half") < 0.5:
                    audio = load_audio(data / folder / row["file"])
                    yield audio * (0.9 / max(float(np.abs(audio).max()), 1e-3))


def _name(group: str) -> str:
    """Return a group without its collection: two collections may have clips of one recording of Freesound."""
    return group.rpartition("/")[2]


def write_recordings(
    data: Path, pool: Pool, folder: Path, hours: tuple[float, ...], seed: int = 0
) -> dict[float, Path]:
    """Write recordings of a minute; return the folder of each number of hours, which lies in that of the next larger.

    Raises
    ------
    ValueError
        If there are not as many hours of sound.
    """
    folders, at = {}, folder
    for number in sorted(hours, reverse=True):
        at = at / f"{number:g}h"
        folders[number] = at
    if folder.is_dir():
        return folders
    sounds = list(unlabelled(data, pool))
    random.Random(seed).shuffle(sounds)
    audio = np.concatenate(sounds)
    if len(audio) < max(hours) * 3600 * RATE:
        raise ValueError(f"there are {len(audio) / RATE / 3600:.2f} hours of sound, fewer than {max(hours):g}")
    for number, path in folders.items():
        path.mkdir(parents=True)
        smaller = max((other for other in hours if other < number), default=0.0)
        for minute in range(round(smaller * 60), round(number * 60)):
            part = audio[minute * MINUTE : (minute + 1) * MINUTE]
            wavfile.write(path / f"{minute:04}.wav", RATE, np.rint(part * 32767).astype(np.int16))
    return folders


def class_precisions(data: Path, states: Path, head: Head) -> dict[int, float]:
    """Return the average precision of each class on the half of the unseen recordings that figures are taken on."""
    logits, targets = scores(head, States(states))
    return {row["index"]: row["report"] for row in class_figures(all_clips(data), logits, targets)}


def main() -> None:
    """Teach and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings, as of recipes.open_head")
    parser.add_argument("--out", type=Path, required=True, help="what recipes.open_head made of them")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made; what is there is kept")
    parser.add_argument("--teacher", default="base", help="its head is open.NAME (default: %(default)s)")
    parser.add_argument("--student", default="tiny.en")
    parser.add_argument("--hours", type=float, nargs="+", choices=HOURS, default=list(HOURS))
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings for each number of hours")
    parser.add_argument("--modes", nargs="+", default=["stats_mlp"], help="kinds of head of the student")
    parser.add_argument("--compute_type", default="float32", help="of the encoders; bfloat16 takes half of the time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    folders = write_recordings(args.data, Pool(args.out / "pool"), args.work / "recordings", HOURS)
    features = args.work / f"{args.student}.features"

    head = whisper_at.load_model(args.teacher, head=f"open.{args.teacher}").head
    assert isinstance(head, Head)
    assert head.classes is not None
    assert head.classes.known is not None
    known = head.classes.known
    of_teacher = class_precisions(args.data, args.out / args.teacher / "unseen", head)
    head = whisper_at.load_model(args.student, head=f"open.{args.student}").head
    assert isinstance(head, Head)
    of_labels = class_precisions(args.data, args.out / args.student / "unseen", head)

    def mean(precisions: dict[int, float]) -> float:
        return float(np.nanmean([precisions[index] for index in known if index in precisions]))

    figures: dict[str, object] = {"classes": len(known), "teacher": mean(of_teacher), "labels": mean(of_labels)}
    print(f"{args.teacher}: mAP {mean(of_teacher):.3f}; {args.student}'s own open head: {mean(of_labels):.3f}")
    print("| head | hours | mAP | of the teacher's | lowest to highest of the seeds |\n|---|--:|--:|--:|--:|")
    for hours in sorted(args.hours):
        for mode in args.modes:
            found = []
            for seed in range(args.seeds):
                path = args.work / f"{args.student}.{mode}.{hours:g}h.{seed}.safetensors"
                if not path.exists():
                    command = ["--data", str(folders[hours]), "--teacher", args.teacher, "--model", args.student]
                    command += ["--teacher_head", f"open.{args.teacher}", "--features", str(features), "-o", str(path)]
                    command += ["--compute_type", args.compute_type]
                    train([*command, "--set", f"mode={mode}", "--set", f"seed={seed}", "--quiet"])
                student = whisper_at.load_model(args.student, head=str(path)).head
                assert isinstance(student, Head)
                found.append(mean(class_precisions(args.data, args.out / args.student / "unseen", student)))
            share_kept = 100 * np.mean(found) / mean(of_teacher)
            spread = f"{min(found):.3f} – {max(found):.3f}"
            print(f"| `{mode}` | {hours:g} | {np.mean(found):.3f} | {share_kept:.0f} % | {spread} |", flush=True)
            figures[f"{mode} {hours:g}h"] = found
    (args.work / "students.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
