"""Whatever bytes a recording has, there is a spectrogram of numbers or one clear error, within the limits."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest
import soundfile
from conftest import noise
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import fuzz, mutate, mutations

from whisper_at.archive.items import Item
from whisper_at.archive.prefetch import Preparer
from whisper_at.archive.settings import ArchiveSettings
from whisper_at.ffmpeg_process import ffmpeg_binary
from whisper_at.limits import DecodeLimits

LIMITS = DecodeLimits(duration=60.0, time=20.0)
FORMATS = {  # and how ffmpeg encodes it
    "wav": [],
    "float.wav": ["-c:a", "pcm_f32le"],
    "flac": [],
    "ogg": ["-c:a", "libvorbis"],
    "opus": ["-c:a", "libopus"],
    "mp3": [],
    "m4a": ["-c:a", "aac"],
    "mkv": ["-c:a", "flac"],
    "webm": ["-c:a", "libopus"],
    "aiff": [],
    "au": [],
    "caf": [],
    "w64": [],
    "avi": ["-c:a", "pcm_s16le"],
    "ts": ["-c:a", "aac"],
    "amr": ["-c:a", "libopencore_amrnb", "-ar", "8000"],
    "stereo.wav": ["-ac", "2"],
}


@cache
def whole_file(name: str) -> bytes:
    """A recording of half a second in a format; of WAV where this ffmpeg cannot write that."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.wav"
        soundfile.write(source, noise(0.5), 16000)
        target = Path(folder) / f"made.{name}"
        command = [ffmpeg_binary(), "-loglevel", "quiet", "-nostdin", "-i", source, *FORMATS[name], target]
        done = subprocess.run(command, check=False).returncode == 0
        return target.read_bytes() if done and target.exists() else source.read_bytes()


@pytest.fixture(scope="module")
def preparer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return Preparer(ArchiveSettings("", limits=LIMITS), folder, 80, lambda item, sha256: False)


@pytest.mark.filterwarnings("ignore")
@fuzz(20)
@given(st.sampled_from(sorted(FORMATS)), mutations())
@example("wav", [("number", 0.0025, 7)])
def test_a_damaged_recording_is_decoded_or_is_an_error(preparer, name, changes):
    path = preparer.fetcher.folder / f"case.{name.rpartition('.')[2]}"
    path.write_bytes(mutate(whole_file(name), changes))
    prepared = preparer.prepare(Item(str(path)), None)
    try:
        if prepared.error is not None:
            assert type(prepared.error) in (RuntimeError, ValueError), repr(prepared.error)
            assert str(prepared.error)
        else:
            mel = prepared.recording.mel
            assert mel.content_frames <= 6000
            assert bool(mel.window(0, mel.n_frames).isfinite().all())
    finally:
        prepared.close()


def test_whole_recordings_of_all_formats_are_decoded(preparer):
    for name in FORMATS:
        path = preparer.fetcher.folder / f"whole.{name.rpartition('.')[2]}"
        path.write_bytes(whole_file(name))
        prepared = preparer.prepare(Item(str(path)), None)
        assert prepared.error is None, name
        assert 45 <= prepared.recording.mel.content_frames <= 65, name
        prepared.close()
