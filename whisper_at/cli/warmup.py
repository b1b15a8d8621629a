"""``whisper-at warmup``: compile the kernels for CPUs now, instead of beside the first transcriptions."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from whisper import timing

from ..engine import compilation
from ..engine.alignment import FastMedianSort, cached_dtw
from ..engine.kernel_cache import cache_folder, writable_folder
from ..engine.kv_cache import DecoderState
from ..loading import load_model
from ..model import WhisperAT

COMPUTE_TYPES = ("float32", "int8", "bfloat16")


def main(argv: Sequence[str]) -> int:
    """Run the subcommand and return 0; wrong arguments exit with status 2, other errors are raised."""
    parser = argparse.ArgumentParser(
        prog="whisper-at warmup",
        description="Compile what transcription on a CPU uses, which the first transcriptions would do in the "
        "background while they are slower: for images, machines that live shortly, and measurements. It is kept in the "
        "folder WHISPER_AT_CACHE, ~/.cache/whisper_at by default.",
    )
    parser.add_argument(
        "--compute_type", nargs="+", choices=COMPUTE_TYPES, help="precisions to compile for, all by default"
    )
    args = parser.parse_args(argv)
    folder = cache_folder()
    if writable_folder(folder) != folder:
        raise PermissionError(f"nothing can be written to {folder}; set WHISPER_AT_CACHE to a folder to keep")
    for compute_type in args.compute_type or COMPUTE_TYPES:
        start, before = time.monotonic(), count_kernels(folder)
        print(f"{compute_type}: ", end="", flush=True)
        if not warm_up(compute_type):
            raise RuntimeError(f"the kernels for {compute_type} could not be compiled")
        new = count_kernels(folder) - before
        print(f"{new} kernels compiled in {time.monotonic() - start:.0f} s" if new else "compiled before", flush=True)
    print(f"Kernels for this processor ({compilation.target_processor()}) are in {folder}")
    return 0


def count_kernels(folder: Path) -> int:
    """Return the number of compiled kernels in a folder."""
    return len(list(folder.rglob("*.kernel")))


def warm_up(compute_type: str) -> bool:
    """Compile what a precision uses, for weights in half precision and in float32; return whether that is done."""
    for exact_in_half in (True, False):
        model = load_model("nano.en", "cpu", head=None, compute_type=compute_type)
        if not exact_in_half:
            for weight in model.decoder.parameters():
                weight.data = weight.data.float() * (1 + 1e-5)
        _use_kernels(model)
    return compilation.wait_for_kernels()


@torch.no_grad()
def _use_kernels(model: WhisperAT) -> None:
    """Call for every kernel once."""
    audio = model.precompute_cross_kv(model.embed_audio(torch.zeros(1, model.dims.n_mels, 3000)))
    DecoderState(model.fast_decoder(torch.float32), audio).prefill(torch.zeros(1, 1, dtype=torch.long))
    with FastMedianSort(), cached_dtw():
        torch.zeros(1, 8).unfold(-1, 7, 1).sort()
        timing.dtw(torch.zeros(2, 2))


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
