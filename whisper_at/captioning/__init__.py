"""Captions that people can read: cues made from words and sounds, and a check of their rules."""

from .build import captions
from .check import check_captions, read_captions
from .styles import STYLES, CaptionStyle, parse_style

__all__ = ["STYLES", "CaptionStyle", "captions", "check_captions", "parse_style", "read_captions"]
