"""How often ffmpeg is started for a recording: once, but where a second look is needed."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from whisper_at import audio

RATE = 16000
SOUND = {  # codecs of containers of sound alone
    "wav": ["-c:a", "pcm_s16le"],
    "flac": [],
    "mp3": [],
    "aac": [],
    "aiff": [],
    "ogg": ["-c:a", "libvorbis"],
    "opus": ["-c:a", "libopus"],
    "webm": ["-c:a", "libopus"],
    "mka": ["-c:a", "flac"],
    "m4a": ["-c:a", "aac"],
    "ts": ["-c:a", "ac3"],
    "avi": ["-c:a", "pcm_s16le"],
}
VIDEO = {"mkv": ["-c:a", "flac"], "mp4": ["-c:a", "alac"], "ts": ["-c:a", "ac3"], "webm": ["-c:a", "libopus"]}


def run_ffmpeg(*arguments: object) -> None:
    subprocess.run([audio.ffmpeg_binary(), "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Sounds with a pause, and loud ones, of one and two channels; a video without sound."""
    folder = tmp_path_factory.mktemp("starts")
    loud = np.random.default_rng(0).normal(0, 0.2, 2 * RATE)
    paused = loud * (np.arange(len(loud)) % RATE < RATE // 2)
    for name, sound in (("loud", loud), ("paused", paused)):
        soundfile.write(folder / f"{name}1.wav", sound, RATE)
        soundfile.write(folder / f"{name}2.wav", np.stack([sound, sound], 1), RATE)
    codec = ["-c:v", "mpeg4", folder / "picture.nut"]
    run_ffmpeg("-f", "lavfi", "-i", "color=s=64x64:r=25:d=3", *codec)
    return folder


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that have been started."""
    started: list[list[str]] = []
    popen = subprocess.Popen

    def record(command, *args, **kwargs):
        started.append(command)
        return popen(command, *args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", record)
    return started


def make_video(folder: Path, target: Path, delay: float = 0.0, sound: str = "paused1") -> None:
    suffix = target.suffix[1:]
    inputs = ["-i", folder / "picture.nut", "-itsoffset", delay, "-i", folder / f"{sound}.wav"]
    video = ["-c:v", "libvpx" if suffix == "webm" else "copy"]
    run_ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", *video, *VIDEO[suffix], target)


@pytest.mark.parametrize(
    ("sound", "number"),
    [*((suffix, 1) for suffix in SOUND), *((suffix, 2) for suffix in ("wav", "flac", "mka"))],
)
def test_sound_alone(folder, tmp_path, starts, sound, number):
    """One start, also of quiet recordings; two where there are several channels, which may cancel each other."""
    for name, expected in ((f"loud{number}", 1), (f"paused{number}", number)):
        run_ffmpeg("-i", folder / f"{name}.wav", *SOUND[sound], tmp_path / f"{name}.{sound}")
        starts.clear()
        assert len(audio.load_audio(tmp_path / f"{name}.{sound}")) >= 2 * RATE
        assert len(starts) == expected, starts


@pytest.mark.parametrize("suffix", VIDEO)
@pytest.mark.parametrize(("delay", "expected"), [(0.0, 1), (0.5, 2)])
def test_videos(folder, tmp_path, starts, suffix, delay, expected):
    """Two where the sound begins late, to measure by how much."""
    make_video(folder, tmp_path / f"a.{suffix}", delay)
    starts.clear()
    samples = audio.load_audio(tmp_path / f"a.{suffix}")
    assert len(samples) / RATE == pytest.approx(2 + delay, abs=0.05)
    assert len(starts) == expected, starts
    starts.clear()
    np.testing.assert_array_equal(audio.load_audio(tmp_path / f"a.{suffix}", audio_track=1), samples)
    assert len(starts) == expected, starts


def test_another_track_than_the_default_one(folder, tmp_path, starts):
    inputs = ["-i", folder / "picture.nut", "-i", folder / "loud1.wav", "-i", folder / "paused1.wav"]
    run_ffmpeg(*inputs, "-map", "1", "-map", "2", "-map", "0", "-c:a", "flac", tmp_path / "a.mkv")
    for audio_track, expected in ((None, 1), (1, 1), (2, 2)):
        starts.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which of two tracks it is
            assert len(audio.load_audio(tmp_path / "a.mkv", audio_track=audio_track)) == 2 * RATE
        assert len(starts) == expected, starts
    starts.clear()
    with pytest.raises(ValueError, match="there is no audio_track 3"):
        audio.load_audio(tmp_path / "a.mkv", audio_track=3)
    assert len(starts) == 1


def test_tracks_are_listed_by_one(folder, starts):
    assert len(audio.audio_tracks(folder / "paused2.wav")) == 1
    assert len(starts) == 1


@pytest.mark.parametrize("content", [b"not a sound at all\n" * 20, b"RIFF0000WAVEfmt "])
def test_what_cannot_be_decoded_is_tried_once(tmp_path, starts, content):
    (tmp_path / "a.mkv").write_bytes(content)
    with pytest.raises(RuntimeError, match="Failed to load audio"):
        audio.load_audio(tmp_path / "a.mkv")
    assert len(starts) == 1
