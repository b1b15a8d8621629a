"""The command: every flag of openai-whisper's with the same files, and tags for those who ask."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whisper
from same_as_upstream import as_wanted
from whisper.tokenizer import TO_LANGUAGE_CODE

from whisper_at import audio, checkpoints, cli
from whisper_at.checkpoints import registry
from whisper_at.cli import reporting, transcribe_parser
from whisper_at.cli import transcribe as command
from whisper_at.cli.timeline import timeline_lines
from whisper_at.tagging.rows import TagOptions
from whisper_at.writers import tag_rows

DIMS = {
    "n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 64, "n_audio_head": 4, "n_audio_layer": 2,
    "n_text_ctx": 448, "n_text_state": 64, "n_text_head": 4, "n_text_layer": 2,
}  # fmt: skip
QUICK = shlex.split("--beam_size None --best_of 1 --temperature_increment_on_fallback None --fp16 False --device cpu")
FORMATS = ("txt", "vtt", "srt", "tsv", "json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two models of random weights, a head that fits both, and two recordings."""
    folder = tmp_path_factory.mktemp("cli")
    for name, n_vocab in {"tiny-random.en": 51864, "tiny-random": 51865}.items():
        torch.manual_seed(0)
        dims = {**DIMS, "n_vocab": n_vocab}
        model = whisper.model.Whisper(whisper.ModelDimensions(**dims))
        positions, words = model.decoder.positional_embedding.data, model.decoder.token_embedding.weight.data
        torch.nn.init.normal_(positions, std=0.5)
        torch.nn.init.normal_(words, std=0.05)
        # The further on, the likelier the end: a few short segments instead of a window full of noise.
        positions[:, 0] = 0.15 * torch.arange(len(positions)) - 2
        words[:, 0], words[50256 + (n_vocab > 51864), 0] = 0.0, 3.0
        torch.save({"dims": dims, "model_state_dict": model.state_dict()}, folder / f"{name}.pt")
        os.rename(folder / f"{name}.pt", folder / name)
    generator = torch.Generator().manual_seed(1)
    head = {
        key: torch.ones(shape) if key.endswith("_ln.weight") else torch.randn(shape, generator=generator) * 0.1
        for key, shape in checkpoints.head_shapes(64).items()
    }
    head["mlp_layer.0.weight"] = torch.ones(64)
    torch.save({f"at_model.{key}": tensor for key, tensor in head.items()}, folder / "head.pth")
    noise = np.random.default_rng(0).normal(0, 0.1, 16000 * 25)
    soundfile.write(folder / "noise.wav", noise, 16000)
    soundfile.write(folder / "short.flac", noise[: 16000 * 2], 16000)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Run the command in the folder of recordings with output in tmp_path/out; returns its status."""
    monkeypatch.chdir(folder)

    def run(*args: str, model: str = "tiny-random.en") -> int:
        return cli.main([*args, "--model", model, "-o", str(tmp_path / "out"), *QUICK])

    return run


@pytest.fixture
def upstream_run(folder, tmp_path, monkeypatch):
    """Run openai-whisper's own command on the same, with output in tmp_path/upstream."""
    binary = tmp_path / "bin" / "ffmpeg"
    binary.parent.mkdir()
    binary.symlink_to(audio.ffmpeg_binary())
    monkeypatch.setenv("PATH", f"{binary.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(folder)

    def run(*args: str, model: str = "tiny-random.en") -> None:
        command = ["whisper", *args, "--model", model, "-o", str(tmp_path / "upstream"), *QUICK]
        monkeypatch.setattr(sys, "argv", command)
        sys.modules["whisper.transcribe"].cli()

    return run


def refused(capsys, *args: str) -> str:
    """The single line with which arguments are refused, before any model is loaded."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(args))
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("whisper-at: error: ")
    return output.err


def upstream_actions(monkeypatch) -> dict[str, argparse.Action]:
    """The flags of the installed `whisper`, caught when its parser is about to parse."""

    class ParserReached(Exception):  # noqa: N818 - it is no error
        pass

    def catch(parser, *_args, **_kwargs):
        raise ParserReached(parser)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(ParserReached) as caught:
            sys.modules["whisper.transcribe"].cli()
    return {action.dest: action for action in caught.value.args[0]._actions}


# --- the same command --------------------------------------------------------------------------------------


def test_every_flag_of_upstream_is_here(monkeypatch):
    """D18, D28: flag for flag; a flag that a future openai-whisper adds or changes fails here."""
    theirs = upstream_actions(monkeypatch)
    ours = {action.dest: action for action in command.build_parser()._actions}
    assert len(theirs) > 30
    for name, action in theirs.items():
        assert name in ours, f"--{name} is new in openai-whisper"
        mine = ours[name]
        assert set(mine.option_strings) == set(action.option_strings)
        assert (mine.nargs, mine.required) == (action.nargs, action.required), name
        if name == "device":  # found out when the model is loaded
            assert mine.default is None
            continue
        assert mine.default == action.default, name
        if name == "language":  # its type knows them, which need not be loaded for --help
            codes = [TO_LANGUAGE_CODE.get(choice.lower(), choice) for choice in action.choices]
            assert [mine.type(choice) for choice in action.choices] == codes
        elif name == "task":
            assert list(mine.choices) == [*action.choices, "tag"]
        elif name == "output_format":  # one or several, of more formats
            assert [mine.type(choice) for choice in action.choices] == list(action.choices)
        else:
            assert mine.choices is None if action.choices is None else list(mine.choices) == list(action.choices)
    new = {"version", "at_time_res", "top_k", "p_threshold", "label_language", "include_classes", "events"}
    new |= {"head", "at_low_compute", "compute_type", "draft", "batch_size", "captions", "audio_track"}
    new |= {"speech_gate", "missed_speech"}
    assert set(ours) - set(theirs) == new


def test_arguments_are_read_as_upstream_reads_them(monkeypatch):
    theirs = upstream_actions(monkeypatch)
    ours = {action.dest: action for action in command.build_parser()._actions}
    values = {"True", "False", "None", "0", "-1", "2.5", "en", "German", "tiny", "text"}
    for name in set(theirs) - {"help", "model", "language", "output_format"}:  # of which ours names the nearest

        def read(action, value):
            try:
                return action.type(value) if action.type else value
            except (ValueError, TypeError):
                return "refused"

        assert [read(ours[name], v) for v in values] == [read(theirs[name], v) for v in values], name


def without_noise(text: str) -> str:
    """JSON with its probabilities at six digits.

    Upstream's own change in the last bit from run to run: the order of sums depends on how memory is aligned.
    """
    numbers = r'("(?:avg_logprob|no_speech_prob|probability)": )([-+.e0-9]+)'
    return re.sub(numbers, lambda match: f"{match[1]}{float(match[2]):.6g}", text)


@pytest.mark.parametrize("model", ["tiny-random.en", "tiny-random"])
@pytest.mark.parametrize(
    "options",
    [
        "",
        "--word_timestamps True --highlight_words True --max_line_width 20 --max_line_count 2",
        "--task translate",
    ],
    ids=["plain", "words", "translate"],
)
def test_without_tag_flags_files_are_upstreams_byte_for_byte(run, upstream_run, tmp_path, options, model):
    """D27 besides: subtitles are written whether or not there is speech.

    What is known to be wrong in upstream's result is taken out before its writers write it again.
    """
    arguments = ["short.flac", *options.split(), "--verbose", "False"]
    upstream_run(*arguments, model=model)
    theirs = json.loads((tmp_path / "upstream" / "short.json").read_text())
    word_options = {name: vars(command.build_parser().parse_args(arguments))[name] for name in command.WORD_OPTIONS}
    whisper.utils.get_writer("all", str(tmp_path / "upstream"))(as_wanted(theirs), "short.flac", **word_options)
    assert run(*arguments, model=model) == 0
    for extension in FORMATS[:4]:
        expected = (tmp_path / "upstream" / f"short.{extension}").read_bytes()
        assert (tmp_path / "out" / f"short.{extension}").read_bytes() == expected
    ours, theirs = ((tmp_path / name / "short.json").read_text() for name in ("out", "upstream"))
    assert without_noise(ours) == without_noise(theirs)
    assert len(list((tmp_path / "out").iterdir())) == 5
    assert json.loads(ours)["text"]


def test_what_is_printed_is_upstreams(run, upstream_run, capsys):
    upstream_run("short.flac", "-f", "txt", model="tiny-random")
    expected = capsys.readouterr().out
    assert run("short.flac", "-f", "txt", model="tiny-random") == 0
    assert capsys.readouterr().out == expected
    assert "-->" in expected


def transcribe_options(monkeypatch, *args: str) -> dict:
    """What reaches `model.transcribe`, and what reaches `load_model` (under "load")."""
    seen: dict = {}

    class Model:
        is_multilingual, num_languages, heads = True, 99, {"audio_tag": None}

        def transcribe(self, path, **options):
            seen.update(options, path=path)
            return {"text": "", "segments": [], "language": "en"}

    def load(name, **options):
        seen["load"] = {"name": name, **options}
        return Model()

    monkeypatch.setattr("whisper_at.loading.load_model", load)
    assert cli.main(["a.wav", *args]) == 0
    return seen


def upstream_options(monkeypatch, *args: str) -> dict:
    seen: dict = {}

    def transcribe(_model, path, **options):
        seen.update(options, path=path)
        return {"text": "", "segments": [], "language": "en"}

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["whisper.transcribe"], "transcribe", transcribe)
        patch.setattr(whisper, "load_model", lambda *_args, **_kwargs: None)
        patch.setattr(sys, "argv", ["whisper", "a.wav", *args])
        sys.modules["whisper.transcribe"].cli()
    return seen


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "line",
    [
        "",
        "--model tiny.en",
        "--model tiny.en --language German",
        "--model tiny.en --language English",
        "--language German --task translate --temperature 0.4",
        "--temperature_increment_on_fallback None --temperature 0.3 --logprob_threshold None",
        "--temperature_increment_on_fallback 0.5 --beam_size None --best_of 3 --length_penalty 0.5",
        "--patience 2 --device cpu --model_dir cache",
        "--suppress_tokens 1,2 --initial_prompt hi --carry_initial_prompt True",
        "--condition_on_previous_text False",
        "--word_timestamps True --max_line_width 5 --max_line_count 2 --max_words_per_line 3 --fp16 False",
        "--clip_timestamps 1,2,3 --hallucination_silence_threshold 2 --no_speech_threshold None",
        "--verbose False",
    ],
)
def test_options_reach_transcribe_as_upstreams_do(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    expected = upstream_options(monkeypatch, *line.split())
    actual = transcribe_options(monkeypatch, *line.split())
    load = actual.pop("load")
    assert actual.pop("at_time_res") is None
    assert actual.pop("batch_size") is None
    assert actual.pop("audio_track") is None
    assert (actual.pop("on_progress") is None) == (not expected["verbose"])
    assert (actual.pop("speech_gate"), actual.pop("missed_speech")) == (False, False)
    language = expected["language"]
    assert actual == {**expected, "language": TO_LANGUAGE_CODE.get(str(language).lower(), language)}  # by its code
    assert load["head"] is None  # no tags asked for: no head is fetched


@pytest.mark.parametrize("track", ["2", "German"])
def test_an_audio_track_reaches_transcribe(tmp_path, monkeypatch, track):
    monkeypatch.chdir(tmp_path)
    assert transcribe_options(monkeypatch, "--audio_track", track)["audio_track"] == track


def test_an_english_model_says_that_another_language_is_not_heard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="tiny.en knows English only"):
        options = transcribe_options(monkeypatch, "--model", "tiny.en", "--language", "de")
    assert options["language"] == "en"


@pytest.mark.parametrize("option", ["--language de", "--task translate"])
def test_an_english_file_is_asked_for_nothing_else(run, folder, capsys, option):
    os.link(folder / "tiny-random.en", folder / f"mine{len(option)}.pt")  # whose name does not tell
    assert run("short.flac", *option.split(), model=f"mine{len(option)}.pt") == 1
    assert f"mine{len(option)}.pt knows English only: leave out {option}" in capsys.readouterr().err


def test_captions_of_words_need_words(capsys):
    for option in (
        "--highlight_words True",
        "--max_line_width 9",
        "--max_line_count 1",
        "--max_words_per_line 2",
    ):
        assert "requires --word_timestamps True" in refused(capsys, "a.wav", *option.split())


def test_options_without_effect_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--word_timestamps", "True"]
    with pytest.warns(UserWarning, match="max_line_count has no effect"):
        transcribe_options(monkeypatch, *words, "--max_line_count", "2")
    with pytest.warns(UserWarning, match="max_words_per_line has no effect"):
        transcribe_options(monkeypatch, *words, "--max_line_width", "9", "--max_words_per_line", "2")


def test_threads_are_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", counts.append)
    for value in ("0", "None", "-1", "3"):
        transcribe_options(monkeypatch, "--threads", value)
    assert counts == [3]


# --- sound tags ---------------------------------------------------------------------------------------------


def test_tags_on_screen_and_in_json(run, capsys, tmp_path):
    """D26, D28: tags by a flag, in JSON as plain values; the other four files stay as they are without."""
    arguments = "noise.wav --clip_timestamps 0,5,21".split()
    assert run(*arguments) == 0
    plain = capsys.readouterr().out
    without = {e: (tmp_path / "out" / f"noise.{e}").read_bytes() for e in FORMATS}
    assert run(*arguments, "--head", "head.pth", "--at_time_res", "10", "--top_k", "2", "--p_threshold=-9") == 0
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if "] (" in line]
    assert sorted(line for line in output.splitlines() if line not in lines) == sorted(plain.splitlines())
    content = json.loads((tmp_path / "out" / "noise.json").read_text())
    rows = content["audio_tag"]
    assert [(row["start"], row["end"]) for row in rows] == [(0, 10), (10, 20), (20, 25)]
    assert [row["coverage"] for row in rows] == pytest.approx([0.5, 0, 0.8])
    assert [len(row["tags"]) for row in rows] == [2, 0, 2]
    first = ", ".join(f"{tag['name']} {tag['probability']:.2f}" for tag in rows[0]["tags"])
    assert lines[0] == f"[00:00.000 --> 00:10.000] ({first})"
    assert len(lines) == 2
    assert lines[1].startswith("[00:20.000 --> 00:25.000] (")
    for extension in FORMATS[:4]:
        assert (tmp_path / "out" / f"noise.{extension}").read_bytes() == without[extension]
    before = json.loads(without_noise(without["json"].decode()))
    after = json.loads(without_noise((tmp_path / "out" / "noise.json").read_text()))
    assert {key: after[key] for key in before} == before


def test_several_resolutions(run, capsys, tmp_path):
    arguments = "short.flac --head head.pth --at_time_res 0.4,1.2 --p_threshold -99 --top_k 1".split()
    assert run(*arguments) == 0
    output = capsys.readouterr().out
    starts = [line.split("]")[0] for line in output.splitlines() if "] (" in line]
    assert starts[:3] == ["[00:00.000 --> 00:01.200", "[00:00.000 --> 00:00.400", "[00:00.400 --> 00:00.800"]
    assert len(starts) == 7
    content = json.loads((tmp_path / "out" / "short.json").read_text())
    assert {key: len(rows) for key, rows in content["audio_tag"].items()} == {"0.4": 5, "1.2": 2}
    assert content["at_time_res"] == [0.4, 1.2]


def test_only_the_wanted_classes(run, tmp_path):
    classes = ["--include_classes", "Dog; /m/09x0r;137", "--include_classes", "Domestic animals, pets"]
    assert run("short.flac", "--head", "head.pth", "-f", "json", *classes, "--p_threshold=-99") == 0
    content = json.loads((tmp_path / "out" / "short.json").read_text())
    assert content["at_time_res"] == 10.0  # implied
    assert {tag["index"] for tag in content["audio_tag"][0]["tags"]} == {74, 0, 137, 73}


def test_sounds_in_captions(run, tmp_path):
    """What is in the events of JSON is in srt and vtt; txt and tsv have the words alone."""
    sounds = ["--include_classes", "Dog;Music", "--p_threshold=-99"]
    assert run("noise.wav", "--head", "head.pth", "--sound_captions", *sounds) == 0
    content = json.loads((tmp_path / "out" / "noise.json").read_text())
    assert {event["name"] for event in content["events"]} == {"Dog", "Music"}
    for extension in ("srt", "vtt"):
        text = (tmp_path / "out" / f"noise.{extension}").read_text()
        assert text.count("dog") == text.count("music") == 1
        assert "[" in text
    assert "[" not in (tmp_path / "out" / "noise.txt").read_text() + (tmp_path / "out" / "noise.tsv").read_text()


def test_captions_time_words_and_leave_the_other_files_alone(run, tmp_path):
    assert run("noise.wav", "--captions", "bbc") == 0
    written = {name: (tmp_path / "out" / f"noise.{name}").read_bytes() for name in ("txt", "srt", "vtt")}
    assert cli.main(["captions-check", str(tmp_path / "out" / "noise.srt"), "--style", "bbc"]) == 0
    assert run("noise.wav", "--word_timestamps", "True") == 0
    assert (tmp_path / "out" / "noise.txt").read_bytes() == written["txt"]
    assert (tmp_path / "out" / "noise.srt").read_bytes() != written["srt"]


@pytest.mark.parametrize("verbose", ["True", "False"])
def test_quiet_is_quiet(run, capsys, verbose):
    assert run("short.flac", "--head", "head.pth", "--p_threshold=-99", "--verbose", verbose) == 0
    assert ("(" in capsys.readouterr().out) == (verbose == "True")


@pytest.mark.parametrize(
    ("line", "at_time_res", "load"),
    [
        ("--at_time_res 10", 10.0, {"head": "auto", "at_low_compute": False}),
        ("--at_time_res 1.2000000000000002", 1.2, {}),
        ("--at_time_res 0.4,10,10", [0.4, 10.0], {}),
        ("--top_k 3", 10.0, {}),
        ("--p_threshold -2", 10.0, {}),
        ("--label_language German", 10.0, {}),
        ("--include_classes Dog", 10.0, {}),
        ("--sound_captions", 2.0, {"head": "auto"}),
        ("--captions sdh,bbc", 2.0, {"head": "auto"}),
        ("--captions bbc", None, {"head": None}),
        ("--captions", None, {"head": None}),
        ("--captions --at_time_res 10", 10.0, {}),
        ("--sound_captions --at_time_res 0.8", 0.8, {}),
        ("--at_low_compute", 10.0, {"at_low_compute": True}),
        ("--head base.en", 10.0, {"head": "base.en"}),
        ("--compute_type float32", None, {"compute_type": "float32", "head": None}),
        ("--model_dir cache --device cpu", None, {"download_root": "cache", "device": "cpu"}),
    ],
)
def test_what_tag_flags_mean(tmp_path, monkeypatch, line, at_time_res, load):
    """D3: every spelling of a multiple of 0.4 s. Any tag flag alone means rows of 10 s."""
    monkeypatch.chdir(tmp_path)
    options = transcribe_options(monkeypatch, "--model", "small", *line.split())
    assert options["at_time_res"] == at_time_res
    assert options["load"].items() >= load.items()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--at_time_res 0.5", "multiple of 0.4 s"),
        ("--at_time_res 0", "positive number"),
        ("--at_time_res -10", "positive number"),
        ("--at_time_res 10,ten", "'ten' is not a number"),
        ("--at_time_res inf", "positive number"),
        ("--include_classes Dgo", "did you mean 'Dog'?"),
        ("--include_classes 527", "0 to 526"),
        ("--include_classes ;", "no class is named"),
        ("--batch_size 0", "'0' is not a number from 1"),
        ("--batch_size 2 --word_timestamps True --hallucination_silence_threshold 2", "leave out --batch_size"),
        ("--top_k 0", "'0' is not a number from 1"),
        ("--p_threshold nan", "'nan' is not a number"),
        ("--label_language Klingon", "Whisper knows no language 'Klingon'"),
        ("--head nowhere.pth", "'nowhere.pth' is neither a file nor"),
        ("--head samll", "did you mean 'small'?"),
        ("--head small --at_low_compute", "leave it out where --head is given"),
        ("--sound_captions -f txt", "--captions is for srt, vtt, lrc and ass, not -f txt"),
        ("--captions bcc", "did you mean 'bbc'?"),
        ("--captions bbc,netflix", "one style"),
        ("--captions film.mkv", "recordings come before --captions"),
        ("--captions --word_timestamps True --max_line_width 42", "whose style decides on lines"),
        ("--label_language nowhere.csv", "nowhere.csv"),
        ("--compute_type float8", "there is no 'float8'; did you mean 'float32'"),
        ("--model tiny --at_low_compute", "no low-compute head is published for 'tiny'"),
        ("--model turbo --at_time_res 10", "no tagging head is published for turbo"),
        ("--model smal", "did you mean 'small'?"),
        ("--model whatever", "there are tiny.en, tiny"),
        ("--language Englsh", "did you mean 'English'?"),
        ("--temperature_increment_on_fallback 0", "must be above 0"),
        ("--temperature 1.5", "above 1 needs"),
        ("--word_timestamps yes", "invalid str2bool value: 'yes'"),
    ],
)
def test_bad_values_are_refused_in_one_line(capsys, monkeypatch, line, message):
    """D4, D21: before anything is loaded or fetched, and with the way out."""
    monkeypatch.setattr("whisper_at.loading.load_model", lambda *_args, **_kwargs: pytest.fail("a model was loaded"))
    model = [] if "--model" in line else ["--model", "small"]
    assert message in refused(capsys, "a.wav", *model, *line.split())


def test_rows_without_tags_are_not_shown():
    logits = torch.full((3, 527), -5.0)
    logits[1, 74], logits[1, 72], logits[2] = 2.31, 2.1, float("nan")
    result = {"text": "", "segments": [], "language": "en", "audio_tag": logits, "at_time_res": 10.0}
    result |= {"audio_tag_coverage": torch.tensor([1.0, 1.0, 0.0]), "duration": 24.0}
    assert list(timeline_lines(result)) == ["[00:10.000 --> 00:20.000] (Dog 0.91, Animal 0.89)"]
    assert list(timeline_lines(result, TagOptions(1, include_classes=[72]))) == [
        "[00:10.000 --> 00:20.000] (Animal 0.89)"
    ]
    assert len(tag_rows(result)) == 3
    assert list(timeline_lines({"text": "", "segments": [], "language": "en"})) == []


def test_words_and_sounds_are_one_timeline():
    """In order of time; of what begins together, long rows, short rows, words."""
    logits = torch.full((2, 527), -5.0)
    logits[:, 74] = torch.tensor([2.31, 1.0])
    result = {
        "text": " One. Two.",
        "segments": [{"start": 0.0, "end": 3.0, "text": " One."}, {"start": 12.0, "end": 14.0, "text": " Two."}],
        "language": "en",
        "audio_tag": {10.0: logits, 20.0: logits[:1]},
        "at_time_res": [10.0, 20.0],
        "duration": 20.0,
        "mine": {"classes": ["a", "b"], "kind": "multi_label", "temperature": 1.0, "thresholds": None}
        | {"logits": {10.0: torch.tensor([[-9.0, -9.0], [3.0, -9.0]]), 20.0: torch.full((1, 2), -9.0)}},
    }
    assert list(timeline_lines(result)) == [
        "[00:00.000 --> 00:20.000] (Dog 0.91)",
        "[00:00.000 --> 00:10.000] (Dog 0.91)",
        "[00:00.000 --> 00:03.000]  One.",
        "[00:10.000 --> 00:20.000] (Dog 0.73)",
        "[00:10.000 --> 00:20.000] (mine: a 0.95)",
        "[00:12.000 --> 00:14.000]  Two.",
    ]


# --- failure -----------------------------------------------------------------------------------------------


def test_one_bad_file_does_not_stop_the_rest(run, capsys, tmp_path, folder):
    """D26: a failing file ended the whole run and left half a file."""
    (tmp_path / "text.wav").write_text("no sound\n" * 9)
    bad = str(tmp_path / "text.wav")
    assert run("missing.wav", bad, "short.flac", "-f", "txt", "--verbose", "False") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Skipping")]
    assert errors[0] == "Skipping missing.wav due to FileNotFoundError: No such audio file: missing.wav"
    assert errors[1].startswith(f"Skipping {bad} due to RuntimeError: Failed to load audio: {bad}: ")
    assert len(errors) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["short.txt"]


@pytest.mark.parametrize("batch", [[], ["--batch_size", "2"]])
def test_an_error_while_decoding_is_told_of_each_file(run, capsys, batch):
    """In batches as one by one: a line for every file, not a traceback that ends the run."""
    assert run("short.flac", "noise.wav", "--patience", "2", "--beam_size", "None", *batch) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Skipping")]
    assert sorted(line.split()[1] for line in errors) == ["noise.wav", "short.flac"]
    assert all("patience requires beam_size" in line for line in errors)


def test_tracebacks_are_for_those_who_ask(run, capsys, monkeypatch):
    assert run("missing.wav") == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv(reporting.TRACEBACK_VARIABLE, "1")
    assert run("missing.wav") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_model_that_does_not_load_is_one_line(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.pt").write_bytes(b"PK\3\4 and no more")
    arguments = ["a.wav", "--model", str(tmp_path / "broken.pt"), "-o", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("whisper-at: error: ")
    assert error.count("\n") == 1
    assert "broken.pt" in error


def test_an_output_folder_that_cannot_be_is_one_line(tmp_path, capsys):
    (tmp_path / "out").write_text("in the way")
    assert cli.main(["a.wav", "--model", "tiny", "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# --- as a program ------------------------------------------------------------------------------------------


def test_the_module_runs(tmp_path):
    """D23: a command of our own name, which also runs as `python -m whisper_at`."""
    command = [sys.executable, "-m", "whisper_at"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "COLUMNS": "100"}

    def call(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *args], capture_output=True, text=True, encoding="utf-8", cwd=tmp_path, env=environment
        )

    shown = call("--help")
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert shown.stdout.startswith("usage: whisper-at AUDIO")
    for heading in ("sound tags:", "decoding:", "words and captions:", "examples:"):
        assert heading in shown.stdout
    wrong = call("a.wav", "--model", "tny")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1


def test_help_fits_and_names_every_flag(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = command.build_parser().format_help()
    for action in command.build_parser()._actions:
        assert not action.option_strings or action.option_strings[0] in text
    assert max(map(len, text.splitlines())) <= 110
    assert len(text.splitlines()) < 140


def test_the_examples_in_the_help_parse():
    lines = [
        line.split("   ")[0] for line in transcribe_parser.EXAMPLES.splitlines() if line.startswith("  whisper-at ")
    ]
    assert len(lines) >= 4
    for line in lines:
        args = vars(command.build_parser().parse_args(shlex.split(line)[1:]))
        assert args["audio"]


def test_versions(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert whisper.__version__ in capsys.readouterr().out


# --- samples -----------------------------------------------------------------------------------------------

SAMPLE = Path(__file__).parents[2] / "sample"


def test_the_notebook_is_clean_and_compiles():
    notebook = json.loads((SAMPLE / "whisper_at_demo.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert notebook["nbformat_minor"] >= 5
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            compile("".join(cell["source"]), cell["id"], "exec")


needs_nano = pytest.mark.skipif(
    not (registry.ASSETS / "nano.en.pt").is_file(), reason="the embedded model is not in this checkout"
)


@needs_nano
def test_a_sample_from_end_to_end(tmp_path, capsys):
    """The main job on the embedded model, with nothing downloaded: words on screen, sounds in JSON."""
    street = str(SAMPLE / "street.ogg")
    assert cli.main([street, "--model", "nano.en", "--at_time_res", "10,2", "-o", str(tmp_path), *QUICK]) == 0
    content = json.loads((tmp_path / "street.json").read_text())
    assert len(content["audio_tag"]["10.0"]) == 6
    assert len(content["audio_tag"]["2.0"]) == 28
    assert content["duration"] == pytest.approx(56.0)
    assert content["text"].strip()
    assert content["segments"]
    output = capsys.readouterr().out
    assert "[00:00.000 --> 00:10.000] (" in output
    assert "[00:02.000 --> 00:04.000] (" in output


@needs_nano
def test_the_sample_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["transcribe_and_tag.py", str(SAMPLE / "speech.flac")])
    exec(compile((SAMPLE / "transcribe_and_tag.py").read_text(), "transcribe_and_tag.py", "exec"), {})
    assert "Speech" in capsys.readouterr().out
