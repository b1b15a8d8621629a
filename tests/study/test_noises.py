"""Noise clips by class."""

from __future__ import annotations

import pytest
from study_data import tone, write_wav

from whisper_at.data import read_folders
from whisper_at.study.noises import clips_by_class, read_noises


def test_esc50_is_read_by_its_table_esc10_by_its_folders_and_any_by_a_table(tmp_path):
    for name in ("1-100-A-0.wav", "2-200-A-1.wav"):
        write_wav(tmp_path / "esc50" / "audio" / name, tone(0.1))
        write_wav(tmp_path / "esc10" / ("dog" if name[0] == "1" else "rain") / name, tone(0.1))
    (tmp_path / "esc50" / "meta").mkdir()
    (tmp_path / "esc50" / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100-A-0.wav,1,0,dog,True,100,A\n2-200-A-1.wav,2,1,rain,True,200,A\n"
    )
    (tmp_path / "index.csv").write_text(
        "file,class,audioset\nesc10/dog/1-100-A-0.wav,dog,Dog\nesc10/rain/2-200-A-1.wav,rain,Rain\n"
    )
    for folder in ("esc50", "esc10", "index.csv"):
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


def test_clips_are_sorted_by_name(tmp_path):
    # Spec section 4.1: the paper's list of noises is in the order of the file system.
    for name in ("b", "a", "c"):
        write_wav(tmp_path / "rain" / f"{name}.wav", tone(0.05))
    data = read_folders(tmp_path)
    shuffled = data.select([2, 0, 1])
    assert [c.path.stem for c in clips_by_class(shuffled)["rain"]] == ["a", "b", "c"]
