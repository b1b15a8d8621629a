"""Sizes of published backbones, and of tiny ones of their kinds."""

from __future__ import annotations

from typing import Any

_SPEECH_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
_SPEECH_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_AST_TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ast": ("AST", {}),
    "ast-tiny": ("AST", _AST_TINY),
    "wav2vec2": ("Wav2Vec2", {}),
    "wav2vec2-tiny": ("Wav2Vec2", _SPEECH_TINY),
    "hubert": ("Hubert", {}),
    "hubert-tiny": ("Hubert", _SPEECH_TINY),
    "wavlm-base-plus": ("WavLM", {}),
    "wavlm-tiny": ("WavLM", _SPEECH_TINY),
    "wavlm-large": ("WavLM", _SPEECH_LARGE),
    "wavlm-stable-tiny": ("WavLM", _SPEECH_TINY | _STABLE),
    "mms-300m": ("Wav2Vec2", _SPEECH_LARGE),
    "mms-tiny": ("Wav2Vec2", _SPEECH_TINY | _STABLE),
}
"""Start of the name of transformers' configuration, and what is not its default."""

WHISPERS = {
    "whisper-tiny": (80, 1500, 384, 6, 4),
    "whisper-base": (80, 1500, 512, 8, 6),
    "whisper-small": (80, 1500, 768, 12, 12),
    "whisper-medium": (80, 1500, 1024, 16, 24),
    **dict.fromkeys(("whisper-large-v1", "whisper-large-v2"), (80, 1500, 1280, 20, 32)),
    **dict.fromkeys(
        ("whisper-large-v3", "whisper-large", "whisper-large-v3-turbo", "whisper-turbo"), (128, 1500, 1280, 20, 32)
    ),
    "whisper-nano": (80, 1500, 32, 4, 3),
}
"""Mels, positions, width, heads and layers of the encoder."""

RANDOM_NAMES = (*WHISPERS, *CONFIGS)
"""What `random_backbone` makes; ``ast-tiny``, ``whisper-nano`` and the like are 3 blocks of width 32."""
