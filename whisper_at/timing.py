"""`whisper.timing` of the installed openai-whisper, under this package's name."""

from whisper.timing import *
