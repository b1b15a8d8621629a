"""The clock and the audio tracks of videos: sound that begins late, gaps, edit lists, broadcasts, several tracks."""

from __future__ import annotations

import os
import subprocess
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import whisper.audio as upstream
from hypothesis import given
from hypothesis import strategies as st

from whisper_at import audio, tracks
from whisper_at.ffmpeg_process import probe
from whisper_at.mel import LogMel
from whisper_at.timestamps import Gaps, read_packets

RATE = 48000
BEEPS = (1.0, 2.5, 4.0)
LENGTH = 5.0
VIDEO_LENGTH = 11
CODECS = {
    "mkv": ("mpeg4", "aac"),
    "mp4": ("mpeg4", "aac"),
    "mov": ("mpeg4", "aac"),
    "ts": ("mpeg4", "ac3"),
    "webm": ("libvpx", "libopus"),
    "ogg": ("libtheora", "libvorbis"),
}


def run_ffmpeg(*arguments: object) -> None:
    command = [audio.ffmpeg_binary(), "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ffmpeg_of_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the ffmpeg that we would use on PATH, under the name that upstream calls."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / ("ffmpeg.exe" if os.name == "nt" else "ffmpeg")).symlink_to(audio.ffmpeg_binary())
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def beeping(frequency: float = 1000, beeps=BEEPS, seconds: float = LENGTH) -> np.ndarray:
    """Beeps of 0.2 s in faint noise."""
    t = np.arange(round(seconds * RATE)) / RATE
    samples = np.random.default_rng(0).normal(0, 1e-3, len(t))
    for beep in beeps:
        samples += 0.5 * np.sin(2 * np.pi * frequency * t) * ((t >= beep) & (t < beep + 0.2))
    return samples


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> Path:
    """A folder of videos without sound and of two sounds without video."""
    folder = tmp_path_factory.mktemp("sources")
    soundfile.write(folder / "beeps.wav", beeping(), RATE)
    soundfile.write(folder / "other.wav", beeping(3000, (0.5,)), RATE)
    for codec in {video for video, _ in CODECS.values()}:
        picture = f"color=s=64x64:r=25:d={VIDEO_LENGTH}"
        run_ffmpeg("-f", "lavfi", "-i", picture, "-c:v", codec, folder / f"{codec}.nut")
    return folder


def make_video(sources: Path, suffix: str, *delay: object, name: str = "film", output: tuple = ()) -> str:
    """A video whose beeps are delayed as ffmpeg's options of an input say."""
    video, sound = CODECS[suffix]
    inputs = ["-i", sources / f"{video}.nut", *delay, "-i", sources / "beeps.wav"]
    run_ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", sound, *output, f"{name}.{suffix}")
    return f"{name}.{suffix}"


