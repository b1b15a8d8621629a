"""Transcripts against the installed openai-whisper, tags beside them, and passes of the encoder counted."""

from __future__ import annotations

import functools
import importlib
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import whisper
from conftest import DATA, ROOT, SAMPLE_RATE, noise
from same_as_upstream import assert_same, both, random_options

import whisper_at
from whisper_at.fallback import decode_with_fallback
from whisper_at.tagging.timeline import pool_steps

OPTIONS = {
    "greedy": dict(temperature=0.0),
    "fallback": dict(temperature=(0.0, 0.4, 0.8), compression_ratio_threshold=1.2),
    "beam": dict(temperature=0.0, beam_size=3, patience=1.5),
    "beam, then best of": dict(temperature=(0.0, 1.0), beam_size=2, best_of=3, logprob_threshold=-0.5),
    "length penalty": dict(temperature=0.0, beam_size=3, length_penalty=0.4),
    "no previous text": dict(temperature=0.0, condition_on_previous_text=False, initial_prompt="Digits."),
    "prompt": dict(temperature=0.0, initial_prompt="One two three."),
    "carried prompt": dict(temperature=0.0, initial_prompt="One two three.", carry_initial_prompt=True),
    "prefix": dict(temperature=0.0, prefix="Well"),
    "clips": dict(temperature=0.0, clip_timestamps="1.5,17.3,20,47.21"),
    "words": dict(temperature=0.0, word_timestamps=True),
    "hallucinations": dict(temperature=0.0, word_timestamps=True, hallucination_silence_threshold=2.0),
    "no thresholds": dict(
        temperature=0.4, compression_ratio_threshold=None, logprob_threshold=None, no_speech_threshold=None
    ),
    "silence": dict(temperature=0.0, no_speech_threshold=0.0, logprob_threshold=1.0),
    "without timestamps": dict(temperature=0.0, without_timestamps=True),
    "suppress": dict(temperature=0.0, suppress_tokens="11,12,13", suppress_blank=False),
    "later first timestamp": dict(temperature=0.0, max_initial_timestamp=None),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_english(name, upstream_en, model_en):
    """D18: text is today's Whisper text, whatever is asked for."""
    audio = noise(48 if "clip" in name else 31, len(name))
    result = both(upstream_en, model_en, audio, sample_len=12, **OPTIONS[name])
    assert result["audio_tag"].shape == (math.ceil(result["duration"] / 10), 527)


@pytest.mark.parametrize("seconds", [4.7, 30.0, 41.3])
@pytest.mark.parametrize("options", [{}, dict(task="translate"), dict(language="de"), dict(clip_timestamps="2,4")])
def test_multilingual(seconds, options, upstream_multilingual, model_multilingual):
    audio = noise(seconds, 3)
    result = both(upstream_multilingual, model_multilingual, audio, temperature=0.0, sample_len=12, **options)
    assert result["task"] == options.get("task", "transcribe")


@pytest.mark.parametrize("samples", [0, 1, 100, 160, 1600, 8000])
def test_empty_and_sub_second_audio(samples, upstream_en, model_en):
    result = both(upstream_en, model_en, noise(1)[:samples], at_time_res=0.4, temperature=0.0, sample_len=8)
    assert len(result["audio_tag"]) == math.ceil(samples // 160 / 40)
    if samples >= 320:  # one encoder position, the least that can be heard
        assert not result["audio_tag"].isnan().any()
        assert result["audio_tag_coverage"].min() == 1


def test_path_array_and_tensor(upstream_en, model_en, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    audio = np.round(noise(3) * 32767) / 32768
    soundfile.write(tmp_path / "a.wav", audio, SAMPLE_RATE, subtype="PCM_16")
    from_array = both(upstream_en, model_en, audio.astype(np.float32), temperature=0.0, sample_len=12)
    from_tensor = model_en.transcribe(torch.from_numpy(audio.astype(np.float32)), temperature=0.0, sample_len=12)
    from_path = model_en.transcribe(str(tmp_path / "a.wav"), temperature=0.0, sample_len=12)
    for other in (from_tensor, from_path):
        assert_same(from_array, other)
        torch.testing.assert_close(other["audio_tag"], from_array["audio_tag"])


def test_a_plain_whisper_is_turned_away(upstream_en):
    with pytest.raises(TypeError, match="load_model"):
        whisper_at.transcribe(upstream_en, noise(1))


def test_verbose_prints_what_upstream_prints(upstream_multilingual, model_multilingual, capsys):
    audio = noise(3)
    whisper.transcribe(upstream_multilingual, audio, temperature=0.0, sample_len=12, verbose=True)
    theirs = capsys.readouterr().out
    model_multilingual.transcribe(audio, temperature=0.0, sample_len=12, verbose=True)
    assert capsys.readouterr().out == theirs != ""


@pytest.fixture(scope="module")
def nano_pair():
    """The embedded model twice: opened by the installed openai-whisper, and by us with its head."""
    path = whisper_at.checkpoints.find_whisper("nano.en")
    return whisper.load_model(str(path), device="cpu"), whisper_at.load_model("nano.en", device="cpu")


SAMPLES = sorted(p for p in (ROOT / "sample").iterdir() if p.suffix in (".flac", ".ogg"))
DIGITS, SOUNDS = sorted(DATA.glob("fsdd/*.wav")), sorted(DATA.glob("esc10/*/*.ogg"))
decode_file = functools.cache(whisper_at.load_audio)


def random_recording(rng: random.Random, kind: str, seconds: float) -> np.ndarray:
    """A cut of a sample, spoken digits with pauses, a real sound, or both; then noise."""
    n = round(seconds * SAMPLE_RATE)
    audio = np.zeros(n, np.float32)
    if kind == "sample":
        source = decode_file(str(rng.choice(SAMPLES)))
        start = rng.randrange(max(1, len(source) - n))
        audio[: len(source) - start] += source[start : start + n]
    if kind in ("digits", "mixture"):
        at = rng.randrange(SAMPLE_RATE)
        while at < n:
            digit = decode_file(str(rng.choice(DIGITS)))
            audio[at : at + len(digit)] += digit[: n - at]
            at += len(digit) + rng.randrange(rng.choice([1600, SAMPLE_RATE, 4 * SAMPLE_RATE]))
    if kind in ("sound", "mixture"):
        sound = decode_file(str(rng.choice(SOUNDS)))
        audio += np.resize(sound, n) * rng.choice([0.1, 0.5, 1.0])
    if rng.random() < 0.4:
        audio += noise(seconds, rng.randrange(100))[:n] * rng.choice([0.05, 0.3, 1.0])
    return audio * rng.choice([0.1, 1.0])


@pytest.mark.parametrize("seed", range(36))
def test_random_cases(seed, nano_pair):
    """Seeded cases on speech in noise, sounds and mixtures, with any options: equal tokens and times.

    A seed means the same audio everywhere; those of real recordings are skipped where there are none.
    `benchmarks/differential.py` runs as many as one likes, on real weights.
    """
    kind = ("sample", "digits", "sample", "sound", "sample", "mixture")[seed % 6]
    if kind != "sample" and not (DIGITS and SOUNDS):
        pytest.skip("real recordings are not here; WHISPER_AT_DATA names their folder")
    rng = random.Random(seed)
    seconds = rng.choice([0.3, 1, 2, 4, 7]) if seed % 20 else rng.choice([31, 45])
    audio = random_recording(rng, kind, seconds)
    at_time_res = rng.choice([0.4, 1.2, 2, 4.4, 10, 30, [0.4, 10]])
    upstream, model = nano_pair
    options = random_options(rng, seconds)
    audio = audio.astype(np.float32)
    try:
        both(upstream, model, audio, at_time_res=at_time_res, **options)
    except ZeroDivisionError:  # upstream cannot rank an empty text; what it refuses, we refuse alike
        for transcribe in (functools.partial(whisper.transcribe, upstream), model.transcribe):
            torch.manual_seed(0)
            with pytest.raises(ZeroDivisionError):
                transcribe(audio, **options)


# ---------------------------------------------------------------------------------------------- tags


def test_several_resolutions_from_one_pass(model_en, count_passes):
    audio = noise(47.3)
    wanted = [0.4, 1.2, 2, 4.4, 10, 30, 60]
    passes = count_passes(model_en)
    together = model_en.transcribe(audio, at_time_res=wanted, temperature=0.0, sample_len=12)
    n = len(passes)
    assert together["at_time_res"] == wanted == list(together["audio_tag"]) == list(together["audio_tag_coverage"])
    for res in wanted:
        alone = model_en.transcribe(audio, at_time_res=res, temperature=0.0, sample_len=12)
        assert alone["at_time_res"] == res
        assert alone["audio_tag"].shape == (math.ceil(47.3 / res - 1e-9), 527)
        assert alone["audio_tag"].dtype == torch.float32
        assert alone["audio_tag"].device.type == "cpu"
        torch.testing.assert_close(alone["audio_tag"], together["audio_tag"][res], atol=1e-4, rtol=1e-4)
    assert len(passes) == n * (1 + len(wanted))


def test_on_the_grid_tags_equal_the_published_pipeline(model_en):
    """Full windows on the grid: average pool, cut in rows, TL-TR, as spec 1.5 has it."""
    audio = noise(60)
    options = dict(temperature=0.0, without_timestamps=True, sample_len=4)
    mel = whisper.log_mel_spectrogram(audio, padding=480000)
    for res, steps in [(0.4, 1), (2, 5), (10, 25), (30, 75)]:
        tags = model_en.transcribe(audio, at_time_res=res, **options)["audio_tag"]
        for i in range(2):
            _, states = model_en.encode(mel[None, :, i * 3000 : i * 3000 + 3000])
            rows = states[0].view(2, -1, steps, 64).transpose(0, 1)
            with torch.no_grad():
                expected = model_en.head(rows)
            torch.testing.assert_close(tags[i * len(rows) : (i + 1) * len(rows)], expected, atol=1e-4, rtol=1e-4)


def test_default_resolution_and_switching_off(model_en):
    audio = noise(12)
    result = model_en.transcribe(audio, temperature=0.0, sample_len=4)
    assert result["at_time_res"] == 10
    assert result["audio_tag"].shape == (2, 527)
    assert model_en.transcribe(audio, temperature=0.0, sample_len=4, at_time_res=None).keys() == {
        "text",
        "segments",
        "language",
    }


@pytest.mark.parametrize("batch_size", [None, 2])
def test_resolutions_may_come_from_a_generator(model_en, batch_size):
    options = {"temperature": 0.0, "sample_len": 4, "batch_size": batch_size}
    found = model_en.transcribe(noise(3), at_time_res=(seconds for seconds in (0.4, 2)), **options)
    assert list(found["audio_tag"]) == [0.4, 2.0]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_listener_that_cannot_hear_an_array_is_told_before_any_work(model_en, monkeypatch, batch_size):
    class Birds:
        classes, kind, sample_rate = ("bird",), "multi_label", 32000

        def logits(self, waveforms, lengths):
            pytest.fail("heard at the wrong rate")

    model_en.attach("birds", Birds())
    monkeypatch.setattr(model_en.encoder, "forward", lambda *_: pytest.fail("encoded"))
    with pytest.raises(ValueError, match="this classifier needs 32000 Hz: give a file"):
        model_en.transcribe(noise(3), batch_size=batch_size, language="en")


@pytest.mark.parametrize("batch_size", [None, 2])
def test_clips_before_the_beginning_are_refused(model_en, batch_size):
    """Upstream hears padding there, and nothing of the clip."""
    with pytest.raises(ValueError, match="clip_timestamps must not be negative"):
        model_en.transcribe(noise(5), clip_timestamps=[-2, 3], batch_size=batch_size)


@pytest.mark.parametrize("bad", [0.5, -1, 0, math.nan, "ten", [], [10, 0.3]])
def test_bad_resolutions_are_refused_before_any_work(model_en, bad, count_passes):
    """D3, D4."""
    passes = count_passes(model_en)
    with pytest.raises(ValueError, match="at_time_res"):
        model_en.transcribe(noise(1), at_time_res=bad)
    assert not passes


class Scripted(whisper_at.WhisperAT):
    """Decodes what it is told, and hears the time: its states are frame numbers, its padding is huge."""

    def script(self, ends: list[float]) -> None:
        self.ends, self.seeks = list(ends), []

    def encode(self, mel, windows=None, **_):
        (window,) = windows
        self.seeks.append(window.seek / 100)
        start = window.seek + 2 * torch.arange(1500.0)
        start[start + 2 > window.end] = 1e12
        return torch.zeros(1, 1500, 64), pool_steps(start[None, :, None], [window])[:, None].repeat(1, 2, 1, 1)

    def decode(self, features, options):
        begin = 50363
        if self.ends and (end := self.ends.pop(0)):
            stamp = begin + round(end / 0.02)
            tokens = [begin, 1000, stamp, stamp]
        else:
            tokens = [begin, 1000, begin + 1500]
        return [whisper.DecodingResult(None, "en", tokens=tokens, avg_logprob=0.0, no_speech_prob=0.0,
                                       temperature=0.0, compression_ratio=1.0)]  # fmt: skip


class Extent(torch.nn.Module):
    """A head that reports the earliest, mean and latest time among its steps."""

    label_dim, rep_dim, n_layer = 3, 64, 2

    def forward(self, states):
        time = states[:, 0, :, 0]
        return torch.stack([time.min(1).values, time.mean(1), time.max(1).values], dim=1)


@pytest.mark.parametrize("ends", [[25, 28, 26], [27.6, 29.98, 3.34], [11.1, 11.1, 11.1, 7.76, 22.22, 29.5]])
@pytest.mark.parametrize("res", [0.4, 1.2, 2, 4.4, 10, 30])
def test_100_s_off_the_grid(ends, res):
    """D1, D7: every row is made only of audio inside it, at every resolution, wherever windows fall."""
    model = Scripted(whisper.ModelDimensions(80, 1500, 64, 4, 2, 51864, 448, 64, 4, 1))
    model.head = Extent()
    model.script(ends)
    result = model.transcribe(noise(100), at_time_res=res)
    assert any(seek % res for seek in model.seeks)
    assert result["audio_tag"].shape == (math.ceil(100 / res - 1e-9), 3)
    for row, (first, mean, last) in enumerate(result["audio_tag"].tolist()):
        start, end = row * res * 100, min((row + 1) * res * 100, 10_000)
        assert start <= first <= last < end
        # a step astride two windows comes from the one that heard most of it: at most 10 positions are missing
        assert mean == pytest.approx((start + end) / 2 - 1, abs=10)
    assert result["audio_tag_coverage"].min() == 1


def test_windows_without_speech_are_tagged(model_en):
    """D9: a loop that tags after the no-speech test loses the windows where tagging matters most."""
    options = dict(temperature=0.0, sample_len=8, no_speech_threshold=0.0, logprob_threshold=1.0)
    result = model_en.transcribe(noise(65), **options)
    assert result["segments"] == []
    assert not result["audio_tag"].isnan().any()


def test_clips_leave_gaps(model_en):
    """D2: rows that no window covered held 0.0, above the threshold."""
    result = model_en.transcribe(noise(50), clip_timestamps="3,12,41,44.5", temperature=0.0, sample_len=8)
    heard = result["audio_tag_coverage"].tolist()
    assert heard == pytest.approx([0.7, 0.2, 0, 0, 0.35])
    assert result["audio_tag"].isnan().all(dim=1).tolist() == [h == 0 for h in heard]
    assert [bool(row["audio tags"]) for row in whisper_at.parse_at_label(result, p_threshold=-99)] == [
        h > 0 for h in heard
    ]


def test_no_autograd_graph(model_en):
    """D14: the tags kept every window's graph until the end."""
    for parameter in model_en.parameters():
        parameter.requires_grad_(True)
    result = model_en.transcribe(noise(35), temperature=0.0, sample_len=8)
    assert result["audio_tag"].grad_fn is None
    assert not result["audio_tag"].requires_grad
    assert model_en.encode(torch.zeros(1, 80, 3000))[1].grad_fn is None


# --------------------------------------------------------------------------------------- encoder passes


@pytest.fixture
def count_passes(monkeypatch):
    """Count passes of an encoder, upstream's own too, by calls of its first layer: a hook would change how it runs."""

    def start(model) -> list:
        passes, convolve = [], whisper.model.Conv1d._conv_forward

        def counted(self, *args):
            if self is model.encoder.conv1:
                passes.append(1)
            return convolve(self, *args)

        monkeypatch.setattr(whisper.model.Conv1d, "_conv_forward", counted)
        return passes

    return start


def windows_heard(result):
    return len({s["seek"] for s in result["segments"]})


FALLBACK = dict(temperature=(0.0, 0.4, 0.8), compression_ratio_threshold=0.01)


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0.0),
        dict(temperature=0.0, beam_size=3),
        FALLBACK,
        dict(temperature=0.0, word_timestamps=True),
        dict(word_timestamps=True, **FALLBACK),
        dict(temperature=0.0, word_timestamps=True, strict_word_timing=False),
        dict(word_timestamps=True, strict_word_timing=False, **FALLBACK),
    ],
)
def test_one_pass_per_window(model_en, options, count_passes):
    """D16: 12 s with two temperatures and word timing took 13 encoder passes for 4 windows."""
    passes = count_passes(model_en)
    result = model_en.transcribe(noise(62), sample_len=8, at_time_res=[0.4, 10], no_speech_threshold=None, **options)
    assert len(passes) == windows_heard(result) > 1


