"""Many recordings become a dataset: its rows are those of the model, and a run that goes on makes the same ones."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from archive_data import OPTIONS, content, read
from conftest import noise

import whisper_at
from whisper_at.archive import ArchiveSettings, row_result, run, transcribe_archive
from whisper_at.archive import worker as worker_module
from whisper_at.archive.inputs import InputOptions, list_items
from whisper_at.archive.schema import events_schema, files_schema
from whisper_at.archive.store import Store
from whisper_at.limits import DecodeLimits

N = 7


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Seven recordings, of which the third is cut in its header and the fifth is text."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "inner").mkdir()
    for i in range(N):
        path = folder / ("inner" if i % 2 else "") / f"{i}.wav"
        soundfile.write(path, noise(1.0 + i / 4, seed=i) * 3, 16000)
    (folder / "2.wav").write_bytes((folder / "2.wav").read_bytes()[:20])
    (folder / "4.wav").write_text("no recording")
    (folder / "notes.doc").write_text("no recording either")
    return folder


def make(recordings, output, nano, settings=None, **options):
    options = {"model": nano, "shard_size": 3, **OPTIONS, **options}
    return transcribe_archive([recordings], output, settings=settings, **options)


@pytest.fixture(scope="module")
def unbroken(recordings, nano, tmp_path_factory):
    output = tmp_path_factory.mktemp("unbroken")
    summary = make(recordings, output, nano)
    assert (summary.n_items, summary.done, summary.failed, summary.shards) == (N, N - 2, 2, 3)
    return output


def test_rows_are_what_transcribe_many_returns(recordings, unbroken, nano):
    table = read(unbroken)
    assert table.schema.equals(files_schema())
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    good = [row for row in rows if row["error_type"] is None]
    heads = json.loads((unbroken / "archive.json").read_text())["heads"]
    parts = [[row for row in good if row["id"] in read_ids(path)] for path in sorted((unbroken / "files").iterdir())]
    for part in parts:
        results = nano.transcribe_many([row["path"] for row in part], word_timestamps=True, at_time_res=2.0, **OPTIONS)
        expected = {path: result for path, result in results}
        for row in part:
            found, wanted = row_result(row, heads), expected[row["path"]]
            assert found["text"] == wanted["text"]
            assert [s["tokens"] for s in found["segments"]] == [s["tokens"] for s in wanted["segments"]]
            words = [[w["word"] for w in s["words"]] for s in found["segments"]]
            assert words == [[w["word"] for w in s["words"]] for s in wanted["segments"]]
            np.testing.assert_allclose(found["audio_tag"], wanted["audio_tag"], rtol=1e-3, atol=1e-2)
            events = [(e["start"], e["end"], e["name"]) for e in row["events"]]
            assert events == [(e["start"], e["end"], e["name"]) for e in whisper_at.find_events(wanted, language="en")]


def test_events_are_placed_by_short_rows_if_asked_for(recordings, nano, tmp_path):
    make(recordings / "0.wav", tmp_path, nano, event_rows=True)
    (row,) = read(tmp_path).to_pylist()
    result = nano.transcribe(row["path"], batch_size=8, at_time_res=2.0, event_rows=True, **OPTIONS)

    def events(found):
        return [(event["start"], event["end"], event["name"]) for event in found]

    assert events(row["events"]) == events(whisper_at.find_events(result, language="en"))
    del result["event_rows"]
    assert events(row["events"]) != events(whisper_at.find_events(result, language="en"))


def read_ids(path):
    return pq.read_table(path, columns=["id"])["id"].to_pylist()


def test_a_recording_that_cannot_be_read_has_a_row_that_says_why(unbroken):
    failed = {os.path.basename(row["path"]): row for row in read(unbroken).to_pylist() if row["error_type"]}
    assert sorted(failed) == ["2.wav", "4.wav"]
    assert failed["4.wav"]["text"] is None
    assert failed["4.wav"]["error"].startswith("Failed to load audio")
    assert failed["4.wav"]["sha256"]


def test_events_have_a_row_each(unbroken):
    table = read(unbroken, "events")
    assert table.schema.remove_metadata().equals(events_schema())
    nested = [(row["id"], event["name"]) for row in read(unbroken).to_pylist() for event in row["events"] or []]
    assert [(row["id"], row["name"]) for row in table.to_pylist()] == nested
    assert nested


def test_a_second_run_does_nothing(recordings, unbroken, nano):
    before = content(unbroken)
    summary = make(recordings, unbroken, nano)
    assert (summary.skipped, summary.done, summary.failed) == (N, 0, 0)
    assert content(unbroken) == before


def test_the_same_run_makes_the_same_bytes(recordings, unbroken, nano, tmp_path):
    make(recordings, tmp_path, nano, ArchiveSettings("", decode_threads=1, ahead=1))
    assert content(tmp_path) == content(unbroken)


def test_texts_that_are_sampled_are_the_same_in_every_run(recordings, nano, tmp_path):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        make(recordings, tmp_path / str(seed), nano, temperature=0.9)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(content(tmp_path / str(seed)))
    assert found[0] == found[1]


def test_what_is_new_or_has_changed_is_done_and_the_rest_stays(recordings, nano, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in (0, 3):
        soundfile.write(folder / f"{i}.wav", noise(1, seed=i), 16000)
    make(folder, output, nano)
    before = {row["path"]: row for row in read(output).to_pylist()}
    soundfile.write(folder / "1.wav", noise(1, seed=1), 16000)  # new, and sorted between them
    soundfile.write(folder / "3.wav", noise(1, seed=9), 16000)  # other bytes
    os.utime(folder / "0.wav", ns=(1, 1))  # the same bytes
    summary = make(folder, output, nano)
    assert (summary.done, summary.skipped) == (2, 1)
    after = {row["path"]: row for row in read(output).to_pylist()}
    assert len(after) == read(output).num_rows == 3
    zero, three = str(folder / "0.wav"), str(folder / "3.wav")
    assert after[zero]["modified"] == 1
    assert {**after[zero], "modified": None} == {**before[zero], "modified": None}
    assert after[three]["sha256"] != before[three]["sha256"]
    assert make(folder, output, nano).skipped == 3


def test_failed_recordings_are_tried_again_on_request(nano, tmp_path):
    path, output = tmp_path / "a.wav", tmp_path / "out"
    path.write_bytes(b"x")
    listed = tmp_path / "list.txt"
    listed.write_text("a.wav\nmissing.wav\n")
    assert make(listed, output, nano).failed == 2
    assert make(listed, output, nano).skipped == 2
    assert make(listed, output, nano, ArchiveSettings("", retry_failed=True)).failed == 2
    soundfile.write(path, noise(1), 16000)
    summary = make(listed, output, nano)  # other bytes than those that failed
    assert (summary.done, summary.skipped) == (1, 1)
    rows = read(output).to_pylist()
    assert [row["error_type"] for row in rows] == [None, "FileNotFoundError"]


def test_other_options_are_refused_unless_asked_for(recordings, nano, tmp_path):
    make(recordings, tmp_path, nano)
    with pytest.raises(ValueError, match=r"sample_len: 8, now 5.*--redo"):
        make(recordings, tmp_path, nano, sample_len=5)
    assert make(recordings, tmp_path, nano, sample_len=5, redo=True).done == N - 2
    assert len(set(read(tmp_path)["options_sha256"].to_pylist())) == 1


def test_captions_lie_beside_the_tables(recordings, nano, tmp_path):
    make(recordings, tmp_path, nano, ArchiveSettings("", output_format="srt,json"))
    names = sorted(path.name for path in (tmp_path / "captions").rglob("*.srt"))
    assert len(names) == N - 2
    assert names[0].startswith("0-")


# --- inputs ---


def test_names_of_any_bytes_are_read(nano, tmp_path):
    folder = os.fsencode(tmp_path / "in")
    os.mkdir(folder)
    wav = io.BytesIO()
    soundfile.write(wav, noise(1), 16000, format="wav")
    names = [b"-i.wav", b"line\nbreak.wav", b"latin-\xe9.wav", b"concat:a|b.wav", "ü 日本.wav".encode()]
    for name in names:
        with open(folder + b"/" + name, "wb") as file:
            file.write(wav.getvalue())
    summary = make(os.fsdecode(folder), tmp_path / "out", nano, ArchiveSettings("", output_format="txt"))
    assert (summary.done, summary.failed) == (len(names), 0)
    rows = read(tmp_path / "out").to_pylist()
    assert {row["path_bytes"] or row["path"].encode() for row in rows} == {folder + b"/" + name for name in names}
    assert [row["path"][-9:] for row in rows if row["path_bytes"]] == ["-\\xe9.wav"]


def test_a_tar_file_a_table_and_a_list_hold_the_same_recordings(nano, tmp_path):
    blobs = {}
    for i in range(3):
        buffer = io.BytesIO()
        soundfile.write(buffer, noise(1, seed=i), 16000, format="flac")
        blobs[f"{i}.flac"] = buffer.getvalue()
    (tmp_path / "files").mkdir()
    for name, blob in blobs.items():
        (tmp_path / "files" / name).write_bytes(blob)
    (tmp_path / "list.txt").write_bytes(b"\0".join(b"files/" + name.encode() for name in blobs))
    (tmp_path / "list.csv").write_text("id,path\n" + "".join(f"{i},files/{name}\n" for i, name in enumerate(blobs)))
    for name in ("a.tar", "b.tar.gz"):
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for member in ("readme.txt", *blobs):
                content = blobs.get(member, b"not a recording")
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    audio = [{"bytes": blob, "path": name} for name, blob in blobs.items()]
    pq.write_table(pa.table({"audio": audio}), tmp_path / "structs.parquet")
    pq.write_table(pa.table({"name": list(blobs), "bytes": list(blobs.values())}), tmp_path / "bytes.parquet")
    expected = None
    for name in ("files", "list.txt", "list.csv", "a.tar", "b.tar.gz", "structs.parquet", "bytes.parquet"):
        output = tmp_path / f"out-{name}"
        assert make(tmp_path / name, output, nano).done == 3, name
        rows = [(row["sha256"], row["text"], row["duration"]) for row in read(output).to_pylist()]
        expected = expected or rows
        assert rows == expected, name
        assert make(tmp_path / name, output, nano).skipped == 3, name
        assert not list((output / "work").iterdir())


def test_recordings_of_one_name_in_a_table_are_all_taken(tmp_path):
    audio = [{"bytes": b"x", "path": name} for name in ("a.wav", "a.wav", "a.wav#2", "b/a.wav")]
    pq.write_table(pa.table({"audio": audio}), tmp_path / "t.parquet")
    members = [item.member for item in list_items([tmp_path / "t.parquet"])]
    assert members == ["a.wav", "a.wav#2", "a.wav#2#2", "a.wav#3"]


def test_urls_in_lists_have_to_be_allowed(nano, tmp_path):
    import fsspec

    buffer = io.BytesIO()
    soundfile.write(buffer, noise(1), 16000, format="wav")
    fsspec.filesystem("memory").pipe("/bucket/a.wav", buffer.getvalue())
    listed = tmp_path / "list.txt"
    listed.write_text("memory://bucket/a.wav\n")
    with pytest.raises(ValueError, match="allowed_urls"):
        make(listed, tmp_path / "out", nano)
    allowed = InputOptions(allowed_urls=("memory://bucket/",))
    assert make(listed, tmp_path / "out", nano, input_options=allowed).done == 1
    assert transcribe_archive(["memory://bucket"], tmp_path / "other", model=nano, **OPTIONS).done == 1


# --- hostile recordings ---


def errors(source, output, nano, settings=None):
    make(source, output, nano, settings)
    return [row["error"] for row in read(output).to_pylist()]


def test_samples_that_are_no_numbers_are_an_error(nano, tmp_path):
    samples = noise(1)
    samples[8000] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    samples[8000] = np.inf
    soundfile.write(tmp_path / "b.wav", np.stack([noise(1), samples], 1), 16000, subtype="DOUBLE")
    soundfile.write(tmp_path / "c.wav", noise(1), 16000, subtype="FLOAT")
    found = errors(tmp_path, tmp_path / "out", nano)
    assert all("NaN or infinite at 0.5000 s" in error for error in found[:2])
    assert found[2] is None


def test_a_recording_that_is_too_long_is_an_error_and_is_not_decoded_to_its_end(nano, tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros(16000 * 600, np.int16), 16000)  # some kB
    limits = DecodeLimits(duration=5.0)
    assert "longer than the 5 s" in errors(tmp_path, tmp_path / "out", nano, ArchiveSettings("", limits=limits))[0]


def test_decoding_that_takes_too_long_is_ended(nano, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(2), 16000)
    limits = DecodeLimits(time=1e-6)
    assert "took longer" in errors(tmp_path, tmp_path / "out", nano, ArchiveSettings("", limits=limits))[0]


def test_decoding_that_needs_too_much_memory_is_ended(nano, tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(2), 16000)
    found = errors(tmp_path, tmp_path / "out", nano, ArchiveSettings("", limits=DecodeLimits(memory=1 << 22)))
    assert found[0] is not None


def test_a_playlist_opens_no_other_file(nano, tmp_path):
    soundfile.write(tmp_path / "secret.wav", noise(1), 16000)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.wav").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n../secret.wav\n#EXT-X-ENDLIST\n")
    (folder / "b.wav").write_text("ffconcat version 1.0\nfile ../secret.wav\n")
    assert None not in errors(folder, tmp_path / "out", nano)


def test_a_pipe_in_a_folder_is_not_waited_for(nano, tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", noise(1), 16000)
    assert errors(tmp_path, tmp_path / "out", nano) == [None]


def test_what_unpacks_to_more_than_allowed_is_an_error(nano, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("bomb.wav")
        info.size = 1 << 20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    assert "allowed" in errors(tmp_path / "a.tar.gz", tmp_path / "out", nano, ArchiveSettings("", max_bytes=1000))[0]


# --- faults of the machine ---


def test_a_full_disk_stops_the_run_and_leaves_what_is_whole(recordings, unbroken, nano, tmp_path, monkeypatch):
    real, calls = pq.write_table, []

    def write_table(table, path, **options):
        if "files" in str(path):
            calls.append(path)
            if len(calls) == 2:
                path.write_bytes(b"half")
                raise OSError(28, "No space left on device")
        real(table, path, **options)

    monkeypatch.setattr(pq, "write_table", write_table)
    with pytest.raises(OSError, match="No space"):
        make(recordings, tmp_path, nano)
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["part-00000.parquet"]
    make(recordings, tmp_path, nano)
    assert content(tmp_path) == content(unbroken)


def test_a_full_disk_while_decoding_is_no_error_of_the_recording(recordings, unbroken, nano, tmp_path, monkeypatch):
    real = worker_module.result_row

    def result_row(result, *arguments):
        raise RuntimeError("cannot store it") from OSError(28, "No space left on device")

    monkeypatch.setattr(worker_module, "result_row", result_row)
    with pytest.raises(RuntimeError, match="cannot store"):
        make(recordings, tmp_path, nano)
    assert not Store(tmp_path).parts()
    monkeypatch.setattr(worker_module, "result_row", real)
    make(recordings, tmp_path, nano)
    assert content(tmp_path) == content(unbroken)


def test_events_are_made_again_where_a_run_stopped_between_two_files(recordings, unbroken, nano, tmp_path):
    make(recordings, tmp_path, nano)
    (tmp_path / "events" / "part-00001.parquet").unlink()
    (tmp_path / "files" / ".part-00001.parquet.abc").write_bytes(b"half")
    (tmp_path / "work" / "left").mkdir()
    make(recordings, tmp_path, nano)
    assert content(tmp_path) == content(unbroken)
    assert not list((tmp_path / "work").iterdir())


def test_a_file_that_vanishes_meanwhile_is_an_error(recordings, nano, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "a.wav", noise(1), 16000)
    soundfile.write(folder / "b.wav", noise(1, seed=1), 16000)
    real = run.pending_shards

    def pending_shards(*arguments):
        (folder / "a.wav").unlink()
        return real(*arguments)

    monkeypatch.setattr(run, "pending_shards", pending_shards)
    assert make(folder, tmp_path / "out", nano).failed == 1
    rows = read(tmp_path / "out").to_pylist()
    assert [row["error_type"] for row in rows] == ["FileNotFoundError", None]


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_that_does_not_fit_is_halved(recordings, unbroken, nano, tmp_path, monkeypatch, error):
    from whisper_at import batched

    real = batched.encode_windows

    def encode_windows(model, mel, *arguments):
        if len(mel) > 1:
            raise error
        return real(model, mel, *arguments)

    monkeypatch.setattr(batched, "encode_windows", encode_windows)
    with pytest.warns(UserWarning, match="out of memory"):
        make(recordings, tmp_path, nano)
    columns = ["id", "text", "error"]
    assert read(tmp_path).select(columns).equals(read(unbroken).select(columns))


def test_two_runs_do_not_work_on_one_folder(recordings, nano, tmp_path):
    with Store(tmp_path).storage.locked(), pytest.raises(RuntimeError, match="another run"):
        make(recordings, tmp_path, nano)
