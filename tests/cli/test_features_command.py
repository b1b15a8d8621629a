"""``whisper-at features``: recordings become a store, a store becomes ``.npz`` and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, noise

from whisper_at.cli import features as features_command
from whisper_at.data.clips import Clip
from whisper_at.features.store import Features


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("sounds")
    for i, seconds in enumerate((0.7, 3.0)):
        soundfile.write(folder / f"{i}.wav", noise(seconds, i), SAMPLE_RATE)
    return [Clip(folder / f"{i}.wav", ("x",)) for i in range(2)]


def test_the_command(checkpoint, clips, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("".join(f"{clip.path}\n" for clip in clips[:2]) + "gone.wav\n")
    options = ["--model", str(checkpoint), "--device", "cpu", "--workers", "0"]
    source, out = str(tmp_path / "list.txt"), str(tmp_path / "f")
    assert features_command.main([source, *options, "-o", out, "--protocol", "10"]) == 1
    captured = capsys.readouterr()
    assert "2 clips, 50 steps" in captured.out
    assert "gone.wav" in captured.err
    metadata = json.loads((tmp_path / "f" / "features.json").read_text())
    assert metadata["protocol"] == "10"
    assert metadata["layers"] == 2
    assert metadata["dim"] == 64
    assert features_command.main([out, "--to", "npz", "-o", str(tmp_path / "npz")]) == 0
    assert np.load(tmp_path / "npz" / "0.npz")["arr_0"].shape == (2, 25, 64)
    back = ["--to", "shards", "--protocol", "10", "-o", str(tmp_path / "g")]
    assert features_command.main([str(tmp_path / "npz"), *options, *back]) == 0
    assert Features.open(tmp_path / "g").find(clips[:2]).tolist() == [0, 1]
    (tmp_path / "npz" / "snare #1.npz").write_bytes((tmp_path / "npz" / "1.npz").read_bytes())
    (tmp_path / "npz" / "snare #2.npz").write_bytes((tmp_path / "npz" / "1.npz").read_bytes())
    for _ in range(2):  # the second time, all is there
        assert features_command.main([str(tmp_path / "npz"), *options, *back]) == 0
    assert {path.name for path in (tmp_path / "g").glob("*.safetensors")} == {
        f"shard-0000{i}.safetensors" for i in "01"
    }
    named = [clips[0], *(Clip(tmp_path / f"snare #{i}.wav", ()) for i in (1, 2))]
    assert Features.open(tmp_path / "g").find(named).tolist() == [0, 2, 3]
    for wrong in (["nowhere", *options, "-o", out], [source, "-o", out], [source, *options, "-o", source]):
        with pytest.raises(SystemExit) as caught:
            features_command.main(wrong)
        assert caught.value.code == 2


def test_a_flat_folder_goes_on_with_its_features_in_it(checkpoint, tmp_path, capsys):
    recordings = tmp_path / "recordings"
    for name in (".hidden", "empty"):
        (recordings / name).mkdir(parents=True)
    soundfile.write(recordings / ".hidden" / "b.wav", noise(1, 1), SAMPLE_RATE)
    for n, name in enumerate(("a", "c"), 1):
        soundfile.write(recordings / f"{name}.wav", noise(1, n), SAMPLE_RATE)
        options = ["--model", str(checkpoint), "--device", "cpu", "--workers", "0", "-o", str(recordings / "f")]
        assert features_command.main([str(recordings), *options]) == 0
        assert f"{n} clips" in capsys.readouterr().out
