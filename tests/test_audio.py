"""Decoding files: the same samples as openai-whisper, no set-up, nothing but local files."""

from __future__ import annotations

import gc
import inspect
import io
import os
import re
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whisper.audio as upstream

from whisper_at import audio, ffmpeg_decoder


def tone(seconds: float = 1.0, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """A quiet chord with some noise, (samples, channels)."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.02, (len(t), channels))
    return 0.3 * np.sin(2 * np.pi * np.outer(t, [220 * (c + 1) for c in range(channels)])) + noise


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ffmpeg_on_path(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the ffmpeg that we would use on PATH, under the name that upstream calls."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / ("ffmpeg.exe" if os.name == "nt" else "ffmpeg")).symlink_to(audio.ffmpeg_binary())
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def convert(source: str, target: str) -> None:
    subprocess.run([audio.ffmpeg_binary(), "-v", "error", "-y", "-i", source, target], check=True)


def test_every_public_name_of_upstream_is_here():
    names = {name for name in vars(upstream) if not name.startswith("_")}
    assert names <= set(vars(audio))
    assert audio.SAMPLE_RATE == 16000
    assert audio.mel_filters is upstream.mel_filters


@pytest.mark.parametrize("name", ["load_audio", "log_mel_spectrogram", "pad_or_trim"])
def test_signatures_are_upstreams(name):
    def shape(function):
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    theirs = shape(getattr(upstream, name))
    ours = shape(getattr(audio, name))
    assert ours[: len(theirs)] == theirs
    assert {kind for _, kind, _ in ours[len(theirs) :]} <= {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"),
    [
        *(("wav", rate, channels) for rate, channels in [(16000, 1), (44100, 2), (8000, 1), (48000, 3)]),
        *((suffix, 44100, 2) for suffix in ("flac", "mp3", "ogg", "m4a")),
        ("flac", 48000, 3),
        ("mp3", 8000, 1),
        ("ogg", 16000, 1),
        ("m4a", 16000, 1),
    ],
)
def test_same_samples_as_upstream(in_tmp, ffmpeg_on_path, rate, channels, suffix):
    soundfile.write("source.wav", tone(1.3, rate, channels), rate)
    name = f"copy.{suffix}"
    convert("source.wav", name)
    for sr in (16000, 22050):
        expected = upstream.load_audio(name, sr)
        actual = audio.load_audio(name, sr)
        assert actual.dtype == np.float32
        assert actual.shape == expected.shape
        np.testing.assert_array_equal(actual, expected)
        assert actual.flags.writeable


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"),
    [
        *((suffix, 44100, 2) for suffix in ("opus", "mkv", "webm", "mp4", "mov", "ts", "mpg", "avi", "wma", "mka")),
        *((suffix, 16000, 1) for suffix in ("mkv", "mp4", "ts")),
        *((suffix, 48000, 2) for suffix in ("webm", "mpg")),
    ],
)
def test_same_samples_as_upstream_from_containers_with_timestamps(in_tmp, ffmpeg_on_path, rate, channels, suffix):
    """Their rounding, a millisecond in Matroska, puts no silence between samples."""
    soundfile.write("source.wav", tone(2.3, rate, channels), rate)
    convert("source.wav", f"copy.{suffix}")
    for sr in (16000, 44100):
        np.testing.assert_array_equal(audio.load_audio(f"copy.{suffix}", sr), upstream.load_audio(f"copy.{suffix}", sr))


def test_sixteen_bit_samples_come_back_exactly(in_tmp):
    samples = np.array([0, 1, -1, 32767, -32768, 12345], np.int16)
    soundfile.write("exact.wav", samples, 16000)
    np.testing.assert_array_equal(audio.load_audio("exact.wav"), samples / np.float32(32768))


def test_works_where_no_ffmpeg_is_on_the_path(in_tmp, monkeypatch):
    soundfile.write("a.wav", tone(), 16000)
    monkeypatch.setenv("PATH", str(in_tmp))
    import imageio_ffmpeg

    assert audio.ffmpeg_binary() == imageio_ffmpeg.get_ffmpeg_exe()
    assert len(audio.load_audio("a.wav")) == 16000


@pytest.mark.skipif(os.name == "nt", reason="a script stands in for ffmpeg")
def test_ffmpeg_on_the_path_comes_first(in_tmp, monkeypatch):
    script = in_tmp / "ffmpeg"
    script.write_text("#!/bin/sh\nprintf '\\001\\000\\377\\177'\n")
    script.chmod(0o755)
    soundfile.write("a.wav", tone(), 16000)
    monkeypatch.setenv("PATH", f"{in_tmp}{os.pathsep}{os.environ['PATH']}")
    assert audio.ffmpeg_binary() == str(script)
    np.testing.assert_array_equal(audio.load_audio("a.wav"), np.array([1, 32767]) / np.float32(32768))


@pytest.mark.skipif(os.name == "nt", reason="names that Windows does not allow")
@pytest.mark.parametrize(
    "name", ["-x.wav", "concat:a.wav|b.wav", "http:x.wav", "file:a.wav", "a%d.wav", "ü b\n.wav", "-"]
)
def test_a_name_is_only_ever_a_local_file(in_tmp, name):
    """Whatever ffmpeg would make of such a name, it opens the file called so, or nothing."""
    soundfile.write("a.wav", tone(1), 16000)
    soundfile.write("b.wav", tone(1), 16000)
    soundfile.write("a1.wav", tone(1), 16000)
    with pytest.raises(FileNotFoundError) as caught:
        audio.load_audio(name)
    assert name in str(caught.value)
    soundfile.write("odd.wav", tone(0.5), 16000)
    os.rename("odd.wav", name)
    assert len(audio.load_audio(name)) == 8000


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/x.wav", "missing.wav", "", "tcp://127.0.0.1:9", "a\0.wav"])
def test_what_is_not_there_is_file_not_found(in_tmp, name):
    with pytest.raises(FileNotFoundError) as caught:
        audio.load_audio(name)
    assert name in str(caught.value)


def test_a_playlist_cannot_reach_the_network(in_tmp, monkeypatch):
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        Path("list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n")
        with pytest.raises(RuntimeError):
            audio.load_audio("list.m3u8")
        with pytest.raises(BlockingIOError):  # nobody called
            server.accept()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.wav", b""),
        ("text.wav", b"not a sound at all\n" * 20),
        ("text.txt", b"not a sound at all\n" * 20),
        ("random.mp3", bytes(np.random.default_rng(1).integers(0, 256, 4000, np.uint8))),
        ("header.flac", b"fLaC"),
    ],
)
def test_what_cannot_be_decoded_says_so_in_one_line(in_tmp, name, content):
    Path(name).write_bytes(content)
    with pytest.raises(RuntimeError) as caught:
        audio.load_audio(name)
    message = str(caught.value)
    assert message.startswith(f"Failed to load audio: {name}: ")
    assert "\n" not in message
    assert len(message) < 200
    assert "libavcodec" not in message


def test_a_directory_is_not_audio(in_tmp):
    Path("folder.wav").mkdir()
    with pytest.raises(RuntimeError, match="^Failed to load audio: folder.wav: .*directory"):
        audio.load_audio("folder.wav")


@pytest.mark.skipif(os.name == "nt", reason="a script stands in for ffmpeg")
def test_many_errors_do_not_block_and_only_the_last_is_reported(in_tmp, monkeypatch):
    """More on stderr than a pipe holds, before any sample: a reader of one pipe at a time would hang here."""
    script = in_tmp / "ffmpeg"
    script.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "sys.stderr.write('[mp3 @ 0x55d0] bad frame\\n' * 20000 + '[in#0 @ 0x7f] the last word\\n')\n"
        "sys.exit(1)\n"
    )
    script.chmod(0o755)
    Path("a.wav").write_bytes(b"x")
    monkeypatch.setenv("PATH", f"{in_tmp}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match="^Failed to load audio: a.wav: the last word$"):
        audio.load_audio("a.wav")


@pytest.mark.parametrize("variable", ["AV_LOG_FORCE_COLOR", "FFREPORT"])
def test_what_ffmpeg_is_told_by_its_environment_changes_nothing(in_tmp, monkeypatch, variable):
    soundfile.write("a.wav", tone(), 16000)
    convert("a.wav", "a.mkv")
    Path("text.mkv").write_bytes(b"not a sound at all\n" * 20)
    monkeypatch.setenv(variable, "file=report.log:level=48")
    assert audio.audio_tracks("a.mkv") == [audio.AudioTrack(1)]
    with pytest.raises(RuntimeError, match=r"^Failed to load audio: text.mkv: (?!.*\[).*Invalid data"):
        audio.load_audio("text.mkv")


@pytest.mark.parametrize(("suffix", "shortest"), [("wav", 2.3), ("flac", 1.5), ("mp3", 2.2), ("aac", 2.2)])
def test_a_truncated_file_gives_what_it_holds(in_tmp, suffix, shortest):
    soundfile.write("source.wav", tone(4), 16000)
    convert("source.wav", f"whole.{suffix}")
    data = Path(f"whole.{suffix}").read_bytes()
    Path(f"cut.{suffix}").write_bytes(data[: int(len(data) * 0.6)])
    whole, cut = audio.load_audio(f"whole.{suffix}"), audio.load_audio(f"cut.{suffix}")
    assert shortest * 16000 < len(cut) < 2.7 * 16000
    np.testing.assert_array_equal(cut[:16000], whole[:16000])


@pytest.mark.parametrize("seconds", [0.01, 0.4, 0.7, 30.0])
def test_blocks_join_to_the_whole(in_tmp, seconds):
    soundfile.write("a.wav", tone(2.5, 44100, 2), 44100)
    whole = audio.load_audio("a.wav")
    blocks = list(audio.stream_audio("a.wav", seconds=seconds))
    assert all(len(block) == round(seconds * 16000) for block in blocks[:-1])
    assert all(block.dtype == np.float32 and len(block) for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_a_stream_that_is_dropped_ends_its_ffmpeg(in_tmp, monkeypatch):
    processes = []
    popen = subprocess.Popen

    def record(*args, **kwargs):
        processes.append(popen(*args, **kwargs))
        return processes[-1]

    soundfile.write("long.wav", tone(120), 16000)
    monkeypatch.setattr(subprocess, "Popen", record)
    blocks = audio.stream_audio("long.wav", seconds=0.1)
    next(blocks)
    blocks.close()
    assert len(processes) == 1
    assert processes[0].poll() is not None


def test_blocks_must_have_a_length():
    with pytest.raises(ValueError, match="seconds must be positive"):
        next(audio.stream_audio("a.wav", seconds=0))


def test_mel_of_a_path_needs_no_ffmpeg_on_the_path(in_tmp, monkeypatch):
    soundfile.write("a.wav", tone(1.5, 22050), 22050)
    monkeypatch.setenv("PATH", str(in_tmp))
    samples = audio.load_audio("a.wav")
    for n_mels, padding in ((80, 0), (128, 480000)):
        expected = upstream.log_mel_spectrogram(samples, n_mels, padding)
        assert torch.equal(audio.log_mel_spectrogram("a.wav", n_mels, padding), expected)
        assert torch.equal(audio.log_mel_spectrogram(torch.from_numpy(samples), n_mels, padding, "cpu"), expected)


def test_paths_as_objects(in_tmp):
    soundfile.write("a.wav", tone(0.5), 16000)
    expected = audio.log_mel_spectrogram("a.wav")
    assert torch.equal(audio.log_mel_spectrogram(Path("a.wav")), expected)


@pytest.mark.parametrize(("name", "seconds"), [("speech.flac", 16), ("sounds.ogg", 40), ("street.ogg", 56)])
def test_samples_are_whole_and_do_not_clip(name, seconds):
    path = Path(__file__).parent.parent / "sample" / name
    sound = audio.load_audio(path)
    assert len(sound) == seconds * 16000
    assert 0.1 < np.abs(sound).max() < 0.95
    assert abs(sound.mean()) < 0.002
    assert path.stat().st_size < 500_000


# --- bytes and open files -----------------------------------------------------------------------------------

SOURCES = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "BytesIO": io.BytesIO,
    "BytesIO at its end": lambda content: _at_end(io.BytesIO(content)),
    "open file": lambda _: open("tone.m4a", "rb"),  # noqa: SIM115 - it is the test's
    "named temporary file": lambda content: _written(content),
    "pipe": lambda content: io.BufferedReader(_Pipe(content)),
}


def _at_end(file: io.BytesIO) -> io.BytesIO:
    file.seek(0, os.SEEK_END)
    return file


def _written(content: bytes):
    file = tempfile.NamedTemporaryFile(suffix=".m4a")  # noqa: SIM115 - it is the test's
    file.write(content)  # and it is not flushed
    return file


class _Pipe(io.RawIOBase):
    """What cannot be read twice."""

    def __init__(self, content: bytes) -> None:
        self.rest = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        part, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


@pytest.mark.parametrize("kind", SOURCES)
def test_bytes_and_open_files_are_as_the_file(in_tmp, kind, monkeypatch):
    """m4a has its table of contents at the end, which ffmpeg cannot find in a pipe."""
    soundfile.write("tone.wav", tone(3), 16000)
    convert("tone.wav", "tone.m4a")
    expected = audio.load_audio("tone.m4a")
    (in_tmp / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(in_tmp / "temporary"))
    source = SOURCES[kind](Path("tone.m4a").read_bytes())
    assert np.array_equal(audio.load_audio(source), expected)
    if kind != "pipe":
        assert np.array_equal(np.concatenate(list(audio.stream_audio(source, seconds=0.7))), expected)
        assert torch.equal(audio.log_mel_spectrogram(source), audio.log_mel_spectrogram(expected))
    gc.collect()
    assert [path for path in (in_tmp / "temporary").iterdir() if path.name.startswith("whisper-at-")] == []


@pytest.mark.parametrize(("content", "says"), [(b"", "the file is empty"), (b"no sound " * 99, "Invalid data")])
def test_bytes_that_are_no_recording_are_told_without_a_path(in_tmp, content, says):
    with pytest.raises(RuntimeError, match=f"Failed to load audio: the audio given as bytes: .*{says}") as caught:
        audio.load_audio(content)
    assert tempfile.gettempdir() not in str(caught.value)


def test_a_file_of_text_is_refused(in_tmp):
    Path("a.txt").write_text("text")
    with Path("a.txt").open() as file, pytest.raises(TypeError, match="opened as binary, mode 'rb'"):
        audio.load_audio(file)  # type: ignore[arg-type]


def test_the_home_folder_by_its_sign(in_tmp, monkeypatch):
    monkeypatch.setenv("HOME", str(in_tmp))
    soundfile.write("a.wav", tone(), 16000)
    assert len(audio.load_audio("~/a.wav")) == 16000
    soundfile.write("~b.wav", tone(2), 16000)
    assert len(audio.load_audio("~b.wav")) == 32000


# --- channels that cancel each other ------------------------------------------------------------------------


def speech_like(seconds: float = 4.0) -> np.ndarray:
    """A chord that comes and goes."""
    envelope = np.sin(np.arange(round(seconds * 16000)) / 16000 * 5) ** 2
    return tone(seconds)[:, 0] * envelope


@pytest.mark.parametrize(
    ("convert_to", "second", "lead"),
    [
        *((suffix, -1.0, 0) for suffix in ("wav", "flac", "mp3", "m4a", "opus", "ogg")),
        *((suffix, -0.97, 40) for suffix in ("wav", "mp3", "m4a")),
        ("opus", -0.97, 0),
        ("ogg", -1.0, 40),
    ],
)
def test_opposite_polarity_is_heard(in_tmp, convert_to, second, lead):
    """Upstream's downmix of such a recording is silence."""
    left = np.concatenate([np.zeros(lead * 16000), speech_like()])
    soundfile.write("opposite.wav", np.stack([left, second * left], 1), 16000)
    if convert_to != "wav":
        convert("opposite.wav", f"opposite.{convert_to}")
    with pytest.warns(
        UserWarning, match=rf"cancel each other when they are mixed, at {lead}\.[01]-{lead + 4}\.0 s: one"
    ):
        heard = audio.load_audio(f"opposite.{convert_to}")
    assert np.abs(heard).max() == pytest.approx(np.abs(left).max(), rel=0.15)
    with pytest.warns(UserWarning, match="cancel"):
        blocks = list(audio.stream_audio(f"opposite.{convert_to}", seconds=5))
    assert np.array_equal(np.concatenate(blocks), heard)


def first_channel(path: str) -> np.ndarray:
    convert(path, "first.wav")
    samples, rate = soundfile.read("first.wav", always_2d=True)
    soundfile.write("first.wav", samples[:, 0], rate)
    return audio.load_audio("first.wav")


@pytest.mark.parametrize(
    ("convert_to", "rate", "lead"),
    [("wav", 16000, 70), ("flac", 44100, 0), ("mp3", 44100, 0), ("m4a", 16000, 70), ("opus", 48000, 0)],
)
def test_a_call_with_one_speaker_out_of_phase(in_tmp, ffmpeg_on_path, convert_to, rate, lead):
    """Both are heard, whoever begins and however often they take turns; of the other the downmix is untouched."""
    turns = [(2.34, 1), (3.21, -1), (0.55, 1), (1.5, -1), (4.0, 1), (0.81, -1), (lead + 0.3, 1), (2.0, -1)]
    loud = tone(sum(seconds for seconds, _ in turns), rate)[:, 0]
    ends = np.cumsum([round(seconds * rate) for seconds, _ in turns])
    polarity = np.concatenate([np.full(round(seconds * rate), sign) for seconds, sign in turns])
    loud = loud[: len(polarity)]
    soundfile.write("call.wav", np.stack([loud, polarity * loud], 1), rate)
    if convert_to != "wav":
        convert("call.wav", f"call.{convert_to}")
    name = f"call.{convert_to}"
    with pytest.warns(UserWarning, match="cancel") as caught:
        heard = audio.load_audio(name)
    mixed, first = upstream.load_audio(name), first_channel(name)
    at = [round(end / rate * 16000) for end in (0, *ends)]
    frame = 1600
    for start, stop, (_, sign) in zip(at, at[1:], turns):
        inner = slice(start + 2 * frame, stop - 2 * frame)
        if sign == 1:
            assert np.array_equal(heard[inner], mixed[inner])
        else:
            assert np.abs(mixed[inner]).max() < 0.1
            assert np.abs(heard[inner] - first[inner]).max() < 0.01  # but for how the codec's output is resampled
        # of a turn at most the part of a frame is lost
        loudness = np.sqrt(np.mean(heard[start:stop].reshape(1, -1) ** 2))
        assert loudness > 0.8 * np.sqrt(np.mean(first[start:stop] ** 2))
    (message,) = [str(warning.message) for warning in caught]
    told = [float(number) for number in re.findall(r"(\d+\.\d)(?=-| s)", message)]
    edges = [at[1], at[4], at[5], at[6], at[7], at[8]] if lead else [at[1], at[4], at[5], at[8]]
    assert told == pytest.approx([edge / 16000 for edge in edges], abs=0.15)


def test_of_many_channels_the_loudest_is_heard(in_tmp):
    """The first one may be empty."""
    x = tone(3)[:, 0]
    soundfile.write("a.wav", np.stack([0 * x, 0 * x, 0 * x, 0 * x, x, -x], 1), 16000)
    with pytest.warns(UserWarning, match="at 0.0-3.0 s"):
        heard = audio.load_audio("a.wav")
    assert heard == pytest.approx(x, abs=1e-3)


def test_a_change_of_source_makes_no_click(in_tmp):
    """From the downmix to a channel and back within 10 ms: no step that the sound itself does not have."""
    t = np.arange(5 * 16000) / 16000
    left = 0.3 * np.sin(2 * np.pi * 100 * t)
    right = np.where((t >= 1.003) & (t < 3.007), -left, left)
    soundfile.write("a.wav", np.stack([left, right], 1), 16000)
    with pytest.warns(UserWarning, match=r"at 1\.1-3\.0 s"):
        heard = audio.load_audio("a.wav")
    steps = np.abs(np.diff(heard))
    edges = [round(seconds * 16000) for seconds in (1.003, 3.007)]  # of the recording itself
    steps[[n + i for n in edges for i in (-1, 0)]] = 0
    assert steps.max() < 2 * np.abs(np.diff(left)).max()


def test_a_warning_names_places_but_not_all_of_many(in_tmp):
    x = tone(70)[:, 0]
    polarity = np.where(np.arange(len(x)) // 1600 % 70 < 10, -1, 1)
    soundfile.write("a.wav", np.stack([x, polarity * x], 1), 16000)
    with pytest.warns(UserWarning, match="cancel") as caught:
        audio.load_audio("a.wav")
    expected = "at 0.0-1.0 s, 7.0-8.0 s, 14.0-15.0 s, 21.0-22.0 s, 28.0-29.0 s and 5 later places (10 s in all): one"
    assert expected in str(caught[0].message)


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_are_decoded_once_and_end_with_the_stream(in_tmp, monkeypatch, channels):
    """A second ffmpeg runs once it is quiet, if there are channels to compare."""
    processes = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: processes.append(popen(*a, **k)) or processes[-1])
    x = tone(200)[:, 0]
    x[16000:20000] = 0
    soundfile.write("long.wav", np.stack([x] * channels, 1), 16000)
    blocks = audio.stream_audio("long.wav", seconds=0.1)
    next(blocks)
    assert len(processes) == channels
    assert all(process.poll() is None for process in processes)
    blocks.close()
    assert all(process.poll() is not None for process in processes)


def test_a_single_channel_is_noticed_where_ffmpeg_does_not_say_so(in_tmp, monkeypatch):
    """Its messages may change: then the channels are decoded, and the only one is not compared with itself."""
    soundfile.write("a.wav", 0.01 * speech_like(), 16000)
    expected = audio.load_audio("a.wav")
    started = []
    decode_channels = ffmpeg_decoder._decode_channels
    monkeypatch.setattr(
        ffmpeg_decoder, "_decode_channels", lambda *a, **k: started.append(a) or decode_channels(*a, **k)
    )
    monkeypatch.setattr(ffmpeg_decoder, "parse_container", lambda messages: ffmpeg_decoder.Container())
    np.testing.assert_array_equal(audio.load_audio("a.wav"), expected)
    assert len(started) == 1


def test_memory_does_not_grow_with_what_is_cancelled(in_tmp):
    def peak(seconds: int) -> int:
        x = 0.1 * np.sin(np.arange(seconds * 16000) / 7)
        soundfile.write("a.wav", np.stack([x, -x], 1), 16000)
        tracemalloc.start()
        try:
            with pytest.warns(UserWarning, match="cancel"):
                for _ in audio.stream_audio("a.wav"):
                    pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(400) < 1.1 * peak(100)


@pytest.mark.parametrize(
    "channels",
    [
        lambda x: np.stack([x, x], 1),
        lambda x: np.stack([x, 0 * x], 1),
        lambda x: np.stack([x, -0.5 * x], 1),
        lambda x: np.stack([0.01 * x, 0 * x], 1),
        lambda x: np.stack([0.01 * x, -0.005 * x], 1),
        lambda x: 0.01 * x,
        lambda x: 0 * x,
        lambda x: np.stack([0 * x, 0 * x], 1),
    ],
    ids=["same", "left alone", "unequal", "quiet", "quiet, unequal", "quiet mono", "silence", "silence in stereo"],
)
def test_channels_that_do_not_cancel_are_mixed_as_upstream_mixes_them(in_tmp, ffmpeg_on_path, channels):
    soundfile.write("a.wav", channels(speech_like()), 16000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(audio.load_audio("a.wav"), upstream.load_audio("a.wav"))
