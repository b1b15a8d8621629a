"""Train nano.en and its head: `python -m recipes.nano --fsdd DIR --esc10 DIR --out DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .data import make_pools
from .head import read_settings, train_head
from .train import train


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.nano", description="Train nano.en: data, recogniser, head. An interrupted run resumes."
    )
    parser.add_argument(
        "--fsdd",
        type=Path,
        required=True,
        help="folder of the Free Spoken Digit Dataset's recordings (<digit>_<speaker>_<take>.wav)",
    )
    parser.add_argument(
        "--esc10",
        type=Path,
        required=True,
        help="folder of ESC-10 with one folder per class (<fold>-<source>-<take>.ogg)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument("--steps", type=int, default=8000, help="training steps of the recogniser (8000)")
    parser.add_argument("--head-scenes", type=int, help="training scenes of the head, instead of those in head.toml")
    parser.add_argument("--head-steps", type=int, help="training steps of the head, instead of those in head.toml")
    parser.add_argument("--threads", type=int, default=2, help="threads of the training process (2)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings = read_settings(scenes=args.head_scenes, steps=args.head_steps)
    torch.set_num_threads(args.threads)
    pools = make_pools(args.fsdd, args.esc10, args.out / "pools.pkl", args.seed)
    checkpoint = train(pools, args.out, args.steps, args.seed)
    head = args.out / "nano.en.head.safetensors"
    if not head.exists():
        train_head(pools, checkpoint, head, settings, args.seed)
    print(f"{checkpoint} and {head}; evaluate them with: python -m recipes.nano.evaluate --out {args.out}")


if __name__ == "__main__":
    main()
