"""Workers on Ray write what one process writes; one that is killed is replaced."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil
import pytest
from archive_data import OPTIONS, content, write_recordings
from conftest import ROOT

from whisper_at.archive import transcribe_archive

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

pytestmark = pytest.mark.slow
N = 8


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("recordings"), N)


def kill_an_actor(output, killed):
    """Kill one of the processes that have loaded a model, once a part is there."""
    while not killed and threading.main_thread().is_alive():
        if list((output / "files").glob("part-*")):
            for process in psutil.process_iter(["name", "cmdline"]):
                if "RayWorker" in " ".join(process.info["cmdline"] or []) + (process.info["name"] or ""):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
        time.sleep(0.02)


def test_two_workers_of_which_one_is_killed_write_what_one_process_writes(cluster, recordings, tmp_path):
    plain, output = tmp_path / "plain", tmp_path / "ray"
    options = {"model": "nano.en", "shard_size": 1, **OPTIONS}
    transcribe_archive([recordings], plain, **options)
    killed: list[int] = []
    killer = threading.Thread(target=kill_an_actor, args=(output, killed), daemon=True)
    killer.start()
    summary = transcribe_archive([recordings], output, engine="ray", workers=2, **options)
    killed.append(0)
    assert killed[0], "no actor was found to be killed"
    assert summary.done + summary.skipped == N
    assert content(output) == content(plain)
