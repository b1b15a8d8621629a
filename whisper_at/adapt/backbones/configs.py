"""Sizes of published backbones, and of tiny ones of the same families for tests."""

from __future__ import annotations

from typing import Any

_SPEECH_STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_SPEECH_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    **_SPEECH_STABLE,
}
_AST_TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
_SPEECH_TINY = {
    **_AST_TINY,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TRANSFORMERS_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ast": ("AST", {}),
    "ast-tiny": ("AST", _AST_TINY),
    "wav2vec2": ("Wav2Vec2", {}),
    "wav2vec2-tiny": ("Wav2Vec2", _SPEECH_TINY),
    "hubert": ("Hubert", {}),
    "hubert-tiny": ("Hubert", _SPEECH_TINY),
    "wavlm-base-plus": ("WavLM", {}),
    "wavlm-tiny": ("WavLM", _SPEECH_TINY),
    "wavlm-large": ("WavLM", _SPEECH_LARGE),
    "wavlm-stable-tiny": ("WavLM", _SPEECH_TINY | _SPEECH_STABLE),
    "mms-300m": ("Wav2Vec2", _SPEECH_LARGE),
    "mms-tiny": ("Wav2Vec2", _SPEECH_TINY | _SPEECH_STABLE),
}
"""Prefix of the classes in transformers (``ASTConfig``, ``ASTModel``), and the options that are not the default."""


def _whisper(n_state: int, n_head: int, n_layer: int, n_mels: int = 80) -> dict[str, int]:
    return {"n_mels": n_mels, "n_ctx": 1500, "n_state": n_state, "n_head": n_head, "n_layer": n_layer}


WHISPER_CONFIGS = {
    "whisper-tiny": _whisper(384, 6, 4),
    "whisper-base": _whisper(512, 8, 6),
    "whisper-small": _whisper(768, 12, 12),
    "whisper-medium": _whisper(1024, 16, 24),
    "whisper-large-v1": _whisper(1280, 20, 32),
    "whisper-large-v2": _whisper(1280, 20, 32),
    "whisper-large-v3": _whisper(1280, 20, 32, n_mels=128),
    "whisper-large": _whisper(1280, 20, 32, n_mels=128),
    "whisper-large-v3-turbo": _whisper(1280, 20, 32, n_mels=128),
    "whisper-turbo": _whisper(1280, 20, 32, n_mels=128),
    "whisper-nano": _whisper(32, 4, 3),
}
"""Arguments of `whisper.model.AudioEncoder`."""

CONFIG_NAMES = (*WHISPER_CONFIGS, *TRANSFORMERS_CONFIGS)
"""Names that `random_backbone` takes; ``whisper-nano``, ``ast-tiny`` and the like have 3 blocks of width 32."""
