"""The mel in blocks: upstream's numbers at every length, and memory that does not grow with the recording."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whisper
from conftest import ROOT, noise

from whisper_at import audio, mel
from whisper_at.mel import LogMel
from whisper_at.tagging.timeline import TagRows

SILENCE = 480000
BLOCK = 100  # frames; small, so that a few seconds make many blocks
EDGE = BLOCK * 160


def upstream_mel(samples: np.ndarray | torch.Tensor, n_mels: int = 80) -> torch.Tensor:
    """Compute what the installed openai-whisper's `transcribe` decodes from."""
    return whisper.log_mel_spectrogram(samples, n_mels, padding=SILENCE)


def all_frames(spectrogram: LogMel) -> torch.Tensor:
    return spectrogram.window(0, spectrogram.n_frames)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("samples", [0, 1, 2, 159, 160, 199, 200, 201, 399, 400, 401, 15999, 16000, 16001, 470000])
def test_up_to_one_block_it_is_upstreams_to_the_last_bit(samples, n_mels):
    sound = noise(30, 1)[:samples]
    sound = sound + np.float32(0.01)  # the first samples count
    expected = upstream_mel(sound, n_mels)
    with LogMel(sound, n_mels) as spectrogram:
        assert spectrogram.n_frames == expected.shape[1]
        assert spectrogram.content_frames == expected.shape[1] - 3000
        assert torch.equal(all_frames(spectrogram), expected)


LENGTHS = [blocks * EDGE + extra for blocks in (1, 2, 5) for extra in (-401, -201, -200, -1, 0, 1, 160, 200, 201, 400)]


@pytest.mark.parametrize("samples", [0, 1, 199, 200, 201, 400, 12345, *LENGTHS])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_many_blocks_are_upstreams(samples, as_tensor):
    sound = noise(6, 2)[:samples]
    expected = upstream_mel(sound)
    with LogMel(torch.from_numpy(sound) if as_tensor else sound, block_frames=BLOCK) as spectrogram:
        assert spectrogram.n_frames == expected.shape[1]
        # products of fewer columns may be summed in another order: the last bit of a number near 1
        torch.testing.assert_close(all_frames(spectrogram), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("block_frames", [3, 4, 7, 50])
def test_blocks_may_be_as_short_as_a_window(block_frames):
    sound = noise(2, 3)
    with LogMel(sound, block_frames=block_frames) as spectrogram:
        torch.testing.assert_close(all_frames(spectrogram), upstream_mel(sound), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="block_frames must be at least 3"):
        LogMel(sound, block_frames=2)


def test_blocks_of_samples_are_the_recording():
    sound = noise(75, 4)
    with LogMel(block for block in np.split(sound, [480_000, 960_000])) as of_blocks, LogMel(sound) as spectrogram:
        assert of_blocks.content_frames == 7500
        assert torch.equal(all_frames(of_blocks), all_frames(spectrogram))


def test_several_blocks_of_the_usual_size():
    sound = noise(95.3, 4)
    with LogMel(sound) as spectrogram:
        torch.testing.assert_close(all_frames(spectrogram), upstream_mel(sound), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loud_at", [0.0, 2.5, 4.95, 4.99999])
def test_the_loudest_moment_decides_wherever_it_is(loud_at):
    """Also in the last samples, which lie in the middle of frames of the silence only."""
    sound = noise(5) * np.float32(1e-4)
    sound[round(loud_at * 16000) :][:400] = 0.9
    expected = upstream_mel(sound)
    with LogMel(sound, block_frames=BLOCK) as spectrogram:
        torch.testing.assert_close(spectrogram.window(100, 200), expected[:, 100:200], atol=1e-6, rtol=0)
    assert (expected == expected.min()).float().mean() > 0.9  # nearly all is cut off at 8 below the loudest


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("sample", "seconds"), [(0, "0.0000"), (20000, "1.2500"), (479999, "29.9999"), (500001, "31.25")]
)
def test_a_sample_that_is_not_a_number_is_told_with_its_place(value, dtype, sample, seconds):
    """Upstream writes "!!!!" from such audio, or fails inside of PyTorch: the mel is NaN from end to end."""
    sound = noise(32)
    sound[sample] = value
    sound = torch.from_numpy(sound).to(dtype) if isinstance(dtype, torch.dtype) else sound
    with pytest.raises(ValueError, match=f"audio must be finite, but 1 of its 512000 .* at {seconds}") as error:
        LogMel(sound, block_frames=BLOCK)
    assert str(float(value)) in str(error.value)
    if isinstance(sound, np.ndarray):
        with pytest.raises(ValueError, match=f"at {seconds}"):
            audio.log_mel_spectrogram(sound)


@pytest.mark.parametrize("value", [1e25, -3e30])
def test_a_sample_too_large_to_be_squared_is_told_with_its_place(value):
    sound = noise(3)
    sound[20000] = value
    with pytest.raises(ValueError, match=r"between -1 and 1: that at 1\.2[345] s is too large"):
        LogMel(sound, block_frames=BLOCK)


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 3000), (17, 18), (250, 99999), (3400, 3500), (5000, 6000), (9, 9), (9, 3), (-100, 2900), (-5, -1)],
)
@pytest.mark.parametrize("in_memory", [1 << 20, 1000])
def test_a_window_is_a_slice(start, end, in_memory):
    sound = noise(4.2, 5)
    with LogMel(sound, in_memory=in_memory) as spectrogram:
        first = spectrogram.window(start, end)
        assert first.dtype == torch.float32
        assert first.is_contiguous()
        assert torch.equal(first, upstream_mel(sound)[:, start:end])
        first.zero_()
        assert torch.equal(spectrogram.window(start, end), upstream_mel(sound)[:, start:end])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_samples_of_half_precision(dtype):
    sound = torch.from_numpy(noise(3)).to(dtype)
    with LogMel(sound, block_frames=BLOCK) as spectrogram:
        torch.testing.assert_close(all_frames(spectrogram), upstream_mel(sound), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [np.float64, np.int16])
