"""Make the recordings of this folder: speech by espeak-ng, all other sounds by numpy.

    python sample/make_samples.py [FOLDER]

Needs `espeak-ng` on the PATH, numpy and soundfile. Seeds are fixed, so the sounds are always the same; speech may
differ slightly between versions of espeak-ng.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from whisper_at import load_audio

RATE = 16000  # Hz


# --- sounds: each returns float64 (samples,) with a root mean square of about 1 ----------------------------


def time_axis(n: float) -> np.ndarray:
    """Return the times of the samples of ``n`` seconds."""
    return np.arange(round(n * RATE)) / RATE


def shaped_noise(n: float, gain, seed: int) -> np.ndarray:
    """Return white noise with its spectrum multiplied by ``gain(frequency in Hz)``."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=round(n * RATE)))
    spectrum *= gain(np.fft.rfftfreq(round(n * RATE), 1 / RATE))
    return normalise(np.fft.irfft(spectrum, round(n * RATE)))


def normalise(x: np.ndarray) -> np.ndarray:
    """Scale to a root mean square of 1."""
    return x / (np.sqrt(np.mean(x**2)) + 1e-12)


def add_at(target: np.ndarray, x: np.ndarray, at: float) -> None:
    """Add ``x`` to ``target`` from ``at`` seconds on, as far as it fits."""
    start = round(at * RATE)
    x = x[: max(0, len(target) - start)]
    target[start : start + len(x)] += x


def rain(n: float, seed: int = 1) -> np.ndarray:
    """Return a steady hiss of slightly varying level, with single drops."""
    rng = np.random.default_rng(seed)
    swell = 1 + 0.15 * np.sin(2 * np.pi * 0.23 * time_axis(n) + rng.uniform(0, 6))
    sound = swell * shaped_noise(n, lambda f: (f / (f + 700)) * np.exp(-((f / 6500) ** 2)), seed)
    drops = np.zeros_like(sound)
    for at in rng.uniform(0, n, round(45 * n)):
        length = rng.uniform(0.004, 0.012)
        t = time_axis(5 * length)
        burst = np.sin(2 * np.pi * rng.uniform(900, 5000) * t) * np.exp(-t / length) * rng.exponential(1.2)
        add_at(drops, burst, at)
    return normalise(sound + drops)


def clock(n: float, seed: int = 2, per_second: float = 2.0) -> np.ndarray:
    """Return a ticking clock: two alternating clicks over faint room noise."""
    rng = np.random.default_rng(seed)
    sound = 0.004 * shaped_noise(n, lambda f: 1 / (1 + f / 300), seed)
    t = time_axis(0.06)
    clicks = []
    for tones in ((2300, 3900, 5600), (1900, 3300, 4800)):
        ring = sum(np.sin(2 * np.pi * f * t + i) * np.exp(-t / (0.006 - 0.001 * i)) for i, f in enumerate(tones))
        clicks.append(ring + 0.8 * rng.normal(size=len(t)) * np.exp(-t / 0.0015))
    for i in range(int(n * per_second)):
        add_at(sound, clicks[i % 2] * rng.uniform(0.9, 1.0), 0.15 + i / per_second)
    return normalise(sound)


def helicopter(n: float, seed: int = 3, blades: float = 11.0) -> np.ndarray:
    """Return pulses of low noise at the rate of the blades, over the harmonics of an engine."""
    t = time_axis(n)
    beat = np.exp(-((((t * blades) % 1.0) / 0.32) ** 2))
    thud = shaped_noise(n, lambda f: (f / (f + 40)) / (1 + (f / 380) ** 2), seed) * (0.12 + beat)
    hiss = shaped_noise(n, lambda f: (f > 500) / (1 + (f / 2200) ** 2), seed + 1) * (0.25 + 0.75 * beat)
    whine = sum(np.sin(2 * np.pi * k * 118 * t + k) / k for k in range(1, 6))
    return normalise(thud + 0.25 * hiss + 0.1 * whine)


def engine(n: float, seed: int = 4, speed: float = 95.0) -> np.ndarray:
    """Return a small motor: pulses with jitter and varying speed, and rough noise."""
    rng = np.random.default_rng(seed)
    t = time_axis(n)
    load = np.interp(t, np.arange(0, n + 1), rng.uniform(0.93, 1.07, int(n) + 2)[: len(np.arange(0, n + 1))])
    phase = 2 * np.pi * np.cumsum(speed * load + 3 * rng.normal(size=len(t))) / RATE
    pulses = sum(np.cos(k * phase + 0.7 * k * k) / k**0.6 for k in range(1, 40))
    rasp = shaped_noise(n, lambda f: (f > 800) * np.exp(-f / 4000), seed + 1) * (1 + np.cos(phase))
    return normalise(normalise(pulses) + 0.35 * rasp)