@pytest.mark.parametrize(("seconds", "clips", "extra"), [(12, "0", 1), (40, "0", 0), (40, "0,20", 1), (40, "2,40", 1)])
def test_language_detection_shares_a_full_first_window(model_multilingual, seconds, clips, extra, count_passes):
    """Spec 5.6: below 30 s detection hears other padding, so it needs a pass of its own."""
    passes = count_passes(model_multilingual)
    result = model_multilingual.transcribe(
        noise(seconds), temperature=0.0, sample_len=8, clip_timestamps=clips, no_speech_threshold=None
    )
    assert len(passes) == windows_heard(result) + extra


def test_reused_features_give_the_same_word_times(model_en, upstream_en):
    """In float32 on a CPU one pass is exact enough for words: strict timing reuses its features, too."""
    options = dict(temperature=0.0, sample_len=12, word_timestamps=True)
    strict = both(upstream_en, model_en, noise(8), **options)
    quick = model_en.transcribe(noise(8), strict_word_timing=False, **options)
    times = [
        [(word["word"], word["start"], word["end"]) for segment in result["segments"] for word in segment["words"]]
        for result in (strict, quick)
    ]
    assert times[0] == times[1] != []


def test_clip_past_the_end_stops_there(model_en):
    """Upstream never returns when a clip ends after the audio and nothing is heard there."""
    result = model_en.transcribe(noise(4), clip_timestamps="0,100", temperature=0.0, sample_len=8)
    assert result["duration"] == 4
    assert len(result["audio_tag"]) == 1


