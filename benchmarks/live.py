"""Measure streams: word errors, delay of final words, cost, times of words, and delay of events.

    python benchmarks/live.py --model base --data LibriSpeech/index.csv --minutes 13
    python benchmarks/live.py --model base --compute int8 --policies align_att local_agreement --data index.csv
    python benchmarks/live.py --model base --data voices/index.csv --language fr
    python benchmarks/live.py --model base --sounds ESC-50/index.csv --clips 20
    python benchmarks/live.py --model nano.en --head none --compute int8 --hours 24

Utterances of ``--data`` (columns ``file`` and ``text``) are joined, with half a second between them, and fed as
they would be said. The clock is simulated: sound arrives at its own time, each pass begins when its sound is there
and the pass before has ended, and takes the CPU time of this process; with one thread, that is what an idle machine
would need, also where others use this one. The delay of a final word is from its end in the sound to when it is
told; a partial word is told before. "file" is `transcribe` on the whole recording with the same model: errors of
both against the text, and the difference of word times where both have the same words.

``--sounds`` is a table with ``file`` and ``audioset`` (names joined by ``|``), such as ESC-50's: clips are put into
quiet noise at known times, and an event counts that has one of the names, or lies above or below it. Its delay is from
the clip's first sound to when the event is told.

``--hours`` pushes so much sound through as fast as it goes: each minute has the same speech, and silence behind it. It
tells how memory goes, how many words of each minute are those of the second one (the text before differs), how much
their times in the minute differ, and whether every row of tags has its place.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    SAMPLE_RATE,
    HelpFormatter,
    compile_kernels,
    current_memory,
    machine_info,
    set_num_threads,
    write_results,
)
from layouts import write_layouts
from real_speech import read_recordings, word_errors

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

PAUSE_SECONDS = 5.0
QUIET_NOISE = 1e-3
PEER = "faster-whisper"
POLICIES = ["align_att", "local_agreement", PEER]


def run_live(stream: Any, samples: np.ndarray, piece: int) -> Iterator[tuple[float, Any]]:
    """Feed samples as they would come in; yield every message with its simulated time; last, None with the CPU time."""
    clock = cpu = 0.0
    for start in range(0, len(samples) + piece, piece):
        before = time.process_time()
        part = samples[start : start + piece]
        messages = stream.feed(part) if len(part) else stream.finish()
        spent = time.process_time() - before
        clock = max(clock, min(start + piece, len(samples)) / SAMPLE_RATE) + spent
        cpu += spent
        for message in messages:
            yield clock, message
    yield cpu, None


class FasterWhisperStream:
    """faster-whisper in the loop of whisper_streaming (Macháček, Dabre and Bojar, 2023): LocalAgreement-2.

    Every pass transcribes the whole buffer with word times, after the last 200 characters of the text before it; words
    that two passes agree on are final; a buffer of more than 15 s is cut behind its last segment that is final.
    """

    def __init__(self, folder: Path, compute: str, language: str, threads: int, interval: float) -> None:
        from faster_whisper import WhisperModel

        self.model = WhisperModel(str(folder / "ct2"), "cpu", compute_type=compute, cpu_threads=threads)
        self.language, self.interval = language, interval
        self.buffer, self.offset = np.zeros(0, np.float32), 0.0
        self.final: list[Any] = []
        self.partial: list[Any] = []

    def feed(self, samples: np.ndarray) -> list[Any]:
        self.buffer = np.concatenate([self.buffer, samples])
        words, ends = self._pass()
        count = 0
        while count < min(len(words), len(self.partial)) and words[count].word == self.partial[count].word:
            count += 1
        self.final, self.partial = self.final + words[:count], words[count:]
        self._cut(ends)
        return self._messages(words[:count])

    def finish(self) -> list[Any]:
        return self._messages(self.partial)

    def _pass(self) -> tuple[list[Any], list[float]]:
        """Return the words behind the final ones, and the ends of segments."""
        from whisper_at.live import Word

        before = "".join(word.word for word in self.final if word.end <= self.offset)[-200:]
        options = {"beam_size": 1, "word_timestamps": True, "condition_on_previous_text": True}
        segments = list(self.model.transcribe(self.buffer, self.language, initial_prompt=before, **options)[0])
        timed = [word for segment in segments for word in segment.words]
        words = [Word(w.word, w.start + self.offset, w.end + self.offset, w.probability) for w in timed]
        last = self.final[-1].end if self.final else 0.0
        words = [word for word in words if word.start > last - 0.1]
        for n in range(min(5, len(words), len(self.final)), 0, -1):  # what a pass says again of the final words
            if [w.word for w in words[:n]] == [w.word for w in self.final[-n:]]:
                words = words[n:]
                break
        return words, [segment.end + self.offset for segment in segments]

    def _cut(self, ends: Sequence[float]) -> None:
        if len(self.buffer) / SAMPLE_RATE <= 15 or not self.final:
            return
        settled = [end for end in ends[:-1] if end <= self.final[-1].end]
        if settled:
            self.buffer = self.buffer[round((settled[-1] - self.offset) * SAMPLE_RATE) :]
            self.offset = settled[-1]

    def _messages(self, words: Sequence[Any]) -> list[Any]:
        from whisper_at.live import Final

        return [Final(tuple(words))] if words else []


def measure_words(
    stream: Any, samples: np.ndarray, reference: str, file: dict[str, Any], language: str
) -> dict[str, Any]:
    """Stream a recording, and compare with its text and with what `transcribe` made of it."""
    from whisper_at.live import Final

    piece = round(stream.interval * SAMPLE_RATE)
    words: list[Any] = []
    delays: list[float] = []
    cpu = 0.0
    for clock, message in run_live(stream, samples, piece):
        if isinstance(message, Final):
            words += message.words
            delays += [clock - word.end for word in message.words]
        elif message is None:
            cpu = clock
    text = "".join(word.word for word in words)
    counts = word_errors([reference, file["text"]], [text, text], language)
    starts, ends = time_differences(file["words"], [word.values() for word in words])
    return {
        "wer": counts[0, 0] / counts[0, -1],
        "wer_to_file": counts[1, 0] / counts[1, -1],
        "delay_mean": statistics.fmean(delays),
        "delay_p90": float(np.quantile(delays, 0.9)),
        "rtf": cpu / (len(samples) / SAMPLE_RATE),
        "start_difference": float(np.mean(np.abs(starts))),
        "end_difference": float(np.mean(np.abs(ends))),
        "common_words": len(starts),
        "text": text,
    }


def time_differences(file: Sequence[Any], live: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return differences of starts and of ends of the words that are the same in both."""
    import difflib

    def letters(words: Sequence[Any]) -> list[str]:
        return ["".join(filter(str.isalnum, word["word"])).lower() for word in words]

    matcher = difflib.SequenceMatcher(None, letters(file), letters(live), autojunk=False)
    pairs = [(file[a + i], live[b + i]) for a, b, n in matcher.get_matching_blocks() for i in range(n)]
    differences = [(b["start"] - a["start"], b["end"] - a["end"]) for a, b in pairs]
    starts, ends = np.array(differences).reshape(-1, 2).T
    return starts, ends


