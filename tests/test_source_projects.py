"""Every line of docs/source-projects.md does what it says, as far as it can without downloads and data sets."""

from __future__ import annotations

import re
import runpy
import shlex

import pytest
import torch
from conftest import ROOT

import whisper_at
from whisper_at import adapt, embed
from whisper_at.adapt.config import read_config
from whisper_at.cli import SUBCOMMANDS, main

PAGE = (ROOT / "docs" / "source-projects.md").read_text("utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
HERE = [code for row in ROWS for cell in row[1:] for code in re.findall(r"`([^`]+)`", cell)]
COMMANDS = [code for code in HERE if code.startswith("whisper-at ")]
COUNTS = [code for code in COMMANDS if code.startswith("whisper-at adapt count")]
NEEDS_A_DOWNLOAD = ('adapt.load_model("', 'embed.load_fusion("AST-Fusion")', "weights=FILE")
IS_PYTHON = re.compile(
    r"from whisper_at|model = |result = |_, states = |assert |embed\.|adapt\.|whisper\.load_model\(.nano"
)
PYTHON = [code for code in HERE if IS_PYTHON.match(code) and not any(part in code for part in NEEDS_A_DOWNLOAD)]
FLAGS = runpy.run_path(str(ROOT / "docs" / "scripts" / "flags.py"))


def test_the_page_has_all_projects():
    projects = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert projects == ["Whisper-AT", "PEFT-SER", "PETL_AST", "WhisPAr", "Composing general audio representation"]
    assert len(COUNTS) >= 20
    assert len(PYTHON) >= 8
    options = "prompt_len bottleneck_dim adapt_list audio_len cls_num bs_train bs_eval epochs lr warmup_step data_dir"
    options += " 01_preprocess 02_train 03_test is_AST seq_or_par apply_residual is_deep_prompt drop_prompt num_slots"
    options += " GeneralPurposeVGGish GeneralPurposeCnn14 encode_frames 2pass_lineareval audio_features_for_at"
    assert [name for name in options.split() if name not in PAGE] == []


@pytest.mark.parametrize("command", COUNTS)
def test_counts(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)[1:]) == 0
    assert int(re.search(r"trainable\D+([\d,]+)", capsys.readouterr().out).group(1).replace(",", "")) > 0


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in COUNTS])
def test_other_commands_name_files_and_flags_that_there_are(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, name, *rest = shlex.split(command)
    assert name in SUBCOMMANDS
    known = set().union(*(FLAGS["flags"](parser) for _, parser in FLAGS["parsers"](name)))
    assert {word for word in rest if word.startswith("-") and word != "-o"} <= known
    configs = [rest[i + 1] for i, word in enumerate(rest) if word == "--config"]
    assert all((ROOT / config).is_file() for config in configs)
    if name == "adapt":
        read_config(configs, [rest[i + 1] for i, word in enumerate(rest) if word == "--set"])


@pytest.mark.parametrize("code", PYTHON)
def test_lines_of_python(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(code, {"whisper": whisper_at, "adapt": adapt, "embed": embed, "torch": torch})


def test_changes_of_settings():
    """What the page sets with --set is a setting."""
    for change in re.findall(r"`(--set [^`]+)`", PAGE):
        changes = [word for word in shlex.split(change) if word != "--set" and "=DIR" not in word]
        if not any(word.startswith(("lr=", "epochs=", "mode=")) for word in changes):  # of `train`
            read_config(ROOT / "recipes/whispar/whispar.toml", changes)
