"""What nano.en can do, measured by the unmodified `whisper.transcribe` on what was held out.

    python -m recipes.nano.evaluate --out DIR [--model FILE] [--head FILE] [--quick]

`DIR` is the folder of a training run (it holds the pools). Prints one line per figure and writes `evaluation.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import torch
import whisper

from .data import HELD_OUT, Pools, Take, read_pools
from .espeak import RATE, Utterance


def edits(wanted: list[str], got: list[str]) -> int:
    """Levenshtein distance between two lists of words."""
    row = list(range(len(got) + 1))
    for i, a in enumerate(wanted, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(got, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def words_of(text: str) -> list[str]:
    """Lower-case words of a text without signs."""
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).split()


def string_of(r: random.Random, takes: list[Take], gap: tuple[float, float]) -> Utterance:
    """Takes in a row with pauses of `gap` seconds between them, as int16 sound with word spans."""
    pieces, spans, at = [], [], 0
    for i, take in enumerate(takes):
        pieces.append(take.audio)
        spans.append((at + take.first, at + take.last))
        at += len(take.audio)
        silence = int(r.uniform(*gap) * RATE) if i + 1 < len(takes) else 0
        pieces.append(np.zeros(silence, np.int16))
        at += silence
    return Utterance(np.concatenate(pieces), [str(t.digit) for t in takes], spans, takes[0].speaker)


def random_string(r: random.Random, pools: Pools, low: int = 3, high: int = 8) -> Utterance:
    """A string of held-out takes of one speaker."""
    speaker = r.choice(sorted({t.speaker for t in pools.test_takes}))
    own = [t for t in pools.test_takes if t.speaker == speaker]
    return string_of(r, [r.choice(own) for _ in range(r.randint(low, high))], (0.05, 0.3))


def long_file(r: random.Random, pools: Pools, seconds: float, sentences: bool) -> Utterance:
    """Many utterances with pauses of 0.5–4 s."""
    pieces, words, spans, at = [], [], [], 0
    while at < seconds * RATE:
        said = r.choice(pools.test_sentences) if sentences else random_string(r, pools, 1, 8)
        pieces += [said.audio, np.zeros(int(r.uniform(0.5, 4.0) * RATE), np.int16)]
        words += said.words
        spans += [(at + a, at + b) for a, b in said.spans]
        at += sum(map(len, pieces[-2:]))
    return Utterance(np.concatenate(pieces), words, spans, "")


def with_noise(
    r: random.Random, pools: Pools, audio: np.ndarray, snr: float | None, sound: np.ndarray | None = None
) -> np.ndarray:
    """float32 sound in −1…1 with a held-out clip (repeated) `snr` dB below the speech; None adds nothing."""
    speech = audio.astype(np.float32) / 32768
    if snr is None:
        return speech
    noise = r.choice(pools.test_clips).audio if sound is None else sound
    noise = noise[np.abs(noise) > 0].astype(np.float32) if sound is None else noise.astype(np.float32)
    noise = np.tile(noise, len(speech) // len(noise) + 1)[: len(speech)]
    power = np.mean(speech[np.abs(speech) > 1e-3] ** 2)
    return np.clip(speech + noise * np.sqrt(power / (np.mean(noise**2) + 1e-12) * 10 ** (-snr / 10)), -1, 1)


class Judge:
    """Runs the checks and gathers their figures in `figures`."""

    def __init__(self, model: whisper.Whisper, pools: Pools, quick: bool) -> None:
        self.model, self.pools, self.share = model, pools, 0.35 if quick else 1.0
        self.figures: dict[str, float] = {}

    def n(self, count: int) -> int:
        return max(1, round(count * self.share))

    def report(self, name: str, value: float, note: str = "") -> None:
        self.figures[name] = round(float(value), 4)
        print(f"{name:44s} {value:8.4f}  {note}", flush=True)

    def errors(self, name: str, cases: list[tuple[np.ndarray, list[str]]]) -> None:
        """Word error rate of (sound, written words)."""
        wrong = total = 0
        worst: list[str] = []
        for audio, words in cases:
            wanted = words_of(" ".join(words))
            got = words_of(self.model.transcribe(audio, language="en")["text"])
            distance = edits(wanted, got)
            wrong, total = wrong + distance, total + len(wanted)
            if distance > 2:
                worst.append(f"{len(wanted)} words, {distance} errors, {len(got)} written")
        self.report(name, wrong / total, f"{wrong} of {total}  {worst[:3] if worst else ''}")

    def speech(self) -> None:
        pools = self.pools
        for snr in (None, 20, 10, 5, 0):
            r = random.Random(7)
            cases = [random_string(r, pools) for _ in range(self.n(60))]
            self.errors(
                f"digit strings {'clean' if snr is None else f'{snr} dB'}",
                [(with_noise(r, pools, u.audio, snr), u.words) for u in cases],
            )
        r = random.Random(8)
        self.errors(
            "single digits",
            [(with_noise(r, pools, t.audio, None), [str(t.digit)]) for t in r.sample(pools.test_takes, self.n(150))],
        )
        self.errors(
            "synthetic digit strings",
            [(with_noise(r, pools, u.audio, None), u.words) for u in r.sample(pools.test_digits, self.n(60))],
        )
        for name, own in (("plain voices", False), ("held-out voices", True)):
            said = [u for u in pools.test_sentences if ("+" in u.voice) == own]
            self.errors(
                f"sentences clean, {name}",
                [(with_noise(r, pools, u.audio, None), u.words) for u in r.sample(said, min(len(said), self.n(60)))],
            )
        self.errors(
            "sentences 10 dB",
            [(with_noise(r, pools, u.audio, 10), u.words) for u in r.sample(pools.test_sentences, self.n(60))],
        )

    def long(self) -> None:
        for name, sentences, snr, count in (
            ("digits clean", False, None, 8),
            ("digits 15 dB", False, 15, 8),
            ("sentences clean", True, None, 4),
        ):
            r = random.Random(9)
            files = [long_file(r, self.pools, r.uniform(60, 115), sentences) for _ in range(self.n(count))]
            self.errors(f"long files, {name}", [(with_noise(r, self.pools, u.audio, snr), u.words) for u in files])

    def sounds_without_speech(self) -> None:
        n = np.random.default_rng(0)
        cases = [c.audio.astype(np.float32) / 32768 for c in self.pools.test_clips]
        cases += [np.concatenate([a, b, a])[: RATE * 14] for a, b in zip(cases, cases[7:])][::4]
        cases += [np.zeros(RATE * s, np.float32) for s in (1, 5, 40)] + [
            (0.05 * n.standard_normal(RATE * s)).astype(np.float32) for s in (1, 5, 40)
        ]
        results = [self.model.transcribe(c, language="en") for c in cases]
        text = [bool(x["text"].strip()) for x in results]
        self.report("share of sounds that get text", np.mean(text), f"{sum(text)} of {len(text)}")
        r = random.Random(3)
        options = whisper.DecodingOptions(language="en", fp16=False)

        def probability(audio: np.ndarray) -> float:
            return whisper.decode(
                self.model, whisper.log_mel_spectrogram(whisper.pad_or_trim(audio)), options
            ).no_speech_prob

        self.report("median no_speech_prob of sounds", np.median([probability(c) for c in cases[: self.n(45)]]))
        strings = [with_noise(r, self.pools, random_string(r, self.pools).audio, None) for _ in range(self.n(20))]
        self.report("median no_speech_prob of digit strings", np.median([probability(s) for s in strings]))

    def word_times(self) -> None:
        pools = self.pools
        r = random.Random(11)
        sets = {
            "digit strings": [random_string(r, pools) for _ in range(self.n(40))],
            "sentences": r.sample(pools.test_sentences, self.n(40)),
            "long files": [long_file(r, pools, 70, i % 3 == 2) for i in range(self.n(5))],
        }
        for name, cases in sets.items():
            off, found, total = [], 0, 0
            for u in cases:
                pairs = [(words_of(w)[0], a / RATE) for w, (a, _) in zip(u.words, u.spans) if words_of(w)]
                result = self.model.transcribe(with_noise(r, pools, u.audio, None), language="en", word_timestamps=True)
                got = [
                    (words_of(w["word"])[0], w["start"])
                    for s in result["segments"]
                    for w in s["words"]
                    if words_of(w["word"])
                ]
                match = SequenceMatcher(None, [w for w, _ in pairs], [w for w, _ in got], autojunk=False)
                matched = [
                    (pairs[m.a + k][1], got[m.b + k][1]) for m in match.get_matching_blocks() for k in range(m.size)
                ]
                off += [abs(a - b) for a, b in matched]
                found, total = found + len(matched), total + len(pairs)
            off = off or [99.0]
            self.report(
                f"word start error, {name}: median s",
                np.median(off),
                f"90 %: {np.quantile(off, 0.9):.2f} s; {found} of {total} words",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--model", type=Path, help="checkpoint; nano.en.pt of the run by default")
    parser.add_argument("--head", type=Path, help="head; nano.en.head.safetensors of the run by default")
    parser.add_argument("--quick", action="store_true", help="a third of the cases")
    parser.add_argument(
        "--only",
        nargs="*",
        help="some of the checks",
        default=["speech", "long", "sounds_without_speech", "word_times", "tags"],
    )
    args = parser.parse_args()
    begun = time.time()
    path = args.model or args.out / "nano.en.pt"
    head = args.head or args.out / "nano.en.head.safetensors"
    torch.manual_seed(0)
    pools = read_pools(args.out / HELD_OUT)
    judge = Judge(whisper.load_model(str(path), device="cpu"), pools, args.quick)
    for name in args.only:
        if name != "tags":
            getattr(judge, name)()
        elif head.exists():
            from .head import judge_tags

            judge_tags(judge, head)
    judge.report("size of the checkpoint, MB", path.stat().st_size / 1e6)
    print(f"{(time.time() - begun) / 60:.1f} minutes")
    table = args.out / "evaluation.json"
    known = json.loads(table.read_text()) if table.exists() else {}
    table.write_text(json.dumps(known | judge.figures, indent=1))


if __name__ == "__main__":
    main()
