"""Transcription of noisy speech: pairing, resuming, and errors by class and ratio."""

from __future__ import annotations

import numpy as np
import pytest
from study_data import tone, write_wav

from whisper_at.data import read_folders
from whisper_at.data.utterances import Utterance
from whisper_at.study.mixing import power
from whisper_at.study.noises import clips_by_class
from whisper_at.study.transcriptions import (
    CLEAN,
    error_table,
    errors_by_snr,
    read_transcriptions,
    transcribe_noisy,
)
from whisper_at.study.wer import WordErrors


@pytest.fixture
def study_inputs(tmp_path):
    """Two sentences, noises of two classes (two clips and one), and the path of the results."""
    for name in ("rain/1.wav", "rain/2.wav", "wind/1.wav"):
        write_wav(tmp_path / "noise" / name, tone(0.3, 1000 + 100 * int(name[-5])))
    speech = [Utterance(f"u{i}", f"word {i}", lambda i=i: tone(0.5, 300 + i)) for i in range(2)]
    return speech, clips_by_class(read_folders(tmp_path / "noise")), tmp_path / "out" / "noise.csv"


class LevelRecogniser:
    """A recogniser that writes the power of its input and keeps its inputs."""

    def __init__(self) -> None:
        self.inputs: list[np.ndarray] = []

    def __call__(self, audio: np.ndarray) -> str:
        self.inputs.append(audio)
        return f" {power(audio):.4f},\nand \u2028 more "


def test_every_class_is_mixed_with_every_sentence_at_every_ratio(study_inputs):
    speech, noises, path = study_inputs
    recogniser = LevelRecogniser()
    rows = transcribe_noisy(path, {"level": lambda: recogniser}, speech, noises, (0, 20))
    assert len(rows) == len(recogniser.inputs) == 2 + 2 * 2 * 2
    assert read_transcriptions(path) == rows  # in spite of line breaks in the recognised text
    assert [(row.noise, row.snr) for row in rows[:2]] == [(CLEAN, np.inf)] * 2
    pairs = {(row.noise, row.utterance): row.clip for row in rows if row.noise != CLEAN}
    assert pairs == {("rain", "u0"): "1.wav", ("rain", "u1"): "2.wav", ("wind", "u0"): "1.wav", ("wind", "u1"): "1.wav"}
    # Tones of other frequencies add their powers: 1 + 1 at 0 dB, 1 + 0.01 at 20 dB.
    alone = power(speech[0].load())
    for row, audio in zip(rows, recogniser.inputs):
        assert power(audio) == pytest.approx(alone * (1 + 10 ** (-row.snr / 10)), rel=0.02)


def test_an_interrupted_run_resumes(study_inputs):
    speech, noises, path = study_inputs
    rows = transcribe_noisy(path, {"level": LevelRecogniser}, speech, noises, (0, 20))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # four rows, and one that was being written
    assert len(read_transcriptions(path)) == 4
    recogniser = LevelRecogniser()
    assert transcribe_noisy(path, {"level": lambda: recogniser}, speech, noises, (0, 20)) == rows
    assert len(recogniser.inputs) == len(rows) - 4
    assert path.read_bytes().splitlines(keepends=True) == lines
    # Recognisers can be added later; finished ones are not even loaded.
    more = transcribe_noisy(path, {"level": pytest.fail, "other": LevelRecogniser}, speech, noises, (0, 20))
    assert len(more) == 2 * len(rows)
    with pytest.raises(ValueError, match="guard = False, not True"):
        transcribe_noisy(path, {"level": LevelRecogniser}, speech, noises, (0, 20), prevent_clipping=True)
    with pytest.raises(ValueError, match="no noise to work with"):
        transcribe_noisy(path, {"level": LevelRecogniser}, speech, {}, (0, 20))


