"""Packages of the extras are imported when they are used, not before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

EXTRAS = (
    "matplotlib sklearn scipy pyarrow jiwer tomli transformers fastapi python_multipart uvicorn starlette peft "
    "huggingface_hub sounddevice soundfile duckdb ray polars pandas".split()
)
BLOCK = f"import sys\nfor name in {EXTRAS!r}: sys.modules[name] = None\n"


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK + program]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=env)


def test_every_module_imports_without_them():
    """But for the server, every one of whose modules is made of fastapi."""
    program = """
import importlib, pkgutil, whisper_at
for module in pkgutil.walk_packages(whisper_at.__path__, "whisper_at.", onerror=lambda name: None):
    if module.name.endswith("__main__") or module.name.startswith(("whisper_at.serve", "whisper_at.cli.serve")):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        print(module.name, error)
"""
    found = run(program)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


COMMANDS_THAT_NEED_NONE = [
    ["adapt", "count", "--set", "backbone=nano.en", "--set", "classes=31", "--set", "frames=400"],
    ["count", "nano.en"],
    ["models"],
    *(
        [command, "--help"]
        for command in "train features evaluate count study adapt embed search lineareval archive find".split()
    ),
]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="recipes need tomli")
def test_commands_that_need_none():
    program = f"""
import contextlib, io
from whisper_at.cli import main
for arguments in {COMMANDS_THAT_NEED_NONE!r}:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code
    if status or not printed.getvalue().strip():
        print(arguments, status)
"""
    found = run(program)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


def test_a_command_that_needs_one_says_which():
    found = run("from whisper_at.cli import main; sys.exit(main(['serve', '--model', 'nano.en']))")
    assert found.returncode == 1
    assert 'pip install ".[serve]"' in found.stderr
