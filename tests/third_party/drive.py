"""Drive one program that stands on openai-whisper, as it is or with whisper_at in whisper's place; print its result.

``python tests/third_party/drive.py PROGRAM PACKAGE MODEL AUDIO``, PACKAGE being whisper or whisper_at.
"""

from __future__ import annotations

import builtins
import json
import shutil
import sys
import tempfile
import types
from importlib import import_module
from pathlib import Path
from typing import Any, Literal


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


def haystack_integrations(model: str, audio: str) -> Any:
    from haystack.dataclasses import ByteStream
    from haystack.utils import ComponentDevice
    from haystack_integrations.components.audio.whisper import whisper_local as program

    program.WhisperLocalModel = Literal[model]  # its own list of choices
    options = {"language": "en", "word_timestamps": True, "return_segments": True}
    found = program.LocalWhisperTranscriber(model, ComponentDevice.from_str("cpu"), options)
    sources = [audio, Path(audio), ByteStream.from_file_path(Path(audio))]
    results = [found.run([source])["documents"][0] for source in sources]
    assert type(found).from_dict(found.to_dict()).model == model
    return [[result.content, result.meta["segments"], result.meta["language"]] for result in results]


def lhotse(model: str, audio: str) -> Any:
    import lhotse as program

    recording = program.Recording.from_file(audio, recording_id="recording")
    half = recording.duration / 2
    cuts = [program.MonoCut(str(i), i * half, half, 0, recording=recording) for i in range(2)]
    options = {"model_name": model, "device": "cpu", "language": "en"}
    found = [*program.annotate_with_whisper(program.RecordingSet.from_recordings([recording]), **options)]
    found += program.annotate_with_whisper(
        program.CutSet.from_cuts(cuts), force_nonoverlapping=True, beam_size=2, **options
    )
    return [[supervision.to_dict() for supervision in cut.supervisions] for cut in found]


def trainscribe(model: str, audio: str) -> Any:
    from trainscribe import main as program

    with tempfile.TemporaryDirectory() as folder:
        for i in range(2):
            shutil.copy(audio, Path(folder, f"{i}{Path(audio).suffix}"))
        return program.trainscribe(Path(folder), model=model, device="cpu").read_text(encoding="utf-8")


def whisper_online(model: str, audio: str) -> Any:
    """Of ufal/whisper_streaming: a recording that comes in second by second."""
    import whisper_online as program

    asr = program.WhisperTimestampedASR("en", model)
    online = program.OnlineASRProcessor(asr, buffer_trimming=("segment", 8))
    samples = program.load_audio(audio)
    found = []
    for start in range(0, len(samples), 16000):
        online.insert_audio_chunk(samples[start : start + 16000])
        found.append(online.process_iter())
    return [*found, online.finish()]


def subsai(model: str, audio: str) -> Any:
    """Its classes for openai-whisper and whisper-timestamped. What its others need is not imported."""
    package = types.ModuleType("subsai")
    package.__path__ = [str(Path(folder, "subsai")) for folder in sys.path if Path(folder, "subsai/models").is_dir()]
    sys.modules["subsai"] = package
    found = []
    for module, kind in (("whisper_model", "WhisperModel"), ("whisper_timestamped_model", "WhisperTimeStamped")):
        program = getattr(import_module(f"subsai.models.{module}"), kind)
        config = {"model_type": model, "device": "cpu", "language": "en", "fp16": False}
        found.append(program(config).transcribe(audio).to_string("srt"))
    return found


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
    "whisper-timestamped": whisper_timestamped,
    "stable-ts": stable_whisper,
    "auto-subtitle": auto_subtitle,
    "SpeechRecognition": speech_recognition,
    "whisper-haystack": haystack_integrations,
    "lhotse": lhotse,
    "trainscribe": trainscribe,
    "whisper-normalizer": whisper_normalizer,
    "whisper_streaming": whisper_online,
    "subsai": subsai,
}
"""By the name of the distribution, or of the repository if no registry has it. A function has the name of the module
that is given another package for ``whisper``."""
NOT_IN_REGISTRIES = ("whisper_streaming", "subsai")
"""Programs of which there is a checkout at best. (A package called whisper-streaming is another program.)"""
USES = {"whisper_streaming": ("whisper_timestamped",), "subsai": ("whisper_timestamped",)}
"""Other programs that a program has whisper by."""


if __name__ == "__main__":
    PROGRAM, PACKAGE, MODEL, AUDIO = sys.argv[1:]
    import torch

    torch.manual_seed(0)
    drive = PROGRAMS[PROGRAM]
    if PACKAGE != "whisper":
        replace_whisper((drive.__name__, *USES.get(PROGRAM, ())), PACKAGE)
    found = drive(MODEL, AUDIO)
    print("RESULT " + json.dumps(found, default=float))
