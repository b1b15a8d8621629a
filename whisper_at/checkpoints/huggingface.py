"""Whispers in Hugging Face's layout: a folder of config.json and weights, or an id on the hub.

The architecture is openai-whisper's under other names, so reading is renaming. Weights are tensors only: nothing in
the folder is run, and `.bin` is opened with `weights_only=True`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import is_state_dict, read_tensors

VOCABULARIES = (51864, 51865, 51866)
"""Tokens of English-only models, of multilingual ones, and of large-v3, which knows one language more."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference, as transformers has it
_SETTINGS = ("config.json", "generation_config.json")
# By their full names: a repository may keep the same weights in several precisions, of gigabytes each.
_WANTED = (
    (*_SETTINGS, "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    (*_SETTINGS, "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)

_DIMENSIONS = {
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
_OUTSIDE = {
    "positional_embedding": "embed_positions.weight",
    "token_embedding": "embed_tokens",
    "ln_post": "layer_norm",
    "ln": "layer_norm",
}
_IN_BLOCK = {
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
_WAY_OUT = "give the folder of a downloaded copy (with config.json and model.safetensors)"
_EMBEDDING = "decoder.embed_tokens.weight"
_OUTPUT = "proj_out.weight"


# --- folders and the hub ------------------------------------------------------------------------------------


def require_config(folder: Path) -> None:
    """Raise RuntimeError, with the way out, if a folder has no config.json."""
    if (folder / "config.json").is_file():
        return
    way_out = "give one that has it and model.safetensors, or a file"
    if (folder / "adapter_config.json").is_file():
        way_out = "it is an adapter: merge it into its model, save that, and give its folder"
    raise RuntimeError(f"{folder} is a folder without config.json, so not one of Hugging Face's layout; {way_out}")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/model`, and not that of a file of weights."""
    weights = name.endswith((".pt", ".pth", ".bin", ".safetensors"))
    return not weights and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def fetch(name: str, download_root: str | None = None) -> Path:
    """Return the folder of a model on the hub, from its cache on this machine if it is there whole.

    Needs the package huggingface_hub. Downloads go to its cache (`$HF_HOME`), or to `download_root`. `.bin` weights
    are fetched only where there are no `.safetensors`.

    Raises
    ------
    RuntimeError
        if huggingface_hub is missing, the model cannot be brought, or it has no weights that load here
    """
    try:
        import huggingface_hub as hub
    except ImportError:
        raise RuntimeError(
            f"Model {name!r} is no file or folder here; to fetch it from the Hugging Face hub, pip install "
            f"huggingface_hub, or {_WAY_OUT}"
        ) from None
    cache = None if download_root is None else str(Path(download_root).expanduser())
    fault = ""
    for here_only in (True, False):
        for patterns in _WANTED:
            options: dict[str, Any] = {"allow_patterns": list(patterns), "local_files_only": here_only}
            try:
                folder = Path(hub.snapshot_download(name, cache_dir=cache, **options))
                _shards(folder)
                return folder
            except RuntimeError as error:  # ours: it came without weights
                fault = str(error)
            except Exception as error:  # the network's, the server's and the package's own, of many types
                if not here_only:
                    raise RuntimeError(f"{_refusal(name, error)}; check it, or {_WAY_OUT}") from error
    raise RuntimeError(f"Model {name!r} of the Hugging Face hub cannot be loaded: {fault}")


def _refusal(name: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return f"Model {name!r} is no file or folder here, and the Hugging Face hub did not give it ({reason})"


def alignment_heads(folder: Path) -> object:
    """Return `alignment_heads` of generation_config.json, a list of [layer, head] if it is right, or None."""
    path = folder / "generation_config.json"
    return _json(path).get("alignment_heads") if path.is_file() else None


# --- weights ------------------------------------------------------------------------------------------------


def open_folder(folder: Path, in_memory: bool = False) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return dimensions and state dict in openai-whisper's names of a folder in Hugging Face's layout.

    Tensors are on the CPU in the files' precision. Rows of zeros after the last token, which some trainers add to
    round the vocabulary up, are cut off with a warning.

    Raises
    ------
    RuntimeError
        if a file is missing or damaged, parameters are missing, of other shapes or too many, or the model is
        one that openai-whisper's cannot express: no Whisper, another vocabulary, an untied output layer
    """
    require_config(folder)
    dims = _dimensions(folder / "config.json")
    found = _tensors(folder, in_memory)
    embedding, output = found.get(_EMBEDDING), found.pop(_OUTPUT, None)
    if embedding is None and output is not None:  # of two names for one tensor, some writers keep only this
        found[_EMBEDDING] = embedding = output
    elif embedding is not None and output is not None and not torch.equal(embedding, output):
        raise RuntimeError(
            f"{folder}: {_OUTPUT} differs from {_EMBEDDING}; openai-whisper's model has one weight for both, so this "
            "one cannot be loaded here"
        )
    if embedding is not None and embedding.dim() == 2 and len(embedding) == dims["n_vocab"]:
        dims["n_vocab"] = _vocabulary(folder, embedding)
        found[_EMBEDDING] = embedding[: dims["n_vocab"]]

    wanted = whisper_shapes(dims)
    names = {_their_name(name): name for name in wanted}
    shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
    refuse_wrong_shapes(folder, shapes, {key: wanted[name] for key, name in names.items()})
    return dims, {name: found[key] for key, name in names.items()}


def whisper_shapes(dims: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return name → shape of what is in the state dict of an openai-whisper model of these dimensions."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part, kind in (("encoder", "audio"), ("decoder", "text")):
        width = dims[f"n_{kind}_state"]
        blocks = [f"{part}.blocks.{i}." for i in range(dims[f"n_{kind}_layer"])]
        shapes |= {block + name: shape for block in blocks for name, shape in _block(width, part == "decoder")}
        shapes[f"{part}.positional_embedding"] = (dims[f"n_{kind}_ctx"], width)
    audio, text = dims["n_audio_state"], dims["n_text_state"]
    shapes |= {"encoder.conv1.weight": (audio, dims["n_mels"], 3), "encoder.conv1.bias": (audio,)}
    shapes |= {"encoder.conv2.weight": (audio, audio, 3), "encoder.conv2.bias": (audio,)}
    shapes |= {"encoder.ln_post.weight": (audio,), "encoder.ln_post.bias": (audio,)}
    shapes |= {"decoder.ln.weight": (text,), "decoder.ln.bias": (text,)}
    return shapes | {"decoder.token_embedding.weight": (dims["n_vocab"], text)}


def refuse_wrong_shapes(path: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise RuntimeError, naming the first, if parameters are missing, of another shape, or too many."""
    wrong = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if wrong:
        key, count = wrong[0], len(wrong)
        raise RuntimeError(
            f"{path} does not hold the parameters of a Whisper of its dimensions: {key} is {found.get(key, 'missing')}"
            f", expected {wanted.get(key, 'none of that name')} ({count} such). Was it saved whole, as a Whisper?"
        )


def _block(width: int, crossed: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    for attention in ("attn", "cross_attn") if crossed else ("attn",):
        for projection in ("query", "key", "value", "out"):
            yield f"{attention}.{projection}.weight", (width, width)
            if projection != "key":  # keys have no bias
                yield f"{attention}.{projection}.bias", (width,)
        yield from ((f"{attention}_ln.{kind}", (width,)) for kind in ("weight", "bias"))
    yield from (("mlp.0.weight", (4 * width, width)), ("mlp.0.bias", (4 * width,)))
    yield from (("mlp.2.weight", (width, 4 * width)), ("mlp.2.bias", (width,)))
    yield from ((f"mlp_ln.{kind}", (width,)) for kind in ("weight", "bias"))


def _their_name(name: str) -> str:
    """`encoder.blocks.0.attn.query.weight` → `encoder.layers.0.self_attn.q_proj.weight`."""
    part, rest = name.split(".", 1)
    if match := re.fullmatch(r"blocks\.(\d+)\.(mlp\.\d|\w+)(?:\.(\w+))?\.(weight|bias)", rest):
        block, module, projection, kind = match.groups()
        path = [_IN_BLOCK[module]] + ([_IN_BLOCK[projection]] if projection else [])
        return ".".join([part, "layers", block, *path, kind])
    module, *kind_of = rest.split(".")
    return ".".join([part, _OUTSIDE.get(module, module), *kind_of])


def _dimensions(path: Path) -> dict[str, int]:
    """Return the dimensions in a config.json of a Whisper that openai-whisper's model can express."""
    config = _json(path)
    if config.get("model_type", "whisper") != "whisper":
        raise RuntimeError(f"{path} is of a model of type {config['model_type']!r}, not of a Whisper; give a Whisper's")
    missing = [key for key in _DIMENSIONS.values() if not _is_count(config.get(key))]
    if missing:
        raise RuntimeError(f"{path} does not tell {', '.join(dict.fromkeys(missing))}; is it the config of a Whisper?")
    if config.get("activation_function", "gelu") != "gelu" or config.get("scale_embedding"):
        raise RuntimeError(
            f"{path} asks for activation {config.get('activation_function', 'gelu')!r} and scale_embedding "
            f"{bool(config.get('scale_embedding'))}; openai-whisper's model has 'gelu' and False only"
        )
    return {ours: config[theirs] for ours, theirs in _DIMENSIONS.items()}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _vocabulary(folder: Path, embedding: Tensor) -> int:
    """Return how many tokens a `(tokens, width)` embedding holds, less those that are only padding."""
    rows = len(embedding)
    if rows in VOCABULARIES:
        return rows
    used = int(embedding.any(dim=1).nonzero().max()) + 1 if embedding.any() else 0
    if used in VOCABULARIES:
        warnings.warn(f"{folder}: the last {rows - used} of {rows} tokens are empty, and are left out", stacklevel=5)
        return used
    why = (
        f"{rows - VOCABULARIES[-1]} more than large-v3, so tokens were added to it"
        if rows > VOCABULARIES[-1]
        else "so its tokens are not Whisper's"
    )
    raise RuntimeError(
        f"{folder} has a vocabulary of {rows} tokens, {why}; openai-whisper tells languages and timestamps by that "
        f"number and knows {', '.join(map(str, VOCABULARIES))} only. Give a model trained with Whisper's own tokenizer"
    )


def _tensors(folder: Path, in_memory: bool) -> dict[str, Tensor]:
    """Return the tensors of all weight files, without the prefix `model.`."""
    tensors: dict[str, Tensor] = {}
    for path, keys in _shards(folder).items():
        content, _ = read_tensors(path, in_memory)
        if not is_state_dict(content):
            raise RuntimeError(f"{path} is not a flat dict of tensors; give a folder saved by save_pretrained")
        if absent := sorted(set(keys) - content.keys()):
            raise RuntimeError(f"{path} lacks {absent[0]} ({len(absent)} such), which its index names; copy it anew")
        tensors |= {key.removeprefix("model."): tensor for key, tensor in content.items()}
    return tensors


def _shards(folder: Path) -> dict[Path, Collection[str]]:
    """Return the weight files of a folder, each with the tensors that it must have; all of them are there.

    Raises
    ------
    RuntimeError
        if there is no config.json, there are no weights, or a file that the index names is missing
    """
    require_config(folder)
    for name in WEIGHTS:
        if (folder / name).is_file():
            return {folder / name: ()}
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed(index)
    raise RuntimeError(f"{folder} has no weights: neither {' nor '.join(WEIGHTS)}, whole or in shards with an index")


def _indexed(index: Path) -> dict[Path, Collection[str]]:
    places = _json(index).get("weight_map")
    # A bare file name: an index from elsewhere has no business outside its folder.
    if not isinstance(places, dict) or not places or any(Path(str(file)).name != file for file in places.values()):
        raise RuntimeError(f"{index} has no 'weight_map' from tensors to files beside it; copy it anew")
    shards: dict[Path, Collection[str]] = {}
    for file in sorted(set(places.values())):
        path = index.parent / file
        if not path.is_file():
            raise RuntimeError(f"{path} is missing, which {index.name} names; put it there, or copy the model anew")
        shards[path] = [key for key, place in places.items() if place == file]
    return shards


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise RuntimeError(f"{path} is not JSON ({error}); copy it anew") from None
    if not isinstance(content, dict):
        raise RuntimeError(f"{path} is not a JSON object; copy it anew")
    return content
