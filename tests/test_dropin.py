"""`import whisper_at as whisper`: every public name, every submodule, the same signatures."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys

import pytest
import whisper
from conftest import noise

import whisper_at

SUBMODULES = [m.name for m in pkgutil.walk_packages(whisper.__path__, "whisper.") if "__main__" not in m.name]


def public(module) -> set[str]:
    dir(module)  # fills a package that imports its names when they are used
    return {name for name in vars(module) if not name.startswith("_")}


def test_every_public_name():
    assert public(whisper) - public(whisper_at) == set()
    assert callable(whisper_at.transcribe)
    assert callable(whisper_at.decode)
    assert isinstance(whisper_at.__version__, str)


@pytest.mark.parametrize("name", ["whisper", *SUBMODULES])
def test_underscore_names_that_programs_take(name):
    """whisper-timestamped has ``from whisper import _download, _MODELS``."""
    try:
        theirs = importlib.import_module(name)
    except RuntimeError:  # triton_ops without triton
        pytest.skip("cannot be imported here")
    ours = importlib.import_module(name.replace("whisper", "whisper_at", 1))
    names = [n for n in vars(theirs) if n.startswith("_") and not n.startswith("__")]
    assert names or name != "whisper"
    for each in names:
        assert getattr(ours, each) is getattr(theirs, each)
    with pytest.raises(AttributeError, match="_no_such_name"):
        getattr(ours, "_no_such_name")  # noqa: B009


def test_names_of_upstreams_transcribe_module():
    """Its command line's, and what it imports: ``from whisper.transcribe import cli, str2bool``."""
    theirs, ours = (importlib.import_module(f"{package}.transcribe") for package in ("whisper", "whisper_at"))
    assert [name for name in public(theirs) if not hasattr(ours, name)] == []


@pytest.mark.parametrize("other", ["20230306", "20231117", "20240930", "20250625"])
def test_versions_compare_as_text(other):
    """As programs do: ``if whisper.__version__ >= "20240930"``. Ours is at least what it stands on."""
    assert whisper_at.__version__ >= other
    assert whisper_at.__version__ >= whisper.__version__
    assert whisper_at.__version__.isdigit()
    assert len(whisper_at.__version__) == 8


@pytest.mark.parametrize("name", SUBMODULES)
def test_every_submodule(name):
    ours = name.replace("whisper.", "whisper_at.", 1)
    try:
        theirs = importlib.import_module(name)
    except RuntimeError as error:  # triton_ops without triton
        with pytest.raises(RuntimeError, match=str(error)[:20]):
            importlib.import_module(ours)
        return
    # whisper.transcribe imports much and defines two; its command line is whisper_at.cli's here
    wanted = {"transcribe"} if name == "whisper.transcribe" else public(theirs)
    assert wanted - public(importlib.import_module(ours)) == set()


@pytest.mark.parametrize("name", sorted(n for n in public(whisper) if inspect.isroutine(getattr(whisper, n))))
def test_same_parameters_first_and_same_defaults(name):
    """New keyword arguments come after upstream's, and none is required."""
    theirs = inspect.signature(getattr(whisper, name)).parameters
    ours = inspect.signature(getattr(whisper_at, name)).parameters
    for parameter in theirs.values():
        assert parameter.name in ours
        assert ours[parameter.name].default == parameter.default
        assert ours[parameter.name].kind == parameter.kind
    for extra in ours.keys() - theirs.keys():
        assert ours[extra].default is not inspect.Parameter.empty


def test_methods_of_the_model():
    """Every method of openai-whisper's class takes the same arguments, with the same defaults."""
    methods = [name for name in vars(whisper.Whisper) if inspect.isroutine(getattr(whisper.Whisper, name))]
    assert {"transcribe", "decode", "detect_language", "embed_audio", "forward"} <= set(methods)
    for name in methods:
        theirs = inspect.signature(getattr(whisper.Whisper, name)).parameters
        ours = inspect.signature(getattr(whisper_at.WhisperAT, name)).parameters
        assert set(theirs) <= set(ours), name
        if name not in ("__init__", "_apply"):
            assert {key: theirs[key].default for key in theirs} == {key: ours[key].default for key in theirs}, name


def test_available_models():
    assert whisper_at.available_models() == [*whisper.available_models(), "nano.en"]


def test_it_does_not_touch_whisper():
    """D23: the earlier package installed a command called `whisper`; nothing of upstream's is replaced."""
    assert whisper.transcribe.__module__ == "whisper.transcribe"
    assert whisper.load_audio.__module__ == "whisper.audio"
    assert whisper.load_model.__module__ == "whisper"


def test_submodules_are_ours_from_the_first_import():
    """``from whisper import *`` binds names that importing a submodule of the same name would then not look for."""
    code = "import whisper_at, pkgutil, whisper; print([n for n in dir(whisper_at) if hasattr(whisper, n)"
    code += " and getattr(getattr(whisper_at, n), '__name__', '') == f'whisper.{n}'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_writers_of_utils_take_tags(model_en, tmp_path):
    """D26: a result with tags could not be written as JSON."""
    result = model_en.transcribe(noise(1), temperature=0.0, sample_len=4)
    whisper_at.utils.get_writer("json", str(tmp_path))(result, "a.wav")
    assert json.loads((tmp_path / "a.json").read_text())["text"] == result["text"]
