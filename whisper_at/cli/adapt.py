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
from ..adapt.compare import markdown_table, read_comparison, run_comparison
from ..adapt.config import parameter_counts, read_config
from ..adapt.experiment import PERCENT_SCORES, evaluate_file, run_experiment, summarize
from ..checkpoints.files import to_jsonable

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
    """Return the parser of ``whisper-at adapt``."""
    parser = argparse.ArgumentParser(
        prog="whisper-at adapt",
        description="Adapt a frozen audio encoder to classes of your own: heads, LoRA, adapters, prompts …",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="fit|evaluate|predict|compare|count", required=True)

    def add_command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(command=run)
        return command

    fit = add_command("fit", fit_command, "fit and test every division and seed of a configuration")
    _add_config(fit)
    _add_set(fit)
    _add_quiet(fit)

    evaluate = add_command("evaluate", evaluate_command, "score a saved classifier on labelled recordings")
    _add_model(evaluate)
    _add_config(evaluate)
    evaluate.add_argument("--split", choices=["train", "valid", "test"], help="only this part of the data")
    evaluate.add_argument("--out", metavar="FOLDER", help="write scores.json and confusion.png there")
    _add_set(evaluate)

    predict = add_command("predict", predict_command, "print the class of recordings as CSV")
    _add_model(predict)
    predict.add_argument("--all", action="store_true", help="the probability of every class, not the best one's")
    predict.add_argument("files", nargs="+", metavar="AUDIO", help="recordings")

    compare = add_command("compare", compare_command, "run a table of methods, datasets and seeds")
    compare.add_argument("--config", metavar="FILE.toml", required=True, help="what to compare on what")
    _add_set(compare)
    _add_quiet(compare)

    help = "print how many parameters a configuration trains; needs no weights and no data"
    count = add_command("count", count_command, help)
    _add_config(count)
    _add_set(count)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="FILE", required=True, help="classifier.safetensors of a fit")
    parser.add_argument("--backbone", metavar="NAME", help="the same backbone by another name, or in another place")
    parser.add_argument("--device", help="where to compute; CUDA if there is any, else the CPU")


def _add_config(parser: argparse.ArgumentParser) -> None:
    help = "what to do; of several, later ones override earlier ones: a method's file, then its data's"
    parser.add_argument("--config", metavar="FILE.toml", action="append", help=help)


def _add_set(parser: argparse.ArgumentParser) -> None:
    help = "change the configuration; recipe.lr=1e-3 reaches into a table. May be given several times"
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=help)


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="without progress bars")


def fit_command(args: argparse.Namespace) -> int:
    """Run ``fit``: print the scores of every run, and their mean and spread."""
    config = read_config(args.config, args.set)
    rows = run_experiment(config, progress=not args.quiet)
    for row in rows:
        scores = "  ".join(f"{name} {100 * row[name]:.1f}" for name in PERCENT_SCORES if name in row)
        end = "" if row["stopped"] else ", not stopped by validation"
        print(f"{row['division']}, seed {row['seed']}: {scores}  (epoch {row['epoch']} of {row['epochs']}{end})")
    for name, value in summarize(rows).items():
        factor, unit = (100, " %") if name in PERCENT_SCORES else (1, "")
        print(f"{name}: {factor * value['mean']:.2f} ± {factor * value['std']:.2f}{unit}")
    unfinished = sum(not row["stopped"] for row in rows)
    if unfinished and config.recipe.patience is not None:
        print(
            f"{unfinished} of {len(rows)} runs were still improving at the last epoch ({config.recipe.epochs}): these "
            "scores are a lower bound; raise recipe.epochs",
            file=sys.stderr,
        )
    print(f"Written to {config.out}")
    return 0


def count_command(args: argparse.Namespace) -> int:
    """Run ``count``: print one JSON object."""
    print(json.dumps(parameter_counts(read_config(args.config, args.set))))
    return 0


def compare_command(args: argparse.Namespace) -> int:
    """Run ``compare``: print the table as Markdown."""
    comparison = read_comparison(args.config, args.set)
    rows = run_comparison(comparison, progress=not args.quiet)
    print("\n".join(markdown_table(rows)))
    print(f"Written to {comparison.out}: table.csv, table.md, table.png")
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    """Run ``evaluate``: print the scores as one JSON object."""
    config = read_config(args.config, args.set)
    config = replace(config, device=args.device or config.device)
    out = Path(args.out) if args.out else None
    evaluation = evaluate_file(args.model, config, args.split, args.backbone, out, progress=True)
    print(json.dumps(to_jsonable(evaluation.scores)))
    return 0


def predict_command(args: argparse.Namespace) -> int:
    """Run ``predict``: print a line for each file."""
    model = AudioClassifier.load(args.model, args.backbone, args.device)
    probabilities = model.predict(args.files)
    writer = csv.writer(sys.stdout)
    writer.writerow(["file", *(model.classes if args.all else ("label", "probability"))])
    for name, row in zip(args.files, probabilities):
        best = int(row.argmax())
        values = [f"{p:.4f}" for p in row] if args.all else [model.classes[best], f"{row[best]:.4f}"]
        writer.writerow([name, *values])
    return 0


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
