"""``whisper-at study``: transcribe noisy speech, probe the layers of encoders, draw the figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..study.config import StudyConfig, read_study
from ..study.layer_probes import (
    Probe,
    average_folds,
    encode_clips,
    load_encoder,
    probe_layers,
    read_probes,
    write_probes,
)
from ..study.noises import clips_by_class
from ..study.recognisers import load_recogniser
from ..study.results import NOISE_CSV, PROBE_CSV, write_results
from ..study.transcriptions import error_table, errors_by_snr, transcribe_noisy
from ..train.run_manifest import check_same_run, clips_digest


def main(argv: Sequence[str]) -> int:
    """Run the command and return 0; wrong arguments exit with status 2, other errors are raised."""
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


def run_noise(study: StudyConfig, data: Path, out: Path, device: str | None = None) -> None:
    """Transcribe noisy speech by every recogniser of a study and print the word error rates."""
    if not study.recognisers:
        raise ValueError('the study names no recognisers: recognisers = ["whisper_at:nano.en"]')
    speech, noises = study.speech.read(data), clips_by_class(study.noise.read(data))
    rows = transcribe_noisy(
        out / NOISE_CSV,
        {name: partial(load_recogniser, name, device) for name in study.recognisers},
        speech,
        noises,
        study.mix.snrs,
        prevent_clipping=study.mix.guard,
        settings=study.run_settings(),
        mixture_folder=out / "mixtures" if study.mix.keep else None,
        progress=True,
    )
    table = error_table(rows)
    for name in study.recognisers:
        print(name)
        for snr, errors in reversed(errors_by_snr(table, name).items()):
            level = "no noise" if np.isinf(snr) else f"{snr:5.0f} dB"
            print(f"  {level}  WER {100 * errors.rate:5.1f} %  ({errors.errors} of {errors.words} words)")
    print(out / NOISE_CSV)


def run_probe(study: StudyConfig, data: Path, out: Path, device: str | None = None) -> None:
    """Probe the layers of every backbone of a study and print their accuracies."""
    if not study.backbones:
        raise ValueError('the study names no backbones: backbones = ["nano.en"]')
    dataset = study.probe_clips.read(data)
    finished, classes = read_probes(out / PROBE_CSV)
    if finished and classes != dataset.classes:
        raise ValueError(f"{out / PROBE_CSV} has other classes: choose another folder, or delete it to begin anew")
    check_same_run(out / PROBE_CSV, {"classifier": study.classifier, "clips": clips_digest(dataset.clips)})
    probes: list[Probe] = list(finished)

    def save(probe: Probe) -> None:
        probes.append(probe)
        write_probes(out / PROBE_CSV, probes, dataset.classes)

    for name in study.backbones:
        slug = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
        cache = out / f"states-{slug}.safetensors"
        states = encode_clips(dataset.clips, partial(load_encoder, name, device), cache, progress=True)
        probe_layers(name, states, dataset, study.classifier, finished, save, progress=True)
        accuracy, _ = average_folds(probes, name)
        print(name)
        for layer, value in accuracy.items():
            print(f"  {layer:>7}  accuracy {100 * value:5.1f} %")
    print(out / PROBE_CSV)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``whisper-at study``."""
    parser = argparse.ArgumentParser(
        prog="whisper-at study",
        description="Study of noise robustness: transcribe noisy speech (noise), classify sounds from the layers of "
        "encoders by linear probes (probe), draw the figures (figures). An interrupted step resumes.",
    )
    add = parser.add_argument
    add("step", choices=("noise", "probe", "figures"), help="what to do")
    add("--config", required=True, metavar="FILE", help="configuration of the study, a .toml; see recipes/noise_study")
    add(
        "--data",
        default=".",
        metavar="DIR",
        help="parent of the folders in the configuration (the current folder)",
    )
    add("-o", "--output_dir", metavar="DIR", help="folder for results, instead of the one of the configuration")
    add("--device", metavar="DEVICE", help="PyTorch device; CUDA if available")
    return parser


if __name__ == "__main__":
    from . import run_module

    run_module(__file__)
