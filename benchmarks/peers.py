"""Time and memory of whisper_at beside openai-whisper, faster-whisper (CTranslate2) and transformers, for equal work.

    python benchmarks/peers.py --size tiny
    python benchmarks/peers.py --size small --seconds 30 --tokens 50 --minutes 6 --modes greedy int8
    python benchmarks/peers.py --json tiny.json --plot tiny.png

All have the same random weights, of an official size, and the same recording of tones and noise. Every window of 30 s
is decoded to the same number of tokens behind the same prompt: the end of text is suppressed, and a random model writes
no timestamps (see weights.py). Each contestant lives in a process of its own; the processes take turns,
A B C A B C …, one at a time, all with the same number of threads, after a warm-up that is not timed.

Seconds are those of one call that takes samples and returns text, medians with least and most. "times" is how many
times as long as the first whisper_at of its mode: the ratio of the medians, and least and most of the ratios of single
turns. "decoded" counts decodings of windows, "tokens" their tokens; "same" is the share that are openai-whisper's. A
"!" stands where the work was not equal. Peak memory is the most that the process ever held in RAM, the loading of the
model included, in MB of 10^6 bytes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import weights

RATE = 16000
WINDOW = 30  # seconds
PAUSE = 0.3  # seconds between two turns: the threads of some libraries spin for a while after their work
NON_SPEECH = -1  # what openai-whisper and faster-whisper suppress by default
PROMPT = 4  # tokens: start, language, task, no timestamps
REFERENCE = "openai-whisper"
Decodings = list[list[int]]  # tokens of every decoding of a window


# --- what is to be done ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """One way to transcribe, in words that fit every peer."""

    beam: int | None = None
    language: str | None = "en"
    fallback: bool = False  # a second try at temperature 0.2 after every first
    words: bool = False
    strict: bool = True  # of words, in whisper_at
    tags: bool = False

    @property
    def temperature(self) -> float | tuple[float, ...]:
        return (0.0, 0.2) if self.fallback else 0.0


class Entry(NamedTuple):
    """A contestant in a mode."""

    label: str
    peer: str
    compute: str
    work: Work


def peers(work: Work, with_transformers: bool = True) -> list[Entry]:
    """The same work for all, in float32."""
    names = ["whisper_at", REFERENCE, "faster-whisper", *["transformers"] * with_transformers]
    return [Entry(name, name, "float32", work) for name in names]


def int8(work: Work) -> list[Entry]:
    ours = Entry("whisper_at int8, tags", "whisper_at", "int8", replace(work, tags=True))
    return [ours, Entry("faster-whisper int8", "faster-whisper", "int8", work)]


def words() -> list[Entry]:
    work = Work(words=True)
    exact, *others = peers(work, with_transformers=False)
    loose = exact._replace(label="whisper_at, not strict", work=replace(work, strict=False))
    return [exact, loose, *others]


def tagging() -> list[Entry]:
    return [
        Entry(f"whisper_at {compute}{', tags' * tags}", "whisper_at", compute, Work(tags=tags))
        for compute in ("float32", "int8")
        for tags in (False, True)
    ]


MODES: dict[str, tuple[str, Callable[[], list[Entry]]]] = {
    "greedy": ("float32, greedy", lambda: peers(Work())),
    "beam": ("float32, beam of 5", lambda: peers(Work(beam=5))),
    "language": ("float32, greedy, language detected", lambda: peers(Work(language=None))),
    "fallback": ("float32, greedy, then again at temperature 0.2", lambda: peers(Work(fallback=True), False)),
    "words": ("float32, greedy, word timestamps", words),
    "int8": ("int8, greedy, whisper_at with tags", lambda: int8(Work())),
    "int8-beam": ("int8, beam of 5, whisper_at with tags", lambda: int8(Work(beam=5))),
    "tags": ("greedy, without and with tags", tagging),
}


def recording(seconds: float, seed: int = 0) -> np.ndarray:
    """Tones that swell, with bursts of noise; float32 ``(samples,)``."""
    t = np.arange(round(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * hertz * t) for hertz in (220, 554.4, 1318.5)) * np.sin(t * 0.7) ** 2
    bursts = np.random.default_rng(seed).standard_normal(len(t)) * (np.sin(t * 2.3) > 0.4)
    return (0.1 * tones + 0.05 * bursts).astype(np.float32)


# --- the peers, each in its own process -----------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What a worker needs to know of the whole run."""

    folder: Path
    size: str
    seconds: float
    tokens: int
    threads: int


