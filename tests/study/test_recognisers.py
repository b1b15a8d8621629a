"""Recognisers by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from study_data import RATE, tone

from whisper_at.study.recognisers import load_recogniser, parse_recogniser


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nano.en", "give kind:model"),
        ("kaldi:x", "give kind:model"),
        ("whisper_at:tinny.en", "did you mean 'tiny.en'"),
        ("whisper:nano.en", "no file or model has that name"),  # openai-whisper has no such name
        ("ctc:nothing", "neither a folder nor an id"),
    ],
)
def test_unknown_recognisers_are_rejected_before_loading(name, message):
    with pytest.raises(ValueError, match=message):
        parse_recogniser(name)


def test_whispers_transcribe_english_with_all_defaults(monkeypatch):
    class Model:
        device = torch.device("cpu")

        def transcribe(self, audio, **options):
            assert options == {"language": "en", "fp16": False}  # the latter is the CPU's only precision anyway
            return {"text": f" {len(audio)} samples"}

    monkeypatch.setattr("whisper.load_model", lambda name, device: Model())
    monkeypatch.setattr("whisper_at.loading.load_model", lambda name, device, head: Model())
    for name in ("whisper_at:nano.en", "whisper:tiny.en"):
        assert load_recogniser(name, "cpu")(tone(0.1)).strip() == "1600 samples"


def test_ctc_is_decoded_greedily(tmp_path):
    import json

    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C"]
    (tmp_path / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_stride=(160, 2), conv_kernel=(320, 2), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    network = Wav2Vec2ForCTC(config).eval()
    network.save_pretrained(tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))).save_pretrained(tmp_path)
    audio = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    with torch.no_grad():
        normal = torch.from_numpy((audio - audio.mean()) / np.sqrt(audio.var() + 1e-7))[None]
        best = network(normal).logits[0].argmax(-1).tolist()
    symbols = [letters[a] for a, b in zip(best, [None, *best]) if a != b]  # repeats fall together, then blanks go
    wanted = "".join(s for s in symbols if s not in ("<pad>", "<s>", "</s>")).replace("|", " ").strip()
    assert load_recogniser(f"ctc:{tmp_path}", "cpu")(audio).replace("<s>", "").replace("</s>", "") == wanted
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match="does not load: .*") as error:
        load_recogniser(f"ctc:{tmp_path / 'empty'}", "cpu")
    assert "\n" not in str(error.value)
