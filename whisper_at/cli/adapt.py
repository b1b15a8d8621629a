"""``whisper-at adapt``: fit, evaluate, predict, compare and count adaptations of frozen audio encoders."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..adapt.classifier import AudioClassifier
from ..adapt.compare import compare, markdown, read_comparison
from ..adapt.config import build, read_config, sized_backbone
from ..adapt.experiment import SHARES, run, summary, write_json
from ..checkpoints.files import to_jsonable
from ..data.datasets import read_public_dataset
from ..train.plots import draw_confusion, save_figure

EXAMPLES = """\
examples:
  whisper-at adapt fit --set dataset=files --set root=sounds/ --set protocol=random_folds
                              a head on the embedded Whisper, for a folder with a folder for each class
  whisper-at adapt fit --config recipes/petl_ast/lora.toml --config recipes/petl_ast/data/esc50.toml --set root=ESC-50
  whisper-at adapt count --config recipes/petl_ast/lora.toml --set classes=31 --set frames=400
  whisper-at adapt predict --model adapted/splits-seed0/classifier.safetensors one.wav two.mp3
  whisper-at adapt compare --config recipes/adapt/compare_nano.toml

A run that was stopped goes on where it was when the same command is given again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand and return 0; wrong arguments exit with status 2, other errors are raised."""
    args = build_parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    return command(args)


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``whisper-at adapt``."""
    parser = argparse.ArgumentParser(
        prog="whisper-at adapt",
        description="Adapt a frozen audio encoder to classes of your own: heads, LoRA, adapters, prompts …",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="fit|evaluate|predict|compare|count", required=True)

    def verb(name: str, command: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help, description=help)
        added.set_defaults(command=command)
        return added

    for name, command, help in (
        ("fit", fit_command, "fit and test every division and seed of a configuration"),
        ("count", count_command, "print how many parameters a configuration trains; needs no weights and no data"),
        ("compare", compare_command, "run a table of methods, datasets and seeds"),
    ):
        added = verb(name, command, help)
        if name == "compare":
            added.add_argument("--config", metavar="FILE.toml", required=True, help="what to compare on what")
        else:
            _add_config(added)
        _add_set(added)
        if name != "count":
            added.add_argument("--quiet", action="store_true", help="without progress bars")

    added = verb("evaluate", evaluate_command, "score a saved classifier on labelled recordings")
    _add_model(added)
    _add_config(added)
    added.add_argument("--split", choices=["train", "valid", "test"], help="only this part of the data")
    added.add_argument("--out", metavar="FOLDER", help="write scores.json and confusion.png there")
    _add_set(added)

    added = verb("predict", predict_command, "print the class of recordings as CSV")
    _add_model(added)
    added.add_argument("--all", action="store_true", help="the probability of every class, not the best one's")
    added.add_argument("files", nargs="+", metavar="AUDIO", help="recordings")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="FILE", required=True, help="classifier.safetensors of a fit")
    parser.add_argument("--backbone", metavar="NAME", help="the same backbone by another name, or in another place")
    parser.add_argument("--device", help="where to compute; CUDA if there is any, else the CPU")


def _add_config(parser: argparse.ArgumentParser) -> None:
    help = "what to do; of several, later ones stand above earlier ones: a method's file, then its data's"
    parser.add_argument("--config", metavar="FILE.toml", action="append", help=help)


def _add_set(parser: argparse.ArgumentParser) -> None:
    help = "change the configuration; recipe.lr=1e-3 reaches into a table. May be given several times"
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=help)


def fit_command(args: argparse.Namespace) -> int:
    """``fit``: scores of every run as lines, and their mean and spread."""
    config = read_config(args.config, args.set)
    rows = run(config, progress=not args.quiet)
    for row in rows:
        scores = "  ".join(f"{name} {100 * row[name]:.1f}" for name in summary([row]) if name in SHARES)
        print(f"{row['division']}, seed {row['seed']}: {scores}  (epoch {row['epoch']})")
    for name, value in summary(rows).items():
        factor, unit = (100, " %") if name in SHARES else (1, "")
        print(f"{name}: {factor * value['mean']:.2f} ± {factor * value['std']:.2f}{unit}")
    print(f"Written to {config.out}")
    return 0


def count_command(args: argparse.Namespace) -> int:
    """``count``: one JSON object."""
    config = read_config(args.config, args.set)
    if (count := config.classes) is None:
        raise ValueError("how many classes? --set classes=N")
    if not hasattr(sized_backbone(config.backbone).front, "frames"):
        config = replace(config, frames=None)  # they change AST's count alone, and nothing is heard here
    model = build(config, [str(i) for i in range(count)], count_only=True)
    print(json.dumps(model.count()))
    return 0


def compare_command(args: argparse.Namespace) -> int:
    """``compare``: the table as Markdown."""
    cells = read_comparison(args.config, args.set)
    out = Path(cells[0].config.out).parents[2]
    rows = compare(cells, out, progress=not args.quiet)
    print("\n".join(markdown(rows)))
    print(f"Written to {out}: table.csv, table.md, table.png")
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    """``evaluate``: scores as one JSON object."""
    config = read_config(args.config, args.set)
    if not config.dataset or not config.root:
        raise ValueError("which recordings? --set dataset=NAME --set root=FOLDER")
    dataset = read_public_dataset(config.dataset, config.root, **config.reader)
    if args.split:
        dataset = dataset.split(args.split)
        if not len(dataset):
            raise ValueError(f"these data have no part {args.split!r}")
    model = AudioClassifier.load(args.model, args.backbone, args.device or config.device)
    evaluation = model.evaluate(dataset, config.recipe.batch_size, config.cache, progress=True)
    if args.out:
        out = Path(args.out)
        write_json(out / "scores.json", evaluation.scores | {"clips": len(dataset)})
        if not dataset.multi_label:
            save_figure(draw_confusion(evaluation.confusion, model.classes), out / "confusion.png")
    print(json.dumps(to_jsonable(evaluation.scores)))
    return 0


def predict_command(args: argparse.Namespace) -> int:
    """``predict``: a line for each file."""
    model = AudioClassifier.load(args.model, args.backbone, args.device)
    found = model.predict(args.files)
    writer = csv.writer(sys.stdout)
    writer.writerow(["file", *(model.classes if args.all else ("label", "probability"))])
    for name, row in zip(args.files, found):
        best = int(row.argmax())
        values = [f"{p:.4f}" for p in row] if args.all else [model.classes[best], f"{row[best]:.4f}"]
        writer.writerow([name, *values])
    return 0
