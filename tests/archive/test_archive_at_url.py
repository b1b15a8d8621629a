"""A dataset in an object store is that of a folder: the same tables, plan, captions and answers."""

from __future__ import annotations

import uuid

import fsspec
import pytest
from archive_data import OPTIONS, write_recordings

from whisper_at.archive import ArchiveSettings, Query, find, run_sql, transcribe_archive
from whisper_at.archive.storage import absolute, open_storage
from whisper_at.cli.find import main as find_main

N = 4


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("recordings"), N, broken=1)


@pytest.fixture(scope="module")
def s3():
    """fsspec's settings for a server that speaks S3, with an empty bucket."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        settings = {"endpoint_url": f"http://{host}:{port}", "key": "key", "secret": "secret"}
        patch.setitem(fsspec.config.conf, "s3", settings)
        fsspec.filesystem("s3").mkdir("bucket")
        yield
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def url(request):
    """A place in fsspec's memory, or in a bucket."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    yield f"{request.param}://bucket/{uuid.uuid4().hex}/data set [1]"
    if request.param == "memory" and fsspec.filesystem("memory").exists("bucket"):
        fsspec.filesystem("memory").rm("bucket", recursive=True)


def make(recordings, output, nano, formats="srt", **options):
    settings = ArchiveSettings("", output_format=formats)
    options = {"shard_size": 2, **OPTIONS, **options}
    return transcribe_archive([recordings], output, model=nano, settings=settings, **options)


def contents(url):
    """Every object below a URL, and its bytes."""
    filesystem, root = fsspec.core.url_to_fs(str(url))
    return {name.removeprefix(f"{root}/"): filesystem.cat_file(name) for name in filesystem.find(root)}


def test_it_has_every_byte_that_a_folder_has(recordings, nano, url, tmp_path):
    summary = make(recordings, url, nano)
    assert (summary.done, summary.failed, summary.shards) == (N - 1, 1, 2)
    make(recordings, tmp_path, nano)
    found, expected = contents(url), contents(tmp_path)
    del expected["lock"]
    assert found == expected
    assert sorted(found)[:2] == ["archive.json", next(name for name in sorted(found) if name.endswith(".srt"))]
    before = dict(found)
    assert make(recordings, url, nano).skipped == N
    assert contents(url) == before


def test_a_run_that_was_stopped_between_two_uploads_goes_on(recordings, nano, url, monkeypatch):
    whole = f"{url}-whole"
    make(recordings, whole, nano)
    store, seen = fsspec.core.url_to_fs(url)[0], []
    real = store.put_file

    def put_file(local, remote, **options):
        seen.append(remote)
        if remote.endswith("events/part-00001.parquet"):
            raise KeyboardInterrupt
        return real(local, remote, **options)

    monkeypatch.setattr(store, "put_file", put_file)
    with pytest.raises(KeyboardInterrupt):
        make(recordings, url, nano)
    assert "events/part-00001.parquet" not in contents(url)
    monkeypatch.undo()
    make(recordings, url, nano)
    assert contents(url) == contents(whole)
    assert seen[-1].endswith("events/part-00001.parquet")


def test_an_upload_that_fails_stops_the_run_and_is_no_error_of_a_recording(recordings, nano, url, monkeypatch):
    def put_file(local, remote, **options):
        if remote.endswith(".srt"):
            raise TimeoutError("no answer")

    monkeypatch.setattr(fsspec.core.url_to_fs(url)[0], "put_file", put_file)
    with pytest.raises(RuntimeError, match=r"captions/part-00000/0-.*\.srt cannot be uploaded .* no answer"):
        make(recordings, url, nano)


def test_files_asked_for_later_are_uploaded(recordings, nano, url):
    make(recordings, url, nano, None)
    assert make(recordings, url, nano, "txt,labels").captioned == N - 1
    assert sum("captions/" in name for name in contents(url)) == 2 * (N - 1)


def test_other_options_are_refused(recordings, nano, url):
    make(recordings, url, nano)
    with pytest.raises(ValueError, match=r"bucket/.* was made otherwise \(sample_len"):
        make(recordings, url, nano, sample_len=3)


def test_find_asks_it_and_nothing_else(recordings, nano, url, capsys):
    with pytest.raises(FileNotFoundError, match="no archive in .*://bucket"):
        run_sql(url, "SELECT 1")
    make(recordings, url, nano)
    assert run_sql(url, "SELECT count(*), count(error) FROM files")[1] == [(N, 1)]
    assert list(find(url, Query(texts=("there is no such text",)))) == []
    assert find_main([url, "--sql", "SELECT count(*) AS n FROM files", "--json"]) == 0
    assert capsys.readouterr().out == f'{{"n": {N}}}\n'
    other = url.replace("/data set", "/other set")
    fsspec.core.url_to_fs(other)[0].pipe(f"{other}/a", b"secret")
    for name in (f"{other}/a", "/etc/hostname"):
        with pytest.raises(Exception, match="disabled by configuration"):
            run_sql(url, f"SELECT * FROM read_text('{name}')")


def test_memory_of_one_process_is_none_for_several(recordings):
    with pytest.raises(ValueError, match="memory of one process"):
        make(recordings, "memory://bucket/set", "nano.en", workers=2)


@pytest.mark.parametrize("url", ["sftp://host/set", "https://host/set", "simplecache::s3://bucket/set"])
def test_places_where_files_do_not_appear_whole_are_refused(recordings, nano, url):
    with pytest.raises(ValueError, match=r"no place for a dataset.*give a folder"):
        make(recordings, url, nano)


def test_file_urls_are_folders(tmp_path):
    assert absolute(f"file://{tmp_path}/a b") == str(tmp_path / "a b")
    assert open_storage(f"local://{tmp_path}/set").location == str(tmp_path / "set")
    assert (tmp_path / "set").is_dir()