Transcribe = Callable[[np.ndarray, Work, int], Decodings]


def load_ours(setting: Setting, compute: str) -> Transcribe:
    import torch

    import whisper_at
    from whisper_at.heads import make_head

    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    path = str(setting.folder / "model.pt")
    model = whisper_at.load_model(path, device="cpu", head=None, compute_type=compute)
    mode = "tl_down_tr_512_1_8" if setting.size == "small" else "tl_tr_1_8"  # the published low-compute head, TL-TR
    model.head = make_head(mode, n_layer=model.dims.n_audio_layer, rep_dim=model.dims.n_audio_state)

    def transcribe(audio: np.ndarray, work: Work, tokens: int) -> Decodings:
        torch.manual_seed(0)
        ours = {"at_time_res": 10.0 if work.tags else None, "strict_word_timing": work.strict}
        with watched(model, "decode", lambda result: result.tokens) as decoded:
            result = model.transcribe(audio, **upstream_options(work, tokens), **ours)
        if work.tags and len(result["audio_tag"]) != -(-len(audio) // (10 * RATE)):
            raise RuntimeError(f"{len(result['audio_tag'])} rows of tags")
        return decoded

    return transcribe


def load_openai(setting: Setting, compute: str) -> Transcribe:
    import torch
    import whisper

    torch.set_num_threads(setting.threads)
    model = whisper.load_model(str(setting.folder / "model.pt"), device="cpu")

    def transcribe(audio: np.ndarray, work: Work, tokens: int) -> Decodings:
        torch.manual_seed(0)
        with watched(model, "decode", lambda result: result.tokens) as decoded:
            model.transcribe(audio, **upstream_options(work, tokens))
        return decoded

    return transcribe


def upstream_options(work: Work, tokens: int) -> dict[str, Any]:
    """Options of openai-whisper's transcribe, which are whisper_at's too."""
    return dict(
        language=work.language,
        beam_size=work.beam,
        temperature=work.temperature,
        sample_len=tokens,
        suppress_tokens=[NON_SPEECH, weights.EOT],
        without_timestamps=True,
        word_timestamps=work.words,
        condition_on_previous_text=False,
        compression_ratio_threshold=None,
        logprob_threshold=0.0 if work.fallback else None,  # which no text reaches
        no_speech_threshold=None,
        fp16=False,
    )


def load_faster(setting: Setting, compute: str) -> Transcribe:
    from faster_whisper import WhisperModel

    folder = str(setting.folder / f"ct2_{compute}")
    model = WhisperModel(folder, device="cpu", compute_type=compute, cpu_threads=setting.threads)
    model.model = Proxy(model.model)  # of a compiled class, whose methods cannot be watched

    def transcribe(audio: np.ndarray, work: Work, tokens: int) -> Decodings:
        with watched(model.model, "generate", lambda result: result.sequences_ids[0]) as decoded:
            segments, _ = model.transcribe(
                audio,
                language=work.language,
                beam_size=work.beam or 1,
                best_of=1,
                temperature=work.temperature,
                max_new_tokens=2 * tokens - PROMPT,  # CTranslate2 ends at half of this and the prompt together
                suppress_tokens=[NON_SPEECH, weights.EOT],
                without_timestamps=True,
                word_timestamps=work.words,
                condition_on_previous_text=False,
                compression_ratio_threshold=None,
                log_prob_threshold=0.0 if work.fallback else None,
                no_speech_threshold=None,
                vad_filter=False,
            )
            list(segments)  # the work is done as they are read
        return decoded

    return transcribe


def load_transformers(setting: Setting, compute: str) -> Transcribe:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(setting.threads)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(setting.folder / "hf").eval()
    extract = transformers.WhisperFeatureExtractor(feature_size=80)

    def transcribe(audio: np.ndarray, work: Work, tokens: int) -> Decodings:
        torch.manual_seed(0)
        options = {"num_beams": work.beam or 1, "max_new_tokens": tokens, "return_timestamps": False}
        language, decoded = work.language, []
        for start in range(0, len(audio), WINDOW * RATE):
            mel = extract(audio[start : start + WINDOW * RATE], sampling_rate=RATE, return_tensors="pt").input_features
            if language is None:
                language = detected(model, mel)
            ids = model.generate(mel, language=language, task="transcribe", **options)
            decoded.append([token for token in ids[0].tolist() if token < weights.EOT])
        return decoded

    def detected(model: Any, mel: Any) -> str:
        found = int(model.detect_language(input_features=mel)[0])
        return next(name for name, token in model.generation_config.lang_to_id.items() if token == found)

    return transcribe


LOADERS: dict[str, Callable[[Setting, str], Transcribe]] = {
    "whisper_at": load_ours,
    REFERENCE: load_openai,
    "faster-whisper": load_faster,
    "transformers": load_transformers,
}


class Proxy:
    """An object whose methods can be replaced."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


@contextmanager
def watched(target: Any, method: str, tokens: Callable[[Any], Sequence[int]]) -> Iterator[Decodings]:
    """Note the tokens of everything that a method returns, in a list or not."""
    decoded: Decodings = []
    original = getattr(target, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        results = original(*args, **kwargs)
        decoded.extend(list(tokens(result)) for result in (results if isinstance(results, list) else [results]))
        return results

    setattr(target, method, call)
    try:
        yield decoded
    finally:
        delattr(target, method)  # the class's own is seen again


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # bytes there, KiB elsewhere


def work_on(connection: Connection, peer: str, compute: str, setting: Setting) -> None:
    """A worker: loads, then does what it is sent, Work and whether it is in earnest, until it is sent None."""

    def answer(make: Callable[[], dict[str, Any]]) -> bool:
        try:
            connection.send({**make(), "peak": peak_memory()})
            return True
        except Exception as error:
            connection.send({"error": f"{type(error).__name__}: {error}"})
            return False

    def load() -> dict[str, Any]:
        nonlocal transcribe
        transcribe = LOADERS[peer](setting, compute)
        return {}

    def turn(work: Work, earnest: bool) -> dict[str, Any]:
        start = time.perf_counter()
        # a warm-up meets all code, but takes one window and few tokens
        decoded = transcribe(audio, work, setting.tokens) if earnest else transcribe(audio[: 5 * RATE], work, 8)
        return {"seconds": time.perf_counter() - start, "decoded": decoded}

    transcribe: Transcribe
    audio = recording(setting.seconds)
    if not answer(load):
        return
    while (order := connection.recv()) is not None:
        answer(lambda: turn(*order))  # noqa: B023 (it is called at once)


class Worker:
    """The parent's end of a worker."""

    def __init__(self, peer: str, compute: str, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work_on, args=(theirs, peer, compute, setting), daemon=True)
        self.process.start()
        theirs.close()
        self.peaks = {"loaded": self._answer()["peak"]}

    def _answer(self) -> dict[str, Any]:
        try:
            answer = self.connection.recv()
        except EOFError:
            raise RuntimeError("the process ended") from None
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def do(self, work: Work, earnest: bool = True) -> dict[str, Any]:
        self.connection.send((work, earnest))
        return self._answer()

    def stop(self) -> None:
        try:
            self.connection.send(None)
        except OSError:
            pass  # it has ended itself
        self.process.join()


# --- the run --------------------------------------------------------------------------------------------------


@dataclass
class Timing:
    """What was measured of an entry."""

    label: str
    seconds: list[float] = field(default_factory=list)
    decoded: Decodings = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [len(tokens) for tokens in self.decoded]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Race:
    """All workers of a run; each is started when a mode first needs it."""

    def __init__(self, setting: Setting, chosen: list[str]) -> None:
        self.setting, self.chosen = setting, chosen
        self.workers: dict[tuple[str, str], Worker | None] = {}

    def worker(self, entry: Entry) -> Worker | None:
        key = entry.peer, entry.compute
        if key not in self.workers:
            try:
                self.workers[key] = Worker(*key, self.setting)
            except RuntimeError as error:
                print(f"{entry.peer} {entry.compute}: skipped ({error})", flush=True)
                self.workers[key] = None
        return self.workers[key]

    def run(self, mode: str, repeat: int, until: float) -> list[Timing]:
        """Time the entries of a mode by turns: ``repeat`` rounds, fewer (but two) if time is up."""
        racing = []
        for entry in MODES[mode][1]():
            if entry.peer in self.chosen and (worker := self.worker(entry)) is not None:
                if turn(worker, entry, earnest=False):
                    racing.append((entry, worker, Timing(entry.label)))
        for round_ in range(repeat):
            if round_ >= 2 and time.monotonic() > until:
                break
            for racer in list(racing):
                entry, worker, timing = racer
                time.sleep(PAUSE)
                if (answer := turn(worker, entry)) is None:
                    racing.remove(racer)
                    continue
                timing.seconds.append(answer["seconds"])
                timing.decoded = answer["decoded"]
                worker.peaks.setdefault("first", answer["peak"])
                worker.peaks["last"] = answer["peak"]
        return [timing for _, _, timing in racing]

    def memory(self) -> dict[str, dict[str, float]]:
        return {" ".join(key): worker.peaks for key, worker in self.workers.items() if worker is not None}

    def stop(self) -> None:
        for worker in self.workers.values():
            if worker is not None:
                worker.stop()


def turn(worker: Worker, entry: Entry, earnest: bool = True) -> dict[str, Any] | None:
    """What a worker answers; None, with a line that says why, if it failed."""
    try:
        return worker.do(entry.work, earnest)
    except (OSError, RuntimeError) as error:
        print(f"{entry.label}: left out of this mode ({error})", flush=True)
        return None


def make_weights(folder: Path, size: str, seed: int, chosen: list[str], quantizations: list[str]) -> None:
    """The checkpoint, and its conversions for the peers that are installed."""
    state = weights.random_state(size, seed)
    weights.write_checkpoint(state, size, folder / "model.pt")
    if not {"transformers", "faster-whisper"} & set(chosen):
        return
    try:
        weights.write_folder(state, size, folder / "hf")
        for quantization in quantizations * ("faster-whisper" in chosen):
            weights.convert(folder / "hf", folder / f"ct2_{quantization}", quantization)
    except ImportError as error:
        print(f"no conversion ({error}): transformers and ctranslate2 are needed for it", flush=True)


def same(timing: Timing, reference: Timing) -> float:
    """The share of a reference's tokens that are in the same place of the same decoding."""
    pairs = [pair for a, b in zip(timing.decoded, reference.decoded) for pair in zip(a, b)]
    return sum(a == b for a, b in pairs) / max(1, sum(reference.tokens))


def rows(timings: list[Timing], tokens: int) -> list[dict[str, Any]]:
    """What is printed and written of a mode."""
    first = timings[0]
    reference = next((t for t in timings if t.label == REFERENCE), None)
    found = []
    for timing in timings:
        ratios = [theirs / ours for theirs, ours in zip(timing.seconds, first.seconds)]
        found.append(
            {
                "label": timing.label,
                "median": timing.median,
                "seconds": timing.seconds,
                "times": timing.median / first.median,
                "times_range": [min(ratios), max(ratios)],
                "tokens": timing.tokens,
                "same": None if reference is None else same(timing, reference),
                "equal": timing.tokens == [tokens] * len(first.tokens),
            }
        )
    return found


def show(title: str, table: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    print(
        f"  {'':26} {'seconds':>8} {'least–most':>15} {'times':>6} {'least–most':>11} {'decoded':>8} {'tokens':>7} same"
    )
    for row in table:
        spread = f"{min(row['seconds']):.3f}–{max(row['seconds']):.3f}"
        ratios = "{:.2f}–{:.2f}".format(*row["times_range"])
        equal = "" if row["equal"] else " !"
        share = "" if row["same"] is None else f"{row['same']:.3f}"
        work = f"{len(row['tokens']):8} {sum(row['tokens']):7}"
        seconds = f"{row['median']:8.3f} {spread:>15} {row['times']:6.2f} {ratios:>11}"
        print(f"  {row['label']:26} {seconds} {work} {share}{equal}")
    sys.stdout.flush()


def show_memory(memory: dict[str, dict[str, float]], mode: str) -> None:
    print(f"\nPeak memory in MB: with the model loaded, after its first mode ({mode}, or int8's), after all modes")
    for label, peaks in memory.items():
        print(
            f"  {label:26}" + "".join(f" {peaks.get(when, float('nan')):8.0f}" for when in ("loaded", "first", "last"))
        )


def plot(tables: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """A bar for the median of each entry, a line from its least to its most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = sum(len(table) + 1 for table in tables.values())
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * count + 1))
    place = 0
    for mode, table in tables.items():
        axes.text(0, place, MODES[mode][0], weight="bold", va="center")
        for row in table:
            place += 1
            low, high = row["median"] - min(row["seconds"]), max(row["seconds"]) - row["median"]
            colour = "tab:orange" if row["label"].startswith("whisper_at") else "tab:gray"
            axes.barh(place, row["median"], xerr=[[low], [high]], color=colour, capsize=2)
            axes.text(max(row["seconds"]), place, f"  {row['label']}: {row['times']:.2f}×", va="center", fontsize=8)
        place += 1
    axes.set(yticks=[], xlabel="seconds (median, least and most)", title=title)
    axes.set_xlim(right=1.4 * max(max(row["seconds"]) for table in tables.values() for row in table))
    axes.invert_yaxis()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def versions() -> dict[str, str]:
    found = {}
    for name in ("openai-whisper", "faster-whisper", "ctranslate2", "transformers", "torch", "numba", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=type("_", (argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter), {}),
        epilog="modes:\n" + "\n".join(f"  {mode:10} {title}" for mode, (title, _) in MODES.items()),
    )
    add = parser.add_argument
    add("--size", choices=weights.SIZES, default="tiny", help="whose dimensions the random model has")
    add("--seconds", type=float, default=60, help="length of the recording")
    add("--tokens", type=int, default=100, help="decoded in each window of 30 s")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE", help="what to time; see below")
    add("--peers", nargs="+", choices=LOADERS, default=list(LOADERS), metavar="PEER", help="|".join(LOADERS))
    add("--repeat", type=int, default=5, help="rounds of each mode")
    add("--minutes", type=float, default=60, help="for all modes; as it runs out there are fewer rounds, but two")
    add("--threads", type=int, default=cores(), help="of every contestant")
    add("--seed", type=int, default=0, help="of the weights")
    add("--json", type=Path, help="write all numbers to this file")
    add("--plot", type=Path, help="draw the seconds to this file (needs matplotlib)")
    args = parser.parse_args()
    if not PROMPT <= args.tokens <= 224 or args.repeat < 1 or args.threads < 1:
        parser.error(f"--tokens is {PROMPT} to 224, half of a decoder's places; --repeat and --threads at least 1")
    return args


def main() -> None:
    args = parse()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(args.threads)  # workers read them before their libraries do
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    about = f"{args.size}, {args.seconds:g} s, {args.tokens} tokens per window, {args.threads} threads"
    print(about, *(f"{name} {version}" for name, version in versions().items()), sep=" | ", flush=True)
    tables: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), args.size, args.seconds, args.tokens, args.threads)
        quantizations = sorted(
            {e.compute for mode in args.modes for e in MODES[mode][1]() if e.peer == "faster-whisper"}
        )
        # in a process of its own: on Linux the peak of a process is at least what its parent held when starting it
        context = multiprocessing.get_context("spawn")
        making = context.Process(
            target=make_weights, args=(setting.folder, args.size, args.seed, args.peers, quantizations)
        )
        making.start()
        making.join()
        if making.exitcode:
            raise SystemExit("the weights could not be made")
        race = Race(setting, args.peers)
        end = time.monotonic() + 60 * args.minutes
        for i, mode in enumerate(args.modes):
            now = time.monotonic()
            timings = race.run(mode, args.repeat, until=now + (end - now) / (len(args.modes) - i))
            if timings:
                tables[mode] = rows(timings, args.tokens)
                show(MODES[mode][0], tables[mode])
        memory = race.memory()
        show_memory(memory, args.modes[0])
        race.stop()
    if args.json:
        run = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        modes = {mode: {"title": MODES[mode][0], "entries": table} for mode, table in tables.items()}
        work = {mode: {e.label: asdict(e.work) for e in MODES[mode][1]()} for mode in tables}
        content = {"run": run, "versions": versions(), "modes": modes, "work": work, "memory": memory}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.plot:
        plot(tables, about, args.plot)


if __name__ == "__main__":
    main()
