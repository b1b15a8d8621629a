"""Race real Whispers on real speech: words per second, word error rate and memory, decoding what is really said.

    python benchmarks/real_speech.py --model tiny.en --data LibriSpeech/index.csv
    python benchmarks/real_speech.py --model base --data index.csv --minutes 10 --rounds 3 --json base.json
    python benchmarks/real_speech.py --model base --data index.csv --systems "whisper_at int8" whisper_at --rounds 1

The data are a table with the columns ``file`` and ``text`` (paths relative to the table). Utterances are joined, with
half a second between them, to recordings of about ``--seconds``, as real recordings are: timestamps, fallback to
higher temperatures and conditioning on the text before are on, as each system has them by default; beams are off.
All systems have the same weights (float32 if not said otherwise), of an official Whisper that is on this machine,
and the same number of threads. Each runs in a process of its own, one at a time, in alternation; loading and a first
recording, which is not timed, come before.

"words/s" and "times real" count the seconds of transcription alone. "WER" is over all recordings, by jiwer after
Whisper's normaliser, with a 95 % interval by resampling recordings; "left out" counts the words that are missing
altogether, as where a window ends after its first sentence. Memory is the peak of the process, in MB of 10^6
bytes. CPU seconds are of all threads: with one thread they compare programs on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    SAMPLE_RATE,
    HelpFormatter,
    available_cores,
    compile_kernels,
    machine_info,
    peak_memory,
    set_num_threads,
    write_results,
)

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

PAUSE_SECONDS = 0.5
WINDOW_FRAMES = 3000
Transcribe = Callable[[np.ndarray], str]


# --- systems: from a folder of weights to a function from samples to text -------------------------------------


def run_whisper_at(folder: Path, compute: str = "float32", batch: int | None = None, tags: bool = False) -> Transcribe:
    import whisper_at

    head = "open." + (folder / "name").read_text() if tags else None
    model = whisper_at.load_model(str(folder / "openai.pt"), "cpu", head=head, compute_type=compute)
    options: dict[str, Any] = {"language": "en", "fp16": False, "at_time_res": 10 if tags else None}
    options |= {} if batch is None else {"batch_size": batch}
    return lambda samples: model.transcribe(samples, **options)["text"]


def run_openai(folder: Path) -> Transcribe:
    import whisper

    model = whisper.load_model(str(folder / "openai.pt"), "cpu")
    return lambda samples: model.transcribe(samples, language="en", fp16=False)["text"]


def run_faster_whisper(folder: Path, compute: str = "float32", batch: int | None = None) -> Transcribe:
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    threads = int(os.environ["OMP_NUM_THREADS"])
    model = WhisperModel(str(folder / "ct2"), "cpu", compute_type=compute, cpu_threads=threads)
    if batch is not None:
        pipeline = BatchedInferencePipeline(model)
        return lambda samples: join(pipeline.transcribe(samples, language="en", beam_size=1, batch_size=batch)[0])
    return lambda samples: join(model.transcribe(samples, language="en", beam_size=1)[0])


def run_whisper_cpp(folder: Path) -> Transcribe:
    from pywhispercpp.model import Model

    threads = int(os.environ["OMP_NUM_THREADS"])
    quiet = {"print_progress": False, "print_realtime": False, "redirect_whispercpp_logs_to": None}
    model = Model(str(folder / "ggml.bin"), n_threads=threads, language="en", greedy={"best_of": 1}, **quiet)
    return lambda samples: " ".join(segment.text for segment in model.transcribe(samples))


def run_transformers(folder: Path) -> Transcribe:
    """Its algorithm for long recordings, with the settings that make it openai-whisper's."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder / "hf", attn_implementation="sdpa")
    model = model.eval()
    extract = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "hf")
    language = {"language": "en", "task": "transcribe"} if model.generation_config.is_multilingual else {}
    options: dict[str, Any] = {"return_timestamps": True, "condition_on_prev_tokens": True, **language}
    options |= {"temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "no_speech_threshold": 0.6}
    options |= {"logprob_threshold": -1.0, "compression_ratio_threshold": 1.35}  # of its own kind: 2.4 of openai's

    def transcribe(samples: np.ndarray) -> str:
        whole = {"truncation": False, "padding": "longest", "return_attention_mask": True, "return_tensors": "pt"}
        features = extract(samples, sampling_rate=SAMPLE_RATE, **whole)
        if features.input_features.shape[-1] < WINDOW_FRAMES:  # which it takes for a window of its own
            features = extract(samples, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt")
        tokens = model.generate(**features, **options)
        return str(tokenizer.decode(tokens[0], skip_special_tokens=True))

    return transcribe


def join(segments: Any) -> str:
    return "".join(segment.text for segment in segments)


SYSTEMS: dict[str, Callable[[Path], Transcribe]] = {
    "whisper_at": run_whisper_at,
    "openai-whisper": run_openai,
    "faster-whisper": run_faster_whisper,
    "transformers": run_transformers,
    "whisper.cpp f16": run_whisper_cpp,
    "whisper_at, tags": lambda folder: run_whisper_at(folder, tags=True),
    "whisper_at bfloat16": lambda folder: run_whisper_at(folder, "bfloat16"),
    "whisper_at int8": lambda folder: run_whisper_at(folder, "int8"),
    "faster-whisper int8": lambda folder: run_faster_whisper(folder, "int8"),
    "whisper_at batch": lambda folder: run_whisper_at(folder, batch=8),
    "whisper_at int8 batch": lambda folder: run_whisper_at(folder, "int8", batch=8),
    "faster-whisper batch": lambda folder: run_faster_whisper(folder, batch=8),
    "faster-whisper int8 batch": lambda folder: run_faster_whisper(folder, "int8", batch=8),
}


# --- the same weights in every layout --------------------------------------------------------------------------


def write_layouts(name: str, folder: Path, systems: list[str]) -> None:
    """Write an official Whisper that is on this machine as each of some systems wants it."""
    import torch

    from whisper_at.checkpoints import alignment_heads, decode_alignment_heads, find_whisper, open_whisper

    path = find_whisper(name)
    dims, state = open_whisper(path)
    (folder / "name").write_text(name)
    torch.save({"dims": dims, "model_state_dict": state}, folder / "openai.pt")
    libraries = {system.split()[0] for system in systems}
    if "whisper.cpp" in libraries:
        write_ggml(dims, state, folder / "ggml.bin")
    if libraries & {"transformers", "faster-whisper"}:
        dump = alignment_heads(name)
        heads = [] if dump is None else decode_alignment_heads(dump, dims)
        write_hugging_face(dims, state, heads, folder / "hf")
    if "faster-whisper" in libraries:
        convert_to_ctranslate2(folder / "hf", folder / "ct2")


def write_ggml(dims: dict[str, int], state: dict[str, Any], path: Path) -> None:
    """Write whisper.cpp's layout, in half precision as its own converter does."""
    from whisper.audio import mel_filters

    from whisper_at.tokenizer import get_tokenizer

    sizes = ["n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"]
    sizes += ["n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"]
    filters = mel_filters("cpu", dims["n_mels"]).numpy().astype("<f4")
    ranks = get_tokenizer(dims["n_vocab"] >= 51865).encoding._mergeable_ranks
    with open(path, "wb") as file:
        file.write(struct.pack("<12i", 0x67676D6C, *(dims[size] for size in sizes), 1))
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        file.write(struct.pack("<i", len(ranks)))
        for token in sorted(ranks, key=ranks.__getitem__):
            file.write(struct.pack("<i", len(token)) + token)
        for key, tensor in state.items():
            values = tensor.float().numpy()
            values = values[:, None] if key in ("encoder.conv1.bias", "encoder.conv2.bias") else values
            half = values.ndim > 1 and "positional" not in key and not key.endswith("bias")
            header = struct.pack("<3i", values.ndim, len(key), int(half))
            file.write(header + struct.pack(f"<{values.ndim}i", *values.shape[::-1]) + key.encode())
            file.write(values.astype("<f2" if half else "<f4").tobytes())


def write_hugging_face(dims: dict[str, int], state: dict[str, Any], heads: list[list[int]], folder: Path) -> None:
    """Write transformers' layout, with the tokens and the rules of openai-whisper."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, logging
    from weights import EOT, hugging_face_name, suppressed_tokens, write_tokenizer

    from whisper_at.tokenizer import get_tokenizer

    logging.disable_progress_bar()
    english = dims["n_vocab"] < 51865
    tokenizer = get_tokenizer(not english, num_languages=dims["n_vocab"] - 51765 - (not english), language="en")
    eot = tokenizer.eot
    special = {"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot, "decoder_start_token_id": tokenizer.sot}
    shape = {"vocab_size": dims["n_vocab"], "num_mel_bins": dims["n_mels"], "d_model": dims["n_audio_state"]}
    for part, kind in (("encoder", "audio"), ("decoder", "text")):
        shape |= {f"{part}_layers": dims[f"n_{kind}_layer"], f"{part}_attention_heads": dims[f"n_{kind}_head"]}
        shape |= {f"{part}_ffn_dim": 4 * dims[f"n_{kind}_state"]}
    model = WhisperForConditionalGeneration(WhisperConfig(**shape, **special))
    tensors = {hugging_face_name(key): tensor.float() for key, tensor in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if missing != ["proj_out.weight"] or unexpected:  # that one is the embedding
        raise RuntimeError(f"parameters do not match: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    languages = dict(zip(tokenizer.all_language_codes, tokenizer.all_language_tokens))
    # what an English-only model does not know must not be named: transformers would detect the language among none
    multilingual = {
        "lang_to_id": {f"<|{code}|>": token for code, token in languages.items()},
        "task_to_id": {"transcribe": tokenizer.transcribe, "translate": tokenizer.translate},
    }
    suppressed = [token for token in suppressed_tokens(tokenizer) if token not in (EOT, eot)]
    model.generation_config = GenerationConfig(
        **special,
        max_length=448,
        is_multilingual=not english,
        **({} if english else multilingual),
        no_timestamps_token_id=tokenizer.no_timestamps,
        prev_sot_token_id=tokenizer.sot_prev,
        suppress_tokens=suppressed,
        begin_suppress_tokens=[*tokenizer.encode(" "), eot],
        max_initial_timestamp_index=50,
        alignment_heads=heads,
    )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": dims["n_mels"]}))
    write_tokenizer(tokenizer.encoding, folder)


def convert_to_ctranslate2(source: Path, target: Path) -> None:
    from weights import write_ctranslate2

    write_ctranslate2(source, target, "float16")


# --- recordings ---------------------------------------------------------------------------------------------------


def read_recordings(
    table: Path, seconds: float, minutes: float, folder: Path, language: str = "en"
) -> list[dict[str, str]]:
    """Join utterances to recordings of about so many seconds; return paths of samples, and the texts.

    Of a table with a column ``language``, those of one language.
    """
    from whisper_at import load_audio

    with open(table, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("text") and row.get("language", language) == language]
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)
    recordings: list[dict[str, str]] = []
    parts: list[np.ndarray] = []
    texts: list[str] = []
    total = 0.0
    for i, row in enumerate(rows):
        parts += [load_audio(str(table.parent / row["file"])), pause]
        texts.append(row["text"])
        length = sum(map(len, parts)) / SAMPLE_RATE
        if length >= seconds or i == len(rows) - 1 or total + length >= 60 * minutes:
            path = folder / f"{len(recordings):03}.npy"
            np.save(path, np.concatenate(parts))
            recordings.append({"samples": str(path), "text": " ".join(texts)})
            total, parts, texts = total + length, [], []
        if total >= 60 * minutes:
            break
    return recordings


def run_one(system: str, folder: Path, recordings: list[dict[str, str]]) -> dict[str, Any]:
    """Transcribe all recordings once in this process, after the first minute of the first as a warm-up."""
    transcribe = SYSTEMS[system](folder)
    loaded = peak_memory()
    transcribe(np.load(recordings[0]["samples"])[: 60 * SAMPLE_RATE])
    texts, seconds, cpu_seconds = [], [], []
    for recording in recordings:
        samples = np.load(recording["samples"])
        start, cpu_start = time.perf_counter(), time.process_time()
        texts.append(transcribe(samples))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {"texts": texts, "seconds": seconds, "cpu": cpu_seconds, "loaded": loaded, "peak": peak_memory()}


# --- scores -------------------------------------------------------------------------------------------------------


def word_errors(references: list[str], texts: list[str], language: str = "en") -> np.ndarray:
    """Return errors, words left out and reference words ``(recordings, 3)``, as Whisper normalises a language."""
    import jiwer
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    normalize = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    rows = []
    for reference, text in zip(references, texts):
        found = jiwer.process_words(normalize(reference), normalize(text))
        errors = found.substitutions + found.deletions + found.insertions
        rows.append((errors, found.deletions, found.hits + found.substitutions + found.deletions))
    return np.array(rows)


def interval(counts: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the word error rate, by resampling recordings."""
    rng, n = np.random.default_rng(0), len(counts)
    sums = counts[rng.integers(0, n, (draws, n))].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, -1], [0.025, 0.975])
    return float(low), float(high)


