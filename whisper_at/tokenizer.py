"""`whisper.tokenizer` of the installed openai-whisper, under this package's name."""

from whisper.tokenizer import *
