"""Features on disk: both protocols against independent computations, resuming, damage, ``.npz``, and the command."""

from __future__ import annotations

import itertools
import json
import os
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
from whisper_at.cli import features as features_command
from whisper_at.cli.features import write_npz
from whisper_at.data.clips import Clip
from whisper_at.mel import LogMel
from whisper_at.train import extract as extraction
from whisper_at.train.concat_clips import in_random_order, join
from whisper_at.train.extract import JOINED, audible, describe, encode, extract, load_part, mel_windows
from whisper_at.train.features import About, Features, FeatureWriter, key_of, short_key
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
    about = describe("random", model_en, "10")
    assert extract(clips, tmp_path / "f", model_en, about) == []
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
    about = describe("random", model_en, "10", seconds=5)
    ((mel, window),) = mel_windows(audible(clips[3]), 80, about.seconds)
    (states,) = encode(model_en, [mel], [window])
    wanted = block_outputs(model_en, torch.from_numpy(mel), model_en.encoder.positional_embedding[:250])
    assert states.shape == (2, 13, 64)
    torch.testing.assert_close(states[:, :12], wanted[:, :240].reshape(2, 12, 20, 64).mean(2))
    torch.testing.assert_close(states[:, 12], wanted[:, 240:].mean(1))


def test_protocol_30_hears_as_transcription_does(model_en, clips, tmp_path):
    """The same windows, padded with the same 0.0 (not with silence), and only steps that hold audio (D6)."""
    extract(clips, tmp_path / "f", model_en, describe("random", model_en, "30"), batch=2)
    features = Features.open(tmp_path / "f")
    assert features.n_steps[features.find(clips)].tolist() == [2, 8, 13, 78]
    for clip in clips:
        heard = []
        hook = model_en.encoder.register_forward_pre_hook(lambda _, given, heard=heard: heard.append(given[0]))
        model_en.transcribe(str(clip.path), language="en", fp16=False, temperature=0.0, sample_len=1)
        hook.remove()
        windows = mel_windows(audible(clip), 80)
        assert len(heard) == len(windows)
        for (mel, _), other in zip(windows, heard):
            np.testing.assert_array_equal(mel, other[0].numpy())
    mel = torch.from_numpy(mel_windows(audible(clips[1]), 80)[0][0])
    wanted = block_outputs(model_en, mel, model_en.encoder.positional_embedding)[:, :160].reshape(2, 8, 20, 64).mean(2)
    found = torch.from_numpy(features.states(features.find(clips)[1]).astype(np.float32))
    # the last step: audio of 3.0 s ends in its middle, and what lies behind is no part of it
    torch.testing.assert_close(found[:, :7], wanted[:, :7], rtol=2e-3, atol=2e-3)


