"""Text is withheld where the tags hear no speech, and speech that the text lacks is decoded again; nothing is lost."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_at import speech_tagger
from whisper_at.model import WhisperAT
from whisper_at.segments import Split
from whisper_at.speech_gate import SpeechGate, begins_next_window, mark_recovered
from whisper_at.speech_tagger import SpeechProbabilities, SpeechTagger
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import Head
from whisper_at.tagging.labels import audioset_classes
from whisper_at.tagging.timeline import first_step
from whisper_at.tokenizer import get_tokenizer
from whisper_at.windows import Window

OPTIONS = {"language": "en", "fp16": False, "temperature": 0.0, "sample_len": 12, "at_time_res": None}
TOKENIZER = get_tokenizer(False)


class ConstantHead(Head):
    """Hears the same everywhere: the classes given, and no other."""

    def __init__(self, *heard: str, classes: ClassSet | None = None) -> None:
        super().__init__(527, n_layer=2, rep_dim=64, mode="constant")
        self.classes = classes or audioset_classes()
        self.logits = torch.full((len(self.classes),), -9.0)
        self.logits[self.classes.indices(heard)] = 9.0

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(states), -1)


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The number of windows of each call of the decoder."""
    calls = []
    decode = WhisperAT.decode

    def counted(model, encoded, *args):
        calls.append(len(encoded.features))
        return decode(model, encoded, *args)

    monkeypatch.setattr(WhisperAT, "decode", counted)
    return calls


