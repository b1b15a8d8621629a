"""Make ``reading.ogg``: a real voice and real sounds, from recordings that anybody may use.

Usage::

    python sample/make_reading.py SPEECH_FOLDER SOUNDS_FOLDER

The sentences are LibriVox's reading of Jane Austen's "Sense and Sensibility" (public domain), as the package
pocketsphinx-testdata of Debian has them in ``test/data/librivox``; the sounds are those of Sonic Pi (CC0 1.0), as
Debian's package sonic-pi-samples has them. Needs scipy and soundfile.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

SAMPLE_RATE = 16000
SECONDS = 60
FADE = 0.02  # seconds, at both ends of every part
SPEECH = "sense_and_sensibility_01_austen_64kb-{}.wav"

# start (s), file, peak
PARTS = (
    (0.5, SPEECH.format("0870"), 0.6),
    *((second, "misc_crow.flac", 0.5) for second in (8.7, 9.6, 10.6, 11.5, 12.3)),
    (13.6, SPEECH.format("0890"), 0.6),
    (20.0, "guit_em9.flac", 0.45),
    (24.4, SPEECH.format("0920"), 0.6),
    (32.0, "perc_bell.flac", 0.5),
    (39.0, "loop_amen_full.flac", 0.4),
    (46.4, SPEECH.format("0930"), 0.6),
    (50.0, "loop_tabla.flac", 0.45),
)


def read(path: Path) -> np.ndarray:
    """Return a recording as float64 ``(samples,)`` at 16 kHz."""
    samples, rate = soundfile.read(path, always_2d=True)
    common = math.gcd(rate, SAMPLE_RATE)
    return resample_poly(samples.mean(axis=1), SAMPLE_RATE // common, rate // common)


def main() -> None:
    """Write ``reading.ogg`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("speech", type=Path, help="folder of the sentences")
    parser.add_argument("sounds", type=Path, help="folder of the sounds")
    args = parser.parse_args()
    mixed = np.zeros(SECONDS * SAMPLE_RATE)
    for start, name, peak in PARTS:
        samples = read((args.speech if name.endswith(".wav") else args.sounds) / name)
        samples = samples[: len(mixed) - round(start * SAMPLE_RATE)]
        fade = np.minimum(1, np.arange(1, len(samples) + 1) / (FADE * SAMPLE_RATE))
        samples = samples * fade * fade[::-1] * peak / np.abs(samples).max()
        at = round(start * SAMPLE_RATE)
        mixed[at : at + len(samples)] += samples
        print(f"{start:5.1f} – {start + len(samples) / SAMPLE_RATE:5.1f}  {name}")
    soundfile.write(Path(__file__).with_name("reading.ogg"), mixed, SAMPLE_RATE, format="OGG", subtype="VORBIS")


if __name__ == "__main__":
    main()
