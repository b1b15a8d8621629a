"""Formats of result files beside openai-whisper's: of editors, players, data sets, tables, and a picture."""

from .registry import FORMATS, Format, format_bytes, parse_formats

__all__ = ["FORMATS", "Format", "format_bytes", "parse_formats"]
