"""Common to tests of archives: recordings to make one of, and what lies in it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from conftest import noise

OPTIONS = {"language": "en", "sample_len": 8, "temperature": 0.0}
"""Of decoding, quickly."""


def write_recordings(folder: Path, n: int, broken: int | None = None) -> Path:
    """Write so many recordings of noise, of which one may be none."""
    for i in range(n):
        soundfile.write(folder / f"{i}.wav", noise(1.0 + i / 4, seed=i) * 3, 16000)
    if broken is not None:
        (folder / f"{broken}.wav").write_bytes(b"no recording")
    return folder


def read(output: Path, table: str = "files") -> pa.Table:
    return pq.read_table(output / table)


def content(output: Path) -> dict[str, bytes]:
    """Return every byte of the tables, by the name of the part."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for table in ("files", "events")
        for path in sorted((output / table).iterdir())
    }
