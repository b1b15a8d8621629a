"""ffmpeg as a process of its own: where it is, and what it makes of a file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any

import ffmpeg

from .ffmpeg_messages import LOGLEVEL, FfmpegMessages
from .limits import DecodeLimits
from .tracks import MAX_GAP, Container, parse_container, parse_first_timestamp

NO_VIDEO = {"vn": None, "sn": None, "dn": None}  # nor subtitles and data, for formats of all of them


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


def ffmpeg_command(path: str, limits: DecodeLimits | None = None, *, copyts: bool = False, **output: Any) -> list[str]:
    """Return the command that makes something of a file with these options of its output."""
    # "file:" makes ffmpeg take the rest literally, whatever it looks like; the whitelist stops a playlist in the file
    # from opening a network connection
    formats = {} if limits is None else {"format_whitelist": ",".join(limits.formats)}
    stream = ffmpeg.input("file:", threads=0, protocol_whitelist="file,pipe", **formats)
    stream = stream.output("pipe:", **output)
    options = ["-nostdin", "-hide_banner", "-nostats", "-loglevel", LOGLEVEL, "-dts_delta_threshold", str(MAX_GAP)]
    if copyts:
        options.append("-copyts")
    command: list[str] = ffmpeg.compile(stream, cmd=[ffmpeg_binary(), *options])
    return [f"file:{path}" if part == "file:" else part for part in command]  # names that are no UTF-8 do not compile


def run_ffmpeg(
    path: str,
    name: str,
    size: int,
    limits: DecodeLimits | None = None,
    messages: FfmpegMessages | None = None,
    **output: Any,
) -> Generator[bytes, None, None]:
    """Yield what ffmpeg makes of a file with these options of its output, in chunks of so many bytes.

    By the first chunk, `messages` tells of the file.
    """
    messages = FfmpegMessages() if messages is None else messages
    status = yield from _run(ffmpeg_command(path, limits, **output), name, size, limits, messages)
    if status != 0:
        reason = last_error(messages.errors).removeprefix(f"file:{path}: ")  # which may be a temporary one
        raise load_error(name, reason or f"ffmpeg ended with status {status}")


def _run(
    command: list[str], name: str, size: int, limits: DecodeLimits | None, messages: FfmpegMessages
) -> Generator[bytes, None, int]:
    """Yield the output of a command within limits, in chunks of so many bytes; return its status."""
    with messages.collect() as stderr:
        environment = {**os.environ, "AV_LOG_FORCE_NOCOLOR": "1"}  # or messages may be coloured, and are not understood
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment)
        assert process.stdout is not None
        try:
            with nullcontext() if limits is None else limits.enforce(process):
                while chunk := process.stdout.read(size):
                    yield chunk
                return process.wait()
        except TimeoutError as error:
            raise load_error(name, str(error)) from None
        finally:
            stop(process)


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
    output = {"f": "framecrc", "acodec": "pcm_s16le", "frames:a": 1, **NO_VIDEO, **chosen}
    messages = FfmpegMessages()
    printed = b"".join(_run(ffmpeg_command(path, limits, copyts=True, **output), path, 1 << 16, limits, messages))
    return parse_container(messages.description), parse_first_timestamp(printed.decode(errors="replace"))


def last_error(errors: str) -> str:
    """Return the last line of ffmpeg's errors, without the address of the part that wrote it."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = re.sub(r"^(\[[^\]]*\]\s*)+", "", lines[-1]) if lines else ""
    # of a picture, a silent film or plain text ("ANSI art" to ffmpeg), the last line alone says little
    return f"it holds no audio ({last})" if "does not contain any stream" in errors else last


def load_error(name: str, reason: str) -> RuntimeError:
    """Return what is raised where a recording cannot be decoded."""
    return RuntimeError(f"Failed to load audio: {name}: {reason}")
