"""whisper_at: openai-whisper that also hears everything else.

``import whisper_at as whisper`` gives every public name of the installed openai-whisper with the same
signatures and the same transcripts; a model with a head adds what sounds, from the same encoder pass.

Names are imported when the first of them is used (PEP 562), so that ``whisper-at --help`` need not wait for PyTorch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from ._api import *
    from ._api import __all__ as __all__


def __getattr__(name: str) -> Any:
    if name != "transcribe" and not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(
            f".{name}", __name__
        )  # a module or room; `transcribe` is the function, as openai-whisper's
    if name == "__all__" or not name.startswith("_"):
        api = import_module("._api", __name__)
        for key, value in vars(api).items():
            # modules of openai-whisper's are taken over by ours of the same name, which the import system has bound
            if key == "__all__" or not (key.startswith("_") or getattr(value, "__name__", "").startswith("whisper.")):
                globals()[key] = value
        if name in globals():
            return globals()[name]
    if not name.startswith("__") and hasattr(whisper := import_module("whisper"), name):
        return getattr(whisper, name)  # `_MODELS`, `_download` and their kind, which programs take all the same
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    __getattr__("__all__")
    return sorted(globals())
