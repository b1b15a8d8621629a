"""Time of greedy decoding with a draft model, by how many of its guesses are right.

    python benchmarks/speculative.py
    python benchmarks/speculative.py --sizes large-v3 --tokens 50 --json speculative.json

A random Whisper of an official size decodes one window in float32 to a fixed number of tokens, alternately by itself
and with a draft decoder of two layers. How often a real pair agrees is not known here. So all layers of the large
decoder but its first two are set to add nothing, at the same cost, and those two are the draft: nearly all guesses are
right. Then guesses are corrupted at random, so that each is right with the probability in the table; a guess counts
only if all before it are right, too. "times" is the time without a draft divided by the time with it: median, minimum
and maximum of single rounds. The tokens must be the same.

With --copy no layers are silenced, and a copy of the decoder in int8 is the draft; its guesses are not corrupted.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import weights
from common import HelpFormatter, add_common_arguments, compile_kernels, machine_info, set_num_threads, write_results

DRAFT_LAYERS = 2  # as distilled decoders have
SHARES_RIGHT = (1.0, 0.9, 0.8, 0.7, 0.5, 0.0)


def make_model(size: str, copy: bool) -> Any:
    """Make a random WhisperAT and its draft: its first two decoder layers, the others silenced; or a copy of it."""
    from whisper.model import ModelDimensions

    from whisper_at.engine.speculative import DraftModel
    from whisper_at.model import WhisperAT

    dims = {**weights.dimensions(size), "n_audio_layer": 1}  # the encoder is not used
    state = {name: t for name, t in weights.random_state(size).items() if not re.match(r"encoder\.blocks\.[1-9]", name)}
    draft_state = dict(state) if copy else {}
    for name, tensor in [] if copy else state.items():
        layer = re.match(r"decoder\.blocks\.(\d+)\.", name)
        if layer is None or int(layer[1]) < DRAFT_LAYERS:
            draft_state[name] = tensor
        elif re.search(r"(attn\.out|mlp\.2)\.(weight|bias)$", name):
            tensor.zero_()
    model = WhisperAT(ModelDimensions(**dims)).eval()
    model.load_state_dict(state)
    model.draft = DraftModel(dims if copy else {**dims, "n_text_layer": DRAFT_LAYERS}, draft_state)
    return model


@contextmanager
def corrupt_guesses(share_right: float) -> Iterator[None]:
    """Keep every guess with this probability, and else replace it by another token."""
    from whisper_at.engine.speculative import SpeculativeDecoder

    guess, random = SpeculativeDecoder._draft, np.random.default_rng(0)

    def corrupted(self: Any, most: int) -> Any:
        guesses = guess(self, most)
        for i in range(guesses.shape[1]):
            guesses[0, i] = guesses[0, i] if random.random() < share_right else (guesses[0, i] + 1) % weights.EOT
        return guesses

    SpeculativeDecoder._draft = corrupted  # type: ignore[method-assign]
    try:
        yield
    finally:
        SpeculativeDecoder._draft = guess  # type: ignore[method-assign]


def measure(size: str, tokens: int, repeat: int, copy: bool) -> list[dict[str, Any]]:
    """Time decoding with and without a draft alternately, for every share of right guesses."""
    import torch
    from whisper.decoding import DecodingOptions

    model = make_model(size, copy)
    draft = model.draft
    features = torch.randn(1, 1500, model.dims.n_text_state, generator=torch.Generator().manual_seed(0))
    options = DecodingOptions(
        language="en", without_timestamps=True, sample_len=tokens, suppress_tokens=[-1, weights.EOT], fp16=False
    )

    def run(with_draft: bool) -> tuple[float, list[int]]:
        model.draft = draft if with_draft else None
        heard = model.precompute_cross_kv(features)
        start = time.perf_counter()
        decoded = model.decode(heard, options)[0].tokens
        return time.perf_counter() - start, decoded

    run(with_draft=False)
    rows = []
    for share in SHARES_RIGHT[:1] if copy else SHARES_RIGHT:
        with corrupt_guesses(share):
            draft.acceptance_rate, draft.steps_without_draft = 0.8, 0
            run(with_draft=True)  # so that the acceptance rate is known
            rounds = [(run(with_draft=False), run(with_draft=True)) for _ in range(repeat)]
        equal = all(plain[1] == drafted[1] for plain, drafted in rounds)
        ratios = [plain[0] / drafted[0] for plain, drafted in rounds]
        alone, guessed = (statistics.median(both[i][0] for both in rounds) for i in (0, 1))
        rows.append(
            {
                "share": share,
                "alone": alone,
                "guessed": guessed,
                "times": alone / guessed,
                "ratios": ratios,
                "equal": equal,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=weights.SIZES, default=["small", "large-v3"])
    parser.add_argument("--tokens", type=int, default=100, help="decoded in a run")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of each share")
    parser.add_argument("--copy", action="store_true", help="a copy in int8 is the draft, see above")
    add_common_arguments(parser)
    args = parser.parse_args()
    if args.device != "cpu" or args.plot:
        parser.error("drafts are for CPUs, and there is no plot")
    set_num_threads(args.threads)
    machine = machine_info()
    compile_kernels()
    import torch

    torch.set_num_threads(args.threads)
    tables = {}
    for size in args.sizes:
        tables[size] = measure(size, args.tokens, args.repeat, args.copy)
        print(f"\n{size}, {args.tokens} tokens\n  right   alone s    draft s   times     min–max  tokens")
        for row in tables[size]:
            spread = f"{min(row['ratios']):.2f}–{max(row['ratios']):.2f}"
            same = "same" if row["equal"] else "NOT the same"
            seconds = f"{row['alone']:9.3f} {row['guessed']:10.3f}"
            print(f"  {row['share']:5.0%} {seconds} {row['times']:7.2f} {spread:>11}  {same}", flush=True)
    if args.json:
        write_results(args.json, args, machine, sizes=tables)


if __name__ == "__main__":
    main()
