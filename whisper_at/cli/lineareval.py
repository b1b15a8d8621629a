"""``whisper-at lineareval``: measure what the layers of networks know, by linear evaluation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..embed.config import read_evaluation_config
from ..embed.experiment import run_experiment
from ..embed.plots import to_markdown


def main(argv: Sequence[str]) -> int:
    """Evaluate the networks of a file on its tasks, and print the table of scores."""
    parser = argparse.ArgumentParser(prog="whisper-at lineareval", description=__doc__)
    parser.add_argument("--config", required=True, help="a .toml, see recipes/fusion")
    parser.add_argument("--out", help="folder for what is written, instead of the file's")
    parser.add_argument("--task", nargs="+", help="these tasks only")
    parser.add_argument("--network", nargs="+", help="these networks only")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the file's")
    args = parser.parse_args(argv)
    try:
        config = read_evaluation_config(args.config)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    task_names, network_names = [task.name for task in config.task], [network.name for network in config.network]
    for kind, chosen, known in (("task", args.task, task_names), ("network", args.network, network_names)):
        if unknown := sorted(set(chosen or ()) - set(known)):
            parser.error(f"{args.config} has no {kind} {unknown[0]!r}; it has {', '.join(known)}")
    print(to_markdown(run_experiment(config, args.out, args.task, args.network, args.seeds)), end="")
    return 0


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
