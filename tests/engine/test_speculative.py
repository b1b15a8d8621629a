"""Decoding with guesses: the same text, in fewer passes of the model that decides."""

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
from whisper_at.engine.decoder import Decoder, Rows
from whisper_at.engine.speculative import MOST, TRY_AGAIN, Draft, Drafted, is_worth_it
from whisper_at.model import WhisperAT


def features(seed: int) -> torch.Tensor:
    return torch.randn(1, 1500, 64, generator=torch.Generator().manual_seed(seed))


def with_draft(model: WhisperAT, kind: str) -> WhisperAT:
    """The model with a decoder beside it that is nearly always, sometimes or never right."""
    model = copy.deepcopy(model)
    if kind == "its own":
        guessing = model
    elif kind == "near it":
        guessing, r = copy.deepcopy(model), torch.Generator().manual_seed(1)
        for parameter in guessing.decoder.parameters():
            parameter.data += 0.005 * torch.randn(parameter.shape, generator=r)
    else:
        guessing = random_whisper(WhisperAT, model.dims.n_vocab, seed=5)
    model.draft = Draft(vars(guessing.dims), guessing.state_dict())
    return model


KINDS = ("its own", "near it", "another's")


@pytest.fixture
def always(monkeypatch):
    """Guesses are made however few are right."""
    monkeypatch.setattr(speculative, "is_worth_it", lambda right, cost, five: True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [True, False])
def test_the_text_does_not_depend_on_guesses(model_en, model_multilingual, kind, compiled, always):
    r = random.Random(0)
    for case in range(6 if compiled else 2):
        plain = r.choice([model_en, model_multilingual])
        guessed = with_draft(plain, kind)
        if not compiled:
            for model in (plain, guessed):
                model._decoder = Decoder(model, torch.float32)
                model._decoder.weights = None
        options = whisper_at.DecodingOptions(
            language="en",
            fp16=False,
            without_timestamps=case % 2 == 0,
            suppress_blank=r.random() < 0.5,
            prompt=r.choice([None, list(range(900, 1100))]),
            sample_len=[1, 2, 17, 60, 60, 448][case],
        )
        heard = features(case)
        wanted, found = plain.decode(heard, options)[0], guessed.decode(heard, options)[0]
        assert found.tokens == wanted.tokens
        assert found.avg_logprob == pytest.approx(wanted.avg_logprob, rel=1e-4)
        assert found.no_speech_prob == wanted.no_speech_prob


@pytest.mark.parametrize("kind", KINDS)
def test_right_guesses_save_passes(model_en, kind, monkeypatch):
    """About one pass for every five tokens where guesses are right; and little in vain where none is."""
    model = with_draft(model_en, kind)
    checks, extend = [], Rows.extend

    def counting(self, tokens, **options):
        if self.decoder is model._decoder:
            checks.append(tokens.shape[1])
        return extend(self, tokens, **options)

    monkeypatch.setattr(Rows, "extend", counting)
    monkeypatch.setattr(speculative, "is_worth_it", lambda right, cost, five: right > 0.5)
    monkeypatch.delattr(Rows, "step")  # of one token alone
    never = [-1, get_tokenizer(False).eot]
    options = whisper_at.DecodingOptions(
        language="en", fp16=False, without_timestamps=True, sample_len=101, suppress_tokens=never
    )
    assert len(model.decode(features(3), options)[0].tokens) == 101
    if kind == "another's":
        assert len(checks) == 100
        assert checks[0] == 1 + MOST
        tried = [i for i, n in enumerate(checks) if n > 1]
        assert 10 < len(tried) < 14
        assert tried[-1] - tried[-2] == TRY_AGAIN + 1
    else:
        assert len(checks) < (40 if kind == "its own" else 80)


def test_when_guessing_is_worth_it():
    """By tokens per time: 1 + p + p² + p³ + p⁴ in the time of four guesses and a pass of five, or one in a pass."""
    assert is_worth_it(1.0, 0.5, 1.4)
    assert not is_worth_it(0.0, 0.01, 1.4)
    assert is_worth_it(0.5, 0.13, 1.4)
    assert not is_worth_it(0.5, 0.14, 1.4)


def test_texts_that_end_or_fill_the_context(model_en, always):
    """No guess goes past an end, nor past the last place that the decoder has."""
    tokenizer = get_tokenizer(False)
    model = with_draft(model_en, "its own")
    decoder = model.fast_decoder(torch.float32)
    never = torch.arange(tokenizer.eot, model.dims.n_vocab)

    def forbid(logits, tokens):
        logits[:, never] = float("-inf")

    plain = Rows(decoder, decoder.hear(features(0)))
    drafted = Drafted(Rows(decoder, decoder.hear(features(0))), model.draft, forbid, end=tokenizer.eot)
    tokens = torch.randint(0, 50000, (1, 300), generator=torch.Generator().manual_seed(0))
    logits = plain.start(tokens)[:, 0]
    torch.testing.assert_close(drafted.start(tokens)[:, 0], logits)
    for _ in range(448 - 300):
        forbid(logits, tokens)
        following = logits.argmax(-1)
        logits = plain.step(following)
        torch.testing.assert_close(drafted.step(following), logits, atol=1e-3, rtol=1e-3)
    assert drafted.tokens.shape == (1, 448)
    rows = Rows(decoder, decoder.hear(features(0)))
    ending = Drafted(rows, model.draft, lambda logits, tokens: logits[:, 7].fill_(1e9), end=7)
    ending.start(tokens)
    ending.step(torch.tensor([3]))
    assert len(ending.checked) == 1  # the end itself was guessed, and nothing behind it


