"""Where the sound of a stream comes from: a microphone, or anything that ffmpeg decodes while it comes in."""

from __future__ import annotations

import queue
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

import numpy as np
from whisper.audio import SAMPLE_RATE

from ..ffmpeg_messages import FfmpegMessages
from ..ffmpeg_process import ffmpeg_binary, last_error, load_error, stop

PIECE_SECONDS = 0.1


def microphone(device: int | str | None = None) -> Iterator[np.ndarray]:
    """Yield what a microphone hears, as it comes in: int16 ``(samples,)`` at 16 kHz, all that has come since the last.

    Parameters
    ----------
    device : int or str, optional
        Its number or part of its name, as ``python -m sounddevice`` lists them; the system's by default.

    Raises
    ------
    ImportError
        If the package sounddevice is not installed.
    RuntimeError
        If there is no such microphone, or it cannot be opened.
    """
    try:
        import sounddevice
    except OSError as error:  # of the library beneath it, which wheels for Linux do not bring
        raise RuntimeError(f"{error}; install PortAudio: apt install libportaudio2") from None

    pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def put(data: Any, frames: int, time: Any, status: Any) -> None:
        pieces.put(bytes(data))

    size = round(PIECE_SECONDS * SAMPLE_RATE)
    options = {"samplerate": SAMPLE_RATE, "channels": 1, "dtype": "int16", "blocksize": size, "device": device}
    try:
        stream = sounddevice.RawInputStream(**options, callback=put)
    except (ValueError, sounddevice.PortAudioError) as error:
        raise RuntimeError(
            f"no sound from the microphone: {error}; `python -m sounddevice` lists what there is, --microphone chooses"
        ) from None
    with stream:
        while True:
            heard = pieces.get()
            with suppress(queue.Empty):
                while True:
                    heard += pieces.get_nowait()
            yield np.frombuffer(heard, np.int16)


def decoded_stream(source: str | IO[bytes], label: str) -> Iterator[np.ndarray]:
    """Yield a file, or what a pipe carries, as ffmpeg decodes it: int16 ``(samples,)`` at 16 kHz, one channel.

    Nothing waits for the end of a pipe, as `whisper_at.load_audio` does: what has come in is yielded.

    Parameters
    ----------
    source : str or binary file
        A path, or an open file with a descriptor, such as ``sys.stdin.buffer``.
    label : str
        What messages call it.

    Raises
    ------
    RuntimeError
        If ffmpeg cannot decode it.
    """
    path = source if isinstance(source, str) else None
    given = "pipe:0" if path is None else f"file:{path}"
    latency = ["-probesize", "32768", "-analyzeduration", "0"]  # or ffmpeg reads five seconds before it begins
    safe = ["-protocol_whitelist", "file,pipe"]
    command = [ffmpeg_binary(), "-nostdin", "-hide_banner", "-nostats", "-loglevel", "error"]
    command += [*(latency if path is None else []), *safe, "-i", given]
    command += [
        "-vn",
        "-sn",
        "-dn",
        "-ac",
        "1",
        "-ar",
        str(SAMPLE_RATE),
        "-f",
        "s16le",
        "-flush_packets",
        "1",
        "pipe:1",
    ]
    messages = FfmpegMessages()
    with messages.collect() as stderr:
        stdin = subprocess.DEVNULL if isinstance(source, str) else source
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, bufsize=0)
        assert process.stdout is not None
        left = b""
        try:
            while chunk := process.stdout.read(1 << 16):  # unbuffered: what there is
                chunk = left + chunk
                left = chunk[len(chunk) // 2 * 2 :]
                yield np.frombuffer(chunk[: len(chunk) - len(left)], "<i2")
            status = process.wait()
        finally:
            stop(process)
    if status != 0:
        raise load_error(label, last_error(messages.errors) or f"ffmpeg ended with status {status}")


def sound_of(audio: str | None, device: int | str | None) -> Iterator[np.ndarray]:
    """Yield the sound of a file, of standard input (``-``), or of a microphone (None)."""
    if audio is None:
        return microphone(device)
    if audio == "-":
        return decoded_stream(sys.stdin.buffer, "standard input")
    return decoded_stream(audio, audio)