# --- what is not said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(("seconds", "options"), [(5, {}), (12, {"word_timestamps": True}), (40, {})])
def test_silence_has_no_segments(nano_pair, seconds, options, batch_size, tmp_path):
    """Upstream writes a segment without text, which is a blank line in txt, and ``0 12000`` in tsv."""
    silence = np.zeros(seconds * SAMPLE_RATE, np.float32)
    result = nano_pair[1].transcribe(silence, at_time_res=4, batch_size=batch_size, **options)
    assert (result["text"], result["segments"]) == ("", [])
    assert len(result["audio_tag"]) == math.ceil(seconds / 4)
    whisper_at.utils.get_writer("txt", str(tmp_path))(result, "a.wav")
    assert (tmp_path / "a.txt").read_text() == ""


@pytest.mark.parametrize("batch_size", [None, 2])
def test_special_tokens_are_in_no_text(model_multilingual, monkeypatch, batch_size):
    """Upstream leaves them out of its segments, and not out of its text."""
    special = model_multilingual.num_languages + 50256  # the token of a language

    def decode(*args):
        return [replace(result, tokens=[*result.tokens, special]) for result in decode_with_fallback(*args)]

    for module in ("window_decoder", "batched"):
        monkeypatch.setattr(importlib.import_module(f"whisper_at.{module}"), "decode_with_fallback", decode)
    options = dict(temperature=0.0, language="de", sample_len=8, without_timestamps=True)
    result = model_multilingual.transcribe(noise(8), batch_size=batch_size, **options)
    assert special in result["segments"][0]["tokens"]
    assert "<|" not in result["text"]
    assert result["text"] == "".join(segment["text"] for segment in result["segments"]) != ""