def test_guesses_that_were_wrong_leave_nothing_behind(model_en, always):
    """Whatever is said instead of what was guessed, logits are those of the whole text."""
    model = with_draft(model_en, "near it")
    decoder = model.fast_decoder(torch.float32)
    drafted = Drafted(Rows(decoder, decoder.hear(features(2))), model.draft, lambda logits, tokens: None, end=-1)
    r, tokens = random.Random(1), torch.randint(0, 50000, (1, 5), generator=torch.Generator().manual_seed(4))
    found = drafted.start(tokens)[:, 0]
    for _ in range(60):
        following = found.argmax(-1) if r.random() < 0.7 else torch.tensor([r.randrange(50000)])
        tokens = torch.cat([tokens, following[:, None]], 1)
        found = drafted.step(following)
        with torch.no_grad():
            wanted = model.decoder(tokens, features(2))[:, -1]
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("compute_type", [None, "int8"])
def test_transcribing_real_speech(compute_type, tmp_path, always, monkeypatch):
    """nano.en, with the first two layers of its own decoder to guess."""
    plain = whisper_at.load_model("nano.en", "cpu", head=None, compute_type=compute_type)
    deeper = tuple(f"decoder.blocks.{i}." for i in range(2, plain.dims.n_text_layer))
    state = {key: tensor for key, tensor in plain.state_dict().items() if not key.startswith(deeper)}
    path = tmp_path / "small.pt"
    torch.save({"dims": {**vars(plain.dims), "n_text_layer": 2}, "model_state_dict": state}, path)
    drafted = whisper_at.load_model("nano.en", "cpu", head=None, compute_type=compute_type, draft=str(path))
    guesses, guess = [], Drafted._guess
    monkeypatch.setattr(Drafted, "_guess", lambda *args: guesses.append(guess(*args)) or guesses[-1])
    for audio in (ROOT / "sample" / "speech.flac", ROOT / "sample" / "street.ogg"):
        wanted, found = plain.transcribe(str(audio)), drafted.transcribe(str(audio))
        assert found["text"] == wanted["text"]
        assert len(wanted["text"]) > 20
        assert [s["tokens"] for s in found["segments"]] == [s["tokens"] for s in wanted["segments"]]
    assert sum(part.shape[1] for part in guesses) > 60


def test_a_model_may_guess_for_itself():
    """By a copy of its decoder in int8, which is nearly always right."""
    plain = whisper_at.load_model("nano.en", "cpu", head=None)
    drafted = whisper_at.load_model("nano.en", "cpu", head=None, draft="nano.en")
    drafted.draft.trust = 1.0
    audio = str(ROOT / "sample" / "speech.flac")
    assert drafted.transcribe(audio)["text"] == plain.transcribe(audio)["text"]
    assert drafted.draft.trust > 0.9


def test_what_cannot_guess_is_refused(model_en, tmp_path):
    def saved(model, name):
        path = tmp_path / name
        torch.save({"dims": vars(model.dims), "model_state_dict": model.state_dict()}, path)
        return str(path)

    path = saved(model_en, "model.pt")
    with pytest.raises(ValueError, match="other.pt cannot guess for .*model.pt: its n_vocab is 51865, not 51864"):
        whisper_at.load_model(path, "cpu", head=None, draft=saved(random_whisper(WhisperAT, 51865), "other.pt"))
    with pytest.raises(ValueError, match="is for CPUs"):
        whisper_at.load_model(path, "cuda", head=None, draft=path)
    with pytest.raises(RuntimeError, match="nothing.pt"):
        whisper_at.load_model(path, "cpu", head=None, draft=str(tmp_path / "nothing.pt"))
    with pytest.warns(UserWarning, match="another encoder than"):
        whisper_at.load_model(path, "cpu", head=None, draft=saved(random_whisper(WhisperAT, 51864, seed=3), "far.pt"))


def test_sampling_beams_and_batches_go_without(model_en, monkeypatch):
    model = with_draft(model_en, "another's")
    monkeypatch.delattr(Draft, "fast_decoder")
    for options in ({"beam_size": 2}, {"temperature": 0.5}):
        model.decode(features(0), language="en", fp16=False, sample_len=5, **options)
    model.decode(torch.cat([features(0), features(1)]), language="en", fp16=False, sample_len=5)
    assert copy.deepcopy(model).draft is not None


@pytest.mark.parametrize("options", [[], ["--beam_size", "None", "--batch_size", "4"]])
def test_the_command_refuses_a_draft_that_would_not_be_asked(options, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["a.wav", "--model", "nano.en", "--draft", "nano.en", *options])
    assert error.value.code == 2
    assert "--beam_size None" in capsys.readouterr().err


def test_the_command(tmp_path, always, monkeypatch):
    checks, check = [], Drafted._check
    monkeypatch.setattr(Drafted, "_check", lambda self: checks.append(1) or check(self))
    audio = str(ROOT / "sample" / "speech.flac")
    common = [audio, "--model", "nano.en", "--beam_size", "None", "--fp16", "False", "--output_format", "txt"]
    assert cli.main([*common, "-o", str(tmp_path / "alone")]) == 0
    assert not checks
    assert cli.main([*common, "-o", str(tmp_path / "guessed"), "--draft", "nano.en"]) == 0
    assert checks
    texts = [(tmp_path / name / "speech.txt").read_text() for name in ("alone", "guessed")]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 20
