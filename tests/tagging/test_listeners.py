"""Heads and listeners of one's own beside the AudioSet head."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import SAMPLE_RATE, noise

import whisper_at
from whisper_at import cli
from whisper_at.checkpoints import save_safetensors
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import PREFIX, build_head, make_head
from whisper_at.tagging.listeners import StateClassifier, classify_spans, span_logits
from whisper_at.tagging.rows import TagOptions, select_tags
from whisper_at.windows import Window
from whisper_at.writers import result_to_json

BIRDS = ClassSet(("wren", "owl", "swift"), "single_label", temperature=2.0)
ENGINES = ClassSet(("car", "train"), thresholds=(0.4, math.inf))
SETTINGS = {"language": "en", "temperature": 0.0, "logprob_threshold": None, "sample_len": 12}


def own_head(classes: ClassSet, seed: int = 0):
    torch.manual_seed(seed)
    head = make_head("mean_mlp", n_layer=2, rep_dim=64, label_dim=len(classes.names))
    head.classes = classes
    return head.eval()


def head_file(path, classes: ClassSet, n_layer: int = 2, rep_dim: int = 64, **extra):
    head = make_head("tl_tr_1_8", n_layer=n_layer, rep_dim=rep_dim, label_dim=len(classes.names))
    tensors = {PREFIX + name: tensor for name, tensor in head.state_dict().items()}
    save_safetensors(tensors, path, {"mode": "tl_tr_1_8", "n_layer": str(n_layer)} | classes.metadata() | extra)
    return path


class Loudness:
    """A listener whose logits say how loud and how long what it heard was."""

    classes = ("loud", "long")
    kind = "multi_label"
    sample_rate = SAMPLE_RATE

    def __init__(self):
        self.batches: list[tuple[int, ...]] = []

    def logits(self, waveforms, lengths):
        self.batches.append(tuple(lengths.tolist()))
        return torch.stack([waveforms.abs().sum(1) / lengths, lengths / SAMPLE_RATE], dim=1)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}])
def test_heads_hear_the_same_pass_and_the_text_stays(model_en, options):
    audio, settings = noise(47), SETTINGS | {"at_time_res": 4}
    passes = []
    model_en.encoder.register_forward_hook(lambda *_: passes.append(1))
    without = model_en.transcribe(audio, **settings, **options)
    passes_without = len(passes)
    birds, engines = own_head(BIRDS), own_head(ENGINES, seed=1)
    model_en.attach("birds", birds)
    model_en.attach("engines", engines)
    result = model_en.transcribe(audio, **settings, **options)
    assert (result["text"], result["segments"]) == (without["text"], without["segments"])
    assert torch.equal(result["audio_tag"], without["audio_tag"])
    assert len(passes) == 2 * passes_without
    assert result["birds"]["classes"] == ["wren", "owl", "swift"]
    assert result["engines"]["kind"] == "multi_label"
    assert result["birds"]["logits"].shape == (12, 3)
    assert result["engines"]["logits"].shape == (12, 2)
    assert result["birds"]["segments"].shape == (len(result["segments"]), 3)

    model_en.attached.clear()
    model_en.head = birds  # the same head in AudioSet's place gives the same rows
    assert torch.equal(model_en.transcribe(audio, **settings, **options)["audio_tag"], result["birds"]["logits"])


def test_a_segment_is_made_of_the_steps_that_it_touches():
    head = own_head(BIRDS)
    states = torch.randn(2, 75, 64)
    window = Window(1200, 2000)  # 12 to 32 s: steps 30 to 79
    found = span_logits(head, 3, window, states, 13.3, 14.1)
    torch.testing.assert_close(found, head(states[None, :, 3:6])[0], rtol=0, atol=0)  # 13.2–14.4 s
    at_the_end = span_logits(head, 3, window, states, 31.9, 40.0)
    torch.testing.assert_close(at_the_end, head(states[None, :, 49:50])[0], rtol=0, atol=0)
    torch.testing.assert_close(span_logits(head, 3, window, states, 12.0, 12.0), head(states[None, :, :1])[0])
    assert span_logits(head, 3, Window(0, 10), states.fill_(math.nan), 0, 0.1).isnan().all()


def test_a_listener_hears_rows_and_segments_in_its_own_pass(model_en, tmp_path):
    audio = noise(25)
    settings = SETTINGS | {"at_time_res": [10, 2]}
    without = model_en.transcribe(audio, **settings)
    model_en.attach("level", Loudness())
    result = model_en.transcribe(audio, **settings)
    assert (result["text"], result["segments"]) == (without["text"], without["segments"])
    rows = result["level"]["logits"]
    assert rows[10.0].shape == (3, 2)
    assert rows[2.0].shape == (13, 2)
    np.testing.assert_allclose(rows[10.0][:, 1], [10, 10, 5])
    for i in range(13):
        piece = audio[i * 2 * SAMPLE_RATE : (i + 1) * 2 * SAMPLE_RATE]
        np.testing.assert_allclose(rows[2.0][i, 0], np.abs(piece).mean(), rtol=1e-5)
    for segment, logits in zip(result["segments"], result["level"]["segments"]):
        if segment["end"] > segment["start"]:
            np.testing.assert_allclose(logits[1], min(segment["end"], 25) - segment["start"], atol=1e-4)


def test_a_listener_may_read_the_models_own_pass(model_en):
    """A reader sees pooled states, and behind them those after the encoder's last norm; heads see what they saw."""

    class Lazy(Loudness):
        def on_states(self, model):
            return StateClassifier(ClassSet(self.classes), lambda states: states.mean(2).flatten(1)[:, [0, -1]])

    audio, settings = noise(20), SETTINGS | {"at_time_res": 0.4}
    model_en.attach("birds", own_head(BIRDS))
    without = model_en.transcribe(audio, **settings)
    model_en.attach("lazy", Lazy())
    for options in ({}, {"batch_size": 1}):
        result = model_en.transcribe(audio, **settings, **options)
        torch.testing.assert_close(result["audio_tag"], without["audio_tag"])
        torch.testing.assert_close(result["birds"]["logits"], without["birds"]["logits"])
        mel = whisper_at.log_mel_spectrogram(audio, padding=480000)[:, :2000]
        features, states = model_en.encode(whisper_at.pad_or_trim(mel, 3000)[None], [Window(0, 2000)])
        expected = torch.stack([states[0, 0, :50, 0], features[0, :1000].view(50, 20, -1).mean(1)[:, -1]], 1)
        torch.testing.assert_close(result["lazy"]["logits"], expected, atol=1e-4, rtol=1e-4)


