"""`load_model`: a Whisper by name, file or hub id, with its heads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from whisper.model import ModelDimensions

from . import checkpoints
from .engine.file_pages import FilePages, release_library
from .engine.half_parameters import keep_in_half
from .engine.speculative import DraftModel
from .engine.weights import stored_as
from .model import WhisperAT
from .tagging.heads import Head
from .tagging.labels import N_CLASSES, is_audioset
from .tagging.listeners import WaveformClassifier
from .tagging.load_head import load_head_or_classifier

N_MELS = 80
"""Mel bands of every Whisper that a head is published for."""
RELEASE_BYTES = 32 << 20
"""Bytes of weights after which the memory of what was read of their file is given back."""


def load_model(
    name: str,
    device: str | torch.device | None = None,
    download_root: str | None = None,
    in_memory: bool = False,
    at_low_compute: bool = False,
    head: str | Path | Sequence[str | Path] | None = "auto",
    compute_type: str | None = None,
    draft: str | None = None,
) -> WhisperAT:
    """Load a Whisper, and the head that finds sounds in its features.

    A Whisper without a published head (large-v3, turbo, a file of your own) transcribes as usual and
    refuses to tag, saying why. One with the encoder of a Whisper that has one, as distilled models have their
    teacher's, takes that, if the other has been downloaded to compare with; if not, it can be told to, which warns:
    ``load_model("distil-whisper/distil-medium.en", head="medium.en")``. A head that was trained on another encoder
    loads with a warning, too.

    Parameters
    ----------
    name : str
        One of `available_models()`; the path of a checkpoint in openai-whisper's layout (``.pt``, ``.safetensors``) or
        ggml's (``ggml-base.bin``), or of a folder in Hugging Face's (``config.json`` and ``model.safetensors``) or
        CTranslate2's (``model.bin``), or of an adapter of the package peft, which is merged into its model; or a
        model's id on the Hugging Face hub, ``"distil-whisper/distil-large-v3"`` (needs huggingface_hub).
    device : str or torch.device, optional
        Where to put the model; CUDA if there is any, else the CPU.
    download_root : str, optional
        Folder of downloaded files; ``~/.cache/whisper`` by default, shared with openai-whisper.
    in_memory : bool
        Read the whole checkpoint into memory first.
    at_low_compute : bool
        Take the published 512-wide head (small, medium and large only).
    head : str, Path, sequence of these, or None
        ``"auto"`` for the head published for this encoder, a published head's name, a file (``.pth`` or
        ``.safetensors``), or None for none; or several of these. A file with classes of its own, or what
        ``whisper-at adapt`` has fitted, is attached under its name without the suffix.
    compute_type : str, optional
        ``float32``, ``float16`` (CUDA), ``bfloat16``, ``int8`` (CPU), see `WhisperAT`; ``auto`` is int8 on a CPU and
        float16 on CUDA; None is upstream's rule. On a CPU, ``bfloat16`` and ``int8`` keep matrices in half precision
        where that loses nothing, to save memory, as ``float16`` does on a GPU: load a model to be trained without
        them. Where the file has them so, they stay there, mapped: replace it by renaming, or load `in_memory`.
    draft : str, optional
        A model that was distilled from this one with its encoder, by any name that `name` may be. On a CPU, where text
        is decoded greedily and one window at a time, its small decoder proposes tokens that this model's then checks
        in one pass: the text is this model's, only sooner. Its own name takes a copy of its decoder in int8.

    Returns
    -------
    WhisperAT
        The model in evaluation mode.

    Raises
    ------
    RuntimeError
        If there is no such model, a file is damaged or cannot be downloaded, or a folder holds a model that
        openai-whisper's cannot express (tokens added to its vocabulary, say).
    ValueError
        If the head does not fit the encoder, does not exist in a low-compute variant, names no classes and is not
        AudioSet's, or is a second one for those; or `draft` has another vocabulary or size, or the device is no CPU.
    FileNotFoundError
        If `head` names neither a published head nor a file.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cpu = torch.device(device).type == "cpu"
    if compute_type == "auto":
        compute_type = "int8" if on_cpu else "float16"
    if compute_type == "float16" and on_cpu:
        raise ValueError("compute_type='float16' needs a GPU; on a CPU choose float32, bfloat16 or int8")
    if compute_type == "int8" and not on_cpu:
        raise ValueError(f"compute_type='int8' is for CPUs; on {device} choose float16 or bfloat16")
    if draft is not None and not on_cpu:
        raise ValueError(f"draft={draft!r} is for CPUs; leave it out on {device}")
    heads = [head] if head is None or isinstance(head, (str, Path)) else list(head)
    if at_low_compute and "auto" not in heads:
        raise ValueError(f"at_low_compute chooses among published heads; leave it out with head={head!r}")
    if "auto" in heads:
        checkpoints.head_name(name, at_low_compute)  # what cannot be had is refused before anything is fetched

    draft_path = None if draft is None else checkpoints.find_whisper(draft, download_root)
    path = checkpoints.find_whisper(name, download_root)
    dims, state = checkpoints.open_whisper(path, in_memory, download_root)
    checkpoints.check_size(dims, state, path)
    with _NoInitialValues():
        model = WhisperAT(ModelDimensions(**dims), compute_type=compute_type)
    halves = _half_precision_names(model, on_cpu)
    pages, n_bytes = FilePages(state.values()), 0
    mapped = [tensor for tensor in state.values() if tensor.data_ptr() in pages.addresses]  # until pages are released
    for key in list(state):  # one after the other, so that there are never two whole models
        state[key] = stored_as(state[key], half=key in halves)
        n_bytes += state[key].nbytes
        if n_bytes > RELEASE_BYTES:
            n_bytes = 0
            pages.release()
    model.load_state_dict(state, assign=True)
    del state
    if (dump := checkpoints.alignment_heads(name, path, dims, download_root)) is not None:
        model.set_alignment_heads(dump)
    if draft_path is not None:
        model.draft = _open_draft(draft_path, draft, model, name)

    for source in heads:
        trained_on = name
        if source == "auto":
            source = _automatic_head(model, name, at_low_compute, download_root)
            trained_on = name if source is None else source.removesuffix("_low")  # which the model is, as heads go
            if source is None and len(heads) > 1:  # a caller who asked for no other is told when tags are asked for
                warnings.warn(f"no tags of AudioSet's classes: {model.head_missing}", stacklevel=2)
        if source is not None:
            _add_head(model, load_head_or_classifier(source, model, download_root, trained_on), source)
    model.to(device)
    if on_cpu and model.compute_type in (None, "float32"):
        keep_in_half(model.decoder)
    pages.release()
    del mapped
    if on_cpu:
        release_library("libtorch")  # most of what importing PyTorch has read of it is not needed again
    return model


