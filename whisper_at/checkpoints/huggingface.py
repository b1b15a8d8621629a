"""Whispers in Hugging Face's layout: a folder of config.json and weights, or an id on the hub.

The architecture is openai-whisper's under other names, so reading is renaming. Nothing in the folder is run, and
``.bin`` is opened with ``weights_only=True``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import is_state_dict, read_json, read_tensors
from .shapes import check_shapes, whisper_shapes

VOCABULARY_SIZES = (51864, 51865, 51866)
"""Tokens of English-only models, of multilingual ones, and of large-v3, which knows one language more."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference, as transformers has it
_CONFIGS = ("config.json", "generation_config.json")
# By their full names: a repository may keep the same weights in several precisions, of gigabytes each.
_ALLOW_PATTERNS = (
    (*_CONFIGS, "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    (*_CONFIGS, "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)

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
_USE_A_COPY = "give the folder of a downloaded copy (with config.json and model.safetensors)"
_EMBEDDING = "decoder.embed_tokens.weight"
_OUTPUT = "proj_out.weight"


# --- folders and the hub ------------------------------------------------------------------------------------


def check_config(folder: Path) -> None:
    """Raise RuntimeError if a folder has no config.json."""
    if (folder / "config.json").is_file():
        return
    hint = "give one that has it and model.safetensors, or a file"
    if (folder / "adapter_config.json").is_file():
        hint = "it is an adapter: merge it into its model, save that, and give its folder"
    raise RuntimeError(f"{folder} is a folder without config.json, so it is not in Hugging Face's layout; {hint}")


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``owner/model``, and not that of a file of weights."""
    weights = name.endswith((".pt", ".pth", ".bin", ".safetensors"))
    return not weights and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def download_from_hub(name: str, download_root: str | None = None) -> Path:
    """Return the folder of a model on the hub, from its cache on this machine if it is complete there.

    Needs the package huggingface_hub. ``.bin`` weights are downloaded only where there are no ``.safetensors``.

    Parameters
    ----------
    name : str
        ``owner/model``.
    download_root : str, optional
        Where downloads go; the hub's own cache (``$HF_HOME``) by default.

    Raises
    ------
    RuntimeError
        If huggingface_hub is missing, the model cannot be downloaded, or it has no weights that load here.
    """
    try:
        import huggingface_hub as hub
    except ImportError:
        raise RuntimeError(
            f"Model {name!r} is no file or folder here; to fetch it from the Hugging Face hub, pip install "
            f"huggingface_hub, or {_USE_A_COPY}"
        ) from None
    cache = None if download_root is None else str(Path(download_root).expanduser())
    problem = ""
    for local_only in (True, False):
        for patterns in _ALLOW_PATTERNS:
            options: dict[str, Any] = {"allow_patterns": list(patterns), "local_files_only": local_only}
            try:
                folder = Path(hub.snapshot_download(name, cache_dir=cache, **options))
                _find_shards(folder)
                return folder
            except RuntimeError as error:  # of _find_shards: it came without weights
                problem = str(error)
            except Exception as error:  # the network's, the server's and the package's own, of many types
                if not local_only:
                    reason = str(error).strip().partition("\n")[0] or type(error).__name__
                    raise RuntimeError(
                        f"Model {name!r} is no file or folder here, and the Hugging Face hub did not give it "
                        f"({reason}); check it, or {_USE_A_COPY}"
                    ) from error
    raise RuntimeError(f"Model {name!r} of the Hugging Face hub cannot be loaded: {problem}")


def read_alignment_heads(folder: Path) -> object:
    """Return ``alignment_heads`` of generation_config.json, which should be a list of [layer, head], or None."""
    path = folder / "generation_config.json"
    return read_json(path).get("alignment_heads") if path.is_file() else None


# --- weights ------------------------------------------------------------------------------------------------


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
    check_config(folder)
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
        dims["n_vocab"] = _vocabulary_size(folder, embedding)
        found[_EMBEDDING] = embedding[: dims["n_vocab"]]

    shapes = whisper_shapes(dims)
    names = {name: _hf_name(name) for name in shapes}
    check_shapes(
        found,
        {names[name]: shape for name, shape in shapes.items()},
        f"{folder} does not hold the parameters of a Whisper of its dimensions",
        "was it saved complete, as a Whisper?",
        RuntimeError,
    )
    return dims, {name: found[key] for name, key in names.items()}


def _hf_name(name: str) -> str:
    """Return Hugging Face's name of a parameter.

    >>> _hf_name("encoder.blocks.0.attn.query.weight")
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


def _vocabulary_size(folder: Path, embedding: Tensor) -> int:
    """Return how many tokens an embedding `(tokens, width)` holds, without those that are only padding."""
    rows = len(embedding)
    if rows in VOCABULARY_SIZES:
        return rows
    used = int(embedding.any(dim=1).nonzero().max()) + 1 if embedding.any() else 0
    if used in VOCABULARY_SIZES:
        warnings.warn(f"{folder}: the last {rows - used} of {rows} tokens are empty, and are left out", stacklevel=5)
        return used
    why = (
        f"{rows - VOCABULARY_SIZES[-1]} more than large-v3, so tokens were added to it"
        if rows > VOCABULARY_SIZES[-1]
        else "so its tokens are not Whisper's"
    )
    raise RuntimeError(
        f"{folder} has a vocabulary of {rows} tokens, {why}; openai-whisper derives language and timestamp tokens from "
        f"that number, which must be one of {', '.join(map(str, VOCABULARY_SIZES))}. "
        "Give a model trained with Whisper's own tokenizer"
    )


def _read_weights(folder: Path, in_memory: bool) -> dict[str, Tensor]:
    """Return the tensors of all weight files, named without the prefix ``model.``."""
    tensors: dict[str, Tensor] = {}
    for path, keys in _find_shards(folder).items():
        content, _ = read_tensors(path, in_memory)
        if not is_state_dict(content):
            raise RuntimeError(f"{path} is not a flat dict of tensors; give a folder saved by save_pretrained")
        if absent := sorted(set(keys) - content.keys()):
            raise RuntimeError(f"{path} lacks {absent[0]} ({len(absent)} such), which its index names; copy it again")
        tensors |= {key.removeprefix("model."): tensor for key, tensor in content.items()}
    return tensors


def _find_shards(folder: Path) -> dict[Path, Collection[str]]:
    """Return the weight files of a folder, each with the names of the tensors that it must have.

    Raises
    ------
    RuntimeError
        If there is no config.json, there are no weights, or a file that the index names is missing.
    """
    check_config(folder)
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