def measure_events(model: Any, table: Path, num_clips: int, seconds: float, interval: float | None) -> dict[str, Any]:
    """Stream clips of sounds in quiet noise; return how many had an event of their class, and how late."""
    from whisper_at import load_audio
    from whisper_at.live import EventStart, Stream
    from whisper_at.tagging.labels import ancestors, descendants, find_class

    with open(table, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["audioset"]]
    rng = np.random.default_rng(0)
    chosen = [rows[i] for i in rng.permutation(len(rows))[:num_clips]]
    samples = np.zeros(0, np.float32)
    clips: list[tuple[float, float, set[int]]] = []
    for row in chosen:
        clip = load_audio(str(table.parent / row["file"]))
        loud = np.flatnonzero(np.abs(clip) > 0.05 * np.abs(clip).max())
        clip = clip[loud[0] : loud[-1] + 1]
        samples = np.concatenate([samples, np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)])
        start = len(samples) / SAMPLE_RATE
        samples = np.concatenate([samples, clip])
        named = [find_class(name) for name in row["audioset"].split("|")]
        related = {index for name in named for index in (name, *ancestors(name), *descendants(name))}
        clips.append((start, len(samples) / SAMPLE_RATE, related))
    samples += (QUIET_NOISE * rng.standard_normal(len(samples))).astype(np.float32)

    stream = Stream(model, task="tag", at_time_res=seconds, interval=interval)
    told: list[tuple[float, Any]] = []
    cpu = 0.0
    for clock, message in run_live(stream, samples, round(stream.interval * SAMPLE_RATE)):
        if isinstance(message, EventStart):
            told.append((clock, message))
        elif message is None:
            cpu = clock
    delays, onsets = [], []
    for start, end, related in clips:
        found = [(c, e) for c, e in told if e.index in related and start - seconds <= e.start < end]
        if found:
            clock, event = min(found, key=lambda pair: pair[0])
            delays.append(clock - start)
            onsets.append(event.start - start)
    return {
        "seconds": seconds,
        "clips": len(clips),
        "found": len(delays),
        "delay_mean": statistics.fmean(delays) if delays else float("nan"),
        "delay_median": statistics.median(delays) if delays else float("nan"),
        "onset_difference": statistics.fmean(map(abs, onsets)) if onsets else float("nan"),
        "rtf": cpu / (len(samples) / SAMPLE_RATE),
    }


