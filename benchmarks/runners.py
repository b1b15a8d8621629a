"""Runners: how each library is loaded and set to do the same work, each in a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import weights
from common import SAMPLE_RATE, WINDOW_SECONDS, peak_memory, synthetic_audio

SUPPRESS_NON_SPEECH = -1  # the default of openai-whisper and faster-whisper
PROMPT_TOKENS = 4  # start, language, task, no timestamps
REFERENCE = "openai-whisper"
HEADS = {"TL-TR": "tl_tr_1_8", "TL-TR-512": "tl_down_tr_512_1_8"}  # the published ones
TAG_SECONDS = 10  # per row of tags, for whisper_at's head and for the separate tagger
TAGGER_FRAMES, TAGGER_MELS = 1024, 128  # the input of AST
TAGGER_BATCH = 8
Decodings = list[list[int]]  # tokens of every decoding of a window


@dataclass(frozen=True)
class Workload:
    """One way to transcribe, in terms that apply to every library.

    Attributes
    ----------
    beam : int, optional
        Size of the beam; greedy by default.
    language : str, optional
        None: detect it.
    fallback : bool
        Decode every window a second time, at temperature 0.2.
    words : bool
        Word timestamps.
    strict : bool
        ``strict_word_timing`` of whisper_at.
    tags : float, optional
        Seconds per row of tags: by whisper_at's head, for the others by a separate tagger (rows of 10 s).
    batch : int, optional
        Windows at a time, each of exactly 30 s; one after the other by default.
    seconds : float, optional
        Seconds of audio, if not those of the run.
    """

    beam: int | None = None
    language: str | None = "en"
    fallback: bool = False
    words: bool = False
    strict: bool = True
    tags: float | None = None
    batch: int | None = None
    seconds: float | None = None

    @property
    def temperature(self) -> float | tuple[float, ...]:
        return (0.0, 0.2) if self.fallback else 0.0


@dataclass(frozen=True)
class RunConfig:
    """What is the same for all runners: folder of the weights, size, audio, tokens per window, threads and device."""

    folder: Path
    size: str
    seconds: float
    tokens: int
    threads: int
    device: str = "cpu"

    def audio(self, work: Workload) -> np.ndarray:
        return synthetic_audio(work.seconds or self.seconds)


Transcribe = Callable[[np.ndarray, Workload, int], Decodings]


def window_edges(audio: np.ndarray) -> list[float]:
    """Return starts and ends of windows of 30 s, in seconds: 0, 30, 30, 60 and so on."""
    duration = len(audio) / SAMPLE_RATE
    edges = [*np.arange(0, duration, WINDOW_SECONDS).tolist(), duration]
    return [edge for pair in itertools.pairwise(edges) for edge in pair]


def default_head(size: str) -> str:
    """Return whisper_at's head for a size: the published low-compute one from small on."""
    return HEADS["TL-TR-512" if size in ("small", "medium", "large-v3") else "TL-TR"]


def load_whisper_at(path: Path, compute: str, device: str, head: str) -> Any:
    """Load a WhisperAT and give it a random head."""
    import torch

    import whisper_at
    from whisper_at.tagging.heads import make_head

    torch.manual_seed(0)
    model = whisper_at.load_model(str(path), device=device, head=None, compute_type=compute)
    model.head = make_head(head, n_layer=model.dims.n_audio_layer, rep_dim=model.dims.n_audio_state)
    return model


