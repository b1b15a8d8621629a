"""Time of greedy decoding when a distilled model guesses, by how many of its guesses are right.

    python benchmarks/drafting.py
    python benchmarks/drafting.py --sizes large-v3 --tokens 50 --json drafting.json

A random Whisper of an official size decodes one window in float32 to so many tokens, by itself and with a decoder of
two layers guessing, by turns. What a real pair agrees on is not known here. So all layers of the large decoder but its
first two are made to add nothing, which costs as much as if they did, and those two are the small one: nearly all
guesses are right, and then are spoiled by chance, so that each is right with the probability in the table. A guess
counts only if all before it were right, too. "times" is how many times as long as with guesses it takes without:
medians, with least and most of single rounds. The tokens must be the same.

With --copy a model without such layers guesses for itself, by a copy of its decoder in int8, as well as that does.
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
from common import Help, add_outputs, machine, use_threads, write_results

LAYERS = 2  # of distilled decoders
SHARES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.0)


def pair(size: str, copy: bool) -> Any:
    """A random WhisperAT, and as its draft the two layers that say all that it says; or a copy of it."""
    from whisper.model import ModelDimensions

    from whisper_at.engine.speculative import Draft
    from whisper_at.model import WhisperAT

    deep = {**weights.dimensions(size), "n_audio_layer": 1}  # the encoder is not asked
    state = {name: t for name, t in weights.random_state(size).items() if not re.match(r"encoder\.blocks\.[1-9]", name)}
    kept = dict(state) if copy else {}
    for name, tensor in [] if copy else state.items():
        layer = re.match(r"decoder\.blocks\.(\d+)\.", name)
        if layer is None or int(layer[1]) < LAYERS:
            kept[name] = tensor
        elif re.search(r"(attn\.out|mlp\.2)\.(weight|bias)$", name):
            tensor.zero_()
    model = WhisperAT(ModelDimensions(**deep)).eval()
    model.load_state_dict(state)
    model.draft = Draft(deep if copy else {**deep, "n_text_layer": LAYERS}, kept)
    return model


@contextmanager
def spoiled(share: float) -> Iterator[None]:
    """Every guess is what it was with this probability, and else another token."""
    from whisper_at.engine.speculative import Drafted

    guess, r = Drafted._guess, np.random.default_rng(0)

    def spoil(self: Any, most: int) -> Any:
        guesses = guess(self, most)
        for i in range(guesses.shape[1]):
            guesses[0, i] = guesses[0, i] if r.random() < share else (guesses[0, i] + 1) % weights.EOT
        return guesses

    Drafted._guess = spoil  # type: ignore[method-assign]
    try:
        yield
    finally:
        Drafted._guess = guess  # type: ignore[method-assign]


def measure(size: str, tokens: int, repeat: int, copy: bool) -> list[dict[str, Any]]:
    """Turns with and without guesses, for every share of right ones."""
    import torch
    from whisper.decoding import DecodingOptions

    model = pair(size, copy)
    draft = model.draft
    features = torch.randn(1, 1500, model.dims.n_text_state, generator=torch.Generator().manual_seed(0))
    options = DecodingOptions(
        language="en", without_timestamps=True, sample_len=tokens, suppress_tokens=[-1, weights.EOT], fp16=False
    )

    def turn(guessed: bool) -> tuple[float, list[int]]:
        model.draft = draft if guessed else None
        heard = model.hear(features)
        start = time.perf_counter()
        found = model.decode(heard, options)[0].tokens
        return time.perf_counter() - start, found

    turn(False)
    rows = []
    for share in SHARES[:1] if copy else SHARES:
        with spoiled(share):
            draft.trust, draft.alone = 0.8, 0
            turn(True)  # in which it learns how good its guesses are
            turns = [(turn(False), turn(True)) for _ in range(repeat)]
        equal = all(plain[1] == drafted[1] for plain, drafted in turns)
        ratios = [plain[0] / drafted[0] for plain, drafted in turns]
        alone, guessed = (statistics.median(both[i][0] for both in turns) for i in (0, 1))
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--sizes", nargs="+", choices=weights.SIZES, default=["small", "large-v3"])
    parser.add_argument("--tokens", type=int, default=100, help="decoded in a turn")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each way and share")
    parser.add_argument("--copy", action="store_true", help="a copy in int8 guesses, see above")
    add_outputs(parser)
    args = parser.parse_args()
    if args.device != "cpu" or args.plot:
        parser.error("guesses are for CPUs, and nothing is drawn of them")
    use_threads(args.threads)
    about = machine()
    import torch

    torch.set_num_threads(args.threads)
    tables = {}
    for size in args.sizes:
        tables[size] = measure(size, args.tokens, args.repeat, args.copy)
        print(f"\n{size}, {args.tokens} tokens\n  right   alone s  guessed s   times  least–most  tokens")
        for row in tables[size]:
            spread = f"{min(row['ratios']):.2f}–{max(row['ratios']):.2f}"
            same = "same" if row["equal"] else "NOT the same"
            seconds = f"{row['alone']:9.3f} {row['guessed']:10.3f}"
            print(f"  {row['share']:5.0%} {seconds} {row['times']:7.2f} {spread:>11}  {same}", flush=True)
    if args.json:
        write_results(args.json, args, about, sizes=tables)


if __name__ == "__main__":
    main()