@pytest.fixture
def hear(monkeypatch):
    """Make the tags hear speech with these probabilities, one a step of 0.4 s of the recording."""

    def by_step(values) -> None:
        def listen(self, window, states):
            first = first_step(window)
            return SpeechProbabilities(first, np.asarray(values[first : -(-window.end // 40)], dtype=float))

        monkeypatch.setattr(SpeechTagger, "__call__", listen)

    return by_step


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("heard", ["Speech", "Rapping", "Children shouting"])
def test_where_all_is_speech_nothing_changes(model_en, heard, batch_size):
    audio, options = noise(65), OPTIONS | {"batch_size": batch_size}
    expected = model_en.transcribe(audio, **options)
    model_en.head = ConstantHead(heard)
    assert model_en.transcribe(audio, speech_gate=True, **options) == expected | {"withheld": []}


@pytest.mark.parametrize("batch_size", [None, 2])
def test_where_none_is_speech_nothing_is_decoded_and_all_is_reported(model_en, decoded, batch_size, capsys):
    model_en.head = ConstantHead("Music", "Dog")
    result = model_en.transcribe(noise(65), speech_gate=True, verbose=True, batch_size=batch_size, **OPTIONS)
    assert decoded == []
    assert (result["text"], result["segments"]) == ("", [])
    spans = [(part["start"], part["end"]) for part in result["withheld"]]
    assert (spans[0][0], spans[-1][1]) == (0, 65)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    for part in result["withheld"]:
        assert (part["text"], part["reason"]) == (None, "window without speech")
        assert part["score"] < 0.01
    assert capsys.readouterr().out.count("(window without speech)") == len(spans)


def test_tags_are_the_same_with_the_gate(model_en):
    options = OPTIONS | {"at_time_res": 2}
    model_en.head = ConstantHead("Music")
    tags = model_en.transcribe(noise(33), speech_gate=True, **options)["audio_tag"]
    assert torch.equal(tags, model_en.head.logits.expand(17, -1))


@pytest.mark.parametrize("option", ["speech_gate", "missed_speech"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_head_that_knows_no_speech_is_refused_before_anything_is_read(model_en, option, batch_size):
    options = OPTIONS | {"batch_size": batch_size, option: True}
    model_en.head = ConstantHead(classes=ClassSet(("Dog", "Choir")))
    with pytest.raises(ValueError, match="no head of this model knows one of them"):
        model_en.transcribe("no such file", **options)
    known = audioset_classes().index("Dog"), audioset_classes().index("Choir")
    model_en.head = ConstantHead(classes=ClassSet(audioset_classes().names, known=known))
    with pytest.raises(ValueError, match="no head of this model knows one of them"):
        model_en.transcribe("no such file", **options)
    model_en.head = None
    with pytest.raises(ValueError, match="no head"):
        model_en.transcribe("no such file", **options)


def test_a_head_of_ones_own_will_do(model_en):
    model_en.head = None
    model_en.attach("mine", ConstantHead("Dog", classes=ClassSet(("Dog", "Singing"))))
    assert model_en.transcribe(noise(5), speech_gate=True, **OPTIONS)["withheld"]


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_a_threshold_is_a_probability(model_en, bad):
    with pytest.raises(ValueError, match="speech_gate must be"):
        model_en.transcribe(noise(1), speech_gate=bad, **OPTIONS)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_text_and_what_is_withheld_are_all_there_was(model_en, hear, words, batch_size, seed):
    """Every window ends in speech, so that all are decoded."""
    audio = noise(50, seed)
    options = OPTIONS | {
        "sample_len": 40,
        "condition_on_previous_text": False,
        "word_timestamps": words,
        "batch_size": batch_size,
    }
    options = {name: value for name, value in options.items() if batch_size is None or name[:9] != "condition"}
    everything = model_en.transcribe(audio, **options)
    probabilities = np.full(125, 0.9)
    probabilities[12:38] = probabilities[88:105] = 0.01
    hear(probabilities)
    result = model_en.transcribe(audio, speech_gate=0.5, **options)
    parts = [(p["start"], p["text"]) for p in [*result["segments"], *result["withheld"]] if p["text"]]
    assert None not in [part["text"] for part in result["withheld"]]
    assert sorted("".join(text for _, text in parts)) == sorted(s for x in everything["segments"] for s in x["text"])
    assert result["text"] == "".join(segment["text"] for segment in result["segments"])


def segment(start: float, end: float, text: str, **more) -> dict:
    of_decoder = {"tokens": TOKENIZER.encode(text), "avg_logprob": -0.3, "compression_ratio": 1.1}
    return {"start": start, "end": end, "text": text, **of_decoder, **more}


def gate(**options) -> SpeechGate:
    return SpeechGate(SimpleNamespace(heads={"audio_tag": ConstantHead("Speech")}), **options)


WORDS = st.sampled_from([" yes", " Übermut", " thank you.", " 你好", "-", " naïve", ",", " 🎉"])


@given(
    st.lists(st.tuples(WORDS, st.floats(0, 2), st.floats(0.05, 1.5)), min_size=1, max_size=20),
    st.lists(st.sampled_from([0.0, 0.05, 0.2, 1.0]), min_size=1, max_size=75),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_word_is_lost_or_told_twice(drawn, probabilities, timed):
    words, time = [], 0.0
    for word, pause, length in drawn:
        words.append({"word": word, "start": time + pause, "end": time + pause + length})
        time += pause + length
    text = "".join(word["word"] for word in words)
    whole = segment(words[0]["start"], time, text, **({"words": words} if timed else {}))
    found = gate(threshold=0.1)
    kept = found.keep([whole], SpeechProbabilities(0, np.array(probabilities)), TOKENIZER)
    withheld = found.result()["withheld"]
    in_order = sorted([*kept, *withheld], key=lambda part: (part["start"], part["end"]))
    if not timed:
        assert len(in_order) == 1
    assert "".join(part["text"] for part in in_order) == text
    for part in kept:
        assert TOKENIZER.decode(part["tokens"]) == part["text"]
        assert not timed or "".join(word["word"] for word in part["words"]) == part["text"]
    assert all(part["score"] < 0.1 for part in withheld)


def test_words_apart_from_speech_are_cut_out():
    words = [(" Hello", 0.0, 0.4), (" there.", 0.4, 0.9), (" Thank", 6.0, 6.8), (" you.", 6.8, 7.4)]
    words = [{"word": word, "start": start, "end": end} for word, start, end in words]
    probabilities = SpeechProbabilities(0, np.array([0.9] * 3 + [0.01] * 22))
    found = gate(threshold=0.1)
    (kept,) = found.keep([segment(0.0, 7.4, " Hello there. Thank you.", words=words)], probabilities, TOKENIZER)
    assert (kept["text"], kept["start"], kept["end"]) == (" Hello there.", 0.0, 0.9)
    assert found.withheld == [
        {"start": 6.0, "end": 7.4, "text": " Thank you.", "reason": "words without speech", "score": 0.01}
    ]


def test_a_segment_beside_speech_is_kept():
    """Times of segments are not exact: speech in the step next to one is its own."""
    probabilities = SpeechProbabilities(0, np.array([0.9] * 5 + [0.01] * 20))
    found = gate(threshold=0.1)
    near, far = segment(2.2, 4.0, " a"), segment(2.8, 4.0, " b")
    assert found.keep([near, far], probabilities, TOKENIZER) == [near]
    assert [part["text"] for part in found.withheld] == [" b"]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_speech_without_text_is_decoded_again(model_en, hear, batch_size):
    """Every window is taken for silence here; the tags hear speech in two places."""
    silent = OPTIONS | {"no_speech_threshold": -1, "logprob_threshold": None, "compression_ratio_threshold": None}
    silent |= {"batch_size": batch_size}
    audio = noise(50)
    assert model_en.transcribe(audio, **silent)["segments"] == []
    probabilities = np.full(125, 0.01)
    probabilities[10:20] = probabilities[100:110] = 0.9
    hear(probabilities)
    result = model_en.transcribe(audio, missed_speech=True, **silent)
    assert {segment["seek"] for segment in result["segments"]} == {360, 3960}
    assert all(segment["recovered"] for segment in result["segments"])
    starts = [segment["start"] for segment in result["segments"]]
    assert starts == sorted(starts)
    assert result["text"] == "".join(segment["text"] for segment in result["segments"])
    assert "withheld" not in result


def missed(probabilities, segments=(), window=None, seek=None) -> list[tuple[float, float]]:
    window = window or Window(0)
    split = Split(list(segments), window.end if seek is None else seek, True)
    found = gate(threshold=False, missed=True).missed_speech(window, split, SpeechProbabilities(0, probabilities))
    return [(part.seek / 100, part.end / 100) for part in found]


def test_what_is_missed():
    everywhere = np.full(75, 0.9)
    assert missed(everywhere) == [(0, 30)]
    assert missed(everywhere, [segment(0, 30, " all")]) == []
    assert missed(everywhere, [segment(0, 30, " ")]) == [(0, 30)]
    assert missed(everywhere, [segment(0, 10, " a"), segment(20, 30, " b")]) == [(10.4, 19.6)]
    assert missed(everywhere, [segment(0, 13, " a"), segment(15, 30, " b")]) == []  # as long as a breath
    assert missed(everywhere, [segment(0, 10, " a")], seek=1000) == []  # the next window begins there
    words = [{"word": " a", "start": 0.0, "end": 5.0}, {"word": " b", "start": 20.0, "end": 30.0}]
    assert missed(everywhere, [segment(0, 30, " a b", words=words)]) == [(5.6, 19.6)]
    assert missed(np.full(75, 0.4)) == []


def test_at_most_two_stretches_are_decoded_again():
    probabilities = np.zeros(75)
    for first in (0, 20, 40, 60):
        probabilities[first : first + 6 + first // 10] = 0.9
    assert missed(probabilities) == [(15.6, 20.4), (23.6, 29.2)]


def test_a_window_begins_again_only_well_behind_the_one_before():
    window = Window(1000)
    assert begins_next_window(Window(3000, 1000), window)
    assert not begins_next_window(Window(1400, 2600), window)
    assert not begins_next_window(Window(3000, 500), window)


def test_what_is_written_already_is_not_recovered():
    written = [segment(0, 4, " Look, the old cat sleeps.")]
    new = [segment(5, 6, " the old cat"), segment(6, 7, " A dog barks."), segment(7, 8, " ")]
    assert mark_recovered(new, written) == [{**new[1], "recovered": True}]


def test_probabilities_are_of_the_steps_that_are_touched():
    speech = SpeechProbabilities(10, np.arange(5) / 10)  # 4.0 to 6.0 s
    assert speech.highest() == 0.4
    assert speech.highest(4.4, 4.8) == 0.1
    assert speech.highest(4.4, 4.81) == 0.2
    assert speech.highest(0, 1) == 0.0
    assert speech.highest(9, 12) == 0.4
    assert SpeechProbabilities(0, np.zeros(0)).highest() == 0.0


def test_rows_around_steps(model_en):
    """Speech in the last step of a window is heard in it and in the one before: rows are of three steps."""

    class MeanHead(ConstantHead):
        def forward(self, states):
            return states.mean((1, 2, 3))[:, None].expand(-1, 527)

    model_en.head = MeanHead()
    states = torch.zeros(2, 76, 64)
    states[:, 40] = 3
    states[:, 70:] = torch.nan
    found = SpeechTagger(model_en)(Window(40), states)
    assert (found.first, len(found.values)) == (1, 70)
    np.testing.assert_allclose(found.values[38:43], 1 / (1 + np.exp(-np.array([0, 1, 1, 1, 0]))))
    assert speech_tagger.ROW_STEPS == 3


def voiced(speech: float, voice: float) -> SpeechProbabilities:
    """Two seconds of these probabilities of speech, before and after voices without words explain a part."""
    return SpeechProbabilities(0, np.full(5, speech), np.full(5, voice))


@pytest.mark.parametrize(
    ("speech", "left", "logprob", "ratio", "is_kept"),
    [
        (0.5, 0.3, -0.9, 1.0, False),
        (0.5, 0.3, -0.1, 9.0, False),  # it repeats itself
        (0.5, 0.3, -0.7, 1.0, True),  # the decoder is sure
        (0.5, 0.45, -0.9, 9.0, True),  # nothing else explains it
        (0.99, 0.9, -3.0, 9.0, True),  # nor do the decoder's doubts alone count
        (0.3, 0.3, -0.1, 1.0, False),  # nor its being sure where no speech is heard
    ],
)
def test_a_doubtful_text_is_withheld_where_a_voice_without_words_explains_it(speech, left, logprob, ratio, is_kept):
    found = gate(threshold=0.4)
    text = segment(0, 2, " Aha.", avg_logprob=logprob, compression_ratio=ratio)
    assert found.keep([text], voiced(speech, left), TOKENIZER) == ([text] if is_kept else [])
    reason = "voice without words" if speech > 0.4 else "segment without speech"
    expected = [{"start": 0, "end": 2, "text": " Aha.", "reason": reason, "score": left}]
    assert found.withheld == ([] if is_kept else expected)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_window_of_a_voice_without_words_is_decoded_and_its_doubtful_text_withheld(model_en, decoded, batch_size):
    """Tiny random weights doubt every token."""
    options = OPTIONS | {"batch_size": batch_size, "logprob_threshold": None}
    expected = [segment["text"] for segment in model_en.transcribe(noise(20), **options)["segments"]]
    decoded.clear()
    head = model_en.head = ConstantHead("Dog")
    head.logits[head.classes.index("Speech")] = 0.5
    result = model_en.transcribe(noise(20), speech_gate=True, **options)
    assert (len(decoded) > 0, result["text"], result["segments"]) == (True, "", [])
    assert [part["text"] for part in result["withheld"]] == expected
    assert {part["reason"] for part in result["withheld"]} == {"voice without words"}


def test_what_voices_without_words_leave_of_speech(model_en):
    head = model_en.head = ConstantHead()
    head.logits[head.classes.indices(["Speech", "Cough", "Music"])] = torch.tensor([0.5, 1.0, 8.0])
    found = SpeechTagger(model_en)(Window(0), torch.zeros(2, 75, 64))
    np.testing.assert_allclose(found.values, 1 / (1 + np.exp(-0.5)))
    np.testing.assert_allclose(found.less_voices().values, 1 / (1 + np.exp(-0.5 + 0.5 * (1 + 3))))
    model_en.head = ConstantHead("Speech", classes=ClassSet(("Speech", "Music")))  # which knows no such voice
    found = SpeechTagger(model_en)(Window(0), torch.zeros(2, 75, 64))
    assert found.less_voices() is found
