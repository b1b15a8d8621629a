"""``whisper-at live``: a file as if it were said now, lines of JSON, result files at the end."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, command_process

from whisper_at import cli

SPEECH = str(ROOT / "sample/speech.flac")


def test_lines_of_json_and_files_at_the_end(tmp_path, capsys):
    options = shlex.split(f"--model nano.en --json --interval 2 --at_time_res 2 -f srt,json -o {tmp_path}")
    assert cli.main(["live", SPEECH, *options]) == 0
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"final", "partial", "row"} <= {message["type"] for message in messages}
    text = "".join(message["text"] for message in messages if message["type"] == "final")
    result = json.loads((tmp_path / "speech.json").read_text())
    assert result["text"] == text
    assert len(result["audio_tag"]) == 8
    assert (tmp_path / "speech.srt").read_text().startswith("1\n00:00:")


def test_lines_where_there_is_no_terminal(capsys):
    assert cli.main(["live", SPEECH, *shlex.split("--model nano.en --interval 4 --head none")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.startswith("[00:00:") and "\x1b" not in line for line in lines)


def test_ctrl_c_ends_a_pipe_with_all_that_was_said():
    """Standard input stays open: what was said before Ctrl-C is there, the last words too."""
    command = ["live", "-", *shlex.split("--model nano.en --head none --json")]
    with command_process(*command, stdin=subprocess.PIPE, stderr=None) as process:
        process.stdin.write(Path(SPEECH).read_bytes())
        process.stdin.flush()
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        process.stdin.close()
    assert process.returncode == 0
    messages = [json.loads(line) for line in (first + rest).splitlines()]
    assert any(message["type"] == "final" for message in messages)
    assert messages[-1] in ({"type": "partial", "text": "", "words": []}, messages[-1] | {"type": "final"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--head none --at_time_res 2", "leave out --head none"),
        ("--microphone 2", "--microphone is for no AUDIO"),
        ("--policy luck", "invalid choice"),
    ],
)
def test_what_cannot_be_together(options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["live", SPEECH, "--model", "nano.en", *shlex.split(options)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_none(tmp_path, capsys):
    (tmp_path / "a.wav").write_text("nothing")
    assert cli.main(["live", str(tmp_path / "a.wav"), "--model", "nano.en", "--head", "none"]) == 1
    assert "Failed to load audio" in capsys.readouterr().err