def test_long_spans_are_heard_in_parts_and_empty_ones_are_nan():
    audio, listener = noise(70), Loudness()
    found = classify_spans(listener, audio, [(0, 70), (69, 80), (71, 75), (3, 3)], batch_size=2)
    np.testing.assert_allclose(found[0], [np.abs(audio).mean(), 70 / 3], rtol=1e-5)
    np.testing.assert_allclose(found[1, 1], 1.0)
    assert found[2:].isnan().all()
    assert all(len(batch) <= 2 for batch in listener.batches)


def test_spans_of_files(tmp_path):
    import wave

    audio = (noise(3) * 32767).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(SAMPLE_RATE)
        file.writeframes(audio.tobytes())
    from_file = classify_spans(Loudness(), tmp_path / "a.wav", [(0, 1), (1, 3)])
    torch.testing.assert_close(from_file, classify_spans(Loudness(), audio / np.float32(32768), [(0, 1), (1, 3)]))


def test_only_own_heads(model_en):
    model_en.head = None
    model_en.attach("birds", own_head(BIRDS))
    result = model_en.transcribe(noise(9), **SETTINGS)
    assert "audio_tag" not in result
    assert result["at_time_res"] == 10.0
    assert result["audio_tag_coverage"].shape == (1,)
    assert result["birds"]["logits"].shape == (1, 3)
    assert "birds" not in model_en.transcribe(noise(9), **SETTINGS, at_time_res=None)
    with pytest.raises(ValueError, match="carries no audio tags"):
        whisper_at.parse_at_label(result)
    model_en.detach("birds")
    with pytest.raises(ValueError, match="cannot tag sounds"):
        model_en.transcribe(noise(9), language="en", at_time_res=10)


