"""Adapted classifiers that are attached to a model and classify the recordings that it transcribes."""

import pytest
import torch
from conftest import noise

import whisper_at
from whisper_at import checkpoints
from whisper_at.adapt import AudioClassifier
from whisper_at.adapt.backbones import whisper_backbone
from whisper_at.tagging.listeners import StateClassifier, WaveformClassifier

MOODS = ("calm", "angry", "sad")
SETTINGS = {"language": "en", "temperature": 0.0, "logprob_threshold": None, "sample_len": 12, "at_time_res": 2}
SHARED_PASS = [{}, {"layers": "weighted"}, {"head": "tl_tr"}]
OWN_PASS = [
    {"methods": {"name": "lora", "rank": 4}},
    {"layers": "weighted_conv"},
    {"pooling": "mean_max"},
    {"head": "conv", "layers": "weighted"},
]


def make_classifier(model, **options) -> AudioClassifier:
    torch.manual_seed(5)
    classifier = AudioClassifier(whisper_backbone(model.encoder), options.pop("methods", ()), MOODS, **options)
    for parameter in classifier.parameters():
        if parameter.requires_grad:  # as after training
            torch.nn.init.normal_(parameter, std=0.1)
    return classifier.eval()


@pytest.mark.parametrize("options", SHARED_PASS)
def test_a_head_on_the_plain_encoder_needs_no_pass_of_its_own(model_en, options):
    classifier = make_classifier(model_en, **options)
    audio = noise(20)
    passes = []
    model_en.encoder.register_forward_hook(lambda *_: passes.append(1))
    without = model_en.transcribe(audio, **SETTINGS)
    once = len(passes)
    model_en.attach("mood", classifier)
    assert isinstance(model_en.attached["mood"], StateClassifier)
    result = model_en.transcribe(audio, **SETTINGS)
    assert len(passes) == 2 * once
    assert result["segments"] == without["segments"]
    assert result["mood"]["classes"] == list(MOODS)
    assert result["mood"]["kind"] == "single_label"

    # row 3 by hand: hidden states of the window, its frames from 6 to 8 s
    mel = whisper_at.pad_or_trim(whisper_at.log_mel_spectrogram(audio, padding=480000)[:, :2000], 3000)[None]
    states = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: states.append(out)) for b in model_en.encoder.blocks]
    with torch.no_grad():
        states[-1:] = [model_en.encoder(mel)]
        hidden = torch.stack(states, 1)[:, :, 300:400]
        if classifier._options["head"] == "tl_tr":
            values = hidden.unflatten(2, (5, 20)).mean(3)
        else:
            values = hidden.mean(2, keepdim=True)
            values = values if "layers" in options else values[:, -1:]
        expected = classifier.head(values, torch.ones(1, values.shape[2], dtype=torch.bool))[0]
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(result["mood"]["logits"][3], expected, atol=1e-4, rtol=1e-4)


def test_states_are_moved_to_the_device_of_the_head(model_en):
    """In whatever type the model and the classifier are; its logits come back to where the states are."""
    classifier = make_classifier(model_en)
    reader = classifier.on_states(model_en)
    states = torch.randn(2, len(model_en.encoder.blocks) + 1, 5, classifier.backbone.width)
    wanted = reader(states)
    classifier.double()
    torch.testing.assert_close(reader(states).float(), wanted)
    assert classifier.to("meta")
    assert reader(states.to("meta")).device.type == "meta"


@pytest.mark.parametrize("options", OWN_PASS)
def test_methods_that_change_the_encoder_need_a_pass_of_their_own(model_en, options):
    classifier = make_classifier(model_en, **options)
    audio = noise(9)
    without = model_en.transcribe(audio, **SETTINGS)
    model_en.attach("mood", classifier)
    assert model_en.attached["mood"] is classifier
    assert isinstance(classifier, WaveformClassifier)
    result = model_en.transcribe(audio, **SETTINGS)
    assert (result["text"], result["segments"]) == (without["text"], without["segments"])
    assert torch.equal(result["audio_tag"], without["audio_tag"])
    pieces = [torch.from_numpy(audio[i * 32000 : (i + 1) * 32000])[None] for i in range(5)]
    expected = torch.cat([classifier.logits(piece, torch.tensor([piece.shape[1]])) for piece in pieces])
    torch.testing.assert_close(result["mood"]["logits"], expected, atol=1e-4, rtol=1e-4)
    assert result["mood"]["segments"].shape == (len(result["segments"]), 3)
    likely = [(row, MOODS[i]) for row, i in (expected.softmax(-1) > 0.5).nonzero().tolist()]
    events = whisper_at.find_events(result, hysteresis=0, head="mood")
    assert likely
    assert {event["name"] for event in events} == {name for _, name in likely}
    for row, name in likely:
        assert any(e["name"] == name and e["start"] <= 2 * row and e["end"] >= min(2 * row + 2, 9) for e in events)


def test_another_encoder_needs_a_pass_of_its_own(model_en, model_multilingual):
    model_en.attach("mood", classifier := make_classifier(model_multilingual))
    assert model_en.attached["mood"] is classifier


def test_short_and_long_spans_are_padded_and_cut(model_en):
    classifier = make_classifier(model_en, seconds=2.0, pad=True, pooling="mean_max")
    audio = torch.from_numpy(noise(5))
    cut = classifier.logits(audio[None], torch.tensor([80000]))
    torch.testing.assert_close(cut, classifier(audio[None, :32000], torch.tensor([32000])))
    tiny = classifier.logits(audio[None, :10], torch.tensor([10]))
    padded = torch.nn.functional.pad(audio[None, :10], (0, 31990))
    torch.testing.assert_close(tiny, classifier(padded, torch.tensor([32000])))


def test_a_fitted_file_attaches_by_its_name(tmp_path):
    nano = whisper_at.load_model("nano.en", device="cpu")
    fitted = AudioClassifier("nano.en", {"name": "lora", "rank": 2}, MOODS, kind="multi_label")
    fitted.save(tmp_path / "mood.safetensors")
    loaded = whisper_at.load_model("nano.en", device="cpu", head=["auto", tmp_path / "mood.safetensors"])
    audio = noise(6)
    result = loaded.transcribe(audio, at_time_res=2)
    assert result["text"] == nano.transcribe(audio)["text"]
    assert result["audio_tag"].shape == (3, 527)
    assert result["mood"]["kind"] == "multi_label"
    assert result["mood"]["logits"].shape == (3, 3)
    nano.attach("mood", tmp_path / "mood.safetensors")
    torch.testing.assert_close(nano.transcribe(audio, at_time_res=2)["mood"]["logits"], result["mood"]["logits"])


def test_the_encoder_of_a_file_is_looked_for_in_download_root(tmp_path, monkeypatch):
    """It was looked for in the cache, and fetched, though `download_root` had it."""
    AudioClassifier("nano.en", {"name": "lora", "rank": 2}, MOODS).save(tmp_path / "mood.safetensors")
    real, asked = checkpoints.find_whisper, []

    def find(name, download_root=None):
        asked.append(download_root)
        return real(name, download_root)

    monkeypatch.setattr(checkpoints, "find_whisper", find)
    whisper_at.load_model("nano.en", "cpu", download_root=str(tmp_path), head=tmp_path / "mood.safetensors")
    assert asked == [str(tmp_path)] * 2
