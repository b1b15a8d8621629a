"""Downloads that resume, are verified, and get their final name only when they are complete."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from .hashing import file_sha256
from .registry import MANUAL

TIMEOUT = 60.0  # seconds a server may stay silent
CHUNK_BYTES = 1 << 20


class DownloadError(RuntimeError):
    """No address gave a file."""


def download(
    urls: str | Iterable[str],
    path: str | os.PathLike[str],
    sha256: str | None = None,
    progress: bool = True,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Download a file from the first of several URLs that has it.

    The bytes go to ``<path>.part``, which a later call continues where the server allows it. Processes that want the
    same file at once wait for one another.

    Parameters
    ----------
    urls : str or iterable of str
        Tried in order.
    path : str or path
        Where the file goes, once it is complete and verified; its folder is made if need be.
    sha256 : str, optional
        What its SHA-256 must be.
    progress : bool
        Show a progress bar.
    check : callable, optional
        Called with the path of the bytes; raises RuntimeError if they are not what is wanted.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    DownloadError
        If no URL gave the file; it names each with its reason, `path`, and how to do without a connection.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    failures = []
    before = _inode_and_mtime(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError(f"{path} exists and is not a regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_name(f"{path.name}.lock")):
            if _inode_and_mtime(path) not in (None, before):
                return path  # another process has just downloaded it
            for url in [urls] if isinstance(urls, str) else urls:
                try:
                    problem = _fetch_verified(url, part, path, sha256, progress, check)
                # ValueError is what urllib raises for a URL it cannot read
                except (OSError, http.client.HTTPException, ValueError) as error:
                    problem = str(error) or type(error).__name__
                if problem is None:
                    return path
                failures.append(f"{url}: {problem}")
    except OSError as error:
        failures.append(str(error))
    raise DownloadError(
        "\n  ".join([f"{path} could not be downloaded:", *failures])
        + f"\nWithout a connection, put the file at {path} yourself (see {MANUAL})."
    )


def _fetch_verified(
    url: str, part: Path, path: Path, sha256: str | None, progress: bool, check: Callable[[Path], None] | None
) -> str | None:
    """Download `url` to `part` and rename it to `path`; return what is wrong with the bytes, or None."""
    # Without a published hash, bytes may be continued only from the URL that they came from: mirrors may differ.
    origin = part.with_name(f"{part.name}.url")
    if sha256 is None:
        if part.exists() and not (origin.exists() and origin.read_text("utf-8") == url):
            part.unlink()
        origin.write_text(url, "utf-8")
    try:
        while True:
            continued = _fetch(url, part, progress)
            problem = verify(part, sha256, check)
            if problem is None:
                os.replace(part, path)
                return None
            part.unlink()
            if not continued:
                return problem
            # The part that was there may have been of another file: try once more, from the start.
    finally:
        if not part.exists():
            origin.unlink(missing_ok=True)


def _fetch(url: str, part: Path, progress: bool) -> bool:
    """Download `url` to `part`, continuing what is there if the server can; return whether it was continued."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "whisper-at", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        source = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # There is nothing after what we have: it is complete already, or of another file.
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
            while chunk := source.read(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"the connection ended after {size} of {total} bytes")
    return continued


def verify(path: Path, sha256: str | None, check: Callable[[Path], None] | None) -> str | None:
    """Return what is wrong with the file at `path`, or None; `check` raises RuntimeError for a bad file."""
    if sha256 is not None and (found := file_sha256(path)) != sha256:
        return f"its SHA-256 is {found}, not {sha256}"
    try:
        if check is not None:
            check(path)
    except RuntimeError as error:
        return str(error)
    return None


def _inode_and_mtime(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is replaced; None where there is no file."""
    with suppress(FileNotFoundError, NotADirectoryError):
        stat = path.stat()
        return stat.st_ino, stat.st_mtime_ns
    return None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep other processes and threads out; do nothing where the system or file system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    while True:
        with open(path, "ab") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            # If the previous holder of the lock has removed its file meanwhile, ours keeps nobody out.
            if os.fstat(file.fileno()).st_ino != (_inode_and_mtime(path) or [None])[0]:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