def measure_hours(model: Any, hours: float, interval: float | None, max_seconds: float) -> dict[str, Any]:
    """Stream speech and silence, over and over; return how memory goes, and how exact times are."""
    from whisper_at import load_audio
    from whisper_at.live import Final, Row, Stream

    speech = load_audio(str(Path(__file__).parents[1] / "sample/speech.flac"))
    minute = np.zeros(60 * SAMPLE_RATE, np.float32)
    minute[: len(speech)] = speech
    minute += (QUIET_NOISE * np.random.default_rng(0).standard_normal(len(minute))).astype(np.float32)
    stream = Stream(model, "en", interval=interval)
    first: list[dict[str, Any]] = []
    megabytes: list[float] = []
    differences: list[float] = []
    rows_off, next_row = 0, 0.0
    before, begun = time.process_time(), time.perf_counter()
    count = 0
    while count < 60 * hours and time.perf_counter() - begun < max_seconds:
        words: list[dict[str, Any]] = []
        for message in stream.feed(minute):
            if isinstance(message, Final):
                times = [(w.word, w.start - 60 * count, w.end - 60 * count) for w in message.words]
                words += [{"word": word, "start": start, "end": end} for word, start, end in times]
            elif isinstance(message, Row) and message.steps == min(stream.sounds.row_steps):
                rows_off += abs(message.start - next_row) > 1e-6
                next_row = message.end
        if count == 1:  # the first one has no prompt
            first = words
        elif count:
            differences += np.abs(np.concatenate(time_differences(first, words))).tolist()
        count += 1
        megabytes.append(current_memory())
    quarter = max(1, count // 4)
    return {
        "hours": count / 60,
        "clock_seconds": time.perf_counter() - begun,
        "rtf": (time.process_time() - before) / (60 * count),
        "megabytes": [max(megabytes[:quarter]), max(megabytes[-quarter:])],
        "common_words": len(differences) / max(1, 2 * (count - 2) * len(first)),
        "time_difference": statistics.median(differences) if differences else float("nan"),
        "rows_out_of_place": rows_off,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--model", default="base", help="an official Whisper that is on this machine")
    add("--head", default="open.base", help="its head; none for text without one")
    add("--compute", nargs="+", default=["int8", "float32"], help="precisions")
    help = "faster-whisper, if it is installed, is LocalAgreement by that"
    add("--policies", nargs="+", default=POLICIES[:2], choices=POLICIES, help=help)
    add("--interval", nargs="+", type=float, default=[None], help="seconds from pass to pass, if not the default")
    add("--data", type=Path, help="table of utterances")
    add("--language", default="en")
    add("--minutes", type=float, default=13.0, help="of speech")
    add("--sounds", type=Path, help="table of clips")
    add("--clips", type=int, default=20)
    add("--resolutions", nargs="+", type=float, default=[0.4, 0.8, 2.0])
    add("--hours", type=float, default=0.0, help="of sound, pushed through")
    add("--max_seconds", type=float, default=600.0, help="end of that, if it is not done by then")
    add("--threads", type=int, default=1)
    add("--json", type=Path, help="write all numbers to this file")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    set_num_threads(args.threads)
    machine = machine_info()
    compile_kernels()
    import torch

    import whisper_at

    torch.set_num_threads(args.threads)
    results: list[dict[str, Any]] = []
    for compute in args.compute:
        head = None if args.head == "none" else args.head
        model = whisper_at.load_model(args.model, "cpu", head=head, compute_type=compute)
        if args.data:
            with tempfile.TemporaryDirectory() as folder:
                results += words_of(model, compute, args, Path(folder))
        if args.sounds:
            for seconds in args.resolutions:
                row = measure_events(model, args.sounds, args.clips, seconds, args.interval[0])
                results.append({"what": "events", "compute": compute, **row})
                print(
                    f"{compute:8} rows of {seconds:g} s: {row['found']} of {row['clips']} clips found, told after "
                    f"{row['delay_mean']:.2f} s (median {row['delay_median']:.2f}), onset off by "
                    f"{row['onset_difference']:.2f} s, real-time factor {row['rtf']:.3f}",
                    flush=True,
                )
        if args.hours:
            row = measure_hours(model, args.hours, args.interval[0], args.max_seconds)
            results.append({"what": "hours", "compute": compute, **row})
            print(
                f"{compute:8} {row['hours']:.1f} hours in {row['clock_seconds']:.0f} s, real-time factor "
                f"{row['rtf']:.4f}; at most {row['megabytes'][0]:.0f} MB in the first quarter, "
                f"{row['megabytes'][1]:.0f} MB in the last; {100 * row['common_words']:.0f} % of words are those of "
                f"the second minute, with times that differ by {row['time_difference']:.3f} s in the median; "
                f"rows out of place: {row['rows_out_of_place']}",
                flush=True,
            )
    if args.json:
        write_results(args.json, args, machine, results=results)


def words_of(model: Any, compute: str, args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what is measured with a model: `transcribe` on the file, and every policy."""
    from whisper_at.live import Stream

    if PEER in args.policies:
        write_layouts(args.model, folder, [PEER])
    (recording, *_) = read_recordings(args.data, 60 * args.minutes, args.minutes, folder, args.language)
    samples = np.load(recording["samples"])
    model.transcribe(samples[: 30 * SAMPLE_RATE], language=args.language, at_time_res=None)  # warms up
    before = time.process_time()
    result = model.transcribe(samples, language=args.language, word_timestamps=True, at_time_res=None)
    rtf = (time.process_time() - before) / (len(samples) / SAMPLE_RATE)
    file = {"text": result["text"], "words": [word for segment in result["segments"] for word in segment["words"]]}
    counts = word_errors([recording["text"]], [file["text"]], args.language)
    wer = counts[0, 0] / counts[0, -1]
    seconds = len(samples) / SAMPLE_RATE
    print(
        f"{compute:8} file             {seconds:.0f} s, WER {100 * wer:.2f} %, real-time factor {rtf:.3f}", flush=True
    )
    yield {"what": "file", "compute": compute, "seconds": seconds, "wer": wer, "rtf": rtf, "text": file["text"]}
    for policy in args.policies:
        for interval in args.interval:
            if policy == PEER:
                stream: Any = FasterWhisperStream(folder, compute, args.language, args.threads, interval or 1.0)
            else:
                stream = Stream(model, args.language, policy=policy, interval=interval)
            row = measure_words(stream, samples, recording["text"], file, args.language)
            print(
                f"{compute:8} {policy:16} {stream.interval:4.2f} s: WER {100 * row['wer']:.2f} % "
                f"(to file {100 * row['wer_to_file']:.2f}), delay {row['delay_mean']:.2f} s "
                f"(90 %: {row['delay_p90']:.2f}), real-time factor {row['rtf']:.3f}, "
                f"word times off by {row['start_difference']:.3f} and {row['end_difference']:.3f} s "
                f"({row['common_words']} words)",
                flush=True,
            )
            yield {"what": "live", "compute": compute, "interval": stream.interval, "policy": policy, **row}


if __name__ == "__main__":
    main()
