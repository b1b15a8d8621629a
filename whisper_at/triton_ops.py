"""`whisper.triton_ops` of the installed openai-whisper, under this package's name."""

from whisper.triton_ops import *
