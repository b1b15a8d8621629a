"""Unpacking of OpenClonk's sounds: ``python -m recipes.open_head.openclonk Sound.ocg FOLDER``.

A group file is a gzip stream with another signature. It holds a header of 204 bytes (scrambled), an entry of 316 bytes
for each member, and the members, some of which are groups again.
"""

from __future__ import annotations

import argparse
import struct
import zlib
from pathlib import Path

HEADER, ENTRY = 204, 316
SIGNATURE = b"RedWolf Design GrpFolder"


def _unscramble(header: bytes) -> bytes:
    """Swap every first and third byte, and invert bits."""
    out = bytearray(header)
    for i in range(0, len(out) - 2, 3):
        out[i], out[i + 2] = out[i + 2], out[i]
    return bytes(byte ^ 237 for byte in out)


def unpack(group: bytes, folder: Path) -> int:
    """Write the members of a decompressed group into a folder; return the number of files.

    Raises
    ------
    ValueError
        If it is no group, or a member would lie outside of the folder.
    """
    header = _unscramble(group[:HEADER])
    if not header.startswith(SIGNATURE):
        raise ValueError("this is not a group file of OpenClonk")
    (entries,) = struct.unpack("<i", header[36:40])
    first, files = HEADER + ENTRY * entries, 0
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(entries):
        entry = group[HEADER + ENTRY * i :][:ENTRY]
        name = entry[:260].split(b"\0")[0].decode("latin-1")
        if Path(name).name != name:
            raise ValueError(f"the group has a member called {name!r}")
        _, is_group, size, _, offset = struct.unpack("<5i", entry[260:280])
        member = group[first + offset : first + offset + size]
        if is_group:
            files += unpack(member, folder / name)
        else:
            (folder / name).write_bytes(member)
            files += 1
    return files


def main() -> None:
    """Unpack one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    group = zlib.decompressobj(31).decompress(b"\x1f\x8b" + args.file.read_bytes()[2:])
    print(f"{unpack(group, args.folder)} files in {args.folder}")


if __name__ == "__main__":
    main()