def recording_of(clips) -> np.ndarray:
    """Clips one behind the other, each from a step on, repeated until the last window is full."""
    sounds = []
    for clip in clips:
        samples = load_part(clip)
        sounds += [samples, np.zeros(-len(samples) % 6400, np.float32)]
    whole = np.concatenate(sounds)
    windows = -(-len(whole) // (30 * SAMPLE_RATE))
    return np.tile(whole, windows * 30 * SAMPLE_RATE // len(whole) + 1)[: windows * 30 * SAMPLE_RATE]


def company_of(model, ordered) -> dict[Clip, np.ndarray]:
    """The states of each clip in a recording of all, spelled out."""
    with LogMel(recording_of(ordered), 80) as mel:
        whole = [mel.window(seek, seek + 3000).numpy() for seek in range(0, mel.content_frames, 3000)]
    states = torch.cat(encode(model, whole, [Window(3000 * i) for i in range(len(whole))]), dim=1).numpy()
    found, start = {}, 0
    for clip in ordered:
        steps = -(-len(load_part(clip)) // 6400)
        found[clip] = states[:, start : start + steps]
        start += steps
    return found


def test_protocol_30_plus_hears_every_clip_by_itself_and_among_others(model_en, clips, tmp_path):
    """Heads that knew clips amid silence alone did not know them again in a recording full of sound."""
    stores = {}
    for protocol in ("30", "30+", JOINED):
        assert not extract(clips, tmp_path / protocol, model_en, describe("random", model_en, protocol), batch=3)
        stores[protocol] = Features.open(tmp_path / protocol)
    ordered = in_random_order(clips)
    assert sorted(ordered, key=clips.index) == clips == sorted(in_random_order(clips[::-1]), key=clips.index)
    short = [clip for clip in ordered if clip is not clips[3]]  # that of 31 s is company enough for itself
    companies = [
        company_of(model_en, [short[i] for i in np.random.default_rng(again).permutation(3)]) for again in range(3)
    ]
    for clip in clips:
        (alone,), (several,), (once,) = (stores[protocol].find([clip]) for protocol in stores)
        n = stores["30"].n_steps[alone]
        if clip is clips[3]:
            for found in companies:
                found[clip] = stores["30"].states(alone).astype(np.float32)
        np.testing.assert_allclose(stores[JOINED].states(once), companies[0][clip], rtol=2e-3, atol=2e-3)
        hearings = stores["30+"].hearings(np.array([several]))[:, 0]
        assert hearings[0] == several
        assert stores["30+"].n_steps[hearings].tolist() == [n] * 4
        wanted = [stores["30"].states(alone).astype(np.float32), *(found[clip][:, :n] for found in companies)]
        for hearing, states in zip(hearings.tolist(), wanted):
            np.testing.assert_allclose(stores["30+"].states(hearing), states, rtol=2e-3, atol=2e-3)
        batch = stores["30+"].batch(hearings, 3, [0, 1, 0, 1])
        np.testing.assert_array_equal(batch[3], stores["30+"].batch(hearings[3:], 4)[0][:, 1:])
    assert stores["30"].hearings(np.arange(4)).tolist() == [[0, 1, 2, 3]]


def test_company_does_not_tell_the_class(tmp_path):
    """Lists go by class: an order by place in them would be the same in all folds, and a head would learn it."""
    clips = [
        Clip(tmp_path / f"{fold}-{number}.wav", (label,), fold=str(fold))
        for fold in range(4)
        for label in "abcde"
        for number in range(100 * ord(label), 100 * ord(label) + 8)
    ]
    labels = [[clip.labels[0] for clip in in_random_order(clips) if clip.fold == str(fold)] for fold in range(4)]
    for i, one in enumerate(labels):
        assert sorted(one) == sorted("abcde" * 8)
        assert one != sorted(one)
        assert all(sum(a == b for a, b in zip(one, other)) < 20 for other in labels[:i])  # 8 of 40 by chance


def test_company_is_of_one_split_and_fold_and_some_minutes_long(clips, model_en, tmp_path, monkeypatch):
    """What is held apart is not heard in training, not even behind other sounds."""
    recordings = []

    def join_and_note(sounds):
        recordings.append([len(sound) for sound in sounds])
        return join(sounds)

    monkeypatch.setattr("whisper_at.train.concat_clips.join", join_and_note)
    monkeypatch.setattr("whisper_at.train.concat_clips.LONG_ENOUGH", 100_000)
    folds = [replace(clips[i % 3], start=0.1 * (i // 6), fold=str(i % 2), split="test" * (i < 2)) for i in range(18)]
    assert not extract(folds, tmp_path / "f", model_en, describe("random", model_en, JOINED))
    ordered = in_random_order(folds)
    parts = [(clip.split, clip.fold) for clip in ordered]
    assert len(set(parts)) == 4
    assert sum(a != b for a, b in itertools.pairwise(parts)) == 3
    place = 0
    for recording in recordings:
        members = ordered[place : place + len(recording)]
        assert len({(clip.split, clip.fold) for clip in members}) == 1
        lengths = [len(load_part(clip)) for clip in members]
        assert sorted(lengths) == sorted(recording)
        assert sum(lengths[:-1]) < 100_000
        place += len(recording)  # the last one made it long enough, or was the last of its part
        assert sum(lengths) >= 100_000 or place == len(parts) or parts[place] != parts[place - 1]
    assert place == 18


def test_company_is_the_same_after_a_kill(clips, model_en, tmp_path, monkeypatch):
    """Recordings end where shards may end, so that what is left is joined as it would have been."""
    monkeypatch.setattr("whisper_at.train.concat_clips.LONG_ENOUGH", 100_000)
    monkeypatch.setattr("whisper_at.train.features.SHARD_CLIPS", 2)
    many = [replace(clips[i % 3], start=0.01 * (i // 3)) for i in range(18)]
    about = describe("random", model_en, "30+", dtype="float32")
    extract(many, tmp_path / "whole", model_en, about)

    whole = Features.open(tmp_path / "whole")
    for killed_at in (1, 2, 5, 9):
        left = iter(range(killed_at))
        with monkeypatch.context() as context:

            def stop(self, clip, states, last=True, add=FeatureWriter.add, left=left, context=context):
                if next(left, None) is None:
                    context.setattr(FeatureWriter, "flush", lambda self: None)  # as a kill leaves it
                    raise KeyboardInterrupt
                add(self, clip, states, last)

            context.setattr(FeatureWriter, "add", stop)
            with pytest.raises(KeyboardInterrupt):
                extract(many, tmp_path / str(killed_at), model_en, about)
        assert len(Features.open(tmp_path / str(killed_at))) < 18
        extract(many, tmp_path / str(killed_at), model_en, about)
        again = Features.open(tmp_path / str(killed_at))
        for i, j in zip(*(of.hearings(of.find(many)).ravel().tolist() for of in (whole, again))):
            np.testing.assert_array_equal(whole.states(i), again.states(j))


def test_batched_and_single_and_other_processes_agree(model_en, clips, tmp_path):
    about = describe("random", model_en, "30", dtype="float32")
    extract(clips, tmp_path / "a", model_en, about, batch=1)
    extract(clips, tmp_path / "b", model_en, about, batch=8, workers=2)
    a, b = Features.open(tmp_path / "a"), Features.open(tmp_path / "b")
    for i, j in zip(a.find(clips), b.find(clips)):
        np.testing.assert_allclose(a.states(i), b.states(j), rtol=1e-4, atol=1e-4)


def test_clips_that_cannot_be_read_are_told_and_left_out_T4(model_en, clips, tmp_path):
    """T4: features that are missing must not turn into zeros."""
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "blip.wav", np.ones(100) * 0.1, SAMPLE_RATE)
    bad = [Clip(tmp_path / f"{name}.wav", ()) for name in ("text", "empty", "blip", "gone")]
    bad.append(replace(clips[0], start=5.0, end=6.0))
    told = extract([bad[0], *clips[:2], *bad[1:]], tmp_path / "f", model_en, describe("random", model_en))
    assert [entry.clip for entry in told] == bad
    assert "empty" in told[1].reason
    assert "too short" in told[2].reason
    assert "0.70 s long" in told[4].reason
    features = Features.open(tmp_path / "f")
    assert len(features) == 2
    assert (features.find(bad) == -1).all()


def test_a_part_of_a_file_is_that_part(clips):
    whole = load_part(clips[1])
    np.testing.assert_array_equal(load_part(replace(clips[1], start=1.0, end=2.5)), whole[16000:40000])
    np.testing.assert_array_equal(load_part(replace(clips[1], start=2.0)), whole[32000:])


def test_states_that_are_there_are_not_computed_again(model_en, clips, tmp_path, monkeypatch):
    about = describe("random", model_en)
    extract(clips[:2], tmp_path / "f", model_en, about)
    encoded = []
    real = extraction.encode
    monkeypatch.setattr(extraction, "encode", lambda m, mels, w: encoded.append(len(mels)) or real(m, mels, w))
    extract(clips[:3], tmp_path / "f", model_en, about)
    assert encoded == [1]
    extract(clips[:3], tmp_path / "f", model_en, about)
    assert encoded == [1]


def test_a_file_that_changed_is_heard_again(model_en, tmp_path):
    clip = Clip(tmp_path / "a.wav", ())
    soundfile.write(clip.path, noise(1), SAMPLE_RATE)
    about = describe("random", model_en)
    extract([clip], tmp_path / "f", model_en, about)
    soundfile.write(clip.path, noise(2, 1), SAMPLE_RATE)
    assert Features.open(tmp_path / "f").find([clip]).tolist() == [-1]
    extract([clip], tmp_path / "f", model_en, about)
    features = Features.open(tmp_path / "f")
    assert len(features) == 1
    assert features.n_steps.tolist() == [5]


ABOUT = About("m", "sha", "30", 0.0, 2, 3)


def states(i: int, steps: int = 4) -> np.ndarray:
    return (np.arange(2 * steps * 3).reshape(2, steps, 3) + 100 * i).astype(np.float32)


def filled(folder, n=5, about=ABOUT, close=True) -> FeatureWriter:
    writer = FeatureWriter(folder, about)
    for i in range(n):
        writer.add(Clip(folder.parent / f"{i}.wav", ()), states(i, 4 + i))
        if i % 2:
            writer.flush()
    if close:
        writer.__exit__()
    return writer


def test_what_is_written_is_read(tmp_path):
    filled(tmp_path / "f")
    features = Features.open(tmp_path / "f")
    assert features.n_steps.tolist() == [4, 5, 6, 7, 8]
    for i in range(5):
        np.testing.assert_array_equal(features.states(i), states(i, 4 + i))
    assert isinstance(features.states(0).base, np.memmap)


def test_batches_cut_and_go_round(tmp_path):
    """D5: a clip that is too short is repeated, never filled with zeros."""
    filled(tmp_path / "f")
    features = Features.open(tmp_path / "f")
    found = features.batch([0, 2], 5, [2, 1])
    assert found.dtype == torch.float32
    assert found.shape == (2, 2, 5, 3)
    np.testing.assert_array_equal(found[0], states(0)[:, [2, 3, 0, 1, 2]])
    np.testing.assert_array_equal(found[1], states(2, 6)[:, 1:6])


def test_a_killed_writer_loses_only_what_it_was_filling(tmp_path):
    writer = filled(tmp_path / "f", close=False)  # 2 shards, and one clip in memory
    writer._lock.close()
    index = tmp_path / "f" / "index.jsonl"
    for torn in ("", '{"key": "/x/4.wav", "shard": 2, "position": 0, "steps": 8, "size": 0, "mtime": 0}\n', '{"key'):
        with open(index, "a") as file:
            file.write(torn)
        assert len(Features.open(tmp_path / "f")) == 4
    with FeatureWriter(tmp_path / "f", ABOUT) as again:
        assert len(again.done) == 4
        again.add(Clip(tmp_path / "4.wav", ()), states(4))
    features = Features.open(tmp_path / "f")
    assert len(features) == 5
    np.testing.assert_array_equal(features.states(4), states(4))


def test_a_damaged_shard_is_refused(tmp_path):
    filled(tmp_path / "f")
    shard = tmp_path / "f" / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    features = Features.open(tmp_path / "f")
    features.states(0)
    with pytest.raises(ValueError, match="SHA-256"):
        features.states(2)
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="bytes"):
        Features.open(tmp_path / "f", verify=False).states(2)
    shard.unlink()
    with pytest.raises(ValueError, match="missing"):
        Features.open(tmp_path / "f").states(2)


def test_a_damaged_index_is_refused(tmp_path):
    filled(tmp_path / "f")
    index = tmp_path / "f" / "index.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="damaged"):
        Features.open(tmp_path / "f")


def test_other_encoders_folders_and_writers_are_refused(tmp_path):
    writer = filled(tmp_path / "f", close=False)
    with pytest.raises(ValueError, match="another process"):
        FeatureWriter(tmp_path / "f", ABOUT)
    writer.__exit__()
    with pytest.raises(ValueError, match="encoder_sha256"):
        FeatureWriter(tmp_path / "f", replace(ABOUT, encoder_sha256="other"))
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "letter.txt").write_text("hello")
    with pytest.raises(ValueError, match="not empty"):
        FeatureWriter(tmp_path / "g", ABOUT)
    with pytest.raises(ValueError, match="holds no features"):
        Features.open(tmp_path / "g")
    with pytest.raises(FileNotFoundError):
        Features.open(tmp_path / "h")


def test_numbers_that_half_precision_lacks_are_refused(tmp_path):
    with FeatureWriter(tmp_path / "f", ABOUT) as writer:
        with pytest.raises(ValueError, match="whisper-at features --dtype float32"):
            writer.add(Clip(tmp_path / "a.wav", ()), states(0) + 1e6)
        with pytest.raises(ValueError, match="no numbers"):
            writer.add(Clip(tmp_path / "a.wav", ()), states(0) * np.nan)
        with pytest.raises(ValueError, match="2, steps, 3"):
            writer.add(Clip(tmp_path / "a.wav", ()), states(0).transpose(2, 1, 0))
    with FeatureWriter(tmp_path / "g", replace(ABOUT, dtype="float32")) as writer:
        writer.add(Clip(tmp_path / "a.wav", ()), states(0) + 1e6)
    np.testing.assert_array_equal(Features.open(tmp_path / "g").states(0), states(0) + 1e6)


def test_features_that_moved_are_found_by_name(tmp_path):
    filled(tmp_path / "f", 2)
    features = Features.open(tmp_path / "f")
    assert features.find([Clip(tmp_path / "other" / "1.flac", ()), Clip(tmp_path / "7.wav", ())]).tolist() == [1, -1]
    assert features.find([Clip(tmp_path / "1.wav", (), start=1.0)]).tolist() == [-1]


def test_a_clip_never_gets_the_states_of_another_file_of_its_name(tmp_path):
    sizes = {"dog/6.wav": 1.0, "rain/6.wav": 2.0, "moved/6.wav": 1.0}
    clips = {name: Clip(tmp_path / name, ()) for name in sizes}
    for name, seconds in sizes.items():
        (tmp_path / name).parent.mkdir()
        soundfile.write(tmp_path / name, noise(seconds), SAMPLE_RATE)
    with FeatureWriter(tmp_path / "f", ABOUT) as writer:
        writer.add(clips["dog/6.wav"], states(0))
    features = Features.open(tmp_path / "f")
    assert features.find([clips["rain/6.wav"]]).tolist() == [-1]
    assert features.find([clips["moved/6.wav"]]).tolist() == [-1]  # that may be a copy, but the other is still there
    (tmp_path / "dog/6.wav").unlink()
    assert features.find([clips["rain/6.wav"]]).tolist() == [-1]  # of another size
    assert features.find([clips["moved/6.wav"]]).tolist() == [0]
    assert features.find(list(clips.values())).tolist() == [0, -1, -1]  # which of them moved?
    np.savez(tmp_path / "dog" / "6.npz", arr_0=states(0))
    npz = Features.open(tmp_path / "dog")
    assert npz.find([clips["rain/6.wav"]]).tolist() == [0]
    assert npz.find([clips["rain/6.wav"], clips["moved/6.wav"]]).tolist() == [-1, -1]


def test_short_keys_keep_dots_and_parts():
    assert short_key("/a/Y1.b#c.wav") == "Y1.b#c"
    assert short_key(key_of(Clip(os.path.abspath("d.x/Y1.wav"), (), start=1.5, end=3.0))) == "Y1#1.5-3.0"


def test_npz_goes_both_ways(tmp_path):
    """Spec section 3.1: ``arr_0`` of ``[L, 25, d]`` in a file called as the audio is."""
    filled(tmp_path / "f")
    features = Features.open(tmp_path / "f")
    assert write_npz(features, tmp_path / "npz") == 5
    array = np.load(tmp_path / "npz" / "3.npz")["arr_0"]
    assert array.dtype == np.float16
    np.testing.assert_array_equal(array, states(3, 7))
    back = Features.open(tmp_path / "npz")
    assert back.n_steps.tolist() == features.n_steps.tolist()
    assert back.about.layers == 2
    assert back.about.dim == 3
    assert back.find([Clip(tmp_path / "elsewhere" / "3.flac", ())]).tolist() == [3]
    torch.testing.assert_close(back.batch([1, 4], 6), features.batch([1, 4], 6))


def test_npz_of_one_name_are_refused(tmp_path):
    with FeatureWriter(tmp_path / "f", ABOUT) as writer:
        for folder in "ab":
            writer.add(Clip(tmp_path / folder / "same.wav", ()), states(0))
    with pytest.raises(ValueError, match="same name"):
        write_npz(Features.open(tmp_path / "f"), tmp_path / "npz")
    assert not (tmp_path / "npz").exists()


def test_a_small_disk_is_refused_before_any_work(model_en, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(
        extraction.shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(9, 9, 1000)
    )
    monkeypatch.setattr(extraction, "encode", lambda *_: pytest.fail("encoded"))
    with pytest.raises(RuntimeError, match="larger disk"):
        extract(clips, tmp_path / "f", model_en, describe("random", model_en, "10"))


def test_time_and_space_are_told_from_the_first_clips(model_en, clips, tmp_path):
    told: list[str] = []
    many = [replace(clips[1], start=i / 10) for i in range(8)]
    extract(many, tmp_path / "f", model_en, describe("random", model_en), batch=1, say=told.append)
    assert len(told) == 1
    assert "8 clips" in told[0]
    assert "on disk" in told[0]


def test_time_and_space_are_told_before_most_of_the_work_and_of_many_clips_again(model_en, clips, tmp_path):
    encoded, told = [], []
    model_en.encode = lambda mel, windows: encoded.append(len(mel)) or type(model_en).encode(model_en, mel, windows)

    def say(line: str) -> None:
        told.append((line, sum(encoded)))

    some = [replace(clips[0], start=i / 1000) for i in range(150)]
    extract(some[:20], tmp_path / "few", model_en, describe("random", model_en), say=say)
    assert [n for _, n in told] == [2]
    assert encoded == [1, 1, 16, 2]
    assert "20 clips: about" in told[0][0]
    encoded.clear(), told.clear()
    extract(some, tmp_path / "many", model_en, describe("random", model_en), batch=4, say=say)
    assert [n for _, n in told] == [2, 14]


@pytest.mark.parametrize(("protocol", "seconds"), [("20", None), ("10", 31), ("10", 5.01), ("30", 5), ("10", -1)])
def test_wrong_protocols_are_refused(model_en, protocol, seconds):
    with pytest.raises(ValueError, match="protocol|seconds"):
        describe("random", model_en, protocol, seconds)


def test_the_command(checkpoint, clips, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("".join(f"{clip.path}\n" for clip in clips[:2]) + "gone.wav\n")
    options = ["--model", str(checkpoint), "--device", "cpu", "--workers", "0"]
    source, out = str(tmp_path / "list.txt"), str(tmp_path / "f")
    assert features_command.main([source, *options, "-o", out, "--protocol", "10"]) == 1
    captured = capsys.readouterr()
    assert "2 clips, 50 steps" in captured.out
    assert "gone.wav" in captured.err
    about = json.loads((tmp_path / "f" / "features.json").read_text())
    assert about["protocol"] == "10"
    assert about["layers"] == 2
    assert about["dim"] == 64
    assert features_command.main([out, "--to", "npz", "-o", str(tmp_path / "npz")]) == 0
    assert np.load(tmp_path / "npz" / "0.npz")["arr_0"].shape == (2, 25, 64)
    back = ["--to", "shards", "--protocol", "10", "-o", str(tmp_path / "g")]
    assert features_command.main([str(tmp_path / "npz"), *options, *back]) == 0
    assert Features.open(tmp_path / "g").find(clips[:2]).tolist() == [0, 1]
    (tmp_path / "npz" / "snare #1.npz").write_bytes((tmp_path / "npz" / "1.npz").read_bytes())
    (tmp_path / "npz" / "snare #2.npz").write_bytes((tmp_path / "npz" / "1.npz").read_bytes())
    for _ in range(2):  # the second time, all is there
        assert features_command.main([str(tmp_path / "npz"), *options, *back]) == 0
    assert {path.name for path in (tmp_path / "g").glob("*.safetensors")} == {
        f"shard-0000{i}.safetensors" for i in "01"
    }
    named = [clips[0], *(Clip(tmp_path / f"snare #{i}.wav", ()) for i in (1, 2))]
    assert Features.open(tmp_path / "g").find(named).tolist() == [0, 2, 3]
    for wrong in (["nowhere", *options, "-o", out], [source, "-o", out], [source, *options, "-o", source]):
        with pytest.raises(SystemExit) as caught:
            features_command.main(wrong)
        assert caught.value.code == 2


def test_a_flat_folder_goes_on_with_its_features_in_it(checkpoint, tmp_path, capsys):
    recordings = tmp_path / "recordings"
    for name in (".hidden", "empty"):
        (recordings / name).mkdir(parents=True)
    soundfile.write(recordings / ".hidden" / "b.wav", noise(1, 1), SAMPLE_RATE)
    for n, name in enumerate(("a", "c"), 1):
        soundfile.write(recordings / f"{name}.wav", noise(1, n), SAMPLE_RATE)
        options = ["--model", str(checkpoint), "--device", "cpu", "--workers", "0", "-o", str(recordings / "f")]
        assert features_command.main([str(recordings), *options]) == 0
        assert f"{n} clips" in capsys.readouterr().out


def test_a_store_of_other_hearings_is_refused(model_en, clips, tmp_path):
    """Stores of protocol 30+ that were made before clips were heard in company do not say how often they were."""
    extract(clips[:1], tmp_path / "f", model_en, about := describe("random", model_en, "30+"))
    path = tmp_path / "f" / "features.json"
    written = json.loads(path.read_text())
    assert written.pop("hearings") == about.hearings == 4
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match="with hearings = 1, not 4; choose another folder"):
        extract(clips, tmp_path / "f", model_en, about)
