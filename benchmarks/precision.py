"""How far logits, text and tags move when a model computes in less than float32.

    python benchmarks/precision.py
    python benchmarks/precision.py --model small --audio talk.mp3 street.wav --language en

Every recording is transcribed and tagged in float32, and in every other precision that the device has. "logits" is the
root mean square of the differences of the decoder's logits behind the same tokens, those of the text in float32, as a
share of their standard deviation, and "same best" how often the same token is the likeliest. "words" counts words of
the text that differ (added, left out or others), of those that float32 wrote; "tags" is the largest difference of any
logit of a row of tags, and the mean of all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from common import Help, add_outputs, machine, use_threads, write_results
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

import whisper_at
from whisper_at.engine.decoder import Rows
from whisper_at.study.wer import word_errors

SAMPLES = [Path(__file__).parents[1] / "sample" / name for name in ("speech.flac", "street.ogg", "sounds.ogg")]
LESS = {"cpu": ("bfloat16", "int8"), "cuda": ("float16", "bfloat16")}
PROMPT = 224  # tokens behind which logits are compared; a window has no more of them


def decoder_logits(model: whisper_at.WhisperAT, mel: Tensor, tokens: Tensor) -> Tensor:
    """Float32 logits ``(n, vocabulary)`` behind each of the tokens ``(1, n)`` of a window, as decoding has them."""
    half = model.compute_type == "float16"
    rows = Rows(model.fast_decoder(torch.float16 if half else torch.float32), model.hear(model.embed_audio(mel)))
    return rows.start(tokens, at=range(tokens.shape[1]))[0].cpu()


def windows(model: whisper_at.WhisperAT, path: Path, result: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Mel and tokens of every window of a transcript."""
    tokenizer = whisper_at.tokenizer.get_tokenizer(
        model.is_multilingual, num_languages=model.num_languages, language=result["language"], task="transcribe"
    )
    whole = whisper_at.log_mel_spectrogram(whisper_at.load_audio(str(path)), model.dims.n_mels, padding=480000)
    found = []
    for seek in sorted({segment["seek"] for segment in result["segments"]}):
        text = [t for segment in result["segments"] if segment["seek"] == seek for t in segment["tokens"]]
        mel = whisper_at.pad_or_trim(whole[:, seek : seek + 3000], 3000)
        found.append((mel[None], torch.tensor([[*tokenizer.sot_sequence, *text][:PROMPT]])))
    return found


def compare(args: argparse.Namespace, less: str, exact: whisper_at.WhisperAT) -> dict[str, float]:
    """What one precision makes of all recordings, against float32."""
    model = whisper_at.load_model(args.model, device=args.device, compute_type=less)
    options = {"language": args.language, "at_time_res": args.at_time_res, "temperature": 0.0, "verbose": None}
    squares, spreads, best, wrong, written, tags = [], [], [], 0, 0, []
    for path in args.audio:
        wanted = exact.transcribe(str(path), **options, fp16=False)
        found = model.transcribe(str(path), **options)
        errors = word_errors([wanted["text"]], [found["text"]])
        wrong, written = wrong + errors.errors, written + errors.words
        tags.append((found["audio_tag"] - wanted["audio_tag"]).abs().flatten())
        for mel, tokens in windows(exact, path, wanted):
            a, b = (decoder_logits(one, mel.to(args.device), tokens) for one in (exact, model))
            squares.append((a - b).square().mean(1)), spreads.append(a.var(1)), best.append(a.argmax(1) == b.argmax(1))
    every = torch.cat(tags)
    return {
        "logits": float((torch.cat(squares).mean() / torch.cat(spreads).mean()).sqrt()),
        "same_best": float(torch.cat(best).float().mean()),
        "words_wrong": wrong,
        "words": written,
        "tags_most": float(every[every.isfinite()].max()),
        "tags_mean": float(every[every.isfinite()].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add("--model", default="nano.en", help="name or path")
    add("--audio", nargs="+", type=Path, default=SAMPLES, help="recordings; those of sample/ if none are given")
    add("--language", default="en")
    add("--at_time_res", type=float, default=2.0, help="seconds of a row of tags")
    add_outputs(parser)
    args = parser.parse_args()
    use_threads(args.threads)
    torch.set_num_threads(args.threads)
    about = machine(args.device)
    exact = whisper_at.load_model(args.model, device=args.device, compute_type="float32")
    found = {}
    print(f"{args.model}, {len(args.audio)} recordings, against float32")
    for less in LESS[args.device]:
        row = found[less] = compare(args, less, exact)
        print(
            f"  {less:10} logits {row['logits']:.4f}   same best {row['same_best']:.4f}   "
            f"words {row['words_wrong']} of {row['words']}   tags {row['tags_most']:.3f} ({row['tags_mean']:.4f})"
        )
    if args.json:
        args.audio = [path.name for path in args.audio]
        write_results(args.json, args, about, precisions=found)


if __name__ == "__main__":
    main()
