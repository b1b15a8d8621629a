"""Heads beside a real Whisper: the text stays upstream's, and its features tell real sounds apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import Pair
from real_recordings import in_noise, load, speech
from same_as_upstream import both

import whisper_at
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import make_head

pytestmark = pytest.mark.real

SECONDS = 4.8
FITTED = {  # ESC-50, folds 1 and 2
    "rain": ["1-17367-A-10", "2-101676-A-10"],
    "crying_baby": ["1-187207-A-20", "2-107351-A-20"],
    "church_bells": ["1-13571-A-46", "2-57191-A-46"],
}
HELD_OUT = {"church_bells": "3-122110-A-46", "rain": "3-132852-A-10", "crying_baby": "3-151080-A-20"}


def clips(*names: str) -> np.ndarray:
    """The first 4.8 s of clips, which are 12 steps, one after the other."""
    return np.concatenate([load(f"esc50/{name}.ogg")[: round(SECONDS * 16000)] for name in names])


@pytest.fixture(scope="module")
def tagging_tiny_en(tiny_en) -> Iterator[Pair]:
    """tiny.en with a linear head for three sounds, fitted on two clips of each: one window."""
    model = tiny_en.model
    audio = clips(*(name for names in FITTED.values() for name in names))
    mel = whisper_at.pad_or_trim(whisper_at.log_mel_spectrogram(audio), 3000)
    _, states = model.encode(mel[None])
    rows = states[0, :, :72].unflatten(1, (6, 12)).transpose(0, 1)
    labels = torch.arange(3).repeat_interleave(2)
    torch.manual_seed(0)
    head = make_head("mean_mlp", n_layer=len(states[0]), rep_dim=states.shape[-1], label_dim=3)
    head.classes = ClassSet(tuple(FITTED), kind="single_label")
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    with torch.enable_grad():
        for _ in range(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(rows), labels).backward()
            optimizer.step()
    model.attach("sounds", head.eval())
    yield tiny_en
    model.detach("sounds")


def test_text_beside_a_head_is_upstreams(tagging_tiny_en):
    """D18."""
    audio = in_noise(speech("6385-220959-0000"), clips(HELD_OUT["rain"]), 5)
    result = both(*tagging_tiny_en, audio, 0.4, word_timestamps=True)
    assert len(result["sounds"]["logits"]) == 10
    assert len(result["sounds"]["segments"]) == len(result["segments"])


def test_sounds_of_other_clips_are_told_apart(tagging_tiny_en):
    audio = clips(*HELD_OUT.values())
    result = tagging_tiny_en.model.transcribe(audio, at_time_res=SECONDS, temperature=0, sample_len=8)
    heard = [tuple(FITTED)[row] for row in result["sounds"]["logits"].argmax(1).tolist()]
    assert heard == list(HELD_OUT)
