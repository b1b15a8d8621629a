"""Tags without text: `WhisperAT.tag` and ``--task tag``."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import noise

import whisper_at
from whisper_at import mel as mel_module
from whisper_at.cli import main
from whisper_at.tagging.heads import make_head
from whisper_at.tagging.timeline import pool_steps


def head_with_classes(**options):
    head = make_head("mean_mlp", n_layer=2, rep_dim=64, label_dim=3)
    head.classes = whisper_at.tagging.classes.ClassSet(("a", "b", "c"), **options)
    return head


@pytest.fixture
def no_decoder(model_en, monkeypatch):
    """A model whose decoder must not be called."""

    def fail(*_, **__):
        raise AssertionError("the decoder ran")

    monkeypatch.setattr(type(model_en), "decode", fail)
    monkeypatch.setattr(type(model_en), "fast_decoder", fail)
    monkeypatch.setattr(model_en.decoder, "forward", fail)
    return model_en


@pytest.mark.parametrize("seconds", [0.5, 29.99, 30, 47.3, 95])
@pytest.mark.parametrize("resolution", [0.4, 10, (2, 30), 36])
def test_rows_are_the_heads_on_windows_of_30_s(no_decoder, seconds, resolution):
    audio = noise(95)[: int(seconds * 16000)]
    result = no_decoder.tag(audio, at_time_res=resolution)
    assert result["task"] == "tag"
    assert (result["text"], result["segments"], result["language"]) == ("", [], None)
    assert result["duration"] == pytest.approx(seconds, abs=0.011)
    several = isinstance(resolution, tuple)
    for each in resolution if several else [resolution]:
        rows = result["audio_tag"][each] if several else result["audio_tag"]
        coverage = result["audio_tag_coverage"][each] if several else result["audio_tag_coverage"]
        assert rows.shape == (int(np.ceil(round(seconds / each, 6))), 527)
        assert not rows.isnan().any()
        assert torch.allclose(coverage, torch.ones(len(rows)), atol=0.05)


def test_whole_windows_are_classified_as_by_hand(no_decoder):
    audio = noise(60)
    result = no_decoder.tag(audio, at_time_res=10)
    spectrogram = whisper_at.log_mel_spectrogram(audio, padding=480000)
    expected = []
    for start in (0, 3000):
        outputs = []
        with torch.no_grad():
            window = spectrogram[None, :, start : start + 3000]
            whisper_at.engine.encoder.encode(no_decoder.encoder, window, lambda x, to=outputs: to.append(x.clone()))
            pooled = torch.stack([pool_steps(x, [whisper_at.windows.Window(0)]) for x in outputs], 1)
            expected += [no_decoder.head(pooled[:, :, i : i + 25])[0] for i in (0, 25, 50)]
    torch.testing.assert_close(result["audio_tag"], torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_equal_to_transcribe_where_windows_are(model_en):
    """Text without a last segment that is cut moves on by whole windows."""
    audio = noise(60)
    options = {"language": "en", "temperature": 0.0, "fp16": False, "without_timestamps": True, "sample_len": 3}
    text = model_en.transcribe(audio, at_time_res=(2, 10), no_speech_threshold=None, **options)
    alone = model_en.tag(audio, at_time_res=(2, 10))
    for seconds in (2, 10):
        torch.testing.assert_close(alone["audio_tag"][seconds], text["audio_tag"][seconds], atol=1e-4, rtol=1e-4)
    assert set(text) == set(alone)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches(no_decoder, batch_size):
    audio = noise(95)
    expected = no_decoder.tag(audio, at_time_res=0.4)
    found = no_decoder.tag(audio, at_time_res=0.4, batch_size=batch_size)
    torch.testing.assert_close(found["audio_tag"], expected["audio_tag"], atol=1e-4, rtol=1e-4)


def test_clips_leave_gaps(no_decoder):
    result = no_decoder.tag(noise(70), at_time_res=2, clip_timestamps=[10, 20, 50, 52])
    heard = [bool(share) for share in result["audio_tag_coverage"]]
    assert heard == [10 <= 2 * i < 20 or 50 <= 2 * i < 52 for i in range(35)]
    assert [not row.isnan().any() for row in result["audio_tag"]] == heard


def test_heads_of_ones_own(no_decoder):
    no_decoder.attach("mine", head_with_classes())
    result = no_decoder.tag(noise(12), at_time_res=4)
    assert result["mine"]["logits"].shape == (3, 3)
    assert result["mine"]["segments"].shape == (0, 3)
    no_decoder.head = None
    result = no_decoder.tag(noise(12), at_time_res=4)
    assert "audio_tag" not in result
    events = whisper_at.find_events(result, p_threshold=-100.0)
    assert {event["name"] for event in events} == {"a", "b", "c"}


def test_memory_does_not_grow(no_decoder, monkeypatch):
    """The spectrogram lies on disk, and no more than a batch of windows is read at once."""
    read = []
    real = mel_module.LogMel.window
    monkeypatch.setattr(mel_module.LogMel, "window", lambda self, a, b: read.append(b - a) or real(self, a, b))
    no_decoder.tag(noise(95), at_time_res=10)
    assert read == [3000, 3000, 3000, 500]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_time_res": 0.3}, "multiple of 0.4"),
        ({"at_time_res": None}, "at_time_res"),
        ({"at_time_res": []}, "empty"),
        ({"batch_size": 0}, "batch_size"),
        ({"clip_timestamps": [-1]}, "negative"),
    ],
)
def test_what_cannot_be_tagged(no_decoder, options, message):
    with pytest.raises(ValueError, match=message):
        no_decoder.tag(noise(1), **options)


def test_without_a_head(no_decoder):
    no_decoder.head = None
    with pytest.raises(ValueError, match="cannot tag sounds: this model has no head"):
        no_decoder.tag("no_such_file.wav")


# --- the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_format", ["all", "json", "srt", "vtt", "txt", "tsv"])
def test_files_of_sounds_alone(tmp_path, output_format, monkeypatch, capsys):
    monkeypatch.setattr(whisper_at.WhisperAT, "decode", lambda *_, **__: pytest.fail("the decoder ran"))
    arguments = ["sample/street.ogg", "--model", "nano.en", "--task", "tag", "-o", str(tmp_path), "-f", output_format]
    assert main(arguments) == 0
    names = {path.suffix[1:] for path in tmp_path.iterdir()}
    assert names == ({"txt", "vtt", "srt", "tsv", "json"} if output_format == "all" else {output_format})
    if "json" in names:
        result = json.loads((tmp_path / "street.json").read_text())
        assert (result["text"], result["segments"], result["task"]) == ("", [], "tag")
        assert result["audio_tag"]
        assert result["events"]
        assert result["at_time_res"] == (10.0 if output_format == "json" else 2.0)
    for name in names - {"json"}:
        assert "[" in (tmp_path / f"street.{name}").read_text()
    assert "-->" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--word_timestamps", "True"], "--word_timestamps is for text"),
        (["--initial_prompt", "x"], "--initial_prompt is for text"),
        (["--model", "turbo"], "no tagging head is published"),
    ],
)
def test_what_is_for_text_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["sample/street.ogg", "--model", "nano.en", "--task", "tag", *arguments])
    assert message in capsys.readouterr().err
