"""Windows in batches: cut in pauses, nothing lost, the same results as one by one."""

from __future__ import annotations

import itertools
import weakref

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE_RATE, noise

import whisper_at
from whisper_at import batched
from whisper_at.batched import BatchDecoder, transcribe_many
from whisper_at.decoding import DecodingOptions, DecodingResult, FastDecodingTask
from whisper_at.mel import LogMel
from whisper_at.segments import split_segments
from whisper_at.tokenizer import get_tokenizer
from whisper_at.windows import Window, quiet_cuts, sound_end

OPTIONS = {"language": "en", "fp16": False, "temperature": 0.0, "sample_len": 12}


def with_pauses(seconds: float, pauses: list[tuple[float, float]]) -> np.ndarray:
    audio = noise(seconds, seed=4)
    for start, end in pauses:
        audio[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)] *= 1e-3
    return audio


def test_cuts_lie_in_pauses_and_cover_everything():
    pauses = [(12.0, 13.0), (23.0, 23.8), (27.0, 27.2), (44.2, 44.9), (66.0, 69.0)]
    windows = quiet_cuts(LogMel(with_pauses(100, pauses)), 0, 10000)
    assert next(w.seek for w in windows) == 0
    assert windows[-1].end == 10000
    assert all(a.end == b.seek for a, b in itertools.pairwise(windows))
    assert all(0 < w.size <= 3000 for w in windows)
    ends = [w.end / 100 for w in windows[:-1]]
    assert 23.0 <= ends[0] <= 23.8  # the longest quiet place of the last ten seconds, not the latest
    assert 44.2 <= ends[1] <= 44.9
    assert 66.0 <= ends[2] <= 69.0


@pytest.mark.parametrize("frames", [0, 1, 2999, 3000, 3001, 6000, 60001])
def test_cuts_of_any_length(frames):
    mel = LogMel(noise(frames / 100))
    windows = quiet_cuts(mel, 0, frames)
    assert sum(w.size for w in windows) == frames
    assert all(0 < w.size <= 3000 for w in windows)
    assert all(a.end == b.seek for a, b in itertools.pairwise(windows))
    if frames > 3000:
        assert all(w.size >= 2000 for w in windows[:-1])


def test_even_noise_is_cut_late():
    """Where no place is quieter than another, windows are as long as they may be: digital silence has no pause."""
    windows = quiet_cuts(LogMel(np.zeros(70 * SAMPLE_RATE, np.float32)), 0, 7000)
    assert [w.size for w in windows[:2]] == [2984, 2984]


@pytest.mark.parametrize(
    ("batch_size", "extra"),
    [
        (3, {}),
        (8, {}),
        (3, {"beam_size": 3}),
        (3, {"word_timestamps": True}),
        (8, {"word_timestamps": True}),
        (3, {"language": None}),
    ],
)
def test_batches_equal_single_windows(model_multilingual, batch_size, extra):
    """A window says the same in company as alone (batch_size 1), and tags are those of its own seconds."""
    options = OPTIONS | extra | {"at_time_res": [0.4, 10]}
    audio = noise(75, seed=8)
    alone = model_multilingual.transcribe(audio, batch_size=1, **options)
    found = model_multilingual.transcribe(audio, batch_size=batch_size, **options)
    assert found["text"] == alone["text"]
    assert found["language"] == alone["language"]
    assert [s["tokens"] for s in found["segments"]] == [s["tokens"] for s in alone["segments"]]
    assert [(s["start"], s["end"]) for s in found["segments"]] == [(s["start"], s["end"]) for s in alone["segments"]]
    for res in (0.4, 10):
        torch.testing.assert_close(found["audio_tag"][res], alone["audio_tag"][res], atol=1e-3, rtol=1e-3)
        assert found["audio_tag_coverage"][res].min() == 1


T = 50363
"""The first timestamp of English-only models."""


def split(*tokens: int, window: Window, **options):
    tokenizer = get_tokenizer(False)
    texts = [T + 50 * token if token < 100 else token for token in tokens]  # seconds or words
    return split_segments(DecodingResult(torch.empty(0), "en", tokens=texts), window, tokenizer, 1500, **options)


HELLO, WORLD = 18435, 995


