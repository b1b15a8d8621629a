"""Drive one program that stands on openai-whisper, as it is or with whisper_at in whisper's place; print its result.

``python tests/third_party/drive.py PROGRAM PACKAGE MODEL AUDIO``, PACKAGE being whisper or whisper_at.
"""

from __future__ import annotations

import builtins
import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any


def replace_whisper(programs: tuple[str, ...], package: str) -> None:
    """Give the modules of some programs another package whenever they import ``whisper`` or a module of it."""
    real = builtins.__import__

    def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        importer = ((globals or {}).get("__name__") or "").partition(".")[0]
        if level == 0 and importer in programs and name.partition(".")[0] == "whisper":
            name = package + name.removeprefix("whisper")
            for part in (name.rpartition(".")[0], name):
                if part and part.count("."):
                    import_module(part)
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = import_


def whisper_timestamped(model: str, audio: str) -> Any:
    import whisper_timestamped as program

    loaded = program.load_model(model, device="cpu")
    results = [
        program.transcribe(loaded, program.load_audio(audio), language="en", verbose=None, **options)
        for options in ({}, {"beam_size": 3}, {"naive_approach": True}, {"temperature": (0.0, 0.2), "best_of": 2})
    ]
    return [[result["text"], result["segments"]] for result in results]


def stable_whisper(model: str, audio: str) -> Any:
    import stable_whisper as program

    loaded = program.load_model(model, device="cpu")
    options = {"language": "en", "verbose": None, "fp16": False}
    results = [loaded.transcribe(audio, **options), loaded.transcribe(audio, vad=False, beam_size=3, **options)]
    results.append(loaded.align(audio, results[0].text, language="en", verbose=None))
    return [result.to_dict()["segments"] for result in results]


def speech_recognition(model: str, audio: str) -> Any:
    import speech_recognition as program

    with program.AudioFile(audio) as source:
        data = program.Recognizer().record(source)
    result = program.Recognizer().recognize_whisper(data, model, show_dict=True, language="en", fp16=False)
    return [result["text"], result["segments"], result["language"]]


def auto_subtitle(model: str, audio: str) -> Any:
    from auto_subtitle import cli as program

    program.whisper.available_models = lambda: [model]  # its own list of choices
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["auto_subtitle", audio, "--model", model, "--srt_only", "True", "--output_srt", "True"]
        sys.argv += ["-o", folder]
        program.main()
        return {path.name: path.read_text() for path in Path(folder).iterdir()}


def whisper_normalizer(model: str, audio: str) -> Any:
    """It has a copy of whisper's normalizers: they agree with ours."""
    from whisper_normalizer import basic, english

    package = PACKAGE if PACKAGE == "whisper" else "whisper_at"
    ours = import_module(f"{package}.normalizers")
    texts = [
        "Mr. O'Neil doesn't owe $20.50, he'll pay on the 21st!",
        "Colour, twenty-three & 1,000 – hm",
        "Ångström café",
    ]
    pairs = [
        (ours.EnglishTextNormalizer()(text), english.EnglishTextNormalizer()(text), ours.BasicTextNormalizer()(text))
        for text in texts
    ]
    assert all(one == other for one, other, _ in pairs), pairs
    assert all(basic.BasicTextNormalizer()(text) == plain for text, (_, _, plain) in zip(texts, pairs))
    return pairs


PROGRAMS = {
    each.__name__: each
    for each in (whisper_timestamped, stable_whisper, speech_recognition, auto_subtitle, whisper_normalizer)
}


if __name__ == "__main__":
    PROGRAM, PACKAGE, MODEL, AUDIO = sys.argv[1:]
    import torch

    torch.manual_seed(0)
    if PACKAGE != "whisper":
        replace_whisper((PROGRAM,), PACKAGE)
    found = PROGRAMS[PROGRAM](MODEL, AUDIO)
    print("RESULT " + json.dumps(found, default=float))
