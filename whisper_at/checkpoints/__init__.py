"""From names to files on disk and their tensors: find, download, verify, open, save.

Weights are data, never programs: ``.pt`` and ``.pth`` are opened with ``weights_only=True``, and everything that this
package writes is ``.safetensors``.
"""

from .download import DownloadError
from .files import save_safetensors
from .hashing import encoder_sha256, file_sha256
from .heads import find_head, open_head, packaged_heads, stand_in_head
from .registry import (
    EMBEDDED,
    HEADS,
    MANUAL,
    OPEN_HEADS,
    WIDTHS,
    PublishedHead,
    available_heads,
    available_models,
    head_name,
)
from .shapes import check_shapes, check_size, head_shapes, model_dims, whisper_parameters, whisper_shapes
from .whisper import (
    alignment_heads,
    check_folder,
    decode_alignment_heads,
    find_local,
    find_whisper,
    open_whisper,
    published_encoder_sha256,
)

__all__ = [
    "EMBEDDED",
    "HEADS",
    "MANUAL",
    "OPEN_HEADS",
    "WIDTHS",
    "DownloadError",
    "PublishedHead",
    "alignment_heads",
    "available_heads",
    "available_models",
    "check_folder",
    "check_shapes",
    "check_size",
    "decode_alignment_heads",
    "encoder_sha256",
    "file_sha256",
    "find_head",
    "find_local",
    "find_whisper",
    "head_name",
    "head_shapes",
    "model_dims",
    "open_head",
    "open_whisper",
    "packaged_heads",
    "published_encoder_sha256",
    "save_safetensors",
    "stand_in_head",
    "whisper_parameters",
    "whisper_shapes",
]
