"""Extraction of features: both protocols and clips in context against independent computations, resuming, errors."""

from __future__ import annotations

import functools
import itertools
import json
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
import whisper
from conftest import SAMPLE_RATE, noise

from whisper_at.audio import load_audio
from whisper_at.data.clips import Clip
from whisper_at.features import extract as extraction
from whisper_at.features import progress
from whisper_at.features.concat_clips import (
    concat_sounds,
    mix_with_background,
    read_background,
    shuffle_clips,
    states_in_context,
)
from whisper_at.features.encode import JOINED, describe_features, encode_windows, load_clip, mel_windows, num_steps
from whisper_at.features.extract import extract_features
from whisper_at.features.store import Features
from whisper_at.features.writer import FeatureWriter
from whisper_at.mel import LogMel
from whisper_at.windows import Window

SECONDS = (0.7, 3.0, 5.0, 31.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("sounds")
    for i, seconds in enumerate(SECONDS):
        soundfile.write(folder / f"{i}.wav", noise(seconds, i), SAMPLE_RATE)
    return [Clip(folder / f"{i}.wav", ("x",)) for i in range(len(SECONDS))]


def block_outputs(model, mel: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Outputs of all blocks ``(layers, positions, dim)``, spelled out: no hook and no pooling of ours."""
    encoder, found = model.encoder, []
    with torch.no_grad():
        x = F.gelu(F.conv1d(mel[None], encoder.conv1.weight, encoder.conv1.bias, padding=1))
        x = F.gelu(F.conv1d(x, encoder.conv2.weight, encoder.conv2.bias, stride=2, padding=1))[0].T + positions
        x = x[None]
        for block in encoder.blocks:
            x = block(x)
            found.append(x[0])
    return torch.stack(found)


def test_protocol_10_is_the_clip_alone_with_the_table_of_positions_cut(model_en, clips, tmp_path):
    """Spec section 3.1: dynamic range by the clip's own maximum, padded with 0.0, 500 positions, mean over 20."""
    metadata = describe_features("random", model_en, "10")
    assert extract_features(clips, tmp_path / "f", model_en, metadata) == []
    features = Features.open(tmp_path / "f")
    assert features.n_steps.tolist() == [25] * 4
    for i in features.find(clips):
        mel = whisper.log_mel_spectrogram(load_audio(clips[i].path))[:, :1000]
        mel = torch.cat([mel, torch.zeros(80, 1000 - mel.shape[1])], dim=1)
        wanted = block_outputs(model_en, mel, model_en.encoder.positional_embedding[:500])
        wanted = wanted.reshape(2, 25, 20, 64).mean(2)
        torch.testing.assert_close(
            torch.from_numpy(features.states(i).astype(np.float32)), wanted, rtol=2e-3, atol=2e-3
        )


def test_protocol_10_of_five_seconds_ends_in_half_a_step(model_en, clips):
    metadata = describe_features("random", model_en, "10", seconds=5)
    ((mel, window),) = mel_windows(load_clip(clips[3]), 80, metadata.seconds)
    (states,) = encode_windows(model_en, [mel], [window])
    wanted = block_outputs(model_en, torch.from_numpy(mel), model_en.encoder.positional_embedding[:250])
    assert states.shape == (2, 13, 64)
    torch.testing.assert_close(states[:, :12], wanted[:, :240].reshape(2, 12, 20, 64).mean(2))
    torch.testing.assert_close(states[:, 12], wanted[:, 240:].mean(1))


def test_protocol_30_encodes_as_transcription_does(model_en, clips, tmp_path):
    """The same windows, padded with the same 0.0 (not with silence), and only steps that hold audio (D6)."""
    extract_features(clips, tmp_path / "f", model_en, describe_features("random", model_en, "30"), batch=2)
    features = Features.open(tmp_path / "f")
    assert features.n_steps[features.find(clips)].tolist() == [2, 8, 13, 78]
    for clip in clips:
        seen = []
        hook = model_en.encoder.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        model_en.transcribe(str(clip.path), language="en", fp16=False, temperature=0.0, sample_len=1)
        hook.remove()
        windows = mel_windows(load_clip(clip), 80)
        assert len(seen) == len(windows)
        for (mel, _), other in zip(windows, seen):
            np.testing.assert_array_equal(mel, other[0].numpy())
    mel = torch.from_numpy(mel_windows(load_clip(clips[1]), 80)[0][0])
    wanted = block_outputs(model_en, mel, model_en.encoder.positional_embedding)[:, :160].reshape(2, 8, 20, 64).mean(2)
    found = torch.from_numpy(features.states(features.find(clips)[1]).astype(np.float32))
    # the last step: audio of 3.0 s ends in its middle, and what lies behind is no part of it
    torch.testing.assert_close(found[:, :7], wanted[:, :7], rtol=2e-3, atol=2e-3)


def recording_of(clips) -> np.ndarray:
    """Clips one behind the other, each from a step on, repeated until the last window is full."""
    sounds = []
    for clip in clips:
        samples = load_clip(clip)
        sounds += [samples, np.zeros(-len(samples) % 6400, np.float32)]
    whole = np.concatenate(sounds)
    windows = -(-len(whole) // (30 * SAMPLE_RATE))
    return np.tile(whole, windows * 30 * SAMPLE_RATE // len(whole) + 1)[: windows * 30 * SAMPLE_RATE]


def states_of_clips_in_recording(model, ordered) -> dict[Clip, np.ndarray]:
    """The states of each clip in a recording of all, computed step by step."""
    with LogMel(recording_of(ordered), 80) as mel:
        whole = [mel.window(seek, seek + 3000).numpy() for seek in range(0, mel.content_frames, 3000)]
    states = torch.cat(encode_windows(model, whole, [Window(3000 * i) for i in range(len(whole))]), dim=1).numpy()
    found, start = {}, 0
    for clip in ordered:
        steps = -(-len(load_clip(clip)) // 6400)
        found[clip] = states[:, start : start + steps]
        start += steps
    return found


def test_protocol_30_plus_encodes_every_clip_in_isolation_and_in_context(model_en, clips, tmp_path):
    """Heads that were trained on clips followed by silence did not recognise them in a recording full of sound."""
    stores = {}
    for protocol in ("30", "30+", JOINED):
        assert not extract_features(
            clips, tmp_path / protocol, model_en, describe_features("random", model_en, protocol), batch=3
        )
        stores[protocol] = Features.open(tmp_path / protocol)
    ordered = shuffle_clips(clips)
    assert sorted(ordered, key=clips.index) == clips == sorted(shuffle_clips(clips[::-1]), key=clips.index)
    short = [clip for clip in ordered if clip is not clips[3]]  # the one of 31 s needs no context
    in_context = [
        states_of_clips_in_recording(model_en, [short[i] for i in np.random.default_rng(again).permutation(3)])
        for again in range(3)
    ]
    for clip in clips:
        (isolated,), (several,), (joined,) = (stores[protocol].find([clip]) for protocol in stores)
        n = stores["30"].n_steps[isolated]
        if clip is clips[3]:
            for found in in_context:
                found[clip] = stores["30"].states(isolated).astype(np.float32)
        np.testing.assert_allclose(stores[JOINED].states(joined), in_context[0][clip], rtol=2e-3, atol=2e-3)
        views = stores["30+"].view_indices(np.array([several]))[:, 0]
        assert views[0] == several
        assert stores["30+"].n_steps[views].tolist() == [n] * 4
        wanted = [stores["30"].states(isolated).astype(np.float32), *(found[clip][:, :n] for found in in_context)]
        for view, states in zip(views.tolist()[:3], wanted):
            np.testing.assert_allclose(stores["30+"].states(view), states, rtol=2e-3, atol=2e-3)
        over_background = np.allclose(stores["30+"].states(views[3]), wanted[3], rtol=2e-3, atol=2e-3)
        assert over_background == (clip is clips[3])  # what fills a window is encoded once
        batch = stores["30+"].batch(views, 3, [0, 1, 0, 1])
        np.testing.assert_array_equal(batch[3], stores["30+"].batch(views[3:], 4)[0][:, 1:])
    assert stores["30"].view_indices(np.arange(4)).tolist() == [[0, 1, 2, 3]]


def test_the_last_recording_lies_over_background_at_0_to_20_dB_below_each_sound():
    rng = np.random.default_rng(0)
    sounds = [0.1 * rng.standard_normal(16000 * (i % 3 + 1)).astype(np.float32) * (i % 5 + 1) / 5 for i in range(60)]
    background = 0.3 * np.sin(np.arange(50_000) / 7).astype(np.float32)
    mixed = mix_with_background(sounds, background, seed=1)
    levels = np.array([20 * np.log10((both - sound).std() / sound.std()) for both, sound in zip(mixed, sounds)])
    assert (levels < 0.6).all()
    assert (levels > -20.6).all()
    assert levels.min() < -17
    assert levels.max() > -3
    assert all(np.array_equal(a, b) for a, b in zip(mixed, mix_with_background(sounds, background, seed=1)))
    silent = mix_with_background([np.zeros(16000, np.float32)], background, 0)[0]
    assert not silent.any()  # it stays what it is

    recordings = []
    encode = lambda audio: recordings.append(audio) or torch.zeros(1, len(audio) // 6400, 1)  # noqa: E731
    states_in_context(sounds, encode, 3, background=background)
    orders = [np.random.default_rng(seed).permutation(60) for seed in range(3)]
    wanted = [concat_sounds([sounds[i] for i in order])[0] for order in orders]
    same = [np.array_equal(found, expected) for found, expected in zip(recordings, wanted)]
    assert same == [True, True, False]
    expected = concat_sounds(mix_with_background([sounds[i] for i in orders[2]], background, 60))[0]
    np.testing.assert_array_equal(recordings[2], expected)


def test_the_package_has_background_to_lie_under_others():
    background = read_background()
    assert background.dtype == np.float32
    assert 120 < len(background) / SAMPLE_RATE < 600
    assert 0.01 < background.std() < 0.3
    assert read_background() is background  # decoded once, and the same for all
    assert not background.flags.writeable


def test_the_order_of_clips_does_not_depend_on_their_class(tmp_path):
    """Lists are sorted by class: an order by position would be the same in all folds, and a head would learn it."""
    clips = [
        Clip(tmp_path / f"{fold}-{number}.wav", (label,), fold=str(fold))
        for fold in range(4)
        for label in "abcde"
        for number in range(100 * ord(label), 100 * ord(label) + 8)
    ]
    labels = [[clip.labels[0] for clip in shuffle_clips(clips) if clip.fold == str(fold)] for fold in range(4)]
    for i, one in enumerate(labels):
        assert sorted(one) == sorted("abcde" * 8)
        assert one != sorted(one)
        assert all(sum(a == b for a, b in zip(one, other)) < 20 for other in labels[:i])  # 8 of 40 by chance


def test_recordings_are_of_one_split_and_fold_and_some_minutes_long(clips, model_en, tmp_path, monkeypatch):
    """Test clips are no context of training clips."""
    recordings = []

    def concat_and_note(sounds):
        recordings.append([len(sound) for sound in sounds])
        return concat_sounds(sounds)

    monkeypatch.setattr("whisper_at.features.concat_clips.concat_sounds", concat_and_note)
    monkeypatch.setattr("whisper_at.features.concat_clips.MIN_RECORDING_SAMPLES", 100_000)
    folds = [replace(clips[i % 3], start=0.1 * (i // 6), fold=str(i % 2), split="test" * (i < 2)) for i in range(18)]
    assert not extract_features(folds, tmp_path / "f", model_en, describe_features("random", model_en, JOINED))
    ordered = shuffle_clips(folds)
    parts = [(clip.split, clip.fold) for clip in ordered]
    assert len(set(parts)) == 4
    assert sum(a != b for a, b in itertools.pairwise(parts)) == 3
    place = 0
    for recording in recordings:
        members = ordered[place : place + len(recording)]
        assert len({(clip.split, clip.fold) for clip in members}) == 1
        lengths = [len(load_clip(clip)) for clip in members]
        assert sorted(lengths) == sorted(recording)
        assert sum(lengths[:-1]) < 100_000
        place += len(recording)  # the last one made it long enough, or was the last of its part
        assert sum(lengths) >= 100_000 or place == len(parts) or parts[place] != parts[place - 1]
    assert place == 18


def test_recordings_are_the_same_after_a_kill(clips, model_en, tmp_path, monkeypatch):
    """Recordings end where shards may end, so that what is left is concatenated as it would have been."""
    monkeypatch.setattr("whisper_at.features.concat_clips.MIN_RECORDING_SAMPLES", 100_000)
    monkeypatch.setattr("whisper_at.features.writer.MAX_SHARD_CLIPS", 2)
    monkeypatch.setattr(extraction, "load_clip", functools.cache(load_clip))
    many = [replace(clips[i % 3], start=0.01 * (i // 3)) for i in range(12)]
    metadata = describe_features("random", model_en, "30+", dtype="float32")
    extract_features(many, tmp_path / "whole", model_en, metadata)

    whole = Features.open(tmp_path / "whole")
    for killed_at in (2, 5):
        left = iter(range(killed_at))
        with monkeypatch.context() as context:

            def stop(self, clip, states, may_flush=True, add=FeatureWriter.add, left=left, context=context):
                if next(left, None) is None:
                    context.setattr(FeatureWriter, "flush", lambda self: None)  # as a kill leaves it
                    raise KeyboardInterrupt
                add(self, clip, states, may_flush)

            context.setattr(FeatureWriter, "add", stop)
            with pytest.raises(KeyboardInterrupt):
                extract_features(many, tmp_path / str(killed_at), model_en, metadata)
        assert len(Features.open(tmp_path / str(killed_at))) < 12
        extract_features(many, tmp_path / str(killed_at), model_en, metadata)
        again = Features.open(tmp_path / str(killed_at))
        for i, j in zip(*(of.view_indices(of.find(many)).ravel().tolist() for of in (whole, again))):
            np.testing.assert_array_equal(whole.states(i), again.states(j))


def test_batched_and_single_and_other_processes_agree(model_en, clips, tmp_path):
    metadata = describe_features("random", model_en, "30", dtype="float32")
    extract_features(clips, tmp_path / "a", model_en, metadata, batch=1)
    extract_features(clips, tmp_path / "b", model_en, metadata, batch=8, workers=2)
    a, b = Features.open(tmp_path / "a"), Features.open(tmp_path / "b")
    for i, j in zip(a.find(clips), b.find(clips)):
        np.testing.assert_allclose(a.states(i), b.states(j), rtol=1e-4, atol=1e-4)


def test_clips_that_cannot_be_read_are_named_and_left_out_T4(model_en, clips, tmp_path):
    """T4: features that are missing must not turn into zeros."""
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "blip.wav", np.ones(100) * 0.1, SAMPLE_RATE)
    bad = [Clip(tmp_path / f"{name}.wav", ()) for name in ("text", "empty", "blip", "gone")]
    bad.append(replace(clips[0], start=5.0, end=6.0))
    unreadable = extract_features(
        [bad[0], *clips[:2], *bad[1:]], tmp_path / "f", model_en, describe_features("random", model_en)
    )
    assert [item.clip for item in unreadable] == bad
    assert "empty" in unreadable[1].reason
    assert "too short" in unreadable[2].reason
    assert "0.70 s long" in unreadable[4].reason
    features = Features.open(tmp_path / "f")
    assert len(features) == 2
    assert (features.find(bad) == -1).all()


def test_a_part_of_a_file_is_that_part(clips):
    whole = load_clip(clips[1])
    np.testing.assert_array_equal(load_clip(replace(clips[1], start=1.0, end=2.5)), whole[16000:40000])
    np.testing.assert_array_equal(load_clip(replace(clips[1], start=2.0)), whole[32000:])


def test_states_that_are_there_are_not_computed_again(model_en, clips, tmp_path, monkeypatch):
    metadata = describe_features("random", model_en)
    extract_features(clips[:2], tmp_path / "f", model_en, metadata)
    encoded = []
    real = extraction.encode_windows
    monkeypatch.setattr(extraction, "encode_windows", lambda m, mels, w: encoded.append(len(mels)) or real(m, mels, w))
    extract_features(clips[:3], tmp_path / "f", model_en, metadata)
    assert encoded == [1]
    extract_features(clips[:3], tmp_path / "f", model_en, metadata)
    assert encoded == [1]


def test_a_file_that_changed_is_encoded_again(model_en, tmp_path):
    clip = Clip(tmp_path / "a.wav", ())
    soundfile.write(clip.path, noise(1), SAMPLE_RATE)
    metadata = describe_features("random", model_en)
    extract_features([clip], tmp_path / "f", model_en, metadata)
    soundfile.write(clip.path, noise(2, 1), SAMPLE_RATE)
    assert Features.open(tmp_path / "f").find([clip]).tolist() == [-1]
    extract_features([clip], tmp_path / "f", model_en, metadata)
    features = Features.open(tmp_path / "f")
    assert len(features) == 1
    assert features.n_steps.tolist() == [5]


def test_a_small_disk_is_refused_before_any_work(model_en, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(progress.shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(9, 9, 1000))
    monkeypatch.setattr(extraction, "encode_windows", lambda *_: pytest.fail("encoded"))
    with pytest.raises(RuntimeError, match="larger disk"):
        extract_features(clips, tmp_path / "f", model_en, describe_features("random", model_en, "10"))


def test_time_and_space_are_logged_from_the_first_clips(model_en, clips, tmp_path):
    lines: list[str] = []
    many = [replace(clips[1], start=i / 10) for i in range(8)]
    extract_features(many, tmp_path / "f", model_en, describe_features("random", model_en), batch=1, log=lines.append)
    assert len(lines) == 1
    assert "8 clips" in lines[0]
    assert "on disk" in lines[0]


def test_time_and_space_are_logged_before_most_of_the_work_and_of_many_clips_again(
    model_en, clips, tmp_path, monkeypatch
):
    encoded, lines = [], []
    monkeypatch.setattr(extraction, "load_clip", lambda clip, min_samples: np.zeros(11200, np.float32))

    def encode(model, mels, windows):  # at no cost
        encoded.append(len(mels))
        return [torch.zeros(2, num_steps(window), 64) for window in windows]

    monkeypatch.setattr(extraction, "encode_windows", encode)

    def log(line: str) -> None:
        lines.append((line, sum(encoded)))

    some = [replace(clips[0], start=i / 1000) for i in range(150)]
    extract_features(some[:20], tmp_path / "few", model_en, describe_features("random", model_en), log=log)
    assert [n for _, n in lines] == [2]
    assert encoded == [1, 1, 16, 2]
    assert "20 clips: about" in lines[0][0]
    encoded.clear(), lines.clear()
    extract_features(some, tmp_path / "many", model_en, describe_features("random", model_en), batch=4, log=log)
    assert [n for _, n in lines] == [2, 14]


@pytest.mark.parametrize(("protocol", "seconds"), [("20", None), ("10", 31), ("10", 5.01), ("30", 5), ("10", -1)])
def test_wrong_protocols_are_refused(model_en, protocol, seconds):
    with pytest.raises(ValueError, match="protocol|seconds"):
        describe_features("random", model_en, protocol, seconds)


def test_a_store_with_another_number_of_views_is_refused(model_en, clips, tmp_path):
    """Old stores of protocol 30+ have one view of each clip, and no such key."""
    extract_features(clips[:1], tmp_path / "f", model_en, metadata := describe_features("random", model_en, "30+"))
    path = tmp_path / "f" / "features.json"
    written = json.loads(path.read_text())
    assert written.pop("hearings") == metadata.views == 4
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match="with hearings = 1, not 4; choose another folder"):
        extract_features(clips, tmp_path / "f", model_en, metadata)