def test_load_model_takes_several_heads(checkpoint, tmp_path):
    birds, engines = (head_file(tmp_path / f"{n}.safetensors", c) for n, c in (("birds", BIRDS), ("e.head", ENGINES)))
    model = whisper_at.load_model(str(checkpoint), device="cpu", head=[birds, str(engines)])
    assert list(model.attached) == ["birds", "e"]
    assert model.head is None
    assert model.attached["birds"].classes == BIRDS
    assert model.attached["e"].classes == ENGINES
    with pytest.raises(ValueError, match="'birds' cannot be the name"):
        whisper_at.load_model(str(checkpoint), device="cpu", head=[birds, birds])
    foreign = head_file(tmp_path / "foreign.safetensors", BIRDS, encoder_sha256="0" * 64)
    with pytest.warns(UserWarning, match="foreign.safetensors was trained on another encoder"):
        model.attach("foreign", foreign)


def test_a_head_without_names_is_audiosets_or_refused(checkpoint, tmp_path):
    """Else a whole recording was transcribed before its rows were found to be of other classes."""
    head = make_head("tl_tr_1_8", n_layer=2, rep_dim=64, label_dim=50)
    path = tmp_path / "esc50.pth"
    torch.save(head.state_dict(), path)
    with pytest.raises(ValueError, match="esc50.pth has 50 outputs without names, not AudioSet's 527"):
        whisper_at.load_model(str(checkpoint), device="cpu", head=str(path))


def test_listeners_go_where_the_model_goes(model_en):
    class Own(torch.nn.Module):
        classes, kind, sample_rate = BIRDS.names, "single_label", SAMPLE_RATE

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

        def logits(self, waveforms, lengths):
            return self.weight.expand(len(waveforms), 3)

    model_en.attach("own", Own())
    model_en.to("meta")
    assert model_en.attached["own"].weight.device.type == "meta"


def test_what_cannot_be_attached_is_refused(model_en, tmp_path):
    for name in ("text", "audio_tag", "", "events"):
        with pytest.raises(ValueError, match="cannot be the name"):
            model_en.attach(name, own_head(BIRDS))
    with pytest.raises(ValueError, match="no names"):
        model_en.attach("tags", make_head("mean_mlp", n_layer=2, rep_dim=64))
    with pytest.raises(ValueError, match="encoders of 3 layers"):
        model_en.attach("birds", head_file(tmp_path / "b.safetensors", BIRDS, n_layer=3))
    with pytest.raises(ValueError, match="neither a head nor a WaveformClassifier"):
        model_en.attach("birds", object())
    assert model_en.attached == {}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"classes": "[1"}, "damaged"),
        ({"classes": '["a", "a"]'}, "different names"),
        ({"classes": '["a", "b"]', "kind": "none"}, "kind must be"),
        ({"classes": '["a", "b"]', "temperature": "0"}, "temperature must be"),
        ({"classes": '["a", "b"]', "thresholds": "[0.5]"}, "1 thresholds for 2"),
        ({"classes": '["a", "b"]'}, "3 outputs"),
    ],
)
def test_damaged_metadata(metadata, message):
    tensors = make_head("tl_tr_1_8", n_layer=2, rep_dim=64, label_dim=3).state_dict()
    with pytest.raises(ValueError, match=message):
        build_head(tensors, metadata, n_layer=2, rep_dim=64)


def test_metadata_come_back():
    for classes in (BIRDS, ENGINES):
        assert ClassSet.from_metadata(classes.metadata()) == classes
        json.loads(classes.metadata()["temperature"])
    assert ClassSet.from_metadata({"classes": "audioset-527"}) is None


