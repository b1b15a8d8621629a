"""Decoder steps of one shape: the same numbers as steps that grow, whoever else decodes; recorded on a GPU."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
import whisper
from conftest import noise, random_whisper
from whisper.decoding import DecodingOptions

from whisper_at import decoding
from whisper_at.decoding import FastDecodingTask
from whisper_at.engine.alignment import AlignmentModel
from whisper_at.engine.cuda_graphs import StaticStep
from whisper_at.engine.decoder import Decoder
from whisper_at.engine.kv_cache import DecoderState
from whisper_at.fallback import select_windows
from whisper_at.model import WhisperAT


def mel(n: int) -> torch.Tensor:
    return torch.stack([whisper.log_mel_spectrogram(noise(30, seed)) for seed in range(n)])


def static(model: WhisperAT) -> Decoder:
    """The model's decoder, made to compute as it does on a GPU, but for the recording."""
    decoder = model.fast_decoder(torch.float32)
    decoder.packed, decoder.uses_graphs = None, True
    return decoder


@pytest.mark.parametrize("group", [1, 3])
def test_steps(model_en, group):
    """Past the first length, with forks, with a prompt: logits of growing steps, to the rounding of float32."""
    plain = Decoder(model_en, torch.float32)
    plain.packed = None
    fixed = static(model_en)
    with torch.no_grad():
        features = model_en.embed_audio(mel(2))
    generator = torch.Generator().manual_seed(group)
    one, other = (
        DecoderState(plain, plain.precompute_cross_kv(features), group),
        DecoderState(fixed, fixed.precompute_cross_kv(features), group),
    )
    prompt = torch.randint(0, 50000, (2, 30), generator=generator)
    torch.testing.assert_close(other.prefill(prompt), one.prefill(prompt))
    for i in range(70):
        tokens = torch.randint(0, 50000, (2 * group,), generator=generator)
        torch.testing.assert_close(other.step(tokens), one.step(tokens), atol=1e-3, rtol=1e-4)
        if group > 1 and i % 3 == 0:
            sources = [3 * r + int(torch.randint(0, 3, (1,), generator=generator)) for r in range(2) for _ in range(3)]
            one.reorder(sources)
            other.reorder(sources)
    assert other.static_step is not None
    assert other.position == 100


@pytest.mark.parametrize(
    "options",
    [{}, {"beam_size": 3}, {"temperature": 0.7, "best_of": 3}, {"prompt": "and so on"}, {"without_timestamps": True}],
)
def test_windows(model_en, options):
    options = DecodingOptions(fp16=False, language="en", sample_len=80, **options)
    batch = mel(3)
    torch.manual_seed(1)
    expected = model_en.decode(batch, options)
    assert static(model_en).packed is None
    torch.manual_seed(1)
    found = model_en.decode(batch, options)
    assert [result.tokens for result in found] == [result.tokens for result in expected]
    for one, other in zip(found, expected):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-4)


def test_windows_share_a_step_one_after_the_other(model_en):
    decoder = static(model_en)
    options = DecodingOptions(fp16=False, language="en", sample_len=3)
    model_en.decode(mel(1), options)
    gc.collect()
    (step,) = decoder.cached_steps
    model_en.decode(mel(1) * 0.5, options)
    gc.collect()
    assert list(decoder.cached_steps) == [step]
    for beams in (2, 3, 4):
        model_en.decode(mel(1), options, beam_size=beams)
        gc.collect()
    assert len(decoder.cached_steps) == 2
    assert step not in decoder.cached_steps


def test_what_takes_no_steps_needs_none(model_multilingual):
    """Language detection and word timing of a batch do not push its own steps out."""
    decoder = static(model_multilingual)
    with torch.no_grad():
        audio = decoder.precompute_cross_kv(model_multilingual.embed_audio(mel(2)))
    model_multilingual.detect_language(audio)
    tokens = torch.tensor([[50258, 50259, 50359, 11, 12, 50257]])
    AlignmentModel(model_multilingual, select_windows(audio, [1]))(mel(1), tokens)
    gc.collect()
    assert not decoder.cached_steps


