"""`WhisperAT`: openai-whisper's model, whose encoder also yields pooled states, with heads beside it."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from whisper.model import *
from whisper.model import ModelDimensions, Whisper

from .batched import transcribe_many as transcribe_many_function
from .decoding import decode as decode_function
from .decoding import detect_language as detect_language_function
from .engine.decoder import Decoder
from .engine.encoder import OnBlock
from .engine.encoder import encode as encode_mel
from .engine.encoder_bf16 import EncoderBF16
from .engine.encoder_int8 import EncoderInt8
from .engine.isolation import LOCK as BUILD_LOCK
from .engine.kv_cache import EncodedAudio
from .engine.onednn import use_onednn
from .engine.simd import has_bfloat16
from .engine.speculative import DraftModel
from .engine.weights import is_unmodified
from .tagging.heads import Head
from .tagging.labels import is_audioset
from .tagging.listeners import StateClassifier, WaveformClassifier
from .tagging.load_head import load_head_or_classifier
from .tagging.rows import AUDIOSET, RESERVED_NAMES
from .tagging.tag_recording import tag_recording
from .tagging.timeline import pool_steps
from .transcribe import transcribe as transcribe_function
from .windows import Window

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
COMPUTE_TYPES = (*PRECISIONS, "auto")

# as in openai-whisper, the package's `transcribe` is the function, although a module has the name too
sys.modules[__package__].transcribe = transcribe_function  # type: ignore[attr-defined]


class WhisperAT(Whisper):
    """openai-whisper's model with heads that find sounds in the features of the frozen encoder.

    ``encoder``, ``decoder``, ``state_dict`` and every method are upstream's; heads are held beside
    the modules, not among them, so that checkpoints go in and out unchanged (defect D13). Several threads may use one
    model at once.

    Attributes
    ----------
    head : Head, optional
        AudioSet's, from pooled states to class logits; always float32. May be set to another that fits.
    head_missing : str
        If there is no head, why, and how to get one.
    attached : dict of str to Head, StateClassifier or WaveformClassifier
        Heads and classifiers of one's own by name, see `attach`.
    compute_type : str, optional
        None for upstream's rule (``fp16=True`` on CUDA, float32 on CPU), ``float32``, ``float16`` (CUDA only),
        ``bfloat16`` (the encoder, and the decoder's cross-attention keys and values; its weights stay as they are) or
        ``int8`` (that, and the decoder's weights in eight bits; CPU only).
    draft : DraftModel, optional
        The decoder of a distilled model that proposes tokens for this one to check, see `load_model`.
    """

    head: Head | None

    def __init__(self, dims: ModelDimensions, head: Head | None = None, compute_type: str | None = None):
        super().__init__(dims)
        if compute_type not in (None, *PRECISIONS):
            raise ValueError(f"compute_type must be one of {', '.join(PRECISIONS)} or None, not {compute_type!r}")
        self.compute_type = compute_type
        use_onednn(self.encoder)
        self._decoder: Decoder | None = None
        self._encoder: EncoderBF16 | EncoderInt8 | None = None
        self.attached: dict[str, Head | WaveformClassifier | StateClassifier] = {}
        self.draft: DraftModel | None = None
        self.head_missing = (
            "this model has no head; give one, load_model(..., head=FILE), or leave out at_time_res to transcribe alone"
        )
        self.head = head

    def __setattr__(self, name: str, value: object) -> None:
        if name == "head":
            # nn.Module would register it among the parameters
            object.__setattr__(self, "head", None if value is None else self._prepare_head(cast(Head, value)))
        else:
            super().__setattr__(name, value)

    @property
    def heads(self) -> dict[str, Any]:
        """All heads and classifiers by the name that results tell of them under, AudioSet's first."""
        return self.attached if self.head is None else {AUDIOSET: self.head, **self.attached}

    def _prepare_head(self, head: Head) -> Head:
        """Put a head on the model's device, frozen; raise ValueError if it was made for another encoder."""
        width, layers = self.dims.n_audio_state, self.dims.n_audio_layer
        if (head.rep_dim, head.n_layer) != (width, layers):
            raise ValueError(
                f"this head was made for encoders of {head.n_layer} layers of width {head.rep_dim}, "
                f"but this Whisper's has {layers} of width {width}"
            )
        use_onednn(head)
        return head.to(self.device).eval().requires_grad_(False)

    def attach(self, name: str, head: Head | WaveformClassifier | str | Path) -> None:
        """Run a head or classifier of one's own over every recording too; ``result[name]`` holds what it finds.

        The text is the same with any of them.

        Parameters
        ----------
        name : str
            A key of results that is not taken.
        head : Head, WaveformClassifier, str or Path
            A head with classes of its own (``whisper-at train`` writes such), or the file of one, which reads the
            encoder pass that the text comes from; or a `WaveformClassifier`, such as a classifier of
            `whisper_at.adapt`, which reads recordings in a pass of its own unless that one holds all that it needs.

        Raises
        ------
        ValueError
            If the name is taken, the head fits another encoder, or its classes have no names.
        """
        if name in RESERVED_NAMES or name in self.attached or not name:
            message = f"{name!r} cannot be the name of a head: results have, or may have, that key already"
            raise ValueError(f"{message}; rename its file, or attach it under another name")
        if isinstance(head, (str, Path)):
            head = load_head_or_classifier(head, self)
        if isinstance(head, Head):
            head = self._prepare_head(head)
            if head.classes is None or is_audioset(head.classes):
                raise ValueError(
                    "this head's outputs have no names of their own: set model.head if they are AudioSet's classes, "
                    "else give it a ClassSet"
                )
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WhisperAT:
        super()._apply(fn, recurse)
        if self.head is not None:
            self.head.to(self.device)  # follows the model, but keeps its precision: model.half() is D15
        for head in self.attached.values():
            if isinstance(head, nn.Module):
                head.to(self.device)
        return self

    @torch.no_grad()
    def encode(
        self,
        mel: Tensor,
        windows: Sequence[Window] | None = None,
        *,
        partial: bool = False,
        unfused_attention: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encode windows in one pass: features for the decoder, and pooled states for heads.

        Parameters
        ----------
        mel : Tensor, shape (batch, n_mels, 3000)
            Log-mel spectrograms.
        windows : sequence of Window, optional
            Where each lies in its recording; by default each starts at 0 and is full.
        partial : bool
            Take spectrograms of fewer frames as they are, for as many features as they have: less to compute, but other
            features than those of windows that are padded to 30 s, as a Whisper was trained on.
        unfused_attention : bool
            In float32 on a CPU, attend without fused kernels: slower, and what openai-whisper times words by.

        Returns
        -------
        features : Tensor, shape (batch, 1500, dim)
            As ``model.encoder(mel)`` returns them.
        states : Tensor, shape (batch, layers, steps, dim)
            Float32: the output of every block before ``ln_post``, mean over 0.4 s steps of the absolute grid; steps
            without audio are NaN.
        """
        windows = [Window(0)] * len(mel) if windows is None else windows
        if self._encodes_one_by_one(mel):
            parts = [
                self._encode(mel[i : i + 1], windows[i : i + 1], partial, unfused_attention) for i in range(len(mel))
            ]
            by_step = [states[0].transpose(0, 1) for _, states in parts]  # a window may touch 75 or 76 of them
            padded = pad_sequence(by_step, batch_first=True, padding_value=math.nan)
            return torch.cat([features for features, _ in parts]), padded.transpose(1, 2).contiguous()
        return self._encode(mel, windows, partial, unfused_attention)

    def _encode(
        self, mel: Tensor, windows: Sequence[Window], partial: bool, unfused_attention: bool
    ) -> tuple[Tensor, Tensor]:
        states: list[Tensor] = []
        features = self._embed(
            mel, lambda output: states.append(pool_steps(output, windows)), partial, unfused_attention
        )
        return features, torch.stack(states, dim=1)

    def embed_audio(self, mel: Tensor, *, unfused_attention: bool = False) -> Tensor:
        """Return encoder features ``(batch, 1500, dim)`` for the decoder, in the precision that it computes in.

        ``unfused_attention`` is as of `encode`.
        """
        parts = mel.split(1) if self._encodes_one_by_one(mel) else [mel]
        return torch.cat([self._embed(part, unfused_attention=unfused_attention) for part in parts])

    def _encodes_one_by_one(self, mel: Tensor) -> bool:
        """Return whether a batch is faster window by window: in float32 on a CPU, whose caches one of them fills."""
        return len(mel) > 1 and mel.device.type == "cpu" and not self._in_bfloat16()

    def _in_bfloat16(self) -> bool:
        return self.compute_type == "bfloat16" or (self.compute_type == "int8" and has_bfloat16())

    def _embed(
        self, mel: Tensor, on_block: OnBlock | None = None, partial: bool = False, unfused_attention: bool = False
    ) -> Tensor:
        """Compute `embed_audio`; ``on_block`` is given the output of every block, ``partial`` is as of `encode`."""
        reduced: type[EncoderBF16 | EncoderInt8] = EncoderBF16 if self._in_bfloat16() else EncoderInt8
        if reduced is EncoderInt8 and (self.compute_type != "int8" or not EncoderInt8.fits(self.encoder)):
            return encode_mel(self.encoder, mel, on_block, partial, unfused_attention)
        if reduced is EncoderBF16 and not EncoderBF16.fits(self.encoder):
            return encode_mel(self.encoder, mel.bfloat16(), on_block, partial).float()
        with BUILD_LOCK:  # and not once for each thread
            encoder = self._encoder
            if not isinstance(encoder, reduced) or not encoder.is_current(self.encoder):
                encoder = self._encoder = reduced(self.encoder)
        return encoder(mel, on_block, partial)

    def is_encoded(self, mel: Tensor) -> bool:
        """Return whether this is encoder output already, by its shape, as upstream's ``decode`` does."""
        return mel.shape[-2:] == (self.dims.n_audio_ctx, self.dims.n_audio_state)

    @property
    def is_unmodified(self) -> bool:
        """Whether the decoder is openai-whisper's as installed, so that `fast_decoder` may stand in for it."""
        return is_unmodified(self.decoder)

    @property
    def is_stock(self) -> bool:
        """Deprecated name of `is_unmodified`."""
        warnings.warn("is_stock is now is_unmodified", DeprecationWarning, stacklevel=2)
        return self.is_unmodified

    def fast_decoder(self, dtype: torch.dtype) -> Decoder:
        """Return the decoder for inference, which is built again when a weight has changed."""
        reduced = self.compute_type if self.compute_type in ("bfloat16", "int8") else None
        with BUILD_LOCK:
            decoder = self._decoder
            if decoder is None or not decoder.is_current(self, dtype, reduced):
                decoder = self._decoder = Decoder(self, dtype, reduced)
        return decoder

    def precompute_cross_kv(self, features: Tensor) -> EncodedAudio:
        """Compute what the decoder attends to of features ``(batch, 1500, dim)``, for any number of `decode` calls."""
        return self.fast_decoder(features.dtype).precompute_cross_kv(features)

    def hear(self, features: Tensor) -> EncodedAudio:
        """Compute `precompute_cross_kv`; a deprecated name of it."""
        warnings.warn("hear is now precompute_cross_kv", DeprecationWarning, stacklevel=2)
        return self.precompute_cross_kv(features)

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        """Return logits ``(batch, tokens, vocabulary)`` of a mel or, to save a pass, of its encoded features."""
        return self.decoder(tokens, mel if self.is_encoded(mel) else self.encoder(mel))

    detect_language = detect_language_function
    transcribe = transcribe_function
    transcribe_many = transcribe_many_function
    tag = tag_recording
    decode = decode_function
