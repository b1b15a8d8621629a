"""Evaluation of nano.en on held-out audio, by the unmodified `whisper.transcribe`.

    python -m recipes.nano.evaluate --out DIR [--model FILE] [--head FILE] [--quick]

`DIR` is the folder of a training run. Prints one line per figure and writes `evaluation.json`.
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
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from whisper_at.tagging.heads import PREFIX
from whisper_at.tagging.labels import find_class

from .data import HELD_OUT_FILE, SOUNDS, Pools, read_pools
from .espeak import RATE
from .head import new_head, pooled_states
from .held_out import add_noise, long_recording, random_digit_string, to_float
from .scenes import CLASS_NAMES, SILENCE, SPEECH


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Return the Levenshtein distance between two lists of words."""
    row = list(range(len(hypothesis) + 1))
    for i, a in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(hypothesis, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).split()


class Evaluation:
    """Checks of a model; ``figures`` collects their results by name.

    Parameters
    ----------
    model : whisper.Whisper
        The recogniser.
    head : Path
        File of the head.
    pools : Pools
        Held-out recordings and speech.
    quick : bool
        Use about a third of the cases.
    """

    def __init__(self, model: whisper.Whisper, head: Path, pools: Pools, quick: bool) -> None:
        self.model, self.head, self.pools, self.share = model, head, pools, 0.35 if quick else 1.0
        self.figures: dict[str, float] = {}

    def n_cases(self, count: int) -> int:
        """Return the number of cases to use out of ``count``."""
        return max(1, round(count * self.share))

    def report(self, name: str, value: float, note: str = "") -> None:
        """Print and keep a figure."""
        self.figures[name] = round(float(value), 4)
        print(f"{name:44s} {value:8.4f}  {note}", flush=True)

    def report_word_errors(self, name: str, cases: list[tuple[np.ndarray, list[str]]]) -> None:
        """Report the word error rate over pairs of audio and words."""
        errors = total = 0
        worst: list[str] = []
        for audio, words in cases:
            reference = split_words(" ".join(words))
            hypothesis = split_words(self.model.transcribe(audio, language="en")["text"])
            distance = edit_distance(reference, hypothesis)
            errors, total = errors + distance, total + len(reference)
            if distance > 2:
                worst.append(f"{len(reference)} words, {distance} errors, {len(hypothesis)} written")
        self.report(name, errors / total, f"{errors} of {total}  {worst[:3] if worst else ''}")


def check_speech(e: Evaluation) -> None:
    """Measure word error rates of digits and sentences, clean and in noise."""
    pools = e.pools
    for snr in (None, 20, 10, 5, 0):
        rng = random.Random(7)
        strings = [random_digit_string(rng, pools) for _ in range(e.n_cases(60))]
        e.report_word_errors(
            f"digit strings {'clean' if snr is None else f'{snr} dB'}",
            [(to_float(u.audio) if snr is None else add_noise(rng, pools, u.audio, snr), u.words) for u in strings],
        )
    rng = random.Random(8)
    takes = rng.sample(pools.test_takes, e.n_cases(150))
    e.report_word_errors("single digits", [(to_float(t.audio), [str(t.digit)]) for t in takes])
    strings = rng.sample(pools.test_digits, e.n_cases(60))
    e.report_word_errors("synthetic digit strings", [(to_float(u.audio), u.words) for u in strings])
    for name, is_variant in (("plain voices", False), ("held-out voices", True)):
        sentences = [u for u in pools.test_sentences if ("+" in u.voice) == is_variant]
        sentences = rng.sample(sentences, min(len(sentences), e.n_cases(60)))
        e.report_word_errors(f"sentences clean, {name}", [(to_float(u.audio), u.words) for u in sentences])
    sentences = rng.sample(pools.test_sentences, e.n_cases(60))
    e.report_word_errors("sentences 10 dB", [(add_noise(rng, pools, u.audio, 10), u.words) for u in sentences])


def check_long(e: Evaluation) -> None:
    """Measure word error rates of files of one to two minutes."""
    for name, sentences, snr, count in (
        ("digits clean", False, None, 8),
        ("digits 15 dB", False, 15, 8),
        ("sentences clean", True, None, 4),
    ):
        rng = random.Random(9)
        files = [long_recording(rng, e.pools, rng.uniform(60, 115), sentences) for _ in range(e.n_cases(count))]
        e.report_word_errors(
            f"long files, {name}",
            [(to_float(u.audio) if snr is None else add_noise(rng, e.pools, u.audio, snr), u.words) for u in files],
        )


def check_sounds_without_speech(e: Evaluation) -> None:
    """Measure how often sounds, noise and silence get text, and the no-speech probability."""
    generator = np.random.default_rng(0)
    cases = [to_float(c.audio) for c in e.pools.test_clips]
    cases += [np.concatenate([a, b, a])[: RATE * 14] for a, b in zip(cases, cases[7:])][::4]
    cases += [np.zeros(RATE * s, np.float32) for s in (1, 5, 40)]
    cases += [(0.05 * generator.standard_normal(RATE * s)).astype(np.float32) for s in (1, 5, 40)]
    has_text = [bool(e.model.transcribe(c, language="en")["text"].strip()) for c in cases]
    e.report("share of sounds that get text", np.mean(has_text), f"{sum(has_text)} of {len(has_text)}")
    rng = random.Random(3)
    options = whisper.DecodingOptions(language="en", fp16=False)

    def no_speech_prob(audio: np.ndarray) -> float:
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(audio))
        return whisper.decode(e.model, mel, options).no_speech_prob

    e.report("median no_speech_prob of sounds", np.median([no_speech_prob(c) for c in cases[: e.n_cases(45)]]))
    strings = [to_float(random_digit_string(rng, e.pools).audio) for _ in range(e.n_cases(20))]
    e.report("median no_speech_prob of digit strings", np.median([no_speech_prob(s) for s in strings]))


