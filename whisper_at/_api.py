"""The public names of the package: openai-whisper's, and ours."""

from importlib import import_module

from whisper import *
from whisper import DecodingOptions, DecodingResult, ModelDimensions, Whisper, pad_or_trim

from .audio import load_audio, log_mel_spectrogram
from .batched import transcribe_many
from .captioning import captions
from .checkpoints import available_models
from .checkpoints.files import to_jsonable
from .decoding import decode, detect_language
from .loading import load_model
from .model import WhisperAT
from .tagging.events import find_events
from .tagging.labels import find_classes, label_names, print_label_name, print_support_language
from .tagging.rows import parse_at_label
from .transcribe import transcribe
from .version import __version__

for _name in ("normalizers", "timing", "tokenizer", "utils"):  # whisper's of these names are bound by the first line
    import_module(f".{_name}", __package__)

__all__ = [
    "DecodingOptions",
    "DecodingResult",
    "ModelDimensions",
    "Whisper",
    "WhisperAT",
    "__version__",
    "available_models",
    "captions",
    "decode",
    "detect_language",
    "find_classes",
    "find_events",
    "label_names",
    "load_audio",
    "load_model",
    "log_mel_spectrogram",
    "pad_or_trim",
    "parse_at_label",
    "print_label_name",
    "print_support_language",
    "to_jsonable",
    "transcribe",
    "transcribe_many",
]
