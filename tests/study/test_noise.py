"""Noisy speech and its word errors: ratios, pairing, words, resuming; readers on tiny made folders."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from whisper_at.data import read_folders
from whisper_at.data.utterances import Utterance
from whisper_at.study.config import read_study
from whisper_at.study.mixing import SNRS, mix_at_snr, power
from whisper_at.study.noises import clips_by_class, read_noises
from whisper_at.study.recognisers import load_recogniser, parse_recogniser
from whisper_at.study.transcriptions import (
    CLEAN,
    error_table,
    errors_by_snr,
    read_transcriptions,
    transcribe_noisy,
)
from whisper_at.study.wer import WordErrors, plain_words, whisper_words, word_errors

RATE = 16000


def tone(seconds: float, frequency: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def write_wav(path, audio: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, RATE, (audio * 32767).astype(np.int16))


# --- mixing -------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SNRS), st.integers(1, 3000), st.integers(0, 5))
def test_the_ratio_is_the_one_asked_for_over_whole_clips(snr, length, seed):
    r = np.random.default_rng(seed)
    speech = r.normal(0, 0.1, 1000)
    noise = np.concatenate([r.normal(0, 0.3, length), np.zeros(length)])  # half silence counts (spec section 4.1)
    mixed, factor = mix_at_snr(speech, noise, snr)
    assert mixed.dtype == np.float32
    assert len(mixed) == 1000
    assert factor == 1
    added = mixed.astype(np.float64) - speech
    repeated = np.tile(noise, -(-1000 // len(noise)))[:1000]
    scale = np.sqrt(np.mean(speech**2) / np.mean(noise**2) / 10 ** (snr / 10))
    np.testing.assert_allclose(added, scale * repeated, atol=2e-6 * (1 + scale))
    assert 10 * np.log10(power(speech) / (power(noise) * scale**2)) == pytest.approx(snr)


def test_mixtures_by_hand():
    speech, noise = np.array([1.0, -1, 1, -1]), np.array([2.0, 0])  # powers 1 and 2
    assert mix_at_snr(speech, noise, 0.0).audio == pytest.approx(speech + np.array([2, 0, 2, 0]) / np.sqrt(2))
    assert mix_at_snr(speech, noise, np.inf).audio == pytest.approx(speech)
    guarded = mix_at_snr(speech, noise, 0.0, prevent_clipping=True)
    assert np.abs(guarded.audio).max() == pytest.approx(1)
    assert guarded.factor == pytest.approx(1 / (1 + np.sqrt(2)))
    assert guarded.audio == pytest.approx(mix_at_snr(speech, noise, 0.0).audio * guarded.factor)
    assert mix_at_snr(speech * 0.1, noise, 20.0, prevent_clipping=True).factor == 1  # nothing clips
    assert mix_at_snr(speech, np.zeros(3), 0.0).audio == pytest.approx(speech)  # silence has no level to bring up
    with pytest.raises(ValueError, match="the noise has no samples"):
        mix_at_snr(speech, np.zeros(0), 0.0)


# --- words --------------------------------------------------------------------------------------------------


def test_plain_words_are_the_papers():
    from jiwer import RemovePunctuation

    for text in ("It's well-known, “quoted” … don't", "$5 & 10% – fine", "a.b c;d"):
        assert plain_words(text) == RemovePunctuation()(text.upper()).split()
    assert plain_words("It's well-known") == ["ITS", "WELLKNOWN"]


def test_errors_are_summed_over_all_words():
    # 1 substitution in 2 words, 1 insertion in 1, 3 deletions in 3: 5 of 6, not the mean of 1/2, 1 and 1
    found = word_errors(["a b", "c", "d e f"], ["A x.", "c d", ""])
    assert found == WordErrors(5, 6)
    assert found.rate == pytest.approx(5 / 6)
    assert word_errors(["", "a"], ["b", "a"]) == WordErrors(1, 1)  # words where nothing was said
    assert np.isnan(word_errors([], []).rate)


def test_whispers_normalizer_forgives_what_plain_rules_do_not():
    pair = ["mister smith will not pay twenty dollars"], ["Mr. Smith won't pay $20."]
    assert word_errors(*pair).errors > 0
    assert word_errors(*pair, whisper_words).errors == 0


# --- recognisers and readers --------------------------------------------------------------------------------


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
def test_recognisers_that_do_not_exist_are_refused_before_loading(name, message):
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


def test_ctc_takes_the_likeliest_symbols(tmp_path):
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


def test_esc50_is_read_by_its_table_and_esc10_by_its_folders(tmp_path):
    for name in ("1-100-A-0.wav", "2-200-A-1.wav"):
        write_wav(tmp_path / "esc50" / "audio" / name, tone(0.1))
        write_wav(tmp_path / "esc10" / ("dog" if name[0] == "1" else "rain") / name, tone(0.1))
    (tmp_path / "esc50" / "meta").mkdir()
    (tmp_path / "esc50" / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100-A-0.wav,1,0,dog,True,100,A\n2-200-A-1.wav,2,1,rain,True,200,A\n"
    )
    for folder in ("esc50", "esc10"):
        found = read_noises(tmp_path / folder)
        assert found.classes == ("dog", "rain")
        assert [(c.path.name, c.labels, c.fold, c.group) for c in found.clips] == [
            ("1-100-A-0.wav", ("dog",), "1", "100"),
            ("2-200-A-1.wav", ("rain",), "2", "200"),
        ]
    assert len(read_noises(tmp_path / "esc10", only="2-")) == 1
    with pytest.raises(ValueError, match="name that begins with '9-'"):
        read_noises(tmp_path / "esc10", only="9-")
    with pytest.raises(ValueError, match="class 'dog' has no clips"):
        clips_by_class(read_noises(tmp_path / "esc10", only="2-"))


def test_noises_are_sorted_whatever_order_the_disk_has(tmp_path):
    # Spec section 4.1: the paper's list of noises is in the order of the file system.
    for name in ("b", "a", "c"):
        write_wav(tmp_path / "rain" / f"{name}.wav", tone(0.05))
    data = read_folders(tmp_path)
    shuffled = data.select([2, 0, 1])
    assert [c.path.stem for c in clips_by_class(shuffled)["rain"]] == ["a", "b", "c"]


# --- the experiment -----------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    """Two sentences, noises of two classes (two clips and one), and a recogniser that tells how loud it is."""
    for name in ("rain/1.wav", "rain/2.wav", "wind/1.wav"):
        write_wav(tmp_path / "noise" / name, tone(0.3, 1000 + 100 * int(name[-5])))
    speech = [Utterance(f"u{i}", f"word {i}", lambda i=i: tone(0.5, 300 + i)) for i in range(2)]
    return speech, clips_by_class(read_folders(tmp_path / "noise")), tmp_path / "out" / "noise.csv"


class Ear:
    """A recogniser that says the power of what it hears, and remembers how often it was asked."""

    def __init__(self) -> None:
        self.heard: list[np.ndarray] = []

    def __call__(self, audio: np.ndarray) -> str:
        self.heard.append(audio)
        return f" {power(audio):.4f},\nand \u2028 more "


def test_every_class_meets_every_sentence_at_every_ratio(world):
    speech, noises, path = world
    ear = Ear()
    rows = transcribe_noisy(path, {"ear": lambda: ear}, speech, noises, (0, 20))
    assert len(rows) == len(ear.heard) == 2 + 2 * 2 * 2
    assert read_transcriptions(path) == rows  # the file tells the same, in spite of line ends in what was recognised
    assert [(row.noise, row.snr) for row in rows[:2]] == [(CLEAN, np.inf)] * 2
    pairs = {(row.noise, row.utterance): row.clip for row in rows if row.noise != CLEAN}
    assert pairs == {("rain", "u0"): "1.wav", ("rain", "u1"): "2.wav", ("wind", "u0"): "1.wav", ("wind", "u1"): "1.wav"}
    # Tones of other frequencies add their powers: 1 + 1 at 0 dB, 1 + 0.01 at 20 dB.
    alone = power(speech[0].load())
    for row, audio in zip(rows, ear.heard):
        assert power(audio) == pytest.approx(alone * (1 + 10 ** (-row.snr / 10)), rel=0.02)


def test_a_run_that_was_killed_goes_on(world):
    speech, noises, path = world
    rows = transcribe_noisy(path, {"ear": Ear}, speech, noises, (0, 20))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # four rows, and one that was being written
    assert len(read_transcriptions(path)) == 4
    ear = Ear()
    assert transcribe_noisy(path, {"ear": lambda: ear}, speech, noises, (0, 20)) == rows
    assert len(ear.heard) == len(rows) - 4
    assert path.read_bytes().splitlines(keepends=True) == lines
    # More ratios and recognisers may come later; what is there is not heard again, nor are models loaded for it.
    more = transcribe_noisy(path, {"ear": pytest.fail, "other": Ear}, speech, noises, (0, 20))
    assert len(more) == 2 * len(rows)
    with pytest.raises(ValueError, match="guard = False, not True"):
        transcribe_noisy(path, {"ear": Ear}, speech, noises, (0, 20), prevent_clipping=True)
    with pytest.raises(ValueError, match="no noise to work with"):
        transcribe_noisy(path, {"ear": Ear}, speech, {}, (0, 20))


def test_other_recordings_of_the_same_names_are_another_run(world, tmp_path):
    speech, noises, path = world
    transcribe_noisy(path, {"ear": Ear}, speech, {"rain": noises["rain"][1:]}, (0,))
    kept = path.read_bytes()
    with pytest.raises(ValueError, match=r"holds u0 \(word 0\) with 2.wav, not \(word 0\) with 1.wav"):
        transcribe_noisy(path, {"ear": Ear}, speech, noises, (0,))  # another clip is the first now
    loud = [speech[0], speech[1]._replace(load=lambda: tone(0.5, 700))]
    with pytest.raises(ValueError, match="another recording of u1"):
        transcribe_noisy(path, {"ear": Ear}, loud, {"rain": noises["rain"][1:]}, (0,))
    write_wav(tmp_path / "noise" / "rain" / "2.wav", tone(0.3, 50))
    with pytest.raises(ValueError, match="another recording of rain/2.wav"):
        transcribe_noisy(path, {"ear": Ear}, speech, {"rain": noises["rain"][1:]}, (0,))
    assert path.read_bytes() == kept


def test_a_kept_mixture_is_of_what_is_heard(world, tmp_path):
    speech, noises, path = world
    transcribe_noisy(path, {"ear": Ear}, speech, noises, (0,), mixture_folder=tmp_path / "mixtures")
    ears, other = (Ear(), Ear()), [speech[0]._replace(load=lambda: tone(0.5, 700))]
    for ear, folder in zip(ears, (tmp_path / "mixtures", None)):
        path.unlink()
        transcribe_noisy(path, {"ear": lambda ear=ear: ear}, other, noises, (0,), mixture_folder=folder)
    for a, b in zip(ears[0].heard, ears[1].heard, strict=True):
        np.testing.assert_array_equal(a, b)


def test_mixtures_may_be_kept(world, tmp_path):
    speech, noises, path = world
    plain, kept = Ear(), Ear()
    transcribe_noisy(path, {"ear": lambda: plain}, speech, noises, (-20,))
    folder = tmp_path / "mixtures"
    for ear in (kept, Ear()):  # once written, then read
        other = path.with_name(f"{len(list(folder.glob('*')))}.csv")
        transcribe_noisy(other, {"ear": lambda ear=ear: ear}, speech, noises, (-20,), mixture_folder=folder)
        for a, b in zip(plain.heard, ear.heard, strict=True):
            np.testing.assert_array_equal(a, b)
    names = {p.name for p in folder.iterdir()}
    assert names == {f"-20_{noise}_u{i}_mix_{clip}.wav" for noise, i, clip in
                     [("rain", 0, 1), ("rain", 1, 2), ("wind", 0, 1), ("wind", 1, 1)]}  # fmt: skip
    assert max(np.abs(audio).max() for audio in kept.heard) > 1  # nothing is clipped


def test_a_guard_against_clipping_is_on_record(world):
    speech, noises, path = world
    ear = Ear()
    rows = transcribe_noisy(path, {"ear": lambda: ear}, speech, noises, (-20,), prevent_clipping=True)
    assert all(np.abs(audio).max() <= 1 + 1e-6 for audio in ear.heard)
    assert all(row.factor < 1 for row in rows if row.noise != CLEAN)
    assert read_transcriptions(path)[-1].factor == pytest.approx(rows[-1].factor, rel=1e-5)


def test_rates_by_class_and_ratio(world):
    speech, noises, path = world
    said = iter(["word 0", "word 1", "word", "word 1", "", "word 1 2"])
    transcribe_noisy(path, {"x": lambda: lambda audio: next(said)}, speech, noises, (5,))
    table = error_table(read_transcriptions(path))
    assert table == {
        ("x", CLEAN, np.inf): WordErrors(0, 4),
        ("x", "rain", 5.0): WordErrors(1, 4),
        ("x", "wind", 5.0): WordErrors(3, 4),
    }
    assert errors_by_snr(table, "x") == {5.0: WordErrors(4, 8), np.inf: WordErrors(0, 4)}
    assert errors_by_snr(table, "y") == {}


def test_another_kind_of_file_is_not_added_to(world):
    speech, noises, path = world
    path.parent.mkdir()
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="holds no results of this study"):
        transcribe_noisy(path, {"ear": Ear}, speech, noises, (0,))
    assert path.read_text() == "a,b\n1,2\n"


def test_the_recipes_data_are_what_nano_en_was_not_trained_on(data, monkeypatch):
    from recipes.nano.data import HELD_OUT_TAKES, SOUNDS, read_esc10

    monkeypatch.setattr("recipes.nano.data.read_audio", lambda path: np.zeros(1, np.int16))  # names are enough
    study = read_study(os.path.join(os.path.dirname(__file__), "..", "..", "recipes", "noise_study", "digits.toml"))
    assert study.speech.takes == (HELD_OUT_TAKES[0], HELD_OUT_TAKES[-1])
    noises = clips_by_class(study.noise.read(data))
    assert set(noises) == set(SOUNDS)
    _, held_out = read_esc10(data / study.noise.folder)
    wanted = {(clip.sound, clip.source) for clip in held_out}
    assert {(name, clip.path.stem.split("-")[1]) for name, clips in noises.items() for clip in clips} == wanted
    assert sum(map(len, noises.values())) == len(held_out)


def test_the_readme_gives_the_figures_of_the_results():
    folder = ROOT / "recipes" / "noise_study"
    lines = (folder / "results" / "results.md").read_text("utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines]
    header = next(i for i, row in enumerate(rows) if row[0] == "noise")
    text = " ".join((folder / "README.md").read_text("utf-8").split())
    said = r"most \(([\w, ]+): over (\d+) % at (\S+ dB)\), [\w ]+ least \(([\w, ]+): (\d+) to (\d+) %\)"
    found = re.search(said, text)
    assert found is not None
    column = rows[header].index(found[3].replace("−", "-"))
    rates = {row[0].replace("_", " "): float(row[column]) for row in rows[header + 2 : header + 12]}
    most, least = ([rates["clock tick" if n == "clock" else n] for n in found[i].split(", ")] for i in (1, 4))
    assert min(most) > int(found[2])
    assert [round(min(least)), round(max(least))] == [int(found[5]), int(found[6])]