def check_word_times(e: Evaluation) -> None:
    """Measure the error of word starts."""
    pools, rng = e.pools, random.Random(11)
    sets = {
        "digit strings": [random_digit_string(rng, pools) for _ in range(e.n_cases(40))],
        "sentences": rng.sample(pools.test_sentences, e.n_cases(40)),
        "long files": [long_recording(rng, pools, 70, i % 3 == 2) for i in range(e.n_cases(5))],
    }
    for name, utterances in sets.items():
        differences: list[float] = []
        total = 0
        for u in utterances:
            reference = [(split_words(w)[0], a / RATE) for w, (a, _) in zip(u.words, u.spans) if split_words(w)]
            result = e.model.transcribe(to_float(u.audio), language="en", word_timestamps=True)
            words = [w for segment in result["segments"] for w in segment["words"]]
            found = [(split_words(w["word"])[0], w["start"]) for w in words if split_words(w["word"])]
            match = SequenceMatcher(None, [w for w, _ in reference], [w for w, _ in found], autojunk=False)
            for block in match.get_matching_blocks():
                pairs = zip(reference[block.a : block.a + block.size], found[block.b : block.b + block.size])
                differences += [abs(a - b) for (_, a), (_, b) in pairs]
            total += len(reference)
        n_found = len(differences)
        differences = differences or [99.0]
        e.report(
            f"word start error, {name}: median s",
            np.median(differences),
            f"90 %: {np.quantile(differences, 0.9):.2f} s; {n_found} of {total} words",
        )


def check_tags(e: Evaluation) -> None:
    """Measure the average precision of the sounds, alone and under speech, of Speech and of Silence."""
    if not e.head.exists():
        return
    head = new_head(e.model)
    head.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in load_file(e.head).items()})
    head.eval()
    index = [find_class(SOUNDS.get(name, [name])[0]) for name in CLASS_NAMES]

    @torch.no_grad()
    def logits(recordings: list[np.ndarray]) -> np.ndarray:
        out = []
        for audio in recordings:
            mel = whisper.log_mel_spectrogram(torch.from_numpy(audio), padding=30 * RATE)[:, : len(audio) // 160]
            n_steps = max(1, round(len(audio) / RATE / 0.4))
            states = pooled_states(e.model, whisper.pad_or_trim(mel, 3000)[None])[:, :, :n_steps]
            out.append(head(states)[0, index].numpy())
        return np.stack(out)

    clips, rng = e.pools.test_clips, random.Random(5)
    truth = np.array([[c.sound == s for s in SOUNDS] for c in clips])

    def under_speech(snr: float) -> list[np.ndarray]:
        mixtures = []
        for clip in clips:
            strings = [random_digit_string(rng, e.pools, 3, 8).audio for _ in range(4)]
            speech = np.concatenate(strings)[: len(clip.audio)]
            speech = np.pad(speech, (0, len(clip.audio) - len(speech)))
            mixtures.append(add_noise(rng, e.pools, speech, snr, clip.audio).astype(np.float32))
        return mixtures

    speech = [to_float(random_digit_string(rng, e.pools).audio) for _ in clips]
    quiet = [np.zeros(RATE * s, np.float32) for s in range(1, 11)]
    quiet += [(1e-4 * np.random.default_rng(s).standard_normal(RATE * 5)).astype(np.float32) for s in range(5)]
    of_sounds = logits([to_float(c.audio) for c in clips])
    for name, scores in (
        ("alone", of_sounds),
        ("under speech, 0 dB", logits(under_speech(0))),
        ("under 10 dB louder speech", logits(under_speech(10))),
    ):
        by_class = [average_precision_score(truth[:, i], scores[:, i]) for i in range(len(SOUNDS))]
        note = " ".join(f"{s}:{p:.2f}" for s, p in zip(SOUNDS, by_class))
        e.report(f"sounds {name}: mean average precision", np.mean(by_class), note)
    of_speech, of_quiet = logits(speech), logits(quiet)
    for name, column, positive, negative in (
        ("Speech", SPEECH, of_speech, [of_sounds, of_quiet]),
        ("Silence", SILENCE, of_quiet, [of_sounds, of_speech]),
    ):
        scores = np.concatenate([positive[:, column], *(n[:, column] for n in negative)])
        is_positive = np.arange(len(scores)) < len(positive)
        e.report(f"{name}: average precision", average_precision_score(is_positive, scores))


CHECKS = {
    "speech": check_speech,
    "long": check_long,
    "sounds_without_speech": check_sounds_without_speech,
    "word_times": check_word_times,
    "tags": check_tags,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--model", type=Path, help="checkpoint; nano.en.pt of the run by default")
    parser.add_argument("--head", type=Path, help="head; nano.en.head.safetensors of the run by default")
    parser.add_argument("--quick", action="store_true", help="use a third of the cases")
    parser.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS), help="checks to run")
    args = parser.parse_args()
    start = time.time()
    checkpoint = args.model or args.out / "nano.en.pt"
    head = args.head or args.out / "nano.en.head.safetensors"
    torch.manual_seed(0)
    pools = read_pools(args.out / HELD_OUT_FILE)
    evaluation = Evaluation(whisper.load_model(str(checkpoint), device="cpu"), head, pools, args.quick)
    for name in args.only:
        CHECKS[name](evaluation)
    evaluation.report("size of the checkpoint, MB", checkpoint.stat().st_size / 1e6)
    print(f"{(time.time() - start) / 60:.1f} minutes")
    path = args.out / "evaluation.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(earlier | evaluation.figures, indent=1))


if __name__ == "__main__":
    main()
