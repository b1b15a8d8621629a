"""`whisper.tokenizer` of the installed openai-whisper, under this package's name."""

from whisper.tokenizer import *  # noqa: F401,F403
