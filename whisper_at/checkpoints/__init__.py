"""From names to files on disk and their tensors: find, download, verify, open, save.

Weights are data, never programs: `.pt` and `.pth` are opened with `weights_only=True`, and everything that
this package writes is `.safetensors`. The SHA-256 of an official Whisper is published in its URL. None is
published for the official Whisper-AT heads, so that of the first download (whose parameters were checked) is
kept in a file beside it, and what is loaded later must match.
"""

from __future__ import annotations

import base64
import difflib
import gzip
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import whisper
from safetensors import safe_open
from torch import Tensor
from whisper.model import ModelDimensions

from . import huggingface
from .download import download, fault_of, sha256_of
from .files import is_state_dict, read_tensors, write_text
from .files import save_safetensors as save_safetensors

ASSETS = Path(__file__).parents[1] / "assets"
EMBEDDED = "nano.en"  # the model inside this package

WIDTHS = {"tiny": 384, "base": 512, "small": 768, "medium": 1024, "large": 1280}
"""Encoder width of each size of Whisper."""


class Head(NamedTuple):
    """A published head: its file, width of its encoder, whether it is TL-TR-512, URLs to try in order."""

    file: str
    width: int
    low: bool
    urls: tuple[str, ...]


# Where Whisper-AT's program and its manual-download page name different shares, the program's comes first.
_SHARES = {
    "tiny.en": ("atq9so6w0qug5ai",),
    "tiny": ("cib4q4iz6g758l0", "06f2h29aki39q9r"),
    "base.en": ("qtzgsbuquoz0afn",),
    "base": ("2odwh42u6e9ger7", "4vn2oatda321y7h"),
    "small.en": ("cyx50ycl1ul7lji",),
    "small.en_low": ("507o66zgl8v6ddd",),
    "small": ("jftj9s0kr4ycvr1", "5zqzs3e47zwhjd3"),
    "small_low": ("a1x0416v58f7wrf", "3lxlmh437tneifl"),
    "medium.en": ("bbvylvmgns8ja4p",),
    "medium.en_low": ("2q5wprr8f9gti5t",),
    "medium": ("65aabayr7o819az", "93zfj4afmv0qfyl"),
    "medium_low": ("0mnfmcasram4n6o", "g66h1vtn1u426dj"),
    "large-v1": ("b8x2en1fdzc8nhk",),
    "large-v1_low": ("5o79h70wyla8jlk",),
    "large-v2": ("3zxpyvdrxy22eq7", "94x7wqw4hscpls0"),
    "large-v2_low": ("jw2rh4uylhqgn85", "wk5dyxustpji06c"),
}


def _published(name: str) -> Head:
    low = name.endswith("_low")
    file = f"{name}.pth" if low else f"{name}_ori.pth"
    urls = tuple(f"https://www.dropbox.com/s/{share}/{file}?dl=1" for share in _SHARES[name])
    return Head(file, WIDTHS[re.split(r"[.\-_]", name)[0]], low, urls)


HEADS = {name: _published(name) for name in _SHARES}
"""Every official Whisper-AT head by name; `_low` ones are TL-TR-512."""


# --- Whisper ------------------------------------------------------------------------------------------------


def available_models() -> list[str]:
    """Return the Whispers that load by name: openai-whisper's, in its order, then the embedded one."""
    return [*whisper._MODELS, EMBEDDED]


def find_whisper(name: str | os.PathLike[str], download_root: str | None = None) -> Path:
    """Return the file or Hugging Face folder of a Whisper checkpoint, downloading it unless it is there.

    Parameters
    ----------
    name : one of `available_models()`, the path of a file or of a folder in Hugging Face's layout, or the id
        of a model on its hub, `owner/model`, which needs the package huggingface_hub
    download_root : folder of downloads; `$XDG_CACHE_HOME/whisper` or `~/.cache/whisper` by default, shared
        with openai-whisper. A file already there must have the published SHA-256; else it is downloaded
        again, once, with a warning. Models of the hub go to its own cache unless a folder is given.

    Raises
    ------
    RuntimeError
        if there is no such model, file or folder, or it cannot be downloaded whole
    """
    name = os.fspath(name)
    if name == EMBEDDED:
        return _asset("nano.en.pt")
    if name not in whisper._MODELS:
        path = Path(name).expanduser()
        if path.is_dir():
            huggingface.require_config(path)
            return path
        if huggingface.is_hub_id(name) and not path.exists():
            return huggingface.fetch(name, download_root)
        return _existing_file(name, "Model", available_models(), RuntimeError)
    url = whisper._MODELS[name]
    sha256, file = url.split("/")[-2:]
    path = _root(download_root) / file
    if path.is_file():
        if sha256_of(path) == sha256:
            return path
        warnings.warn(f"{path} does not have the published SHA-256; downloading it again", stacklevel=2)
    return download(url, path, sha256)


