"""Files beside the tables that are asked for later come from the rows, and nothing is transcribed again."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
from archive_data import OPTIONS
from conftest import noise

from whisper_at.archive import ArchiveSettings, captions, transcribe_archive
from whisper_at.archive.captions import check_formats

TEXT = "txt,srt,vtt,tsv,labels,lrc"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Two recordings, one that is none, and two in a tar file."""
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(2):
        soundfile.write(folder / f"{i}.wav", noise(2.0 + i, seed=i) * 3, 16000)
    with tarfile.open(folder / "more.tar", "w") as archive:
        archive.add(folder / "0.wav", "../x/0.wav")
        archive.add(folder / "1.wav", "y.wav")
    (folder / "2.wav").write_bytes(b"no recording")
    return [folder, folder / "more.tar"]


def make(recordings, output, nano, formats=None, **options):
    settings = ArchiveSettings("", output_format=formats, writer_options=options.pop("writer_options", {}))
    return transcribe_archive(recordings, output, model=nano, settings=settings, shard_size=3, **OPTIONS, **options)


def files(output):
    """The content of every file in the folder of captions."""
    folder = Path(output) / "captions"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def at_once(recordings, nano, tmp_path_factory):
    output = tmp_path_factory.mktemp("at-once")
    make(recordings, output, nano, f"{TEXT},json,png")
    assert len(files(output)) == 4 * 8
    return output


@pytest.fixture
def done(recordings, at_once, tmp_path):
    """The same archive without files beside its tables, and a model that must not be asked."""
    output = tmp_path / "out"
    shutil.copytree(at_once, output)
    shutil.rmtree(output / "captions")
    return output


@pytest.fixture
def deaf(nano, monkeypatch):
    def fail(*_):
        raise AssertionError("it is transcribed again")

    monkeypatch.setattr("whisper_at.archive.worker.transcribe_in_batches", fail)
    return nano


def test_they_are_those_that_would_have_been_written_at_once(recordings, at_once, done, deaf):
    summary = make(recordings, done, deaf, f"{TEXT},json,png")
    assert (summary.done, summary.skipped, summary.captioned) == (0, 5, 4)
    assert "4 recordings done before got files" in summary.lines()[1]
    expected, found = files(at_once), files(done)
    assert found.keys() == expected.keys()
    for name, content in found.items():  # numbers of tags are of float16
        assert content == expected[name] or name.endswith((".json", ".png")), name
    assert make(recordings, done, deaf, f"{TEXT},json,png").captioned == 0


def test_only_what_is_missing_is_written(recordings, done, deaf):
    make(recordings, done, deaf, "srt")
    first = next((done / "captions" / "part-00000").glob("*.srt"))
    first.write_text("changed by hand")
    (done / "captions" / "part-00001").rename(done / "gone")
    assert make(recordings, done, deaf, "srt,txt").captioned == 4
    assert first.read_text() == "changed by hand"
    assert len(files(done)) == 8


def test_new_recordings_get_theirs_when_they_are_done(recordings, done, nano, tmp_path):
    soundfile.write(tmp_path / "new.wav", noise(1, seed=7), 16000)
    summary = make([*recordings, tmp_path / "new.wav"], done, nano, "txt")
    assert (summary.done, summary.captioned) == (1, 4)
    assert len(files(done)) == 5


def test_pictures_show_the_waveform_of_a_member_of_a_tar_file(recordings, done, deaf, monkeypatch):
    pytest.importorskip("matplotlib")
    empty = []
    real = captions.CaptionFiles.write

    def write(self, part, item, result, audio, formats=None):
        empty.append(audio is None)
        real(self, part, item, result, audio, formats)

    monkeypatch.setattr(captions.CaptionFiles, "write", write)
    make(recordings, done, deaf, "svg")
    assert empty == [False] * 4
    assert not list((done / "work").iterdir())


def test_a_file_that_cannot_be_written_costs_no_other(recordings, done, deaf, monkeypatch):
    real = captions.Fetcher.fetch

    def fetch(self, item):
        if item.member == "y.wav":
            raise ValueError("it is not there any more")
        return real(self, item)

    monkeypatch.setattr(captions.Fetcher, "fetch", fetch)
    with pytest.warns(UserWarning, match=r"y\.wav' lacks files of png: it is not there"):
        assert make(recordings, done, deaf, "png").captioned == 3


def test_what_rows_do_not_hold_is_refused_in_words(recordings, nano, tmp_path):
    make(recordings[:1], tmp_path, nano, event_rows=True)
    assert make(recordings[:1], tmp_path, nano, "txt,srt", event_rows=True).captioned == 2
    with pytest.raises(ValueError, match=r"lack files of json.*event_rows.*--redo"):
        make(recordings[:1], tmp_path, nano, "json", event_rows=True)
    assert pq.read_table(tmp_path / "files").num_rows == 3


def test_formats_that_cannot_be_made_are_refused_before_anything_is_done(recordings, nano, tmp_path):
    with pytest.raises(ValueError, match="made of tags"):
        make(recordings, tmp_path, nano, "txt,rows.csv", at_time_res=None)
    with pytest.raises(KeyError, match="no format 'srtt'"):
        make(recordings, tmp_path, nano, "srtt")
    assert not (tmp_path / "archive.json").exists()
    check_formats(ArchiveSettings("", output_format="txt,rows.csv"), has_heads=True)


def test_half_written_files_of_a_run_that_was_killed_are_removed(recordings, done, deaf):
    half = done / "captions" / "part-00000" / ".whisper-at-abc"
    half.mkdir(parents=True)
    (half / "a.srt").write_text("half")
    make(recordings, done, deaf)
    assert not half.exists()