def door_bell(n: float = 2.5) -> np.ndarray:
    """Return a door bell: two decaying tones."""
    sound = np.zeros(round(n * RATE))
    for at, pitch in ((0.0, 659.3), (0.7, 523.3)):
        t = time_axis(n - at)
        partials = ((1, 1.0, 0.9), (2.01, 0.5, 0.5), (3.03, 0.25, 0.3), (4.2, 0.12, 0.15))
        add_at(sound, sum(a * np.sin(2 * np.pi * pitch * k * t) * np.exp(-t / d) for k, a, d in partials), at)
    return normalise(sound)


def siren(n: float) -> np.ndarray:
    """Return a tone that rises and falls between 600 and 1300 Hz every three seconds."""
    t = time_axis(n)
    phase = 2 * np.pi * np.cumsum(950 - 350 * np.cos(2 * np.pi * t / 3)) / RATE
    return normalise(sum(np.sin(k * phase) / k**1.5 for k in range(1, 6)))


# --- speech ------------------------------------------------------------------------------------------------


def say(text: str, voice: str, words_per_minute: int = 150, pitch: int = 45) -> np.ndarray:
    """Return speech with a root mean square of about 1, without silence at its ends."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "speech.wav"))
        options = ["-v", voice, "-s", str(words_per_minute), "-p", str(pitch), "-w", path]
        subprocess.run(["espeak-ng", *options, text], check=True)
        speech = load_audio(path).astype(np.float64)
    audible = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    return normalise(speech[audible[0] : audible[-1] + 1])


# --- recordings --------------------------------------------------------------------------------------------


def fade(x: np.ndarray, fade_in: float, fade_out: float) -> np.ndarray:
    """Fade a sound in and out, over times in seconds."""
    t = time_axis(len(x) / RATE)
    ramp = np.clip(np.minimum(t / fade_in, (t[-1] - t) / fade_out), 0, 1)
    return x * np.sin(0.5 * np.pi * ramp) ** 2


def mix(n: float, parts: list[tuple[float, float, np.ndarray]], noise_floor: float = -66.0) -> np.ndarray:
    """Mix ``(start in seconds, level in dB of full scale, sound)`` with faint microphone noise."""
    sound = 10 ** (noise_floor / 20) * shaped_noise(n, lambda f: 1 / (1 + f / 2000), seed=99)
    for at, decibels, part in parts:
        add_at(sound, 10 ** (decibels / 20) * part, at)
    return sound


def speech_only() -> np.ndarray:
    return mix(16.0, [
        (0.6, -21, say("She found a small box in the kitchen.", "en-us+f2")),
        (4.6, -21, say("My phone number is four seven one nine.", "en-us")),
        (8.8, -21, say("Where is my key?", "en-gb+f3")),
        (11.6, -21, say("We want to sing in the garden on Saturday.", "en-us+m3")),
    ])  # fmt: skip


def sounds_only() -> np.ndarray:
    return mix(40.0, [
        (0.0, -25, fade(rain(10.0), 0.5, 0.5)),
        (10.0, -40, fade(clock(10.0), 0.1, 0.1)),
        (20.0, -24, fade(helicopter(10.0), 1.0, 1.0)),
        (30.0, -24, fade(engine(6.0), 0.3, 0.5)),
        (37.0, -24, fade(door_bell(), 0.005, 0.2)),
    ])  # fmt: skip


def street() -> np.ndarray:
    return mix(56.0, [
        (0.0, -34, fade(rain(19.0, seed=11), 2.0, 3.0)),
        (4.0, -20, say("The rain is very strong today.", "en-us")),
        (7.6, -20, say("Please open the door.", "en-us+f2")),
        (11.2, -28, fade(door_bell(), 0.005, 0.2)),
        (17.0, -31, fade(helicopter(12.0, seed=12), 3.0, 3.0)),
        (20.0, -20, say("The bus came to the station.", "en-us")),
        (23.6, -20, say("My bus number is three one four one five.", "en-gb+f3", 140)),
        (30.0, -46, fade(clock(14.0, seed=13), 0.3, 0.3)),
        (33.0, -20, say("Where is my ticket?", "en-us+f2")),
        (35.6, -20, say("I left a small bag in the kitchen.", "en-us+m3")),
        (44.0, -33, fade(rain(12.0, seed=14), 2.0, 2.0)),
        (48.0, -20, say("We can walk to the market tomorrow.", "en-us+f2")),
        (51.6, -31, fade(siren(4.0), 1.5, 1.5)),
    ])  # fmt: skip


RECORDINGS = {"speech.flac": speech_only, "sounds.ogg": sounds_only, "street.ogg": street}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, make in RECORDINGS.items():
        sound = make()
        peak = np.abs(sound).max()
        if peak > 0.9:
            raise ValueError(f"{name} would clip: its peak is {peak:.2f}")
        with soundfile.SoundFile(folder / name, "w", RATE, 1) as file:
            for start in range(0, len(sound), RATE):  # libsndfile's Vorbis encoder fails on long pieces
                file.write(sound[start : start + RATE])
        size = (folder / name).stat().st_size
        loudness = 20 * np.log10(np.sqrt(np.mean(sound**2)))
        print(f"{name}: {len(sound) / RATE:.1f} s, {size / 1e3:.0f} kB, peak {peak:.2f}, {loudness:.1f} dB")


if __name__ == "__main__":
    main()
