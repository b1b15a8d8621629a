"""``whisper-at count``: counts of models and heads, by name and by file."""

from __future__ import annotations

import json

import pytest

from whisper_at.checkpoints import save_safetensors
from whisper_at.cli.count import format_table, main
from whisper_at.tagging.heads import make_head
from whisper_at.train.flops import BASELINES, STATISTICS, TL_TR


def test_counts_of_the_command(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    large = next(line for line in lines if line.startswith("large-v2") and "512" in line)
    assert "7.234 M" in large
    assert "3.16 G" in large
    assert "0.94 %" in large
    assert main(["tiny", "small_low", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["mode"] for row in rows if row["model"] == "tiny"} == set(TL_TR + BASELINES + STATISTICS)
    assert rows[-1]["head_parameters"] == 6_970_383


def test_counts_of_files(tmp_path, capsys, checkpoint):
    head = make_head("wa_tr_4", n_layer=3, rep_dim=32, label_dim=7)
    path = tmp_path / "own.safetensors"
    save_safetensors(head.state_dict(), path, {"mode": "wa_tr_4", "n_layer": "3"})
    assert main([str(path), "nano.en", str(checkpoint), "--json"]) == 0
    own, *others = json.loads(capsys.readouterr().out)
    assert own["head_parameters"] == sum(p.numel() for p in head.parameters())
    assert own["classes"] == 7
    assert own["whisper_parameters"] is None
    assert "–" in format_table([own])
    assert {row["model"] for row in others} == {"nano.en", str(checkpoint)}


def test_what_cannot_be_counted_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file, a model nor a head; did you mean 'large-v3'"):
        main(["large-v4"])
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(RuntimeError, match="neither a Whisper nor a head: .*is a text file"):
        main([str(text)])
    lost = tmp_path / "lost.safetensors"
    save_safetensors(make_head("tl_tr_1_8", n_layer=2, rep_dim=40, label_dim=3).state_dict(), lost)
    with pytest.raises(RuntimeError, match="names no n_layer"):
        main([str(lost)])
