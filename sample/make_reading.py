"""Make ``reading.ogg``: a real voice and real sounds, from recordings that may be passed on.

Usage::

    python sample/make_reading.py SPEECH SONIC_PI OPENCLONK

The folders are ``test/data/librivox`` of Debian's package pocketsphinx-testdata (LibriVox's reading of Jane Austen's
"Sense and Sensibility", public domain), ``samples`` of sonic-pi-samples (CC0 1.0), and the unpacked ``Sound.ocg`` of
openclonk-data (`recipes.open_head.openclonk` unpacks it; authors and licences are in README.md). Needs scipy and
soundfile.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

SAMPLE_RATE = 16000
SECONDS = 51
FADE = 0.02  # seconds, at both ends of every part
SPEECH = "sense_and_sensibility_01_austen_64kb-{}.wav"

# start and end (s), folder, file, peak
PARTS = (
    (0.5, 8.0, "speech", SPEECH.format("0870"), 0.6),
    (8.0, 13.5, "openclonk", "Environment.ocg/BirdsLoop.ogg", 0.4),
    (13.6, 19.5, "speech", SPEECH.format("0890"), 0.6),
    (20.0, 30.0, "sonic_pi", "guit_em9.flac", 0.4),
    (24.4, 30.6, "speech", SPEECH.format("0920"), 0.6),
    (31.0, 38.5, "openclonk", "Fire.ocg/Fire.ogg", 0.4),
    (39.0, 46.0, "sonic_pi", "loop_amen_full.flac", 0.4),
    (46.4, 50.0, "speech", SPEECH.format("0930"), 0.6),
)


def read(path: Path) -> np.ndarray:
    """Return a recording as float64 ``(samples,)`` at 16 kHz."""
    samples, rate = soundfile.read(path, always_2d=True)
    common = math.gcd(rate, SAMPLE_RATE)
    return resample_poly(samples.mean(axis=1), SAMPLE_RATE // common, rate // common)


def main() -> None:
    """Write ``reading.ogg`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("speech", "sonic_pi", "openclonk"):
        parser.add_argument(name, type=Path)
    folders = vars(parser.parse_args())
    mixed = np.zeros(SECONDS * SAMPLE_RATE)
    for start, end, folder, name, peak in PARTS:
        samples = read(folders[folder] / name)
        first, length = round(start * SAMPLE_RATE), round((end - start) * SAMPLE_RATE)
        if folder == "openclonk" and "Loop" in name:  # made to be repeated
            samples = np.tile(samples, -(-length // len(samples)))
        samples = samples[:length]
        fade = np.minimum(1, np.arange(1, len(samples) + 1) / (FADE * SAMPLE_RATE))
        mixed[first : first + len(samples)] += samples * fade * fade[::-1] * peak / np.abs(samples).max()
        print(f"{start:5.1f} – {start + len(samples) / SAMPLE_RATE:5.1f}  {name}")
    soundfile.write(Path(__file__).with_name("reading.ogg"), mixed, SAMPLE_RATE, format="OGG", subtype="VORBIS")


if __name__ == "__main__":
    main()
