"""The model: openai-whisper's own, whose encoder also yields pooled states, with a head beside it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode
from whisper.model import *
from whisper.model import ModelDimensions, Whisper

from . import checkpoints
from .batched import transcribe_many as transcribe_many_function
from .decoding import decode as decode_function
from .decoding import detect_language as detect_language_function
from .engine.decoder import Decoder, Heard, has_bfloat16, is_exact_in_half, is_stock
from .engine.encoder_bf16 import Encoder
from .engine.onednn import attention_by_head, can_attend_by_head, quicken
from .engine.speculative import Draft
from .tagging.heads import N_CLASSES, TLTR, Head, LayerPoolHead, build_head
from .tagging.listeners import RESERVED, StateClassifier, WaveformClassifier
from .tagging.timeline import pool_steps
from .transcribe import transcribe as transcribe_function
from .windows import Window

N_MELS = 80
"""Of every Whisper that a head is published for."""
PRECISIONS = ("float32", "float16", "bfloat16", "int8")
COMPUTE_TYPES = (*PRECISIONS, "auto")


class WhisperAT(Whisper):
    """openai-whisper's model with a head that hears sounds in the features of the frozen encoder.

    ``encoder``, ``decoder``, ``state_dict`` and every method are upstream's; the head is held beside
    the modules, not among them, so that checkpoints go in and out unchanged (defect D13). As openai-whisper's, a model
    serves one thread at a time.

    Attributes
    ----------
    head : from pooled states to class logits, or None; always float32. May be set to another that fits
    head_missing : if there is no head, why, and how to get one
    attached : heads and listeners of one's own by name, see `attach`
    compute_type : None for upstream's rule (``fp16=True`` on CUDA, float32 on CPU), ``float32``, ``float16`` (CUDA
        only), ``bfloat16`` (the encoder and what the decoder hears of it; the decoder's weights stay as they are) or
        ``int8`` (that, and the decoder's weights in eight bits; CPU only)
    draft : None, or the decoder of a distilled model that guesses what this one will say, see `load_model`
    """

    head: Head | None

    def __init__(self, dims: ModelDimensions, head: Head | None = None, compute_type: str | None = None):
        super().__init__(dims)
        if compute_type not in (None, *PRECISIONS):
            raise ValueError(f"compute_type must be one of {', '.join(PRECISIONS)} or None, not {compute_type!r}")
        self.compute_type = compute_type
        quicken(self.encoder)
        self._decoder: Decoder | None = None
        self._encoder: Encoder | None = None
        self.attached: dict[str, Head | WaveformClassifier | StateClassifier] = {}
        self.draft: Draft | None = None
        self.head_missing = "this model has no head; give one: load_model(..., head=FILE)"
        self.head = head

    def __setattr__(self, name: str, value: object) -> None:
        if name == "head":
            # nn.Module would register it among the parameters
            object.__setattr__(self, "head", None if value is None else self._fitted(cast(Head, value)))
        else:
            super().__setattr__(name, value)

    def _fitted(self, head: Head) -> Head:
        """The head on the model's device, frozen; ValueError if it was made for another encoder."""
        width, layers = self.dims.n_audio_state, self.dims.n_audio_layer
        if (head.rep_dim, head.n_layer) != (width, layers):
            raise ValueError(
                f"this head was made for encoders of {head.n_layer} layers of width {head.rep_dim}, "
                f"but this Whisper's has {layers} of width {width}"
            )
        return head.to(self.device).eval().requires_grad_(False)

    def attach(self, name: str, head: Head | WaveformClassifier | str | Path) -> None:
        """Let a head or classifier of one's own hear every recording too; ``result[name]`` holds what it finds.

        Parameters
        ----------
        name : a key of results that is not taken
        head : a head with classes of its own (``whisper-at train`` writes such), or the file of one, which reads the
            encoder pass that the text comes from; or a `WaveformClassifier`, such as a classifier of `whisper_at.adapt`, which
            hears recordings in a pass of its own unless that one holds all that it needs. The text is the same with
            any of them.

        Raises
        ------
        ValueError
            If the name is taken, the head fits another encoder, or its classes have no names.
        """
        if name in RESERVED or name in self.attached or not name:
            message = f"{name!r} cannot be the name of a head: results have, or may have, that key already"
            raise ValueError(f"{message}; rename its file, or attach it under another name")
        if isinstance(head, (str, Path)):
            head = _open_head_or_classifier(head, self)
        if isinstance(head, (TLTR, LayerPoolHead)):
            head = self._fitted(head)
            if head.classes is None:
                raise ValueError("this head's outputs have no names: it is AudioSet's (model.head), or lacks metadata")
        elif not isinstance(head, WaveformClassifier):
            raise ValueError(
                f"a {type(head).__name__} cannot be attached: it is neither a head nor a WaveformClassifier"
            )
        elif hasattr(head, "on_states"):
            head = head.on_states(self) or head
        self.attached[name] = head

    def detach(self, name: str) -> None:
        """Undo `attach`; KeyError if nothing has that name."""
        del self.attached[name]

    def _apply(self, fn: Callable, recurse: bool = True) -> WhisperAT:
        super()._apply(fn, recurse)
        if self.head is not None:
            self.head.to(self.device)  # follows the model, but keeps its precision: model.half() is D15
        for head in self.attached.values():
            if isinstance(head, nn.Module):
                head.to(self.device)
        return self

    @torch.no_grad()
    def encode(self, mel: Tensor, windows: Sequence[Window] | None = None) -> tuple[Tensor, Tensor]:
        """One encoder pass: features for the decoder, and pooled states for heads.

        Parameters
        ----------
        mel : ``(batch, n_mels, 3000)`` log-mel spectrograms
        windows : where each lies in its recording; by default each starts at 0 and is full

        Returns
        -------
        features : ``(batch, 1500, dim)``, as ``model.encoder(mel)`` returns them
        states : float32 ``(batch, layers, steps, dim)``, every block's output before ``ln_post``, mean
            over 0.4 s steps of the absolute grid; steps without audio are NaN
        """
        windows = [Window(0)] * len(mel) if windows is None else windows
        if self._hears_singly(mel):
            parts = [self._encode(mel[i : i + 1], windows[i : i + 1]) for i in range(len(mel))]
            by_step = [states[0].transpose(0, 1) for _, states in parts]  # a window may touch 75 or 76 of them
            padded = pad_sequence(by_step, batch_first=True, padding_value=math.nan)
            return torch.cat([features for features, _ in parts]), padded.transpose(1, 2).contiguous()
        return self._encode(mel, windows)

    def _encode(self, mel: Tensor, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        states: list[Tensor] = []
        features = self._embed(mel, lambda output: states.append(pool_steps(output, windows)))
        return features, torch.stack(states, dim=1)

    def embed_audio(self, mel: Tensor) -> Tensor:
        """Encoder features ``(batch, 1500, dim)`` for the decoder, in the precision that it computes in."""
        if self._hears_singly(mel):
            return torch.cat([self._embed(one) for one in mel.split(1)])
        return self._embed(mel)

    def _hears_singly(self, mel: Tensor) -> bool:
        """Whether a batch is better heard window by window: in float32 on a CPU, whose caches one of them fills."""
        return len(mel) > 1 and mel.device.type == "cpu" and not self._in_bfloat16()

    def _in_bfloat16(self) -> bool:
        return self.compute_type == "bfloat16" or (self.compute_type == "int8" and has_bfloat16())

    def _embed(self, mel: Tensor, each: Callable[[Tensor], object] | None = None) -> Tensor:
        """`embed_audio`; ``each`` is given what every block makes."""
        in_bfloat16 = self._in_bfloat16()
        if in_bfloat16 and Encoder.fits(self.encoder):
            if self._encoder is None or not self._encoder.is_current(self.encoder):
                self._encoder = Encoder(self.encoder)
            return self._encoder(mel, each)
        see = each or (lambda _output: None)
        hooks = [
            block.register_forward_hook(lambda _module, _inputs, output: see(output)) for block in self.encoder.blocks
        ]
        by_head = can_attend_by_head(self.encoder, mel.dtype) and not in_bfloat16
        try:
            with attention_by_head(self.encoder) if by_head else nullcontext():
                return self.encoder(mel.bfloat16()).float() if in_bfloat16 else self.encoder(mel)
        finally:
            for hook in hooks:
                hook.remove()

    def is_encoded(self, mel: Tensor) -> bool:
        """Whether this is encoder output already, told by its shape as upstream's ``decode`` does."""
        return mel.shape[-2:] == (self.dims.n_audio_ctx, self.dims.n_audio_state)

    @property
    def is_stock(self) -> bool:
        """Whether the decoder is openai-whisper's as installed, so that `fast_decoder` may stand in for it."""
        return is_stock(self.decoder)

    def fast_decoder(self, dtype: torch.dtype) -> Decoder:
        """The decoder for inference; made anew when a weight has changed since it was last asked for."""
        reduced = self.compute_type if self.compute_type in ("bfloat16", "int8") else None
        if self._decoder is None or not self._decoder.is_current(self, dtype, reduced):
            self._decoder = Decoder(self, dtype, reduced)
        return self._decoder

    def hear(self, features: Tensor) -> Heard:
        """What the decoder hears in encoder features ``(batch, 1500, dim)``, for any number of `decode` calls."""
        return self.fast_decoder(features.dtype).hear(features)

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        """Logits ``(batch, tokens, vocabulary)`` of a mel or, to save a pass, of its encoded features."""
        return self.decoder(tokens, mel if self.is_encoded(mel) else self.encoder(mel))

    detect_language = detect_language_function
    transcribe = transcribe_function
    transcribe_many = transcribe_many_function
    decode = decode_function


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
    """Load a Whisper and the head that hears sounds in it.

    Parameters
    ----------
    name : one of `available_models()`; the path of a checkpoint in openai-whisper's layout (``.pt``,
        ``.safetensors``) or of a folder in Hugging Face's (``config.json`` and ``model.safetensors``); or a
        model's id on its hub, ``"distil-whisper/distil-large-v3"`` (needs the package huggingface_hub)
    device : where to put the model; CUDA if there is any, else the CPU
    download_root : folder of downloaded files; ``~/.cache/whisper`` by default, shared with openai-whisper
    in_memory : read the whole checkpoint into memory first
    at_low_compute : take the published 512-wide head (small, medium and large only)
    head : ``"auto"`` for the head published for this encoder, a published head's name, a file (``.pth`` or
        ``.safetensors``), or None for none; or several of these. A file with classes of its own, or what
        ``whisper-at adapt`` has fitted, is attached under its name without the suffix
    compute_type : ``float32``, ``float16`` (CUDA), ``bfloat16``, ``int8`` (CPU), see `WhisperAT`; ``auto`` is
        int8 on a CPU and float16 on CUDA; None is upstream's rule. On a CPU, ``bfloat16`` and ``int8`` keep matrices
        in half precision where that loses nothing, to save memory, as ``float16`` does on a GPU: load a model to be
        trained without them
    draft : a model that was distilled from this one with its encoder, by any name that ``name`` may be. On a CPU, where
        text is decoded greedily and one window at a time, its small decoder guesses some tokens that this model's then
        checks in one pass: the text is this model's, only sooner. Its own name takes a copy of its decoder in int8

    A Whisper without a published head (large-v3, turbo, a file of your own) transcribes as usual and
    refuses to tag, saying why. One with the encoder of a Whisper that has one, as distilled models have their
    teacher's, takes that, if the other has been downloaded to compare with; if not, it can be told to, which warns:
    ``load_model("distil-whisper/distil-medium.en", head="medium.en")``. A head that was trained on another encoder
    loads with a warning, too.

    Raises
    ------
    RuntimeError
        If there is no such model, a file is damaged or cannot be downloaded, or a folder holds a model that
        openai-whisper's cannot express (tokens added to its vocabulary, say).
    ValueError
        If the head does not fit the encoder, does not exist in a low-compute variant, names no classes and is not
        AudioSet's, or is a second one for those; or ``draft`` has another vocabulary or size, or the device is no CPU.
    FileNotFoundError
        If ``head`` names neither a published head nor a file.
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

    guessing = None if draft is None else checkpoints.find_whisper(draft, download_root)
    path = checkpoints.find_whisper(name, download_root)
    dims, state = checkpoints.open_whisper(path, in_memory)
    with _NoInitialValues():
        model = WhisperAT(ModelDimensions(**dims), compute_type=compute_type)
    halves = _matrices(model) if on_cpu or compute_type == "float16" else set()
    for key in list(state):  # one after the other, so that there are never two whole models
        half = key in halves and is_exact_in_half(state[key])
        state[key] = state[key].to(torch.float16 if half else torch.float32, copy=True)
    model.load_state_dict(state, assign=True)
    if (dump := checkpoints.alignment_heads(name, path, dims)) is not None:
        model.set_alignment_heads(dump)
    if guessing is not None:
        model.draft = _open_draft(guessing, draft, model, name)

    for source in heads:
        if source == "auto":
            published = checkpoints.head_name(name, at_low_compute)
            if published is None:
                published = _head_of_encoder(model, at_low_compute, download_root)
                name = name if published is None else published.removesuffix("_low")  # which it is, as heads go
            if published is None:
                model.head_missing = (
                    f"no head is published for {name!r} or its encoder; train one, or give a file: "
                    f"load_model({name!r}, head=FILE)"
                )
                if len(heads) > 1:  # who asks for no other is told when tags are asked for
                    warnings.warn(f"no tags of AudioSet's classes: {model.head_missing}", stacklevel=2)
                continue
            source = published
        if source is not None:
            found = _open_head_or_classifier(source, model, download_root, name)
            if isinstance(found, (TLTR, LayerPoolHead)) and found.classes is None:
                if found.label_dim != N_CLASSES:
                    message = f"head {source} has {found.label_dim} outputs without names, not AudioSet's {N_CLASSES}"
                    raise ValueError(f"{message}; `whisper-at train` writes heads that name theirs")
                if model.head is not None:
                    raise ValueError(f"head {source} is a second one for AudioSet's classes: a model has one")
                model.head = found
            else:
                model.attach(Path(source).name.removesuffix(".safetensors").removesuffix(".head"), found)
    return model.to(device)


def _head_of_encoder(model: WhisperAT, low: bool, download_root: str | None) -> str | None:
    """The head published for the Whisper that has this model's encoder, weight for weight, or None.

    The encoder is compared with those of the embedded model and of official ones that are here already.
    """
    own: str | None = None
    for name in checkpoints.available_heads():
        if name == checkpoints.EMBEDDED:
            tensors, metadata = checkpoints.open_head(checkpoints.find_head(name))
            width, theirs = len(tensors["mlp_layer.0.weight"]), metadata.get("encoder_sha256")
        else:
            width, theirs = checkpoints.HEADS[name].width, None
        if (width, N_MELS) != (model.dims.n_audio_state, model.dims.n_mels) or name.endswith("_low"):
            continue  # what cannot be it is not read
        theirs = theirs or checkpoints.published_encoder_sha256(name, download_root)
        if theirs is not None:
            own = own or checkpoints.encoder_sha256(model.state_dict())
            if own == theirs:
                return checkpoints.head_name(name, low)
    return None


def open_fitting_head(
    source: str | Path, model: WhisperAT, download_root: str | None = None, model_name: str = "this model"
) -> Head:
    """The head of that name or file, checked against a model's encoder; arguments as of `load_model`.

    Raises
    ------
    ValueError
        If it does not fit the encoder.
    FileNotFoundError, RuntimeError
        If there is no such head, or it cannot be read.
    """
    tensors, metadata = checkpoints.open_head(checkpoints.find_head(str(source), download_root))
    sizes = {"n_layer": model.dims.n_audio_layer, "rep_dim": model.dims.n_audio_state}
    try:
        head = build_head(tensors, metadata, **sizes)
    except ValueError as error:
        raise ValueError(f"head {source} does not fit {model_name}: {error}") from None
    trained_on = metadata.get("encoder_sha256")  # hashing takes time: only where there is something to compare
    published = str(source).removesuffix("_low")
    if trained_on is None and published in checkpoints.HEADS and published != model_name:
        trained_on = checkpoints.published_encoder_sha256(published, download_root)
        if trained_on is None:
            message = f"head {source} is right for {model_name} only if that has the encoder of {published}, which is "
            warnings.warn(f"{message}not here to compare with: load_model({published!r}) fetches it", stacklevel=4)
    if trained_on and trained_on != checkpoints.encoder_sha256(model.state_dict()):
        message = f"head {source} was trained on another encoder than that of {model_name}: its tags may be wrong"
        warnings.warn(message, stacklevel=4)  # of load_model or attach
    return head


def _open_draft(path: Path, source: str | None, model: WhisperAT, model_name: str) -> Draft:
    """The decoder of a distilled model, checked against the one that it is to guess for."""
    dims, state = checkpoints.open_whisper(path)
    draft = Draft(dims, state)
    try:
        draft.refuse_unlike(model.dims)
    except ValueError as error:
        raise ValueError(f"{source} cannot guess for {model_name}: {error}") from None
    if checkpoints.encoder_sha256(state) != checkpoints.encoder_sha256(model.state_dict()):
        message = f"{source} has another encoder than {model_name}: its guesses will rarely be right, and cost time"
        warnings.warn(message, stacklevel=3)
    return draft


def _matrices(model: WhisperAT) -> set[str]:
    """Names of the matrices that may stay in half precision: a reduced model computes with copies of its own, and
    a GPU in half precision anyway.
    """
    half = model.compute_type == "float16"
    parts: list[nn.Module] = [model.decoder] if half or model.compute_type in ("bfloat16", "int8") else []
    parts += [model.encoder] if half or (parts and has_bfloat16()) else []
    names = {module: name for name, module in model.named_modules()}
    modules = [module for part in parts for module in part.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
    return {f"{names[module]}.weight" for module in modules}


class _NoInitialValues(TorchFunctionMode):
    """New layers keep whatever lies in memory, for a model whose every weight is read from a file."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def _open_head_or_classifier(
    source: str | Path, model: WhisperAT, download_root: str | None = None, model_name: str = "this model"
) -> Head | WaveformClassifier:
    """`open_fitting_head`, or the adapted classifier that a file holds instead."""
    path = checkpoints.find_head(str(source), download_root)
    if path.suffix == ".safetensors" and checkpoints.open_head(path)[1].get("kind", "").startswith("whisper_at.adapt"):
        from .adapt import AudioClassifier  # which stands on this module

        return AudioClassifier.load(path, device=model.device, download_root=download_root)
    return open_fitting_head(source, model, download_root, model_name)
