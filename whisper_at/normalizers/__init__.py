"""`whisper.normalizers` of the installed openai-whisper, under this package's name."""

from whisper.normalizers import *