def test_heads_may_be_read_by_whom_other_new_files_may(tmp_path):
    path = head_file(tmp_path / "birds.safetensors", BIRDS)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_tags_are_calibrated_and_thresholded():
    nan = math.nan
    logits = np.array([[2.0, 0.0, -2.0], [nan] * 3])
    e = np.exp([1.0, 0.0, -1.0]) / np.exp([1.0, 0.0, -1.0]).sum()
    (row, empty) = select_tags(BIRDS, logits, p_threshold=-30)
    assert [tag["name"] for tag in row] == ["wren", "owl", "swift"]
    assert empty == []
    assert "mid" not in row[0]
    np.testing.assert_allclose([tag["probability"] for tag in row], e)
    assert [tag["logit"] for tag in row] == [2.0, 0.0, -2.0]  # as the head gave them
    assert [tag["name"] for tag in select_tags(BIRDS, logits)[0]] == ["wren"]  # 0.665, 0.245, 0.09 against 0.269
    assert select_tags(BIRDS, np.array([[2.0, 0.0, nan], [nan] * 3]), p_threshold=-30, include="owl")[1] == []

    def names(classes, logits, **options):
        return [tag["name"] for tag in select_tags(classes, np.array([logits]), **options)[0]]

    assert names(ENGINES, [-0.3, 9.0]) == ["car"]  # 0.426 ≥ 0.4; no train is ever sure
    assert names(ENGINES, [-0.3, 9.0], p_threshold=0) == ["train"]
    one_is_right = ClassSet(ENGINES.names, "single_label", thresholds=(0.9, 0.9))  # the likeliest counts
    assert names(one_is_right, [1.5, 0.0]) == ["car"]
    with pytest.raises(ValueError, match="no class 'trian'; did you mean 'train'"):
        ENGINES.indices(["trian"])
    assert ENGINES.indices(["train", 0, "1", "TRAIN"]) == [1, 0, 1, 1]


def test_parse_and_json(model_en):
    model_en.attach("birds", own_head(BIRDS))
    result = model_en.transcribe(noise(25), **SETTINGS, at_time_res=10, no_speech_threshold=None)
    rows = whisper_at.parse_at_label(result, head="birds", p_threshold=-30, top_k=2, probabilities=True)
    assert [row["time"] for row in rows] == [
        {"start": 0.0, "end": 10.0},
        {"start": 10.0, "end": 20.0},
        {"start": 20.0, "end": 25.0},
    ]
    likely = (result["birds"]["logits"] / 2).softmax(-1)
    assert rows[0]["audio tags"][0][1] == pytest.approx(float(likely[0].max()))
    with pytest.raises(ValueError, match="no head 'bird'; attached were: birds"):
        whisper_at.parse_at_label(result, head="bird")
    plain = json.loads(json.dumps(result_to_json(result, TagOptions(1, -30)), allow_nan=False))
    assert plain["birds"]["classes"] == list(BIRDS.names)
    assert [row["tags"][0]["name"] for row in plain["birds"]["rows"]] == [
        BIRDS.names[i] for i in result["birds"]["logits"].argmax(1)
    ]
    assert [(s["start"], s["end"]) for s in plain["birds"]["segments"]] == [
        (s["start"], s["end"]) for s in result["segments"]
    ]
    again = whisper_at.parse_at_label(
        json.loads(
            json.dumps(
                {
                    **result,
                    "audio_tag": None,
                    "audio_tag_coverage": None,
                    "birds": {**result["birds"], "logits": result["birds"]["logits"].tolist(), "segments": []},
                }
            )
        ),
        head="birds",
    )
    assert again == whisper_at.parse_at_label(result, head="birds")


def test_command_line(checkpoint, tmp_path, monkeypatch, capsys):
    import wave

    monkeypatch.chdir(tmp_path)
    head_file(tmp_path / "birds.safetensors", BIRDS)
    head_file(tmp_path / "engines.safetensors", ENGINES)
    with wave.open("a.wav", "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(SAMPLE_RATE)
        file.writeframes((noise(5) * 32767).astype("<i2").tobytes())
    line = f"a.wav --model {checkpoint} --language en --head birds.safetensors --head engines.safetensors -f json"
    options = "--device cpu --fp16 False --temperature 0 --beam_size None --temperature_increment_on_fallback None"
    assert cli.main([*line.split(), *options.split(), "--p_threshold", "-30"]) == 0
    assert "[00:00.000 --> 00:05.000] (birds: " in capsys.readouterr().out
    written = json.loads((tmp_path / "a.json").read_text())
    assert {tag["name"] for tag in written["engines"]["rows"][0]["tags"]} == {"car", "train"}
    assert {(event["head"], event["name"]) for event in written["events"]} == {
        *(("birds", name) for name in BIRDS.names),
        *(("engines", name) for name in ENGINES.names),
    }
    line = line.replace("json", "srt") + " --sound_captions"
    assert cli.main([*line.split(), *options.split(), "--p_threshold", "-30"]) == 0
    captions = (tmp_path / "a.srt").read_text()
    assert all(captions.count(name) == 1 for name in BIRDS.names + ENGINES.names)
