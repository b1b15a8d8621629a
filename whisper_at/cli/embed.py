"""``whisper-at embed``: embed files and folders, and write a table."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..embed.embedding import LEVELS, Failure, embed, find_recordings
from ..embed.frames import POOLINGS
from ..embed.fusion import COMPUTE_TYPES, PRESETS, load_fusion
from ..embed.search import embedding_config
from ..embed.store import SUFFIXES, EmbeddingWriter


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0 if every file was embedded, 1 if one was not. Wrong arguments exit with status 2."""
    parser = _build_parser()
    args = parser.parse_args(argv)
    out = Path(args.output)
    if out.suffix.lower() not in SUFFIXES:
        parser.error(f"--output must end in .parquet or .npz, not {out.name!r}")
    if out.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        parser.error("Parquet needs pyarrow: pip install pyarrow, or name an --output that ends in .npz")
    if not out.parent.is_dir():
        parser.error(f"no such folder: {out.parent}")
    layers = _parse_layers(args.layers, parser)
    paths = list(find_recordings(args.paths))
    if not paths:
        parser.error(f"no recordings in {', '.join(args.paths)}")
    model = load_fusion(
        args.backbone,
        layers,
        args.weights,
        args.pooling,
        args.device,
        compute_type=args.compute_type,
    )
    failed, last = 0, None
    with EmbeddingWriter(out, model.width, embedding_config(model, args.weights, args.level)) as writer:
        with tqdm(total=len(paths), unit="file", disable=None) as bar:
            for result in embed(paths, model, args.level, args.batch, args.workers):
                if result.path != last:
                    last = result.path
                    bar.update()
                if isinstance(result, Failure):
                    failed += 1
                    bar.write(f"whisper-at embed: {result.reason}", file=sys.stderr)
                else:
                    writer.write(result)
        if not writer.rows:
            raise RuntimeError("none of the files could be embedded; nothing was written")
    print(f"{out}: {writer.rows} rows of {model.width} from {len(paths) - failed} of {len(paths)} files")
    return 1 if failed else 0


def _parse_layers(text: str | None, parser: argparse.ArgumentParser) -> list[int] | str | None:
    if text is None or text == "all":
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        parser.error(f"--layers must be numbers with commas between, or all, not {text!r}")


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="whisper-at embed", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="FILE|FOLDER")
    parser.add_argument("-o", "--output", required=True, help="table to write, .parquet or .npz")
    titles = ", ".join(preset.title for preset in PRESETS.values())
    parser.add_argument("--backbone", default="nano.en", help=f"vggish, cnn14, ast, a Whisper …, or {titles}")
    parser.add_argument("--layers", help="layers to fuse, counted from 0: 9,14; or all")
    parser.add_argument("--weights", help="file of the backbone's weights, or random")
    parser.add_argument("--level", choices=LEVELS, default="clip")
    parser.add_argument("--pooling", choices=POOLINGS, help="from frames to a clip; the backbone's own by default")
    parser.add_argument("--batch", type=int, default=32, help="files in a batch")
    parser.add_argument("--workers", type=int, help="threads that decode audio")
    parser.add_argument("--device", help="cpu, cuda …")
    help = "precision of the network's products; searches in the table are computed in it, too"
    parser.add_argument("--compute_type", choices=COMPUTE_TYPES, default="float32", help=help)
    return parser


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