def test_rows_that_are_decoded_at_the_same_time_do_not_share(model_en):
    decoder = static(model_en)
    with torch.no_grad():
        audio = [decoder.precompute_cross_kv(model_en.embed_audio(m[None])) for m in mel(2)]
    tokens = torch.tensor([[50257, 50362]])

    def read(rows: DecoderState) -> torch.Tensor:
        rows.prefill(tokens)
        return torch.stack([rows.step(torch.tensor([t])).clone() for t in (11, 12)])

    alone = [read(DecoderState(decoder, a)) for a in audio]
    both = [DecoderState(decoder, a) for a in audio]
    for rows in both:
        rows.prefill(tokens)
    steps = [[rows.step(torch.tensor([t])).clone() for rows in both] for t in (11, 12)]
    for i in range(2):
        torch.testing.assert_close(torch.stack([step[i] for step in steps]), alone[i], atol=1e-4, rtol=1e-4)


def test_steps_after_the_end_change_nothing(model_en, monkeypatch):
    """A GPU is asked every few steps whether all texts have ended."""
    options = DecodingOptions(fp16=False, language="en", sample_len=60)
    assert static(model_en).packed is None  # where rows whose text has ended are computed, too
    apply, step = decoding._LogitRules.apply, DecoderState.step
    counts = []

    def end_soon(rules, logits, tokens):
        apply(rules, logits, tokens)
        for i, row in enumerate(logits):
            row[rules.eot] = 1e4 if tokens.shape[1] >= rules.sample_begin + 9 + 2 * i else row[rules.eot]

    monkeypatch.setattr(decoding._LogitRules, "apply", end_soon)
    monkeypatch.setattr(DecoderState, "step", lambda self, tokens: counts.append(1) or step(self, tokens))
    once, late = (FastDecodingTask(model_en, options) for _ in range(2))
    assert once.sync_interval == 1
    assert decoding.SYNC_INTERVAL == 8
    late.sync_interval = decoding.SYNC_INTERVAL
    found = [(task.run(mel(2)), len(counts)) for task in (once, late)]
    assert [steps for _, steps in found] == [11, 11 + 15]  # twelve tokens; sixteen when asked at every eighth
    for one, other in zip(found[0][0], found[1][0]):
        assert one.tokens == other.tokens
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-5)


def test_copies_make_their_own(model_en):
    static(model_en)
    model_en.decode(mel(1), DecodingOptions(fp16=False, language="en", sample_len=3))
    twin = copy.deepcopy(model_en)
    assert twin._decoder is None
    assert model_en._decoder is not None


def test_too_little_memory_to_record_is_no_reason_to_go_on(model_en, monkeypatch):
    """Batches are made smaller then; what a GPU cannot record for another reason is computed step by step."""
    step = StaticStep(
        static(model_en), Decoder(model_en, torch.float32).precompute_cross_kv(torch.randn(1, 1500, 64)), 1
    )
    step.records = True

    def fail(error):
        def record(_):
            raise error

        monkeypatch.setattr(step, "_record", record)
        return step(torch.tensor([7]), 0, torch.zeros(1, 448))

    with pytest.raises(torch.OutOfMemoryError):
        fail(torch.OutOfMemoryError("as a GPU says it"))
    with pytest.warns(UserWarning, match="not recorded as graphs"):
        assert fail(RuntimeError("operation not permitted")).shape == (1, 51864)
    assert not step.records


@pytest.mark.skipif(not torch.cuda.is_available(), reason="recording needs a GPU")
@pytest.mark.parametrize("half", [False, True])
def test_recorded_steps(half):
    model = random_whisper(WhisperAT, 51864).cuda()
    options = DecodingOptions(fp16=half, language="en", sample_len=80)
    batch = mel(3).cuda()
    found = {name: model.decode(batch, options, **kind) for name, kind in (("greedy", {}), ("beam", {"beam_size": 3}))}
    decoder = model.fast_decoder(torch.float16 if half else torch.float32)
    gc.collect()
    assert all(len(step.graphs) == 2 for step in decoder.cached_steps)
    assert len(decoder.cached_steps) == 2
    decoder.uses_graphs = False
    assert [r.tokens for r in model.decode(batch, options)] == [r.tokens for r in found["greedy"]]
    assert [r.tokens for r in model.decode(batch, options, beam_size=3)] == [r.tokens for r in found["beam"]]
