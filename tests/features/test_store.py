"""Features on disk: what is written is read, killed writers, damage, files that move, and ``.npz``."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLE_RATE, noise

from whisper_at.data.clips import Clip
from whisper_at.features.files import FeatureMetadata, clip_key, stem_key
from whisper_at.features.store import Features
from whisper_at.features.writer import FeatureWriter, write_npz

METADATA = FeatureMetadata("m", "sha", "30", 0.0, 2, 3)


def states(i: int, steps: int = 4) -> np.ndarray:
    return (np.arange(2 * steps * 3).reshape(2, steps, 3) + 100 * i).astype(np.float32)


def filled(folder, n=5, metadata=METADATA, close=True) -> FeatureWriter:
    writer = FeatureWriter(folder, metadata)
    for i in range(n):
        writer.add(Clip(folder.parent / f"{i}.wav", ()), states(i, 4 + i))
        if i % 2:
            writer.flush()
    if close:
        writer.__exit__()
    return writer


def test_what_is_written_is_read(tmp_path):
    filled(tmp_path / "f")
    features = Features.open(tmp_path / "f")
    assert features.n_steps.tolist() == [4, 5, 6, 7, 8]
    for i in range(5):
        np.testing.assert_array_equal(features.states(i), states(i, 4 + i))
    assert isinstance(features.states(0).base, np.memmap)


def test_batches_cut_and_go_round(tmp_path):
    """D5: a clip that is too short is repeated, never filled with zeros."""
    filled(tmp_path / "f")
    features = Features.open(tmp_path / "f")
    found = features.batch([0, 2], 5, [2, 1])
    assert found.dtype == torch.float32
    assert found.shape == (2, 2, 5, 3)
    np.testing.assert_array_equal(found[0], states(0)[:, [2, 3, 0, 1, 2]])
    np.testing.assert_array_equal(found[1], states(2, 6)[:, 1:6])


def test_a_killed_writer_loses_only_what_it_was_filling(tmp_path):
    writer = filled(tmp_path / "f", close=False)  # 2 shards, and one clip in memory
    writer._lock.close()
    index = tmp_path / "f" / "index.jsonl"
    for torn in ("", '{"key": "/x/4.wav", "shard": 2, "position": 0, "steps": 8, "size": 0, "mtime": 0}\n', '{"key'):
        with open(index, "a") as file:
            file.write(torn)
        assert len(Features.open(tmp_path / "f")) == 4
    with FeatureWriter(tmp_path / "f", METADATA) as again:
        assert len(again.written) == 4
        again.add(Clip(tmp_path / "4.wav", ()), states(4))
    features = Features.open(tmp_path / "f")
    assert len(features) == 5
    np.testing.assert_array_equal(features.states(4), states(4))


def test_a_damaged_shard_is_refused(tmp_path):
    filled(tmp_path / "f")
    shard = tmp_path / "f" / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    features = Features.open(tmp_path / "f")
    features.states(0)
    with pytest.raises(ValueError, match="SHA-256"):
        features.states(2)
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="bytes"):
        Features.open(tmp_path / "f", verify=False).states(2)
    shard.unlink()
    with pytest.raises(ValueError, match="missing"):
        Features.open(tmp_path / "f").states(2)


def test_a_damaged_index_is_refused(tmp_path):
    filled(tmp_path / "f")
    index = tmp_path / "f" / "index.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="damaged"):
        Features.open(tmp_path / "f")


def test_other_encoders_folders_and_writers_are_refused(tmp_path):
    writer = filled(tmp_path / "f", close=False)
    with pytest.raises(ValueError, match="another process"):
        FeatureWriter(tmp_path / "f", METADATA)
    writer.__exit__()
    with pytest.raises(ValueError, match="encoder_sha256"):
        FeatureWriter(tmp_path / "f", replace(METADATA, encoder_sha256="other"))
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "letter.txt").write_text("hello")
    with pytest.raises(ValueError, match="not empty"):
        FeatureWriter(tmp_path / "g", METADATA)
    with pytest.raises(ValueError, match="holds no features"):
        Features.open(tmp_path / "g")
    with pytest.raises(FileNotFoundError):
        Features.open(tmp_path / "h")


def test_numbers_that_half_precision_lacks_are_refused(tmp_path):
    with FeatureWriter(tmp_path / "f", METADATA) as writer:
        with pytest.raises(ValueError, match="whisper-at features --dtype float32"):
            writer.add(Clip(tmp_path / "a.wav", ()), states(0) + 1e6)
        with pytest.raises(ValueError, match="no numbers"):
            writer.add(Clip(tmp_path / "a.wav", ()), states(0) * np.nan)
        with pytest.raises(ValueError, match="2, steps, 3"):
            writer.add(Clip(tmp_path / "a.wav", ()), states(0).transpose(2, 1, 0))
    with FeatureWriter(tmp_path / "g", replace(METADATA, dtype="float32")) as writer:
        writer.add(Clip(tmp_path / "a.wav", ()), states(0) + 1e6)
    np.testing.assert_array_equal(Features.open(tmp_path / "g").states(0), states(0) + 1e6)


def test_features_that_moved_are_found_by_name(tmp_path):
    filled(tmp_path / "f", 2)
    features = Features.open(tmp_path / "f")
    assert features.find([Clip(tmp_path / "other" / "1.flac", ()), Clip(tmp_path / "7.wav", ())]).tolist() == [1, -1]
    assert features.find([Clip(tmp_path / "1.wav", (), start=1.0)]).tolist() == [-1]


def test_a_clip_never_gets_the_states_of_another_file_of_its_name(tmp_path):
    sizes = {"dog/6.wav": 1.0, "rain/6.wav": 2.0, "moved/6.wav": 1.0}
    clips = {name: Clip(tmp_path / name, ()) for name in sizes}
    for name, seconds in sizes.items():
        (tmp_path / name).parent.mkdir()
        soundfile.write(tmp_path / name, noise(seconds), SAMPLE_RATE)
    with FeatureWriter(tmp_path / "f", METADATA) as writer:
        writer.add(clips["dog/6.wav"], states(0))
    features = Features.open(tmp_path / "f")
    assert features.find([clips["rain/6.wav"]]).tolist() == [-1]
    assert features.find([clips["moved/6.wav"]]).tolist() == [-1]  # that may be a copy, but the other is still there
    (tmp_path / "dog/6.wav").unlink()
    assert features.find([clips["rain/6.wav"]]).tolist() == [-1]  # of another size
    assert features.find([clips["moved/6.wav"]]).tolist() == [0]
    assert features.find(list(clips.values())).tolist() == [0, -1, -1]  # which of them moved?
    np.savez(tmp_path / "dog" / "6.npz", arr_0=states(0))
    npz = Features.open(tmp_path / "dog")
    assert npz.find([clips["rain/6.wav"]]).tolist() == [0]
    assert npz.find([clips["rain/6.wav"], clips["moved/6.wav"]]).tolist() == [-1, -1]


def test_short_keys_keep_dots_and_parts():
    assert stem_key("/a/Y1.b#c.wav") == "Y1.b#c"
    assert stem_key(clip_key(Clip(os.path.abspath("d.x/Y1.wav"), (), start=1.5, end=3.0))) == "Y1#1.5-3.0"


def test_npz_goes_both_ways(tmp_path):
    """Spec section 3.1: ``arr_0`` of ``[L, 25, d]`` in a file called as the audio is."""
    filled(tmp_path / "f")
    features = Features.open(tmp_path / "f")
    assert write_npz(features, tmp_path / "npz") == 5
    array = np.load(tmp_path / "npz" / "3.npz")["arr_0"]
    assert array.dtype == np.float16
    np.testing.assert_array_equal(array, states(3, 7))
    back = Features.open(tmp_path / "npz")
    assert back.n_steps.tolist() == features.n_steps.tolist()
    assert back.metadata.layers == 2
    assert back.metadata.dim == 3
    assert back.find([Clip(tmp_path / "elsewhere" / "3.flac", ())]).tolist() == [3]
    torch.testing.assert_close(back.batch([1, 4], 6), features.batch([1, 4], 6))


def test_npz_of_one_name_are_refused(tmp_path):
    with FeatureWriter(tmp_path / "f", METADATA) as writer:
        for folder in "ab":
            writer.add(Clip(tmp_path / folder / "same.wav", ()), states(0))
    with pytest.raises(ValueError, match="same name"):
        write_npz(Features.open(tmp_path / "f"), tmp_path / "npz")
    assert not (tmp_path / "npz").exists()
