"""One random Whisper of an official size, in the layouts of openai-whisper, Hugging Face and CTranslate2.

Values are normally distributed and exact in half precision, as those of official checkpoints are. The embeddings of all
special tokens and timestamps are zero, so that their logits are never the highest: a random model then writes text
tokens only, as many as it is asked for.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not

SIZES = {  # width, heads, layers, mels, vocabulary
    "mini": (128, 2, 2, 80, 51865),  # not an official size: to try a script
    "tiny": (384, 6, 4, 80, 51865),
    "base": (512, 8, 6, 80, 51865),
    "small": (768, 12, 12, 80, 51865),
    "medium": (1024, 16, 24, 80, 51865),
    "large-v3": (1280, 20, 32, 128, 51866),
}
EOT = 50257
SPLIT_PATTERN = (
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""  # as whisper.tokenizer's
)
HUGGING_FACE_NAMES = (  # replacements in openai-whisper's names, in this order
    (r"\.blocks\.", ".layers."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn\.", ".self_attn."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.(query|key|value)\.", lambda m: f".{m[1][0]}_proj."),
    (r"\.out\.", ".out_proj."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.ln(_post)?\.", ".layer_norm."),
    (r"\.positional_embedding$", ".embed_positions.weight"),
    (r"\.token_embedding\.", ".embed_tokens."),
)


def dimensions(size: str) -> dict[str, int]:
    """Return the fields of openai-whisper's ModelDimensions."""
    width, heads, layers, mels, vocabulary = SIZES[size]
    audio = {
        "n_mels": mels,
        "n_audio_ctx": 1500,
        "n_audio_state": width,
        "n_audio_head": heads,
        "n_audio_layer": layers,
    }
    text = {"n_text_ctx": 448, "n_text_state": width, "n_text_head": heads, "n_text_layer": layers}
    return {**audio, "n_vocab": vocabulary, **text}


def random_state(size: str, seed: int = 0, std: float = 0.02) -> dict[str, Any]:
    """Make a state dict in half precision, under openai-whisper's names."""
    import torch
    from whisper.model import ModelDimensions, Whisper

    generator = torch.Generator().manual_seed(seed)
    state = Whisper(ModelDimensions(**dimensions(size))).state_dict()
    for name, tensor in state.items():
        if name == "encoder.positional_embedding" or re.search(r"ln(_post)?\.weight$", name):
            continue  # sinusoids; ones
        scale = 0.05 if "token_embedding" in name else std
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    state["decoder.token_embedding.weight"][EOT:] = 0
    return {name: tensor.half() for name, tensor in state.items()}


def write_checkpoint(state: dict[str, Any], size: str, path: Path) -> None:
    """Write a `.pt` file in openai-whisper's layout."""
    import torch

    torch.save({"dims": dimensions(size), "model_state_dict": state}, path)


def hugging_face_name(name: str) -> str:
    """Convert a name.

    >>> hugging_face_name("decoder.blocks.0.attn.query.weight")
    'model.decoder.layers.0.self_attn.q_proj.weight'
    """
    for pattern, replacement in HUGGING_FACE_NAMES:
        name = re.sub(pattern, replacement, name)
    return f"model.{name}"


def write_hugging_face(state: dict[str, Any], size: str, folder: Path) -> None:
    """Write a folder in Hugging Face's layout, in float32, with openai-whisper's tokens."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, logging
    from whisper.tokenizer import get_tokenizer

    logging.disable_progress_bar()

    width, heads, layers, mels, vocabulary = SIZES[size]
    languages = vocabulary - 51765 - 1  # as openai-whisper counts them
    tokenizer = get_tokenizer(True, num_languages=languages, language="en", task="transcribe")
    special = {"bos_token_id": EOT, "eos_token_id": EOT, "pad_token_id": EOT, "decoder_start_token_id": tokenizer.sot}
    shape: dict[str, Any] = {"vocab_size": vocabulary, "num_mel_bins": mels, "d_model": width}
    for part in ("encoder", "decoder"):
        shape |= {f"{part}_layers": layers, f"{part}_attention_heads": heads, f"{part}_ffn_dim": 4 * width}
    model = WhisperForConditionalGeneration(WhisperConfig(**shape, **special))
    missing, unexpected = model.load_state_dict(
        {hugging_face_name(k): v.float() for k, v in state.items()}, strict=False
    )
    if missing != ["proj_out.weight"] or unexpected:  # that one is the embedding
        raise RuntimeError(f"parameters do not match: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        **special,
        max_length=448,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": i for code, i in zip(tokenizer.all_language_codes, tokenizer.all_language_tokens)},
        task_to_id={"transcribe": tokenizer.transcribe, "translate": tokenizer.translate},
        no_timestamps_token_id=tokenizer.no_timestamps,
        prev_sot_token_id=tokenizer.sot_prev,
        suppress_tokens=suppressed_tokens(tokenizer),
        begin_suppress_tokens=[*tokenizer.encode(" "), EOT],
        alignment_heads=[[layer, head] for layer in range(layers // 2, layers) for head in range(heads)],
    )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": mels}))
    write_tokenizer(tokenizer.encoding, folder)


def suppressed_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that openai-whisper suppresses by default, and the end of text."""
    special = (tokenizer.transcribe, tokenizer.translate, tokenizer.sot, tokenizer.sot_prev, tokenizer.sot_lm)
    return sorted({*tokenizer.non_speech_tokens, *special, tokenizer.no_speech, EOT})


def write_tokenizer(encoding: Any, folder: Path) -> None:
    """Write `tokenizer.json` of a tiktoken encoding, from the file that is part of openai-whisper."""
    import whisper
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = Path(whisper.__file__).parent / "assets" / encoding.name  # gpt2.tiktoken or multilingual.tiktoken
    names = sorted(encoding.special_tokens_set, key=encoding.encode_single_token)
    converted = TikTokenConverter(str(ranks), pattern=SPLIT_PATTERN, extra_special_tokens=names).converted()
    converted.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_ctranslate2(folder: Path, target: Path, quantization: str) -> None:
    """Convert a folder in Hugging Face's layout to a CTranslate2 model."""
    from ctranslate2.converters import TransformersConverter

    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(folder), copy_files=files).convert(str(target), quantization=quantization)
