"""Notes of the General MIDI instruments and effects, rendered from free soundfonts by `fluidsynth`."""

from __future__ import annotations

import random
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

TICKS = 480  # per quarter note; at 120 beats a minute, 960 ticks are a second
DRUMS = 9  # MIDI channel of the drum kits

PROGRAMS: dict[str, str] = {
    "0-3": "Piano",
    "4-5": "Electric piano",
    "6": "Harpsichord",
    "9": "Glockenspiel",
    "11": "Vibraphone",
    "12-13": "Marimba, xylophone",
    "14": "Tubular bells",
    "16-18": "Electronic organ",
    "19-20": "Organ",
    "21,23": "Accordion",
    "22": "Harmonica",
    "24-25": "Acoustic guitar",
    "26-30": "Electric guitar",
    "32": "Double bass",
    "33-37": "Bass guitar",
    "38-39": "Synthesizer",
    "40,110": "Violin, fiddle",
    "41,44,49": "Bowed string instrument",
    "42": "Cello",
    "43": "Double bass",
    "45": "Pizzicato",
    "46": "Harp",
    "47": "Timpani",
    "48": "String section",
    "50-51": "Synthesizer",
    "52": "Choir",
    "56,59": "Trumpet",
    "57": "Trombone",
    "58,61": "Brass instrument",
    "60": "French horn",
    "62-63": "Synthesizer",
    "64-67": "Saxophone",
    "68-70": "Wind instrument, woodwind instrument",
    "71": "Clarinet",
    "72-73": "Flute",
    "74-77,79": "Wind instrument, woodwind instrument",
    "80-103": "Synthesizer",
    "104": "Sitar",
    "105": "Banjo",
    "106-107": "Plucked string instrument",
    "109": "Bagpipes",
    "111": "Wind instrument, woodwind instrument",
    "114": "Steelpan",
    "115": "Wood block",
}
"""AudioSet class of the General MIDI programs, bank 0."""

EFFECTS: dict[tuple[int, int], str] = {
    (0, 122): "Waves, surf|Ocean",
    (0, 123): "Chirp, tweet|Bird vocalization, bird call, bird song",
    (0, 124): "Telephone bell ringing",
    (0, 125): "Helicopter",
    (0, 126): "Applause",
    (0, 127): "Gunshot, gunfire",
    (1, 122): "Rain",
    (1, 123): "Bark",
    (1, 124): "Telephone",
    (1, 125): "Engine",
    (1, 126): "Laughter",
    (1, 127): "Machine gun",
    (2, 122): "Thunder",
    (2, 123): "Clip-clop",
    (2, 124): "Door|Creak",
    (2, 126): "Screaming",
    (3, 122): "Wind",
    (3, 123): "Bird",
    (3, 124): "Slam",
    (3, 125): "Car passing by",
    (3, 127): "Explosion",
    (4, 122): "Stream",
    (4, 126): "Heart sounds, heartbeat",
    (5, 124): "Wind chime",
    (5, 125): "Siren",
    (5, 126): "Walk, footsteps",
    (6, 125): "Train",
    (7, 125): "Jet engine|Fixed-wing aircraft, airplane",
    (8, 14): "Church bell",
    (8, 24): "Ukulele",
    (8, 25): "Acoustic guitar",
    (8, 26): "Steel guitar, slide guitar",
    (16, 25): "Mandolin",
}
"""AudioSet classes of the sounds in other banks, and of bank 0's effects, by (bank, program)."""

KIT: dict[int, str] = {
    35: "Bass drum",
    36: "Bass drum",
    37: "Rimshot",
    38: "Snare drum",
    40: "Snare drum",
    41: "Drum",
    45: "Drum",
    50: "Drum",
    42: "Hi-hat",
    46: "Hi-hat",
    49: "Cymbal",
    51: "Cymbal",
    57: "Cymbal",
    54: "Tambourine",
    56: "Cowbell",
    70: "Maraca",
    76: "Wood block",
    77: "Wood block",
    39: "Clapping",
    67: "Percussion",
    73: "Percussion",
    81: "Percussion",
}
"""AudioSet class of the keys of a drum kit."""

KITS = (0, 8, 16, 32, 40, 48)
RANGES = {32: (28, 55), 43: (28, 55), 58: (34, 60), 47: (40, 55), 14: (60, 80), 9: (72, 96), 72: (74, 98), 42: (36, 67)}
"""Lowest and highest key of instruments that would sound like another one elsewhere."""

Event = tuple[int, bytes]


def _programs(text: str) -> list[int]:
    """Return the numbers of ``"40,110"`` or ``"0-3"``."""
    out: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def _note(start: int, ticks: int, channel: int, key: int, velocity: int) -> list[Event]:
    return [(start, bytes([0x90 | channel, key, velocity])), (start + ticks, bytes([0x80 | channel, key, 0]))]


def _select(channel: int, bank: int, program: int) -> list[Event]:
    return [(0, bytes([0xB0 | channel, 0, bank])), (0, bytes([0xC0 | channel, program]))]


def midi_file(events: list[Event]) -> bytes:
    """Return a standard MIDI file, format 0, of events at absolute times in ticks."""

    def variable_length(value: int) -> bytes:
        out = [value & 0x7F]
        while value := value >> 7:
            out.append(value & 0x7F | 0x80)
        return bytes(reversed(out))

    track, now = b"", 0
    for at, message in sorted(events, key=lambda event: event[0]):
        track += variable_length(at - now) + message
        now = at
    track += variable_length(960) + b"\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS) + b"MTrk" + struct.pack(">I", len(track)) + track


