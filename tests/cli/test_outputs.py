"""Where results go: names that collide, pipes that close, Ctrl-C, standard input, and tags that cannot be had."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, command_process, noise

from whisper_at import cli
from whisper_at.cli import reporting
from whisper_at.cli.outputs import output_names

QUIET = ["--device", "cpu", "--fp16", "False", "--verbose", "False", "--beam_size", "None", "--temperature", "0"]
QUIET += ["--temperature_increment_on_fallback", "None"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with short recordings in folders of their own."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a/x.wav", "b/x.flac", "b/x.wav", "b/y.wav", "x.wav")):
        Path(name).parent.mkdir(exist_ok=True)
        soundfile.write(name, noise(1 + i / 2, i), 16000)
    return tmp_path


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.wav", "b/y.wav"], {}),
        (["a/x.wav", "a/x.wav"], {}),
        (["a/x.wav", "./a/x.wav"], {}),
        (["a/x.wav", "b/x.mp3"], ["x.wav", "x.mp3"]),
        (["a/x.wav", "b/x.wav"], ["a-x", "b-x"]),
        (["a/x.wav", "b/x.wav", "b/x.mp3"], ["a-x.wav", "b-x.wav", "b-x.mp3"]),
        (["1/a/x.wav", "2/a/x.wav"], ["1-a-x", "2-a-x"]),
        (["a/x.wav", "b/x.mp3", "x.mp3.wav"], ["a-x", "b-x", None]),
        (["x.tar.gz", "b/x.tar.xz"], ["x.tar.gz", "x.tar.xz"]),
    ],
    ids=str,
)
def test_names_differ_where_stems_do_not(paths, names, folder):
    expected = {path: name for path, name in zip(paths, names) if name} if names else {}
    assert output_names(paths) == expected


@pytest.mark.parametrize(
    ("paths", "written", "batch"),
    [
        (["a/x.wav", "b/x.flac"], ["x.flac.txt", "x.wav.txt"], []),
        (["a/x.wav", "b/x.wav", "b/y.wav"], ["a-x.txt", "b-x.txt", "y.txt"], ["--batch_size", "2"]),
        (["a/x.wav", "b/y.wav"], ["x.txt", "y.txt"], []),
    ],
)
def test_no_result_overwrites_another(folder, checkpoint, capsys, paths, written, batch):
    command = [*paths, "--model", str(checkpoint), "-o", "out", "-f", "txt", *QUIET, *batch]
    assert cli.main(command) == 0
    assert sorted(os.listdir("out")) == written
    assert ("are named" in capsys.readouterr().err) == ("x.txt" not in written)
    alone = ["-o", "alone", "-f", "txt", "--model", str(checkpoint), *QUIET, *batch]
    for path in paths:
        assert cli.main([path, *alone]) == 0
        name = output_names(paths).get(path, Path(path).stem)
        assert Path("out", f"{name}.txt").read_text() == Path("alone", f"{Path(path).stem}.txt").read_text()


# --- standard input and paths -------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [[], ["--audio"]])
@pytest.mark.parametrize("batch", [[], ["--batch_size", "2"]])
def test_standard_input(folder, checkpoint, monkeypatch, flag, batch):
    common = ["--model", str(checkpoint), "-o", "out", "-f", "json", *QUIET, *batch]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path("a/x.wav").read_bytes())))
    assert cli.main(["a/x.wav", *common]) == 0
    assert cli.main([*common, *flag, "-"]) == 0
    assert json.loads(Path("out/stdin.json").read_text()) == json.loads(Path("out/x.json").read_text())


def test_standard_input_that_is_no_recording_is_told_as_any_file(folder, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"no recording")))
    assert cli.main(["-", "x.wav", "--model", str(checkpoint), "-o", "out", "-f", "txt", *QUIET]) == 1
    assert (
        "Skipping standard input due to RuntimeError: Failed to load audio: standard input" in capsys.readouterr().err
    )
    assert os.listdir("out") == ["x.txt"]
    with pytest.raises(SystemExit):
        cli.main(["-", "-", "--model", "nano.en"])


def test_home_folder_in_paths(folder, checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    Path("~y.wav").write_bytes(Path("b/y.wav").read_bytes())
    command = [
        "~/x.wav",
        "~y.wav",
        f"--model=~/{os.path.relpath(checkpoint, folder)}",
        "--output_dir=~/out",
        "-f",
        "txt",
    ]
    assert cli.main([*command, *QUIET]) == 0
    assert sorted(os.listdir("out")) == ["x.txt", "~y.txt"]


# --- pipes and Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tags", "buffered"), [([], True), (["--at_time_res", "4"], False)])
def test_a_reader_that_goes_away_loses_the_rest_of_the_screen_only(tmp_path, tags, buffered, monkeypatch):
    """As ``| head -1`` does: a traceback, and no files."""
    if not buffered:
        monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    sample = str(ROOT / "sample" / "street.ogg")
    command = [sample, "--model", "nano.en", "-f", "txt", "-o", ".", *QUIET[:4], *tags]
    with command_process(*command, cwd=tmp_path) as running:
        running.stdout.close()
        errors = running.stderr.read().decode()
        assert running.wait() == 0
    assert "Traceback" not in errors
    assert "Broken" not in errors
    assert "open the door" in (tmp_path / "street.txt").read_text()


def test_other_commands_and_help_outlive_their_readers_too(tmp_path):
    for arguments in (["models"], ["--help"]):
        with command_process(*arguments, cwd=tmp_path) as running:
            running.stdout.close()
            assert "rror" not in running.stderr.read().decode()
            assert running.wait() == 0


@pytest.mark.parametrize("batch", [[], ["--batch_size", "2"]])
def test_ctrl_c_is_one_line_and_leaves_nothing_half_written(tmp_path, batch):
    soundfile.write(tmp_path / "short.wav", np.zeros(8000), 16000)
    soundfile.write(tmp_path / "long.wav", np.tile(soundfile.read(ROOT / "sample" / "street.ogg")[0], 40), 16000)
    command = ["short.wav", "long.wav", "--model", "nano.en", "-f", "all", "-o", "out", *QUIET, *batch]
    with command_process(*command, cwd=tmp_path) as running:
        while not (tmp_path / "out" / "short.json").exists() and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        errors = running.stderr.read().decode()
        assert running.wait() == reporting.INTERRUPTED == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].endswith("interrupted; 1 of 2 recordings are transcribed and written")
    assert sorted(os.listdir(tmp_path / "out")) == [
        f"short.{ending}" for ending in ("json", "srt", "tsv", "txt", "vtt")
    ]


def test_warnings_are_one_line():
    with reporting.one_line_warnings():
        assert (
            warnings.formatwarning(UserWarning("so\nit is"), UserWarning, "x.py", 3)
            == "whisper-at: warning: so it is\n"
        )
    assert "x.py:3" in warnings.formatwarning(UserWarning("so"), UserWarning, "x.py", 3)


def test_ctrl_c_while_a_model_loads_is_one_line(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("whisper_at.loading.load_model", interrupt)
    assert cli.main(["a.wav", "--model", "nano.en"]) == 130
    assert capsys.readouterr().err == "whisper-at: interrupted\n"


class OwnStream:
    """What a program has set in the place of stdout: it takes text and can do nothing else."""

    def __init__(self, broken: bool = False) -> None:
        self.text, self.broken = "", broken

    def write(self, text: str) -> int:
        if self.broken:
            raise BrokenPipeError
        self.text += text
        return len(text)


@pytest.mark.parametrize("broken", [False, True])
def test_streams_of_a_programs_own(folder, monkeypatch, broken):
    """Of any kind that print takes; also one that breaks, and none at all."""
    out, err = OwnStream(broken), OwnStream(broken)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["x.wav", "missing ü.wav", "--model", "nano.en", "-o", "out", *QUIET, "--verbose", "True"]) == 1
    assert (folder / "out" / "x.txt").is_file()
    if not broken:
        assert out.text.startswith("[00:00.000 --> ") or out.text == ""
        assert "Skipping missing ü.wav due to FileNotFoundError: No such audio file: missing ü.wav\n" in err.text
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["missing.wav", "--model", "nano.en", "-o", "out", *QUIET]) == 1


# --- tags without a head ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--at_time_res 10", "--at_time_res"),
        ("--sound_captions -f srt", "--captions"),
        ("--top_k 3 --include_classes Dog", "--top_k, --include_classes"),
        ("--head auto", "--head"),
    ],
)
@pytest.mark.parametrize("model", ["turbo", "a file"])
def test_tags_without_a_head_are_refused_once_before_any_file_is_read(folder, checkpoint, capsys, flags, named, model):
    """For a model of a known name before it is loaded; for a file when its encoder is known."""
    model = str(checkpoint) if model == "a file" else model
    try:
        status = cli.main(["missing.wav", "x.wav", "--model", model, "-o", "out", *QUIET, *flags.split()])
    except SystemExit as error:
        status = error.code
    assert status in (1, 2)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert f"no tagging head is published for {model}" in errors
    assert "train a head with `whisper-at train` and give it as --head FILE" in errors
    assert f"to transcribe without tags, leave out {named}" in errors
    assert "load_model" not in errors
    assert not Path("out").exists() or not os.listdir("out")


def test_the_server_says_the_same(folder, checkpoint, capsys, monkeypatch):
    served = []
    monkeypatch.setattr("uvicorn.run", lambda app, **_: served.append(app))
    assert cli.main(["serve", "--model", str(checkpoint), "--device", "cpu", "--head", "auto"]) == 1
    with pytest.raises(SystemExit):
        cli.main(["serve", "--model", "turbo", "--head", "auto"])
    for line in capsys.readouterr().err.splitlines():
        assert "no tagging head is published for" in line
        assert "`whisper-at train`" in line
        assert "give --head none" in line
    assert not served
    assert cli.main(["serve", "--model", str(checkpoint), "--device", "cpu"]) == 0
    assert "requests for text alone are served" in capsys.readouterr().err
    assert cli.main(["serve", "--model", str(checkpoint), "--device", "cpu", "--head", "none"]) == 0
    assert capsys.readouterr().err == ""
    assert len(served) == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", None),
        ("--at_time_res 10", "--at_time_res has no effect with --head none"),
        ("--top_k 3 --at_time_res 2", "--at_time_res, --top_k have no effect with --head none"),
        ("--p_threshold=-9 --label_language de --include_classes Dog", "--include_classes have no effect"),
    ],
)
@pytest.mark.parametrize("model", ["a file", "nano.en"])
def test_no_head_is_text_alone_at_the_cost_of_text_alone(folder, checkpoint, monkeypatch, flags, says, model):
    """A script whose flags ask for tags goes on without them: for a model that has no head, and where one would do."""
    model = str(checkpoint) if model == "a file" else model
    monkeypatch.setattr("whisper_at.checkpoints.find_head", lambda *_, **__: pytest.fail("a head was looked for"))
    assert cli.main(["x.wav", "--model", model, "-o", "plain", *QUIET]) == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cli.main(["x.wav", "--model", model, "-o", "out", *QUIET, *flags.split(), "--head", "none"]) == 0
    said = [str(warning.message) for warning in caught if "--head" in str(warning.message)]
    assert len(said) == (says is not None)
    assert all(says in message for message in said)
    for name in os.listdir("plain"):
        assert Path("out", name).read_bytes() == Path("plain", name).read_bytes()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--head none --head auto", "leave it out, or the others"),
        ("--head none --at_low_compute", "leave it out, or the others"),
        ("--head none --task tag", "leave out --head none"),
    ],
)
def test_no_head_and_yet_one_is_refused(folder, capsys, flags, says):
    with pytest.raises(SystemExit) as ended:
        cli.main(["x.wav", "--model", "small", *QUIET, *flags.split()])
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert says in errors
