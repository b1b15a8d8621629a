"""Tiny backbones with methods in them, and clips for them."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from conftest import noise
from torch import Tensor, nn

from whisper_at.adapt import adapt, random_backbone
from whisper_at.adapt.backbones.blocks import Block
from whisper_at.adapt.backbones.configs import TRANSFORMERS_CONFIGS

FAMILIES = ("whisper-nano", "ast-tiny", "wav2vec2-tiny", "hubert-tiny", "wavlm-tiny", "wavlm-stable-tiny", "mms-tiny")


@functools.cache
def plain_backbone(name: str):
    """A tiny backbone with random weights; inputs of AST have 96 frames."""
    torch.manual_seed(0)
    backbone = random_backbone(name, frames=96 if name.startswith("ast") else None)
    for parameter in backbone.parameters():  # those that start at 0 or 1, too
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return backbone


def make_backbone(name: str, methods=(), seed: int = 0):
    """A new copy of a tiny backbone, with methods."""
    backbone = copy.deepcopy(plain_backbone(name))
    torch.manual_seed(seed)
    adapt(backbone, methods)
    return backbone


def perturb(backbone, std: float = 0.3):
    """Add random numbers to all parameters that train, as training would; return the backbone."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * std)
    return backbone


def transformers_model(name: str, **options):
    """A frozen tiny model of transformers with random weights, also those that start at 0 or 1."""
    import transformers

    torch.manual_seed(0)
    prefix, sizes = TRANSFORMERS_CONFIGS[name]
    config = getattr(transformers, f"{prefix}Config")(**{**sizes, **options}, attn_implementation="eager")
    model = getattr(transformers, f"{prefix}Model")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_clips(*seconds: float) -> tuple[Tensor, Tensor]:
    """Padded waveforms, filled with a constant behind the short ones, and their lengths."""
    parts = [torch.from_numpy(noise(s, seed)) for seed, s in enumerate(seconds)]
    lengths = torch.tensor([len(part) for part in parts])
    return torch.stack([F.pad(part, (0, int(lengths.max()) - len(part)), value=2.0) for part in parts]), lengths


def adapted_and_plain_block(name: str, methods) -> tuple[Block, Block, Tensor]:
    """An adapted block with random weights, the same block without methods, and an input."""
    return perturb(make_backbone(name, methods)).blocks[1], make_backbone(name).blocks[1], torch.randn(2, 7, 32)


def randomize(module: nn.Module) -> nn.Module:
    """Draw all parameters of a module from a normal distribution; return it in eval mode."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()
