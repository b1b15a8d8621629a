"""Bring a file from one of several addresses: resumed, verified, and named only when it is whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

MANUAL = "pretrained_models/README.md"
TIMEOUT = 60.0  # seconds a server may stay silent
CHUNK = 1 << 20  # bytes


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(
    urls: str | Iterable[str],
    path: str | os.PathLike[str],
    sha256: str | None = None,
    progress: bool = True,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Bring a file to `path` from the first of `urls` that has it, and return `path`.

    The bytes go to `<path>.part`, which a later call continues where the server allows it. Only a file that
    is whole, has the `sha256` and passes `check` (which raises RuntimeError) takes the final name. Processes
    that want the same file at once wait for one another.

    Raises
    ------
    RuntimeError
        if no URL gave the file; it names each with its reason, `path`, and how to do without a connection
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    failures = []
    before = _stamp(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError(f"{path} exists and is not a regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_name(f"{path.name}.lock")):
            if _stamp(path) not in (None, before):
                return path  # another process has just brought it
            for url in [urls] if isinstance(urls, str) else urls:
                try:
                    fault = _fetch_whole(url, part, path, sha256, progress, check)
                # ValueError is what urllib says to a URL it cannot read
                except (OSError, http.client.HTTPException, ValueError) as error:
                    fault = str(error) or type(error).__name__
                if fault is None:
                    return path
                failures.append(f"{url}: {fault}")
    except OSError as error:
        failures.append(str(error))
    raise RuntimeError(
        "\n  ".join([f"{path} could not be downloaded:", *failures])
        + f"\nWithout a connection, put the file at {path} yourself (see {MANUAL})."
    )


def _fetch_whole(
    url: str, part: Path, path: Path, sha256: str | None, progress: bool, check: Callable[[Path], None] | None
) -> str | None:
    """Bring `url` to `path` through `part`; return None, or what is wrong with the bytes that came."""
    # Bytes without a published hash may only be continued from where they began: mirrors may differ.
    origin = part.with_name(f"{part.name}.url")
    if sha256 is None:
        if part.exists() and not (origin.exists() and origin.read_text("utf-8") == url):
            part.unlink()
        origin.write_text(url, "utf-8")
    try:
        while True:
            continued = _fetch(url, part, progress)
            fault = fault_of(part, sha256, check)
            if fault is None:
                os.replace(part, path)
                return None
            part.unlink()
            if not continued:
                return fault
            # The old beginning may have been of another file: once more, from the start.
    finally:
        if not part.exists():
            origin.unlink(missing_ok=True)


def _fetch(url: str, part: Path, progress: bool) -> bool:
    """Bring `url` to `part`, continuing what is there if the server can; return whether it was continued."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "whisper-at", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        source = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # There is nothing after what we have: it is whole already, or of another file.
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.unlink()
        return _fetch(url, part, progress)
    with source:
        if source.headers.get_content_type() == "text/html":
            raise OSError("the server sent a web page instead of the file")
        continued = source.status == 206
        if continued and not source.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            raise OSError("the server sent another part than the one asked for")
        have = have if continued else 0
        length = source.headers.get("Content-Length") or ""
        total = have + int(length) if length.isdecimal() else None
        unit = {"unit": "iB", "unit_scale": True, "unit_divisor": 1024}
        bar = tqdm(total=total, initial=have, disable=not progress, desc=part.stem, **unit)
        with open(part, "ab" if continued else "wb") as file, bar:
            while chunk := source.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"the connection ended after {size} of {total} bytes")
    return continued


def fault_of(path: Path, sha256: str | None, check: Callable[[Path], None] | None) -> str | None:
    """Return what is wrong with the bytes at `path`, or None."""
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        return f"its SHA-256 is {found}, not {sha256}"
    try:
        if check is not None:
            check(path)
    except RuntimeError as error:
        return str(error)
    return None


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        stat = path.stat()
        return stat.st_ino, stat.st_mtime_ns
    return None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep other processes and threads out; does nothing where the (file) system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    while True:
        with open(path, "ab") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            # If whoever held the lock has removed its file meanwhile, ours keeps nobody out.
            if os.fstat(file.fileno()).st_ino != (_stamp(path) or [None])[0]:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
