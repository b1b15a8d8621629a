"""Runs that are killed at any moment, and workers that die: what is there afterwards is that of an unbroken run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import warnings

import pyarrow.parquet as pq
import pytest
from archive_data import OPTIONS, content, write_recordings
from conftest import ROOT

from whisper_at.archive import processes, transcribe_archive

N = 9
PROGRAM = """
import sys
from whisper_at.archive import transcribe_archive
options = dict(language="en", sample_len=8, temperature=0.0)
transcribe_archive([sys.argv[1]], sys.argv[2], model="nano.en", settings=None, shard_size=2, **options)
"""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("recordings"), N, broken=3)


@pytest.fixture(scope="module")
def unbroken(recordings, tmp_path_factory):
    output = tmp_path_factory.mktemp("unbroken")
    summary = transcribe_archive([recordings], output, model="nano.en", shard_size=2, **OPTIONS)
    assert (summary.done, summary.failed) == (N - 1, 1)
    return output


def start(recordings, output):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(recordings), str(output)]
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_ends_as_an_unbroken_one(recordings, unbroken, tmp_path):
    """Once before anything is written, and once at a random moment after a part has been."""
    moments = random.Random(0)
    for least in (0, 1):
        process = start(recordings, tmp_path)
        while process.poll() is None and len(list((tmp_path / "files").glob("part-*"))) < least:
            time.sleep(0.01)
        time.sleep(moments.random() * (3 if least == 0 else 0.1))
        os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
    for path in (tmp_path / "files").glob("part-*"):
        pq.read_table(path)  # whole
    assert start(recordings, tmp_path).wait() == 0
    assert content(tmp_path) == content(unbroken)
    assert not list((tmp_path / "files").glob(".*"))


@pytest.mark.slow
def test_the_shards_of_a_worker_that_died_are_done_by_another(recordings, unbroken, tmp_path, monkeypatch):
    killed = []
    real = processes._Process.give

    def give(self, shard):
        real(self, shard)
        if shard is not None and not killed:
            killed.append(self.process.pid)
            os.kill(self.process.pid, signal.SIGKILL)

    monkeypatch.setattr(processes._Process, "give", give)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        transcribe_archive([recordings], tmp_path, model="nano.en", shard_size=2, workers=2, **OPTIONS)
    assert any("a worker died" in str(warning.message) for warning in caught)
    assert killed
    assert content(tmp_path) == content(unbroken)


def test_a_shard_that_costs_every_worker_is_left_undone_and_said(monkeypatch, recordings, tmp_path):
    """The rest is done all the same. The workers are stand-ins: threads that answer through pipes."""
    from whisper_at.archive.store import Shard
    from whisper_at.archive.worker import ShardReport

    started = []

    class Fake:
        def __init__(self, settings, description):
            import multiprocessing

            self.connection, self.theirs = multiprocessing.Pipe()
            self.shards, self.process = [], self
            self.exitcode = -9
            started.append(self)
            self.theirs.send(None)

        def give(self, shard):
            if shard is None or shard.number == 1:  # it is done, or dies
                self.theirs.close()
            else:
                self.theirs.send(ShardReport(shard.number, 0))
                self.theirs.send(None)
            if shard is not None:
                self.shards.append(shard)

        def join(self):
            self.connection.close()

        end = join

    monkeypatch.setattr(processes, "_Process", Fake)
    shards = [Shard(i, (), ()) for i in range(4)]
    done = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="shards 1;"):
            done.extend(report.number for report in processes.run_in_processes(shards, None, {}, 2))
    assert sorted(done) == [0, 2, 3]
    assert len(started) >= processes.MAX_ATTEMPTS
