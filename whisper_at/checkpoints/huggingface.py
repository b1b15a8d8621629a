"""Whispers in Hugging Face's layout: a folder of config.json and weights.

The architecture is openai-whisper's under other names, so reading is renaming. Nothing in the folder is run, and
``.bin`` is opened with ``weights_only=True``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from .files import is_state_dict, read_json, read_tensors
from .shapes import check_dims, check_shapes, cut_padding, whisper_shapes

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference, as transformers has it

_CONFIG_KEYS = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
_TOP_LEVEL_NAMES = {
    "positional_embedding": "embed_positions.weight",
    "token_embedding": "embed_tokens",
    "ln_post": "layer_norm",
    "ln": "layer_norm",
}
_BLOCK_NAMES = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    "attn": "self_attn",
    "attn_ln": "self_attn_layer_norm",
    "cross_attn": "encoder_attn",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}
_EMBEDDING = "decoder.embed_tokens.weight"
_OUTPUT = "proj_out.weight"


def has_weights(folder: Path) -> bool:
    """Return whether a folder has a config.json and weights in Hugging Face's layout."""
    files = [folder / f"{name}{suffix}" for name in WEIGHTS for suffix in ("", ".index.json")]
    return (folder / "config.json").is_file() and any(file.is_file() for file in files)


def read_alignment_heads(folder: Path) -> object:
    """Return ``alignment_heads`` of generation_config.json, which should be a list of [layer, head], or None."""
    path = folder / "generation_config.json"
    return read_json(path).get("alignment_heads") if path.is_file() else None


def open_folder(folder: Path, in_memory: bool = False) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return dimensions and state dict in openai-whisper's names of a folder in Hugging Face's layout.

    Rows of zeros after the last token, which some trainers add to round the vocabulary up, are cut off with a warning.

    Parameters
    ----------
    folder : Path
        With config.json and weights, in one file or in shards with their index.
    in_memory : bool
        Read each file at once before it is opened.

    Returns
    -------
    dims : dict of str to int
        Fields of `whisper.model.ModelDimensions`.
    state : dict of str to Tensor
        On the CPU, in the files' precision.

    Raises
    ------
    RuntimeError
        If a file is missing or damaged, parameters are missing, of other shapes or too many, or openai-whisper's
        model cannot express this one: it is not a Whisper, or has another vocabulary or an untied output layer.
    """
    dims = _read_dims(folder / "config.json")
    found = _read_weights(folder, in_memory)
    embedding, output = found.get(_EMBEDDING), found.pop(_OUTPUT, None)
    if embedding is None and output is not None:  # of two names for one tensor, some writers keep only this
        found[_EMBEDDING] = embedding = output
    elif embedding is not None and output is not None and not torch.equal(embedding, output):
        raise RuntimeError(
            f"{folder}: {_OUTPUT} differs from {_EMBEDDING}; openai-whisper's model has one weight for both, so this "
            "one cannot be loaded here"
        )
    if embedding is not None and embedding.dim() == 2 and len(embedding) == dims["n_vocab"]:
        found[_EMBEDDING] = cut_padding(embedding, folder)
        dims["n_vocab"] = len(found[_EMBEDDING])

    check_dims(dims, folder)
    shapes = whisper_shapes(dims)
    names = {name: hf_name(name) for name in shapes}
    check_shapes(
        found,
        {names[name]: shape for name, shape in shapes.items()},
        f"{folder} does not hold the parameters of a Whisper of its dimensions",
        "was it saved complete, as a Whisper?",
        RuntimeError,
    )
    return dims, {name: found[key] for name, key in names.items()}


def hf_name(name: str) -> str:
    """Return Hugging Face's name of a parameter.

    >>> hf_name("encoder.blocks.0.attn.query.weight")
    'encoder.layers.0.self_attn.q_proj.weight'
    """
    part, rest = name.split(".", 1)
    if match := re.fullmatch(r"blocks\.(\d+)\.(mlp\.\d|\w+)(?:\.(\w+))?\.(weight|bias)", rest):
        block, module, projection, leaf = match.groups()
        path = [_BLOCK_NAMES[module]] + ([_BLOCK_NAMES[projection]] if projection else [])
        return ".".join([part, "layers", block, *path, leaf])
    module, *leaves = rest.split(".")
    return ".".join([part, _TOP_LEVEL_NAMES.get(module, module), *leaves])


def _read_dims(path: Path) -> dict[str, int]:
    """Return the dimensions in a config.json of a Whisper that openai-whisper's model can express."""
    config = read_json(path)
    if config.get("model_type", "whisper") != "whisper":
        raise RuntimeError(f"{path} is of a model of type {config['model_type']!r}, not of a Whisper; give a Whisper's")
    missing = [key for key in _CONFIG_KEYS.values() if not _is_positive_int(config.get(key))]
    if missing:
        raise RuntimeError(f"{path} does not give {', '.join(dict.fromkeys(missing))}; is it the config of a Whisper?")
    if config.get("activation_function", "gelu") != "gelu" or config.get("scale_embedding"):
        raise RuntimeError(
            f"{path} asks for activation {config.get('activation_function', 'gelu')!r} and scale_embedding "
            f"{bool(config.get('scale_embedding'))}; openai-whisper's model has 'gelu' and False only"
        )
    return {ours: config[theirs] for ours, theirs in _CONFIG_KEYS.items()}


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _read_weights(folder: Path, in_memory: bool) -> dict[str, Tensor]:
    """Return the tensors of all weight files, named without the prefix ``model.``."""
    tensors: dict[str, Tensor] = {}
    for path, keys in find_shards(folder).items():
        content, _ = read_tensors(path, in_memory)
        if not is_state_dict(content):
            raise RuntimeError(f"{path} is not a flat dict of tensors; give a folder saved by save_pretrained")
        if absent := sorted(set(keys) - content.keys()):
            raise RuntimeError(f"{path} lacks {absent[0]} ({len(absent)} such), which its index names; copy it again")
        tensors |= {key.removeprefix("model."): tensor for key, tensor in content.items()}
    return tensors


def find_shards(folder: Path) -> dict[Path, Collection[str]]:
    """Return the weight files of a folder, each with the names of the tensors that it must have.

    Raises
    ------
    RuntimeError
        If there are no weights, or a file that the index names is missing.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return {folder / name: ()}
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_index(index)
    raise RuntimeError(
        f"{folder} has no weights: neither {' nor '.join(WEIGHTS)}, in one file or in shards with an index"
    )


def _read_index(index: Path) -> dict[Path, Collection[str]]:
    file_of = read_json(index).get("weight_map")
    # Bare file names only: an index from elsewhere must not reach outside its folder.
    if not isinstance(file_of, dict) or not file_of or any(Path(str(file)).name != file for file in file_of.values()):
        raise RuntimeError(f"{index} has no 'weight_map' from tensors to files beside it; copy it again")
    shards: dict[Path, Collection[str]] = {}
    for file in sorted(set(file_of.values())):
        path = index.parent / file
        if not path.is_file():
            raise RuntimeError(f"{path} is missing, which {index.name} names; put it there, or copy the model again")
        shards[path] = [key for key, name in file_of.items() if name == file]
    return shards