def whisper_at_runner(config: RunConfig, compute: str) -> Transcribe:
    import torch

    torch.set_num_threads(config.threads)
    model = load_whisper_at(config.folder / "model.pt", compute, config.device, default_head(config.size))

    def transcribe(audio: np.ndarray, work: Workload, tokens: int) -> Decodings:
        torch.manual_seed(0)
        options = transcribe_options(work, tokens, config.device)
        if work.batch:
            options |= {"batch_size": work.batch, "clip_timestamps": window_edges(audio)}  # not where it is quiet
        else:
            options |= {"strict_word_timing": work.strict}
        with record_tokens(model, "decode", lambda result: result.tokens) as decodings:
            result = model.transcribe(audio, at_time_res=work.tags, **options)
        if work.tags and len(result["audio_tag"]) != -(-len(audio) // round(work.tags * SAMPLE_RATE)):
            raise RuntimeError(f"{len(result['audio_tag'])} rows of tags")
        return decodings

    return transcribe


def openai_runner(config: RunConfig, compute: str) -> Transcribe:
    import torch
    import whisper

    torch.set_num_threads(config.threads)
    model = whisper.load_model(str(config.folder / "model.pt"), device=config.device)

    def transcribe(audio: np.ndarray, work: Workload, tokens: int) -> Decodings:
        torch.manual_seed(0)
        with record_tokens(model, "decode", lambda result: result.tokens) as decodings:
            model.transcribe(audio, **transcribe_options(work, tokens, config.device))
        return decodings

    return transcribe


def transcribe_options(work: Workload, tokens: int, device: str = "cpu") -> dict[str, Any]:
    """Return options of `whisper.transcribe`, which are also whisper_at's."""
    return dict(
        language=work.language,
        beam_size=work.beam,
        temperature=work.temperature,
        sample_len=tokens,
        suppress_tokens=[SUPPRESS_NON_SPEECH, weights.EOT],
        without_timestamps=True,
        word_timestamps=work.words,
        condition_on_previous_text=False,
        compression_ratio_threshold=None,
        logprob_threshold=0.0 if work.fallback else None,  # no text reaches 0
        no_speech_threshold=None,
        fp16=device == "cuda",
    )


def faster_whisper_runner(config: RunConfig, compute: str) -> Transcribe:
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    folder = str(config.folder / f"ct2_{compute}")
    model = WhisperModel(folder, device=config.device, compute_type=compute, cpu_threads=config.threads)
    model.model = Proxy(model.model)  # methods of the compiled class cannot be replaced
    pipeline = BatchedInferencePipeline(model)

    def transcribe(audio: np.ndarray, work: Workload, tokens: int) -> Decodings:
        options = dict(
            language=work.language,
            beam_size=work.beam or 1,
            best_of=1,
            temperature=work.temperature,
            max_new_tokens=2 * tokens - PROMPT_TOKENS,  # CTranslate2 ends at half of this plus the prompt
            suppress_tokens=[SUPPRESS_NON_SPEECH, weights.EOT],
            without_timestamps=True,
            word_timestamps=work.words,
            condition_on_previous_text=False,
            compression_ratio_threshold=None,
            log_prob_threshold=0.0 if work.fallback else None,
            no_speech_threshold=None,
            vad_filter=False,
        )
        with record_tokens(model.model, "generate", lambda result: result.sequences_ids[0]) as decodings:
            if work.batch:
                edges = window_edges(audio)
                windows = [{"start": start, "end": end} for start, end in zip(edges[::2], edges[1::2])]
                segments, _ = pipeline.transcribe(audio, batch_size=work.batch, clip_timestamps=windows, **options)
            else:
                segments, _ = model.transcribe(audio, **options)
            list(segments)  # the work is done as they are read
        return decodings

    return transcribe


def transformers_runner(config: RunConfig, compute: str) -> Transcribe:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(config.threads)
    dtype = torch.float16 if compute == "float16" else torch.float32
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    model = transformers.WhisperForConditionalGeneration.from_pretrained(config.folder / "hf", **options)
    model = model.eval().to(config.device)
    extract = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)

    def transcribe(audio: np.ndarray, work: Workload, tokens: int) -> Decodings:
        torch.manual_seed(0)
        options = {"num_beams": work.beam or 1, "max_new_tokens": tokens, "return_timestamps": False}
        language, decodings = work.language, []
        size = WINDOW_SECONDS * SAMPLE_RATE
        windows = [audio[start : start + size] for start in range(0, len(audio), size)]
        for first in range(0, len(windows), work.batch or 1):
            batch = windows[first : first + (work.batch or 1)]
            extracted = extract(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt", device=config.device)
            mel = extracted.input_features.to(config.device, dtype)
            if language is None:
                language = detect_language(mel)
            ids = model.generate(mel, language=language, task="transcribe", **options).tolist()
            decodings += [[token for token in row if token < weights.EOT] for row in ids]
        return decodings

    def detect_language(mel: torch.Tensor) -> str:
        detected = int(model.detect_language(input_features=mel)[0])
        return next(name for name, token in model.generation_config.lang_to_id.items() if token == detected)

    return transcribe


RUNNERS: dict[str, Callable[[RunConfig, str], Transcribe]] = {
    "whisper_at": whisper_at_runner,
    REFERENCE: openai_runner,
    "faster-whisper": faster_whisper_runner,
    "transformers": transformers_runner,
}


def load_tagger(config: RunConfig) -> Callable[[np.ndarray], Any]:
    """Load a separate tagger for the other libraries: an AST of its published size (87M parameters), random weights.

    It tags rows of 10 s, eight at a time, from 128 mel bands of 10 ms frames. openai-whisper's function computes them,
    which takes as much work as AST's own.
    """
    import torch
    from transformers import ASTConfig, ASTForAudioClassification
    from whisper import log_mel_spectrogram

    torch.set_num_threads(config.threads)
    dtype = torch.float16 if config.device == "cuda" else torch.float32
    shape = ASTConfig(num_labels=527, num_mel_bins=TAGGER_MELS, max_length=TAGGER_FRAMES, attn_implementation="sdpa")
    model = ASTForAudioClassification(shape).eval().to(config.device, dtype)

    @torch.inference_mode()
    def tag(audio: np.ndarray) -> torch.Tensor:
        samples = torch.from_numpy(audio).to(config.device)
        size = TAG_SECONDS * SAMPLE_RATE
        rows = torch.nn.functional.pad(samples, (0, -len(samples) % size)).view(-1, size)
        logits = []
        for batch in rows.split(TAGGER_BATCH):
            mel = log_mel_spectrogram(batch, TAGGER_MELS)
            mel = torch.nn.functional.pad(mel, (0, TAGGER_FRAMES - mel.shape[-1]))
            logits.append(model(mel.transpose(1, 2).to(dtype)).logits.float().cpu())
        return torch.cat(logits)

    return tag


class Proxy:
    """An object whose methods can be replaced, on top of one whose methods cannot."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


@contextlib.contextmanager
def record_tokens(target: Any, method: str, get_tokens: Callable[[Any], Sequence[int]]) -> Iterator[Decodings]:
    """Record the tokens of every result that a method returns, in a list or alone."""
    decodings: Decodings = []
    original = getattr(target, method)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        results = original(*args, **kwargs)
        decodings.extend(list(get_tokens(result)) for result in (results if isinstance(results, list) else [results]))
        return results

    setattr(target, method, recorded)
    try:
        yield decodings
    finally:
        delattr(target, method)  # the class's method is visible again


def worker_main(connection: Connection, peer: str, compute: str, config: RunConfig) -> None:
    """Load a runner, then run every (work, warm_up) that is received, until None."""

    def reply(make: Callable[[], dict[str, Any]]) -> bool:
        try:
            connection.send({**make(), "peak": peak_memory()})
            return True
        except Exception as error:
            connection.send({"error": f"{type(error).__name__}: {error}"})
            return False

    def load() -> dict[str, Any]:
        nonlocal transcribe
        transcribe = RUNNERS[peer](config, compute)
        return {}

    def run(work: Workload, warm_up: bool) -> dict[str, Any]:
        nonlocal tagger
        separate_tagger = work.tags is not None and peer != "whisper_at"
        if separate_tagger and tagger is None:
            tagger = load_tagger(config)
        audio, tokens = config.audio(work), config.tokens
        if warm_up:  # runs all code, with few tokens and, where shapes do not matter, one short window
            audio, tokens = audio[: None if config.device == "cuda" else 5 * SAMPLE_RATE], 8
        start = time.perf_counter()
        decodings = transcribe(audio, work, tokens)
        if separate_tagger:
            tagger(audio)
        return {"seconds": time.perf_counter() - start, "decoded": decodings}

    transcribe: Transcribe
    tagger: Callable[[np.ndarray], Any] | None = None
    if not reply(load):
        return
    while (order := connection.recv()) is not None:
        reply(lambda: run(*order))


class Worker:
    """A runner in a process of its own, seen from the parent process."""

    def __init__(self, peer: str, compute: str, config: RunConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child_connection = context.Pipe()
        arguments = (child_connection, peer, compute, config)
        self.process = context.Process(target=worker_main, args=arguments, daemon=True)
        self.process.start()
        child_connection.close()
        self.peaks = {"loaded": self._receive()["peak"]}

    def _receive(self) -> dict[str, Any]:
        try:
            reply = self.connection.recv()
        except EOFError:
            raise RuntimeError("the process ended") from None
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    def run(self, work: Workload, warm_up: bool = False) -> dict[str, Any]:
        """Return ``seconds``, ``decoded`` and ``peak`` of one run."""
        self.connection.send((work, warm_up))
        return self._receive()

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # the process may have ended
            self.connection.send(None)
        self.process.join()