def summarize(system: str, runs: list[dict[str, Any]], references: list[str], audio_seconds: float) -> dict[str, Any]:
    counts = word_errors(references, runs[0]["texts"])
    times = [sum(run["seconds"]) for run in runs]
    low, high = interval(counts)
    words = int(counts[:, -1].sum())
    return {
        "system": system,
        "seconds": times,
        "cpu_seconds": [sum(run["cpu"]) for run in runs],
        "words_per_second": words / statistics.median(times),
        "times_real": audio_seconds / statistics.median(times),
        "wer": float(counts[:, 0].sum() / words),
        "wer_interval": [low, high],
        "words": words,
        "loaded_mb": runs[0]["loaded"],
        "peak_mb": runs[0]["peak"],
        "errors": counts[:, 0].tolist(),
        "left_out": counts[:, 1].tolist(),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    header = f"{'':26} {'words/s':>8} {'times real':>10} {'WER':>6} {'95 %':>13} {'left out':>8} {'MB':>6}"
    print(f"{header}   seconds (and CPU seconds) of each round")
    for row in rows:
        low, high = row["wer_interval"]
        seconds = " ".join(f"{s:.1f} ({cpu:.1f})" for s, cpu in zip(row["seconds"], row["cpu_seconds"]))
        print(
            f"{row['system']:26} {row['words_per_second']:8.1f} {row['times_real']:10.1f} {100 * row['wer']:5.2f}% "
            f"{100 * low:5.2f} – {100 * high:5.2f} {sum(row['left_out']):8} {row['peak_mb']:6.0f}   {seconds}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--model", default="tiny.en", help="an official Whisper that is on this machine")
    add("--data", type=Path, required=True, help="table of utterances, with the columns file and text")
    add("--seconds", type=float, default=300, help="of a recording")
    add("--minutes", type=float, default=60, help="of speech at most")
    add("--rounds", type=int, default=3, help="how often each system runs")
    add("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), metavar="NAME", help=", ".join(SYSTEMS))
    add("--threads", type=int, default=available_cores(), help="of everything")
    add("--json", type=Path, help="write all numbers to this file")
    add("--one", nargs=2, help=argparse.SUPPRESS)  # system and folder: what a process of its own runs
    args = parser.parse_args()
    if args.one:
        folder = Path(args.one[1])
        recordings = json.loads((folder / "recordings.json").read_text())
        (folder / "result.json").write_text(json.dumps(run_one(args.one[0], folder, recordings)))
        return
    set_num_threads(args.threads)
    machine = machine_info()
    compile_kernels()
    folder = Path(tempfile.mkdtemp(prefix="real-speech-"))
    try:
        write_layouts(args.model, folder, args.systems)
        recordings = read_recordings(args.data, args.seconds, args.minutes, folder)
        (folder / "recordings.json").write_text(json.dumps(recordings))
        audio_seconds = sum(len(np.load(r["samples"], mmap_mode="r")) for r in recordings) / SAMPLE_RATE
        print(f"{args.model}, {len(recordings)} recordings, {audio_seconds / 60:.1f} minutes, {args.threads} threads")
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(args.rounds):
            for system in args.systems:
                command = [sys.executable, __file__, "--data", str(args.data), "--one", system, str(folder)]
                finished = subprocess.run(command, capture_output=True, text=True, check=False)
                if finished.returncode:
                    reason = finished.stderr.strip().rpartition("\n")[2]
                    print(f"{system} did not run: {reason}", flush=True)
                    continue
                runs.setdefault(system, []).append(json.loads((folder / "result.json").read_text()))
        references = [recording["text"] for recording in recordings]
        rows = [summarize(system, found, references, audio_seconds) for system, found in runs.items()]
        print_table(rows)
        if args.json:
            args.data = Path(args.data.name)  # results do not tell folders
            write_results(args.json, args, machine, systems=rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
