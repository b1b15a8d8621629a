"""``-f`` with formats beside Whisper's: several at once, tags where they need some, names, what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import soundfile
from conftest import ROOT, noise

from whisper_at import cli
from whisper_at.cli.outputs import output_names

QUIET = "--model nano.en --device cpu --fp16 False --verbose False --beam_size None".split()
QUIET += "--temperature_increment_on_fallback None -o out".split()
STREET = str(ROOT / "sample" / "street.ogg")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_several_formats_of_one_recording(folder):
    assert cli.main([STREET, *QUIET, "-f", "txt,labels,rttm,ass"]) == 0
    assert sorted(os.listdir("out")) == ["street.ass", "street.labels.txt", "street.rttm", "street.txt"]
    labels = Path("out/street.labels.txt").read_text("utf-8")
    assert "\tThe rain is very strong today.\n" in labels
    assert "[" not in labels  # no tags were asked for, and so none are computed


def test_what_is_made_of_tags_asks_for_them_by_itself(folder):
    assert cli.main([STREET, *QUIET, "--task", "tag", "-f", "sed,rows.csv"]) == 0
    assert sorted(os.listdir("out")) == ["street.rows.csv", "street.sed.tsv"]
    rows = Path("out/street.rows.csv").read_text("utf-8").splitlines()
    assert rows[1].startswith("audio_tag,2,0.000,2.000,1,")
    events = Path("out/street.sed.tsv").read_text("utf-8").splitlines()
    assert any(line.startswith("street.ogg\t") and line.endswith("\tRain") for line in events)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("-f label", "'label'"),
        ("-f sed --head none", "-f sed is made of tags: leave out --head none"),
        ("-f labels --captions", "--captions is for srt, vtt, lrc and ass, not -f labels"),
    ],
)
def test_what_is_refused(folder, capsys, flags, says):
    with pytest.raises(SystemExit) as ended:
        cli.main([STREET, *QUIET, *flags.split()])
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert says in errors
    assert errors.count("\n") == 1
    assert not Path("out").exists()


def test_a_missing_package_is_said_before_anything_is_heard(folder, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setattr("whisper_at.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    assert cli.main([STREET, *QUIET, "-f", "parquet"]) == 1
    assert 'pip install ".[formats]"' in capsys.readouterr().err


def test_a_picture_of_standard_input_has_its_waveform(folder, monkeypatch):
    from matplotlib.image import imread

    for name, source in (("a.wav", None), ("b.wav", "stdin")):
        soundfile.write(name, noise(2), 16000)
        if source:
            stdin = io.TextIOWrapper(io.BytesIO(Path(name).read_bytes()))
            monkeypatch.setattr("sys.stdin", stdin)
        assert cli.main(["-" if source else name, *QUIET, "-f", "png"]) == 0
    assert imread("out/a.png").shape == imread("out/stdin.png").shape


def test_names_that_would_meet_another_recordings_results():
    paths = ["x.wav", "x.labels.wav", "y.labels.wav"]
    assert output_names(paths, ["txt", "srt"]) == {}
    assert output_names(paths, ["txt", "labels.txt"]) == {"x.wav": "x.wav", "x.labels.wav": "x.labels.wav"}
    assert output_names(["x.wav", "x.rows.sed.wav"], ["rows.csv", "sed.tsv", "csv"]) == {
        "x.wav": "x.wav",
        "x.rows.sed.wav": "x.rows.sed.wav",
    }