def test_samples_of_another_type_are_refused_as_upstream_does(dtype):
    with pytest.raises(RuntimeError):
        upstream_mel(noise(1).astype(dtype))
    with pytest.raises(RuntimeError, match=f"^audio must be float32 between -1 and 1, not {dtype.__name__}; "):
        LogMel(noise(1).astype(dtype))


def test_several_channels_are_refused():
    with pytest.raises(RuntimeError, match=r"one channel of shape \(samples,\), not \(2, 16000\)"):
        LogMel(np.stack([noise(1), noise(1)]))
    with pytest.raises(TypeError):
        LogMel([0.0, 0.1])  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0.5, 3.0, 3.17])
def test_a_path_is_what_load_audio_reads(tmp_path, seconds):
    soundfile.write(tmp_path / "a.wav", noise(seconds), 16000)
    expected = upstream_mel(audio.load_audio(tmp_path / "a.wav"))
    for path in (tmp_path / "a.wav", str(tmp_path / "a.wav")):
        with LogMel(path, block_frames=BLOCK) as spectrogram:
            torch.testing.assert_close(all_frames(spectrogram), expected, atol=1e-6, rtol=0)
    array = LogMel(audio.load_audio(tmp_path / "a.wav"), block_frames=BLOCK)
    with array, LogMel(tmp_path / "a.wav", block_frames=BLOCK) as from_path:
        assert torch.equal(all_frames(from_path), all_frames(array))