def test_the_last_segment_of_a_window_that_ends_in_a_pause_ends_there():
    window = Window(100, 2500)
    found = split(0, HELLO, 7, 7, WORLD, window=window, ends_in_pause=True)
    assert [(s["start"], s["end"], s["text"]) for s in found.segments] == [(1, 8, " Hello"), (8, 26, " world")]
    assert found.seek == window.end
    cut_off = split(0, HELLO, 7, 7, WORLD, window=window)
    assert [s["text"] for s in cut_off.segments] == [" Hello"]
    assert cut_off.seek == 800


@pytest.mark.parametrize("tokens", [(0, HELLO, 7), (0, HELLO), (0, HELLO, 7, 7, WORLD, 9)])
def test_segments_that_are_finished_stay_as_they_are_in_a_window_that_ends_in_a_pause(tokens):
    window = Window(0, 2500)
    assert split(*tokens, window=window, ends_in_pause=True) == split(*tokens, window=window)


def test_text_goes_on_between_segments_where_sound_does(model_en):
    """Between two timestamps it does not end before the last sound; at a window's first one and elsewhere it may."""
    tokenizer = get_tokenizer(False)
    audio = model_en.precompute_cross_kv(torch.zeros(3, 1500, model_en.dims.n_audio_state))
    audio = audio._replace(sound_ends=torch.tensor([400, 300, 400]))
    task = FastDecodingTask(model_en, DecodingOptions(language="en", fp16=False), audio)
    before = torch.zeros(3, task.sample_begin, dtype=torch.long)

    def may_end(*rows: list[int]) -> list[bool]:
        logits = torch.zeros(3, model_en.dims.n_vocab)
        logits[:, tokenizer.eot] = 100  # not a timestamp, which the rules would ask for
        task.rules.apply(logits, torch.cat([before, torch.tensor(rows)], 1))
        return logits[:, tokenizer.eot].isfinite().tolist()

    pair = [T, HELLO, T + 350, T + 350]
    assert may_end(pair, pair, [T, HELLO, T + 400, T + 400]) == [False, True, True]
    assert may_end([T], [T], [T]) == [True] * 3
    assert may_end([T, HELLO], [T, HELLO], [T, HELLO]) == [True] * 3


