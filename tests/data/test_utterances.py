"""Readers of transcribed speech, on tiny files."""

from __future__ import annotations

import numpy as np
import pytest
from study_data import RATE, tone, write_wav

from whisper_at.data.utterances import read_digit_strings, read_librispeech, read_transcripts


def test_librispeech_is_read_in_the_order_of_its_names(tmp_path):
    root = tmp_path / "test-clean"
    for speaker, lines in {"61": ["HE SAID", "YES IT IS"], "121": ["NO"]}.items():
        folder = root / speaker / "7"
        folder.mkdir(parents=True)
        names = [f"{speaker}-7-{i:04d}" for i in range(len(lines))]
        (folder / f"{speaker}-7.trans.txt").write_text("".join(f"{n} {t}\n" for n, t in zip(names, lines)))
        for i, name in enumerate(names):
            write_wav(folder / f"{name}.flac", tone(0.2 + i / 10))  # ffmpeg looks into the file, not at its name
    found = read_librispeech(root)
    assert [(u.name, u.text) for u in found] == [
        ("121-7-0000", "NO"),
        ("61-7-0000", "HE SAID"),
        ("61-7-0001", "YES IT IS"),
    ]
    assert len(found[2].load()) == round(0.3 * RATE)
    assert [u.name for u in read_librispeech(root, 2)] == ["121-7-0000", "61-7-0000"]
    assert [u.name for u in read_librispeech(root, 1, spread=True)] == ["121-7-0000"]
    with pytest.raises(ValueError, match="has 3 sentences, fewer than the requested 9"):
        read_librispeech(root, 9)
    (root / "121" / "7" / "121-7-0000.flac").unlink()
    with pytest.raises(ValueError, match="121-7-0000.flac is missing"):
        read_librispeech(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is not a LibriSpeech folder"):
        read_librispeech(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_librispeech(tmp_path / "nowhere")


def test_a_table_of_transcripts_is_read_in_the_order_of_its_names(tmp_path):
    for name, seconds in (("b", 0.2), ("a", 0.3), ("c", 0.4), ("empty", 0.1)):
        write_wav(tmp_path / "wav" / f"{name}.wav", tone(seconds))
    table = tmp_path / "index.csv"
    table.write_text(
        "file,speaker,seconds,text\n"
        'wav/b.wav,1,0.2,"YES, IT IS"\nwav/a.wav,2,0.3,NO\nwav/c.wav,3,0.4,LONG\nwav/empty.wav,4,0.1,\n'
    )
    found = read_transcripts(table)
    assert [(u.name, u.text) for u in found] == [("a", "NO"), ("b", "YES, IT IS"), ("c", "LONG")]
    assert len(found[0].load()) == round(0.3 * RATE)
    assert [u.name for u in read_transcripts(table, 1, max_seconds=0.2)] == ["b"]
    assert [u.name for u in read_transcripts(table, 2, spread=True, max_seconds=9)] == ["a", "b"]
    with pytest.raises(ValueError, match="has 2 sentences, fewer than the requested 3"):
        read_transcripts(table, 3, max_seconds=0.3)
    (tmp_path / "wav" / "c.wav").unlink()
    with pytest.raises(ValueError, match=r"c\.wav is missing"):
        read_transcripts(table)
    with pytest.raises(FileNotFoundError):
        read_transcripts(tmp_path / "nowhere.csv")
    table.write_text("file,words\nwav/a.wav,NO\n")
    with pytest.raises(ValueError, match="no column 'text'"):
        read_transcripts(table)


def test_digit_strings_are_of_one_speaker_and_of_the_takes_asked_for(tmp_path):
    for speaker in ("ann", "bob"):
        for digit in range(10):
            for take in (44, 45, 49):
                write_wav(tmp_path / f"{digit}_{speaker}_{take}.wav", tone(0.1 if take > 44 else 1.0))
    found = read_digit_strings(tmp_path, 6, takes=(45, 49), digits=(3, 5))
    assert [u.name.split("-")[1] for u in found] == ["ann", "bob"] * 3
    for utterance in found:
        n = len(utterance.text.split())
        assert 3 <= n <= 5
        assert utterance.name.endswith("-" + utterance.text.replace(" ", ""))
        seconds = len(utterance.load()) / RATE
        assert 0.1 * n + 0.05 * (n - 1) - 0.01 <= seconds <= 0.1 * n + 0.3 * (n - 1) + 0.01  # never take 44
    again = read_digit_strings(tmp_path, 3, takes=(45, 49), digits=(3, 5))
    assert [u.name for u in again] == [u.name for u in found[:3]]
    np.testing.assert_array_equal(again[2].load(), found[2].load())
    with pytest.raises(ValueError, match="has no takes 90 to 99"):
        read_digit_strings(tmp_path, 3, takes=(90, 99))