def phrase(rng: random.Random, bank: int, program: int) -> list[Event]:
    """Return a few notes of one instrument: a single long one, a melody, or chords."""
    events = _select(0, bank, program)
    low, high = RANGES.get(program, (45, 84))
    kind, at, key = rng.choice(["one", "melody", "chords"]), 0, rng.randint(low, high)
    for _ in range({"one": rng.choice([1, 2]), "melody": rng.randint(4, 14), "chords": rng.randint(2, 5)}[kind]):
        ticks = rng.choice([960, 1920, 2880] if kind != "melody" else [240, 240, 480, 480, 960])
        for interval in (0, rng.choice([3, 4]), 7) if kind == "chords" else (0,):
            events += _note(at, ticks, 0, min(high, key + interval), rng.randint(55, 120))
        at += ticks + (rng.choice([0, 0, 480]) if kind != "chords" else 0)
        key = min(high, max(low, key + rng.choice([-5, -4, -2, -1, 1, 2, 3, 4, 7])))
    return events


def effect(rng: random.Random, bank: int, program: int) -> list[Event]:
    """Return an effect, near the key at which it was recorded, once or a few times."""
    events, at = _select(0, bank, program), 0
    for _ in range(rng.choice([1, 2, 3])):
        ticks = rng.choice([1440, 2880, 4800])
        events += _note(at, ticks, 0, 60 + rng.choice([-5, -2, 0, 0, 2, 4]), rng.randint(70, 120))
        at += ticks + rng.choice([0, 480])
    return events


def drum(rng: random.Random, kit: int, key: int) -> list[Event]:
    """Return strokes on one part of a drum kit."""
    events, gap = [(0, bytes([0xC0 | DRUMS, kit]))], rng.choice([240, 480, 960])
    for stroke in range(rng.randint(2, 8)):
        events += _note(stroke * gap, gap // 2, DRUMS, key, rng.randint(60, 125))
    return events


def groove(rng: random.Random, kit: int) -> list[Event]:
    """Return some bars of a drum kit."""
    events, beat = [(0, bytes([0xC0 | DRUMS, kit]))], rng.choice([360, 420, 480, 560])
    for eighth in range(rng.choice([16, 32])):
        at = eighth * beat // 2
        keys = [42] + ([36] if eighth % 8 in (0, 5) else []) + ([38] if eighth % 8 == 4 else [])
        keys += [rng.choice([46, 45, 49, 51])] if rng.random() < 0.15 else []
        for key in keys:
            events += _note(at, beat // 3, DRUMS, key, rng.randint(70, 120))
    return events


def band(rng: random.Random) -> list[Event]:
    """Return a piece for drums, bass, chords and a melody."""
    events = groove(rng, rng.choice(KITS)) if rng.random() < 0.7 else []
    events += _select(1, 0, rng.choice([32, 33, 34, 35, 38])) + _select(
        2, 0, rng.choice([0, 4, 16, 24, 25, 27, 48, 52, 89])
    )
    events += _select(3, 0, rng.choice([0, 11, 22, 26, 40, 56, 61, 65, 71, 73, 80, 81]))
    root, beat = rng.randint(36, 46), rng.choice([420, 480, 560])
    for bar in range(rng.choice([4, 8])):
        base, at = root + rng.choice([0, 0, 5, 7, 9]), bar * 4 * beat
        for quarter in range(4):
            events += _note(at + quarter * beat, beat - 40, 1, base, rng.randint(70, 105))
        third = rng.choice([3, 4])
        for interval in (24, 24 + third, 31):
            events += _note(at, 4 * beat - 60, 2, base + interval, rng.randint(50, 85))
        for eighth in range(8):
            if rng.random() < 0.6:
                key = base + 36 + rng.choice([0, 2, third, 5, 7, 9, 12])
                events += _note(at + eighth * beat // 2, beat // 2, 3, key, rng.randint(70, 115))
    return events


def pieces(rng: random.Random, notes: int) -> Iterator[tuple[str, str, str, list[Event]]]:
    """Return all that is rendered: name, soundfont (``"gm"`` or ``"gs"``), AudioSet classes, events.

    Parameters
    ----------
    rng : Random
        Source of keys, lengths and levels.
    notes : int
        Number of phrases of each instrument.
    """
    for text, labels in PROGRAMS.items():
        for program in _programs(text):
            for take in range(max(1, notes // (3 if program >= 80 and program < 104 else 1))):
                yield f"gm-0-{program}-{take}", "gm", labels, phrase(rng, 0, program)
    for (bank, program), labels in EFFECTS.items():
        melodic = bank in (8, 16)
        for take in range(notes):
            events = phrase(rng, bank, program) if melodic else effect(rng, bank, program)
            yield f"gm-{bank}-{program}-{take}", "gm" if bank in (0, 8, 16) else "gs", labels, events
    for key, labels in KIT.items():
        for kit in rng.sample(KITS, 3):
            yield f"kit-{kit}-{key}", "gm", labels, drum(rng, kit, key)
    for take in range(4 * notes):
        yield f"groove-{take}", "gm", "Drum kit", groove(rng, rng.choice(KITS))
    for take in range(12 * notes):
        yield f"band-{take}", "gm", "Music", band(rng)


def render(events: list[Event], soundfonts: list[Path], path: Path) -> None:
    """Write a piece as a 16 kHz WAV file; of several soundfonts, the last that has an instrument gives it.

    Raises
    ------
    CalledProcessError
        If `fluidsynth` fails.
    """
    with tempfile.NamedTemporaryFile(suffix=".mid") as file:
        file.write(midi_file(events))
        file.flush()
        options = ["-ni", "-q", "-r", "16000", "-g", "0.6", "-o", "synth.midi-bank-select=gs", "-F", str(path)]
        subprocess.run(["fluidsynth", *options, *map(str, soundfonts), file.name], check=True, capture_output=True)
