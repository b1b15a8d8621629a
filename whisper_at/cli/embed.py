"""``whisper-at embed``: embeddings of files and folders to a table."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..embed.embedding import LEVELS, Failure, embed, recordings
from ..embed.frames import POOLINGS
from ..embed.fusion import PRESETS, load_fusion
from ..embed.search import describe
from ..embed.store import EmbeddingWriter


def main(argv: Sequence[str]) -> int:
    """Run it; 0 if every file was embedded, 1 if one was not, 2 for wrong arguments."""
    parser = _parser()
    args = parser.parse_args(argv)
    out = Path(args.output)
    if out.suffix.lower() not in (".parquet", ".npz"):
        parser.error(f"--output must end in .parquet or .npz, not {out.name!r}")
    if out.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        parser.error("Parquet needs pyarrow: pip install pyarrow, or name an --output that ends in .npz")
    if not out.parent.is_dir():
        parser.error(f"no such folder: {out.parent}")
    layers = _layers(args.layers, parser)
    paths = list(recordings(args.paths))
    if not paths:
        parser.error(f"no recordings in {', '.join(args.paths)}")
    model = load_fusion(args.backbone, layers, args.weights, args.pooling, args.device)
    weights = args.weights if args.weights in (None, "random") else str(Path(args.weights).resolve())
    failed = 0
    with EmbeddingWriter(out, model.width, describe(model, weights, args.level)) as writer:
        last = None
        with tqdm(total=len(paths), unit="file", disable=None) as bar:
            for row in embed(paths, model, args.level, args.batch, args.workers):
                if row.path != last:
                    last = row.path
                    bar.update()
                if isinstance(row, Failure):
                    failed += 1
                    bar.write(f"whisper-at embed: {row.reason}", file=sys.stderr)
                else:
                    writer.write(row)
        if not writer.rows:
            raise RuntimeError("none of the files could be embedded; nothing was written")
    print(f"{out}: {writer.rows} rows of {model.width} from {len(paths) - failed} of {len(paths)} files")
    return 1 if failed else 0


def _layers(text: str | None, parser: argparse.ArgumentParser) -> list[int] | str | None:
    if text is None or text == "all":
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        parser.error(f"--layers must be numbers with commas between, or all, not {text!r}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="whisper-at embed", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="FILE|FOLDER")
    parser.add_argument("-o", "--output", required=True, help="table to write, .parquet or .npz")
    titles = ", ".join(preset.title for preset in PRESETS.values())
    parser.add_argument("--backbone", default="nano.en", help=f"vggish, cnn14, ast, a Whisper …, or {titles}")
    parser.add_argument("--layers", help="layers to fuse, counted from 0: 9,14; or all")
    parser.add_argument("--weights", help="file of the backbone's weights, or random")
    parser.add_argument("--level", choices=LEVELS, default="clip")
    parser.add_argument("--pooling", choices=POOLINGS, help="from frames to a clip; the backbone's own by default")
    parser.add_argument("--batch", type=int, default=32, help="files that pass together")
    parser.add_argument("--workers", type=int, help="threads that decode audio")
    parser.add_argument("--device", help="cpu, cuda …")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
