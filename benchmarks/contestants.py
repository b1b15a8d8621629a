"""The peers that are raced: how each is loaded and told to do the same work, and the process that it lives in."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import weights
from common import RATE, WINDOW, peak_memory, recording

NON_SPEECH = -1  # what openai-whisper and faster-whisper suppress by default
PROMPT = 4  # tokens: start, language, task, no timestamps
REFERENCE = "openai-whisper"
HEADS = {"TL-TR": "tl_tr_1_8", "TL-TR-512": "tl_down_tr_512_1_8"}  # the published ones
TAG_SECONDS = 10  # what a row of tags is long, in whisper_at by default and for the separate tagger
TAGGER_FRAMES, TAGGER_MELS = 1024, 128  # the input of AST
TAGGER_BATCH = 8
Decodings = list[list[int]]  # tokens of every decoding of a window


@dataclass(frozen=True)
class Work:
    """One way to transcribe, in words that fit every peer.

    tags : seconds per row; whisper_at by its head, the others by a separate tagger (rows of 10 s)
    batch : windows at a time, each of 30 s exactly; None for one after the other
    seconds : of sound, where it is not the run's
    strict : of word timing, in whisper_at
    """

    beam: int | None = None
    language: str | None = "en"
    fallback: bool = False  # a second try at temperature 0.2 after every first
    words: bool = False
    strict: bool = True
    tags: float | None = None
    batch: int | None = None
    seconds: float | None = None

    @property
    def temperature(self) -> float | tuple[float, ...]:
        return (0.0, 0.2) if self.fallback else 0.0


@dataclass(frozen=True)
class Setting:
    """What a worker needs to know of the whole run."""

    folder: Path
    size: str
    seconds: float
    tokens: int
    threads: int
    device: str = "cpu"

    def audio(self, work: Work) -> np.ndarray:
        return recording(work.seconds or self.seconds)


Transcribe = Callable[[np.ndarray, Work, int], Decodings]


def clips(audio: np.ndarray) -> list[float]:
    """Starts and ends of windows of 30 s: 0, 30, 30, 60, …"""
    edges = [*np.arange(0, len(audio) / RATE, WINDOW).tolist(), len(audio) / RATE]
    return [edge for pair in itertools.pairwise(edges) for edge in pair]


def default_head(size: str) -> str:
    """The head that whisper_at tags with in races: the published low-compute one from small on."""
    return HEADS["TL-TR-512" if size in ("small", "medium", "large-v3") else "TL-TR"]


def open_ours(path: Path, compute: str, device: str, head: str) -> Any:
    """A WhisperAT with a random head."""
    import torch

    import whisper_at
    from whisper_at.tagging.heads import make_head

    torch.manual_seed(0)
    model = whisper_at.load_model(str(path), device=device, head=None, compute_type=compute)
    model.head = make_head(head, n_layer=model.dims.n_audio_layer, rep_dim=model.dims.n_audio_state)
    return model


def load_ours(setting: Setting, compute: str) -> Transcribe:
    import torch

    torch.set_num_threads(setting.threads)
    model = open_ours(setting.folder / "model.pt", compute, setting.device, default_head(setting.size))

    def transcribe(audio: np.ndarray, work: Work, tokens: int) -> Decodings:
        torch.manual_seed(0)
        options = upstream_options(work, tokens, setting.device)
        if work.batch:
            options |= {"batch_size": work.batch, "clip_timestamps": clips(audio)}  # not where it is quiet
        else:
            options |= {"strict_word_timing": work.strict}
        with watched(model, "decode", lambda result: result.tokens) as decoded:
            result = model.transcribe(audio, at_time_res=work.tags, **options)
        if work.tags and len(result["audio_tag"]) != -(-len(audio) // round(work.tags * RATE)):
            raise RuntimeError(f"{len(result['audio_tag'])} rows of tags")
        return decoded

    return transcribe


def load_openai(setting: Setting, compute: str) -> Transcribe:
    import torch
    import whisper

    torch.set_num_threads(setting.threads)
    model = whisper.load_model(str(setting.folder / "model.pt"), device=setting.device)

    def transcribe(audio: np.ndarray, work: Work, tokens: int) -> Decodings:
        torch.manual_seed(0)
        with watched(model, "decode", lambda result: result.tokens) as decoded:
            model.transcribe(audio, **upstream_options(work, tokens, setting.device))
        return decoded

    return transcribe


def upstream_options(work: Work, tokens: int, device: str = "cpu") -> dict[str, Any]:
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
        fp16=device == "cuda",
    )


def load_faster(setting: Setting, compute: str) -> Transcribe:
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    folder = str(setting.folder / f"ct2_{compute}")
    model = WhisperModel(folder, device=setting.device, compute_type=compute, cpu_threads=setting.threads)
    model.model = Proxy(model.model)  # of a compiled class, whose methods cannot be watched
    in_batches = BatchedInferencePipeline(model)

    def transcribe(audio: np.ndarray, work: Work, tokens: int) -> Decodings:
        options = dict(
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
        with watched(model.model, "generate", lambda result: result.sequences_ids[0]) as decoded:
            if work.batch:
                edges = clips(audio)
                windows = [{"start": start, "end": end} for start, end in zip(edges[::2], edges[1::2])]
                segments, _ = in_batches.transcribe(audio, batch_size=work.batch, clip_timestamps=windows, **options)
            else:
                segments, _ = model.transcribe(audio, **options)
            list(segments)  # the work is done as they are read
        return decoded

    return transcribe


def load_transformers(setting: Setting, compute: str) -> Transcribe:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(setting.threads)
    dtype = torch.float16 if compute == "float16" else torch.float32
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    model = transformers.WhisperForConditionalGeneration.from_pretrained(setting.folder / "hf", **options)
    model = model.eval().to(setting.device)
    extract = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)

    def transcribe(audio: np.ndarray, work: Work, tokens: int) -> Decodings:
        torch.manual_seed(0)
        options = {"num_beams": work.beam or 1, "max_new_tokens": tokens, "return_timestamps": False}
        language, decoded = work.language, []
        windows = [audio[start : start + WINDOW * RATE] for start in range(0, len(audio), WINDOW * RATE)]
        for first in range(0, len(windows), work.batch or 1):
            batch = windows[first : first + (work.batch or 1)]
            extracted = extract(batch, sampling_rate=RATE, return_tensors="pt", device=setting.device)
            mel = extracted.input_features.to(setting.device, dtype)
            if language is None:
                language = detected(model, mel)
            ids = model.generate(mel, language=language, task="transcribe", **options).tolist()
            decoded += [[token for token in row if token < weights.EOT] for row in ids]
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


def load_tagger(setting: Setting) -> Callable[[np.ndarray], Any]:
    """The second model of whoever tags with one: an AST of its published size (87M parameters), with random weights.

    It hears rows of 10 s, eight at a time, by a mel spectrogram of its own: 128 bands of frames of 10 ms. That is
    computed by openai-whisper's function, whose work is the same as that of AST's own.
    """
    import torch
    from transformers import ASTConfig, ASTForAudioClassification
    from whisper import log_mel_spectrogram

    torch.set_num_threads(setting.threads)
    dtype = torch.float16 if setting.device == "cuda" else torch.float32
    config = ASTConfig(num_labels=527, num_mel_bins=TAGGER_MELS, max_length=TAGGER_FRAMES, attn_implementation="sdpa")
    model = ASTForAudioClassification(config).eval().to(setting.device, dtype)

    @torch.inference_mode()
    def tag(audio: np.ndarray) -> torch.Tensor:
        samples = torch.from_numpy(audio).to(setting.device)
        size = TAG_SECONDS * RATE
        rows = torch.nn.functional.pad(samples, (0, -len(samples) % size)).view(-1, size)
        logits = []
        for some in rows.split(TAGGER_BATCH):
            mel = log_mel_spectrogram(some, TAGGER_MELS)
            mel = torch.nn.functional.pad(mel, (0, TAGGER_FRAMES - mel.shape[-1]))
            logits.append(model(mel.transpose(1, 2).to(dtype)).logits.float().cpu())
        return torch.cat(logits)

    return tag


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
        nonlocal tagger
        separate = work.tags is not None and peer != "whisper_at"
        if separate and tagger is None:
            tagger = load_tagger(setting)
        audio, tokens = setting.audio(work), setting.tokens
        if not earnest:  # a warm-up meets all code, but takes few tokens and, where shapes do not matter, one window
            audio, tokens = audio[: None if setting.device == "cuda" else 5 * RATE], 8
        start = time.perf_counter()
        decoded = transcribe(audio, work, tokens)
        if separate:
            tagger(audio)
        return {"seconds": time.perf_counter() - start, "decoded": decoded}

    transcribe: Transcribe
    tagger: Callable[[np.ndarray], Any] | None = None
    if not answer(load):
        return
    while (order := connection.recv()) is not None:
        answer(lambda: turn(*order))


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
