"""Make ``whisper_at/assets/background/``: what own sounds are told apart from, in clips of ten seconds.

    python -m recipes.background DATA

DATA holds what `README.md` lists. Speech in many languages, music, noise and silence; every recording may be passed on
(sources and licences are in the README). Needs fluidsynth, imageio-ffmpeg, scipy and soundfile.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import soundfile
from scipy.signal import lfilter, resample_poly

from recipes.open_head.instruments import band, phrase, render

SAMPLE_RATE = 16000
SECONDS = 10
OUTPUT = Path(__file__).parents[2] / "whisper_at" / "assets" / "background"

WATSON = {
    "ar": ("ar-AR_Broadband_sample1", "ar-AR_Broadband_sample2"),
    "de": ("de-DE_NarrowbandModel_sample1", "de-DE_NarrowbandModel_sample2"),
    "en": ("en-US_Broadband_sample1", "en-US_Broadband_sample2", "en-GB_Broadband_sample1", "en-GB_Broadband_sample2"),
    "es": ("es-ES_Broadband_sample1", "es-ES_Broadband_sample2", "Es_ES_spk24_8khz"),
    "fr": ("fr-FR_Broadband_sample1", "fr-FR_Broadband_sample2"),
    "it": ("it-IT_BroadbandModel_sample1", "it-IT_BroadbandModel_sample2"),
    "ja": ("ja-JP_Broadband_sample1", "ja-JP_Broadband_sample2", "sample-Ja_JP-narrow6"),
    "ko": ("ko-KR_BroadbandModel_sample1", "ko-KR_BroadbandModel_sample2", "ko-KR_NarrowbandModel_sample2"),
    "nl": ("dutch_duo_sample_2-mono-BB", "new_single2-mono"),
    "pt": ("pt-BR_Sample1-16KHz", "pt-BR_Sample2-16KHz"),
    "zh": ("zh-CN_sample1_for_16k", "zh-CN_sample2_for_8k"),
}
PICOVOICE = ("test", "test_de", "test_es", "test_fr", "test_it", "test_ja", "test_ko", "test_pt", "diarization_test")
LOOPS = ("ambi_choir", "ambi_piano", "guit_em9", "loop_amen_full", "loop_compus", "loop_garzul", "loop_tabla")
BANDS = 9
SOLOS = (0, 4, 11, 16, 19, 22, 24, 26, 40, 41, 42, 43, 45, 46, 52, 56, 57, 58, 60, 65, 68, 71, 73, 105)
"""General MIDI programs; two play one after the other in each clip."""


def read(path: Path) -> np.ndarray:
    """Return a recording, float64 of shape (samples,) at 16 kHz, its peak at 0.5."""
    samples, rate = soundfile.read(path, always_2d=True)
    common = math.gcd(rate, SAMPLE_RATE)
    samples = resample_poly(samples.mean(axis=1), SAMPLE_RATE // common, rate // common)
    return 0.5 * samples / max(1e-9, np.abs(samples).max())


def write(path: Path, samples: np.ndarray) -> None:
    """Write a mono recording as Opus."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "f64le", "-ar", str(SAMPLE_RATE), "-i", "-"]
    command += ["-c:a", "libopus", "-b:a", "24k", "-map_metadata", "-1", "-fflags", "+bitexact", str(path)]
    subprocess.run(command, input=samples.tobytes(), check=True)


def pieces(samples: np.ndarray, most: int = 2) -> list[np.ndarray]:
    """Return the first pieces of ten seconds; the last may have three."""
    size = SECONDS * SAMPLE_RATE
    cut = [samples[first : first + size] for first in range(0, len(samples), size)][:most]
    return [piece for piece in cut if len(piece) >= 3 * SAMPLE_RATE]


def speech(data: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Return speech: its language, and samples."""
    for language, names in WATSON.items():
        for name in names:
            yield from ((language, piece) for piece in pieces(read(data / "watson" / f"{name}.wav")))
    for name in PICOVOICE:
        language = name.partition("_")[2] if name.startswith("test_") else "en"
        yield from ((language, piece) for piece in pieces(read(data / "picovoice" / f"{name}.wav")))
    for path in sorted((data / "librivox").glob("*.wav")):
        yield from (("en", piece) for piece in pieces(read(path)))


def music(data: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Return music: loops that are played again and again, pieces for a band, and phrases of single instruments."""
    for name in LOOPS:
        loop = read(data / "sonic_pi" / f"{name}.flac")
        yield "loop", np.resize(loop, SECONDS * SAMPLE_RATE)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(BANDS):
            path = Path(folder) / f"{number}.wav"
            render(band(rng), [data / "FluidR3_GM.sf2"], path)
            yield from (("band", piece) for piece in pieces(read(path), 1))
        for first in range(0, len(SOLOS), 2):
            parts = []
            for program in SOLOS[first : first + 2]:
                render(phrase(rng, 0, program), [data / "FluidR3_GM.sf2"], path)
                parts.append(np.pad(read(path), (0, SECONDS * SAMPLE_RATE // 2))[: SECONDS * SAMPLE_RATE // 2])
            yield "solo", np.concatenate(parts)


def noise() -> Iterator[tuple[str, np.ndarray]]:
    """Return synthetic noise: white, pink, brown, of a fan, of mains."""
    rng = np.random.default_rng(0)
    size = SECONDS * SAMPLE_RATE
    seconds = np.arange(size) / SAMPLE_RATE
    white = rng.standard_normal(size)
    pink = lfilter([0.049922, -0.095993, 0.050613, -0.004409], [1, -2.494956, 2.017266, -0.522190], white)
    brown = lfilter([1], [1, -0.99], white)
    hum = sum(np.sin(2 * np.pi * 50 * k * seconds + k) / k for k in (1, 2, 3, 5, 7))
    fan = lfilter([1], [1, -0.95], white) * (1 + 0.3 * np.sin(2 * np.pi * 7 * seconds))
    for name, samples in (("white", white), ("pink", pink), ("brown", brown), ("mains", hum), ("fan", fan)):
        yield name, samples / np.abs(samples).max() * 0.1


def silence() -> Iterator[tuple[str, np.ndarray]]:
    """Return digital silence, and what quiet microphones and rooms have of noise and hum, at many levels."""
    rng = np.random.default_rng(1)
    size = SECONDS * SAMPLE_RATE
    hum = np.sin(2 * np.pi * 50 * np.arange(size) / SAMPLE_RATE) + np.sin(
        2 * np.pi * 150 * np.arange(size) / SAMPLE_RATE
    )
    yield "silence", np.zeros(size)
    for level in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 2e-3):
        yield "microphone", level * rng.standard_normal(size)
        room = lfilter([1], [1, -0.97], rng.standard_normal(size))
        yield "room", level * room / room.std() + 0.1 * level * rng.standard_normal(size)
    for level in (1e-4, 1e-3):
        yield "hum", level * (hum + 0.3 * rng.standard_normal(size))


def main() -> None:
    """Write the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    kinds = {"speech": speech(data), "music": music(data), "noise": noise(), "silence": silence()}
    for kind, clips in kinds.items():
        shutil.rmtree(OUTPUT / kind, ignore_errors=True)
        (OUTPUT / kind).mkdir(parents=True)
        seconds = 0.0
        for number, (name, samples) in enumerate(clips):
            path = OUTPUT / kind / f"{number:02}-{name}.opus"
            write(path, samples)
            seconds += len(samples) / SAMPLE_RATE
        size = sum(path.stat().st_size for path in (OUTPUT / kind).iterdir())
        print(f"{kind}: {number + 1} clips, {seconds / 60:.1f} minutes, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