def open_whisper(path: str | os.PathLike[str], in_memory: bool = False) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return dimensions (fields of `whisper.model.ModelDimensions`) and state dict of a Whisper checkpoint.

    Reads openai-whisper's `.pt` (a dict of `dims` and `model_state_dict`), `.safetensors` with the dimensions
    as JSON in the metadata key `dims`, or a folder in Hugging Face's layout. Tensors are on the CPU in the
    file's precision. With `in_memory`, the whole file is read at once before it is opened.

    Raises
    ------
    RuntimeError
        if the file is empty, damaged, not a checkpoint, or holds anything but tensors and plain values; if
        the folder is none of a Whisper that openai-whisper's model can express
    """
    path = Path(path)
    if path.is_dir():
        return huggingface.open_folder(path, in_memory)
    content, metadata = read_tensors(path, in_memory)
    parts = content if isinstance(content, dict) else {}
    is_head = any("mlp_layer." in str(key) for key in parts)
    is_theirs = any(".self_attn." in str(key) for key in parts)
    if path.suffix == ".safetensors":
        with suppress(ValueError):
            metadata["dims"] = json.loads(metadata.get("dims", ""))
        parts = {"dims": metadata.get("dims"), "model_state_dict": parts}
    state: Any = parts.get("model_state_dict")
    dims: Any = parts.get("dims")
    dims = dims if isinstance(dims, dict) else {}
    names = [field.name for field in fields(ModelDimensions)]
    missing = [name for name in names if not isinstance(dims.get(name), int)]
    if missing or not is_state_dict(state):
        what = f"dims without {', '.join(missing)}" if missing else "no model_state_dict of tensors"
        hint = "; this looks like a head, which is given as head=FILE" if is_head else ""
        hint = "; this is Hugging Face's layout, of which the folder is given" if is_theirs else hint
        raise RuntimeError(
            f"{path} is not a Whisper checkpoint in openai-whisper's layout: it has {what}{hint}. Give a "
            f"file with 'dims' and 'model_state_dict', or one of {available_models()}"
        )
    return {name: dims[name] for name in names}, state


def alignment_heads(
    name: str | os.PathLike[str], path: Path | None = None, dims: Mapping[str, int] | None = None
) -> bytes | None:
    """Return which cross-attention heads follow time in a model, base85 as openai-whisper keeps it.

    Known for official models by `name`, and for others by what lies at `path` with dimensions `dims`: the
    metadata `alignment_heads` of a `.safetensors`, or generation_config.json of a folder. None where it is
    not known, whose default is the upper half of the decoder.

    Raises
    ------
    RuntimeError
        if what lies there is not a list of [layer, head]
    """
    name = os.fspath(name)
    if name in whisper._ALIGNMENT_HEADS or path is None or dims is None:
        return whisper._ALIGNMENT_HEADS.get(name)
    pairs = _listed_heads(path)
    if pairs is None or pairs == []:
        return None
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise RuntimeError(f"{path}: alignment_heads is not a list of [layer, head] but {str(pairs)[:60]}; remove it")
    mask = np.zeros((dims["n_text_layer"], dims["n_text_head"]), dtype=bool)
    # A distilled decoder has fewer layers than its teacher, whose list often comes with it and means nothing there.
    if any(layer >= mask.shape[0] or head >= mask.shape[1] for layer, head in pairs):
        return None
    mask[tuple(zip(*pairs))] = True
    return base64.b85encode(gzip.compress(mask.tobytes(), mtime=0))


def _listed_heads(path: Path) -> object:
    """Whatever a checkpoint says its alignment heads are, or None."""
    if path.is_dir():
        return huggingface.alignment_heads(path)
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as opened:
        text = (opened.metadata() or {}).get("alignment_heads", "null")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(i) is int and i >= 0 for i in value)


def list_alignment_heads(dump: bytes, dims: Mapping[str, int]) -> list[list[int]]:
    """Return the [layer, head] pairs of what `alignment_heads` returns."""
    mask = np.frombuffer(gzip.decompress(base64.b85decode(dump)), dtype=bool)
    return np.argwhere(mask.reshape(dims["n_text_layer"], dims["n_text_head"])).tolist()


def encoder_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of an encoder's weights, which tells whether a head was trained on it.

    It is over names, shapes and values rounded to float16, in the order of the names, so that float16 and
    float32 copies of the same weights agree (copies that went through bfloat16 do not). The positional
    embedding is left out, for it is a constant. Takes about a second a gigabyte.

    Parameters
    ----------
    state : state dict of a Whisper, in openai-whisper's names; the decoder's part is ignored

    Raises
    ------
    ValueError
        if there is no encoder in it
    """
    weights = {name: state[name] for name in sorted(state) if name.startswith("encoder.")}
    weights.pop("encoder.positional_embedding", None)
    if not weights:
        raise ValueError("no encoder.* among these tensors: give the state_dict of a Whisper")
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().to("cpu", torch.float16).contiguous().numpy()
        digest.update(values.astype("<f2", copy=False).data)
    return digest.hexdigest()