def test_other_recordings_of_the_same_names_are_another_run(study_inputs, tmp_path):
    speech, noises, path = study_inputs
    transcribe_noisy(path, {"level": LevelRecogniser}, speech, {"rain": noises["rain"][1:]}, (0,))
    kept = path.read_bytes()
    with pytest.raises(ValueError, match=r"holds u0 \(word 0\) with 2.wav, not \(word 0\) with 1.wav"):
        transcribe_noisy(path, {"level": LevelRecogniser}, speech, noises, (0,))  # now the first clip is another one
    loud = [speech[0], speech[1]._replace(load=lambda: tone(0.5, 700))]
    with pytest.raises(ValueError, match="another recording of u1"):
        transcribe_noisy(path, {"level": LevelRecogniser}, loud, {"rain": noises["rain"][1:]}, (0,))
    write_wav(tmp_path / "noise" / "rain" / "2.wav", tone(0.3, 50))
    with pytest.raises(ValueError, match="another recording of rain/2.wav"):
        transcribe_noisy(path, {"level": LevelRecogniser}, speech, {"rain": noises["rain"][1:]}, (0,))
    assert path.read_bytes() == kept


def test_a_stored_mixture_of_other_speech_is_replaced(study_inputs, tmp_path):
    speech, noises, path = study_inputs
    transcribe_noisy(path, {"level": LevelRecogniser}, speech, noises, (0,), mixture_folder=tmp_path / "mixtures")
    recognisers, other = (LevelRecogniser(), LevelRecogniser()), [speech[0]._replace(load=lambda: tone(0.5, 700))]
    for recogniser, folder in zip(recognisers, (tmp_path / "mixtures", None)):
        path.unlink()
        transcribe_noisy(
            path, {"level": lambda recogniser=recogniser: recogniser}, other, noises, (0,), mixture_folder=folder
        )
    for a, b in zip(recognisers[0].inputs, recognisers[1].inputs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_mixtures_are_stored(study_inputs, tmp_path):
    speech, noises, path = study_inputs
    plain, kept = LevelRecogniser(), LevelRecogniser()
    transcribe_noisy(path, {"level": lambda: plain}, speech, noises, (-20,))
    folder = tmp_path / "mixtures"
    for recogniser in (kept, LevelRecogniser()):  # once written, then read
        other = path.with_name(f"{len(list(folder.glob('*')))}.csv")
        transcribe_noisy(
            other, {"level": lambda recogniser=recogniser: recogniser}, speech, noises, (-20,), mixture_folder=folder
        )
        for a, b in zip(plain.inputs, recogniser.inputs, strict=True):
            np.testing.assert_array_equal(a, b)
    names = {p.name for p in folder.iterdir()}
    assert names == {f"-20_{noise}_u{i}_mix_{clip}.wav" for noise, i, clip in
                     [("rain", 0, 1), ("rain", 1, 2), ("wind", 0, 1), ("wind", 1, 1)]}  # fmt: skip
    assert max(np.abs(audio).max() for audio in kept.inputs) > 1  # nothing is clipped


def test_the_factor_against_clipping_is_recorded(study_inputs):
    speech, noises, path = study_inputs
    recogniser = LevelRecogniser()
    rows = transcribe_noisy(path, {"level": lambda: recogniser}, speech, noises, (-20,), prevent_clipping=True)
    assert all(np.abs(audio).max() <= 1 + 1e-6 for audio in recogniser.inputs)
    assert all(row.factor < 1 for row in rows if row.noise != CLEAN)
    assert read_transcriptions(path)[-1].factor == pytest.approx(rows[-1].factor, rel=1e-5)


def test_rates_by_class_and_ratio(study_inputs):
    speech, noises, path = study_inputs
    texts = iter(["word 0", "word 1", "word", "word 1", "", "word 1 2"])
    transcribe_noisy(path, {"x": lambda: lambda audio: next(texts)}, speech, noises, (5,))
    table = error_table(read_transcriptions(path))
    assert table == {
        ("x", CLEAN, np.inf): WordErrors(0, 4),
        ("x", "rain", 5.0): WordErrors(1, 4),
        ("x", "wind", 5.0): WordErrors(3, 4),
    }
    assert errors_by_snr(table, "x") == {5.0: WordErrors(4, 8), np.inf: WordErrors(0, 4)}
    assert errors_by_snr(table, "y") == {}


def test_another_kind_of_file_is_left_alone(study_inputs):
    speech, noises, path = study_inputs
    path.parent.mkdir()
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="holds no results of this study"):
        transcribe_noisy(path, {"level": LevelRecogniser}, speech, noises, (0,))
    assert path.read_text() == "a,b\n1,2\n"
