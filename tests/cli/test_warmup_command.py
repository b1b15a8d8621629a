"""`whisper-at warmup`: what it compiles, says, and refuses."""

from __future__ import annotations

import pytest

from whisper_at import cli
from whisper_at.cli import warmup
from whisper_at.engine import compilation
from whisper_at.engine.kernel_cache import cache_folder


def test_it_says_what_is_where(capsys):
    """The tests' own kernels have been compiled."""
    assert cli.main(["warmup", "--compute_type", "float32"]) == 0
    assert capsys.readouterr().out == (
        "float32: compiled before\n"
        f"Kernels for this processor ({compilation.target_processor()}) are in {cache_folder()}\n"
    )


def test_it_counts_what_is_new(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WHISPER_AT_CACHE", str(tmp_path))
    monkeypatch.setattr(warmup, "warm_up", lambda compute_type: (tmp_path / f"{compute_type}.kernel").touch() or True)
    assert cli.main(["warmup"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [f"{compute_type}: 1 kernels compiled in 0 s" for compute_type in warmup.COMPUTE_TYPES]
    assert lines[:-1] == expected


def test_it_does_not_end_well_without_kernels(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WHISPER_AT_CACHE", str(tmp_path))
    monkeypatch.setattr(warmup, "warm_up", lambda _: False)
    assert cli.main(["warmup", "--compute_type", "int8"]) == 1
    assert "the kernels for int8 could not be compiled" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to(capsys, monkeypatch):
    monkeypatch.setenv("WHISPER_AT_CACHE", "/dev/null/kernels")
    assert cli.main(["warmup"]) == 1
    assert "nothing can be written to /dev/null/kernels; set WHISPER_AT_CACHE" in capsys.readouterr().err


def test_wrong_precisions():
    with pytest.raises(SystemExit) as caught:
        cli.main(["warmup", "--compute_type", "float16"])
    assert caught.value.code == 2
