"""`whisper.utils` of the installed openai-whisper, under this package's name."""

from whisper.utils import *  # noqa: F401,F403