@pytest.mark.parametrize("beams", [None, 3])
def test_every_window_is_encoded_once_and_its_text_reaches_its_end(nano, monkeypatch, beams):
    """What a window cut off its last segment would have to be encoded again, with up to 30 s of padding."""
    encoded = []
    real = batched.encode_windows

    def encode(model, mel, windows, taggers):
        encoded.extend(windows)
        return real(model, mel, windows, taggers)

    monkeypatch.setattr(batched, "encode_windows", encode)
    audio = np.tile(whisper_at.load_audio(str(ROOT / "sample" / "speech.flac")), 5)
    result = nano.transcribe(audio, language="en", fp16=False, batch_size=4, temperature=0, beam_size=beams)
    windows = quiet_cuts(LogMel(audio), 0, len(audio) // 160)
    assert encoded == windows
    for window in windows:
        said = [s for s in result["segments"] if window.seek <= 100 * s["start"] < window.end]
        assert said[-1]["end"] * 100 <= window.end
        assert said[-1]["end"] * 100 > window.end - 500


def test_sound_ends_behind_the_last_loud_frame():
    audio = with_pauses(20, [(12.0, 20.0)])
    assert abs(sound_end(LogMel(audio).window(0, 2000)) - 1200) < 5
    assert sound_end(LogMel(noise(20)).window(0, 2000)) > 1950
    assert sound_end(torch.zeros(80, 7)) == 7


def test_same_keys_as_one_after_the_other(model_en):
    audio = noise(40)
    batch, plain = (model_en.transcribe(audio, batch_size=n, word_timestamps=True, **OPTIONS) for n in (2, None))
    assert batch.keys() == plain.keys()
    assert batch["segments"][0].keys() == plain["segments"][0].keys()
    assert [s["id"] for s in batch["segments"]] == list(range(len(batch["segments"])))
    assert batch["duration"] == plain["duration"]
    assert batch["audio_tag"].shape == plain["audio_tag"].shape


def test_a_cut_segment_is_decoded_again(model_en, monkeypatch):
    """What lies behind the last complete segment of a window is not lost."""
    decoded = []
    real = BatchDecoder._decode_batch

    def decode_batch(batches, batch):
        decoded.extend(job.window for job in batch)
        return real(batches, batch)

    def split(result, window, tokenizer, n_audio_ctx, **options):
        found = split_segments(result, window, tokenizer, n_audio_ctx, **options)
        return found._replace(seek=window.seek + 1000) if window.size > 1500 else found

    monkeypatch.setattr(BatchDecoder, "_decode_batch", decode_batch)
    monkeypatch.setattr(batched, "split_segments", split)
    result = model_en.transcribe(noise(25), batch_size=2, **OPTIONS)
    assert decoded == [Window(0, 2500), Window(1000, 1500)]
    assert result["audio_tag_coverage"].max() == 1.0


def test_many_recordings_share_batches_and_bad_ones_are_reported(model_en, tmp_path, monkeypatch):
    sizes = []
    real = BatchDecoder._decode_batch
    monkeypatch.setattr(
        BatchDecoder, "_decode_batch", lambda self, batch: sizes.append(len(batch)) or real(self, batch)
    )
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    absent = str(tmp_path / "absent.wav")
    recordings = [noise(5, 1), str(empty), noise(35, 2), absent, np.zeros(0, np.float32), noise(3, 3)]
    found = list(transcribe_many(model_en, iter(recordings), batch_size=3, **OPTIONS))
    assert len(found) == len(recordings)
    results = {id(audio): result for audio, result in found}
    kinds = [type(results[id(audio)]) for audio in recordings]
    assert kinds == [dict, RuntimeError, dict, FileNotFoundError, dict, dict]
    assert sizes[0] == 3
    assert sum(sizes) == 4
    for audio in (recordings[0], recordings[2], recordings[5]):
        alone = model_en.transcribe(audio, batch_size=1, **OPTIONS)
        assert results[id(audio)]["text"] == alone["text"]
    assert results[id(recordings[4])]["text"] == ""
    assert results[id(recordings[4])]["segments"] == []


def test_a_result_that_cannot_be_finished_is_reported(model_en, monkeypatch):
    real = batched.OpenRecording.result

    def result(recording, options):
        if recording.audio is recordings[0]:
            raise FileNotFoundError("gone meanwhile")
        return real(recording, options)

    recordings = [noise(3, 1), noise(4, 2)]
    monkeypatch.setattr(batched.OpenRecording, "result", result)
    found = [type(result) for _, result in transcribe_many(model_en, recordings, batch_size=2, **OPTIONS)]
    assert found == [FileNotFoundError, dict]


def test_pauses_before_words_do_not_depend_on_the_batch(model_en, monkeypatch):
    """Where the last word ended is known of the windows before, whenever their remainders are decoded."""
    real = batched.split_segments

    def split(result, window, tokenizer, n_audio_ctx, **options):
        found = real(result, window, tokenizer, n_audio_ctx, **options)
        segment = found.segments[0] | {"start": window.seek / 100, "end": window.seek / 100 + 7, "words": []}
        return found._replace(segments=[segment], seek=window.seek + (800 if window.size > 1500 else window.size))

    def times(segments, last_speech_timestamp, **_):
        spoken[segments[0]["start"]] = last_speech_timestamp

    monkeypatch.setattr(batched, "split_segments", split)
    monkeypatch.setattr(batched, "add_word_timestamps", times)
    by_batch = []
    for batch_size in (1, 8):
        spoken: dict[float, float] = {}
        model_en.transcribe(noise(90), batch_size=batch_size, word_timestamps=True, at_time_res=None, **OPTIONS)
        by_batch.append(spoken)
    starts = sorted(spoken)
    assert by_batch[0] == by_batch[1]
    assert len(starts) > 6
    assert spoken[starts[0]] == 0
    assert spoken[starts[1]] == starts[0] + 7
    assert all(last <= start for start, last in spoken.items())


def test_none_is_a_bad_recording_and_not_the_end(model_en):
    audio = noise(2)
    found = list(transcribe_many(model_en, [audio, None, audio], batch_size=2, **OPTIONS))
    assert len(found) == 3
    assert [isinstance(result, Exception) for given, result in found if given is None] == [True]
    assert all("text" in result for given, result in found if given is not None)


def test_recordings_are_opened_when_their_turn_comes(model_en):
    opened = []

    def recordings():
        for i in range(6):
            opened.append(i)
            yield noise(2, i)

    results = transcribe_many(model_en, recordings(), batch_size=2, **OPTIONS)
    assert opened == []
    next(results)
    assert opened == [0, 1]


def test_less_memory_means_smaller_batches(model_en, monkeypatch):
    sizes = []
    real = BatchDecoder._decode_batch

    def decode_batch(batches, batch):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("as a GPU says it")
        return real(batches, batch)

    monkeypatch.setattr(BatchDecoder, "_decode_batch", decode_batch)
    with pytest.warns(UserWarning, match="batches of 2 windows"):
        result = model_en.transcribe(noise(70), batch_size=4, **OPTIONS)
    assert sizes[:3] == [3, 2, 1]
    assert result["audio_tag_coverage"].min() == 1


def test_nothing_of_a_batch_that_was_too_much_is_kept(model_en, monkeypatch):
    """Else the smaller one that follows finds no more memory than the one before."""
    real, alive, refs = batched.decoder_inputs, [], []

    def decoder_inputs(model, features):
        alive.append(sum(ref() is not None for ref in refs))
        encoded = real(model, features)
        refs.append(weakref.ref(encoded.keys))
        if len(features) > 1:
            model._decoder.cached_steps.append("a step of this shape")
            raise torch.OutOfMemoryError("as a GPU says it")
        return encoded

    monkeypatch.setattr(batched, "decoder_inputs", decoder_inputs)
    with pytest.warns(UserWarning, match="batches of 1 windows"):
        model_en.transcribe(noise(70), batch_size=4, **OPTIONS)
    assert len(alive) >= 5
    assert set(alive) == {0}
    assert not model_en._decoder.cached_steps


def test_too_much_even_alone_is_reported(model_en, monkeypatch):
    def decode_batch(*_):
        raise torch.OutOfMemoryError("as a GPU says it")

    monkeypatch.setattr(BatchDecoder, "_decode_batch", decode_batch)
    with pytest.warns(UserWarning, match="batches of 1 windows"):
        results = list(transcribe_many(model_en, [noise(2, i) for i in range(3)], batch_size=2, **OPTIONS))
    assert [type(result) for _, result in results] == [torch.OutOfMemoryError] * 3


@pytest.mark.parametrize("stage", ["_decode_batch", "_add_segments"])
def test_a_recording_that_fails_does_not_take_others_of_its_batch_along(model_en, monkeypatch, stage):
    good, bad = [noise(40, i) for i in range(2)], noise(35, 9)
    expected = [model_en.transcribe(audio, batch_size=1, **OPTIONS)["text"] for audio in good]
    real = getattr(BatchDecoder, stage)

    def fail(batches, of, *rest):
        jobs = of if stage == "_decode_batch" else [of]
        if any(job.recording.audio is bad for job in jobs):
            raise ValueError("NaN")
        return real(batches, of, *rest)

    monkeypatch.setattr(BatchDecoder, stage, fail)
    found = list(transcribe_many(model_en, [good[0], bad, good[1]], batch_size=8, **OPTIONS))
    assert [result["text"] for audio, result in found if audio is not bad] == expected
    assert [type(result) for audio, result in found if audio is bad] == [ValueError]


def test_refusals(model_en):
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        model_en.transcribe(noise(1), batch_size=0)
    with pytest.raises(ValueError, match="leave out batch_size"):
        model_en.transcribe(noise(1), batch_size=2, hallucination_silence_threshold=2.0)
    with pytest.raises(TypeError, match="condition_on_previous_text"):
        transcribe_many(model_en, [], condition_on_previous_text=True)
    with pytest.raises(TypeError, match="takes several recordings"):
        transcribe_many(model_en, "speech.wav")
    model_en.head = None
    with pytest.raises(ValueError, match="cannot tag sounds"):
        transcribe_many(model_en, [], at_time_res=10)


def test_clips_and_order_of_segments(model_en):
    result = model_en.transcribe(noise(50), batch_size=4, clip_timestamps=[30, 40, 10, 20], at_time_res=10, **OPTIONS)
    starts = [s["start"] for s in result["segments"]]
    assert starts == sorted(starts)
    assert [float(c) for c in result["audio_tag_coverage"]] == [0, 1, 0, 1, 0]


def test_real_speech_in_batches(nano):
    """The sample, several times over, is written as often: cuts lie between its sentences."""
    once = whisper_at.load_audio(str(ROOT / "sample" / "speech.flac"))
    pause = np.zeros(SAMPLE_RATE, np.float32)
    audio = np.concatenate([once, pause] * 4)
    result = nano.transcribe(audio, language="en", fp16=False, batch_size=4)
    sequential = nano.transcribe(audio, language="en", fp16=False)
    words, expected = result["text"].split(), sequential["text"].split()
    assert len(expected) > 20
    assert len(set(words) & set(expected)) > 0.8 * len(set(expected))
    assert abs(len(words) - len(expected)) <= 0.2 * len(expected)
