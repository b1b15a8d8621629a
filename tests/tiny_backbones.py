"""Tiny random backbones with methods, and clips for them."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from conftest import noise
from torch import Tensor, nn

from whisper_at.adapt import adapt, random_backbone
from whisper_at.adapt.backbones.blocks import Block

FAMILIES = ("whisper-nano", "ast-tiny", "wav2vec2-tiny", "hubert-tiny", "wavlm-tiny", "wavlm-stable-tiny", "mms-tiny")


@functools.cache
def plain(name: str):
    """A tiny backbone; AST hears 96 frames."""
    torch.manual_seed(0)
    backbone = random_backbone(name, frames=96 if name.startswith("ast") else None)
    for parameter in backbone.parameters():  # those that start at 0 or 1, too
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return backbone


def made(name: str, methods=(), seed: int = 0):
    """A tiny backbone with methods, new each time."""
    backbone = copy.deepcopy(plain(name))
    torch.manual_seed(seed)
    adapt(backbone, methods)
    return backbone


def trained(backbone, std: float = 0.3):
    """The backbone with everything that trains at random numbers."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * std)
    return backbone


def clips(*seconds: float) -> tuple[Tensor, Tensor]:
    """Padded waveforms and their lengths."""
    parts = [torch.from_numpy(noise(s, seed)) for seed, s in enumerate(seconds)]
    lengths = torch.tensor([len(part) for part in parts])
    return torch.stack([F.pad(part, (0, int(lengths.max()) - len(part)), value=2.0) for part in parts]), lengths


def one_block(name: str, methods) -> tuple[Block, Block, Tensor]:
    """An adapted block, the same one plain, and an input."""
    adapted, unchanged = trained(made(name, methods)).blocks[1], made(name).blocks[1]
    return adapted, unchanged, torch.randn(2, 7, 32)


def randomised(module: nn.Module) -> nn.Module:
    """The module in eval mode, all its parameters random."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()
