"""The programs that are raced on real speech: from a folder of weights to a function from samples to text.

The folder is what `layouts.write_layouts` writes. Each program has its own defaults: timestamps, fallback to higher
temperatures, conditioning on the text before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import SAMPLE_RATE

WINDOW_FRAMES = 3000
BATCH = 8
Transcribe = Callable[[np.ndarray], str]


@dataclass(frozen=True)
class Decoding:
    """How all systems decode.

    Attributes
    ----------
    beams : int
        Of the first temperature; 1 is greedy.
    words : bool
        Whether words get times.
    """

    beams: int = 1
    words: bool = False


def run_whisper_at(
    folder: Path, decoding: Decoding, compute: str = "float32", batch: int | None = None, tags: bool = False
) -> Transcribe:
    import whisper_at

    head = "open." + (folder / "name").read_text() if tags else None
    model = whisper_at.load_model(str(folder / "openai.pt"), "cpu", head=head, compute_type=compute)
    options = {**openai_options(decoding), "at_time_res": 10 if tags else None}
    options |= {} if batch is None else {"batch_size": batch}
    return lambda samples: model.transcribe(samples, **options)["text"]


def run_openai(folder: Path, decoding: Decoding) -> Transcribe:
    import whisper

    model = whisper.load_model(str(folder / "openai.pt"), "cpu")
    options = openai_options(decoding)
    return lambda samples: model.transcribe(samples, **options)["text"]


def openai_options(decoding: Decoding) -> dict[str, Any]:
    beams = {} if decoding.beams == 1 else {"beam_size": decoding.beams}
    return {"language": "en", "fp16": False, "word_timestamps": decoding.words, **beams}


def run_faster_whisper(
    folder: Path, decoding: Decoding, compute: str = "float32", batch: int | None = None
) -> Transcribe:
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    threads = int(os.environ["OMP_NUM_THREADS"])
    model = WhisperModel(str(folder / "ct2"), "cpu", compute_type=compute, cpu_threads=threads)
    options = {"language": "en", "beam_size": decoding.beams, "word_timestamps": decoding.words}
    if batch is not None:
        pipeline = BatchedInferencePipeline(model)
        return lambda samples: join(pipeline.transcribe(samples, batch_size=batch, **options)[0])
    return lambda samples: join(model.transcribe(samples, **options)[0])


def run_whisper_cpp(folder: Path, decoding: Decoding) -> Transcribe:
    from pywhispercpp.model import Model

    check_greedy(decoding, "whisper.cpp")
    threads = int(os.environ["OMP_NUM_THREADS"])
    quiet = {"print_progress": False, "print_realtime": False, "redirect_whispercpp_logs_to": None}
    model = Model(str(folder / "ggml.bin"), n_threads=threads, language="en", greedy={"best_of": 1}, **quiet)
    return lambda samples: " ".join(segment.text for segment in model.transcribe(samples))


def run_transformers(folder: Path, decoding: Decoding) -> Transcribe:
    """Its algorithm for long recordings, with the settings that make it openai-whisper's."""
    check_greedy(decoding, "transformers")
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


def check_greedy(decoding: Decoding, system: str) -> None:
    if decoding != Decoding():
        raise ValueError(f"{system} is raced in greedy decoding without words alone")


def join(segments: Any) -> str:
    return "".join(segment.text for segment in segments)


SYSTEMS: dict[str, Callable[[Path, Decoding], Transcribe]] = {
    "whisper_at": run_whisper_at,
    "openai-whisper": run_openai,
    "faster-whisper": run_faster_whisper,
    "transformers": run_transformers,
    "whisper.cpp f16": run_whisper_cpp,
    "whisper_at, tags": partial(run_whisper_at, tags=True),
    "whisper_at bfloat16": partial(run_whisper_at, compute="bfloat16"),
    "whisper_at int8": partial(run_whisper_at, compute="int8"),
    "faster-whisper int8": partial(run_faster_whisper, compute="int8"),
    "whisper_at batch": partial(run_whisper_at, batch=BATCH),
    "whisper_at int8 batch": partial(run_whisper_at, compute="int8", batch=BATCH),
    "faster-whisper batch": partial(run_faster_whisper, batch=BATCH),
    "faster-whisper int8 batch": partial(run_faster_whisper, compute="int8", batch=BATCH),
}
