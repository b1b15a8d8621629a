"""A real Whisper's weights in the layouts of openai-whisper, Hugging Face, CTranslate2 and whisper.cpp."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

from weights import EOT, hugging_face_name, suppressed_tokens, write_ctranslate2, write_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's whisper_at, installed or not


def write_layouts(name: str, folder: Path, systems: list[str]) -> None:
    """Write an official Whisper that is on this machine as each of some systems wants it."""
    import torch

    from whisper_at.checkpoints import alignment_heads, decode_alignment_heads, find_whisper, open_whisper

    path = find_whisper(name)
    dims, state = open_whisper(path)
    (folder / "name").write_text(name)
    torch.save({"dims": dims, "model_state_dict": state}, folder / "openai.pt")
    libraries = {system.split()[0] for system in systems}
    if "whisper.cpp" in libraries:
        write_ggml(dims, state, folder / "ggml.bin")
    if libraries & {"transformers", "faster-whisper"}:
        dump = alignment_heads(name)
        heads = [] if dump is None else decode_alignment_heads(dump, dims)
        write_hugging_face(dims, state, heads, folder / "hf")
    if "faster-whisper" in libraries:
        write_ctranslate2(folder / "hf", folder / "ct2", "float16")


def write_ggml(dims: dict[str, int], state: dict[str, Any], path: Path) -> None:
    """Write whisper.cpp's layout, in half precision as its own converter does."""
    from whisper.audio import mel_filters

    from whisper_at.tokenizer import get_tokenizer

    sizes = ["n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"]
    sizes += ["n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"]
    filters = mel_filters("cpu", dims["n_mels"]).numpy().astype("<f4")
    ranks = get_tokenizer(dims["n_vocab"] >= 51865).encoding._mergeable_ranks
    with open(path, "wb") as file:
        file.write(struct.pack("<12i", 0x67676D6C, *(dims[size] for size in sizes), 1))
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        file.write(struct.pack("<i", len(ranks)))
        for token in sorted(ranks, key=ranks.__getitem__):
            file.write(struct.pack("<i", len(token)) + token)
        for key, tensor in state.items():
            values = tensor.float().numpy()
            values = values[:, None] if key in ("encoder.conv1.bias", "encoder.conv2.bias") else values
            half = values.ndim > 1 and "positional" not in key and not key.endswith("bias")
            header = struct.pack("<3i", values.ndim, len(key), int(half))
            file.write(header + struct.pack(f"<{values.ndim}i", *values.shape[::-1]) + key.encode())
            file.write(values.astype("<f2" if half else "<f4").tobytes())


def write_hugging_face(dims: dict[str, int], state: dict[str, Any], heads: list[list[int]], folder: Path) -> None:
    """Write transformers' layout, with the tokens and the rules of openai-whisper."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, logging

    from whisper_at.tokenizer import get_tokenizer

    logging.disable_progress_bar()
    english = dims["n_vocab"] < 51865
    tokenizer = get_tokenizer(not english, num_languages=dims["n_vocab"] - 51765 - (not english), language="en")
    eot = tokenizer.eot
    special = {"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot, "decoder_start_token_id": tokenizer.sot}
    shape = {"vocab_size": dims["n_vocab"], "num_mel_bins": dims["n_mels"], "d_model": dims["n_audio_state"]}
    for part, kind in (("encoder", "audio"), ("decoder", "text")):
        shape |= {f"{part}_layers": dims[f"n_{kind}_layer"], f"{part}_attention_heads": dims[f"n_{kind}_head"]}
        shape |= {f"{part}_ffn_dim": 4 * dims[f"n_{kind}_state"]}
    model = WhisperForConditionalGeneration(WhisperConfig(**shape, **special))
    tensors = {hugging_face_name(key): tensor.float() for key, tensor in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if missing != ["proj_out.weight"] or unexpected:  # that one is the embedding
        raise RuntimeError(f"parameters do not match: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    languages = dict(zip(tokenizer.all_language_codes, tokenizer.all_language_tokens))
    # what an English-only model does not know must not be named: transformers would detect the language among none
    multilingual = {
        "lang_to_id": {f"<|{code}|>": token for code, token in languages.items()},
        "task_to_id": {"transcribe": tokenizer.transcribe, "translate": tokenizer.translate},
    }
    suppressed = [token for token in suppressed_tokens(tokenizer) if token not in (EOT, eot)]
    model.generation_config = GenerationConfig(
        **special,
        max_length=448,
        is_multilingual=not english,
        **({} if english else multilingual),
        no_timestamps_token_id=tokenizer.no_timestamps,
        prev_sot_token_id=tokenizer.sot_prev,
        suppress_tokens=suppressed,
        begin_suppress_tokens=[*tokenizer.encode(" "), eot],
        max_initial_timestamp_index=50,
        alignment_heads=heads,
    )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": dims["n_mels"]}))
    write_tokenizer(tokenizer.encoding, folder)
