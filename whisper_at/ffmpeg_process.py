"""ffmpeg as a process of its own: where it is, what it makes of a file, and what it says of one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import nullcontext
from typing import IO, Any

import ffmpeg

from .limits import DecodeLimits
from .tracks import MAX_GAP, Container, parse_container, parse_first_timestamp

NO_VIDEO = {"vn": None, "sn": None, "dn": None}  # nor subtitles and data, for formats of all of them
MAX_MESSAGES = 1 << 22  # bytes of ffmpeg's messages that are searched for what it says of a file


def ffmpeg_binary() -> str:
    """Return the path of ffmpeg: the one on ``PATH``, else the one inside the ``imageio-ffmpeg`` wheel.

    Raises
    ------
    RuntimeError
        If neither exists.
    """
    found = shutil.which("ffmpeg")
    if found:
        return found
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg_command(
    path: str, loglevel: str, limits: DecodeLimits | None = None, *, copyts: bool = False, **output: Any
) -> list[str]:
    """Return the command that makes something of a file with these options of its output."""
    # "file:" makes ffmpeg take the rest literally, whatever it looks like; the whitelist stops a playlist in the file
    # from opening a network connection
    formats = {} if limits is None else {"format_whitelist": ",".join(limits.formats)}
    stream = ffmpeg.input("file:", threads=0, protocol_whitelist="file,pipe", **formats)
    stream = stream.output("pipe:", **output)
    options = ["-nostdin", "-hide_banner", "-nostats", "-loglevel", loglevel, "-dts_delta_threshold", str(MAX_GAP)]
    if copyts:
        options.append("-copyts")
    command: list[str] = ffmpeg.compile(stream, cmd=[ffmpeg_binary(), *options])
    return [f"file:{path}" if part == "file:" else part for part in command]  # names that are no UTF-8 do not compile


def run_ffmpeg(
    path: str, name: str, size: int, limits: DecodeLimits | None = None, **output: Any
) -> Generator[bytes, None, None]:
    """Yield what ffmpeg makes of a file with these options of its output, in chunks of so many bytes."""
    command = ffmpeg_command(path, "error", limits, **output)
    # errors go to a file, not a pipe: a damaged input can produce more of them than a pipe holds
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        try:
            with nullcontext() if limits is None else limits.enforce(process):
                while chunk := process.stdout.read(size):
                    yield chunk
                status = process.wait()
        except TimeoutError as error:
            raise load_error(name, str(error)) from None
        finally:
            stop(process)
        if status != 0:
            reason = last_error(errors).removeprefix(f"file:{path}: ")  # which may be a temporary one
            raise load_error(name, reason or f"ffmpeg ended with status {status}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process whose output nobody wants any more, if it has not ended."""
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        process.kill()
        process.wait()


def probe(path: str, stream: str | None = None, limits: DecodeLimits | None = None) -> tuple[Container, float | None]:
    """Return what ffmpeg says of a file, and the timestamp of the first sample of a stream, if it has any.

    Without `stream`, it is the one that ffmpeg chooses. What ffmpeg cannot decode is a container without tracks: to
    say why is left to decoding.
    """
    chosen = {} if stream is None else {"map": stream}
    with tempfile.TemporaryFile() as messages:
        output = {"f": "framecrc", "acodec": "pcm_s16le", "frames:a": 1, **NO_VIDEO, **chosen}
        command = ffmpeg_command(path, "info", limits, copyts=True, **output)
        try:
            with (
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as process,
                nullcontext() if limits is None else limits.enforce(process),
            ):
                printed = process.communicate()[0]
        except TimeoutError as error:
            raise load_error(path, str(error)) from None
        messages.seek(0)
        container = parse_container(messages.read(MAX_MESSAGES).decode(errors="replace"))
    return container, parse_first_timestamp(printed.decode(errors="replace"))


def last_error(errors: IO[bytes]) -> str:
    """Return the last line that ffmpeg wrote to a file, without the address of the part that wrote it."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 4096))
    text = errors.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = re.sub(r"^(\[[^\]]*\]\s*)+", "", lines[-1]) if lines else ""
    # of a picture, a silent film or plain text ("ANSI art" to ffmpeg), the last line alone says little
    return f"it holds no audio ({last})" if "does not contain any stream" in text else last


def load_error(name: str, reason: str) -> RuntimeError:
    """Return what is raised where a recording cannot be decoded."""
    return RuntimeError(f"Failed to load audio: {name}: {reason}")
