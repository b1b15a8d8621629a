"""The version of this package; the installed openai-whisper has its own."""

__version__ = "1.0.0"
