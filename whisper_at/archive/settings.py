"""What an archive is made with: everything that a worker needs, on this machine or another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from ..checkpoints.files import to_jsonable
from ..checkpoints.hashing import tensors_sha256
from ..engine.half_parameters import stored_parameters
from ..limits import DecodeLimits
from ..options import SEQUENTIAL_OPTIONS, TranscribeOptions
from ..tagging.listeners import class_set
from .schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from ..model import WhisperAT

MAX_BYTES = 4 << 30
"""Bytes of one recording in a tar file, a table or at a URL, by default."""


@dataclass(frozen=True)
class ArchiveSettings:
    """What an archive is made with.

    Attributes
    ----------
    output : str
        Its folder or URL.
    transcribe : dict
        Options of `transcribe_many`, ``at_time_res`` and ``word_timestamps`` among them.
    load : dict
        Arguments of `load_model`, for workers in other processes.
    batch_size : int
        Windows decoded at once.
    decode_threads : int
        Threads that read and decode recordings ahead of the model.
    ahead : int
        Recordings that may wait for the model.
    p_threshold : float, optional
        Of events, as of `find_events`.
    limits : DecodeLimits
        What decoding a recording may cost.
    max_bytes : int
        Largest recording that is unpacked from a tar file or a table, or fetched.
    output_format : str, optional
        Formats of files beside the tables, as of `get_writer`.
    writer_options : dict
        Options of `get_writer`.
    retry_failed : bool
        Whether recordings that failed before are tried again.
    column : str, optional
        Of tables of bytes, as of `InputOptions`.
    """

    output: str
    transcribe: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 8
    decode_threads: int = 2
    ahead: int = 16
    p_threshold: float | None = None
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    max_bytes: int = MAX_BYTES
    output_format: str | None = None
    writer_options: Mapping[str, Any] = field(default_factory=dict)
    retry_failed: bool = False
    column: str | None = None

    def __post_init__(self) -> None:
        for name in SEQUENTIAL_OPTIONS:
            if name in self.transcribe:
                raise ValueError(f"archives take no {name}: windows of a batch do not depend on one another")
        TranscribeOptions.from_keywords(**{**self.transcribe, "batch_size": self.batch_size})
        for name, least in (("decode_threads", 1), ("ahead", 1), ("max_bytes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, not {getattr(self, name)}")

    def options(self) -> dict[str, Any]:
        """Return everything beside the model that decides what rows hold."""
        return {
            "transcribe": to_jsonable(dict(self.transcribe)),
            "p_threshold": self.p_threshold,
        }


def describe(settings: ArchiveSettings, model: WhisperAT, name: str) -> dict[str, Any]:
    """Return what ``archive.json`` says: versions, options, the model, and its heads with their classes."""
    options = {**settings.options(), "compute_type": model.compute_type}
    heads = {
        head: {"sha256": head_sha256(found), **to_jsonable(class_set(found).values())}
        for head, found in model.heads.items()
    }
    identity = json.dumps(
        [options, {head: found["sha256"] for head, found in heads.items()}], sort_keys=True, ensure_ascii=True
    )
    encoder, decoder = model.encoder.state_dict(prefix="encoder."), stored_parameters(model.decoder)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": name if not os.path.exists(name) else os.path.basename(name),
        "model_sha256": tensors_sha256({**encoder, **{f"decoder.{name}": weights for name, weights in decoder}}),
        "options": options,
        "options_sha256": hashlib.sha256(identity.encode()).hexdigest(),
        "heads": heads,
    }


def fingerprint(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that say by what a row was made."""
    return {
        "model_sha256": description["model_sha256"],
        "head_sha256": [{"head": head, "sha256": d["sha256"]} for head, d in description["heads"].items()],
        "options_sha256": description["options_sha256"],
    }


def head_sha256(head: Any) -> str:
    """Return a hash of a head's weights and classes."""
    tensors = {
        f"{i}.{name}": tensor for i, part in enumerate(_modules(head)) for name, tensor in part.state_dict().items()
    }
    classes = json.dumps(to_jsonable(class_set(head).values()), sort_keys=True)
    return hashlib.sha256((tensors_sha256(tensors) + classes).encode()).hexdigest()


def _modules(head: Any) -> list[nn.Module]:
    """Return the modules that a head consists of: itself, or what the function of a `StateClassifier` calls."""
    if isinstance(head, nn.Module):
        return [head]
    function = getattr(head, "classify", None)
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    parts = [*vars(head).values(), getattr(function, "__self__", None), *cells]
    return [part for part in parts if isinstance(part, nn.Module)]
