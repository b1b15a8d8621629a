"""Differences of logits, text and tags when a model computes in less than float32.

    python benchmarks/precision.py
    python benchmarks/precision.py --model small --audio talk.mp3 street.wav --language en

Every recording is transcribed and tagged in float32, and in every other precision of the device. "logits" is the root
mean square difference of the decoder's logits after the same tokens (float32's text), as a share of their standard
deviation; "same best" is how often the same token is the likeliest. "words" counts word errors of the text, relative to
float32's; "tags" is the largest difference of any logit of a row of tags, and the mean of all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numba
import torch
from common import HelpFormatter, add_common_arguments, compile_kernels, machine_info, write_results
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

import whisper_at
from whisper_at.engine.kv_cache import DecoderState
from whisper_at.study.wer import word_errors

SAMPLES = [Path(__file__).parents[1] / "sample" / name for name in ("speech.flac", "street.ogg", "sounds.ogg")]
COMPUTE_TYPES = {"cpu": ("bfloat16", "int8"), "cuda": ("float16", "bfloat16")}
MAX_TOKENS = 224  # after which logits are compared; a window has no more


def decoder_logits(model: whisper_at.WhisperAT, mel: Tensor, tokens: Tensor) -> Tensor:
    """Return decoding's logits, float32, shape (n, vocabulary), after each of the tokens (1, n) of a window."""
    half = model.compute_type == "float16"
    decoder = model.fast_decoder(torch.float16 if half else torch.float32)
    state = DecoderState(decoder, model.precompute_cross_kv(model.embed_audio(mel)))
    return state.prefill(tokens, logits_at=range(tokens.shape[1]))[0].cpu()


def read_windows(model: whisper_at.WhisperAT, path: Path, result: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Return mel and tokens of every window of a transcript."""
    tokenizer = whisper_at.tokenizer.get_tokenizer(
        model.is_multilingual, num_languages=model.num_languages, language=result["language"], task="transcribe"
    )
    full_mel = whisper_at.log_mel_spectrogram(whisper_at.load_audio(str(path)), model.dims.n_mels, padding=480000)
    windows = []
    for seek in sorted({segment["seek"] for segment in result["segments"]}):
        text = [t for segment in result["segments"] if segment["seek"] == seek for t in segment["tokens"]]
        mel = whisper_at.pad_or_trim(full_mel[:, seek : seek + 3000], 3000)
        windows.append((mel[None], torch.tensor([[*tokenizer.sot_sequence, *text][:MAX_TOKENS]])))
    return windows


def compare(args: argparse.Namespace, compute_type: str, exact: whisper_at.WhisperAT) -> dict[str, float]:
    """Compare one precision with float32 on all recordings."""
    model = whisper_at.load_model(args.model, device=args.device, compute_type=compute_type)
    options = {"language": args.language, "at_time_res": args.at_time_res, "temperature": 0.0, "verbose": None}
    squares, variances, same_best, tags = [], [], [], []
    errors = words = 0
    for path in args.audio:
        expected = exact.transcribe(str(path), **options, fp16=False)
        result = model.transcribe(str(path), **options)
        of_text = word_errors([expected["text"]], [result["text"]])
        errors, words = errors + of_text.errors, words + of_text.words
        tags.append((result["audio_tag"] - expected["audio_tag"]).abs().flatten())
        for mel, tokens in read_windows(exact, path, expected):
            a, b = (decoder_logits(m, mel.to(args.device), tokens) for m in (exact, model))
            squares.append((a - b).square().mean(1))
            variances.append(a.var(1))
            same_best.append(a.argmax(1) == b.argmax(1))
    differences = torch.cat(tags)
    differences = differences[differences.isfinite()]
    return {
        "logits": float((torch.cat(squares).mean() / torch.cat(variances).mean()).sqrt()),
        "same_best": float(torch.cat(same_best).float().mean()),
        "words_wrong": errors,
        "words": words,
        "tags_most": float(differences.max()),
        "tags_mean": float(differences.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--model", default="nano.en", help="name or path")
    add("--audio", nargs="+", type=Path, default=SAMPLES, help="recordings; those of sample/ if none are given")
    add("--language", default="en")
    add("--at_time_res", type=float, default=2.0, help="seconds of a row of tags")
    add_common_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    numba.set_num_threads(min(args.threads, numba.config.NUMBA_NUM_THREADS))
    machine = machine_info(args.device)
    compile_kernels(args.device)
    exact = whisper_at.load_model(args.model, device=args.device, compute_type="float32")
    results = {}
    print(f"{args.model}, {len(args.audio)} recordings, against float32")
    for compute_type in COMPUTE_TYPES[args.device]:
        row = results[compute_type] = compare(args, compute_type, exact)
        print(
            f"  {compute_type:10} logits {row['logits']:.4f}   same best {row['same_best']:.4f}   "
            f"words {row['words_wrong']} of {row['words']}   tags {row['tags_most']:.3f} ({row['tags_mean']:.4f})"
        )
    if args.json:
        args.audio = [path.name for path in args.audio]
        write_results(args.json, args, machine, precisions=results)


if __name__ == "__main__":
    main()
