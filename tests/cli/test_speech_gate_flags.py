"""``--speech_gate`` and ``--missed_speech``: what is withheld is printed and in JSON; both need a head."""

from __future__ import annotations

import json
import shlex

import pytest
import soundfile
from conftest import SAMPLE_RATE, noise

from whisper_at import cli

QUICK = shlex.split(
    "--model nano.en --beam_size None --temperature_increment_on_fallback None --fp16 False --device cpu"
)


@pytest.fixture
def recording(tmp_path) -> str:
    path = tmp_path / "noise.wav"
    soundfile.write(path, noise(12), SAMPLE_RATE)
    return str(path)


@pytest.mark.parametrize("more", [[], ["--at_time_res", "2"], ["--batch_size", "2"]])
def test_what_is_withheld_is_printed_and_written(recording, tmp_path, capsys, more):
    """Nothing reaches a probability of 1."""
    arguments = [recording, *QUICK, "--speech_gate", "1", "-f", "json", "-o", str(tmp_path), *more]
    assert cli.main(arguments) == 0
    assert "[00:00.000 --> 00:12.000] (window without speech)" in capsys.readouterr().out
    result = json.loads((tmp_path / "noise.json").read_text(encoding="utf-8"))
    (part,) = result["withheld"]
    assert (result["text"], result["segments"]) == ("", [])
    assert (part["start"], part["end"], part["text"], part["reason"]) == (0, 12, None, "window without speech")
    assert ("audio_tag" in result) == (more[:1] == ["--at_time_res"])


@pytest.mark.parametrize("flag", ["--speech_gate", "--missed_speech"])
@pytest.mark.parametrize("other", ["--head none", "--task tag", "--model turbo"])
def test_both_need_a_head_and_text(recording, capsys, flag, other):
    with pytest.raises(SystemExit) as exit:
        cli.main([recording, *QUICK, *shlex.split(other), flag])
    assert exit.value.code == 2
    assert other.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize("value", ["2", "-1", "much", "nan"])
def test_a_threshold_is_a_probability(recording, capsys, value):
    with pytest.raises(SystemExit):
        cli.main([recording, *QUICK, "--speech_gate", value])
    assert "is not a probability" in capsys.readouterr().err