def _automatic_head(model: WhisperAT, name: str, low: bool, download_root: str | None) -> str | None:
    """Return the name of the head for a model's encoder, fetched; None, said in `head_missing`, where there is none.

    Where the published one cannot be downloaded, that of this package stands in for it, with a warning.
    """
    published = checkpoints.head_name(name, low) or _head_of_encoder(model, low, download_root)
    if published is None:
        model.head_missing = (
            f"no head is published for {name!r} or its encoder; train one with `whisper-at train`, and give its file: "
            f"load_model({name!r}, head=FILE), or --head FILE on the command line"
        )
        return None
    try:
        checkpoints.find_head(published, download_root)
    except checkpoints.DownloadError as error:
        stand_in = checkpoints.stand_in_head(published)
        if stand_in is None:
            raise
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"{reason} {stand_in!r}, which comes with whisper_at, is used instead: it knows fewer classes (see "
            f"pretrained_models/open_heads.md); head={stand_in!r} takes it without a warning",
            stacklevel=3,
        )
        return stand_in
    return published


def _add_head(model: WhisperAT, found: Head | WaveformClassifier, source: str | Path) -> None:
    """Give a model what was found at `source`: as AudioSet's head if it has those classes, else attached."""
    if isinstance(found, Head) and found.classes is None:
        message = f"head {source} has {found.label_dim} outputs without names, not AudioSet's {N_CLASSES}"
        raise ValueError(f"{message}; `whisper-at train` writes heads that name theirs")
    if isinstance(found, Head) and is_audioset(found.classes):
        if model.head is not None:
            raise ValueError(f"head {source} is a second one for AudioSet's classes: a model has one")
        model.head = found
    else:
        model.attach(Path(source).name.removesuffix(".safetensors").removesuffix(".head"), found)


def _head_of_encoder(model: WhisperAT, low: bool, download_root: str | None) -> str | None:
    """Return the head published for the Whisper that has this model's encoder, weight for weight, or None.

    The encoder is compared with those that the heads of this package name, and of official Whispers that are here.
    """
    if model.dims.n_mels != N_MELS:
        return None
    own: str | None = None
    candidates: list[tuple[str, int, str | None]] = []  # Whisper, width, SHA-256 of its encoder
    for name, path in checkpoints.packaged_heads().items():
        tensors, metadata = checkpoints.open_head(path)
        width = int(metadata.get("width", len(tensors["mlp_layer.0.weight"])))
        candidates.append((name, width, metadata.get("encoder_sha256")))
    candidates += [(name, head.width, None) for name, head in checkpoints.HEADS.items() if not head.low_compute]
    for name, width, theirs in candidates:
        if width != model.dims.n_audio_state:
            continue  # what cannot be it is not read
        theirs = theirs or checkpoints.published_encoder_sha256(name, download_root)
        if theirs is not None:
            own = own or checkpoints.encoder_sha256(model.encoder.state_dict(prefix="encoder."))
            if own == theirs:
                return checkpoints.head_name(name, low)
    return None


def _open_draft(path: Path, source: str | None, model: WhisperAT, model_name: str) -> DraftModel:
    """Return the decoder of a distilled model, checked against the model whose tokens it is to propose."""
    dims, state = checkpoints.open_whisper(path)
    draft = DraftModel(dims, state)
    try:
        draft.check_compatible(model.dims)
    except ValueError as error:
        raise ValueError(f"{source} cannot draft for {model_name}: {error}") from None
    if checkpoints.encoder_sha256(state) != checkpoints.encoder_sha256(model.encoder.state_dict(prefix="encoder.")):
        message = f"{source} has another encoder than {model_name}: its drafts will rarely be right, and cost time"
        warnings.warn(message, stacklevel=3)
    return draft


def _half_precision_names(model: WhisperAT, on_cpu: bool) -> set[str]:
    """Return the names of the matrices that may stay in half precision.

    A reduced model computes with copies of its own, as the decoder of any does on a CPU, and a GPU in half precision.
    """
    matrices = nn.Linear, nn.Embedding
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, matrices)}
    if model.compute_type == "float16" or (on_cpu and model.compute_type in ("bfloat16", "int8")):
        return names
    return {name for name in names if on_cpu and name.startswith("decoder.")}


class _NoInitialValues(TorchFunctionMode):
    """New layers keep whatever lies in memory, for a model whose every weight is read from a file."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))
