"""The version of this package, a date as openai-whisper's: programs compare them as text."""

__version__ = "20261201"