def published_encoder(name: str, download_root: str | None = None) -> str | None:
    """`encoder_sha256` of an official Whisper, if its checkpoint is here already; None if not.

    Published heads do not say on which encoder they were trained, but by their names.
    """
    path = _root(download_root) / whisper._MODELS[name].split("/")[-1]
    return encoder_sha256(open_whisper(path)[1]) if path.is_file() else None


# --- heads --------------------------------------------------------------------------------------------------


def available_heads() -> list[str]:
    """Return the names of the heads that load by name: the official ones, then the embedded one."""
    return [*HEADS, EMBEDDED]


def head_name(whisper_name: str, low: bool = False) -> str | None:
    """Return the name of the head published for a Whisper, or None where there is none.

    There is none for a file of one's own, nor for large-v3 (= large) and large-v3-turbo (= turbo): what
    earlier releases called the head of "large" was made on large-v2 and fits no other.

    Raises
    ------
    ValueError
        if `low` (TL-TR-512) is asked of a model whose head exists only at full width
    """
    name = f"{whisper_name}_low" if low else whisper_name
    if name in available_heads():
        return name
    if low and whisper_name in available_heads():
        there = ", ".join(known.removesuffix("_low") for known, head in HEADS.items() if head.low)
        raise ValueError(
            f"no low-compute head is published for {whisper_name!r} (there is one for {there}); leave out "
            "at_low_compute, its full head is small as it is"
        )
    return None


def head_shapes(width: int, low: bool = False) -> dict[str, tuple[int, ...]]:
    """Return name → shape of the parameters of TL-TR, or `low` TL-TR-512, on an encoder of `width`."""
    d = 512 if low else width
    shapes: dict[str, tuple[int, ...]] = {}
    if low:
        shapes |= _pair("down_layer.0", (width,)) | _pair("down_layer.1", (d, width))
    for block in ("time_tr", "layer_tr"):
        for projection in ("query", "key", "value", "out"):
            shapes |= _pair(f"{block}.attn.{projection}", (d, d))
        del shapes[f"{block}.attn.key.bias"]  # Whisper's keys have none
        shapes |= _pair(f"{block}.attn_ln", (d,)) | _pair(f"{block}.mlp_ln", (d,))
        shapes |= _pair(f"{block}.mlp.0", (4 * d, d)) | _pair(f"{block}.mlp.2", (d, 4 * d))
    return shapes | _pair("mlp_layer.0", (d,)) | _pair("mlp_layer.1", (527, d))


