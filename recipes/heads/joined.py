"""How well a head knows single sounds again in a recording full of them.

    python -m recipes.heads.joined my_sounds.safetensors --data new_sounds/ --model nano.en

Clips in folders of classes are cut or padded to one length and heard twice: each by itself, and all of them in one
recording, one behind the other in random order. What an encoder makes of a sound depends on what else its window of
30 s holds; the second is what transcription meets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from whisper_at import load_model
from whisper_at.audio import SAMPLE_RATE, pad_or_trim
from whisper_at.model import WhisperAT
from whisper_at.train.data import read_folders
from whisper_at.train.extract import load_part


def heard(model: WhisperAT, audio: np.ndarray, seconds: float) -> list[int]:
    """The class of every row of ``seconds``, by the one head that is attached."""
    (name,) = model.attached
    result = model.transcribe(audio, at_time_res=seconds, language="en", temperature=0.0, sample_len=1, fp16=False)
    return result[name]["logits"].argmax(-1).tolist()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the shares that are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", help="of classes of its own")
    parser.add_argument("--data", required=True, help="folder of folders, one a class")
    parser.add_argument("--model", default="nano.en")
    parser.add_argument("--seconds", type=float, default=4.8, help="of every clip, a multiple of 0.4 (4.8)")
    parser.add_argument("--seed", type=int, default=0, help="of the order (0)")
    args = parser.parse_args(argv)
    model = load_model(args.model, device="cpu", head=[args.head])
    (head,) = model.attached.values()
    dataset = read_folders(args.data)
    length = round(args.seconds * SAMPLE_RATE)
    order = np.random.default_rng(args.seed).permutation(len(dataset.clips))
    clips = [dataset.clips[i] for i in order]
    sounds = [pad_or_trim(load_part(clip), length) for clip in clips]
    wanted = [head.classes.names.index(clip.labels[0]) for clip in clips]  # type: ignore[union-attr]
    alone = [heard(model, sound, args.seconds)[0] for sound in sounds]
    joined = heard(model, np.concatenate(sounds), args.seconds)
    for way, found in (("each by itself", alone), ("in one recording", joined)):
        right = sum(a == b for a, b in zip(found, wanted))
        print(f"{way}: {right} of {len(clips)} right ({right / len(clips):.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
