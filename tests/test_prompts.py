"""What is said before: prompts of any length and content, and what windows of a batch know of one another."""

from __future__ import annotations

import warnings

import pytest
import soundfile
from conftest import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.tokenizer import get_tokenizer

import whisper_at
from whisper_at import cli
from whisper_at.options import SEQUENTIAL_OPTIONS
from whisper_at.prompt import Prompt

TOKENIZER = get_tokenizer(False)
ROOM = 223


def prompt_after(n_words: int, n_history: int, carry: bool = True) -> tuple[list[int], list[int]]:
    """The tokens of an initial prompt of so many words, and what the window after so many tokens is given."""
    text = "Glossary: Kubernetes, Istio." + " word" * n_words
    prompt = Prompt(TOKENIZER, text, carry, 448)
    prompt.extend(list(range(n_history)))
    return TOKENIZER.encode(" " + text), prompt.tokens()


@settings(deadline=None)
@given(n_words=st.integers(0, 400), n_history=st.integers(0, 600))
def test_a_carried_prompt_is_whole_in_every_window(n_words, n_history):
    """Its last 223 tokens, and of the history what there is room for; upstream's vanishes from 223 tokens on."""
    initial, tokens = prompt_after(n_words, n_history)
    carried = initial[-ROOM:]
    room = ROOM - len(carried)
    assert tokens == carried + (list(range(n_history))[-room:] if room else [])
    assert tokens[-ROOM:] == tokens  # and so the decoder takes all of it


@pytest.mark.parametrize("n_words", [0, 100, 215, 216, 217, 218, 241, 300])
def test_a_window_after_300_tokens_sees_the_prompt(n_words):
    initial, tokens = prompt_after(n_words, 300)
    assert tokens[: min(len(initial), ROOM)] == initial[-ROOM:]
    assert len(tokens) == ROOM


def test_after_a_failure_the_prompt_alone_is_carried():
    prompt = Prompt(TOKENIZER, "Istio.", True, 448)
    prompt.extend([1, 2])
    prompt.forget()
    prompt.extend([3])
    assert prompt.tokens() == [*TOKENIZER.encode(" Istio."), 3]
    assert prompt.text_tokens == [1, 2, 3]


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("name", ["initial_prompt", "prefix"])
@pytest.mark.parametrize(
    "text",
    ["<|endoftext|>", "<|startoftranscript|><|de|>", "<|notimestamps|> a", "a\0b", "\ud800 x \udfff", "🦜🦜", "", " "],
    ids=ascii,
)
def test_any_text_is_text(model_en, name, text, batch_size):
    options = {name: text}
    result = model_en.transcribe(
        noise(4), at_time_res=None, temperature=0.0, sample_len=6, batch_size=batch_size, **options
    )
    assert isinstance(result["text"], str)


@pytest.mark.parametrize("text", ["word " * 10_000, "a" * 100_000, "🦜" * 10_000, "<|endoftext|>" * 10_000])
def test_long_text_is_text(model_en, text):
    last = model_en.transcribe(noise(4), at_time_res=None, temperature=0.0, sample_len=6, initial_prompt=text)
    tokens = TOKENIZER.encode(" " + text.strip(), disallowed_special=())[-ROOM:]
    mel = whisper_at.log_mel_spectrogram(whisper_at.pad_or_trim(noise(4)))
    options = dict(language="en", temperature=0.0, sample_len=6, fp16=False)
    assert model_en.decode(mel, prompt=text, **options).tokens == model_en.decode(mel, prompt=tokens, **options).tokens
    assert isinstance(last["text"], str)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_prefix_that_leaves_no_room_is_told(model_en, batch_size):
    """Upstream fails inside of PyTorch; a prompt is cut to what there is room for."""
    options = dict(at_time_res=None, temperature=0.0, batch_size=batch_size)
    model_en.transcribe(noise(2), prefix="word " * 430, **options)
    with pytest.raises(ValueError, match="prefix and prompt have 10001 tokens, and the decoder room for 448"):
        model_en.transcribe(noise(2), prefix="word " * 10_000, **options)


def test_a_special_token_in_a_prompt_is_spelt_out(model_en):
    mel = whisper_at.log_mel_spectrogram(whisper_at.pad_or_trim(noise(4)))
    options = dict(language="en", temperature=0.0, sample_len=6, fp16=False)
    spelt = TOKENIZER.encode(" <|endoftext|>", disallowed_special=())
    assert TOKENIZER.eot not in spelt
    for name in ("prompt", "prefix"):
        as_text = model_en.decode(mel, **{name: "<|endoftext|>"}, **options)
        assert as_text.tokens == model_en.decode(mel, **{name: spelt}, **options).tokens


@pytest.mark.parametrize("prompt", [["a"], 5, b"bytes"])
def test_a_prompt_is_text(model_en, prompt):
    with pytest.raises(ValueError, match="initial_prompt must be text"):
        model_en.transcribe(noise(1), initial_prompt=prompt)


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"condition_on_previous_text": True}, "condition_on_previous_text has no effect with batch_size"),
        ({"initial_prompt": "A.", "carry_initial_prompt": False}, "carry_initial_prompt=False has no effect"),
        ({"word_timestamps": True, "strict_word_timing": True}, "strict_word_timing has no effect"),
    ],
)
def test_a_batch_says_what_it_does_not_do(model_en, options, says):
    common = dict(at_time_res=None, temperature=0.0, sample_len=4)
    with pytest.warns(UserWarning, match=says):
        model_en.transcribe(noise(2), batch_size=2, **options, **common)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has no effect")
        model_en.transcribe(noise(2), **options, **common)
        model_en.transcribe(noise(2), batch_size=2, **common)
        opposite = {name: not options[name] for name in SEQUENTIAL_OPTIONS if name in options}
        model_en.transcribe(noise(2), batch_size=2, **{**options, **opposite}, **common)


@pytest.mark.parametrize("given", ["True", "False", None])
def test_the_command_says_it_once(given, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        soundfile.write(f"{name}.wav", noise(2), 16000)
    command = ["a.wav", "b.wav", "--model", str(checkpoint), "--device", "cpu", "-f", "txt", "--verbose", "False"]
    command += ["--temperature_increment_on_fallback", "None"]
    command += [] if given is None else ["--condition_on_previous_text", given]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert cli.main([*command, "--batch_size", "2", "--language", "en", "--beam_size", "None"]) == 0
    assert sum("condition_on_previous_text has no effect" in str(w.message) for w in told) == (given == "True")
