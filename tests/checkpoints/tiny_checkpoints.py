"""Whispers and heads of width 8 or 16 in every layout."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
import whisper
from safetensors.torch import save_file
from whisper.model import ModelDimensions

from whisper_at.checkpoints import head_shapes

DIMS = asdict(ModelDimensions(80, 1500, 8, 2, 1, 51864, 448, 8, 2, 1))
TEXT_LAYERS = 2


def tiny_whisper(n_vocab: int = 51864, n_mels: int = 80, text_layers: int = TEXT_LAYERS) -> whisper.Whisper:
    """A Whisper of width 16 and three encoder layers, random enough to say different things."""
    torch.manual_seed(0)
    model = whisper.Whisper(ModelDimensions(n_mels, 1500, 16, 2, 3, n_vocab, 448, 16, 4, text_layers))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def hf_config(dims: ModelDimensions, **changes) -> dict:
    return {
        "model_type": "whisper",
        "activation_function": "gelu",
        "scale_embedding": False,
        "num_mel_bins": dims.n_mels,
        "max_source_positions": dims.n_audio_ctx,
        "d_model": dims.n_audio_state,
        "encoder_attention_heads": dims.n_audio_head,
        "encoder_layers": dims.n_audio_layer,
        "vocab_size": dims.n_vocab,
        "max_target_positions": dims.n_text_ctx,
        "decoder_attention_heads": dims.n_text_head,
        "decoder_layers": dims.n_text_layer,
    } | changes


def hf_tensors(model: whisper.Whisper, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """The tensors under transformers' names, by replacements one after the other."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in (
            (".blocks.", ".layers."),
            (".cross_attn_ln", ".encoder_attn_layer_norm"),
            (".cross_attn.", ".encoder_attn."),
            (".attn_ln", ".self_attn_layer_norm"),
            (".attn.", ".self_attn."),
            (".query.", ".q_proj."),
            (".key.", ".k_proj."),
            (".value.", ".v_proj."),
            (".out.", ".out_proj."),
            (".mlp_ln.", ".final_layer_norm."),
            (".mlp.0.", ".fc1."),
            (".mlp.2.", ".fc2."),
            (".ln_post.", ".layer_norm."),
            ("decoder.ln.", "decoder.layer_norm."),
            ("token_embedding", "embed_tokens"),
            ("positional_embedding", "embed_positions.weight"),
        ):
            name = name.replace(ours, theirs)
        tensors[prefix + name] = tensor.clone()
    return tensors


def write_folder(folder: Path, model: whisper.Whisper, tensors: dict | None = None, generation=None, **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(model.dims, **config)))
    save_file(hf_tensors(model) if tensors is None else tensors, folder / "model.safetensors")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@torch.no_grad()
def logits(model, n_mels: int = 80) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    mel = torch.randn(1, n_mels, 3000, generator=generator)
    return model(mel, torch.tensor([[50257, 50362, 11, 400]]))


def official_head(width: int = 384, low_compute: bool = False) -> dict[str, torch.Tensor]:
    return {f"at_model.{key}": torch.zeros(shape) for key, shape in head_shapes(width, low_compute).items()}


def torch_bytes(content, tmp_path, **kwargs) -> bytes:
    torch.save(content, tmp_path / "made", **kwargs)
    return (tmp_path / "made").read_bytes()
