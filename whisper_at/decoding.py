"""Decoding of one window: openai-whisper's own rules and classes, as installed."""

from whisper.decoding import *  # noqa: F401,F403
