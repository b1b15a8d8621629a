r"""ESC-50 over its folds, on several Whispers, beside YAMNet untrained and published figures: a table in Markdown.

    python -m recipes.heads.esc50 --data ESC-50/meta/esc50.csv --root ESC-50/audio --out runs/esc50 --yamnet YAMNET

Four heads are trained by `recipes.heads.crossval`: linear on the last layer, linear on a weighted average of the
layers, TL-TR, and the default of ``whisper-at train``. They are trained under two protocols: ``10``, clips of 5 s
alone, as in the published experiments; and ``30+``, the default, scored on clips in windows of 30 s and on clips joined
to recordings. YAMNET is a folder of ``yamnet.tflite`` and ``class_map.csv`` (LiteRT runs them: ``pip install
ai-edge-litert``). YAMNet has heard AudioSet and is trained no further: of the classes of ESC-50 that have a name in
AudioSet, its guess is the one with the highest score.

A run that was stopped is resumed by the same command; ``--modes``, ``--protocols`` and ``--seeds`` make it shorter.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from recipes.heads import crossval
from whisper_at.data.clips import Dataset
from whisper_at.data.readers import read_dataset
from whisper_at.features.encode import load_clip
from whisper_at.train.metrics import mean_interval

MODELS = ("tiny.en", "base")
MODES = ("last_mlp", "wa_mlp", "tl_tr_1_8", "stats_mlp")
PROTOCOLS = {"10": "clips of 5 s alone", "30+": "windows of 30 s"}
PUBLISHED = (
    ("weighted layers, linear, Whisper large", 87.0, "the authors: TL-TR gains 4.7 points over it"),
    ("TL-TR-512, Whisper large", 91.7, "the poster of Whisper-AT"),
    ("AST", 88.8, "the same poster"),
)
"""Published accuracies in per cent over the five folds: what, how many, and where it is said."""

YAMNET_PATCH, YAMNET_HOP = 15600, 7680
"""Samples at 16 kHz that YAMNet looks at, and from one look to the next."""
AUDIOSET_NAMES = {
    "airplane": "Fixed-wing aircraft, airplane",
    "breathing": "Breathing",
    "brushing_teeth": "Toothbrush",
    "car_horn": "Vehicle horn, car horn, honking",
    "cat": "Cat|Meow",
    "chainsaw": "Chainsaw",
    "chirping_birds": "Bird|Bird vocalization, bird call, bird song|Chirp, tweet",
    "church_bells": "Bell|Church bell",
    "clapping": "Clapping",
    "clock_alarm": "Alarm|Alarm clock",
    "clock_tick": "Clock|Tick-tock",
    "coughing": "Cough",
    "cow": "Cattle, bovinae|Moo",
    "crackling_fire": "Fire|Crackle",
    "crickets": "Insect|Cricket",
    "crow": "Crow|Caw",
    "crying_baby": "Baby cry, infant cry|Crying, sobbing",
    "dog": "Dog|Bark",
    "door_wood_creaks": "Door|Creak",
    "door_wood_knock": "Door|Knock",
    "engine": "Engine",
    "fireworks": "Fireworks",
    "footsteps": "Walk, footsteps",
    "frog": "Frog|Croak",
    "glass_breaking": "Glass|Shatter",
    "hand_saw": "Sawing",
    "helicopter": "Helicopter",
    "hen": "Chicken, rooster|Cluck",
    "insects": "Insect",
    "keyboard_typing": "Typing|Computer keyboard",
    "laughing": "Laughter",
    "mouse_click": "Clicking",
    "pig": "Pig|Oink",
    "pouring_water": "Liquid|Pour",
    "rain": "Rain",
    "rooster": "Chicken, rooster|Crowing, cock-a-doodle-doo",
    "sea_waves": "Ocean|Waves, surf",
    "sheep": "Sheep|Bleat",
    "siren": "Siren",
    "sneezing": "Sneeze",
    "snoring": "Snoring",
    "thunderstorm": "Thunderstorm|Thunder",
    "toilet_flush": "Toilet flush",
    "train": "Train",
    "vacuum_cleaner": "Vacuum cleaner",
    "water_drops": "Water|Drip",
    "wind": "Wind",
}
"""Classes of ESC-50 and their names in AudioSet; can_opening, drinking_sipping and washing_machine have none."""


def yamnet_scores(dataset: Dataset, folder: Path) -> tuple[list[str], np.ndarray]:
    """Return the names of YAMNet's classes and its scores of clips, mean over time, shape (clips, classes)."""
    from ai_edge_litert.interpreter import Interpreter

    with open(folder / "class_map.csv", encoding="utf-8", newline="") as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    interpreter = Interpreter(str(folder / "yamnet.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    given, found = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    scores = np.zeros((len(dataset), len(names)), np.float32)
    for i, clip in enumerate(tqdm(dataset.clips, desc="YAMNet", unit="clip")):
        audio = load_clip(clip)
        audio = np.pad(audio, (0, max(0, YAMNET_PATCH - len(audio))))
        starts = range(0, len(audio) - YAMNET_PATCH + 1, YAMNET_HOP)
        for start in starts:
            interpreter.set_tensor(given, np.ascontiguousarray(audio[start : start + YAMNET_PATCH]))
            interpreter.invoke()
            scores[i] += interpreter.get_tensor(found)[0] / len(starts)
    return names, scores


def zero_shot_accuracies(dataset: Dataset, names: Sequence[str], scores: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the accuracy of the first guess on each fold, and how many classes there are to guess among.

    A class has the highest score of its names; clips of classes without a name are left out.
    """
    index = {name: i for i, name in enumerate(names)}
    columns = {
        label: [index[name] for name in AUDIOSET_NAMES.get(label, "").split("|") if name in index]
        for label in dataset.classes
    }
    known = [label for label in dataset.classes if columns[label]]
    guesses = np.stack([scores[:, columns[label]].max(axis=1) for label in known], axis=1).argmax(axis=1)
    folds = sorted({clip.fold for clip in dataset.clips})
    right: dict[str, list[bool]] = {fold: [] for fold in folds}
    for clip, guess in zip(dataset.clips, guesses):
        if clip.labels[0] in known:
            right[clip.fold].append(known[guess] == clip.labels[0])
    return np.array([np.mean(right[fold]) for fold in folds]), len(known)


def format_figure(mean: float, half: float) -> str:
    """Return an accuracy and half its interval in per cent."""
    if np.isnan(mean):
        return ""
    return f"{100 * mean:.1f}" + ("" if np.isnan(half) else f" ± {100 * half:.1f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="table of the clips, with their folds")
    parser.add_argument("--root", help="folder of the clips")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="as of whisper-at train")
    help = "as of whisper-at train; with it, a head may also say that it hears none of the classes"
    parser.add_argument("--background", default="none", help=help)
    parser.add_argument("--yamnet", type=Path, help="folder of yamnet.tflite and class_map.csv")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--compute_type", help="precision of features, as of whisper-at train")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    dataset = read_dataset(args.data, root=args.root)
    lines = ["| Whisper | head | trained on | runs | accuracy, alone | accuracy, joined | minutes a run |"]
    lines += ["|---|---|---|--:|--:|--:|--:|"]
    for model in args.models:
        for protocol in args.protocols:
            out = args.out / f"{Path(model).stem if Path(model).exists() else model}-{protocol}"
            command = ["--data", args.data, *(["--root", args.root] if args.root else []), "--model", model]
            command += ["--background", args.background, "--modes", *args.modes, "--encoders", "trained"]
            command += ["--seeds", str(args.seeds)]
            command += ["--compute_type", args.compute_type] if args.compute_type else []
            command += ["--workers", str(args.workers), "--out", str(out)]
            if protocol == "10":
                command += ["--config", str(Path(__file__).with_name("esc50.toml"))]
            crossval.main([*command, *(word for pair in args.set for word in ("--set", pair))])
            rows = crossval.read_rows(out / "crossval.csv")
            alone, joined = (crossval.mean_scores(rows, f"accuracy{s}") for s in ("", crossval.IN_CONTEXT))
            for (_, mode), (mean, half, runs) in alone.items():
                if mode not in args.modes:
                    continue
                seconds = np.mean([float(row["seconds"]) for row in rows if row["mode"] == mode])
                lines.append(
                    f"| {model} | `{mode}` | {PROTOCOLS[protocol]} | {runs} | {format_figure(mean, half)} "
                    f"| {format_figure(*joined['trained', mode][:2])} | {seconds / 60:.1f} |"
                )
    if args.yamnet is not None:
        accuracies, count = zero_shot_accuracies(dataset, *yamnet_scores(dataset, args.yamnet))
        figure = format_figure(*mean_interval(accuracies))
        lines.append(f"| – | YAMNet, untrained, of {count} classes | AudioSet | {len(accuracies)} | {figure} | | |")
    lines += [f"| – | {name}: published | {where} | | {figure:.1f} | | |" for name, figure, where in PUBLISHED]
    (args.out / "esc50.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
