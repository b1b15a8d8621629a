"""The whole promise, with real sounds: a folder of clips becomes a head, which names sounds in new recordings."""

from __future__ import annotations

import json
import shutil

import numpy as np
import soundfile
from conftest import ROOT

from whisper_at import cli
from whisper_at.audio import load_audio, pad_or_trim
from whisper_at.data.readers import read_folders

CLASSES = ("helicopter", "rain", "rooster")
CLIPS = 4


def test_own_sounds_are_named_in_a_new_recording(data, tmp_path):
    new = {}
    for name in CLASSES:
        clips = read_folders(data / "esc10").filter(lambda clip, name=name: clip.labels == (name,)).clips
        of_source = {clip.path.name.split("-")[1]: clip for clip in clips}  # one of each source
        *taken, last = list(of_source.values())[: CLIPS + 1]
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for clip in taken:
            shutil.copy(clip.path, tmp_path / "sounds" / name)
        new[name] = tmp_path / f"new_{name}.wav"
        soundfile.write(new[name], load_audio(last.path), 16000)

    head = tmp_path / "mine.safetensors"
    settings = ["--config", ROOT / "recipes" / "heads" / "own_sounds.toml", "--background", "none"]
    command = ["train", "--data", tmp_path / "sounds", "--model", "nano.en", "--device", "cpu", "--workers", "0"]
    assert cli.main([str(part) for part in (*command, "-o", head, "--quiet", *settings)]) == 0

    options = ["--model", "nano.en", "--device", "cpu", "--head", head, "--at_time_res", "10", "-f", "json"]
    assert cli.main([str(part) for part in (*new.values(), *options, "-o", tmp_path, "--verbose", "False")]) == 0
    for name, path in new.items():
        found = json.loads(path.with_suffix(".json").read_text())["mine"]
        assert found["classes"] == list(CLASSES)
        assert [row["tags"][0]["name"] for row in found["rows"]] == [name]

    order = ("rooster", "rain", "rain", "rooster", "rain", "rooster", "rain")
    whole = [pad_or_trim(load_audio(new[name]), 76800) for name in order]
    soundfile.write(tmp_path / "recording.wav", np.concatenate(whole), 16000)  # longer than a window
    options[options.index("10")] = "4.8"
    assert cli.main([str(part) for part in (tmp_path / "recording.wav", *options, "-o", tmp_path)]) == 0
    rows = json.loads((tmp_path / "recording.json").read_text())["mine"]["rows"]
    assert [row["tags"][0]["name"] for row in rows] == list(order)
