"""Speculative decoding: the same text, in fewer passes of the model that decides."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from conftest import ROOT, random_whisper
from whisper.tokenizer import get_tokenizer

import whisper_at
from whisper_at import cli
from whisper_at.engine import speculative
from whisper_at.engine.decoder import Decoder
from whisper_at.engine.kv_cache import DecoderState
from whisper_at.engine.speculative import (
    MAX_STEPS_WITHOUT_DRAFT,
    NUM_DRAFT_TOKENS,
    DraftModel,
    SpeculativeDecoder,
    is_worth_it,
)
from whisper_at.model import WhisperAT


def features(seed: int) -> torch.Tensor:
    return torch.randn(1, 1500, 64, generator=torch.Generator().manual_seed(seed))


def with_draft(model: WhisperAT, kind: str) -> WhisperAT:
    """Return the model with a draft model whose tokens are accepted nearly always, sometimes or never."""
    model = copy.deepcopy(model)
    if kind == "same":
        drafting = model
    elif kind == "similar":
        drafting, r = copy.deepcopy(model), torch.Generator().manual_seed(1)
        for parameter in drafting.decoder.parameters():
            parameter.data += 0.005 * torch.randn(parameter.shape, generator=r)
    else:
        drafting = random_whisper(WhisperAT, model.dims.n_vocab, seed=5)
    model.draft = DraftModel(vars(drafting.dims), drafting.state_dict())
    return model


KINDS = ("same", "similar", "other")


@pytest.fixture
def always(monkeypatch):
    """Draft however few tokens are accepted."""
    monkeypatch.setattr(speculative, "is_worth_it", lambda *_: True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [True, False])
def test_the_text_does_not_depend_on_the_draft(model_en, model_multilingual, kind, compiled, always):
    r = random.Random(0)
    for case in range(6 if compiled else 2):
        plain = r.choice([model_en, model_multilingual])
        drafted = with_draft(plain, kind)
        if not compiled:
            for model in (plain, drafted):
                model._decoder = Decoder(model, torch.float32)
                model._decoder.packed = None
        options = whisper_at.DecodingOptions(
            language="en",
            fp16=False,
            without_timestamps=case % 2 == 0,
            suppress_blank=r.random() < 0.5,
            prompt=list(range(900, 1100)) if case in (2, 5) else None,
            sample_len=[1, 2, 17, 30, 24, 448][case],  # the last one goes on to the end of the context
        )
        audio_features = features(case)
        wanted, found = plain.decode(audio_features, options)[0], drafted.decode(audio_features, options)[0]
        assert found.tokens == wanted.tokens
        assert found.avg_logprob == pytest.approx(wanted.avg_logprob, rel=1e-4)
        assert found.no_speech_prob == wanted.no_speech_prob


@pytest.mark.parametrize("kind", KINDS)
def test_accepted_tokens_save_passes(model_en, kind, monkeypatch):
    """About one pass for every five tokens where they are accepted, and little in vain where none is."""
    model = with_draft(model_en, kind)
    checks, extend = [], DecoderState.extend

    def counting(self, tokens, **options):
        if self.decoder is model._decoder:
            checks.append(tokens.shape[1])
        return extend(self, tokens, **options)

    monkeypatch.setattr(DecoderState, "extend", counting)
    monkeypatch.setattr(speculative, "is_worth_it", lambda acceptance_rate, *_: acceptance_rate > 0.5)
    monkeypatch.delattr(DecoderState, "step")  # of one token alone
    never = [-1, get_tokenizer(False).eot]
    options = whisper_at.DecodingOptions(
        language="en", fp16=False, without_timestamps=True, sample_len=101, suppress_tokens=never
    )
    assert len(model.decode(features(3), options)[0].tokens) == 101
    if kind == "other":
        assert len(checks) == 100
        assert checks[0] == 1 + NUM_DRAFT_TOKENS
        tried = [i for i, n in enumerate(checks) if n > 1]
        assert 10 < len(tried) < 14
        assert tried[-1] - tried[-2] == MAX_STEPS_WITHOUT_DRAFT + 1
    else:
        assert len(checks) < (40 if kind == "same" else 80)


def test_when_drafting_is_worth_it():
    """By tokens per time: 1 + p + p² + p³ + p⁴ in the time of four drafted and a pass of five, or one in a pass."""
    assert is_worth_it(1.0, 0.5, 1.4)
    assert not is_worth_it(0.0, 0.01, 1.4)
    assert is_worth_it(0.5, 0.13, 1.4)
    assert not is_worth_it(0.5, 0.14, 1.4)


def test_texts_that_end_or_fill_the_context(model_en, always):
    """Nothing is drafted past an end, nor past the last place that the decoder has."""
    tokenizer = get_tokenizer(False)
    model = with_draft(model_en, "same")
    decoder = model.fast_decoder(torch.float32)
    never = torch.arange(tokenizer.eot, model.dims.n_vocab)

    def apply_rules(logits, tokens):
        logits[:, never] = float("-inf")

    plain = DecoderState(decoder, decoder.precompute_cross_kv(features(0)))
    drafted = SpeculativeDecoder(
        DecoderState(decoder, decoder.precompute_cross_kv(features(0))), model.draft, apply_rules, eot=tokenizer.eot
    )
    tokens = torch.randint(0, 50000, (1, 300), generator=torch.Generator().manual_seed(0))
    logits = plain.prefill(tokens)[:, 0]
    torch.testing.assert_close(drafted.prefill(tokens)[:, 0], logits)
    for _ in range(448 - 300):
        apply_rules(logits, tokens)
        following = logits.argmax(-1)
        logits = plain.step(following)
        torch.testing.assert_close(drafted.step(following), logits, atol=1e-3, rtol=1e-3)
    assert drafted.tokens.shape == (1, 448)
    rows = DecoderState(decoder, decoder.precompute_cross_kv(features(0)))
    ending = SpeculativeDecoder(rows, model.draft, lambda logits, tokens: logits[:, 7].fill_(1e9), eot=7)
    ending.prefill(tokens)
    ending.step(torch.tensor([3]))
    assert len(ending.verified) == 1  # the end itself was drafted, and nothing behind it


def test_rejected_tokens_leave_nothing_behind(model_en, always):
    """Whatever follows instead of what was drafted, logits are those of the whole text."""
    model = with_draft(model_en, "similar")
    decoder = model.fast_decoder(torch.float32)
    drafted = SpeculativeDecoder(
        DecoderState(decoder, decoder.precompute_cross_kv(features(2))),
        model.draft,
        lambda logits, tokens: None,
        eot=-1,
    )
    r, tokens = random.Random(1), torch.randint(0, 50000, (1, 5), generator=torch.Generator().manual_seed(4))
    found = drafted.prefill(tokens)[:, 0]
    for _ in range(60):
        following = found.argmax(-1) if r.random() < 0.7 else torch.tensor([r.randrange(50000)])
        tokens = torch.cat([tokens, following[:, None]], 1)
        found = drafted.step(following)
        with torch.no_grad():
            wanted = model.decoder(tokens, features(2))[:, -1]
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("compute_type", [None, "int8"])
def test_transcribing_real_speech(compute_type, tmp_path, always, monkeypatch):
    """nano.en, with the first two layers of its own decoder as the draft model."""
    plain = whisper_at.load_model("nano.en", "cpu", head=None, compute_type=compute_type)
    deeper = tuple(f"decoder.blocks.{i}." for i in range(2, plain.dims.n_text_layer))
    state = {key: tensor for key, tensor in plain.state_dict().items() if not key.startswith(deeper)}
    path = tmp_path / "small.pt"
    torch.save({"dims": {**vars(plain.dims), "n_text_layer": 2}, "model_state_dict": state}, path)
    drafted = whisper_at.load_model("nano.en", "cpu", head=None, compute_type=compute_type, draft=str(path))
    drafts, draft = [], SpeculativeDecoder._draft
    monkeypatch.setattr(SpeculativeDecoder, "_draft", lambda *args: drafts.append(draft(*args)) or drafts[-1])
    for audio in (ROOT / "sample" / "speech.flac", ROOT / "sample" / "street.ogg"):
        wanted, found = plain.transcribe(str(audio)), drafted.transcribe(str(audio))
        assert found["text"] == wanted["text"]
        assert len(wanted["text"]) > 20
        assert [s["tokens"] for s in found["segments"]] == [s["tokens"] for s in wanted["segments"]]
    assert sum(part.shape[1] for part in drafts) > 60


def test_a_model_may_draft_for_itself():
    """By a copy of its decoder in int8, whose tokens are nearly always accepted."""
    plain = whisper_at.load_model("nano.en", "cpu", head=None)
    drafted = whisper_at.load_model("nano.en", "cpu", head=None, draft="nano.en")
    drafted.draft.acceptance_rate = 1.0
    audio = str(ROOT / "sample" / "speech.flac")
    assert drafted.transcribe(audio)["text"] == plain.transcribe(audio)["text"]
    assert drafted.draft.acceptance_rate > 0.9


def test_incompatible_drafts_are_refused(model_en, tmp_path):
    def saved(model, name):
        path = tmp_path / name
        torch.save({"dims": vars(model.dims), "model_state_dict": model.state_dict()}, path)
        return str(path)

    path = saved(model_en, "model.pt")
    with pytest.raises(ValueError, match="other.pt cannot draft for .*model.pt: its n_vocab is 51865, not 51864"):
        whisper_at.load_model(path, "cpu", head=None, draft=saved(random_whisper(WhisperAT, 51865), "other.pt"))
    with pytest.raises(ValueError, match="is for CPUs"):
        whisper_at.load_model(path, "cuda", head=None, draft=path)
    with pytest.raises(RuntimeError, match="nothing.pt"):
        whisper_at.load_model(path, "cpu", head=None, draft=str(tmp_path / "nothing.pt"))
    with pytest.warns(UserWarning, match="another encoder than"):
        whisper_at.load_model(path, "cpu", head=None, draft=saved(random_whisper(WhisperAT, 51864, seed=3), "far.pt"))


def test_sampling_beams_and_batches_go_without(model_en, monkeypatch):
    model = with_draft(model_en, "other")
    monkeypatch.delattr(DraftModel, "fast_decoder")
    for options in ({"beam_size": 2}, {"temperature": 0.5}):
        model.decode(features(0), language="en", fp16=False, sample_len=5, **options)
    model.decode(torch.cat([features(0), features(1)]), language="en", fp16=False, sample_len=5)
    assert copy.deepcopy(model).draft is not None


@pytest.mark.parametrize("options", [[], ["--beam_size", "None", "--batch_size", "4"]])
def test_the_command_refuses_a_draft_that_would_not_be_used(options, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["a.wav", "--model", "nano.en", "--draft", "nano.en", *options])
    assert error.value.code == 2
    assert "--beam_size None" in capsys.readouterr().err


def test_the_command(tmp_path, always, monkeypatch):
    drafts, draft = [], SpeculativeDecoder._draft
    monkeypatch.setattr(SpeculativeDecoder, "_draft", lambda *args: drafts.append(1) or draft(*args))
    audio = str(ROOT / "sample" / "speech.flac")
    common = [audio, "--model", "nano.en", "--beam_size", "None", "--fp16", "False", "--output_format", "txt"]
    assert cli.main([*common, "-o", str(tmp_path / "plain")]) == 0
    assert not drafts
    assert cli.main([*common, "-o", str(tmp_path / "drafted"), "--draft", "nano.en"]) == 0
    assert drafts
    texts = [(tmp_path / name / "speech.txt").read_text() for name in ("plain", "drafted")]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 20