def _pair(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def find_head(name_or_path: str | os.PathLike[str], download_root: str | None = None) -> Path:
    """Return the file of a head, downloading an official one unless it is there.

    Parameters
    ----------
    name_or_path : one of `available_heads()`, or the path of a file
    download_root : as of `find_whisper`

    An official head's parameters are checked before it is accepted, and its SHA-256 is then kept in
    `<file>.sha256`; later the file must match that.

    Raises
    ------
    FileNotFoundError
        if there is no such head or file
    ValueError
        if it is the name of a low-compute head that was never published
    RuntimeError
        if the file is not the one recorded, or cannot be downloaded whole
    """
    name = os.fspath(name_or_path)
    if name == EMBEDDED:
        return _asset("nano.en.head.safetensors")
    if name not in HEADS:
        if name.endswith("_low"):
            head_name(name.removesuffix("_low"), low=True)
        if name in whisper._MODELS:
            raise FileNotFoundError(
                f"no head is published for {name!r}; give a file, or one of {available_heads()} (what "
                "earlier releases called the head of 'large' is that of 'large-v2')"
            )
        return _existing_file(name, "Head", available_heads(), FileNotFoundError)
    head = HEADS[name]
    path = _root(download_root) / head.file
    record = path.with_name(f"{path.name}.sha256")
    recorded = _recorded(record)
    check = partial(_check_head, head=head, recorded=recorded)
    fault = fault_of(path, None, check) if path.is_file() else ""
    if fault:
        if recorded is not None:
            raise RuntimeError(fault)
        warnings.warn(f"{path} is no head of {name}, so it is downloaded again: {fault}", stacklevel=2)
    if fault is not None:
        download(head.urls, path, check=check)
    if recorded is None:
        _keep_record(path, record)
    return path


def open_head(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return parameters (float32, on the CPU) and metadata of a head; `.pth` and `.pt` have no metadata.

    Names come without the `at_model.` of official files and without the `module.` of DataParallel. Of a
    checkpoint that holds a whole Whisper-AT, only the head's parameters are returned.

    Raises
    ------
    RuntimeError
        if the file is empty, damaged, no flat dict of tensors, or a Whisper without a head
    """
    content, metadata = read_tensors(Path(path))
    if isinstance(content, dict) and isinstance(content.get("model_state_dict"), dict):
        content = content["model_state_dict"]
    if not is_state_dict(content):
        raise RuntimeError(f"{path} is not a head: it is not a flat dict of tensors. Give a head's file")
    tensors = {key.removeprefix("module."): tensor for key, tensor in content.items()}
    if any(key.startswith("at_model.") for key in tensors):
        tensors = {
            key.removeprefix("at_model.").removeprefix("module."): tensor
            for key, tensor in tensors.items()
            if key.startswith("at_model.")
        }
    elif "decoder.token_embedding.weight" in tensors:
        raise RuntimeError(f"{path} is a Whisper checkpoint that holds no head; load it as the model")
    return {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}, metadata


def _check_head(path: Path, head: Head, recorded: str | None) -> None:
    """Raise RuntimeError unless the file is the one recorded or, at first, has this head's parameters."""
    if recorded is not None:
        if (sha256 := sha256_of(path)) != recorded:
            raise RuntimeError(
                f"{path} is not the file that was first loaded: its SHA-256 was {recorded} and is {sha256}. "
                f"Put that file back, or delete this one and {head.file}.sha256 to download it anew"
            )
        return
    found = {key: tuple(tensor.shape) for key, tensor in open_head(path)[0].items()}
    wanted = head_shapes(head.width, head.low)
    wrong = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if wrong:
        key = wrong[0]
        raise RuntimeError(
            f"{len(wrong)} parameters are not those of {head.file}: {key} is {found.get(key)}, not {wanted.get(key)}"
        )


def _recorded(record: Path) -> str | None:
    match = re.match(r"[0-9a-f]{64}\b", record.read_text("ascii", "replace")) if record.is_file() else None
    return match.group() if match else None


def _keep_record(path: Path, record: Path) -> None:
    """Write what `sha256sum` would; a folder that cannot be written to (an image's, say) goes without."""
    try:
        write_text(record, f"{sha256_of(path)}  {path.name}\n")
    except OSError as error:
        warnings.warn(f"the SHA-256 of {path} could not be kept in {record.name}: {error}", stacklevel=3)


# --- files --------------------------------------------------------------------------------------------------


def _root(download_root: str | None) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache, "whisper") if download_root is None else Path(download_root).expanduser()


def _asset(file: str) -> Path:
    path = ASSETS / file
    if not path.is_file():
        raise RuntimeError(f"{path}, which comes with the package, is missing; reinstall whisper-at")
    return path


def _existing_file(name: str, kind: str, names: list[str], error: type[Exception]) -> Path:
    """Return `name` as the path of a file, or raise `error` with the names there are and the nearest one."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise error(f"{kind} {name!r} is a folder; give a file or one of {names}")
    if not path.is_file():
        near = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise error(f"{kind} {name!r} not found: {hint}Give a file or one of {names}")
    return path
