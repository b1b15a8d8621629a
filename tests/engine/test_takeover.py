"""The text is the same whichever moment the kernels become ready at, in every precision."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count

import pytest
import torch
from conftest import ROOT, SAMPLE_RATE, noise

import whisper_at
from whisper_at.cli.warmup import warm_up
from whisper_at.engine import compilation, encoder_int8
from whisper_at.engine import decoder as decoder_module
from whisper_at.engine.decoder import Decoder
from whisper_at.engine.kv_cache import DecoderState
from whisper_at.engine.simd import has_bfloat16
from whisper_at.engine.speculative import DraftModel

NEVER = 10**9


@pytest.fixture
def ready_from(monkeypatch):
    """Let kernels be ready from the n-th time on that the decoder asks; returns which windows were made for kernels."""
    made: list[bool] = []
    real_is_ready, real_precompute = compilation.is_ready, Decoder.precompute_cross_kv

    def precompute(self, features):
        audio = real_precompute(self, features)
        made.append(audio.is_for_kernels)
        return audio

    def set_moment(n):
        made.clear()
        asked = count()

        def is_ready(kernel, *arguments):
            of_decoder = kernel in (decoder_module.cpu_kernels.decoder_forward, decoder_module.cpu_kernels.matmul)
            return (next(asked) >= n if of_decoder else n < NEVER) and real_is_ready(kernel, *arguments)

        monkeypatch.setattr(compilation, "is_ready", is_ready)
        return made

    monkeypatch.setattr(Decoder, "precompute_cross_kv", precompute)
    return set_moment


OPTIONS = [
    {},
    {"beam_size": 3},
    {"batch_size": 2},
    {"word_timestamps": True},
    {"without_timestamps": True, "initial_prompt": "A story."},
]


def transcribe(model, **options):
    """Six seconds in two windows, or in two batches."""
    audio = whisper_at.load_audio(ROOT / "sample/speech.flac")[: 6 * SAMPLE_RATE]
    clips = {"clip_timestamps": "0,2,2,4,4" if "batch_size" in options else "0,3,3"}
    return model.transcribe(audio, language="en", fp16=False, temperature=0.0, **clips, **options)


CASES = [
    *(("float32", options) for options in OPTIONS),
    *(("int8", options) for options in OPTIONS[:3]),
    ("bfloat16", {}),
]


@pytest.mark.parametrize(("compute_type", "options"), CASES)
def test_text_does_not_depend_on_the_moment(ready_from, compute_type, options):
    model = whisper_at.load_model("nano.en", "cpu", compute_type=compute_type)
    results = []
    for moment in (0, 4, NEVER):  # two kernels are asked for at the beginning, and in each window
        made = ready_from(moment)
        results.append(transcribe(model, **options))
        expected = {0: {True}, 4: {True, False}, NEVER: {False}}[moment]
        assert set(made) == ({True, False} if moment == 4 and len(made) > 1 else expected)
    assert results[0]["text"]
    for result in results[1:]:
        for found, expected in zip(result["segments"], results[0]["segments"], strict=True):
            assert found["tokens"] == expected["tokens"]
            assert found["avg_logprob"] == pytest.approx(expected["avg_logprob"], abs=1e-3)
            words = [(word["word"], word["start"], word["end"]) for word in expected.get("words", [])]
            assert [(word["word"], word["start"], word["end"]) for word in found.get("words", [])] == words
        # sums in another order tip what an encoder in bfloat16 rounds
        tolerance = 5e-3 if compute_type != "float32" and has_bfloat16() else 1e-4
        torch.testing.assert_close(result["audio_tag"], results[0]["audio_tag"], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("compute_type", ["float32", "int8"])
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("tiny_en")  # skips where it is not here
def test_text_of_a_real_whisper(ready_from, compute_type):
    model = whisper_at.load_model("tiny.en", "cpu", head=None, compute_type=compute_type)
    options = {"language": "en", "fp16": False, "temperature": 0.0, "clip_timestamps": "0,8,8,16"}
    tokens = []
    for moment in (0, 4, NEVER):
        ready_from(moment)
        result = model.transcribe(str(ROOT / "sample/reading.ogg"), **options)
        tokens.append([segment["tokens"] for segment in result["segments"]])
    assert len(tokens[0]) >= 2  # each window has text
    assert tokens[1:] == [tokens[0]] * 2


@pytest.mark.parametrize("moments", [(0, NEVER), (2, NEVER)])
def test_a_draft_may_be_ready_at_another_moment(ready_from, model_en, moments):
    """Text that the target's kernels verify, drafted by PyTorch, and the other way round."""
    model_en.draft = DraftModel(vars(model_en.dims), model_en.state_dict())
    texts = []
    for moment in moments:
        model_en._decoder = model_en.draft._fast = None
        ready_from(moment)
        options = whisper_at.DecodingOptions(language="en", fp16=False, sample_len=24)
        features = torch.randn(1, 1500, 64, generator=torch.Generator().manual_seed(1))
        texts.append([model_en.decode(features, options)[0].tokens for _ in range(2)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("compute_type", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("exact_in_half", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_weights_and_rounding_are_those_of_the_kernels(
    ready_from, monkeypatch, model_en, compute_type, exact_in_half, kept
):
    """Logits by PyTorch, whether it keeps converted weights, as it does in float32, or converts them for each token."""
    if not kept:
        monkeypatch.setattr(decoder_module, "MAX_CONVERTED_BYTES", 0)
    if exact_in_half:
        for weight in model_en.parameters():
            weight.data = weight.data.half().float()
    tokens = torch.randint(0, 50000, (2, 9), generator=torch.Generator().manual_seed(0))
    features = torch.randn(2, 1500, 64, generator=torch.Generator().manual_seed(1))
    found = []
    for moment in (0, NEVER):
        ready_from(moment)
        decoder = Decoder(model_en, torch.float32, compute_type)
        state = DecoderState(decoder, decoder.precompute_cross_kv(features), 2)
        found.append([state.prefill(tokens)[:, 0]] + [state.step(torch.tensor([5, 6, 7, 8])) for _ in range(3)])
        assert (decoder._converted is not None) == ((kept or compute_type is None) and moment == NEVER)
    for by_kernels, by_pytorch in zip(*found):
        assert (by_kernels - by_pytorch).std() < (2e-3 if compute_type == "int8" else 1e-5) * by_kernels.std()


def test_converted_weights_are_let_go_when_kernels_are_ready(ready_from, model_en):
    decoder = model_en.fast_decoder(torch.float32)
    features = torch.zeros(1, 1500, 64)
    ready_from(2)
    assert not decoder.precompute_cross_kv(features).is_for_kernels
    assert decoder._converted is not None
    assert decoder.precompute_cross_kv(features).is_for_kernels
    assert decoder._converted is None


def test_a_window_is_decoded_by_the_same_means_throughout(ready_from, model_en, monkeypatch):
    """Kernels that become ready within a window serve the next."""
    decoder = model_en.fast_decoder(torch.float32)
    ready_from(NEVER)
    audio = decoder.precompute_cross_kv(torch.zeros(1, 1500, 64))
    ready_from(0)

    def fail(*_):
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(decoder_module.cpu_kernels, "decoder_forward", fail)
    monkeypatch.setattr(decoder_module.cpu_kernels, "matmul", fail)
    state = DecoderState(decoder, audio)
    state.prefill(torch.tensor([[50257]]))
    state.step(torch.tensor([50362]))


def test_which_encoder_is_used_does_not_depend_on_the_moment(ready_from, model_en, monkeypatch):
    monkeypatch.setattr(whisper_at.model, "has_bfloat16", lambda: False)
    monkeypatch.setattr(encoder_int8.int8_products, "is_faster_than_float32", lambda: True)
    model_en.compute_type = "int8"
    mel = whisper_at.log_mel_spectrogram(noise(30))[None]
    features = []
    for moment in (0, NEVER):
        ready_from(moment)
        features.append(model_en.embed_audio(mel))
        assert isinstance(model_en._encoder, encoder_int8.EncoderInt8)
    assert torch.equal(*features)


FIRST_RUN = """
import torch, whisper_at
from whisper_at.engine import cpu_kernels
from whisper_at.engine.compilation import wait_for_kernels
from whisper_at.engine.kv_cache import DecoderState
model = whisper_at.load_model("nano.en", "cpu", head=None)
def transcribe():
    audio = whisper_at.load_audio("sample/speech.flac")
    result = model.transcribe(audio, language="en", fp16=False, temperature=0.0, word_timestamps=True)
    is_for_kernels = model.precompute_cross_kv(torch.zeros(1, 1500, model.dims.n_text_state)).is_for_kernels
    return result["text"], is_for_kernels
text, early = transcribe()
assert wait_for_kernels()
again, late = transcribe()
kernels = cpu_kernels.decoder_forward, cpu_kernels.matmul
print(text == again, early, late, sum(sum(kernel._cache_misses.values()) for kernel in kernels))
"""


@pytest.mark.slow
def test_the_first_run_on_a_machine(tmp_path):
    """Nothing is compiled by the process that transcribes, and its text is there before anything is.

    `test_target` shows the first and the text in other precisions.
    """
    env = {**os.environ, "WHISPER_AT_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FIRST_RUN]
    found = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert found.stdout == "True False True 0\n", found.stderr


@pytest.mark.parametrize("compute_type", ["float32", "int8", "bfloat16"])
def test_all_that_is_warmed_up_is_all_that_is_used(compute_type, monkeypatch):
    """After `warmup` nothing is left to be compiled, whatever is asked for."""
    assert warm_up(compute_type)
    asked: list[str] = []
    real = compilation.is_ready

    def is_ready(kernel, *arguments):
        if not (ready := real(kernel, *arguments)):
            asked.append(kernel.__name__)
        return ready

    monkeypatch.setattr(compilation, "is_ready", is_ready)
    model = whisper_at.load_model("nano.en", "cpu", compute_type=compute_type)
    for options in OPTIONS if compute_type != "bfloat16" else OPTIONS[:1]:
        transcribe(model, **options)
    assert asked == []