# ------------------------------------------------------------------------------------------ the temporary file


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list:
    """Return the temporary files that are made, in order."""
    made: list = []
    spooled = mel.tempfile.SpooledTemporaryFile

    def record(*args, **kwargs):
        made.append(spooled(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(mel.tempfile, "SpooledTemporaryFile", record)
    return made


def test_closed_at_the_end_of_with_also_after_an_error(files):
    with LogMel(noise(1)):
        assert not files[0].closed
    with pytest.raises(KeyError), LogMel(noise(1)) as spectrogram:
        raise KeyError
    assert [file.closed for file in files] == [True, True]
    with pytest.raises(ValueError, match="closed"):
        spectrogram.window(0, 10)
    spectrogram.close()


def test_closed_when_dropped(files):
    spectrogram = LogMel(noise(1))
    assert not files[0].closed
    del spectrogram
    gc.collect()
    assert files[0].closed


def test_closed_when_the_audio_ends_in_an_error(files, tmp_path, monkeypatch):
    def breaks_off(*args, **kwargs):
        yield noise(1)
        raise RuntimeError("Failed to load audio: a.wav: broken")

    monkeypatch.setattr(mel, "stream_audio", breaks_off)
    with pytest.raises(RuntimeError, match="broken"):
        LogMel(tmp_path / "a.wav", block_frames=BLOCK)
    assert files[0].closed


def test_closed_by_transcribe(files, model_en):
    model_en.transcribe(noise(2), temperature=0.0, sample_len=4)
    with pytest.raises(ValueError, match="patience"):
        model_en.transcribe(noise(2), temperature=0.0, patience=2.0)  # which needs beams
    assert [file.closed for file in files] == [True, True]


@pytest.mark.parametrize(("in_memory", "on_disk"), [(10_000_000, False), (1000, True)])
def test_on_disk_only_past_what_memory_may_hold(files, in_memory, on_disk):
    with LogMel(noise(3), in_memory=in_memory):
        assert files[0]._rolled is on_disk


@pytest.mark.parametrize("room", [0, 600_000])
def test_a_full_disk_is_one_clear_error(files, monkeypatch, tmp_path, room):
    """The file is closed and ffmpeg ended, although what is left to write can never be written."""
    processes = []
    popen = subprocess.Popen

    def record(*args, **kwargs):
        processes.append(popen(*args, **kwargs))
        return processes[-1]

    class FullDisk:
        """Takes ``room`` bytes, then nothing more, not even on closing."""

        def __init__(self, **_):
            self.written, self.closed = 0, False

        def write(self, data):
            self.written += memoryview(data).nbytes
            self.flush()

        def flush(self):
            if self.written > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            self.closed = True
            self.flush()

    soundfile.write(tmp_path / "a.wav", noise(60), 16000)
    audio.ffmpeg_binary()  # finding it may start one
    monkeypatch.setattr(subprocess, "Popen", record)
    monkeypatch.setattr(mel.tempfile, "SpooledTemporaryFile", lambda **_: files.append(FullDisk()) or files[-1])
    with pytest.raises(RuntimeError) as caught:
        LogMel(tmp_path / "a.wav", block_frames=BLOCK)
    assert str(caught.value) == (
        "cannot store the mel spectrogram on disk: No space left on device; make room, or name another folder in TMPDIR"
    )
    assert files[0].closed
    assert processes  # of a quiet recording a second one decodes the channels
    assert all(process.poll() is not None for process in processes)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_for_real(monkeypatch):
    monkeypatch.setattr(mel.tempfile, "SpooledTemporaryFile", lambda **_: open("/dev/full", "r+b"))  # noqa: SIM115
    with pytest.raises(RuntimeError, match="cannot store the mel spectrogram on disk: No space left on device"):
        LogMel(noise(1))


# ------------------------------------------------------------------------------------------ growth with length


def test_pooled_states_are_dropped_once_rows_are_made(model_en, monkeypatch):
    """Of windows before the last one only those are held that a row of at most 30 s, not yet settled, overlaps."""
    age = []
    flush = TagRows.flush

    def watch(rows, before):
        flush(rows, before)
        if before <= 20000:  # not the last one, at the end of everything
            age.extend(before - window.end for window, _, _ in rows._held)

    monkeypatch.setattr(TagRows, "flush", watch)
    result = model_en.transcribe(noise(200), at_time_res=[0.4, 10, 60], temperature=0.0, sample_len=4)
    assert len(result["audio_tag"][0.4]) == 500
    assert len(age) > 7
    assert max(age) < 3000


@pytest.mark.skipif(sys.platform == "win32", reason="getrusage")
def test_memory_does_not_grow_with_length():
    """Three minutes and fifteen: audio and mel held whole would take 69 MB more, and far more in the making."""
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--mel-only", "--in-memory", "4"]
    done = subprocess.run([*command, "0.05", "0.25"], capture_output=True, text=True, check=True)
    peaks = [float(line.split()[1]) for line in done.stdout.splitlines()[1:]]
    assert len(peaks) == 2, done.stdout
    assert peaks[1] - peaks[0] < 25


def test_blocks_are_made_one_at_a_time(monkeypatch):
    """No block of audio is read before the mel of the one before is stored."""
    order: list[str] = []

    def blocks(*_, **__):
        for _ in range(4):
            order.append("audio")
            yield noise(1)

    append = LogMel._append
    monkeypatch.setattr(mel, "stream_audio", blocks)
    monkeypatch.setattr(LogMel, "_append", lambda self, block: (order.append("mel"), append(self, block))[1])
    with LogMel("a.wav", block_frames=BLOCK) as spectrogram:
        assert spectrogram.content_frames == 400
    assert [name for name, _ in itertools.groupby(order)] == ["audio", "mel"] * 4
