"""``whisper-at archive``: its exit status, and what it tells of itself."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import noise

from whisper_at.cli import main


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "a.wav", noise(1), 16000)
    (folder / "b.wav").write_text("no recording")
    return folder


def archive(recordings, *more):
    output = recordings.parent / "out"
    return main(["archive", str(recordings), "-o", str(output), "--model", "nano.en", "--device", "cpu", *more])


def test_a_failed_recording_is_told_in_the_log_the_metrics_and_the_status(recordings, tmp_path, capsys):
    metrics = tmp_path / "metrics.prom"
    assert archive(recordings, "--log", "json", "--metrics", str(metrics)) == 1
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines] == ["start", "file", "file", "part", "end"]
    files = {line["label"][-5:]: line["error"] for line in lines if line["event"] == "file"}
    assert files["a.wav"] is None
    assert files["b.wav"].startswith("RuntimeError: Failed to load audio")
    assert (lines[-1]["done"], lines[-1]["failed"]) == (1, 1)
    assert 'whisper_at_archive_recordings{state="failed"} 1' in metrics.read_text().splitlines()
    assert archive(recordings, "--quiet") == 0
    assert "2 done before" in capsys.readouterr().out


def test_text_alone_has_neither_tags_nor_events(recordings, tmp_path):
    assert archive(recordings, "--quiet", "--head", "none", "--word_timestamps", "False") == 1
    row = pq.read_table(tmp_path / "out" / "files").to_pylist()[0]
    assert (row["tags"], row["events"], row["words"]) == ([], [], None)


@pytest.mark.parametrize(
    "arguments",
    [["--workers", "2,4"], ["--address", "auto"], ["--workers", "0"], ["--head", "none", "--at_time_res", "2"]],
)
def test_arguments_that_do_not_go_together_are_refused(recordings, arguments):
    with pytest.raises(SystemExit) as stopped:
        archive(recordings, *arguments)
    assert stopped.value.code == 2
    assert not (recordings.parent / "out").exists()
