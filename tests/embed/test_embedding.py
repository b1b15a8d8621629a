"""Embeddings of files: tables, bad files, streaming, search."""

from __future__ import annotations

import json
import sys
import wave

import numpy as np
import pytest
import torch
from conftest import noise

from whisper_at.audio import load_audio
from whisper_at.cli import embed as embed_command
from whisper_at.cli import search as search_command
from whisper_at.embed import embedding as embedding_module
from whisper_at.embed import search
from whisper_at.embed.embedding import Embedding, Failure, embed, find_recordings, load_waveform
from whisper_at.embed.fusion import load_fusion
from whisper_at.embed.search import load_from_config, search_vectors
from whisper_at.embed.store import EmbeddingWriter, read_batches, read_config

NANO = ["--backbone", "whisper-nano", "--weights", "random", "--layers", "0,2", "--device", "cpu"]


@pytest.fixture(scope="module")
def model():
    return load_fusion("whisper-nano", [0, 2], "random", device="cpu")


def write_wav(path, samples, rate=16000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "clips"
    (inside / "deeper").mkdir(parents=True)
    for i, seconds in enumerate((1.0, 0.4, 2.03, 1.5)):
        write_wav(inside / f"clip{i}.wav", noise(seconds, i))
    write_wav(inside / "deeper" / "clip4.wav", noise(1.0, 4))
    (inside / "notes.txt").write_text("no sound")
    return inside


def test_wav_without_conversion_is_read_as_ffmpeg_reads_it(tmp_path):
    path = write_wav(tmp_path / "a.wav", noise(0.5))
    assert np.array_equal(load_waveform(path, 16000), load_audio(path))
    path.write_bytes(path.read_bytes()[:9001])  # cut in the middle of a sample
    assert np.array_equal(load_waveform(path, 16000), load_audio(path))
    stereo = write_wav(tmp_path / "b.wav", noise(0.5), channels=2)
    assert np.array_equal(load_waveform(stereo, 16000), load_audio(stereo))
    slow = write_wav(tmp_path / "c.wav", noise(0.5), rate=8000)
    assert np.array_equal(load_waveform(slow, 16000), load_audio(slow))


def test_rows_are_those_of_one_file_at_a_time(folder, model):
    paths = list(find_recordings([folder]))
    assert [p.name for p in paths] == [f"clip{i}.wav" for i in range(5)]
    rows = list(embed([folder], model, batch=3))
    assert [row.path for row in rows] == [str(path) for path in paths]
    for row, path in zip(rows, paths):
        samples = torch.from_numpy(load_audio(path))
        assert (row.start, row.end) == (0.0, len(samples) / 16000)
        np.testing.assert_allclose(row.vector, model(samples[None])[0], atol=1e-5)


def test_frames_tile_the_recording(folder, model):
    rows = list(embed([folder / "clip2.wav"], model, level="frame"))
    assert len(rows) == 102  # 2.03 s at 50 a second
    assert [row.start for row in rows] == [round(i * 0.02, 6) for i in range(102)]
    assert rows[-1].end == pytest.approx(2.03)
    expected = model.encode_frames(torch.from_numpy(load_audio(folder / "clip2.wav"))[None])[0].T
    np.testing.assert_allclose(np.stack([row.vector for row in rows]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="level must be"):
        embed([], model, level="word")


def test_bad_files_are_reported_and_the_rest_go_on(folder, model):
    (folder / "clip1.wav").write_text("not a sound")
    rows = list(embed([folder, folder / "missing.wav"], model, batch=2))
    assert [type(row) for row in rows] == [Embedding, Failure, Embedding, Embedding, Embedding, Failure]
    assert "clip1.wav" in rows[1].reason
    assert "No such audio file" in rows[5].reason


def test_files_are_decoded_only_a_little_ahead(folder, model, monkeypatch):
    """Memory does not depend on the number of files."""
    decoded = []

    def fake_load(path, sample_rate):
        decoded.append(path)
        return np.zeros(8000, np.float32)

    monkeypatch.setattr(embedding_module, "load_waveform", fake_load)
    rows = embed((folder / f"{i}.wav" for i in range(1000)), model, batch=4)
    for _ in range(4):
        next(rows)
    assert len(decoded) <= 4 + 2 * 4 + 1
    rows.close()


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
@pytest.mark.parametrize("level", ["clip", "frame"])
def test_command_writes_a_table_that_says_how_it_was_made(folder, model, suffix, level, capsys):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = folder.parent / f"out{suffix}"
    assert embed_command.main([str(folder), "-o", str(out), "--level", level, *NANO]) == 0
    expected = list(embed([folder], model, level))
    batches = list(read_batches(out, batch_size=50))
    assert [p for batch in batches for p in batch.paths] == [row.path for row in expected]
    assert [s for batch in batches for s in batch.starts] == [row.start for row in expected]
    assert [s for batch in batches for s in batch.ends] == [row.end for row in expected]
    vectors = np.concatenate([batch.vectors for batch in batches])
    np.testing.assert_allclose(vectors, np.stack([row.vector for row in expected]), atol=1e-5)
    config = read_config(out)
    assert config["layers"] == [0, 2]
    assert config["level"] == level
    assert config["width"] == 64
    assert torch.equal(load_from_config(config)(torch.ones(1, 8000)), model(torch.ones(1, 8000)))
    assert [p.name for p in folder.parent.iterdir() if p.name != "clips"] == [out.name]
    assert "from 5 of 5 files" in capsys.readouterr().out


def test_bfloat16_is_near_and_searched_in(folder, model, capsys):
    out = folder.parent / "half.npz"
    assert embed_command.main([str(folder), "-o", str(out), "--compute_type", "bfloat16", *NANO]) == 0
    vectors = np.concatenate([batch.vectors for batch in read_batches(out)])
    expected = np.stack([row.vector for row in embed([folder], model)])
    assert vectors.dtype == np.float32
    assert not np.array_equal(vectors, expected)
    assert np.abs(vectors - expected).max() < 0.05 * np.abs(expected).max()
    assert load_from_config(read_config(out)).compute_type == "bfloat16"
    search_command.main([str(out), str(folder / "clip2.wav"), "-k", "1"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("1.0000\t")


@pytest.mark.parametrize("name", ["vggish", "cnn14"])
def test_spectrograms_in_bfloat16(name):
    mel = torch.rand(1, 1, 96, 64)
    half, full = (load_fusion(name, "all", "random", device="cpu", compute_type=t) for t in ("bfloat16", "float32"))
    frames, expected = half.encode_frames(mel), full.encode_frames(mel)
    assert frames.dtype == torch.float32
    assert (frames - expected).abs().max() < 0.05 * expected.abs().max()


def test_int8_is_refused():
    with pytest.raises(ValueError, match="not int8"):
        load_fusion("whisper-nano", [0], "random", device="cpu", compute_type="int8")


def test_parquet_has_a_plain_schema(folder):
    pq = pytest.importorskip("pyarrow.parquet")
    out = folder.parent / "out.parquet"
    embed_command.main([str(folder), "-o", str(out), *NANO])
    table = pq.read_table(out)
    assert table.column_names == ["path", "start", "end", "embedding"]
    vector_type = table.schema.field("embedding").type
    assert (vector_type.list_size, str(vector_type.value_type)) == (64, "float")
    assert json.loads(table.schema.metadata[b"whisper_at"])["backbone"] == "whisper-nano"


def test_npz_without_pyarrow(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        embed_command.main([str(folder), "-o", str(folder / "out.parquet"), *NANO])
    assert stopped.value.code == 2
    assert "ends in .npz" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="needs pyarrow"):
        EmbeddingWriter(folder / "out.parquet", 3, {})
    assert embed_command.main([str(folder), "-o", str(folder / "out.npz"), *NANO]) == 0


def test_exit_status_says_whether_all_went_well(folder, capsys):
    out = folder.parent / "out.npz"
    (folder / "clip3.wav").write_bytes(b"")
    assert embed_command.main([str(folder), "-o", str(out), *NANO]) == 1
    captured = capsys.readouterr()
    assert "clip3.wav" in captured.err
    assert "from 4 of 5 files" in captured.out
    assert sum(len(batch.paths) for batch in read_batches(out)) == 4


def test_nothing_is_left_of_a_failed_run(folder):
    out = folder.parent / "out.npz"
    with pytest.raises(RuntimeError, match="none of the files"):
        embed_command.main([str(folder / "notes.txt"), "-o", str(out), *NANO])
    assert [p.name for p in folder.parent.iterdir()] == ["clips"]

    def fail_while_writing():
        with EmbeddingWriter(out, 3, {}) as writer:
            writer.write(Embedding("a", 0.0, 1.0, np.zeros(3, np.float32)))
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_writing()
    assert [p.name for p in folder.parent.iterdir()] == ["clips"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clips", "-o", "out.csv"], "must end in .parquet or .npz"),
        (["clips", "-o", "nowhere/out.npz"], "no such folder"),
        (["clips", "-o", "out.npz", "--layers", "one"], "must be numbers"),
        (["clips/deeper/none", "-o", "out.npz", "--level", "word"], "invalid choice"),
    ],
)
def test_wrong_arguments(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(SystemExit) as stopped:
        embed_command.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_scores_mean_something(tmp_path):
    """Vectors that share a large part have cosines near 1, whatever they are of: what they share is left out."""
    generator = np.random.default_rng(0)
    common, classes = 10 * generator.standard_normal(32), generator.standard_normal((4, 32))
    scale = np.exp(generator.standard_normal(32))
    vectors = common + (classes[np.arange(200) % 4] + 0.3 * generator.standard_normal((200, 32))) * scale
    with EmbeddingWriter(tmp_path / "t.npz", 32, {}) as writer:
        for i, vector in enumerate(vectors.astype(np.float32)):
            writer.write(Embedding(f"f{i % 4}", float(i), i + 1.0, vector))
    query = common + classes[2] * scale
    found = search_vectors(tmp_path / "t.npz", query, k=200)
    same = [result.score for result in found if result.path == "f2"]
    others = [result.score for result in found if result.path != "f2"]
    assert [result.path for result in found[:50]] == ["f2"] * 50
    assert min(same) > 0.6
    assert max(others) < 0.3
    plain = search_vectors(tmp_path / "t.npz", query, k=200, standardize=False)
    assert min(result.score for result in plain) > 0.9


def test_statistics_of_batches_are_those_of_all(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    vectors = (1000 + generator.standard_normal((700, 5))).astype(np.float32)
    vectors[:, 4] = 7.0  # never changes
    with EmbeddingWriter(tmp_path / "t.npz", 5, {}) as writer:
        for i, vector in enumerate(vectors):
            writer.write(Embedding("f", float(i), i + 1.0, vector))
    monkeypatch.setattr(search, "read_batches", lambda path: read_batches(path, 64))
    mean, deviation = search._statistics(tmp_path / "t.npz", 5)
    np.testing.assert_allclose(mean, vectors.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(deviation[:4], vectors.std(0, dtype=np.float64)[:4], rtol=1e-5)
    assert np.isfinite(search_vectors(tmp_path / "t.npz", vectors[0])[0].score)


def test_few_rows_are_compared_as_they_are(tmp_path):
    """They do not tell how numbers vary: two would always be opposite."""
    with EmbeddingWriter(tmp_path / "t.npz", 3, {}) as writer:
        for i, vector in enumerate(np.eye(3, dtype=np.float32)[:2] + 1):
            writer.write(Embedding(f"f{i}", 0.0, 1.0, vector))
    scores = [result.score for result in search_vectors(tmp_path / "t.npz", np.array([2.0, 1.0, 1.0]))]
    np.testing.assert_allclose(scores, [1.0, 5 / 6], atol=1e-6)


def test_search_is_cosine(tmp_path):
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((300, 8)).astype(np.float32)
    with EmbeddingWriter(tmp_path / "t.npz", 8, {}) as writer:
        for i, vector in enumerate(vectors):
            writer.write(Embedding(f"f{i}", float(i), i + 1.0, vector))
    queries = generator.standard_normal((2, 8))
    cosines = (vectors @ queries.T) / np.outer(np.linalg.norm(vectors, axis=1), np.linalg.norm(queries, axis=1))
    expected = np.argsort(-cosines.max(1))[:7]
    results = search_vectors(tmp_path / "t.npz", queries, k=7, standardize=False)
    assert [result.path for result in results] == [f"f{i}" for i in expected]
    np.testing.assert_allclose([result.score for result in results], cosines.max(1)[expected], atol=1e-6)
    assert results[0].start == expected[0]
    with pytest.raises(ValueError, match="the query has 3 numbers"):
        search_vectors(tmp_path / "t.npz", np.ones(3))


def test_search_command_finds_the_recording_itself(folder, capsys):
    out = folder.parent / "out.npz"
    embed_command.main([str(folder), "-o", str(out), *NANO])
    capsys.readouterr()
    assert search_command.main([str(out), str(folder / "clip2.wav"), "-k", "2", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].split("\t") == ["1.0000", "0.00", "2.03", str(folder / "clip2.wav")]
    with pytest.raises(RuntimeError, match="No such audio file"):
        search_command.main([str(out), "nothing.wav", "--device", "cpu"])
    with pytest.raises(FileNotFoundError, match="no such file of embeddings"):
        search_command.main(["nothing.npz", str(folder / "clip2.wav")])


def test_other_weights_are_refused(folder):
    out = folder.parent / "out.npz"
    embed_command.main([str(folder), "-o", str(out), *NANO])
    config = read_config(out) | {"network_sha256": "0"}
    with pytest.raises(ValueError, match="not those that the embeddings were made with"):
        load_from_config(config, device="cpu")
