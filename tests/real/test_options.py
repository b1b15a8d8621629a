"""Every option of `whisper.transcribe` on tiny.en and real speech: the same tokens, times and scores."""

from __future__ import annotations

import pytest
import torch
from real_recordings import in_noise, load, speech
from same_as_upstream import both

pytestmark = pytest.mark.real

OPTIONS = {
    "beams, patience and length penalty": ["2764-36616-0000", dict(beam_size=2, patience=1.5, length_penalty=0.6)],
    "long initial prompt": ["8226-274369-0000", dict(initial_prompt="The King and the Commons. " * 60)],
    "prefix, without timestamps": ["6880-216547-0000", dict(prefix="The following letter", without_timestamps=True)],
    "clips, the last one open": ["3607-135982-0000", dict(clip_timestamps=[0.4, 3.0, 4.1])],
    "tokens suppressed": ["201-122255-0000", dict(suppress_tokens="-1,7433,1757", max_initial_timestamp=None)],
    "nothing suppressed, no thresholds": [
        "5456-24741-0000",
        dict(
            suppress_tokens="",
            suppress_blank=False,
            compression_ratio_threshold=None,
            logprob_threshold=None,
            no_speech_threshold=None,
        ),
    ],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_text_is_upstreams(name, tiny_en):
    """D18."""
    utterance, options = OPTIONS[name]
    assert both(*tiny_en, speech(utterance), None, **options)["text"]


NOISY = {
    "at the second temperature": dict(temperature=(0.0, 0.4, 0.8), logprob_threshold=-0.6),
    "beams, then samples": dict(temperature=(0.0, 0.7), beam_size=2, best_of=3, logprob_threshold=-0.05),
}


@pytest.mark.parametrize("name", NOISY)
def test_fallback_draws_upstreams_samples(name, tiny_en):
    """Speech in a helicopter's noise, which looks bad enough to be tried again, with the same random numbers."""
    audio = in_noise(speech("1624-142933-0000"), load("esc50/1-172649-A-40.ogg"), 0)
    result = both(*tiny_en, audio, None, seed=4, **NOISY[name])
    assert max(segment["temperature"] for segment in result["segments"]) > 0


TWO_WINDOWS = "0,4.245,4.245"
"""No end of the second: a clip that ends a frame behind the audio keeps upstream from ever returning."""

PROMPTS = {
    "the text before": {},
    "a prompt that is carried": dict(initial_prompt="FALK, A REPORTER", carry_initial_prompt=True),
    "no text before, after a high temperature": dict(temperature=(0.0, 0.6), compression_ratio_threshold=0.1),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_second_window_is_given_upstreams_prompt(name, tiny_en):
    audio = speech("4441-76250-0000", "839-130898-0000")
    result = both(*tiny_en, audio, None, clip_timestamps=TWO_WINDOWS, **PROMPTS[name])
    assert {segment["seek"] for segment in result["segments"]} >= {0, 424}


def test_windows_are_skipped_as_silent_as_upstream_does(tiny_en):
    audio = speech("839-130898-0000")
    assert both(*tiny_en, audio, None, temperature=0, no_speech_threshold=0.0, logprob_threshold=0.0)["segments"] == []


def test_language_tokens_stay_out_of_the_text(base):
    """Upstream's text ends in <|he|> here, which none of its segments has."""
    torch.manual_seed(5)
    result = base.model.transcribe(load("speech/jfk.flac"), language="he")
    assert "<|" not in result["text"]
    assert result["text"] == "".join(segment["text"] for segment in result["segments"])
