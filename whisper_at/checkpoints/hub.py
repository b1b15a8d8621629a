"""Models of the Hugging Face hub, by their ids: ``owner/model``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from . import ctranslate2, huggingface, peft

# By their full names: a repository may keep the same weights in several precisions, of gigabytes each.
_CONFIGS = ("config.json", "generation_config.json", peft.CONFIG)
_ALLOW_PATTERNS = (
    (*_CONFIGS, "model.safetensors", "model.safetensors.index.json", "model-*.safetensors", peft.WEIGHTS[0]),
    (*_CONFIGS, "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin", peft.WEIGHTS[1]),
    (*_CONFIGS, ctranslate2.WEIGHTS),
)
"""What is downloaded: of the layouts in their order, the first that a repository has."""
_USE_A_COPY = "give the folder of a downloaded copy (with config.json and its weights)"


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``owner/model``, and not that of a file of weights.

    >>> is_hub_id("Systran/faster-whisper-small"), is_hub_id("models/small.pt")
    (True, False)
    """
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
                _check_weights(folder)
                return folder
            except RuntimeError as error:  # of _check_weights: it came without weights
                problem = str(error)
            except Exception as error:  # the network's, the server's and the package's own, of many types
                if not local_only:
                    reason = str(error).strip().partition("\n")[0] or type(error).__name__
                    raise RuntimeError(
                        f"Model {name!r} is no file or folder here, and the Hugging Face hub did not give it "
                        f"({reason}); check it, or {_USE_A_COPY}"
                    ) from error
    raise RuntimeError(f"Model {name!r} of the Hugging Face hub cannot be loaded: {problem}")


def _check_weights(folder: Path) -> None:
    """Raise RuntimeError unless weights of some layout are complete in a folder."""
    if not ctranslate2.is_ctranslate2(folder) and not peft.has_weights(folder):
        huggingface.find_shards(folder)