def onsets(samples: np.ndarray, sr: int = 16000) -> list[float]:
    """Seconds at which beeps begin: where it is loud after 0.3 s of quiet, to 1 ms."""
    step = sr // 1000
    loud = np.abs(samples[: len(samples) // step * step]).reshape(-1, step).max(1) > 0.1
    return [i / 1000 for i in np.flatnonzero(loud) if not loud[max(0, i - 300) : i].any()]


def assert_beeps(samples: np.ndarray, expected, sr: int = 16000, suffix: str = "") -> None:
    """To 20 ms; to 25 ms in mkv, of which ffmpeg 5 plays the 21 ms that AAC puts before the sound."""
    assert onsets(samples, sr) == pytest.approx(list(expected), abs=0.025 if suffix == "mkv" else 0.02)


# --- the clock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", CODECS)
def test_sound_that_begins_late(sources, suffix):
    """openai-whisper hears the first beep at 1 s; a player, 3 s later."""
    file = make_video(sources, suffix, "-itsoffset", 3)
    samples = audio.load_audio(file)
    assert_beeps(samples, [3 + beep for beep in BEEPS])
    assert len(samples) / 16000 == pytest.approx(3 + LENGTH, abs=0.05)
    np.testing.assert_array_equal(np.concatenate(list(audio.stream_audio(file, seconds=0.7))), samples)
    np.testing.assert_array_equal(audio.load_audio(Path(file).read_bytes()), samples)
    assert_beeps(audio.load_audio(file, 22050), [3 + beep for beep in BEEPS], 22050)
    with LogMel(file) as mel:
        assert mel.content_frames == len(samples) // 160


@pytest.mark.parametrize("suffix", CODECS)
def test_videos_whose_sound_begins_at_once_are_as_upstream_decodes_them(sources, ffmpeg_of_upstream, suffix):
    """Encoders put samples before the sound, at times below 0: they move nothing."""
    file = make_video(sources, suffix)
    samples = audio.load_audio(file)
    np.testing.assert_array_equal(samples, upstream.load_audio(file))
    assert_beeps(samples, BEEPS, suffix=suffix)


def make_gap(suffix: str, sources: Path, seconds: float) -> str:
    """The first 3.2 s, then nothing until `seconds`, then the rest, each with its timestamps."""
    codec = {"mkv": "flac", "mp4": "alac", "ts": "ac3", "webm": "libopus"}[suffix]  # those that need no edit list
    for name, *cut in (("a", "-t", "3.2"), ("b", "-ss", "3.2")):
        run_ffmpeg(*cut, "-i", sources / "beeps.wav", "-c:a", codec, f"{name}.{suffix}")
    Path("list").write_text(f"file a.{suffix}\nduration {seconds}\nfile b.{suffix}\n")
    run_ffmpeg("-f", "concat", "-i", "list", "-c", "copy", f"gap.{suffix}")
    return f"gap.{suffix}"


@pytest.mark.parametrize(
    ("suffix", "seconds"),
    [
        *((suffix, 7.2) for suffix in ("mkv", "mp4", "ts", "webm")),
        ("mkv", 3.7),
        ("webm", 3.7),
        ("mp4", 20.2),
        ("ts", 20.2),
    ],
)
def test_gaps_in_timestamps_are_silence(sources, suffix, seconds):
    """A call on hold, a pause of a recording in a browser, a broadcast that was not received: also for long."""
    file = make_gap(suffix, sources, seconds)
    samples = audio.load_audio(file)
    assert_beeps(samples, (1.0, 2.5, seconds + 0.8))
    quiet = samples[round(3.3 * 16000) : round((seconds - 0.1) * 16000)]
    assert np.abs(quiet).max() < 0.01
    np.testing.assert_array_equal(np.concatenate(list(audio.stream_audio(file, seconds=1.1))), samples)


@pytest.mark.parametrize("suffix", ["ts", "webm"])
def test_no_sample_is_lost_where_timestamps_go_back(sources, suffix):
    """Recordings put behind one another byte by byte: each begins at its own zero."""
    content = Path(make_video(sources, suffix, output=("-shortest",))).read_bytes()
    Path(f"twice.{suffix}").write_bytes(content + content)
    found = onsets(audio.load_audio(f"twice.{suffix}"))
    assert found[:3] == pytest.approx(BEEPS, abs=0.02)
    assert np.diff(found[3:]) == pytest.approx(np.diff(BEEPS), abs=0.02)
    assert found[3] == pytest.approx(BEEPS[0] + LENGTH, abs=0.1)


def test_times_count_from_the_start_of_a_broadcast(sources):
    """A transport stream whose clock says ten hours, as that of a channel does."""
    file = make_video(sources, "ts", "-itsoffset", 2, output=("-output_ts_offset", 36000))
    assert probe(file)[0].start > 36000
    assert_beeps(audio.load_audio(file), [2 + beep for beep in BEEPS])


@pytest.mark.parametrize("pause", [0, 3])
def test_a_broadcast_that_changes_its_channels(sources, pause):
    """ffmpeg then starts its filters again: no silence of the length of all before comes with it."""
    run_ffmpeg("-i", sources / "beeps.wav", "-c:a", "ac3", "-b:a", "96k", "mono.ts")
    later = LENGTH + pause
    run_ffmpeg("-i", sources / "beeps.wav", "-c:a", "ac3", "-ac", 2, "-output_ts_offset", later, "stereo.ts")
    Path("both.ts").write_bytes(Path("mono.ts").read_bytes() + Path("stereo.ts").read_bytes())
    found = onsets(audio.load_audio("both.ts"))
    assert found == pytest.approx([*BEEPS, *(later + beep for beep in BEEPS)], abs=0.05)


def test_edit_lists(sources, ffmpeg_of_upstream):
    """A film cut without encoding it again: its edit list hides what comes before the cut."""
    run_ffmpeg("-ss", 1.51, "-i", make_video(sources, "mp4", "-itsoffset", 3), "-c", "copy", "cut.mp4")
    assert_beeps(audio.load_audio("cut.mp4"), [3 + beep - 1.51 for beep in BEEPS])
    run_ffmpeg("-i", sources / "beeps.wav", "-c:a", "aac", "whole.m4a")
    run_ffmpeg("-ss", 1.51, "-i", "whole.m4a", "-c", "copy", "cut.m4a")
    assert_beeps(audio.load_audio("cut.m4a"), [beep - 1.51 for beep in BEEPS[1:]])
    np.testing.assert_array_equal(audio.load_audio("cut.m4a"), upstream.load_audio("cut.m4a"))


def test_a_cover_picture_is_no_clock(sources, ffmpeg_of_upstream):
    run_ffmpeg("-f", "lavfi", "-i", "color=s=64x64:d=0.04", "-frames:v", 1, "cover.png")
    cover = ("-map", "0:a", "-map", "1:v", "-c:a", "aac", "-c:v", "copy", "-disposition:v", "attached_pic")
    run_ffmpeg("-itsoffset", 2, "-i", sources / "beeps.wav", "-i", "cover.png", *cover, "song.m4a")
    np.testing.assert_array_equal(audio.load_audio("song.m4a"), upstream.load_audio("song.m4a"))


def test_warnings_of_cancelled_channels_tell_the_time_of_the_video(sources):
    left = beeping()
    soundfile.write("opposite.wav", np.stack([left, -left], 1), RATE)
    inputs = ["-i", sources / "mpeg4.nut", "-itsoffset", 3, "-i", "opposite.wav"]
    run_ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "flac", "opposite.mkv")
    with pytest.warns(UserWarning, match=r"cancel each other when they are mixed, at [34]\.\d-"):
        samples = audio.load_audio("opposite.mkv")
    assert_beeps(samples, [3 + beep for beep in BEEPS])


def test_files_without_a_clock_are_opened_once(monkeypatch):
    started = []
    popen = subprocess.Popen

    def record(*args, **kwargs):
        started.append(args[0])
        return popen(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", record)
    soundfile.write("loud.wav", np.random.default_rng(0).normal(0, 0.2, RATE), RATE)
    for suffix in ("wav", "flac", "mp3", "aac", "aiff"):
        run_ffmpeg("-i", "loud.wav", f"a.{suffix}")
        started.clear()
        audio.load_audio(f"a.{suffix}")
        assert len(started) == 1
        assert "s16le" in started[0]


# --- tracks -------------------------------------------------------------------------------------------------


def make_two_tracks(sources: Path, suffix: str) -> str:
    """Beeps in English, and in German one of another pitch, a second late."""
    video, sound = CODECS[suffix]
    inputs = ["-i", sources / f"{video}.nut", "-i", sources / "beeps.wav"]
    inputs += ["-itsoffset", 1, "-i", sources / "other.wav"]
    names = ["-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=ger"]
    names += ["-metadata:s:a:1", "title=Director: his view"]
    maps = ["-map", "0:v", "-map", "1:a", "-map", "2:a"]
    run_ffmpeg(*inputs, *maps, "-c:v", "copy", "-c:a", sound, *names, f"two.{suffix}")
    return f"two.{suffix}"


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_a_track_by_number_or_language(sources, suffix):
    file = make_two_tracks(sources, suffix)
    listed = audio.audio_tracks(file)
    assert [(track.number, track.language) for track in listed] == [(1, "eng"), (2, "ger")]
    assert listed == audio.audio_tracks(Path(file).read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who chooses need not be told
        spellings = ("2", "German", "deu", "GER", "de-AT") if suffix == "mkv" else ()
        for wanted in (2, "de", *spellings):
            assert_beeps(audio.load_audio(file, audio_track=wanted), [1.5], suffix=suffix)
        for wanted in (1, "English"):
            assert_beeps(audio.load_audio(file, audio_track=wanted), BEEPS, suffix=suffix)
        assert_beeps(next(audio.stream_audio(file, audio_track=2)), [1.5], suffix=suffix)
        assert_beeps(audio.load_audio(Path(file).read_bytes(), audio_track=2), [1.5], suffix=suffix)


def test_a_message_says_which_track_is_heard(sources, ffmpeg_of_upstream):
    file = make_two_tracks(sources, "mkv")
    message = r"^two.mkv has 2 audio tracks: 1 \(English\), 2 \(German: Director: his view\); track 1 is heard"
    with pytest.warns(UserWarning, match=message):
        samples = audio.load_audio(file)
    np.testing.assert_array_equal(samples, upstream.load_audio(file))


@pytest.mark.parametrize("wanted", [0, 3, "3", "fr", "Klingon", "", -1])
def test_a_track_that_is_not_there(sources, wanted):
    file = make_two_tracks(sources, "mkv")
    with pytest.raises(ValueError, match=r"two.mkv: there is no audio_track .*1 \(English\), 2 \(German: Director"):
        audio.load_audio(file, audio_track=wanted)
    with pytest.raises(ValueError, match="its only audio track is 1"):
        audio.load_audio(sources / "beeps.wav", audio_track=2)


def test_the_only_track_can_be_named(sources):
    assert_beeps(audio.load_audio(sources / "beeps.wav", audio_track=1), BEEPS)
    assert audio.audio_tracks(sources / "beeps.wav") == [tracks.AudioTrack(1)]


def test_what_has_no_tracks(sources):
    with pytest.raises(ValueError, match="samples have no tracks"):
        audio.readable(np.zeros(16000, np.float32), 1)
    for video in sources.glob("*.nut"):
        assert audio.audio_tracks(video) == []
        with pytest.raises(RuntimeError, match="it holds no audio"):
            audio.load_audio(video, audio_track=1)
    with pytest.raises(FileNotFoundError):
        audio.audio_tracks("missing.mkv")


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes")
def test_a_pipe_is_read_once(sources):
    """Looking for tracks and for channels that cancel each other opens a file again, for which a pipe waits forever."""
    os.mkfifo("pipe")
    file = make_video(sources, "mkv", "-itsoffset", 3)
    for audio_track in (None, 1):
        with subprocess.Popen(["sh", "-c", f"cat {file} > pipe"]):
            assert_beeps(audio.load_audio("pipe", audio_track=audio_track), [3 + beep for beep in BEEPS])


def test_transcribe_tag_and_batches_take_a_track(sources, model_en):
    file = make_two_tracks(sources, "mkv")
    options = dict(audio_track="de", at_time_res=2)
    heard = audio.load_audio(file, audio_track=2)
    expected = model_en.transcribe(heard, at_time_res=2, sample_len=4, temperature=0)
    actual = model_en.transcribe(file, sample_len=4, temperature=0, **options)
    assert actual["text"] == expected["text"]
    np.testing.assert_array_equal(actual["audio_tag"], expected["audio_tag"])
    np.testing.assert_array_equal(
        model_en.tag(file, **options)["audio_tag"], model_en.tag(heard, at_time_res=2)["audio_tag"]
    )
    recordings = [file, sources / "beeps.wav"]
    results = dict(model_en.transcribe_many(recordings, sample_len=4, temperature=0, **options))
    assert isinstance(results[sources / "beeps.wav"], ValueError)
    assert results[file]["duration"] == pytest.approx(1 + LENGTH, abs=0.05)
    with pytest.raises(ValueError, match="samples have no tracks"):
        model_en.transcribe(heard, **options)


# --- what ffmpeg says ---------------------------------------------------------------------------------------

BROADCAST = """\
[mpegts @ 0x1] a message before
Input #0, mpegts, from 'film.ts':
  Duration: 00:01:05.50, start: 36001.400000, bitrate: 69 kb/s
  Program 1
    Metadata:
      service_name    : Stream #0:7: Audio: not one
  Stream #0:1[0x101](deu): Audio: mp2 ([3][0][0][0] / 0x0003), 48000 Hz, stereo, fltp, 192 kb/s
  Stream #0:0[0x100]: Video: mpeg2video (Main) ([2][0][0][0] / 0x0002), yuv420p(tv), 720x576, 25 fps, 25 tbr, 90k tbn
  Program 2
    Stream #0:1[0x101](deu): Audio: mp2 ([3][0][0][0] / 0x0003), 48000 Hz, stereo, fltp, 192 kb/s
    Stream #0:2[0x102](qad,und): Audio: ac3 (AC-3 / 0x332D4341), 48000 Hz, 5.1(side), fltp (visual impaired)
    Metadata:
      title           : Hörfilm
                      : Stream #0:9: Audio: second line
Stream mapping:
  Stream #0:2 -> #0:0 (ac3 (native) -> pcm_s16le (native))
[mpegts @ 0x1] Correcting start time by 1476778
[graph_0_in_0_2 @ 0x2] tb:1/48000 samplefmt:fltp samplerate:48000 chlayout:1 channels (FC)
[graph_0_in_0_2 @ 0x3] tb:1/48000 samplefmt:fltp samplerate:48000 chlayout:5.1(side)
"""


def test_what_ffmpeg_says_of_a_broadcast():
    container = tracks.parse_container(BROADCAST)
    assert (container.format, container.start, container.duration) == ("mpegts", 36001.4, 65.5)
    assert container.tracks == (tracks.AudioTrack(1, "deu", "", 1), tracks.AudioTrack(2, "qad,und", "Hörfilm", 2))
    assert list(map(str, container.tracks)) == ["1 (German)", "2 (qad,und: Hörfilm)"]
    assert container.heard == container.tracks[1]
    assert container.has_other_streams
    assert container.is_mono
    assert container.origin == pytest.approx(36002.876778)
    later = BROADCAST.replace("start time by", "start time of Input #0 by")
    assert tracks.parse_container(later) == container


@pytest.mark.parametrize("layout", ["stereo", "mono, and more", "11 channels", "5.1(side)", "2 channels (FL+FR)", ""])
def test_several_channels(layout):
    assert not tracks.parse_container(BROADCAST.replace("1 channels (FC)", layout)).is_mono


def test_what_ffmpeg_says_of_nothing():
    assert tracks.parse_container("") == tracks.Container()
    assert tracks.parse_container("Input #0, wav, from 'a.wav':\n  Duration: N/A, bitrate: N/A\n").duration is None
    assert tracks.parse_first_timestamp("") is None


@pytest.mark.parametrize(
    ("start", "first_sample", "delay"),
    [
        (0, 5, 5),
        (36000, 36005, 5),
        (-0.021, 0, 0),  # priming
        (-0.021, 5, 5),
        (-3, 0, 3),  # a clock that is below 0
        (0, 0.009, 0),
        (1.4, 1.3, 0),
        (0, 1e9, 0),
    ],
)
def test_delay(start, first_sample, delay):
    assert tracks.Container(start=start, has_other_streams=True).delay(first_sample) == pytest.approx(delay)
    assert tracks.Container(start=start).delay(first_sample) == 0


def matroska(*packets: tuple[float, bytes]) -> bytes:
    """A live stream: sizes of segment and clusters are unknown, every cluster begins at 0.5 s before its packet."""
    stream = b"\x1a\x45\xdf\xa3\x84head" + b"\x18\x53\x80\x67\xff" + b"\xec\x40\x02xx"
    for seconds, content in packets:
        begin = round(seconds * 1000) - 500
        stream += b"\x1f\x43\xb6\x75\x01" + b"\xff" * 7 + b"\xe7\x84" + begin.to_bytes(4, "big")
        block = b"\x81" + (500).to_bytes(2, "big") + b"\x80" + content
        stream += b"\xa3" + (1 << 28 | len(block)).to_bytes(4, "big") + block
    return stream + b"\x1c\x53\xbb\x6b\x83end"


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_packets_whatever_the_parts_they_come_in(size):
    packets = [(5.0, b"ab" * 100), (5.02, b""), (70000.25, b"cd" * 3)]
    stream = matroska(*packets)
    parts = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert list(read_packets(parts)) == packets
    assert list(read_packets(parts[: len(parts) // 2])) in (packets[:1], [])
    assert list(read_packets([])) == []


GAP_CASES = st.lists(st.tuples(st.floats(-3, 9), st.integers(1, 40)), min_size=1, max_size=9)


@given(GAP_CASES, st.lists(st.integers(1, 50), max_size=5))
def test_every_sample_comes_once_and_not_before_its_time(packets, cuts):
    """Whatever timestamps and blocks are; samples are numbered from 1, silence is 0."""
    gaps, time, total, latest = Gaps(sr=10, end=20), 0.0, 0, {}
    for leap, samples in packets:
        time += leap
        gaps.add_packet(time, samples)
        latest[total] = time - packets[0][0]
        total += samples
    samples = np.arange(1, total + 1, dtype=np.int16)
    filled = np.concatenate(list(gaps.fill(np.split(samples, sorted({cut for cut in cuts if cut < total})))))
    np.testing.assert_array_equal(filled[filled > 0], samples)
    positions = np.flatnonzero(filled)
    assert [gaps.seconds(sample) for sample in range(total)] == pytest.approx(positions / 10)
    for first, seconds in latest.items():
        assert positions[first] >= seconds * 10 - 2 or seconds > 20


def test_timestamps_past_the_end_are_wrong(sources, monkeypatch):
    """A container that says it is 4 s long holds no hour of silence."""
    file = make_gap("mkv", sources, 20.2)
    monkeypatch.setattr(tracks.Container, "length", 4.0)
    assert_beeps(audio.load_audio(file), BEEPS)


def test_memory_does_not_grow_with_a_gap(sources):
    """Silence of an hour comes block by block, as all else."""
    tracemalloc.start()
    seconds = sum(len(block) / 16000 for block in audio.stream_audio(make_gap("mkv", sources, 3500)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds == pytest.approx(3500 + LENGTH - 3.2, abs=0.05)
    assert peak < 16e6
