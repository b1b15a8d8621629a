"""A command's module runs as the command does: ``python -m whisper_at.cli.adapt`` is ``whisper-at adapt``."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

from whisper_at import cli

COMMANDS = [*cli.SUBCOMMANDS, cli.TRANSCRIBE]


def run_module(monkeypatch, command: str, *argv: str) -> object:
    monkeypatch.setattr(sys, "argv", ["-m", *argv])
    monkeypatch.delitem(sys.modules, f"whisper_at.cli.{command.replace('-', '_')}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"whisper_at.cli.{command.replace('-', '_')}", run_name="__main__")
    return ended.value.code


def test_every_module_with_a_main_is_a_command():
    sources = (ROOT / "whisper_at" / "cli").glob("*.py")
    mains = {path.stem for path in sources if "\ndef main(" in path.read_text(encoding="utf-8")}
    assert mains - {"__init__"} == {command.replace("-", "_") for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_module_is_its_command(monkeypatch, capsys, command):
    assert run_module(monkeypatch, command, "--help") == 0
    module = capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main([*([] if command == cli.TRANSCRIBE else [command]), "--help"])
    assert ended.value.code == 0
    assert module == capsys.readouterr().out
    assert module.startswith("usage: whisper-at")


def test_errors_of_a_module_are_one_line_and_a_status(monkeypatch, capsys):
    assert run_module(monkeypatch, "convert", "missing.pt", "out.safetensors") == 1
    assert capsys.readouterr().err.startswith("whisper-at convert: error: ")


def test_nothing_else_is_said(tmp_path):
    """As of a module that is loaded twice; and a file of the command's name does not make it another command."""
    (tmp_path / "transcribe").touch()
    call = [sys.executable, "-W", "error", "-m", "whisper_at.cli.transcribe", "--help"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "usage: whisper-at" in ended.stdout
