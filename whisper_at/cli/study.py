"""``whisper-at study``: transcribe noisy speech, probe layers, draw the figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..study.config import Study, read_study
from ..study.probes import Probe, encode_all, fold_means, load_encoder, probe_layers, read_probes, write_probes
from ..study.recognisers import load_recogniser
from ..study.results import NOISE, PROBE, write_results
from ..study.sources import noises_of
from ..study.wer import by_snr, error_table, transcribe_noisy
from ..train.run_manifest import clips_digest, refuse_other_run


def main(argv: Sequence[str]) -> int:
    """Run the subcommand and return 0; wrong arguments exit with status 2, other errors are raised."""
    args = build_parser().parse_args(argv)
    study = read_study(args.config)
    out = Path(args.output_dir or study.out).expanduser()
    if args.step == "noise":
        run_noise(study, Path(args.data).expanduser(), out, args.device)
    elif args.step == "probe":
        run_probe(study, Path(args.data).expanduser(), out, args.device)
    else:
        print("\n".join(map(str, write_results(study, out))))
    return 0


def run_noise(study: Study, data: Path, out: Path, device: str | None = None) -> None:
    """Transcribe noisy speech by every recogniser of a study, and print its error rates."""
    if not study.recognisers:
        raise ValueError('the study names no recognisers: recognisers = ["whisper_at:nano.en"]')
    speech, noises = study.speech.read(data), noises_of(study.noise.read(data))
    rows = transcribe_noisy(
        out / NOISE,
        {name: partial(load_recogniser, name, device) for name in study.recognisers},
        speech,
        noises,
        study.mix.snrs,
        guard=study.mix.guard,
        facts=study.facts(),
        cache_folder=out / "mixtures" if study.mix.keep else None,
        progress=True,
    )
    table = error_table(rows)
    for name in study.recognisers:
        print(name)
        for snr, errors in reversed(by_snr(table, name).items()):
            level = "no noise" if np.isinf(snr) else f"{snr:5.0f} dB"
            print(f"  {level}  WER {100 * errors.rate:5.1f} %  ({errors.errors} of {errors.words} words)")
    print(out / NOISE)


def run_probe(study: Study, data: Path, out: Path, device: str | None = None) -> None:
    """Probe the layers of every backbone of a study, and print their accuracies."""
    if not study.backbones:
        raise ValueError('the study names no backbones: backbones = ["nano.en"]')
    sounds = study.sounds.read(data)
    known, classes = read_probes(out / PROBE)
    if known and classes != sounds.classes:
        raise ValueError(f"{out / PROBE} is about other classes: choose another folder, or delete it to begin anew")
    refuse_other_run(out / PROBE, {"classifier": study.classifier, "clips": clips_digest(sounds.clips)})
    probes: list[Probe] = list(known)

    def keep(probe: Probe) -> None:
        probes.append(probe)
        write_probes(out / PROBE, probes, sounds.classes)

    for name in study.backbones:
        slug = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
        states = encode_all(sounds.clips, partial(load_encoder, name, device), out / f"states-{slug}.safetensors", True)
        probe_layers(name, states, sounds, study.classifier, known, keep, progress=True)
        accuracy, _ = fold_means(probes, name)
        print(name)
        for layer, value in accuracy.items():
            print(f"  {layer:>7}  accuracy {100 * value:5.1f} %")
    print(out / PROBE)


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``whisper-at study``."""
    parser = argparse.ArgumentParser(
        prog="whisper-at study",
        description="How noise hurts speech recognition, and what a recogniser's encoder knows of the noise: "
        "transcribe noisy speech (noise), probe layers (probe), draw the figures (figures). A step that was "
        "stopped goes on where it was.",
    )
    add = parser.add_argument
    add("step", choices=("noise", "probe", "figures"), help="what to do")
    add("--config", required=True, metavar="FILE", help="the study, a .toml; see recipes/noise_study")
    add("--data", default=".", metavar="DIR", help="folder that the study's folders lie in (the current one)")
    add("-o", "--output_dir", metavar="DIR", help="folder for results, instead of the study's own")
    add("--device", metavar="DEVICE", help="PyTorch device; CUDA if there is any")
    return parser
